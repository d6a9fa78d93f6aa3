//! How an agent reaches its brokers: by the system's TCP, or in a test by a
//! simulated network.

use std::io;
use std::net::SocketAddr;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};

use crate::sockets;

/// A connection that carries bytes.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection that stands, and the host's own address on it.
pub type Connected = (Box<dyn Stream>, SocketAddr);

/// What an agent asks of a network. It sets time limits to both by itself.
pub trait Network: Send + Sync + 'static {
    /// The addresses of a host, given by name or address.
    fn find<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;

    /// Opens a connection.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Connected>>;
}

/// The system's.
pub(super) struct System;

impl Network for System {
    fn find<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        async move { Ok(lookup_host((host, port)).await?.collect()) }.boxed()
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Connected>> {
        async move {
            let stream = TcpStream::connect(to).await?;
            let local = stream.local_addr()?;
            sockets::prepare(&stream)?;
            Ok((Box::new(stream) as Box<dyn Stream>, local))
        }
        .boxed()
    }
}
