//! Listening ports: TLS, HTTP/1.1 and HTTP/2, limits and an orderly end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use berth_raft::seldom::Seldom;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::Network;
use super::shares::{Full, Share, Shares};
use super::taking::{Answers, Patience, Stalled};
use super::throttle::neighbourhood;
use super::tls::{Peer, Tls};
use crate::pulse::Pulsing;
use crate::sockets;

/// Connections that may wait to be accepted, as far as the system allows
/// (`net.core.somaxconn`): all agents of a replica that died come at once.
const BACKLOG: u32 = 4096;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to bring its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an HTTP/1.1 connection may be idle, or take over the head of a
/// further request: more than the 60 s after which balancers usually give up,
/// so that they and not we end an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a client may take nothing of what it asked for. Whoever goes on
/// reading, however slowly, is waited for.
pub const STALL_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a client may take nothing of one answer while it takes others.
pub const ANSWER_STALL_TIMEOUT: Duration = Duration::from_mins(5);
/// What clients of HTTP/2 are waited for.
const PATIENCE: Patience = Patience { connection: STALL_TIMEOUT, answer: ANSWER_STALL_TIMEOUT };
/// Requests under way on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// HTTP/2 connections that say nothing are asked whether they live.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long connections may take to finish when the broker ends.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed `accept` (no descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The place of a connection among those that are allowed. Each request carries
/// it, so that a connection which stops being HTTP can hold on to it.
#[derive(Clone, Debug)]
pub struct Place(#[allow(dead_code)] Arc<Share<IpAddr>>); // held, never looked at

/// Where connections come from: the system's TCP, or that of a simulated network.
pub trait Accept: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and who opened it.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = Self::accept(self).await?;
        if let Err(error) = sockets::prepare(&stream) {
            tracing::debug!(%peer, %error, "a connection is served as the system gave it");
        }
        Ok((stream, peer))
    }
}

/// A bound port that does not serve yet.
pub struct Bound<L = TcpListener> {
    listener: L,
    address: SocketAddr,
    patience: Patience,
    proxies: Vec<Network>,
}

/// Why a port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; another process may hold the port")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl Bound {
    /// Binds a port.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind(address).map_err(failed)?;
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self::of(listener, address))
    }
}

impl<L: Accept> Bound<L> {
    /// A port that was bound elsewhere.
    pub const fn of(listener: L, address: SocketAddr) -> Self {
        Self { listener, address, patience: PATIENCE, proxies: Vec::new() }
    }

    /// Lets connections of these networks have any number of the places: all
    /// clients come through them.
    #[must_use]
    pub fn trusting(self, proxies: Vec<Network>) -> Self {
        Self { proxies, ..self }
    }

    /// Waits so long for clients that take nothing of their answers.
    #[must_use]
    pub fn waiting(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// What the connections of an address count as, if anything.
    fn key(&self, address: IpAddr) -> Option<IpAddr> {
        let is_proxy = self.proxies.iter().any(|network| network.contains(address));
        (!is_proxy).then(|| neighbourhood(address))
    }

    /// Where it listens; the port is a real one also when 0 was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then lets requests under way finish. Each request
    /// carries a [`Place`], a [`Pulse`](crate::pulse::Pulse) and the [`Peer`] that
    /// it came from.
    pub async fn serve(mut self, tls: Tls, router: Router, connections_max: usize, shutdown: CancellationToken) {
        let places = Shares::new(connections_max);
        let refused = Seldom::default();
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, address = %self.address, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // A port that listens on all addresses tells those of IPv4 as IPv6.
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            let place = match places.take(self.key(peer.ip())) {
                Ok(place) => place,
                Err(full) => {
                    if let Some(count) = refused.count() {
                        let why = match full {
                            Full::All => "there are as many as allowed",
                            Full::Share => "its address has its share of those that are allowed",
                        };
                        tracing::warn!(%peer, address = %self.address, connections_max, count, why, "connection refused");
                    }
                    continue;
                }
            };
            let connection = Connection {
                tls: tls.clone(),
                router: router.clone(),
                place: Place(Arc::new(place)),
                patience: self.patience,
                shutdown: shutdown.clone(),
            };
            tasks.spawn(connection.run(stream, peer));
        }
        drop(self.listener);
        tasks.close();
        if timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::warn!(address = %self.address, left = tasks.len(), "connections did not finish in time");
        }
    }
}

struct Connection {
    tls: Tls,
    router: Router,
    place: Place,
    patience: Patience,
    shutdown: CancellationToken,
}

impl Connection {
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: SocketAddr) {
        let (stream, pulse) = Pulsing::new(stream);
        let acceptor = TlsAcceptor::from(self.tls.current());
        let stream = tokio::select! {
            accepted = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => match accepted {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "no TLS handshake"),
                Err(_) => return tracing::debug!(%peer, "the TLS handshake took too long"),
            },
            () = self.shutdown.cancelled() => return,
        };
        let certificate = self.tls.shown(stream.get_ref().1.peer_certificates());
        let who = Peer { address: peer, certificate };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .keep_alive(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).expect("a small constant"))
            .keep_alive_interval(KEEP_ALIVE_INTERVAL);
        let asked = Arc::new(AtomicBool::new(false));
        let answers = Answers::default();
        let service = {
            let router = TowerToHyperService::new(self.router);
            let (asked, place, pulse, answers) = (Arc::clone(&asked), self.place, pulse.clone(), answers.clone());
            service_fn(move |mut request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(place.clone());
                request.extensions_mut().insert(pulse.clone());
                request.extensions_mut().insert(who.clone());
                let (under_way, answers) = (answers.begins(), answers.clone());
                let answering = router.call(request);
                async move { answering.await.map(|answer| answers.watch(answer, under_way)) }
            })
        };
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let graceful = GracefulShutdown::new();
        let connection = graceful.watch(connection.into_owned());
        tokio::pin!(connection);
        let never_asked = async {
            sleep(FIRST_REQUEST_TIMEOUT).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            result = &mut connection => result,
            () = never_asked => return tracing::debug!(%peer, "no request came in time"),
            () = pulse.stalled(STALL_TIMEOUT) => return tracing::debug!(%peer, "the answer is not taken"),
            stalled = answers.stalled(self.patience) => {
                tracing::debug!(%peer, ?stalled, "answers are not taken; the connection ends");
                // What else is under way on it may finish, and goes elsewhere next time.
                let time = match stalled {
                    Stalled::Connection => DRAIN_TIMEOUT,
                    Stalled::Answer => self.patience.answer,
                };
                let finished = async { tokio::join!(&mut connection, graceful.shutdown()).0 };
                timeout(time, finished).await.unwrap_or(Ok(()))
            }
            () = answers.idle(IDLE_TIMEOUT) => {
                let finished = async { tokio::join!(&mut connection, graceful.shutdown()).0 };
                timeout(DRAIN_TIMEOUT, finished).await.unwrap_or(Ok(()))
            }
            () = self.shutdown.cancelled() => {
                tokio::select! {
                    result = &mut connection => result,
                    () = graceful.shutdown() => Ok(()),
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "connection ended with an error");
        }
    }
}
