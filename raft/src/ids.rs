//! The newtypes that cross this crate's edge: positions in the log, moments, replicas.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A position in the replicated log. The first entry has index 0; positions are never reused for
/// another committed entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogIndex(pub u64);

/// A moment in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

/// The id of a replica. It belongs to one data folder for ever: a replica that lost its disk
/// comes back under a new id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub u64);

/// Where and when an entry was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The entry's position in the log.
    pub index: LogIndex,
    /// The clock of the leader that proposed the entry, raised where needed so that it never runs
    /// backwards from one entry to the next, also across elections and restarts. While the log is
    /// ahead of that clock, it goes on at half the speed of time.
    pub at: UnixMillis,
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
