//! Files of brokers and agents: replaced as a whole and durably, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

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
    replace_for(path, content, mode, None)
}

/// As [`replace`], and gives the file to an owner (user and group). Everything
/// is done to the descriptor of a file that is new for certain: a name that is
/// there already, a link above all, is never opened. The folder must be the
/// agent's own all the same, since the last step is a rename by name.
pub(crate) fn replace_for(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), FileError> {
    let beside = path.with_extension(format!("{:016x}.new", rand::random::<u64>()));
    let mut file = OpenOptions::new()
        .write(true)
        // Neither an existing file nor a link in its place is taken.
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(FileError::of("create", &beside))?;
    let written = (|| {
        file.write_all(content).map_err(FileError::of("write", &beside))?;
        if let Some((user, group)) = owner {
            fchown(&file, Some(user), Some(group)).map_err(FileError::of("give away", &beside))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(FileError::of("set the mode of", &beside))?;
        file.sync_all().map_err(FileError::of("sync", &beside))?;
        fs::rename(&beside, path).map_err(FileError::of("rename into place", path))
    })();
    if written.is_err() {
        // What failed is told; this only keeps the folder clean.
        let _ = fs::remove_file(&beside);
    }
    written?;
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

/// Makes a folder with its parents. `mode` is set exactly on a folder that is
/// new; one that is there keeps the mode its operator gave it.
pub(crate) fn make_folder(path: &Path, mode: u32) -> Result<(), FileError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(FileError::of("create the folder", parent))?;
    }
    match make_new_folder(path, mode, None) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Makes a folder that must not be there yet, in a folder that only the agent
/// can write to, and gives it to an owner (user and group).
pub(crate) fn make_new_folder(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<(), FileError> {
    fs::DirBuilder::new().mode(0o700).create(path).map_err(FileError::of("create the folder", path))?;
    let folder = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::DIRECTORY).bits().cast_signed())
        .open(path)
        .map_err(FileError::of("open the folder", path))?;
    folder.set_permissions(fs::Permissions::from_mode(mode)).map_err(FileError::of("set the mode of", path))?;
    owner.map_or(Ok(()), |(user, group)| {
        fchown(&folder, Some(user), Some(group)).map_err(FileError::of("give away", path))
    })
}

/// Reads a file as text, at most `bytes_max` of it; bytes that are no UTF-8
/// are replaced.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max).read_to_end(&mut content)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// Reads a small file that anybody may have put there: a link is not followed,
/// and what is no regular file (a pipe would never end) is an error.
pub(crate) fn read_foreign_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut content = Vec::new();
    file.take(bytes_max).read_to_end(&mut content)?;
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

/// Whether [`as_file_name`] could have made a name.
pub(crate) fn is_file_name(name: &str) -> bool {
    let mut text = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        if let (b'%', Some(byte)) = (first, digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            text.push(byte);
            rest = &behind[2..];
        } else {
            text.push(*first);
            rest = behind;
        }
    }
    String::from_utf8(text).is_ok_and(|text| as_file_name(&text).as_deref() == Some(name))
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
    fn a_folder_that_is_there_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        make_folder(&path, 0o711).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o711);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        make_folder(&path, 0o711).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o750);
        assert!(make_new_folder(&path, 0o711, None).is_err());
    }

    #[test]
    fn a_pipe_or_a_link_in_the_place_of_a_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link, file) = (folder.path().join("pipe"), folder.path().join("link"), folder.path().join("file"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        fs::write(&file, "42").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_foreign_text(&file, 64).unwrap(), "42");
        assert!(read_foreign_text(&pipe, 64).is_err());
        assert!(read_foreign_text(&link, 64).is_err());
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
        for text in ["a-b_C9", "../../etc", "ä %2F"] {
            assert!(is_file_name(&as_file_name(text).unwrap()), "{text}");
        }
        for name in ["", ".", ".trash", "a b", "a%2f", "%41", "lost+found", "%"] {
            assert!(!is_file_name(name), "{name}");
        }
    }
}
