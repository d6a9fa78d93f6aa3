//! Files of the agent: replaced as a whole and durably, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// On which file or folder.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Names the operation for an error of the system.
    pub(crate) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { action, path, source }
    }
}

/// Replaces a file: written beside, synced, renamed, and the folder synced, so
/// that a crash leaves the old content or the new one. `mode` is exact.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&beside)
        .map_err(FileError::of("create", &beside))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(FileError::of("set the mode of", &beside))?;
    file.write_all(content).map_err(FileError::of("write", &beside))?;
    file.sync_all().map_err(FileError::of("sync", &beside))?;
    fs::rename(&beside, path).map_err(FileError::of("rename into place", path))?;
    sync_folder_of(path)
}

/// Removes a file and makes that last; a missing one is no error.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder_of(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FileError::of("remove", path)(error)),
    }
}

fn sync_folder_of(path: &Path) -> Result<(), FileError> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(FileError::of("sync the folder", folder))
}

/// Makes a folder with its parents; `mode` is set exactly on the folder itself.
pub(crate) fn make_folder(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(FileError::of("create the folder", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(FileError::of("set the mode of", path))
}

/// Reads a file as text, at most `bytes_max` of it; bytes that are no UTF-8
/// are replaced.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max).read_to_end(&mut content)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// Takes an exclusive lock on a file until the result is dropped. `None` when
/// somebody else holds it.
pub(crate) fn lock(path: &Path) -> Result<Option<File>, FileError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(FileError::of("open", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(FileError::of("lock", path)(errno.into())),
    }
}

/// A text as a file name: letters, digits, `-` and `_` stay, every other byte
/// becomes `%XX`. No two texts share a name, and none is `.` or `..`. A name
/// that would be longer than file systems take (255 bytes) is `None`.
pub(crate) fn as_file_name(text: &str) -> Option<String> {
    use std::fmt::Write as _;
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            name.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
    (!name.is_empty() && name.len() <= 250).then_some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    #[test]
    fn a_lock_has_one_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = lock(&path).unwrap();
        assert!(held.is_some());
        assert!(lock(&path).unwrap().is_none());
        drop(held);
        assert!(lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_session_id_becomes_a_harmless_file_name() {
        assert_eq!(as_file_name("a-b_C9").as_deref(), Some("a-b_C9"));
        assert_eq!(as_file_name("../../etc").as_deref(), Some("%2E%2E%2F%2E%2E%2Fetc"));
        assert_ne!(as_file_name("a%2F"), as_file_name("a/"));
        assert_eq!(as_file_name(&"/".repeat(100)), None);
        assert_eq!(as_file_name(""), None);
    }
}
