//! Displays: numbers, their sockets and locks, and who may use them.

//!
//! `/tmp` is everybody's: what lies there is read without following links and
//! without waiting, since a pipe in the place of a lock, or a socket that
//! nobody serves, would hold the agent for ever.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::geteuid;

use super::process::Process;
use super::record::Cookie;
use crate::agent::desktops::Failure;
use crate::files;

/// Folder of the X servers' sockets.
const SOCKETS: &str = "/tmp/.X11-unix";

/// Displays that sessions get. Low numbers are left to the host's own screens
/// and to users; a display's VNC port is [`PORT_BASE`] more.
const DISPLAYS: std::ops::Range<u16> = 100..2000;
/// As VNC has it.
const PORT_BASE: u16 = 5900;

/// Name of the only authorisation that is used.
pub(super) const COOKIE_NAME: &str = "MIT-MAGIC-COOKIE-1";

/// Displays of this agent's sessions, each with the session's mark.
#[derive(Debug, Default, Clone)]
pub(super) struct Displays(Arc<Mutex<BTreeMap<u16, String>>>);

impl Displays {
    /// Takes the lowest display from `from` on that nobody seems to use. The X
    /// server has the last word: it locks the display and refuses a taken one.
    pub(super) async fn take(&self, from: u16, mark: &str) -> Result<u16, Failure> {
        let (displays, mark) = (self.clone(), mark.to_owned());
        let taken = tokio::task::spawn_blocking(move || {
            prepare_socket_folder()?;
            // The set is locked for a moment at a time, never during a look at
            // the host.
            let free = (from.max(DISPLAYS.start)..DISPLAYS.end).find(|display| {
                displays.keep(*display, &mark) && {
                    let free =
                        !is_held(*display) && TcpListener::bind((Ipv4Addr::LOCALHOST, port_of(*display))).is_ok();
                    if !free {
                        displays.give_back(*display, &mark);
                    }
                    free
                }
            });
            free.ok_or_else(|| Failure::new("this host has no free X display left"))
        });
        taken.await.map_err(|error| Failure(format!("looking for a free display failed: {error}")))?
    }

    /// Notes a display; `false` when a session has it already.
    pub(super) fn keep(&self, display: u16, mark: &str) -> bool {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = !taken.contains_key(&display);
        if free {
            taken.insert(display, mark.to_owned());
        }
        free
    }

    /// Gives a display back, if the session has it.
    pub(super) fn give_back(&self, display: u16, mark: &str) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.get(&display).is_some_and(|holder| holder == mark) {
            taken.remove(&display);
        }
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
fn holder_of(lock: &Path) -> Option<u32> {
    files::read_foreign_text(lock, 64).ok()?.trim().parse().ok()
}

/// Whether an X server seems to have a display. What a killed one left behind
/// is no obstacle: the next one replaces it.
fn is_held(display: u16) -> bool {
    is_held_by(&lock_of(display), &socket_of(display))
}

fn is_held_by(lock: &Path, socket: &Path) -> bool {
    match holder_of(lock) {
        Some(pid) => Process::of(pid).is_some_and(Process::is_alive),
        // A lock that names nobody is being written, or is no lock at all.
        None => lock.symlink_metadata().is_ok() || is_served(socket),
    }
}

/// Whether somebody listens on a socket. One whose queue is full is served.
fn is_served(socket: &Path) -> bool {
    let attempt = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&client, &SocketAddrUnix::new(socket)?)
    };
    matches!(attempt(), Ok(()) | Err(rustix::io::Errno::AGAIN))
}

/// Makes the folder of the sockets as it should be, which X servers of users
/// cannot. Its owner may replace every socket in it, so for sessions of other
/// users it must be root's.
pub(super) fn prepare_socket_folder() -> Result<(), Failure> {
    let folder = Path::new(SOCKETS);
    match fs::create_dir(folder) {
        Ok(()) => {
            return fs::set_permissions(folder, fs::Permissions::from_mode(0o1777))
                .map_err(|error| Failure(format!("the mode of {SOCKETS} cannot be set: {error}")));
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Failure(format!("the folder {SOCKETS} cannot be made: {error}"))),
    }
    let found =
        folder.symlink_metadata().map_err(|error| Failure(format!("{SOCKETS} cannot be looked at: {error}")))?;
    if !found.is_dir() || (geteuid().is_root() && found.uid() != 0) {
        return Err(Failure(format!(
            "{SOCKETS} is user {}'s and must be a folder of root's; end the X servers of this host and remove it",
            found.uid()
        )));
    }
    Ok(())
}

/// Removes what the X server of a session left behind, once the session's
/// processes have ended: only if nobody else has taken the display since.
pub(super) fn clean_up(display: u16) -> Result<(), Failure> {
    let (lock, socket) = (lock_of(display), socket_of(display));
    if is_held_by(&lock, &socket) {
        return Ok(());
    }
    let remove = |path: &Path| {
        files::remove(path).map_err(|error| Failure(format!("a rest of display {display} stays: {error}")))
    };
    remove(&socket)?;
    remove(&lock)
}

/// The X authority file for one cookie, in the format of libXau: numbers are
/// 16 bits, high byte first. Family "wild" fits the host under any name.
pub(super) fn authority_file(display: u16, cookie: &Cookie) -> Vec<u8> {
    const FAMILY_WILD: u16 = 0xFFFF;
    let mut file = FAMILY_WILD.to_be_bytes().to_vec();
    for part in [&b""[..], display.to_string().as_bytes(), COOKIE_NAME.as_bytes(), &cookie.0] {
        // No part is longer than 18 bytes.
        file.extend(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        file.extend(part);
    }
    file
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
        let file = authority_file(101, &Cookie(cookie));
        let mut expected = vec![0xFF, 0xFF, 0, 0, 0, 3];
        expected.extend(b"101");
        expected.extend([0, 18]);
        expected.extend(b"MIT-MAGIC-COOKIE-1");
        expected.extend([0, 16]);
        expected.extend(cookie);
        assert_eq!(file, expected);
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

    #[tokio::test]
    async fn a_taken_display_is_not_given_twice() {
        let displays = Displays::default();
        let first = displays.take(0, "a").await.unwrap();
        assert!(displays.take(0, "b").await.unwrap() > first);
        displays.give_back(first, "b");
        assert!(!displays.keep(first, "b"), "only its holder gives it back");
        displays.give_back(first, "a");
        assert_eq!(displays.take(first, "b").await.unwrap(), first);
    }

    #[test]
    fn what_others_put_in_the_place_of_lock_and_socket_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, socket) = (folder.path().join("lock"), folder.path().join("socket"));
        assert!(!is_held_by(&lock, &socket));
        rustix::fs::mknodat(rustix::fs::CWD, &lock, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(is_held_by(&lock, &socket), "a pipe is no lock that may be replaced");
        fs::remove_file(&lock).unwrap();

        // Nobody takes connections from the queue until no more fit in.
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let mut clients = Vec::new();
        loop {
            let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            if connect(&client, &SocketAddrUnix::new(&socket).unwrap()).is_err() {
                break;
            }
            clients.push(client);
        }
        assert!(is_held_by(&lock, &socket));
        drop(listener);
        assert!(!is_held_by(&lock, &socket), "a socket that nobody serves is a rest");
        // The greatest number a process may have is lower.
        fs::write(&lock, "4194305\n").unwrap();
        assert!(!is_held_by(&lock, &socket), "so is the lock of a process that is gone");
    }
}
