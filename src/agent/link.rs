//! The connection to the broker: opened again whenever it ends.
//!
//! The link carries messages and watches over the connection; what they mean
//! is the engine's matter. It tells the engine through [`Event`]s, in order.
//! Anything that is heard counts as a sign of life; after
//! [`PINGS_MISSED_MAX`] silent intervals the connection is given up, since a
//! dead peer may leave a socket open for hours.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, info, warn};
use zeroize::Zeroizing;

use super::tls::{self, Connector};
use crate::domain::{Epoch, InstructionId};
use crate::protocol::{
    self, FromAgent, FromBroker, HELLO_TIMEOUT, Hello, MESSAGE_BYTES_MAX, PING_INTERVAL, PINGS_MISSED_MAX,
};

/// Longest time for each of: connecting, the TLS handshake, the upgrade.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause before connecting again; doubles with each failure.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A welcome that lasted this long makes the next pause short again.
const LASTED: Duration = Duration::from_secs(5);
/// Silence after which the peer counts as dead, also while it takes nothing.
const SILENCE_MAX: Duration = PING_INTERVAL.saturating_mul(PINGS_MISSED_MAX);
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
enum Problem {
    #[error("cannot connect to {to}: {source}")]
    Connect { to: String, source: std::io::Error },
    #[error("cannot connect to {to} within {} s", STEP_TIMEOUT.as_secs())]
    Slow { to: String },
    #[error("the TLS handshake with {to} failed: {source}")]
    Tls { to: String, source: std::io::Error },
    #[error("{to} refused the agent's link: {source}")]
    Upgrade { to: String, source: Box<tungstenite::Error> },
    #[error("the broker refused this agent's secret; give it the one that the broker was configured with")]
    Secret,
    #[error("the broker sent no welcome within {} s", HELLO_TIMEOUT.as_secs())]
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
}

impl Problem {
    /// What makes two problems the same in the log.
    fn kind(&self) -> (std::mem::Discriminant<Self>, u16) {
        let code = if let Self::Closed { code, .. } = self { *code } else { 0 };
        (std::mem::discriminant(self), code)
    }

    /// Problems that another attempt soon would only make worse.
    fn wants_patience(&self) -> bool {
        matches!(self, Self::Secret | Self::Version(_))
            || matches!(self, Self::Closed { code: protocol::close::REPLACED | protocol::close::VERSION, .. })
    }
}

