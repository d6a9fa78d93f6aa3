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
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use zeroize::Zeroizing;

use super::brokers::{Address, in_order_of};
use super::link::Problem;
use super::network::{Network, Stream};
use super::tls::{self, Connector};
use crate::domain::ServerId;
use crate::protocol::{self, MESSAGE_BYTES_MAX};
use crate::pulse::{Pulse, Pulsing};

/// Longest time for looking up a name, and for connecting to an address.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Longest time for the TLS handshake and the upgrade: a broker to which
/// thousands of agents come at once gets to each in time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
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
    /// The operator's secret.
    pub(super) secret: Zeroizing<String>,
    /// TLS with what it trusts.
    pub(super) connector: Connector,
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
        let to = || broker.to_string();
        let slow = |_| Problem::Slow { to: to() };
        let connect = |source| Problem::Connect { to: to(), source };
        let found = timeout(CONNECT_TIMEOUT, self.network.find(&broker.host, broker.port));
        let found = found.await.map_err(slow)?.map_err(connect)?;
        let attempts =
            in_order_of(&self.server, found).into_iter().map(|address| self.open_at(broker, address)).collect();
        let Tried { answered, failed } = first(attempts, ADDRESS_HEAD_START).await;
        let nowhere = || connect(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
        answered.ok_or_else(|| Problem::most_telling(failed).unwrap_or_else(nowhere))
    }

    async fn open_at(&self, broker: &Address, address: SocketAddr) -> Result<Opened, Problem> {
        let to = || {
            let (name, at) = (broker.to_string(), address.to_string());
            if name == at { name } else { format!("{name} ({at})") }
        };
        let slow = |_| Problem::Slow { to: to() };
        let connect = |source| Problem::Connect { to: to(), source };
        let connecting = timeout(CONNECT_TIMEOUT, self.network.connect(address));
        let (stream, local) = connecting.await.map_err(slow)?.map_err(connect)?;
        let (stream, pulse) = Pulsing::new(stream);
        let handshake = async {
            let name = tls::server_name(&broker.host).map_err(|source| Problem::Tls { to: to(), source })?;
            let stream = self.connector.connect(name, stream).await;
            let stream = stream.map_err(|source| Problem::Tls { to: to(), source })?;
            self.upgrade(broker, stream, &to).await
        };
        let socket = timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(slow)??;
        Ok(Opened { socket, local, pulse })
    }

    async fn upgrade(
        &self,
        broker: &Address,
        stream: TlsStream<Pulsing<Box<dyn Stream>>>,
        to: &impl Fn() -> String,
    ) -> Result<Socket, Problem> {
        let refused = |source: tungstenite::Error| match source {
            tungstenite::Error::Http(response) if matches!(response.status().as_u16(), 401 | 403) => Problem::Secret,
            source => Problem::Upgrade { to: to(), source: Box::new(source) },
        };
        let mut request = format!("wss://{broker}{}", protocol::PATH).into_client_request().map_err(refused)?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", *self.secret))
            .map_err(|error| refused(tungstenite::Error::HttpFormat(error.into())))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert("authorization", bearer);
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let upgraded = tokio_tungstenite::client_async_with_config(request, stream, Some(limits)).await;
        upgraded.map(|(socket, _response)| socket).map_err(refused)
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
