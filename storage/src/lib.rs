//! What a replica keeps on disk: the Raft log, the vote, the committed and the
//! purged marker, and snapshots.
//!
//! The crate knows bytes and indexes only: nothing of consensus, nothing of
//! sessions. It is synchronous; a thread of its own writes.
//!
//! ```text
//! <folder>/LOCK         held while the store is open
//!          format       version of the folder's layout
//!          synced       number of the last group known to be durable
//!          log/         entries, vote, markers (sled)
//!          snapshots/   one finished snapshot, and those being written
//! ```
//!
//! Rules that everything here keeps:
//!
//! - a write is reported as done only after it survives a power cut;
//! - all writes, votes included, reach the disk in the order of the calls;
//! - what comes back from disk is what was written, or an error: every record
//!   carries a version, its identity and a checksum;
//! - nothing is thrown away silently. What a crash may leave behind and opening
//!   removes, with a line in the log: unfinished snapshot files, and the parts
//!   of a last entry that nobody was told was stored;
//! - a full disk makes writes wait, and they go on by themselves; every other
//!   I/O error stops the store for good.

mod codec;
mod durable;
mod error;
mod files;
mod log;
pub mod memory;
mod snapshots;
mod store;
#[cfg(test)]
mod testing;

pub use error::Error;
pub use log::{Condition, Done, Entry, Log, MAX_MARKER_BYTES, MAX_PAYLOAD_BYTES};
pub use snapshots::{Snapshot, SnapshotReader, SnapshotWriter, Snapshots};
pub use store::{Options, Store};
