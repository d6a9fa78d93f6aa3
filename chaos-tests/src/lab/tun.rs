//! The network card of a host whose packets pass through the switch: a TUN
//! device in the host's namespace, whose other end is a file of this process.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::namespace::Namespace;

/// Name of the card in every namespace.
pub(super) const CARD: &str = "lab0";
/// How long the making of a card may take.
const LIMIT: Duration = Duration::from_secs(30);

/// `TUNSETIFF` with `IFF_TUN | IFF_NO_PI`, then the file is handed over through
/// the socket that is its input. Through Python, because an ioctl is unsafe code
/// here.
const MAKE: &str = "
import fcntl, os, socket, struct, sys
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', sys.argv[1].encode(), 0x1001))
socket.send_fds(socket.socket(fileno=0), [b'x'], [tun])
";

/// Makes the card in `namespace`: reading from the file gives the packets that
/// the host sends, one by one, and writing to it gives packets to the host.
pub(super) fn make(namespace: &Namespace) -> anyhow::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(LIMIT))?;
    let mut command = Command::new("python3");
    command.args(["-c", MAKE, CARD]).stdin(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::piped());
    let maker = namespace.spawn(&mut command)?;
    // The other end must close with the maker.
    drop(command);
    let received = receive(&ours);
    let output = maker.wait_with_output()?;
    ensure!(
        output.status.success(),
        "no TUN device (the lab needs root and /dev/net/tun): {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let card = received?;
    fcntl_setfl(&card, fcntl_getfl(&card)? | OFlags::NONBLOCK)?;
    Ok(card)
}

fn receive(socket: &UnixStream) -> anyhow::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    files.flatten().next().context("no file came from the maker of the TUN device")
}
