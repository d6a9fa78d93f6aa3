//! Connections to other replicas: one for each replica and lane, made when
//! they are needed and kept.
//!
//! One that is dead without having said so (a host that lost its power, a
//! process that hangs) is noticed because it gives no sign of life, and given
//! up. Whether a request may have reached the other side decides what may be
//! done about it, so that is told apart with care.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use berth_raft::{Lane, Member, PeerError, Peers};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::CancellationToken;

use super::authority::{Claim, ClusterId, Tls};
use super::frame::{self, FRAME_BYTES_MAX, Frame, Frames, Hello, Kind, Service, Speaker, Status, Unwelcome, Welcome};
use super::runs::Run;
use crate::domain::ReplicaId;
use crate::domain::ids::FolderId;
use crate::sockets;

/// How long a connection with its handshakes may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// After a failed attempt, nothing is attempted for as long; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Between two questions for a sign of life.
const PING_INTERVAL: Duration = Duration::from_millis(750);
/// A connection that says nothing for as long is dead.
const SILENCE_MAX: Duration = Duration::from_millis(2_500);
/// The same where a single frame may take long: parts of snapshots, pictures.
const SILENCE_MAX_LARGE: Duration = Duration::from_secs(20);
/// How often it is told that another process speaks as this replica.
const TELL_INTERVAL: Duration = Duration::from_mins(1);
/// Requests that may wait for a connection.
const WAITING_MAX: usize = 4_096;

/// What is asked of another replica.
struct Call {
    service: Service,
    request: Bytes,
    reply: oneshot::Sender<Result<Bytes, Failure>>,
}

/// Why a request brought no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// It surely did not arrive.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// It may have arrived.
    #[error("did not answer: {0}")]
    NoAnswer(String),
    /// It arrived and was not carried out.
    #[error("{0}")]
    Refused(String),
}

/// Which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Route {
    to: ReplicaId,
    lane: Lane,
}

/// Who this replica is to others.
#[derive(Debug, Clone)]
pub struct Own {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its number.
    pub replica: ReplicaId,
    /// Its data folder.
    pub folder: FolderId,
    /// This run of its process.
    pub run: Run,
}

/// The connections to all others.
pub struct Dialer {
    shared: Arc<Shared>,
    lines: Mutex<HashMap<Route, mpsc::Sender<Call>>>,
}

struct Shared {
    own: Own,
    tls: Arc<ArcSwap<Tls>>,
    members: Mutex<BTreeMap<ReplicaId, Member>>,
    /// Where the configuration says that replicas are.
    alternatives: Mutex<BTreeMap<ReplicaId, String>>,
    /// When it was told that another process speaks as this replica.
    doubled_at: Mutex<Option<Instant>>,
    /// Told when another replica says that this one must not go on.
    unwelcome: tokio::sync::watch::Sender<Option<Unwelcome>>,
    /// Grows when connections are to be made anew, with other certificates.
    renewed: tokio::sync::watch::Sender<u64>,
    stop: CancellationToken,
}

impl Shared {
    /// Notes that another replica does not talk to this one, now or for good.
    fn note(&self, unwelcome: Unwelcome) {
        if let Unwelcome::Doubled { .. } = unwelcome {
            // Whichever of the two is to stay: this one may be, and may have
            // been started anew a moment ago.
            let mut told_at = lock(&self.doubled_at);
            if told_at.is_none_or(|at| at.elapsed() >= TELL_INTERVAL) {
                *told_at = Some(Instant::now());
                tracing::error!("another replica does not talk to this one: {unwelcome}");
            }
            return;
        }
        let is_own = matches!(
            unwelcome,
            Unwelcome::OtherFolder { id } | Unwelcome::Removed { id, .. } if id == self.own.replica
        );
        if is_own {
            self.unwelcome.send_if_modified(|told| {
                let first = told.is_none();
                told.get_or_insert(unwelcome);
                first
            });
        }
    }
}

impl Dialer {
    /// No connections yet.
    pub fn new(own: Own, tls: Arc<ArcSwap<Tls>>, stop: CancellationToken) -> Self {
        let shared = Shared {
            own,
            tls,
            members: Mutex::default(),
            alternatives: Mutex::default(),
            doubled_at: Mutex::default(),
            unwelcome: tokio::sync::watch::Sender::new(None),
            renewed: tokio::sync::watch::Sender::new(0),
            stop,
        };
        Self { shared: Arc::new(shared), lines: Mutex::default() }
    }

