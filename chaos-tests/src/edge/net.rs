//! The simulated network below the product's own connections: how it opens and
//! accepts them, what cuts them, and a tap on each.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use berth::agent::network::{Connected, Network};
use berth::broker::listen::Accept;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use super::world::World;
use super::{BROKER, Moment};

/// What becomes of what is sent between a host and the broker. Nothing that is
/// lost is sent again, so a connection that lost something is of no use any
/// more, also when the network is whole again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It is held up, in both directions, and arrives in the end.
    Held,
    /// It is lost, in both directions.
    Lost,
    /// What the host sends is lost.
    LostToBroker,
    /// What the broker sends is lost.
    LostFromBroker,
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Held, Self::Lost, Self::LostToBroker, Self::LostFromBroker];

    /// Cuts a host off.
    pub fn begin(self, host: &str) {
        match self {
            Self::Held => turmoil::hold(host, BROKER),
            Self::Lost => turmoil::partition(host, BROKER),
            Self::LostToBroker => turmoil::partition_oneway(host, BROKER),
            Self::LostFromBroker => turmoil::partition_oneway(BROKER, host),
        }
    }

    /// Makes the network between a host and the broker whole, however it was cut.
    pub fn end(host: &str) {
        turmoil::release(host, BROKER);
        turmoil::repair(host, BROKER);
    }
}

/// Whose end of a connection is tapped.
#[derive(Debug)]
enum End {
    /// That of the agent on this host.
    OfAgent(String),
    /// The broker's, toward this address.
    OfBroker(IpAddr),
}

/// A connection with a tap.
#[derive(Debug)]
pub struct Tapped {
    stream: TcpStream,
    world: Arc<World>,
    end: End,
    writes: u32,
}

impl Tapped {
    fn new(stream: TcpStream, world: &Arc<World>, end: End) -> Self {
        Self { stream, world: Arc::clone(world), end, writes: 0 }
    }
}

impl Drop for Tapped {
    fn drop(&mut self) {
        if let End::OfAgent(host) = &self.end {
            self.world.disconnected(host);
        }
    }
}

impl AsyncRead for Tapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes += 1;
        if let End::OfAgent(host) = &self.end {
            self.world.happens(host, Moment::Write(self.writes));
        }
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let (Poll::Ready(Ok(length)), End::OfBroker(peer)) = (&polled, &self.end) {
            self.world.sent(*peer, *length);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A port of the broker.
pub struct Port {
    listener: TcpListener,
    world: Arc<World>,
}

impl Port {
    /// Binds it, on the host that this is called on.
    pub async fn bind(port: u16, world: &Arc<World>) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        let address = listener.local_addr()?;
        Ok((Self { listener, world: Arc::clone(world) }, address))
    }
}

impl Accept for Port {
    type Stream = Tapped;

    async fn accept(&mut self) -> io::Result<(Tapped, SocketAddr)> {
        let (stream, peer) = self.listener.accept().await?;
        Ok((Tapped::new(stream, &self.world, End::OfBroker(peer.ip())), peer))
    }
}

/// The network as an agent uses it.
pub struct FromHost {
    /// Its host.
    pub host: String,
    /// The world.
    pub world: Arc<World>,
}

impl Network for FromHost {
    fn find<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        std::future::ready(Ok(vec![SocketAddr::new(turmoil::lookup(host), port)])).boxed()
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Connected>> {
        async move {
            let stream = TcpStream::connect(to).await?;
            let local = stream.local_addr()?;
            self.world.connected(&self.host);
            let tapped = Tapped::new(stream, &self.world, End::OfAgent(self.host.clone()));
            Ok((Box::new(tapped) as _, local))
        }
        .boxed()
    }
}
