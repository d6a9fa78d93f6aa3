//! A connection to an X server that the session's owner controls.
//!
//! The server may be anything that the owner put in its place, so nothing that
//! it says costs the agent more than was asked for: a reply is refused by its
//! length before there is room for it. Nothing here holds a thread; a visit is
//! over when its future is dropped.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use x11rb::protocol::xproto::{Setup, SetupFailed, SetupRequest};
use x11rb::reexports::x11rb_protocol::x11_utils::ReplyRequest;
use x11rb::x11_utils::{Serialize, TryParse};

use super::display::{COOKIE_NAME, socket_of};
use super::record::Screen;

/// Bytes at the beginning of the answer to a greeting; they tell its length,
/// which has 16 bits and so is no danger.
const GREETING_BYTES: usize = 8;
/// Bytes of an event, an error, and the beginning of a reply.
const MESSAGE_BYTES: usize = 32;
/// Kind of the only events that are longer; a client must ask for them.
const GENERIC_EVENT: u8 = 35;

/// Why a visit to a display came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("the connection to the X server failed: {0}")]
    Io(#[from] io::Error),
    #[error("the display is served by user {found}, not by the session's owner")]
    Foreign { found: u32 },
    #[error("the X server refused the agent: {0}")]
    Refused(String),
    #[error("the X server answered with error {0}")]
    Error(u8),
    #[error("the X server sent {0}")]
    Nonsense(&'static str),
    #[error("the screen of {width} x {height} pixels is too large for a picture")]
    TooLarge { width: u16, height: u16 },
    #[error("the X server did not answer within {0} s")]
    Slow(u64),
}

/// A connection that stands.
pub(super) struct Client {
    stream: UnixStream,
    setup: Setup,
}

impl Client {
    /// Connects and shows the cookie, if the server runs as the session's owner.
    pub(super) async fn connect(screen: &Screen) -> Result<Self, Problem> {
        Self::connect_to(&socket_of(screen.display), screen).await
    }

    async fn connect_to(socket: &Path, screen: &Screen) -> Result<Self, Problem> {
        // Does not wait: a full queue is an error.
        let mut stream = UnixStream::connect(socket).await?;
        let found = stream.peer_cred()?.uid();
        if found != screen.owner {
            return Err(Problem::Foreign { found });
        }
        let request = SetupRequest {
            byte_order: if cfg!(target_endian = "big") { b'B' } else { b'l' },
            protocol_major_version: 11,
            protocol_minor_version: 0,
            authorization_protocol_name: COOKIE_NAME.as_bytes().to_vec(),
            authorization_protocol_data: screen.cookie.0.to_vec(),
        };
        stream.write_all(&request.serialize()).await?;
        let mut answer = vec![0; GREETING_BYTES];
        stream.read_exact(&mut answer).await?;
        let words = u16::from_ne_bytes([answer[6], answer[7]]);
        answer.resize(GREETING_BYTES + usize::from(words) * 4, 0);
        stream.read_exact(&mut answer[GREETING_BYTES..]).await?;
        match answer[0] {
            1 => {
                let (setup, _) = Setup::try_parse(&answer).map_err(|_| Problem::Nonsense("a broken greeting"))?;
                Ok(Self { stream, setup })
            }
            0 => {
                let (failed, _) = SetupFailed::try_parse(&answer).map_err(|_| Problem::Nonsense("a broken refusal"))?;
                Err(Problem::Refused(String::from_utf8_lossy(&failed.reason).trim().to_owned()))
            }
            _ => Err(Problem::Nonsense("a greeting of an unknown kind")),
        }
    }

    /// What the server said of itself.
    pub(super) fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Asks for something whose reply has at most `bytes_max` bytes behind its
    /// beginning.
    pub(super) async fn ask<R: ReplyRequest>(&mut self, request: R, bytes_max: usize) -> Result<R::Reply, Problem> {
        // Requests of the core have no extension's number.
        let (bytes, _) = request.serialize(0);
        self.stream.write_all(&bytes).await?;
        loop {
            let mut message = vec![0; MESSAGE_BYTES];
            self.stream.read_exact(&mut message).await?;
            let words = u32::from_ne_bytes([message[4], message[5], message[6], message[7]]);
            let rest = usize::try_from(u64::from(words) * 4).unwrap_or(usize::MAX);
            match message[0] {
                0 => return Err(Problem::Error(message[1])),
                1 if rest > bytes_max => return Err(Problem::Nonsense("a longer reply than was asked for")),
                1 => {
                    message.resize(MESSAGE_BYTES + rest, 0);
                    self.stream.read_exact(&mut message[MESSAGE_BYTES..]).await?;
                    let parsed = R::Reply::try_parse(&message).map_err(|_| Problem::Nonsense("a broken reply"))?;
                    return Ok(parsed.0);
                }
                kind if kind & 0x7F == GENERIC_EVENT => {
                    return Err(Problem::Nonsense("an event that nobody asked for"));
                }
                // Some events go to every client.
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::agent::desktops::xvnc::record::Cookie;
    use tokio::net::UnixListener;
    use x11rb::protocol::xproto::GetGeometryRequest;

    fn screen(owner: u32) -> Screen {
        Screen { display: 0, owner, cookie: Cookie([7; 16]) }
    }

    /// A server that takes one client: hears the greeting, and says `words`
    /// behind its own. Returns what it heard.
    async fn serve(listener: UnixListener, words: Vec<u8>) -> Vec<u8> {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = vec![0; 48];
        let mut length = 0;
        while length < heard.len() {
            match stream.read(&mut heard[length..]).await.unwrap() {
                0 => break,
                bytes => length += bytes,
            }
        }
        if length == heard.len() {
            let mut greeting = Setup { status: 1, ..Setup::default() }.serialize();
            let words = u16::try_from((greeting.len() - GREETING_BYTES) / 4).unwrap();
            greeting[6..8].copy_from_slice(&words.to_ne_bytes());
            stream.write_all(&greeting).await.unwrap();
        }
        stream.write_all(&words).await.unwrap();
        // Until the client goes.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        heard.truncate(length);
        heard
    }

    #[tokio::test]
    async fn the_cookie_goes_to_a_server_of_the_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        for (owner, name) in [(own, "own"), (own + 1, "foreign")] {
            let socket = folder.path().join(name);
            let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), Vec::new()));
            let connected = Client::connect_to(&socket, &screen(owner)).await;
            if owner == own {
                connected.unwrap();
                assert!(server.await.unwrap().ends_with(&[7; 16]));
            } else {
                assert!(matches!(connected, Err(Problem::Foreign { found }) if found == own));
                assert_eq!(server.await.unwrap(), Vec::<u8>::new());
            }
        }
    }

    #[tokio::test]
    async fn a_reply_is_refused_by_its_length_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("X");
        let mut endless = vec![0; MESSAGE_BYTES];
        endless[0] = 1;
        endless[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), endless));
        let mut client = Client::connect_to(&socket, &screen(rustix::process::geteuid().as_raw())).await.unwrap();
        let refused = client.ask(GetGeometryRequest { drawable: 1 }, 0).await;
        assert!(matches!(refused, Err(Problem::Nonsense("a longer reply than was asked for"))));
        drop(client);
        server.await.unwrap();
    }
}
