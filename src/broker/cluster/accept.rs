//! Connections from other replicas.
//!
//! Who connects shows a certificate of the cluster before anything is read,
//! says who it is, and is held to what the certificate allows. One with an
//! invitation may ask to join, and nothing else.

use std::collections::BTreeMap;
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
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
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
use crate::broker::throttle::neighbourhood;
use crate::domain::ids::InvitationId;
use crate::sockets;

/// How long TLS, and then the hello, may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections at a time that have shown a certificate: three lanes of a few
/// replicas, and some that are dying.
const CONNECTIONS_MAX: usize = 256;
/// Connections at a time that have shown none yet, in all and of one address,
/// or of all IPv6 addresses that begin with the same 64 bits.
const STRANGERS_MAX: usize = 128;
const STRANGERS_PER_ADDRESS_MAX: usize = 16;
/// Connections at a time of those with an invitation.
const INVITED_MAX: usize = 8;
/// Those with the same invitation: one that joins, and one of its connections
/// that is dying. A token that is of no use any more cannot take all places.
const INVITED_EACH_MAX: usize = 2;
/// How long each lasts.
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
    let places = Arc::new(Places::new());
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
        let Some(stranger) = places.stranger(peer.ip()) else {
            tracing::debug!(%peer, "a connection to the peer port is refused: too many have shown no certificate yet");
            continue;
        };
        let (cluster, answers, stop) = (cluster.clone(), Arc::clone(&answers), stop.clone());
        let places = Arc::clone(&places);
        let tls = Arc::clone(&tls.load().server);
        tasks.spawn(async move {
            let ended = tokio::select! {
                ended = converse(stream, tls, &cluster, &answers, &places, stranger) => ended,
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
    places: &Places,
    stranger: Counted<IpAddr>,
) -> io::Result<()> {
    sockets::prepare(&stream)?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let mut stream = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)).await.map_err(late)??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    let certificate = certificate.ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
    let hello = timeout(HANDSHAKE_TIMEOUT, read_hello(&mut stream)).await.map_err(late)??;
    let is_allowed = allows(cluster, &certificate, &hello.speaker);
    let place = is_allowed.then(|| places.take(&hello.speaker)).flatten();
    let welcome = match (is_allowed, &place) {
        (false, _) => Err(Unwelcome::NotYou),
        (true, None) => Err(Unwelcome::Busy),
        (true, Some(_)) => answers.welcome(&hello).and_then(|()| answers.visit(&hello.speaker)),
    };
    let words = welcome.as_ref().map_or_else(|why| Welcome::Refused(why.clone()), |_| Welcome::Welcome);
    let frame = Frame { kind: Kind::Welcome, call: 0, tag: 0, bytes: frame::encode(&words) };
    timeout(WRITE_TIMEOUT, FramedWrite::new(&mut stream, Frames::new(FRAME_BYTES_MAX)).send(frame))
        .await
        .map_err(late)??;
    drop(stranger);
    let is_invited = matches!(hello.speaker, Speaker::Invited(_));
    match welcome {
        Ok(visit) if is_invited => {
            timeout(INVITED_TIMEOUT, work(stream, hello.speaker, answers, visit)).await.unwrap_or(Ok(()))
        }
        Ok(visit) => work(stream, hello.speaker, answers, visit).await,
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
    strangers: Arc<Counts<IpAddr>>,
    members: Semaphore,
    invited: Arc<Counts<InvitationId>>,
}

/// The place of a connection that has shown a certificate.
enum Place<'a> {
    Member { _permit: SemaphorePermit<'a> },
    Invited { _counted: Counted<InvitationId> },
}

impl Places {
    fn new() -> Self {
        Self {
            strangers: Arc::new(Counts::new(STRANGERS_MAX, STRANGERS_PER_ADDRESS_MAX)),
            members: Semaphore::new(CONNECTIONS_MAX),
            invited: Arc::new(Counts::new(INVITED_MAX, INVITED_EACH_MAX)),
        }
    }

    /// A place for one that has shown no certificate yet.
    fn stranger(&self, address: IpAddr) -> Option<Counted<IpAddr>> {
        Counts::take(&self.strangers, neighbourhood(address.to_canonical()))
    }

    fn take(&self, speaker: &Speaker) -> Option<Place<'_>> {
        match speaker {
            Speaker::Replica { .. } => Some(Place::Member { _permit: self.members.try_acquire().ok()? }),
            Speaker::Invited(id) => Some(Place::Invited { _counted: Counts::take(&self.invited, id.clone())? }),
        }
    }
}