/// Where and how to connect.
pub(super) struct Link {
    /// Host of the broker.
    pub(super) host: String,
    /// Port there.
    pub(super) port: u16,
    /// The operator's secret.
    pub(super) secret: Zeroizing<String>,
    /// TLS with what it trusts.
    pub(super) connector: Connector,
    /// The file with the server's id, for the operator of a copied host.
    pub(super) server_id_file: PathBuf,
    /// The engine.
    pub(super) events: mpsc::Sender<Event>,
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

impl Link {
    /// Keeps a connection until told to stop, or until the engine is gone.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut pause = PAUSE_MIN;
        let mut logged = None;
        loop {
            let started = Instant::now();
            let mut welcomed = None;
            let problem = self.once(&shutdown, &mut welcomed, &mut logged).await;
            if self.events.send(Event::Disconnected).await.is_err() || shutdown.is_cancelled() {
                return;
            }
            if logged == Some(problem.kind()) {
                debug!(%problem, "still no link to the broker");
            } else {
                self.tell_operator(&problem);
                logged = Some(problem.kind());
            }
            if welcomed.is_some_and(|at: Instant| at.elapsed() >= LASTED) {
                pause = PAUSE_MIN;
            }
            if problem.wants_patience() {
                pause = PAUSE_MAX;
            }
            // Half of the pause is random, so that a thousand agents do not
            // return in step.
            let jittered = pause.mul_f64(rand::random_range(0.5..=1.0));
            debug!(after_ms = started.elapsed().as_millis(), pause_ms = jittered.as_millis(), "link ended");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(jittered) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Says once what the matter is.
    fn tell_operator(&self, problem: &Problem) {
        let broker = self.address();
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

    fn address(&self) -> String {
        if self.host.contains(':') && !self.host.starts_with('[') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// One connection from its beginning to its end.
    async fn once(
        &self,
        shutdown: &CancellationToken,
        welcomed: &mut Option<Instant>,
        logged: &mut Option<(std::mem::Discriminant<Problem>, u16)>,
    ) -> Problem {
        let opened = tokio::select! {
            () = shutdown.cancelled() => return Problem::LetGo,
            opened = self.open() => opened,
        };
        let (mut socket, local) = match opened {
            Ok(opened) => opened,
            Err(problem) => return problem,
        };
        let outcome = async {
            let (epoch, oldest_instruction) = tokio::select! {
                () = shutdown.cancelled() => return Err(Problem::LetGo),
                welcome = self.greet(&mut socket, local.ip()) => welcome?,
            };
            *welcomed = Some(Instant::now());
            *logged = None;
            info!(broker = %self.address(), %epoch, "linked to the broker");
            let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
            let stop = shutdown.child_token();
            let hold = stop.clone().drop_guard();
            self.tell(Event::Welcomed { epoch, oldest_instruction, outbound, hold }).await?;
            self.carry(&mut socket, messages, stop).await
        };
        let problem = match outcome.await {
            Err(problem) => problem,
            Ok(never) => match never {},
        };
        let code = match &problem {
            Problem::Silent => protocol::close::SILENT,
            Problem::Nonsense(_) => protocol::close::NONSENSE,
            Problem::Version(_) => protocol::close::VERSION,
            _ => protocol::close::GOING_AWAY,
        };
        let frame = CloseFrame { code: CloseCode::from(code), reason: short(&problem.to_string()).into() };
        // Only a courtesy: the peer may be long gone.
        let _ = timeout(Duration::from_secs(1), socket.close(Some(frame))).await;
        problem
    }

    async fn open(&self) -> Result<(Socket, SocketAddr), Problem> {
        let to = || self.address();
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let slow = |_| Problem::Slow { to: to() };
        let connect = |source| Problem::Connect { to: to(), source };
        let stream =
            timeout(STEP_TIMEOUT, TcpStream::connect((host, self.port))).await.map_err(slow)?.map_err(connect)?;
        let local = stream.local_addr().map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let name = tls::server_name(host).map_err(|source| Problem::Tls { to: to(), source })?;
        let stream = timeout(STEP_TIMEOUT, self.connector.connect(name, stream))
            .await
            .map_err(slow)?
            .map_err(|source| Problem::Tls { to: to(), source })?;
        let refused = |source: tungstenite::Error| match source {
            tungstenite::Error::Http(response) if matches!(response.status().as_u16(), 401 | 403) => Problem::Secret,
            source => Problem::Upgrade { to: to(), source: Box::new(source) },
        };
        let mut request =
            format!("wss://{}{}", self.address(), protocol::PATH).into_client_request().map_err(refused)?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", *self.secret))
            .map_err(|error| refused(tungstenite::Error::HttpFormat(error.into())))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert("authorization", bearer);
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(limits));
        let (socket, _response) = timeout(STEP_TIMEOUT, upgrade).await.map_err(slow)?.map_err(refused)?;
        Ok((socket, local))
    }

    async fn greet(&self, socket: &mut Socket, local: IpAddr) -> Result<(Epoch, InstructionId), Problem> {
        let (hello, answer) = oneshot::channel();
        self.tell(Event::Connected { local, hello }).await?;
        let hello = answer.await.map_err(|_| Problem::LetGo)?;
        send(socket, &FromAgent::Hello(hello)).await?;
        let welcome = async {
            loop {
                match receive(socket).await? {
                    Some(FromBroker::Welcome { version, epoch, oldest_instruction }) => {
                        if !protocol::VERSIONS.contains(&version) {
                            return Err(Problem::Version(version));
                        }
                        return Ok((epoch, oldest_instruction));
                    }
                    Some(FromBroker::Ping { number }) => send(socket, &FromAgent::Pong { number }).await?,
                    Some(FromBroker::Pong { .. }) | None => {}
                    Some(_) => return Err(Problem::Nonsense("a message before the welcome".to_owned())),
                }
            }
        };
        timeout(HELLO_TIMEOUT, welcome).await.map_err(|_| Problem::NoWelcome)?
    }

    async fn carry(
        &self,
        socket: &mut Socket,
        mut messages: mpsc::Receiver<Outgoing>,
        stop: CancellationToken,
    ) -> Result<std::convert::Infallible, Problem> {
        let mut pings = interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut number = 0;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Err(Problem::LetGo),
                received = receive(socket) => {
                    heard = Instant::now();
                    match received? {
                        None | Some(FromBroker::Pong { .. }) => {}
                        Some(FromBroker::Ping { number }) => send(socket, &FromAgent::Pong { number }).await?,
                        Some(FromBroker::Welcome { .. }) => {
                            return Err(Problem::Nonsense("a second welcome".to_owned()));
                        }
                        Some(message) => self.tell(Event::Heard(Box::new(message))).await?,
                    }
                }
                message = messages.recv() => {
                    let Some(Outgoing { message, permit }) = message else { return Err(Problem::LetGo) };
                    send(socket, &message).await?;
                    drop(permit);
                }
                _ = pings.tick() => {
                    if heard.elapsed() >= SILENCE_MAX {
                        return Err(Problem::Silent);
                    }
                    number += 1;
                    send(socket, &FromAgent::Ping { number }).await?;
                }
            }
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Problem> {
        self.events.send(event).await.map_err(|_| Problem::LetGo)
    }
}

async fn send(socket: &mut Socket, message: &FromAgent) -> Result<(), Problem> {
    let text = serde_json::to_string(message).map_err(|error| Problem::Broken(error.to_string()))?;
    // The broker, too, hears nothing else until the whole message is there.
    match timeout(SILENCE_MAX, socket.send(Message::text(text))).await {
        Ok(sent) => sent.map_err(|error| Problem::Broken(error.to_string())),
        Err(_) => Err(Problem::Silent),
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
