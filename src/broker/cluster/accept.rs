//! Connections from other replicas.
//!
//! Who connects shows a certificate of the cluster before anything is read,
//! says who it is, and is held to what the certificate allows. One with an
//! invitation may ask to join, and nothing else.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::authority::{Claim, ClusterId, Tls};
use super::frame::{
    self, FRAME_BYTES_MAX, Frame, Frames, Hello, Kind, STRANGERS_FRAME_BYTES_MAX, Service, Speaker, Status, Unwelcome,
    Welcome,
};
use super::runs::Visit;

/// How long TLS, and then the hello, may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections at a time that have shown a certificate: three lanes of a few
/// replicas, and some that are dying.
const CONNECTIONS_MAX: usize = 256;
/// Connections at a time that have shown none yet, in all and of one address.
const STRANGERS_MAX: usize = 128;
const STRANGERS_PER_ADDRESS_MAX: usize = 16;
/// Connections at a time of those with an invitation, and how long each lasts.
const INVITED_MAX: usize = 8;
const INVITED_TIMEOUT: Duration = Duration::from_secs(30);
/// Calls of one connection that are worked on at a time.
const CALLS_MAX: usize = 4_096;
/// Bytes of calls of one connection that are worked on at a time.
const CALLS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// One that connects says at least so often that it lives.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed `accept` (no descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What comes of a call.
pub type Answered = (Status, Bytes);

/// Who answers.
pub trait Answers: Send + Sync + 'static {
    /// Whether one is talked to whose certificate allows what it says.
    fn welcome(&self, hello: &Hello) -> Result<(), Unwelcome>;

    /// Begins a connection of one that is talked to; it is held as long as the
    /// connection lasts.
    fn visit(&self, speaker: &Speaker) -> Result<Option<Visit>, Unwelcome>;

    /// Answers a call.
    fn answer(&self, from: &Speaker, service: Service, request: Bytes) -> BoxFuture<'_, Answered>;
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    cluster: ClusterId,
    tls: Arc<ArcSwap<Tls>>,
    answers: Arc<dyn Answers>,
    stop: CancellationToken,
) {
    let places = Arc::new(Places::default());
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of a replica");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(stranger) = Places::stranger(&places, peer.ip()) else {
            tracing::debug!(%peer, "a connection to the peer port is refused: too many have shown no certificate yet");
            continue;
        };
        let (cluster, answers, stop) = (cluster.clone(), Arc::clone(&answers), stop.clone());
        let tls = Arc::clone(&tls.load().server);
        tasks.spawn(async move {
            let ended = tokio::select! {
                ended = converse(stream, tls, &cluster, &answers, stranger) => ended,
                () = stop.cancelled() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "connection of a replica ends");
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn converse(
    stream: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    cluster: &ClusterId,
    answers: &Arc<dyn Answers>,
    stranger: Stranger,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let mut stream = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)).await.map_err(late)??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    let certificate = certificate.ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
    let hello = timeout(HANDSHAKE_TIMEOUT, read_hello(&mut stream)).await.map_err(late)??;
    let welcome = if allows(cluster, &certificate, &hello.speaker) {
        answers.welcome(&hello).and_then(|()| answers.visit(&hello.speaker))
    } else {
        Err(Unwelcome::NotYou)
    };
    let words = welcome.as_ref().map_or_else(|why| Welcome::Refused(why.clone()), |_| Welcome::Welcome);
    let frame = Frame { kind: Kind::Welcome, call: 0, tag: 0, bytes: frame::encode(&words) };
    timeout(WRITE_TIMEOUT, FramedWrite::new(&mut stream, Frames::new(FRAME_BYTES_MAX)).send(frame))
        .await
        .map_err(late)??;
    let places = Arc::clone(&stranger.places);
    drop(stranger);
    let is_invited = matches!(hello.speaker, Speaker::Invited(_));
    let room = if is_invited { &places.invited } else { &places.members };
    let Ok(_place) = room.try_acquire() else {
        tracing::warn!(speaker = ?hello.speaker, "a connection is refused: there are as many as allowed");
        return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
    };
    match welcome {
        Ok(_) if is_invited => timeout(INVITED_TIMEOUT, work(stream, hello.speaker, answers)).await.unwrap_or(Ok(())),
        Ok(_visit) => work(stream, hello.speaker, answers).await,
        // Told already, and it comes again and again.
        Err(why @ Unwelcome::Doubled { .. }) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
        Err(why) => {
            tracing::warn!(speaker = ?hello.speaker, "a replica is not talked to: {why}");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
    }
}

/// Who may be connected at a time.
struct Places {
    strangers: Mutex<HashMap<IpAddr, usize>>,
    members: Semaphore,
    invited: Semaphore,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            strangers: Mutex::default(),
            members: Semaphore::new(CONNECTIONS_MAX),
            invited: Semaphore::new(INVITED_MAX),
        }
    }
}

