//! Where the files of a store are: with the operating system, or on a simulated
//! disk. Everything above is the same code on both.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::memory::{self, Mount};
use crate::{Error, durable};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) enum Files {
    System,
    Memory(Mount),
}

/// An open file.
#[derive(Debug)]
pub(crate) enum Handle {
    System(fs::File),
    Memory(memory::Handle),
}

/// Held while a store is open: nobody else opens it.
#[derive(Debug)]
pub(crate) enum Lock {
    System(#[expect(dead_code, reason = "held, not read")] fs::File),
    Memory(Mount),
}

impl Files {
    /// Locks a folder by its file `path`. The operating system unlocks it when
    /// the process ends, however it ends.
    pub(crate) fn lock(&self, path: &Path) -> Result<Lock, Error> {
        if let Self::Memory(mount) = self {
            return Ok(Lock::Memory(mount.clone()));
        }
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(|error| Error::io("open", path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock::System(file)),
            Err(Errno::WOULDBLOCK) => Err(Error::Locked { path: path.to_owned() }),
            Err(error) => Err(Error::io("lock", path, error.into())),
        }
    }

    /// Makes `folder` and the missing ones above it, durably.
    pub(crate) fn create_folder(&self, folder: &Path) -> Result<(), Error> {
        match self {
            Self::System => durable::create_folder(folder),
            Self::Memory(mount) => {
                mount.create_folder(folder).map_err(|error| Error::io("create the folder", folder, error))
            }
        }
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        match self {
            Self::System => path.exists(),
            Self::Memory(mount) => mount.exists(path),
        }
    }

    pub(crate) fn is_folder(&self, path: &Path) -> bool {
        match self {
            Self::System => path.is_dir(),
            Self::Memory(mount) => mount.is_folder(path),
        }
    }

    /// What is in a folder, in order.
    pub(crate) fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, Error> {
        let listed = match self {
            Self::System => fs::read_dir(folder)
                .and_then(|files| files.map(|file| file.map(|file| file.path())).collect::<io::Result<Vec<_>>>()),
            Self::Memory(mount) => mount.list(folder),
        };
        let mut paths = listed.map_err(|error| Error::io("list", folder, error))?;
        paths.sort();
        Ok(paths)
    }

    /// A new file, to be written.
    pub(crate) fn create_new(&self, path: &Path) -> Result<Handle, Error> {
        let created = match self {
            Self::System => fs::File::options().write(true).create_new(true).open(path).map(Handle::System),
            Self::Memory(mount) => mount.create(path, true).map(Handle::Memory),
        };
        created.map_err(|error| Error::io("create", path, error))
    }

    /// An empty file, in the place of what may be there.
    pub(crate) fn create(&self, path: &Path) -> Result<Handle, Error> {
        let created = match self {
            Self::System => fs::File::create(path).map(Handle::System),
            Self::Memory(mount) => mount.create(path, false).map(Handle::Memory),
        };
        created.map_err(|error| Error::io("write", path, error))
    }

    /// A file that is there, to be read and written to.
    pub(crate) fn open(&self, path: &Path) -> Result<Handle, Error> {
        let opened = match self {
            Self::System => fs::File::options().read(true).write(true).open(path).map(Handle::System),
            Self::Memory(mount) => mount.open(path).map(Handle::Memory),
        };
        opened.map_err(|error| Error::io("open", path, error))
    }

    /// A file that is there, to be read.
    pub(crate) fn open_to_read(&self, path: &Path) -> Result<Handle, Error> {
        let opened = match self {
            Self::System => fs::File::open(path).map(Handle::System),
            Self::Memory(mount) => mount.open(path).map(Handle::Memory),
        };
        opened.map_err(|error| Error::io("open", path, error))
    }

    /// All of a file.
    pub(crate) fn read(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let read = match self {
            Self::System => fs::read(path),
            Self::Memory(mount) => mount.open(path).and_then(|file| {
                let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
                file.read_exact_at(&mut bytes, 0)?;
                Ok(bytes)
            }),
        };
        read.map_err(|error| Error::io("read", path, error))
    }

    pub(crate) fn remove(&self, path: &Path) -> Result<(), Error> {
        let removed = match self {
            Self::System => fs::remove_file(path),
            Self::Memory(mount) => mount.remove(path),
        };
        removed.map_err(|error| Error::io("remove", path, error))
    }

    /// Puts the finished file `temporary` in the place of `target`, in the same
    /// folder: after a power cut either the old or the new one is there, whole.
    pub(crate) fn replace(&self, content: &Handle, temporary: &Path, target: &Path) -> Result<(), Error> {
        content.sync_all().map_err(|error| Error::io("sync", temporary, error))?;
        self.rename(temporary, target)
    }

    /// The same for a `temporary` whose content is durable already.
    pub(crate) fn rename(&self, temporary: &Path, target: &Path) -> Result<(), Error> {
        match self {
            Self::System => durable::rename(temporary, target),
            Self::Memory(mount) => {
                mount.rename(temporary, target).map_err(|error| Error::io("rename to", target, error))?;
                self.sync_parent(target)
            }
        }
    }

    /// Makes the names in `folder` durable: files created, renamed or removed.
    pub(crate) fn sync_folder(&self, folder: &Path) -> Result<(), Error> {
        match self {
            Self::System => durable::sync_folder(folder),
            Self::Memory(mount) => {
                mount.sync_folder(folder).map_err(|error| Error::io("sync the folder", folder, error))
            }
        }
    }

    /// Makes the name of `path` durable.
    pub(crate) fn sync_parent(&self, path: &Path) -> Result<(), Error> {
        self.sync_folder(path.parent().unwrap_or(Path::new("/")))
    }

    /// Fails with [`Error::Full`] when fewer than `needed_bytes` are free.
    pub(crate) fn require_room(&self, folder: &Path, needed_bytes: u64) -> Result<(), Error> {
        let free_bytes = match self {
            Self::System => durable::free_bytes(folder)?,
            Self::Memory(mount) => mount.free_bytes(),
        };
        if free_bytes < needed_bytes {
            return Err(Error::Full { path: folder.to_owned(), free_bytes, needed_bytes });
        }
        Ok(())
    }
}

impl Handle {
    pub(crate) fn length(&self) -> io::Result<u64> {
        match self {
            Self::System(file) => Ok(file.metadata()?.len()),
            Self::Memory(file) => file.length(),
        }
    }

    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::System(file) => file.read_exact_at(buffer, offset),
            Self::Memory(file) => file.read_exact_at(buffer, offset),
        }
    }

    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Self::System(file) => file.write_all_at(bytes, offset),
            Self::Memory(file) => file.write_all_at(bytes, offset),
        }
    }

    /// Makes the content durable, though not the name.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        match self {
            Self::System(file) => file.sync_all(),
            Self::Memory(file) => file.sync_all(),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Self::Memory(mount) = self {
            mount.unmount();
        }
    }
}
