//! What clients take of their answers.
//!
//! A client of HTTP/2 can leave an answer where it is by not opening its
//! window. Its connection lives meanwhile (pings go), and nobody else notices:
//! hyper does not look at a body again while a piece of it waits, and is done
//! with a body whose last piece waits. So each piece tells by itself when some
//! of it went and when it is gone.
//!
//! Invariants: an answer of which nothing waits is never called stalled, however
//! long nothing goes; nor is a client that takes 16 KiB of each in time; what is held for an answer is held until all of it went.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

/// Answers that a connection has room for before it grows: most clients wait
/// for one before they ask for the next.
const OPEN_USUALLY: usize = 4;

/// Less of a piece does not count as taken.
const PROGRESS_BYTES: u64 = 16 * 1024;

/// Something that is kept until all of an answer went. It stands among the
/// answer's extensions.
#[derive(Clone)]
pub struct Held(Arc<dyn Any + Send + Sync>);

impl Held {
    /// Something to be kept.
    pub fn new(what: impl Any + Send + Sync) -> Self {
        Self(Arc::new(what))
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&Arc::strong_count(&self.0)).finish()
    }
}

/// How long clients may take nothing of what waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Nothing of all answers of a connection.
    pub connection: Duration,
    /// Nothing of one answer while others go: slow clients that asked for much
    /// take one after the other.
    pub answer: Duration,
}

/// The answers of one connection. Clones tell of the same ones.
#[derive(Debug, Clone)]
pub struct Answers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    /// When something of any answer last went, in microseconds since then.
    moved: AtomicU64,
    /// Those that are not gone, and some that are.
    open: Mutex<Vec<Weak<Answer>>>,
    /// Requests whose answers are not gone.
    requests: AtomicUsize,
    /// Since when there is none.
    rests_since: AtomicU64,
}

/// A request, until its answer is gone.
#[derive(Debug)]
pub struct UnderWay(Arc<Shared>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Whoever sees that it is over sees since when.
        self.0.rests_since.store(self.0.now(), Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::Release);
    }
}

/// What a client takes nothing of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stalled {
    /// Of all that waits.
    Connection,
    /// Of one answer, while others go.
    Answer,
}

/// One answer.
#[derive(Debug)]
struct Answer {
    among: Arc<Shared>,
    /// Since when nothing went, as long as something waits.
    moved: AtomicU64,
    /// What went since then: too little to count.
    sent: AtomicU64,
    /// Pieces that wait.
    waiting: AtomicUsize,
    _held: Option<Held>,
    _under_way: UnderWay,
}

impl Default for Answers {
    fn default() -> Self {
        let open = Mutex::new(Vec::with_capacity(OPEN_USUALLY));
        let [moved, rests_since] = [0, 0].map(AtomicU64::new);
        Self(Arc::new(Shared { began: Instant::now(), moved, open, requests: AtomicUsize::new(0), rests_since }))
    }
}

impl Answers {
    /// Watches what becomes of an answer.
    pub fn watch(&self, answer: Response, under_way: UnderWay) -> Response<Taken> {
        let (mut head, body) = answer.into_parts();
        let kept = head.extensions.remove::<Held>();
        let among = Arc::clone(&self.0);
        let answer = Arc::new(Answer {
            among,
            moved: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            _held: kept,
            _under_way: under_way,
        });
        // Nothing under the lock can panic half-way through a change.
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() == open.capacity() {
            open.retain(|answer| answer.strong_count() > 0);
        }
        open.push(Arc::downgrade(&answer));
        drop(open);
        Response::from_parts(head, Taken { body, answer })
    }

    /// A request begins.
    pub fn begins(&self) -> UnderWay {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(&self.0))
    }

    /// Resolves when no request was under way for so long.
    pub async fn idle(&self, time: Duration) {
        loop {
            let now = Instant::now();
            let since = if self.0.requests.load(Ordering::Acquire) > 0 { now } else { self.0.at(&self.0.rests_since) };
            if since + time <= now {
                return;
            }
            sleep_until(since + time).await;
        }
    }

    /// Resolves when answers wait that the client takes nothing of.
    pub async fn stalled(&self, patience: Patience) -> Stalled {
        loop {
            let now = Instant::now();
            match self.patience_ends(patience) {
                Some(end) if end <= now => {
                    let is_alive = self.0.at(&self.0.moved) + patience.connection > now;
                    return if is_alive { Stalled::Answer } else { Stalled::Connection };
                }
                Some(end) => sleep_until(end).await,
                // What begins to wait meanwhile is found before its time is up.
                None => sleep_until(now + patience.connection.min(patience.answer)).await,
            }
        }
    }

    /// When patience ends if nothing goes until then; `None` when nothing waits.
    fn patience_ends(&self, patience: Patience) -> Option<Instant> {
        let moved = self.0.at(&self.0.moved);
        let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = open.iter().filter_map(Weak::upgrade).filter_map(|answer| answer.waits_since());
        waiting.map(|since| (since.max(moved) + patience.connection).min(since + patience.answer)).min()
    }
}

