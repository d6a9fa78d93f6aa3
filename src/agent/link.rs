//! The connection to a broker: opened again whenever it ends, to the next one.
//!
//! The link carries messages and watches over the connection; what they mean
//! is the engine's matter. It tells the engine through [`Event`]s, in order.
//! Bytes that come count as a sign of life; when none came for
//! [`SILENCE_MAX`] the connection is given up, since a dead peer may leave a
//! socket open for hours.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, info, warn};

use super::brokers::{Address, Round};
use super::connect::{Opened, Opener, Socket, Tried};
use super::enrolment;
use crate::domain::{Epoch, InstructionId};
use crate::protocol::{self, FromAgent, FromBroker, Hello, PING_INTERVAL, SILENCE_MAX, WELCOME_TIMEOUT};
use crate::pulse::{Pulse, Stalled};

/// Pause after the first round through all brokers; doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause after a round.
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// Pause when another attempt soon would only make things worse.
const PATIENCE: Duration = Duration::from_secs(10);
/// A welcome that lasted this long makes the next pause short again.
const LASTED: Duration = Duration::from_secs(5);
/// Before another broker is looked for while the one at hand is cut off, at
/// first; doubles with each look in vain, for most often all are cut off then.
const SEARCH_PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause between two looks.
const SEARCH_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long the farewell may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages that wait to be sent.
const OUTBOUND_MAX: usize = 256;

/// Messages to the broker over one connection.
pub(super) type Outbound = mpsc::Sender<Outgoing>;

/// A message to the broker.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) message: FromAgent,
    /// Held until the message is sent, so that no more large ones are made
    /// than a slow connection takes.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl From<FromAgent> for Outgoing {
    fn from(message: FromAgent) -> Self {
        Self { message, permit: None }
    }
}

/// What the link tells the engine.
#[derive(Debug)]
pub(super) enum Event {
    /// A connection stands and wants the hello. `local` is the host's address on it.
    Connected {
        /// The host's address toward the broker.
        local: IpAddr,
        /// Takes the hello.
        hello: oneshot::Sender<Hello>,
    },
    /// The broker took the hello: the connection counts.
    Welcomed {
        /// Number of the connection.
        epoch: Epoch,
        /// What the agent may forget.
        oldest_instruction: InstructionId,
        /// Takes messages.
        outbound: Outbound,
        /// The connection is closed when this is dropped.
        hold: DropGuard,
    },
    /// Something else that the broker said.
    Heard(Box<FromBroker>),
    /// The connection is gone.
    Disconnected,
}

/// Why a connection ended or did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("cannot connect to {to}: {source}")]
    Connect { to: String, source: std::io::Error },
    #[error("{to} did not answer in time")]
    Slow { to: String },
    #[error("the TLS handshake with {to} failed: {source}")]
    Tls { to: String, source: std::io::Error },
    #[error("{to} refused the agent's link: {source}")]
    Upgrade { to: String, source: Box<tungstenite::Error> },
    #[error("{to}: {source}")]
    Enrolment { to: String, source: Box<enrolment::Error> },
    #[error(
        "{to} takes enrolled agents only ({reason}){}",
        if *.has_statement { "" } else {
            "; run `berth generate-software-statement` on a broker's host, put what it prints into a file that only \
             the agent can read, and name that file in software_statement_path"
        }
    )]
    NotEnrolled { to: String, reason: String, has_statement: bool },
    #[error("the broker sent no welcome within {} s", WELCOME_TIMEOUT.as_secs())]
    NoWelcome,
    #[error("the broker speaks version {0} of the protocol, which this agent does not")]
    Version(u32),
    #[error("nothing was heard of the broker for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("the broker said something that this agent does not understand: {0}")]
    Nonsense(String),
    #[error("the broker closed the link with code {code}: {reason}")]
    Closed { code: u16, reason: String },
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the agent let go of the connection to start afresh")]
    LetGo,
    #[error("the broker cannot reach a majority of its replicas, and another one takes this agent")]
    CutOff,
}

impl Problem {
    /// What makes two problems the same in the log.
    fn kind(&self) -> (std::mem::Discriminant<Self>, u16) {
        let code = if let Self::Closed { code, .. } = self { *code } else { 0 };
        (std::mem::discriminant(self), code)
    }

    /// The one of several problems that an operator should hear of: what was
    /// said goes before what was not.
    pub(super) fn most_telling(problems: Vec<Self>) -> Option<Self> {
        problems.into_iter().min_by_key(|problem| match problem {
            Self::NotEnrolled { .. } => 0,
            Self::Enrolment { source, .. } if source.is_refusal() => 0,
            Self::Version(_) => 1,
            Self::Upgrade { .. } => 2,
            Self::Tls { .. } => 3,
            Self::Slow { .. } => 5,
            Self::Connect { .. } => 6,
            _ => 4,
        })
    }

