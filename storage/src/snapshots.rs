//! Snapshots as files: `<index>.snapshot`, written beside as `<number>.unfinished`.
//!
//! The one of the highest index is current. It replaces the older ones only
//! after it is durable; a crash may leave older ones and unfinished files, which
//! opening removes. A current snapshot that is damaged is an error: the older
//! state it could be replaced by is not what was acknowledged.
//!
//! A writer may outlive the store: it then fails, and no longer touches the
//! folder, which may belong to another store by then.

mod format;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use crate::Error;
use crate::files::{Files, Handle};
use format::Contents;
pub use reader::SnapshotReader;
pub use writer::SnapshotWriter;

const FINISHED: &str = "snapshot";
const UNFINISHED: &str = "unfinished";

/// The snapshots of a data folder. The newest is kept. Clones share the folder.
#[derive(Debug, Clone)]
pub struct Snapshots {
    folder: Arc<Folder>,
}

#[derive(Debug)]
struct Folder {
    files: Files,
    path: PathBuf,
    reserve_bytes: u64,
    /// Numbers the unfinished files of this process.
    begun: AtomicU64,
    /// Held while a snapshot becomes current.
    current: Mutex<Option<Snapshot>>,
    /// Whether the store was closed. Held, shared, while a writer changes
    /// anything in the folder.
    closed: RwLock<bool>,
}

/// Shown by whoever changes something in the folder: it is open, and stays so
/// while this is held.
struct Access<'a>(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'a, bool>);

impl Snapshots {
    /// Opens the folder `path`, removes what a crash may have left, and checks
    /// every byte of the current snapshot.
    pub(crate) fn open(files: &Files, path: &Path, reserve_bytes: u64) -> Result<Self, Error> {
        let mut newest: Option<(u64, PathBuf)> = None;
        let mut older = Vec::new();
        for file in files.list(path)? {
            match parse_name(&file)? {
                None => {
                    tracing::info!(path = %file.display(), "removing an unfinished snapshot");
                    older.push(file);
                }
                Some(index) => {
                    let previous = match &newest {
                        Some((newest, _)) if *newest > index => Some((index, file)),
                        _ => newest.replace((index, file)),
                    };
                    older.extend(previous.map(|(_, file)| file));
                }
            }
        }
        let current = match newest {
            None => None,
            Some((index, file)) => {
                let snapshot = Snapshot::load(files, &file)?;
                if snapshot.index() != index {
                    let reason = format!("it holds the snapshot of index {}", snapshot.index());
                    return Err(Error::damaged(&file, "the name", reason));
                }
                snapshot.open().check()?;
                Some(snapshot)
            }
        };
        // Only now that the newest is known to be good.
        remove_all(files, path, &older)?;
        Ok(Self {
            folder: Arc::new(Folder {
                files: files.clone(),
                path: path.to_owned(),
                reserve_bytes,
                begun: AtomicU64::new(0),
                current: Mutex::new(current),
                closed: RwLock::new(false),
            }),
        })
    }

    /// Ends all writing, waiting for the step that each writer may be in: one
    /// chunk, or making the file durable and current. What the unfinished ones
    /// leave is removed at the next opening.
    pub(crate) fn close(&self) {
        *self.folder.closed.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Starts a new snapshot file beside the current one. Several may be in the
    /// making at a time. [`Error::Full`] if the disk has no room,
    /// [`Error::Closed`] after the store was closed.
    pub fn begin(&self) -> Result<SnapshotWriter, Error> {
        let number = self.folder.begun.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path.join(format!("{number}.{UNFINISHED}"));
        SnapshotWriter::begin(Arc::clone(&self.folder), path)
    }

    /// The current snapshot, if there is one. Fails if its file was removed from
    /// the folder behind our back: a restart would not find it.
    pub fn current(&self) -> Result<Option<Snapshot>, Error> {
        let current = self.folder.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(snapshot) = &current
            && !self.folder.files.exists(&snapshot.path)
        {
            return Err(Error::damaged(&snapshot.path, "the current snapshot", "the file was removed while in use"));
        }
        Ok(current)
    }
}

impl Folder {
    /// Leave to change the folder, as long as the store is open.
    fn access(&self) -> Result<Access<'_>, Error> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(Error::Closed);
        }
        Ok(Access(closed))
    }

    /// Fails with [`Error::Full`] unless `bytes` fit besides the reserve.
    fn require_room(&self, bytes: usize) -> Result<(), Error> {
        if self.reserve_bytes == 0 {
            return Ok(());
        }
        self.files.require_room(&self.path, self.reserve_bytes + bytes as u64)
    }

    /// Makes a written file current, unless a newer one is.
    fn install(&self, access: &Access<'_>, writer: &mut SnapshotWriter, index: u64) -> Result<Snapshot, Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(newer) = current.as_ref().filter(|current| current.index() > index) {
            writer.discard(access);
            return Ok(newer.clone());
        }
        let target = self.path.join(format!("{index:020}.{FINISHED}"));
        writer.settle(&target)?;
        let snapshot = Snapshot::load(&self.files, &target)?;
        let previous = current.replace(snapshot.clone());
        if let Some(previous) = previous.filter(|previous| previous.path != target)
            && let Err(error) = remove_all(&self.files, &self.path, std::slice::from_ref(&previous.path))
        {
            tracing::warn!(%error, "an older snapshot could not be removed, the next start tries again");
        }
        Ok(snapshot)
    }
}

/// A finished snapshot. Stays readable while held, also after a newer one has
/// replaced it. Clones share the open file.
#[derive(Debug, Clone)]
pub struct Snapshot {
    path: PathBuf,
    file: Arc<Handle>,
    contents: Arc<Contents>,
}

impl Snapshot {
    fn load(files: &Files, path: &Path) -> Result<Self, Error> {
        let file = files.open_to_read(path)?;
        let contents = format::read_contents(path, &file)?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), contents: Arc::new(contents) })
    }

    /// What the caller stored with it.
    pub fn meta(&self) -> &[u8] {
        &self.contents.meta
    }

    /// The last log index it covers.
    pub fn index(&self) -> u64 {
        self.contents.index
    }

    /// Length of its content in bytes.
    pub fn length(&self) -> u64 {
        self.contents.length
    }

    /// Reads its content from the start. Readers are independent of each other.
    pub fn open(&self) -> SnapshotReader {
        SnapshotReader::new(self.path.clone(), Arc::clone(&self.file), Arc::clone(&self.contents))
    }
}

/// The index in the name of a finished snapshot; `None` for an unfinished one.
fn parse_name(path: &Path) -> Result<Option<u64>, Error> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let number = stem.and_then(|stem| stem.parse().ok());
    let extension = path.extension().and_then(|extension| extension.to_str());
    match (number, extension) {
        (Some(_), Some(UNFINISHED)) => Ok(None),
        (Some(index), Some(FINISHED)) => Ok(Some(index)),
        _ => Err(Error::damaged(path, "the name", "no file of this name is ever written into the folder of snapshots")),
    }
}

fn remove_all(files: &Files, folder: &Path, paths: &[PathBuf]) -> Result<(), Error> {
    for path in paths {
        files.remove(path)?;
    }
    if paths.is_empty() {
        return Ok(());
    }
    files.sync_folder(folder)
}
