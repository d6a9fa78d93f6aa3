//! What a replica says about itself.

use crate::checkpoints::CheckpointStatus;
use crate::error::StopReason;
use crate::ids::{LogIndex, ReplicaId, UnixMillis};
use std::fmt;
use std::sync::Arc;

/// Whether storage can write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageCondition {
    /// It can.
    Healthy,
    /// It waits for room on the disk and goes on by itself.
    Full {
        /// What was free when last looked, in bytes.
        free_bytes: u64,
        /// What must be free before writing goes on, in bytes.
        needed_bytes: u64,
    },
    /// It has stopped for good; the replica must be restarted.
    Failed(Arc<str>),
}

impl From<berth_storage::Condition> for StorageCondition {
    fn from(condition: berth_storage::Condition) -> Self {
        match condition {
            berth_storage::Condition::Healthy => Self::Healthy,
            berth_storage::Condition::Full { free_bytes, needed_bytes } => Self::Full { free_bytes, needed_bytes },
            berth_storage::Condition::Failed(reason) => Self::Failed(reason),
        }
    }
}

impl fmt::Display for StorageCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => write!(f, "storage is healthy"),
            Self::Full { free_bytes, needed_bytes } => {
                write!(f, "the disk is full: {free_bytes} bytes are free, {needed_bytes} are needed")
            }
            Self::Failed(reason) => write!(f, "storage failed: {reason}"),
        }
    }
}

/// A replica's own account of itself at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub replica: ReplicaId,
    /// The leader, as far as this replica knows.
    pub leader: Option<ReplicaId>,
    /// The current term: grows with each election.
    pub term: u64,
    /// The voting members, in order.
    pub voters: Vec<ReplicaId>,
    /// The format of the log and of snapshots that the replicas have agreed on, as far as this one
    /// has applied.
    pub format: u16,
    /// The last entry in the log, committed or not.
    pub last_log: Option<LogIndex>,
    /// The last entry applied to the published state.
    pub applied: Option<LogIndex>,
    /// The moment up to which the published state has advanced.
    pub applied_at: UnixMillis,
    /// The last entry that the current snapshot covers.
    pub snapshot: Option<LogIndex>,
    /// The last entry dropped from the log.
    pub purged: Option<LogIndex>,
    /// How what this replica came to compares with the others.
    pub checkpoints: CheckpointStatus,
    /// Whether storage can write.
    pub storage: StorageCondition,
    /// Why the replica has stopped, if it has.
    pub stopped: Option<StopReason>,
}

impl Status {
    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.leader == Some(self.replica)
    }
}
