//! Displays: numbers, their sockets and locks, and who may use them.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::process::Process;
use crate::agent::desktops::Failure;
use crate::agent::files;

/// Folder of the X servers' sockets.
const SOCKETS: &str = "/tmp/.X11-unix";

/// Displays that sessions get. Low numbers are left to the host's own screens
/// and to users; a display's VNC port is [`PORT_BASE`] more.
const DISPLAYS: std::ops::Range<u16> = 100..2000;
/// As VNC has it.
const PORT_BASE: u16 = 5900;

/// Name of the only authorisation that is used.
pub(super) const COOKIE_NAME: &str = "MIT-MAGIC-COOKIE-1";

/// Displays of this agent's sessions.
#[derive(Debug, Default)]
pub(super) struct Displays(Mutex<BTreeSet<u16>>);

impl Displays {
    /// Takes the lowest display from `from` on that nobody seems to use. The X
    /// server has the last word: it locks the display and refuses a taken one.
    pub(super) fn take(&self, from: u16) -> Result<u16, Failure> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (from.max(DISPLAYS.start)..DISPLAYS.end).find(|display| {
            !taken.contains(display)
                && !is_held(*display)
                && TcpListener::bind((Ipv4Addr::LOCALHOST, port_of(*display))).is_ok()
        });
        let display = free.ok_or_else(|| Failure::new("this host has no free X display left"))?;
        taken.insert(display);
        Ok(display)
    }

    /// Notes a display that a session found again has.
    pub(super) fn keep(&self, display: u16) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(display);
    }

    /// Gives a display back.
    pub(super) fn give_back(&self, display: u16) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&display);
    }
}

/// VNC port of a display, on the loopback address.
pub(super) const fn port_of(display: u16) -> u16 {
    PORT_BASE + display
}

/// Socket of a display.
pub(super) fn socket_of(display: u16) -> PathBuf {
    Path::new(SOCKETS).join(format!("X{display}"))
}

fn lock_of(display: u16) -> PathBuf {
    PathBuf::from(format!("/tmp/.X{display}-lock"))
}

/// Process that a display's lock names.
fn holder_of(display: u16) -> Option<u32> {
    files::read_text(&lock_of(display), 64).ok()?.trim().parse().ok()
}

/// Whether an X server seems to have a display. What a killed one left behind
/// is no obstacle: the next one replaces it.
fn is_held(display: u16) -> bool {
    match holder_of(display) {
        Some(pid) => Process::of(pid).is_some_and(Process::is_alive),
        // A lock that names nobody is being written.
        None => lock_of(display).exists() || UnixStream::connect(socket_of(display)).is_ok(),
    }
}

/// X servers of users cannot make the folder of the sockets as it should be;
/// root can.
pub(super) fn prepare_socket_folder() {
    if !Path::new(SOCKETS).exists()
        && let Err(error) =
            fs::create_dir(SOCKETS).and_then(|()| fs::set_permissions(SOCKETS, fs::Permissions::from_mode(0o1777)))
    {
        tracing::warn!(%error, "the folder {SOCKETS} cannot be made; X servers will try by themselves");
    }
}

/// Removes what an X server that was killed left behind: only if it is that
/// server's, since another one may have taken the display already.
pub(super) fn clean_up(display: u16, server: Process) -> Result<(), Failure> {
    let (lock, socket) = (lock_of(display), socket_of(display));
    let holder = holder_of(display);
    let remove = |path: &Path| {
        files::remove(path).map_err(|error| Failure(format!("a rest of display {display} stays: {error}")))
    };
    if holder == Some(server.pid) && !server.is_alive() {
        remove(&socket)?;
        remove(&lock)?;
    } else if holder.is_none() && socket.exists() && UnixStream::connect(&socket).is_err() {
        remove(&socket)?;
    }
    Ok(())
}

/// The X authority file for one cookie, in the format of libXau: numbers are
/// 16 bits, high byte first. Family "wild" fits the host under any name.
pub(super) fn authority_file(display: u16, cookie: &[u8; 16]) -> Vec<u8> {
    const FAMILY_WILD: u16 = 0xFFFF;
    let mut file = FAMILY_WILD.to_be_bytes().to_vec();
    for part in [&b""[..], display.to_string().as_bytes(), COOKIE_NAME.as_bytes(), cookie] {
        // No part is longer than 18 bytes.
        file.extend(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        file.extend(part);
    }
    file
}

/// The cookie in an X authority file written by [`authority_file`].
pub(super) fn cookie_of(file: &[u8]) -> Option<[u8; 16]> {
    file.last_chunk::<16>().copied()
}

/// Clients connected to a port of this host, by the kernel's tables.
pub(super) fn connections_to(port: u16, tables: &str) -> u32 {
    const ESTABLISHED: &str = "01";
    let count = tables
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
            let local_port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
            (local_port == port && state == ESTABLISHED).then_some(())
        })
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The kernel's tables of TCP connections.
pub(super) fn connection_tables() -> String {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .map(|path| files::read_text(Path::new(path), 64 * 1024 * 1024).unwrap_or_default())
        .concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_authority_file_has_the_format_of_xauth() {
        let cookie: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let file = authority_file(101, &cookie);
        let mut expected = vec![0xFF, 0xFF, 0, 0, 0, 3];
        expected.extend(b"101");
        expected.extend([0, 18]);
        expected.extend(b"MIT-MAGIC-COOKIE-1");
        expected.extend([0, 16]);
        expected.extend(cookie);
        assert_eq!(file, expected);
        assert_eq!(cookie_of(&file), Some(cookie));
    }

    #[test]
    fn only_established_connections_to_the_port_count() {
        let tables = "  sl  local_address rem_address   st\n\
             0: 0100007F:1770 00000000:0000 0A 0\n\
             1: 0100007F:1770 0100007F:C001 01 0\n\
             2: 0100007F:C001 0100007F:1770 01 0\n\
             3: 0100007F:1770 0100007F:C002 06 0\n\
             0: 00000000000000000000000001000000:1770 00000000000000000000000001000000:C003 01 0\n";
        assert_eq!(connections_to(6000, tables), 2);
        assert_eq!(connections_to(6001, tables), 0);
    }

    #[test]
    fn a_taken_display_is_not_given_twice() {
        let displays = Displays::default();
        let first = displays.take(0).unwrap();
        assert!(displays.take(0).unwrap() > first);
        displays.give_back(first);
        assert_eq!(displays.take(first).unwrap(), first);
    }
}