    /// Follows why another replica refuses to talk to this one for good.
    pub fn unwelcome(&self) -> tokio::sync::watch::Receiver<Option<Unwelcome>> {
        self.shared.unwelcome.subscribe()
    }

    /// Tells where replicas may be found when they are not where the log says:
    /// all of them may have moved at once.
    pub fn learn_alternatives(&self, addresses: BTreeMap<ReplicaId, String>) {
        *lock(&self.shared.alternatives) = addresses;
    }

    /// Makes all connections anew, with the certificates of now.
    pub fn renew(&self) {
        self.shared.renewed.send_modify(|times| *times += 1);
    }

    /// Asks a service of another replica.
    pub async fn ask(&self, to: ReplicaId, lane: Lane, service: Service, request: Bytes) -> Result<Bytes, Failure> {
        let (reply, answer) = oneshot::channel();
        let sent = self.line(Route { to, lane }).try_send(Call { service, request, reply });
        sent.map_err(|error| {
            Failure::Unreachable(match error {
                mpsc::error::TrySendError::Full(_) => "too many requests wait for it".to_owned(),
                mpsc::error::TrySendError::Closed(_) => "this replica ends".to_owned(),
            })
        })?;
        match answer.await {
            Ok(result) => result,
            Err(_) => Err(Failure::NoAnswer("this replica ends".to_owned())),
        }
    }

    fn line(&self, route: Route) -> mpsc::Sender<Call> {
        let mut lines = lock(&self.lines);
        let line = lines.entry(route).or_insert_with(|| {
            let (line, calls) = mpsc::channel(WAITING_MAX);
            tokio::spawn(Line { route, shared: Arc::clone(&self.shared), next_call: 1 }.run(calls));
            line
        });
        line.clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data: a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers for Dialer {
    fn call(
        &self,
        to: berth_raft::ReplicaId,
        lane: Lane,
        request: Vec<u8>,
    ) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        Box::pin(async move {
            let answer = self.ask(ReplicaId(to.0), lane, Service::Log, Bytes::from(request)).await;
            answer.map(Vec::from).map_err(|failure| match failure {
                Failure::Unreachable(reason) | Failure::Refused(reason) => PeerError::Unreachable { to, reason },
                Failure::NoAnswer(reason) => PeerError::NoAnswer { to, reason },
            })
        })
    }

    fn learn(&self, members: &BTreeMap<berth_raft::ReplicaId, Member>) {
        let mut known = lock(&self.shared.members);
        known.extend(members.iter().map(|(id, member)| (ReplicaId(id.0), member.clone())));
    }
}

/// One connection, over its lives.
struct Line {
    route: Route,
    shared: Arc<Shared>,
    next_call: u64,
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Bytes, Failure>>>>>;

impl Line {
    async fn run(mut self, mut calls: mpsc::Receiver<Call>) {
        let mut pause = PAUSE_FIRST;
        let mut not_before = Instant::now();
        let mut last_failure = String::new();
        loop {
            let first = tokio::select! {
                call = calls.recv() => call,
                () = self.shared.stop.cancelled() => return,
            };
            let Some(first) = first else { return };
            if Instant::now() < not_before {
                drop(first.reply.send(Err(Failure::Unreachable(last_failure.clone()))));
                continue;
            }
            let connected = timeout(CONNECT_TIMEOUT, self.connect());
            let connected = tokio::select! {
                connected = connected => connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                () = self.shared.stop.cancelled() => return,
            };
            match connected {
                Ok(stream) => {
                    pause = PAUSE_FIRST;
                    self.converse(stream, first, &mut calls).await;
                }
                Err(error) => {
                    last_failure = error.to_string();
                    tracing::debug!(to = %self.route.to, lane = ?self.route.lane, %error, "no connection to a replica");
                    not_before = Instant::now() + pause;
                    pause = (pause * 2).min(PAUSE_MAX);
                    drop(first.reply.send(Err(Failure::Unreachable(last_failure.clone()))));
                }
            }
        }
    }