impl Shared {
    fn at(&self, moment: &AtomicU64) -> Instant {
        self.began + Duration::from_micros(moment.load(Ordering::Relaxed))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Answer {
    fn waits_since(&self) -> Option<Instant> {
        (self.waiting.load(Ordering::Acquire) > 0).then(|| self.among.at(&self.moved))
    }

    /// A piece begins to wait.
    fn waits(self: &Arc<Self>, bytes: Bytes) -> Piece {
        if bytes.is_empty() {
            return Piece { bytes, of: None };
        }
        if self.waiting.load(Ordering::Acquire) == 0 {
            self.moved.store(self.among.now(), Ordering::Relaxed);
        }
        // Whoever sees the piece sees the moment, too.
        self.waiting.fetch_add(1, Ordering::Release);
        Piece { bytes, of: Some(Arc::clone(self)) }
    }

    /// Some of a piece went, or all that was left of it. Who takes a byte now
    /// and then takes nothing.
    fn went(&self, count: usize, is_all: bool) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        if !is_all && self.sent.fetch_add(count, Ordering::Relaxed).saturating_add(count) < PROGRESS_BYTES {
            return;
        }
        self.sent.store(0, Ordering::Relaxed);
        let now = self.among.now();
        self.moved.store(now, Ordering::Relaxed);
        self.among.moved.store(now, Ordering::Relaxed);
    }
}

/// The body of an answer that is watched.
#[derive(Debug)]
pub struct Taken {
    body: Body,
    answer: Arc<Answer>,
}

impl HttpBody for Taken {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| self.answer.waits(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        HttpBody::size_hint(&self.body)
    }
}

/// A piece of an answer.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    /// Until all of it went.
    of: Option<Arc<Answer>>,
}

impl Piece {
    fn went(&mut self, count: usize) {
        if count > 0
            && let Some(answer) = &self.of
        {
            answer.went(count, self.bytes.is_empty());
        }
        if self.bytes.is_empty() {
            self.settle();
        }
    }