    /// Problems that another attempt soon would only make worse.
    fn wants_patience(&self) -> bool {
        // No replica has contact with a majority: all of them say so, to all agents.
        let is_cut_off = match self {
            Self::Upgrade { source, .. } => {
                matches!(&**source, tungstenite::Error::Http(answer) if answer.status() == 503)
            }
            _ => false,
        };
        is_cut_off
            || matches!(self, Self::NotEnrolled { .. } | Self::Version(_))
            || matches!(self, Self::Enrolment { source, .. } if !matches!(**source, enrolment::Error::Broken(_)))
            || matches!(
                self,
                Self::Closed {
                    code: protocol::close::REPLACED | protocol::close::VERSION | protocol::close::NOT_ENROLLED,
                    ..
                }
            )
    }

    /// What one broker says for all of them: it stands in their log.
    fn holds_everywhere(&self) -> bool {
        matches!(self, Self::Closed { code: protocol::close::REPLACED | protocol::close::CLONED, .. })
    }
}

/// Whom to connect to, and how.
pub(super) struct Link {
    /// The brokers, in the order in which they are tried.
    pub(super) brokers: Vec<Address>,
    /// Opens connections to them.
    pub(super) opener: Arc<Opener>,
    /// The file with the server's id, for the operator of a copied host.
    pub(super) server_id_file: PathBuf,
    /// The engine.
    pub(super) events: mpsc::Sender<Event>,
}

/// How one connection went.
struct Ended {
    problem: Problem,
    /// With whom; `None` when nobody answered.
    broker: Option<usize>,
    welcomed: Option<Instant>,
    /// The connection that takes its place.
    next: Option<Found>,
}

/// A connection that stands, and to which broker.
type Found = (usize, Opened);

type Kind = (std::mem::Discriminant<Problem>, u16);