    async fn connect(&self) -> io::Result<Stream> {
        let member = lock(&self.shared.members).get(&self.route.to).cloned();
        let Some(member) = member else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its address is not known"));
        };
        let own = &self.shared.own;
        let tls = self.shared.tls.load_full();
        let speaker = Speaker::Replica { id: own.replica, folder: own.folder.clone(), run: own.run };
        let to = Some(self.route.to);
        let alternative = lock(&self.shared.alternatives).get(&self.route.to).cloned();
        let alternative = alternative.filter(|address| *address != member.address);
        // An address that nobody has any more gives no answer at all.
        let share = if alternative.is_some() { CONNECT_TIMEOUT / 2 } else { CONNECT_TIMEOUT };
        let first = timeout(share, connect(&own.cluster, &tls, &member.address, speaker.clone(), to)).await;
        let mut connected = first.unwrap_or_else(|_| Err(ConnectError::Io(io::ErrorKind::TimedOut.into())));
        if let (Err(ConnectError::Io(_)), Some(address)) = (&connected, alternative) {
            connected = connect(&own.cluster, &tls, &address, speaker, to).await;
        }
        let (stream, certificate) = match connected {
            Ok(connected) => connected,
            Err(ConnectError::Io(error)) => return Err(error),
            Err(ConnectError::Unwelcome(unwelcome)) => {
                let text = unwelcome.to_string();
                self.shared.note(unwelcome);
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
        };
        let same_folder = member.folder.is_empty()
            || FolderId::new(&member.folder)
                .is_ok_and(|folder| Claim::Folder(&folder).is_made_by(&own.cluster, &certificate));
        if !same_folder {
            let other = Unwelcome::OtherFolder { id: self.route.to };
            tracing::error!(replica = %self.route.to, "a replica is not talked to: {other}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, other.to_string()));
        }
        Ok(stream)
    }

    /// Carries calls until the connection ends.
    async fn converse(&mut self, stream: Stream, first: Call, calls: &mut mpsc::Receiver<Call>) {
        let pending = Pending::default();
        let heard = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let (source, sink) = tokio::io::split(stream.into_inner());
        let noting = Arc::clone(&self.shared);
        let frames = FramedRead::new(source, Frames::new(FRAME_BYTES_MAX));
        let reader = read_answers(frames, &noting, &pending, &heard, began);
        let shared = Arc::clone(&self.shared);
        let mut renewed = shared.renewed.subscribe();
        renewed.mark_unchanged();
        let reason = tokio::select! {
            ended = reader => ended,
            ended = self.write_calls(sink, first, calls, &pending, &heard, began) => ended,
            _ = renewed.changed() => "connections are made anew".to_owned(),
            () = shared.stop.cancelled() => "this replica ends".to_owned(),
        };
        tracing::debug!(to = %self.route.to, lane = ?self.route.lane, reason, "connection to a replica ends");
        for (_, reply) in lock(&pending).drain() {
            drop(reply.send(Err(Failure::NoAnswer(reason.clone()))));
        }
    }

    async fn write_calls(
        &mut self,
        sink: impl AsyncWrite + Unpin,
        first: Call,
        calls: &mut mpsc::Receiver<Call>,
        pending: &Pending,
        heard: &AtomicU64,
        began: Instant,
    ) -> String {
        let silence_max = if self.route.lane == Lane::Snapshot { SILENCE_MAX_LARGE } else { SILENCE_MAX };
        let mut frames = FramedWrite::new(sink, Frames::new(FRAME_BYTES_MAX));
        let mut ticks = interval(PING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Whoever has given up asks nothing.
        let is_awaited = |call: &Call| !call.reply.is_closed();
        let mut next = Some(first).filter(is_awaited);
        loop {
            let sent = if let Some(call) = next.take() {
                let number = self.next_call;
                self.next_call += 1;
                lock(pending).insert(number, call.reply);
                let frame = Frame { kind: Kind::Call, call: number, tag: call.service as u8, bytes: call.request };
                // What waits already goes out together.
                next = std::iter::from_fn(|| calls.try_recv().ok()).find(is_awaited);
                if next.is_some() {
                    timeout(silence_max, frames.feed(frame)).await
                } else {
                    timeout(silence_max, frames.send(frame)).await
                }
            } else {
                tokio::select! {
                    call = calls.recv() => match call {
                        Some(call) => { next = Some(call).filter(is_awaited); continue }
                        None => return "this replica ends".to_owned(),
                    },
                    _ = ticks.tick() => {
                        let silent_ms = millis_since(began) - heard.load(Ordering::Relaxed).min(millis_since(began));
                        if Duration::from_millis(silent_ms) > silence_max {
                            return "it gives no sign of life".to_owned();
                        }
                        lock(pending).retain(|_, reply| !reply.is_closed());
                        timeout(silence_max, frames.send(Frame::bare(Kind::Ping))).await
                    }
                }
            };
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "it takes nothing any more".to_owned(),
            }
        }
    }
}

fn millis_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Hands answers to those who wait for them; returns why there are no more.
async fn read_answers(
    mut frames: FramedRead<impl AsyncRead + Unpin, Frames>,
    shared: &Shared,
    pending: &Pending,
    heard: &AtomicU64,
    began: Instant,
) -> String {
    loop {
        let frame = match frames.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return error.to_string(),
            None => return "it has closed the connection".to_owned(),
        };
        heard.store(millis_since(began), Ordering::Relaxed);
        if frame.kind != Kind::Answer {
            continue;
        }
        let Some(reply) = lock(pending).remove(&frame.call) else { continue };
        let result = match Status::of(frame.tag) {
            Some(Status::Done) => Ok(frame.bytes),
            Some(Status::NotServing) => Err(Failure::Unreachable("it does not serve yet, or no more".to_owned())),
            Some(Status::Refused) => Err(Failure::Refused(String::from_utf8_lossy(&frame.bytes).into_owned())),
            Some(Status::Unwelcome) => match frame::decode::<Unwelcome>(&frame.bytes) {
                Ok(unwelcome) => {
                    let text = unwelcome.to_string();
                    shared.note(unwelcome);
                    Err(Failure::Unreachable(text))
                }
                Err(error) => Err(Failure::NoAnswer(error.to_string())),
            },
            None => Err(Failure::NoAnswer(format!("an answer of status {}", frame.tag))),
        };
        // Whoever stopped waiting does not need to know.
        drop(reply.send(result));
    }
}

/// A connection after its handshakes.
pub struct Stream(tokio_rustls::client::TlsStream<TcpStream>);

impl Stream {
    fn into_inner(self) -> tokio_rustls::client::TlsStream<TcpStream> {
        self.0
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection, or no handshake.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side does not talk to this one.
    #[error(transparent)]
    Unwelcome(Unwelcome),
}

/// Connects to a replica and says hello. Gives its certificate, too.
async fn connect(
    cluster: &ClusterId,
    tls: &Tls,
    address: &str,
    speaker: Speaker,
    to: Option<ReplicaId>,
) -> Result<(Stream, rustls::pki_types::CertificateDer<'static>), ConnectError> {
    let stream = TcpStream::connect(address).await?;
    sockets::prepare(&stream)?;
    let claim = to.map_or(Claim::AnyReplica, Claim::Replica);
    let name = claim.server_name(cluster).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut stream = TlsConnector::from(Arc::clone(&tls.client)).connect(name, stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    let certificate = certificate.ok_or_else(|| io::Error::other("no certificate came"))?;
    let hello = Frame { kind: Kind::Hello, call: 0, tag: 0, bytes: frame::encode(&Hello { speaker, to }) };
    FramedWrite::new(&mut stream, Frames::new(FRAME_BYTES_MAX)).send(hello).await?;
    // The other side says nothing after its welcome before it is asked, so
    // nothing that was read beyond it is lost here.
    let welcome = FramedRead::new(&mut stream, Frames::new(FRAME_BYTES_MAX)).next().await;
    let welcome = welcome.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))??;
    match frame::decode(&welcome.bytes)? {
        Welcome::Welcome if welcome.kind == Kind::Welcome => Ok((Stream(stream), certificate)),
        Welcome::Welcome => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        Welcome::Refused(unwelcome) => Err(ConnectError::Unwelcome(unwelcome)),
    }
}

/// Asks one thing on a connection of its own, for those who have none.
pub async fn ask_once(
    cluster: &ClusterId,
    tls: &Tls,
    address: &str,
    speaker: Speaker,
    service: Service,
    request: Bytes,
    within: Duration,
) -> Result<Bytes, ConnectError> {
    let asked = async {
        let (stream, _) = connect(cluster, tls, address, speaker, None).await?;
        let mut stream = stream.into_inner();
        let call = Frame { kind: Kind::Call, call: 1, tag: service as u8, bytes: request };
        FramedWrite::new(&mut stream, Frames::new(FRAME_BYTES_MAX)).send(call).await?;
        let answer = FramedRead::new(&mut stream, Frames::new(FRAME_BYTES_MAX)).next().await;
        let answer = answer.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))??;
        match Status::of(answer.tag) {
            Some(Status::Done) => Ok(answer.bytes),
            Some(Status::Refused) => Err(io::Error::other(String::from_utf8_lossy(&answer.bytes).into_owned()).into()),
            _ => Err(io::Error::other("it does not serve yet, or no more").into()),
        }
    };
    timeout(within, asked).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}
