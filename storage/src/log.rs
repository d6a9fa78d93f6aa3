//! The log of a replica.

use std::ops::Range;
use std::sync::Arc;

use crate::Error;

/// The longest payload of an entry, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position; entries have no gaps.
    pub index: u64,
    /// The term of the leader that made it.
    pub term: u64,
    /// Opaque here; at most [`MAX_PAYLOAD_BYTES`].
    pub payload: Vec<u8>,
}

/// Called exactly once, from the writer thread: with `Ok` after the write has
/// become durable, otherwise with the reason why it may not have. Must be quick
/// and must not wait for another write.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Whether the store can write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It can.
    Healthy,
    /// It waits for room on the disk, and goes on by itself.
    Full {
        /// Bytes free when last looked.
        free_bytes: u64,
        /// Bytes that must be free before writing goes on.
        needed_bytes: u64,
    },
    /// It has stopped for good; the replica must be restarted.
    Failed(Arc<str>),
}

/// A handle on the log. All clones share one log and one order of writes.
#[derive(Debug, Clone)]
pub struct Log {}

impl Log {
    /// Appends entries. They are readable when this returns; `done` is called
    /// when they are durable. They must follow the last entry without a gap (on
    /// an empty log: the last purged one; on a new log: start at 0), or nothing
    /// is accepted. After an error `done` is dropped without being called.
    pub fn append(&self, entries: Vec<Entry>, done: Done) -> Result<(), Error> {
        let _ = (entries, done);
        todo!()
    }

    /// Stores the vote. Seen by [`Log::vote`] at once, durable when `done` says so.
    pub fn save_vote(&self, vote: Vec<u8>, done: Done) {
        let _ = (vote, done);
        todo!()
    }

    /// Stores the committed marker: with the next group that is written, or by
    /// itself after half a second; never with a sync of its own.
    pub fn save_committed(&self, committed: Vec<u8>) {
        let _ = committed;
        todo!()
    }

    /// Drops the entry at `index` and all after it.
    pub fn truncate_from(&self, index: u64, done: Done) {
        let _ = (index, done);
        todo!()
    }

    /// Drops everything through `index`, which may lie beyond the last entry,
    /// and stores `marker` with it. Reads refuse these entries at once; the
    /// space is given back little by little. An `index` at or below what is
    /// purged changes nothing.
    pub fn purge_through(&self, index: u64, marker: Vec<u8>, done: Done) {
        let _ = (index, marker, done);
        todo!()
    }

    /// The entries of `range` that exist, without gaps from its start, cut off
    /// where their payloads exceed `max_bytes` (but at least one).
    pub fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, Error> {
        let _ = (range, max_bytes);
        todo!()
    }

    /// Index and term of the last entry, if the log holds any.
    pub fn last(&self) -> Option<(u64, u64)> {
        todo!()
    }

    /// The last entry, if the log holds any.
    pub fn last_entry(&self) -> Result<Option<Entry>, Error> {
        todo!()
    }

    /// The vote last saved.
    pub fn vote(&self) -> Option<Vec<u8>> {
        todo!()
    }

    /// The committed marker last saved.
    pub fn committed(&self) -> Option<Vec<u8>> {
        todo!()
    }

    /// The last purged index and its marker.
    pub fn purged(&self) -> Option<(u64, Vec<u8>)> {
        todo!()
    }

    /// Whether the store can write.
    pub fn condition(&self) -> Condition {
        todo!()
    }

    /// Number of entries since the last purged one.
    pub fn entries_since_purge(&self) -> u64 {
        todo!()
    }

    /// Payload bytes of the entries since the last purged one.
    pub fn bytes_since_purge(&self) -> u64 {
        todo!()
    }
}