/// Connections, counted by what they have in common.
struct Counts<K: Ord> {
    numbers: Mutex<BTreeMap<K, usize>>,
    /// In all.
    max: usize,
    /// Of each.
    each_max: usize,
}

/// A connection that counts as long as this is there.
struct Counted<K: Ord> {
    among: Arc<Counts<K>>,
    key: K,
}

impl<K: Ord + Clone> Counts<K> {
    const fn new(max: usize, each_max: usize) -> Self {
        Self { numbers: Mutex::new(BTreeMap::new()), max, each_max }
    }

    /// Counts one more, if there is room.
    fn take(among: &Arc<Self>, key: K) -> Option<Counted<K>> {
        let mut counts = among.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = counts.get(&key).is_none_or(|count| *count < among.each_max);
        if !has_room || counts.values().sum::<usize>() >= among.max {
            return None;
        }
        *counts.entry(key.clone()).or_default() += 1;
        drop(counts);
        Some(Counted { among: Arc::clone(among), key })
    }
}

impl<K: Ord> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.among.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
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

async fn work(
    stream: TlsStream<TcpStream>,
    speaker: Speaker,
    answers: &Arc<dyn Answers>,
    visit: Option<Visit>,
) -> io::Result<()> {
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
        ended = read_calls(frames, speaker, answers, outgoing, visit.as_ref()) => ended,
        ended = write_answers(FramedWrite::new(writing, Frames::new(FRAME_BYTES_MAX)), written) => ended,
    }
}

async fn read_calls(
    mut frames: FramedRead<impl tokio::io::AsyncRead + Unpin, Frames>,
    speaker: Speaker,
    answers: &Arc<dyn Answers>,
    outgoing: mpsc::Sender<Frame>,
    visit: Option<&Visit>,
) -> io::Result<()> {
    let calls_max = if matches!(speaker, Speaker::Invited(_)) { 1 } else { CALLS_MAX };
    let calls_room = Arc::new(Semaphore::new(calls_max));
    let bytes_room = Arc::new(Semaphore::new(CALLS_BYTES_MAX));
    let ended = || io::Error::from(io::ErrorKind::BrokenPipe);
    loop {
        let frame = timeout(SILENCE_MAX, frames.next()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        let Some(frame) = frame.transpose()? else { return Ok(()) };
        if let Some(visit) = visit {
            visit.heard();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_a_network_of_ipv6_has_some_of_the_places_of_strangers() {
        let places = Places::new();
        let all = |network: &str| -> Vec<_> {
            let address = |number: usize| format!("{network}{number:x}").parse().expect("an address");
            (1..=2 * STRANGERS_PER_ADDRESS_MAX).map_while(|number| places.stranger(address(number))).collect()
        };
        let one = all("2001:db8::");
        assert_eq!(one.len(), STRANGERS_PER_ADDRESS_MAX);
        assert_eq!(all("2001:db8:0:0:ffff::").len(), 0, "of the same network");
        assert_eq!(all("2001:db8:0:1::").len(), STRANGERS_PER_ADDRESS_MAX);
        drop(one);
        assert_eq!(all("2001:db8:0:0:ffff::").len(), STRANGERS_PER_ADDRESS_MAX);
        let mapped = "::ffff:192.0.2.1".parse().expect("an address");
        let held: Vec<_> = (0..STRANGERS_PER_ADDRESS_MAX).map_while(|_| places.stranger(mapped)).collect();
        assert_eq!(held.len(), STRANGERS_PER_ADDRESS_MAX);
        let [same, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().expect("an address"));
        assert!(places.stranger(same).is_none() && places.stranger(other).is_some());
    }

    #[test]
    fn one_invitation_cannot_take_the_places_of_others() {
        let places = Places::new();
        let invited = |number: usize| {
            Speaker::Invited(InvitationId::new(&format!("invitation-{number}")).expect("a short text is an id"))
        };
        let mut held: Vec<_> = (0..INVITED_EACH_MAX).filter_map(|_| places.take(&invited(0))).collect();
        assert_eq!(held.len(), INVITED_EACH_MAX);
        assert!(places.take(&invited(0)).is_none(), "it has as many as one may");
        held.extend((1..=INVITED_MAX).filter_map(|number| places.take(&invited(number))));
        assert_eq!(held.len(), INVITED_MAX, "bounded in all");
        held.clear();
        assert!(places.take(&invited(0)).is_some(), "those that ended do not count");
    }
}
