//! One open data folder.

use std::path::{Path, PathBuf};

use crate::codec::{self, Kind};
use crate::files::{Files, Lock};
use crate::log::{Place, Running};
use crate::memory::Disk;
use crate::{Error, Log, Snapshots};

/// The layout of a data folder; raised when files are added or move.
const LAYOUT: u32 = 1;

/// How a store uses memory and disk.
#[derive(Debug, Clone)]
pub struct Options {
    /// Memory for pages of the log database, in bytes. Default 64 MiB.
    pub cache_bytes: u64,
    /// Memory for recent entries, which are then read without the disk, in
    /// bytes. Entries that wait to be written are held besides. Default 32 MiB.
    pub window_bytes: u64,
    /// Room on the disk that is left untouched, in bytes: entries and snapshots
    /// are not written when less is free, votes and removals when less than half
    /// of it is. Default 64 MiB. With 0 the disk is filled to the last byte,
    /// which costs a check of the whole log each time that happens.
    pub reserve_bytes: u64,
    /// Payload bytes that may wait to be written; more is refused with
    /// [`Error::Overloaded`]. Default 64 MiB.
    pub queue_bytes: u64,
    /// Writes that may wait. Default 16,384.
    pub queue_writes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            window_bytes: 32 << 20,
            reserve_bytes: 64 << 20,
            queue_bytes: 64 << 20,
            queue_writes: 16 << 10,
        }
    }
}

/// An open data folder; one process at a time. Dropping it writes what is
/// queued, stops the writer thread, waits for the step that a snapshot's writer
/// is in and releases the folder, also when clones of [`Log`] or [`Snapshots`]
/// live on (their calls then answer [`Error::Closed`]).
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    // Before the lock: fields are dropped in this order.
    log: Running,
    snapshots: Snapshots,
    _lock: Lock,
}

impl Store {
    /// Opens the data folder, or makes one where `folder` is missing or empty,
    /// and checks every record in it. Takes as long as reading the log and the
    /// current snapshot.
    pub fn open(folder: &Path, options: Options) -> Result<Self, Error> {
        Self::open_on(&Files::System, folder, options)
    }

    /// The same on a simulated disk, which outlives the store: what is opened
    /// there next finds what the disk kept. No thread writes: the disk says when
    /// the writer gets to its work (see [`Disk`]). [`Error::Locked`] while
    /// another store is open there.
    pub fn in_memory(disk: &Disk, folder: &Path, options: Options) -> Result<Self, Error> {
        let mount = disk.mount().ok_or_else(|| Error::Locked { path: folder.join("LOCK") })?;
        Self::open_on(&Files::Memory(mount), folder, options)
    }

    fn open_on(files: &Files, folder: &Path, options: Options) -> Result<Self, Error> {
        // First of all in memory, where what was mounted must be released again.
        let unlocks = matches!(files, Files::Memory(_)).then(|| files.lock(folder)).transpose()?;
        files.create_folder(folder)?;
        let lock = match unlocks {
            Some(lock) => lock,
            None => files.lock(&folder.join("LOCK"))?,
        };
        let place = Place { files: files.clone(), folder: folder.join("log"), synced: folder.join("synced") };
        let snapshots = folder.join("snapshots");
        let format = folder.join("format");
        // The format is written last: without it nothing was ever acknowledged.
        if files.exists(&format) {
            check_format(files, &format)?;
        } else {
            require_unused(files, folder, &snapshots)?;
            tracing::info!(folder = %folder.display(), "making a new data folder");
            files.create_folder(&snapshots)?;
            Running::create(&place, &options)?;
            write_format(files, &format)?;
        }
        for path in [&place.folder, &snapshots] {
            if !files.is_folder(path) {
                return Err(Error::damaged(path, "the folder", "it is missing"));
            }
        }
        let snapshots = Snapshots::open(files, &snapshots, options.reserve_bytes)?;
        let log = Running::open(&place, options)?;
        Ok(Self { folder: folder.to_owned(), log, snapshots, _lock: lock })
    }

    /// The log. Clones share the same log.
    pub fn log(&self) -> Log {
        self.log.log()
    }

    /// The snapshots. Clones share the same folder.
    pub fn snapshots(&self) -> Snapshots {
        self.snapshots.clone()
    }

    /// The data folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes what is queued and closes the folder; the same as dropping, but
    /// tells whether all of it became durable. On a full disk it does not wait
    /// for room: what is queued is reported as failed.
    pub fn close(mut self) -> Result<(), Error> {
        self.snapshots.close();
        self.log.close()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // While the lock is still held: whoever opens the folder next is alone in it.
        self.snapshots.close();
    }
}

/// Without the file `format`, a folder may hold what an interrupted first start
/// leaves: nothing that was ever used.
fn require_unused(files: &Files, folder: &Path, snapshots: &Path) -> Result<(), Error> {
    for path in files.list(folder)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let expected = match name {
            // Every new ext4 file system has lost+found. What is in the log is
            // looked at before it is used.
            Some("LOCK" | "synced" | "synced.new" | "format.new" | "log.new" | "log" | "lost+found") => true,
            Some("snapshots") => files.list(snapshots)?.is_empty(),
            _ => false,
        };
        if !expected {
            return Err(Error::damaged(
                &folder.join("format"),
                "the data folder",
                format!("the file is missing, and {} is there", path.display()),
            ));
        }
    }
    Ok(())
}

fn write_format(files: &Files, path: &Path) -> Result<(), Error> {
    let beside = path.with_extension("new");
    let file = files.create(&beside)?;
    let format = codec::encode(Kind::Format, &LAYOUT, 5);
    file.write_all_at(&format, 0).map_err(|error| Error::io("write", &beside, error))?;
    files.replace(&file, &beside, path)
}

fn check_format(files: &Files, path: &Path) -> Result<(), Error> {
    let bytes = files.read(path)?;
    let layout: u32 = codec::decode(Kind::Format, &bytes)
        .map_err(|defect| defect.into_error(path, "the format of the data folder"))?;
    if layout != LAYOUT {
        return Err(Error::Version {
            path: path.to_owned(),
            what: "the data folder".to_owned(),
            found: layout,
            supported: LAYOUT,
        });
    }
    Ok(())
}
