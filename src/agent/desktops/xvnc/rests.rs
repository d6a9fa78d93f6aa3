//! Removes what is left of a session on disk.
//!
//! The owner's part of a session's folder is hostile ground: programs mount
//! file systems there (desktops do so in the run-time folder), processes that
//! got away still write, links lead elsewhere. So what is mounted is detached,
//! found without following links; the folder leaves the place of the sessions
//! by one rename; and what cannot be deleted there stays for the next start of
//! the agent, without being a session any more.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::geteuid;
use tokio::time::timeout;

use crate::agent::desktops::Failure;
use crate::files::{self, FileError};

/// Folder beside those of the sessions. No session's folder has this name.
pub(super) const TRASH: &str = ".trash";
/// Most bytes of the kernel's list of mounts that are read.
const MOUNTS_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How often deleting is tried, and the pause between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);
/// How long the end of a session waits for its files to be deleted.
const DELETE_TIMEOUT: Duration = Duration::from_secs(3);

/// Removes a session's folder from `sessions`. When this is done it is no
/// session's folder any more, and nearly always deleted.
pub(super) async fn remove(sessions: &Path, folder: &Path) -> Result<(), Failure> {
    let (sessions, folder) = (sessions.to_path_buf(), folder.to_path_buf());
    let moved = tokio::task::spawn_blocking(move || throw_away(&sessions, &folder)).await;
    let moved = moved.map_err(|error| Failure(format!("removing a session's folder failed: {error}")))?;
    if let Some(rest) = moved.map_err(|error| Failure(error.to_string()))? {
        delete_in_time(rest).await;
    }
    Ok(())
}

/// Deletes what an earlier agent could not.
pub(super) async fn empty_trash(sessions: &Path) {
    let trash = sessions.join(TRASH);
    if trash.symlink_metadata().is_ok() {
        delete_in_time(trash).await;
    }
}

async fn delete_in_time(rest: PathBuf) {
    // Goes on by itself when it takes longer: a folder may be large.
    let _ = timeout(DELETE_TIMEOUT, tokio::task::spawn_blocking(move || delete(&rest))).await;
}

/// Moves a folder out of the sessions; `None` when there is none.
fn throw_away(sessions: &Path, folder: &Path) -> Result<Option<PathBuf>, FileError> {
    if folder.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    detach_mounts(folder);
    let trash = sessions.join(TRASH);
    let rest = trash.join(uuid::Uuid::new_v4().simple().to_string());
    // The end of another session may delete the empty trash in between.
    for _ in 0..TRIES {
        files::make_folder(&trash, 0o700)?;
        match fs::rename(folder, &rest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder.symlink_metadata().is_ok() => {}
            moved => return moved.map(|()| Some(rest)).map_err(FileError::of("move away", folder)),
        }
    }
    Err(FileError::of("move away", folder)(io::ErrorKind::ResourceBusy.into()))
}

fn delete(rest: &Path) {
    for _ in 0..TRIES {
        detach_mounts(rest);
        match fs::remove_dir_all(rest) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(folder = %rest.display(), %error, "a rest of a session is not deleted yet");
                std::thread::sleep(PAUSE);
            }
            _ => {
                if let Some(trash) = rest.parent().filter(|parent| parent.ends_with(TRASH)) {
                    // Fails while there are other rests in it.
                    let _ = fs::remove_dir(trash);
                }
                return;
            }
        }
    }
    tracing::warn!(folder = %rest.display(), "a rest of a session cannot be deleted; the agent's next start tries again");
}

/// Detaches every file system that is mounted below a folder, the latest first.
fn detach_mounts(folder: &Path) {
    let Ok(folder) = folder.canonicalize() else { return };
    let mut table = Vec::new();
    let read = File::open("/proc/self/mountinfo").and_then(|file| file.take(MOUNTS_BYTES_MAX).read_to_end(&mut table));
    if let Err(error) = read {
        tracing::warn!(%error, "the mounts of this host cannot be read");
    }
    for point in mount_points(&table).into_iter().rev() {
        let Ok(relative) = point.strip_prefix(&folder) else { continue };
        if relative.as_os_str().is_empty() {
            continue;
        }
        let detached = if geteuid().is_root() { detach(&folder, relative) } else { detach_as_user(&point) };
        if let Err(error) = detached {
            tracing::warn!(folder = %point.display(), %error, "a file system in a session's folder stays mounted");
        }
    }
}

/// Detaches what is mounted at `relative` below `folder`. The way there is
/// walked without links, and the mount is named by the descriptor found: the
/// owner could put a link to `/home` in its place at any moment.
fn detach(folder: &Path, relative: &Path) -> io::Result<()> {
    let top = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let point = openat2(&top, relative, flags, Mode::empty(), resolve)?;
    unmount(format!("/proc/self/fd/{}", point.as_raw_fd()), UnmountFlags::DETACH)?;
    Ok(())
}

/// What a user mounted by FUSE, that user may detach through FUSE's tool.
fn detach_as_user(point: &Path) -> io::Result<()> {
    let mut outcome = Err(io::ErrorKind::NotFound.into());
    for tool in ["fusermount3", "fusermount"] {
        outcome = Command::new(tool).args(["-u", "-z", "--"]).arg(point).output().and_then(|output| {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if output.status.success() { Ok(()) } else { Err(io::Error::other(said)) }
        });
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Where something is mounted, oldest first, by the kernel's list. White space
/// and backslashes are written as three octal digits there.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    let fifth = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(unescape);
    table.split(|byte| *byte == b'\n').filter_map(fifth).map(|path| PathBuf::from(OsString::from_vec(path))).collect()
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\');
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &behind[3..] } else { behind };
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_read() {
        let table = b"22 1 0:21 / /proc rw - proc proc rw\n23 1 0:5 / /a\\040b/\\134c rw,x shared:7 - fuse x rw\n";
        assert_eq!(mount_points(table), [Path::new("/proc"), Path::new("/a b/\\c")]);
    }

    #[tokio::test]
    async fn a_folder_goes_with_the_trash_unless_something_holds_it() {
        let sessions = tempfile::tempdir().unwrap();
        let folder = sessions.path().join("s");
        remove(sessions.path(), &folder).await.unwrap();
        fs::create_dir_all(folder.join("runtime/deep")).unwrap();
        std::os::unix::fs::symlink("/", folder.join("runtime/link")).unwrap();
        remove(sessions.path(), &folder).await.unwrap();
        assert_eq!(fs::read_dir(sessions.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_mounted_in_a_folder_is_detached_and_a_link_is_no_way_out() {
        let sessions = tempfile::tempdir().unwrap();
        let folder = sessions.path().join("s");
        let point = folder.join("runtime/gvfs of ann");
        fs::create_dir_all(&point).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&point).output().unwrap();
        if !mount.status.success() {
            // Only root meets such folders: without root there is nothing to detach.
            assert!(!rustix::process::geteuid().is_root(), "{}", String::from_utf8_lossy(&mount.stderr));
            return;
        }
        fs::write(point.join("file"), "of a mounted file system").unwrap();
        assert!(fs::remove_dir(&point).is_err());

        // A link to a mount elsewhere leads nowhere.
        std::os::unix::fs::symlink(&point, sessions.path().join("link")).unwrap();
        assert!(detach(sessions.path(), Path::new("link")).is_err());
        assert!(point.join("file").exists());

        remove(sessions.path(), &folder).await.unwrap();
        assert!(!folder.exists());
        assert!(!sessions.path().join(TRASH).exists());
    }
}
