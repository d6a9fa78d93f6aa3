//! One open data folder.

use std::path::{Path, PathBuf};

use crate::{Error, Log, Snapshots};

/// How a store uses memory and disk.
#[derive(Debug, Clone)]
pub struct Options {
    /// Memory for pages of the log database, in bytes. Default 64 MiB.
    pub cache_bytes: u64,
    /// Memory for recent entries, which are then read without the disk, in
    /// bytes. Entries that wait to be written are held besides. Default 32 MiB.
    pub window_bytes: u64,
    /// Room on the disk that is left untouched, in bytes: writes wait when less
    /// is free. Default 64 MiB.
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
/// queued, stops the writer thread and releases the folder, also when clones of
/// [`Log`] live on (their calls then answer [`Error::Closed`]).
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    log: Log,
    snapshots: Snapshots,
}

impl Store {
    /// Opens the data folder, or makes one where `folder` is missing or empty,
    /// and checks every record in it. Takes as long as reading the log and the
    /// current snapshot.
    pub fn open(folder: &Path, options: Options) -> Result<Self, Error> {
        let _ = (folder, options);
        todo!()
    }

    /// The log. Clones share the same log.
    pub fn log(&self) -> Log {
        self.log.clone()
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
    /// tells whether all of it became durable.
    pub fn close(self) -> Result<(), Error> {
        todo!()
    }
}
