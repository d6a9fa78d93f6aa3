//! Signs of life of a connection: when bytes last came and went.
//!
//! A message counts only when it is whole, which takes long when it is large
//! and the network slow. Bytes that move show earlier that somebody is there.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// When bytes last came and went on a connection. Clones tell of the same one.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Times>);

#[derive(Debug)]
struct Times {
    began: Instant,
    /// Microseconds since then.
    read: AtomicU64,
    written: AtomicU64,
    /// Since when something is to be written that is not taken; [`NEVER`] while nothing is.
    waits: AtomicU64,
}

/// A moment that does not come.
const NEVER: u64 = u64::MAX;

/// Nothing could be sent for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stalled;

impl Default for Pulse {
    fn default() -> Self {
        let (read, written, waits) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(NEVER));
        Self(Arc::new(Times { began: Instant::now(), read, written, waits }))
    }
}

impl Pulse {
    /// When something last came; the beginning when nothing did yet.
    pub fn read_at(&self) -> Instant {
        self.at(&self.0.read)
    }

    /// When something last went; the beginning when nothing did yet.
    pub fn written_at(&self) -> Instant {
        self.at(&self.0.written)
    }

    /// Since when something is to be written that the other side does not take.
    fn waits_since(&self) -> Option<Instant> {
        (self.0.waits.load(Ordering::Relaxed) != NEVER).then(|| self.at(&self.0.waits))
    }

    /// Resolves when something is to be written and none of it was taken for so long.
    pub async fn stalled(&self, pause_max: Duration) {
        loop {
            let end = self.waits_since().unwrap_or_else(Instant::now) + pause_max;
            sleep_until(end).await;
            if self.waits_since().is_some_and(|since| since + pause_max <= Instant::now()) {
                return;
            }
        }
    }

    fn at(&self, moment: &AtomicU64) -> Instant {
        self.0.began + Duration::from_micros(moment.load(Ordering::Relaxed))
    }

    fn beat(&self, moment: &AtomicU64) {
        let micros = u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        moment.store(micros, Ordering::Relaxed);
    }

    /// Sends, as long as bytes go: gives up when none did for so long.
    pub async fn send<T>(&self, sending: impl Future<Output = T>, pause_max: Duration) -> Result<T, Stalled> {
        let began = Instant::now();
        tokio::pin!(sending);
        loop {
            let end = self.written_at().max(began) + pause_max;
            tokio::select! {
                biased;
                sent = &mut sending => return Ok(sent),
                () = sleep_until(end) => if self.written_at().max(began) + pause_max <= end {
                    return Err(Stalled);
                },
            }
        }
    }
}

/// A stream with a pulse.
#[derive(Debug)]
pub struct Pulsing<S> {
    stream: S,
    pulse: Pulse,
}

impl<S> Pulsing<S> {
    /// Feels the pulse of a stream.
    pub fn new(stream: S) -> (Self, Pulse) {
        let pulse = Pulse::default();
        (Self { stream, pulse: pulse.clone() }, pulse)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Pulsing<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.pulse.beat(&self.pulse.0.read);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> Pulsing<S> {
    fn written(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let times = &self.pulse.0;
        match polled {
            Poll::Ready(Ok(1..)) => {
                self.pulse.beat(&times.written);
                times.waits.store(NEVER, Ordering::Relaxed);
            }
            Poll::Pending if self.pulse.waits_since().is_none() => self.pulse.beat(&times.waits),
            _ => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Pulsing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Gives up only when a test fails.
    const LONG: Duration = Duration::from_mins(1);
    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn bytes_that_come_and_go_are_felt() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut near, pulse) = Pulsing::new(near);
        let (read, written) = (pulse.read_at(), pulse.written_at());
        tokio::time::sleep(Duration::from_millis(2)).await;
        near.write_all(b"ping").await.unwrap();
        assert!(pulse.written_at() > written && pulse.read_at() == read);
        far.write_all(b"pong").await.unwrap();
        near.read_exact(&mut [0; 4]).await.unwrap();
        assert!(pulse.read_at() > read);
        let heard = pulse.read_at();
        drop(far);
        assert_eq!(near.read(&mut [0; 4]).await.unwrap(), 0);
        assert_eq!(pulse.read_at(), heard, "an end is no sign of life");
    }

    #[tokio::test]
    async fn sending_goes_on_while_bytes_go_and_is_given_up_when_none_do() {
        let (near, mut far) = tokio::io::duplex(8);
        let (mut near, pulse) = Pulsing::new(near);
        assert_eq!(pulse.send(near.write_all(&[0; 64]), SHORT).await.unwrap_err(), Stalled);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
        });
        pulse.send(near.write_all(&[0; 64]), LONG).await.unwrap().unwrap();
        drop(near);
        reading.await.unwrap();
    }

    #[tokio::test]
    async fn who_takes_nothing_is_told_from_who_is_sent_nothing_and_from_who_takes_it_slowly() {
        let (near, mut far) = tokio::io::duplex(8);
        let (mut near, pulse) = Pulsing::new(near);
        tokio::select! {
            () = pulse.stalled(SHORT) => panic!("nothing was to be sent"),
            () = tokio::time::sleep(SHORT * 4) => {}
        }
        let mut some = [0; 4];
        let slowly = async {
            for _ in 0..8 {
                tokio::time::sleep(SHORT / 4).await;
                far.read_exact(&mut some).await.unwrap();
            }
        };
        tokio::select! {
            biased;
            () = pulse.stalled(LONG) => panic!("a little was taken all the time"),
            ((), sent) = async { tokio::join!(slowly, near.write_all(&[0; 40])) } => sent.unwrap(),
        }
        assert_eq!(pulse.waits_since(), None);
        tokio::select! {
            () = pulse.stalled(SHORT) => {}
            sent = near.write_all(&[0; 64]) => panic!("it was taken: {sent:?}"),
        }
    }
}