impl Link {
    /// Keeps a connection until told to stop, or until the engine is gone.
    ///
    /// When it is lost, the next broker is tried at once, and so on through all
    /// of them; only a round that failed is followed by a pause.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut round = Round::new(self.brokers.len());
        let mut pause = PAUSE_MIN;
        let mut is_patient = false;
        let mut logged = None;
        let mut found = None;
        loop {
            let Ended { problem, broker, welcomed, next } =
                self.once(found.take(), &shutdown, &mut round, &mut logged).await;
            if self.events.send(Event::Disconnected).await.is_err() || shutdown.is_cancelled() {
                return;
            }
            if logged == Some(problem.kind()) {
                debug!(%problem, "still no link to the broker");
            } else {
                self.tell_operator(&problem, broker);
                logged = Some(problem.kind());
            }
            if next.is_some() {
                found = next;
                round.begin(broker);
                continue;
            }
            is_patient |= problem.wants_patience();
            let has_lasted = welcomed.is_some_and(|at| at.elapsed() >= LASTED);
            if has_lasted {
                pause = PAUSE_MIN;
            }
            if problem.holds_everywhere() {
                round.end();
            } else if has_lasted {
                round.begin(broker);
            } else if let Some(broker) = broker {
                round.tried(broker);
            }
            if !round.is_over() {
                continue;
            }
            round.begin(None);
            // Half of the pause is random, so that a thousand agents do not
            // return in step.
            let whole = if std::mem::take(&mut is_patient) { PATIENCE } else { pause };
            let jittered = whole.mul_f64(rand::random_range(0.5..=1.0));
            debug!(pause_ms = jittered.as_millis(), "no broker takes this agent now");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(jittered) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Says once what the matter is.
    fn tell_operator(&self, problem: &Problem, broker: Option<usize>) {
        let broker = broker.map(|broker| self.name(broker));
        match problem {
            Problem::Closed { code: protocol::close::CLONED, reason } => error!(
                broker,
                reason,
                "another agent uses the id of this server; if this host is a copy of another one, delete {} and \
                 restart the agent, which makes it a server of its own; trying again",
                self.server_id_file.display()
            ),
            problem => warn!(broker, %problem, "no link to the broker; trying again"),
        }
    }

    fn name(&self, broker: usize) -> String {
        self.brokers.get(broker).map(Address::to_string).unwrap_or_default()
    }

    /// One connection from its beginning to its end: one that stands, or the
    /// first that can be opened.
    async fn once(
        &self,
        found: Option<Found>,
        shutdown: &CancellationToken,
        round: &mut Round,
        logged: &mut Option<Kind>,
    ) -> Ended {
        let nobody = |problem| Ended { problem, broker: None, welcomed: None, next: None };
        let open = async {
            if found.is_some() {
                return Tried { answered: found, failed: Vec::new() };
            }
            let left = round.left().into_iter().filter_map(|number| Some((number, self.brokers.get(number)?)));
            self.opener.open_one(left.collect()).await
        };
        let tried = tokio::select! {
            () = shutdown.cancelled() => return nobody(Problem::LetGo),
            tried = open => tried,
        };
        let Tried { answered, failed } = tried;
        for (number, problem) in &failed {
            debug!(broker = self.name(*number), %problem, "no connection");
            round.tried(*number);
        }
        let Some((broker, Opened { mut socket, local, pulse })) = answered else {
            let problems = failed.into_iter().map(|(_, problem)| problem).collect();
            return nobody(Problem::most_telling(problems).unwrap_or(Problem::LetGo));
        };
        let mut welcomed = None;
        let outcome = async {
            let (epoch, oldest_instruction) = tokio::select! {
                () = shutdown.cancelled() => return Err(Problem::LetGo),
                welcome = self.greet(&mut socket, &pulse, local.ip()) => welcome?,
            };
            welcomed = Some(Instant::now());
            *logged = None;
            info!(broker = self.name(broker), %epoch, "linked to the broker");
            let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
            let stop = shutdown.child_token();
            let hold = stop.clone().drop_guard();
            self.tell(Event::Welcomed { epoch, oldest_instruction, outbound, hold }).await?;
            self.carry(&mut socket, &pulse, broker, messages, stop).await
        };
        let (problem, next) = match outcome.await {
            Err(problem) => (problem, None),
            Ok(next) => (Problem::CutOff, Some(next)),
        };
        say_farewell(&mut socket, &problem).await;
        Ended { problem, broker: Some(broker), welcomed, next }
    }

    async fn greet(
        &self,
        socket: &mut Socket,
        pulse: &Pulse,
        local: IpAddr,
    ) -> Result<(Epoch, InstructionId), Problem> {
        let (hello, answer) = oneshot::channel();
        self.tell(Event::Connected { local, hello }).await?;
        let hello = answer.await.map_err(|_| Problem::LetGo)?;
        send(socket, pulse, &FromAgent::Hello(hello)).await?;
        let welcome = async {
            loop {
                match receive(socket).await? {
                    Some(FromBroker::Welcome { version, epoch, oldest_instruction }) => {
                        if !protocol::VERSIONS.contains(&version) {
                            return Err(Problem::Version(version));
                        }
                        return Ok((epoch, oldest_instruction));
                    }
                    Some(FromBroker::Ping { number }) => send(socket, pulse, &FromAgent::Pong { number }).await?,
                    Some(FromBroker::Pong { .. }) | None => {}
                    Some(_) => return Err(Problem::Nonsense("a message before the welcome".to_owned())),
                }
            }
        };
        timeout(WELCOME_TIMEOUT, welcome).await.map_err(|_| Problem::NoWelcome)?
    }

    /// Carries messages until the connection ends, or a better one is found
    /// while the broker is cut off.
    async fn carry(
        &self,
        socket: &mut Socket,
        pulse: &Pulse,
        broker: usize,
        mut messages: mpsc::Receiver<Outgoing>,
        stop: CancellationToken,
    ) -> Result<Found, Problem> {
        let mut search = None;
        let mut number = 0;
        let mut pinged_at = Instant::now();
        // Silence before this is no fault of the broker: nobody listened.
        let mut reading_since = Instant::now();
        // What a busy engine has no room for; nothing more is read meanwhile,
        // and pings show the broker that this side lives.
        let mut held_back = None;
        loop {
            let heard_at = pulse.read_at().max(reading_since);
            let look_due = if held_back.is_some() {
                pinged_at + PING_INTERVAL
            } else {
                (heard_at.max(pinged_at) + PING_INTERVAL).min(heard_at + SILENCE_MAX)
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Problem::LetGo),
                room = self.events.reserve(), if held_back.is_some() => {
                    let room = room.map_err(|_| Problem::LetGo)?;
                    if let Some(event) = held_back.take() {
                        room.send(event);
                    }
                    reading_since = Instant::now();
                }
                // Before the look: after a standstill of ours, what the broker
                // said meanwhile is read before it is taken for silent.
                received = receive(socket), if held_back.is_none() => match received? {
                    None | Some(FromBroker::Pong { .. }) => {}
                    Some(FromBroker::Ping { number }) => send(socket, pulse, &FromAgent::Pong { number }).await?,
                    Some(FromBroker::Welcome { .. }) => return Err(Problem::Nonsense("a second welcome".to_owned())),
                    Some(FromBroker::CutOff { cut_off }) => {
                        info!(broker = self.name(broker), cut_off, "whether the broker is cut off from the others");
                        search = cut_off.then(|| Box::pin(self.search(broker)));
                    }
                    Some(message) => match self.events.try_send(Event::Heard(Box::new(message))) {
                        Ok(()) => {}
                        Err(mpsc::error::TrySendError::Full(event)) => held_back = Some(event),
                        Err(mpsc::error::TrySendError::Closed(_)) => return Err(Problem::LetGo),
                    },
                },
                message = messages.recv() => {
                    let Some(Outgoing { message, permit }) = message else { return Err(Problem::LetGo) };
                    send(socket, pulse, &message).await?;
                    drop(permit);
                }
                Some(found) = async { Some(search.as_mut()?.await) } => return Ok(found),
                () = sleep_until(look_due) => {
                    let heard_at = pulse.read_at().max(reading_since);
                    if held_back.is_none() && heard_at.elapsed() >= SILENCE_MAX {
                        return Err(Problem::Silent);
                    }
                    if held_back.is_some() || heard_at.elapsed() >= PING_INTERVAL {
                        number += 1;
                        pinged_at = Instant::now();
                        send(socket, pulse, &FromAgent::Ping { number }).await?;
                    }
                }
            }
        }
    }