/// The place of a connection that has shown no certificate yet.
struct Stranger {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    fn stranger(places: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let mut strangers = places.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.values().sum::<usize>() >= STRANGERS_MAX {
            return None;
        }
        let count = strangers.entry(address).or_default();
        if *count >= STRANGERS_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Stranger { places: Arc::clone(places), address })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut strangers = self.places.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = strangers.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                strangers.remove(&self.address);
            }
        }
    }
}

async fn read_hello(stream: &mut TlsStream<TcpStream>) -> io::Result<Hello> {
    // It waits for the welcome before it says more, so nothing that was read
    // beyond the hello is lost here.
    let frame = FramedRead::new(stream, Frames::new(STRANGERS_FRAME_BYTES_MAX)).next().await;
    let frame = frame.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))??;
    if frame.kind == Kind::Hello { frame::decode(&frame.bytes) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Whether a certificate allows to be who is said.
fn allows(cluster: &ClusterId, certificate: &CertificateDer<'_>, speaker: &Speaker) -> bool {
    match speaker {
        Speaker::Replica { id, folder, .. } => {
            Claim::Replica(*id).is_made_by(cluster, certificate)
                && Claim::Folder(folder).is_made_by(cluster, certificate)
        }
        Speaker::Invited(invitation) => Claim::Invited(invitation).is_made_by(cluster, certificate),
    }
}

/// Whether one may ask a service.
fn may_ask(speaker: &Speaker, service: Service) -> bool {
    match speaker {
        Speaker::Replica { .. } => service != Service::Join,
        Speaker::Invited(_) => service == Service::Join,
    }
}

async fn work(stream: TlsStream<TcpStream>, speaker: Speaker, answers: &Arc<dyn Answers>) -> io::Result<()> {
    let bytes_max = match &speaker {
        Speaker::Replica { .. } => FRAME_BYTES_MAX,
        Speaker::Invited(_) => STRANGERS_FRAME_BYTES_MAX,
    };
    let (reading, writing) = tokio::io::split(stream);
    let (outgoing, written) = mpsc::channel(CALLS_MAX);
    let frames = FramedRead::new(reading, Frames::new(bytes_max));
    // Calls that are under way when the connection ends are worked off: what
    // they do counts, only their answers are lost.
    tokio::select! {
        ended = read_calls(frames, speaker, answers, outgoing) => ended,
        ended = write_answers(FramedWrite::new(writing, Frames::new(FRAME_BYTES_MAX)), written) => ended,
    }
}

async fn read_calls(
    mut frames: FramedRead<impl tokio::io::AsyncRead + Unpin, Frames>,
    speaker: Speaker,
    answers: &Arc<dyn Answers>,
    outgoing: mpsc::Sender<Frame>,
) -> io::Result<()> {
    let calls_max = if matches!(speaker, Speaker::Invited(_)) { 1 } else { CALLS_MAX };
    let calls_room = Arc::new(Semaphore::new(calls_max));
    let bytes_room = Arc::new(Semaphore::new(CALLS_BYTES_MAX));
    let ended = || io::Error::from(io::ErrorKind::BrokenPipe);
    loop {
        let frame = timeout(SILENCE_MAX, frames.next()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        let Some(frame) = frame.transpose()? else { return Ok(()) };
        match frame.kind {
            Kind::Ping => outgoing.send(Frame::bare(Kind::Pong)).await.map_err(|_| ended())?,
            Kind::Call => {
                let asked = Service::of(frame.tag).filter(|service| may_ask(&speaker, *service));
                let Some(service) = asked else {
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a service that it may not ask"));
                };
                let share = u32::try_from(frame.bytes.len().max(1)).unwrap_or(u32::MAX);
                // Nobody waits here for room: signs of life are answered here, too.
                let room = Arc::clone(&calls_room).try_acquire_owned();
                let bytes_room = Arc::clone(&bytes_room).try_acquire_many_owned(share);
                let (Ok(place), Ok(bytes_place)) = (room, bytes_room) else {
                    let busy = Status::NotServing as u8;
                    let answer = Frame { kind: Kind::Answer, call: frame.call, tag: busy, bytes: Bytes::new() };
                    outgoing.send(answer).await.map_err(|_| ended())?;
                    continue;
                };
                let (answers, speaker, outgoing) = (Arc::clone(answers), speaker.clone(), outgoing.clone());
                tokio::spawn(async move {
                    let (status, bytes) = answers.answer(&speaker, service, frame.bytes).await;
                    let answer = Frame { kind: Kind::Answer, call: frame.call, tag: status as u8, bytes };
                    // The connection may be gone.
                    drop(outgoing.send(answer).await);
                    drop((place, bytes_place));
                });
            }
            Kind::Hello | Kind::Welcome | Kind::Answer | Kind::Pong => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{:?} at this place", frame.kind)));
            }
        }
    }
}

async fn write_answers(
    mut frames: FramedWrite<impl tokio::io::AsyncWrite + Unpin, Frames>,
    mut written: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    while let Some(frame) = written.recv().await {
        let fed = async {
            frames.feed(frame).await?;
            while let Ok(frame) = written.try_recv() {
                frames.feed(frame).await?;
            }
            frames.flush().await
        };
        timeout(WRITE_TIMEOUT, fed).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    Ok(())
}