    fn settle(&mut self) {
        if let Some(answer) = self.of.take() {
            answer.waiting.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.went(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        let bytes = self.bytes.copy_to_bytes(length);
        self.went(length);
        bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::poll_fn;

    use futures_util::{FutureExt, stream};

    use super::*;

    /// Far more than passes while a test runs.
    const LONG: Duration = Duration::from_hours(1_000);
    const PATIENCE: Patience = Patience { connection: Duration::from_hours(1), answer: Duration::from_hours(5) };

    async fn next(body: &mut Taken) -> Piece {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.unwrap().unwrap();
        frame.into_data().unwrap()
    }

    fn answer(answers: &Answers, text: impl Into<Body>) -> Taken {
        answers.watch(Response::new(text.into()), answers.begins()).into_body()
    }

    /// So many steps of progress.
    fn much(steps: usize) -> Vec<u8> {
        vec![7; steps * STEP]
    }

    const STEP: usize = 16 * 1024;

    /// How long is still waited, to the minute above; `None` when nothing waits.
    fn minutes_left(answers: &Answers) -> Option<u64> {
        let left = answers.patience_ends(PATIENCE)?.saturating_duration_since(Instant::now());
        Some(left.as_secs() / 60 + 1)
    }

    /// As if everything that is known had happened so many minutes earlier.
    fn age(answers: &Answers, minutes: u64) {
        let micros = minutes * 60 * 1_000_000;
        let earlier = |moment: &AtomicU64| {
            let before = moment.load(Ordering::Relaxed);
            moment.store(before.saturating_sub(micros), Ordering::Relaxed);
        };
        earlier(&answers.0.moved);
        for answer in answers.0.open.lock().unwrap().iter().filter_map(Weak::upgrade) {
            earlier(&answer.moved);
        }
    }

    /// Answers of a connection that began long ago.
    fn answers() -> Answers {
        let shared = Shared {
            began: Instant::now().checked_sub(LONG).unwrap(),
            moved: AtomicU64::new(u64::try_from(LONG.as_micros()).unwrap()),
            open: Mutex::default(),
            requests: AtomicUsize::new(0),
            rests_since: AtomicU64::new(0),
        };
        Answers(Arc::new(shared))
    }

    #[tokio::test]
    async fn an_answer_waits_from_its_first_piece_until_all_of_it_went() {
        let answers = answers();
        let mut body = answer(&answers, "answer");
        assert_eq!(minutes_left(&answers), None, "nobody asked for it yet");
        let mut piece = next(&mut body).await;
        assert_eq!(minutes_left(&answers), Some(60));
        drop(body);
        assert_eq!(minutes_left(&answers), Some(60), "its body is done, and it still waits");
        piece.advance(5);
        assert_eq!(minutes_left(&answers), Some(60));
        piece.advance(1);
        assert_eq!(minutes_left(&answers), None);

        let piece = next(&mut answer(&answers, "not wanted")).await;
        drop(piece);
        assert_eq!(minutes_left(&answers), None, "given up");
        let mut piece = next(&mut answer(&answers, "copied")).await;
        assert_eq!(piece.copy_to_bytes(6), "copied");
        assert_eq!(minutes_left(&answers), None);
    }

    #[tokio::test]
    async fn a_stream_of_which_nothing_waits_is_not_stalled_however_long_it_is_silent() {
        let answers = answers();
        let words = stream::iter([Ok::<_, axum::Error>("one")]);
        let words = futures_util::StreamExt::chain(words, stream::pending());
        let mut body = answers.watch(Response::new(Body::from_stream(words)), answers.begins()).into_body();
        next(&mut body).await.advance(3);
        age(&answers, 6_000);
        assert_eq!(minutes_left(&answers), None);
    }

    #[tokio::test]
    async fn who_takes_enough_is_waited_for_and_who_takes_next_to_nothing_is_not() {
        let answers = answers();
        let mut body = answer(&answers, much(5));
        let mut piece = next(&mut body).await;
        for _ in 0..3 {
            age(&answers, 59);
            assert_eq!(minutes_left(&answers), Some(1));
            piece.advance(1);
            assert_eq!(minutes_left(&answers), Some(1));
            piece.advance(STEP - 1);
            assert_eq!(minutes_left(&answers), Some(60));
        }
        age(&answers, 60);
        assert_eq!(answers.stalled(PATIENCE).await, Stalled::Connection);
        assert_eq!(piece.remaining(), 2 * STEP);
    }

    #[tokio::test]
    async fn an_answer_that_is_left_where_it_is_has_longer_while_others_go() {
        let answers = answers();
        let (mut left, mut taken) = (answer(&answers, "left"), answer(&answers, much(10)));
        let (_piece, mut going) = (next(&mut left).await, next(&mut taken).await);
        for _ in 0..5 {
            age(&answers, 50);
            going.advance(STEP);
        }
        assert_eq!(minutes_left(&answers), Some(50), "of 300; 60 only if nothing goes at all");
        age(&answers, 50);
        going.advance(STEP);
        assert_eq!(answers.stalled(PATIENCE).await, Stalled::Answer);
    }

    #[tokio::test]
    async fn a_connection_rests_when_all_its_answers_are_gone() {
        let answers = answers();
        let rests = || answers.idle(PATIENCE.connection).now_or_never().is_some();
        assert!(rests(), "nobody ever asked");
        let body = answer(&answers, "answer");
        assert!(!rests(), "one is under way");
        drop(body);
        assert!(!rests(), "a moment ago");
        answers.0.rests_since.store(0, Ordering::Relaxed);
        assert!(rests());
    }

    #[tokio::test]
    async fn what_is_held_for_an_answer_is_held_until_it_went() {
        let answers = answers();
        let held = Arc::new(());
        let mut response = Response::new(Body::from("answer"));
        response.extensions_mut().insert(Held::new(Arc::clone(&held)));
        let (_, mut body) = answers.watch(response, answers.begins()).into_parts();
        let mut piece = next(&mut body).await;
        drop(body);
        assert_eq!(Arc::strong_count(&held), 2);
        piece.advance(6);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn answers_that_are_gone_are_forgotten() {
        let answers = Answers::default();
        for _ in 0..1_000 {
            drop(answer(&answers, "x"));
        }
        assert!(answers.0.open.lock().unwrap().len() <= OPEN_USUALLY);
    }
}