    /// Looks for a broker that takes this agent, while it stays with one that
    /// is cut off. Looks are rare and at random moments: when no replica has a
    /// majority, thousands of agents look.
    async fn search(&self, current: usize) -> Found {
        // The one at hand comes last: as a balancer, or a name with several
        // addresses, it may lead elsewhere, also when others are named.
        let mut order = Round::new(self.brokers.len());
        order.begin(Some(current));
        let candidates = order.left().into_iter().filter_map(|number| Some((number, self.brokers.get(number)?)));
        let candidates: Vec<_> = candidates.collect();
        let mut pause = SEARCH_PAUSE_MIN;
        loop {
            sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
            let Tried { answered, failed } = self.opener.open_one(candidates.clone()).await;
            for (number, problem) in &failed {
                debug!(broker = self.name(*number), %problem, "no better broker");
            }
            if let Some(found) = answered {
                return found;
            }
            pause = (pause * 2).min(SEARCH_PAUSE_MAX);
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Problem> {
        self.events.send(event).await.map_err(|_| Problem::LetGo)
    }
}

/// Tells the broker why the connection ends: a courtesy, for which nobody that
/// is taken for dead is waited for.
async fn say_farewell(socket: &mut Socket, problem: &Problem) {
    let code = match problem {
        Problem::Silent => protocol::close::SILENT,
        Problem::Nonsense(_) => protocol::close::NONSENSE,
        Problem::Version(_) => protocol::close::VERSION,
        _ => protocol::close::GOING_AWAY,
    };
    let frame = CloseFrame { code: CloseCode::from(code), reason: short(&problem.to_string()).into() };
    let closing = socket.close(Some(frame));
    if matches!(problem, Problem::Silent | Problem::Broken(_)) {
        let _ = closing.now_or_never();
    } else {
        let _ = timeout(FAREWELL_TIMEOUT, closing).await;
    }
}

async fn send(socket: &mut Socket, pulse: &Pulse, message: &FromAgent) -> Result<(), Problem> {
    let text = serde_json::to_string(message).map_err(|error| Problem::Broken(error.to_string()))?;
    match pulse.send(socket.send(Message::text(text)), SILENCE_MAX).await {
        Ok(sent) => sent.map_err(|error| Problem::Broken(error.to_string())),
        Err(Stalled) => Err(Problem::Silent),
    }
}

/// The next message; `None` for frames that only show life. Can be dropped
/// while it waits without losing a message.
async fn receive(socket: &mut Socket) -> Result<Option<FromBroker>, Problem> {
    match socket.next().await {
        Some(Ok(Message::Text(text))) => {
            serde_json::from_str(&text).map(Some).map_err(|error| Problem::Nonsense(error.to_string()))
        }
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
        Some(Ok(Message::Binary(_))) => Err(Problem::Nonsense("a binary frame".to_owned())),
        Some(Ok(Message::Close(Some(frame)))) => {
            Err(Problem::Closed { code: frame.code.into(), reason: frame.reason.to_string() })
        }
        Some(Ok(Message::Close(None))) | None => Err(Problem::Broken("the broker closed it".to_owned())),
        Some(Err(error)) => Err(Problem::Broken(error.to_string())),
    }
}

/// A reason as it fits into a close frame: 123 bytes.
fn short(reason: &str) -> String {
    reason
        .chars()
        .scan(0, |bytes, c| {
            *bytes += c.len_utf8();
            (*bytes <= 123).then_some(c)
        })
        .collect()
}
