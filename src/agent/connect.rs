//! Opens a connection to one of several brokers: the first that answers.
//!
//! They are tried in order, each with a head start before the next, so that one
//! that is gone or hangs costs a moment and not its whole time limit. Names
//! with several addresses are tried the same way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use rustls::pki_types::ServerName;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::brokers::{Address, in_order_of};
use super::enrolment::Enrolment;
use super::link::Problem;
use super::network::{Connected, Network, Stream};
use super::tls::{self, Connector};
use crate::domain::ServerId;
use crate::protocol::{self, MESSAGE_BYTES_MAX};
use crate::pulse::{Pulse, Pulsing};

/// Longest time for looking up a name, and for connecting to an address.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Longest time for the TLS handshake and the upgrade: a broker to which
/// thousands of agents come at once gets to each in time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for enrolling: the log takes the agent in.
const ENROL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether there is a certificate to renew.
const RENEW_LOOK: Duration = Duration::from_mins(1);
/// Before another attempt to renew it; doubles with each in vain.
const RENEW_PAUSE_MIN: Duration = Duration::from_secs(10);
/// Longest pause between two attempts.
const RENEW_PAUSE_MAX: Duration = Duration::from_mins(10);
/// Before the next broker is tried beside one that has not answered yet.
const HEAD_START: Duration = Duration::from_millis(500);
/// The same for the next address of a broker.
const ADDRESS_HEAD_START: Duration = Duration::from_millis(250);

pub(super) type Socket = WebSocketStream<TlsStream<Pulsing<Box<dyn Stream>>>>;

/// A connection that stands.
pub(super) struct Opened {
    pub(super) socket: Socket,
    /// The host's address on it.
    pub(super) local: SocketAddr,
    pub(super) pulse: Pulse,
}

/// What all connections need.
pub(super) struct Opener {
    /// Leads to the brokers.
    pub(super) network: Arc<dyn Network>,
    /// Whose order the addresses of a name are tried in.
    pub(super) server: ServerId,
    /// What the agent proves itself with.
    pub(super) enrolment: Enrolment,
    /// TLS with what it trusts, that shows its certificate.
    pub(super) connector: Connector,
    /// The same without a certificate, for getting one.
    pub(super) plain: Connector,
}

/// One address of a broker.
#[derive(Debug, Clone, Copy)]
struct At<'a> {
    broker: &'a Address,
    address: SocketAddr,
}

impl At<'_> {
    /// It, for people.
    fn to(&self) -> String {
        let (name, at) = (self.broker.to_string(), self.address.to_string());
        if name == at { name } else { format!("{name} ({at})") }
    }

    fn name(&self) -> Result<ServerName<'static>, Problem> {
        tls::server_name(&self.broker.host).map_err(|source| Problem::Tls { to: self.to(), source })
    }

    fn slow(&self) -> Problem {
        Problem::Slow { to: self.to() }
    }
}

/// What a broker says of why it refuses.
fn reason_of(body: Option<&[u8]>) -> String {
    let said = body.and_then(|body| serde_json::from_slice::<serde_json::Value>(body).ok());
    let text = said.as_ref().and_then(|said| said["error"].as_str()).unwrap_or("it does not say why");
    text.chars().take(200).collect()
}

/// What came of trying several brokers: the first that answered, and why those
/// that were done by then did not.
pub(super) struct Tried<T, P> {
    pub(super) answered: Option<T>,
    pub(super) failed: Vec<P>,
}

impl Opener {
    /// Tries brokers in order.
    pub(super) async fn open_one(&self, brokers: Vec<(usize, &Address)>) -> Tried<(usize, Opened), (usize, Problem)> {
        let attempt = |(number, broker)| {
            let opening = self.open(broker);
            let opening = opening.map_ok(move |opened| (number, opened)).map_err(move |problem| (number, problem));
            opening.boxed()
        };
        first(brokers.into_iter().map(attempt).collect(), HEAD_START).await
    }

    async fn open(&self, broker: &Address) -> Result<Opened, Problem> {
        let attempts = self.find(broker).await?.into_iter().map(|address| self.open_at(broker, address)).collect();
        let Tried { answered, failed } = first(attempts, ADDRESS_HEAD_START).await;
        let nowhere = || {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
            Problem::Connect { to: broker.to_string(), source }
        };
        answered.ok_or_else(|| Problem::most_telling(failed).unwrap_or_else(nowhere))
    }

