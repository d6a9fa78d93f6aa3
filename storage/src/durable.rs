//! File operations that survive a power cut.

use std::fs::{self, File};
use std::path::Path;

use crate::Error;

/// Makes the names in `folder` durable: files created, renamed or removed.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|handle| handle.sync_all()).map_err(|error| Error::io("sync the folder", folder, error))
}

/// Makes the content of `path` durable, though not its name.
pub(crate) fn sync_file(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|handle| handle.sync_all()).map_err(|error| Error::io("sync", path, error))
}

/// Puts the finished file (or folder) `temporary` in the place of `target`, in
/// the same folder: after a power cut either the old or the new one is there,
/// whole. `content` is an open handle on what is to be synced first.
pub(crate) fn replace(content: &File, temporary: &Path, target: &Path) -> Result<(), Error> {
    content.sync_all().map_err(|error| Error::io("sync", temporary, error))?;
    rename(temporary, target)
}

/// The same for a `temporary` whose content is durable already.
pub(crate) fn rename(temporary: &Path, target: &Path) -> Result<(), Error> {
    fs::rename(temporary, target).map_err(|error| Error::io("rename to", target, error))?;
    sync_parent(target)
}

/// Makes the name of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Error> {
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Makes `folder` and the missing ones above it, durably.
pub(crate) fn create_folder(folder: &Path) -> Result<(), Error> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|path| !path.as_os_str().is_empty()) {
        create_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        Err(error) => return Err(Error::io("create the folder", folder, error)),
    }
    sync_folder(folder)?;
    let parent = match folder.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    sync_folder(parent)
}

/// Bytes free for us on the disk that `folder` is on.
pub(crate) fn free_bytes(folder: &Path) -> Result<u64, Error> {
    let disk =
        rustix::fs::statvfs(folder).map_err(|error| Error::io("ask for the free space of", folder, error.into()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}
