//! Snapshots as files.

use std::io::{self, Read, Write};

use crate::Error;

/// The snapshots of a data folder. The newest is kept.
#[derive(Debug, Clone)]
pub struct Snapshots;

impl Snapshots {
    /// Starts a new snapshot file beside the current one. Several may be in the
    /// making at a time.
    pub fn begin(&self) -> Result<SnapshotWriter, Error> {
        todo!()
    }

    /// The current snapshot, if there is one.
    pub fn current(&self) -> Result<Option<Snapshot>, Error> {
        todo!()
    }
}

/// A snapshot being written. Dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub struct SnapshotWriter;

impl SnapshotWriter {
    /// Makes the snapshot durable and current, then removes older ones. `index`
    /// is the last log index it covers, `meta` whatever the caller wants back
    /// with it (at most 1 MiB). Returns the snapshot that is current afterwards:
    /// this one, or a newer one that was finished in the meantime.
    pub fn finish(self, meta: Vec<u8>, index: u64) -> Result<Snapshot, Error> {
        let _ = (meta, index);
        todo!()
    }
}

/// A full disk is reported as [`io::ErrorKind::StorageFull`].
impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = bytes;
        todo!()
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A finished snapshot. Stays readable while held, also after a newer one has
/// replaced it.
#[derive(Debug, Clone)]
pub struct Snapshot {}

impl Snapshot {
    /// What the caller stored with it.
    pub fn meta(&self) -> &[u8] {
        todo!()
    }
    /// The last log index it covers.
    pub fn index(&self) -> u64 {
        todo!()
    }
    /// Length of its content in bytes.
    pub fn length(&self) -> u64 {
        todo!()
    }
    /// Reads its content from the start. Readers are independent of each other.
    pub fn open(&self) -> SnapshotReader {
        todo!()
    }
}

/// Streams the content of a snapshot and checks it: bytes that are not what was
/// written end in an error of kind [`io::ErrorKind::InvalidData`] that names the
/// file, before any of the chunk they stand in is handed out; so does a file
/// that ends early.
#[derive(Debug)]
pub struct SnapshotReader;

impl Read for SnapshotReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let _ = buffer;
        todo!()
    }
}