    async fn open_at(&self, broker: &Address, address: SocketAddr) -> Result<Opened, Problem> {
        let at = At { broker, address };
        let not_enrolled = self.enrol_if_needed(at).await?;
        let (stream, local) = self.connect(at).await?;
        let (stream, pulse) = Pulsing::new(stream);
        let handshake = async {
            let stream =
                self.connector.connect(at.name()?, stream).await.map_err(|source| self.broken_tls(at, source))?;
            self.upgrade(at, stream).await
        };
        match timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| at.slow())? {
            Ok(socket) => Ok(Opened { socket, local, pulse }),
            // Why it is a stranger is more telling.
            Err(problem @ (Problem::NotEnrolled { .. } | Problem::Tls { .. })) => Err(not_enrolled.unwrap_or(problem)),
            Err(problem) => Err(problem),
        }
    }

    async fn connect(&self, at: At<'_>) -> Result<Connected, Problem> {
        let connecting = timeout(CONNECT_TIMEOUT, self.network.connect(at.address));
        let connect = |source| Problem::Connect { to: at.to(), source };
        connecting.await.map_err(|_| at.slow())?.map_err(connect)
    }

    /// Has the broker enrol this agent, if connections need a certificate and
    /// there is something to enrol with. That it refuses is no obstacle yet, and
    /// returned: it may let everybody in.
    async fn enrol_if_needed(&self, at: At<'_>) -> Result<Option<Problem>, Problem> {
        let is_needed = self.enrolment.is_needed();
        if !(is_needed || self.enrolment.is_doubtful()) || !self.enrolment.can_enrol() {
            return Ok(None);
        }
        let Err(problem) = self.enrol(at).await else { return Ok(None) };
        match &problem {
            // The one at hand may do all the same.
            _ if !is_needed => Ok(None),
            Problem::Enrolment { source, .. } if source.is_refusal() => {
                self.enrolment.show_nothing();
                Ok(Some(problem))
            }
            _ => Err(problem),
        }
    }

    async fn enrol(&self, at: At<'_>) -> Result<(), Problem> {
        let (stream, _) = self.connect(at).await?;
        let enrolling = async {
            let stream = self.plain.connect(at.name()?, stream).await;
            let stream = stream.map_err(|source| Problem::Tls { to: at.to(), source })?;
            let enrolled = self.enrolment.enrol(stream, &at.broker.to_string()).await;
            enrolled.map_err(|source| Problem::Enrolment { to: at.to(), source: Box::new(source) })
        };
        timeout(ENROL_TIMEOUT, enrolling).await.map_err(|_| at.slow())?
    }

    /// Renews the certificate when its time comes, until `stop`, so that it is
    /// good whenever a connection has to be made anew. The first one is the
    /// matter of who connects.
    pub(super) async fn keep_enrolled(&self, brokers: &[Address], stop: CancellationToken) {
        let mut pause = RENEW_PAUSE_MIN;
        loop {
            let due = self.enrolment.renewed_at().unwrap_or_else(|| Instant::now() + RENEW_LOOK);
            tokio::select! {
                () = sleep_until(due) => {}
                () = stop.cancelled() => return,
            }
            // A connection may have seen to it, or there is none yet.
            if self.enrolment.renewed_at().is_none_or(|due| due > Instant::now()) {
                continue;
            }
            let Err(problem) = self.renew(brokers).await else {
                pause = RENEW_PAUSE_MIN;
                continue;
            };
            warn!(%problem, "the agent's certificate is not renewed yet; trying again");
            tokio::select! {
                () = sleep(pause.mul_f64(rand::random_range(0.5..=1.0))) => {}
                () = stop.cancelled() => return,
            }
            pause = (pause * 2).min(RENEW_PAUSE_MAX);
        }
    }

    /// Gets another certificate from the first broker that gives one.
    async fn renew(&self, brokers: &[Address]) -> Result<(), Problem> {
        let mut problems = Vec::new();
        for broker in brokers {
            let addresses = match self.find(broker).await {
                Ok(addresses) => addresses,
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
            for address in addresses {
                match self.enrol(At { broker, address }).await {
                    Ok(()) => return Ok(()),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        let nobody = || Problem::Broken("no broker has an address".to_owned());
        Err(Problem::most_telling(problems).unwrap_or_else(nobody))
    }

    /// The addresses of a broker, in this server's order.
    async fn find(&self, broker: &Address) -> Result<Vec<SocketAddr>, Problem> {
        let to = || broker.to_string();
        let found = timeout(CONNECT_TIMEOUT, self.network.find(&broker.host, broker.port));
        let found = found.await.map_err(|_| Problem::Slow { to: to() })?;
        Ok(in_order_of(&self.server, found.map_err(|source| Problem::Connect { to: to(), source })?))
    }

    /// TLS broke, at the handshake or after it.
    fn broken_tls(&self, at: At<'_>, source: std::io::Error) -> Problem {
        if tls::is_about_certificate(&source) {
            self.enrolment.refuse();
        }
        Problem::Tls { to: at.to(), source }
    }

    async fn upgrade(&self, at: At<'_>, stream: TlsStream<Pulsing<Box<dyn Stream>>>) -> Result<Socket, Problem> {
        let url = format!("wss://{}{}", at.broker, protocol::PATH);
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let upgraded = tokio_tungstenite::client_async_with_config(url, stream, Some(limits)).await;
        let problem = match upgraded {
            Ok((socket, _response)) => {
                self.enrolment.note(true);
                return Ok(socket);
            }
            Err(problem) => problem,
        };
        // A certificate that is not taken shows only here (TLS 1.3), and when the connection is
        // reset at once without saying so.
        self.enrolment.note(!matches!(problem, tungstenite::Error::Io(_)));
        match problem {
            tungstenite::Error::Http(response) if response.status() == 401 => {
                self.enrolment.refuse();
                let reason = reason_of(response.body().as_deref());
                Err(Problem::NotEnrolled { to: at.to(), reason, has_statement: self.enrolment.has_statement() })
            }
            tungstenite::Error::Io(source) => Err(self.broken_tls(at, source)),
            source => Err(Problem::Upgrade { to: at.to(), source: Box::new(source) }),
        }
    }
}

/// Makes attempts in order until one succeeds. The next begins when the one
/// before has failed, or has not ended after a head start; it goes on then.
async fn first<T, P, F>(attempts: Vec<F>, head_start: Duration) -> Tried<T, P>
where
    F: Future<Output = Result<T, P>>,
{
    let mut attempts = attempts.into_iter();
    let mut running = FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        running.extend(attempts.next());
        let others_follow = attempts.len() > 0;
        tokio::select! {
            ended = running.next() => match ended {
                Some(Ok(answered)) => return Tried { answered: Some(answered), failed },
                Some(Err(problem)) => failed.push(problem),
                None => return Tried { answered: None, failed },
            },
            () = sleep(head_start), if others_follow => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Attempt = futures_util::future::BoxFuture<'static, Result<u8, u8>>;

    fn hangs() -> Attempt {
        Box::pin(std::future::pending())
    }

    fn ends(result: Result<u8, u8>) -> Attempt {
        Box::pin(std::future::ready(result))
    }

    fn later(result: Result<u8, u8>) -> Attempt {
        Box::pin(async move {
            sleep(Duration::from_millis(5)).await;
            result
        })
    }

    #[tokio::test]
    async fn the_first_that_succeeds_is_taken_wherever_others_hang_or_fail() {
        let short = Duration::from_millis(1);
        for attempts in [
            vec![ends(Ok(1)), hangs()],
            vec![hangs(), ends(Ok(1))],
            vec![hangs(), hangs(), ends(Err(2)), later(Ok(1)), hangs()],
            vec![later(Ok(1)), later(Err(2)), ends(Err(3))],
        ] {
            assert_eq!(first(attempts, short).await.answered, Some(1));
        }
    }

    #[tokio::test]
    async fn all_problems_are_told_and_a_failure_lets_the_next_one_begin_at_once() {
        // A head start that is waited for would outlast the test.
        let long = Duration::from_hours(1);
        let tried = first(vec![ends(Err(1)), ends(Err(2)), later(Err(3))], long).await;
        assert_eq!((tried.answered, tried.failed), (None, vec![1, 2, 3]));
        let tried = first(vec![ends(Err(1)), ends(Ok(2))], long).await;
        assert_eq!((tried.answered, tried.failed), (Some(2), vec![1]));
        let tried = first(Vec::<Attempt>::new(), long).await;
        assert_eq!((tried.answered, tried.failed), (None, vec![]));
    }
}
