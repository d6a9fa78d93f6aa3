//! What replicas keep in common besides the state machine. It goes with every snapshot.

use crate::calls::Calls;
use crate::codec::{SnapshotExtra, SnapshotHeader};
use crate::formats;
use crate::ids::LogIndex;
use crate::trail::Trail;

/// The part of the replicated state that is this crate's own. With format 1 there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replicated {
    /// The format that was agreed on.
    pub(crate) format: u16,
    pub(crate) calls: Calls,
    pub(crate) trail: Trail,
}

impl Replicated {
    /// Before the first entry.
    pub(crate) fn new(hash_version: u32) -> Self {
        Self { format: formats::FIRST, calls: Calls::default(), trail: Trail::begin(LogIndex(0), hash_version) }
    }

    /// As a snapshot has it. A trail that this build would go on with differently begins anew.
    pub(crate) fn from_snapshot(header: &SnapshotHeader, calls: Calls, hash_version: u32) -> Self {
        let index = header.meta.last_log_id.map_or(LogIndex(0), |last| LogIndex(last.index));
        let trail = header.extra.map(|extra| extra.trail).filter(|trail| trail.version == hash_version);
        let trail = trail.unwrap_or_else(|| Trail::begin(index, hash_version));
        Self { format: header.format(), calls, trail }
    }

    /// Whether calls are remembered and entries hashed.
    pub(crate) fn has_calls(&self) -> bool {
        self.format >= formats::CALLS
    }

    /// What the header of a snapshot tells of it.
    pub(crate) fn snapshot_extra(&self, content_hash: u64) -> Option<SnapshotExtra> {
        self.has_calls().then_some(SnapshotExtra { format: self.format, trail: self.trail, content_hash })
    }
}
