//! What is asked of the system for each TCP connection of ours, whoever opened
//! it.
//!
//! Our own limits see when nothing is read or taken. They do not see what the
//! system took over and cannot deliver: a host that lost its power takes
//! nothing any more, and yet all that is written to it goes into a buffer, the
//! signs of life of a stream of events for hours. Where nothing is written at
//! all, as while a client waits for an answer, nobody would find out ever.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// How long the other side may leave unconfirmed what was sent to it.
const UNCONFIRMED_MAX: Duration = Duration::from_mins(1);
/// A connection on which nothing comes is asked for a sign of life after this
/// time,
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// and then so often,
const ASK_INTERVAL: Duration = Duration::from_secs(10);
/// and so many times: after a minute without an answer it has ended.
const ASK_TIMES: u32 = 3;

/// Prepares a connection: small messages go at once, and it ends when the other
/// side has vanished.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Messages are small and complete; waiting for more to send only adds latency.
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE_MAX)?;
    sockopt::set_tcp_keepintvl(stream, ASK_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, ASK_TIMES)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, u32::try_from(UNCONFIRMED_MAX.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_ends_within_about_a_minute_after_the_other_side_vanished() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&stream).unwrap();
        assert!(stream.nodelay().unwrap() && sockopt::socket_keepalive(&stream).unwrap());
        let asked = sockopt::tcp_keepintvl(&stream).unwrap() * sockopt::tcp_keepcnt(&stream).unwrap();
        let silent = sockopt::tcp_keepidle(&stream).unwrap() + asked;
        assert_eq!(silent, Duration::from_mins(1));
        #[cfg(target_os = "linux")]
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 60_000);
    }
}
