//! Why a replica did not start, and why it did not answer.

use crate::config::ConfigError;
use crate::ids::ReplicaId;
use std::path::PathBuf;
use std::time::Duration;

/// Why a replica has stopped by itself or was stopped. Cheap to clone: every later call gets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// [`Replica::stop`](crate::Replica::stop) was called.
    #[error("the replica was stopped")]
    Requested,
    /// Its storage or its own state failed. Restart after the cause is removed; nothing that was
    /// acknowledged is lost by the stop itself.
    #[error("the replica stopped because of a failure: {0}")]
    Failed(String),
}

/// Why a replica did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is outside its bounds.
    #[error("invalid configuration")]
    Config(#[from] ConfigError),
    /// The data folder cannot be opened; the source says which file and what to do.
    #[error("cannot open the data folder {}", folder.display())]
    Storage {
        /// The data folder.
        folder: PathBuf,
        /// What storage said.
        #[source]
        source: berth_storage::Error,
    },
    /// This replica is not among the members: those given, or those that its log tells.
    #[error(
        "replica {replica} is not a member of the cluster (any more); let it join anew, with an empty folder, under a new id"
    )]
    NotAMember {
        /// This replica's id.
        replica: ReplicaId,
    },
    /// The folder belongs to a replica of another id.
    #[error(
        "the data folder {} belongs to replica {found}, not to {configured}; \
         use the right folder or the right id", folder.display()
    )]
    ForeignFolder {
        /// The data folder.
        folder: PathBuf,
        /// The id the folder was made for.
        found: ReplicaId,
        /// The id in the configuration.
        configured: ReplicaId,
    },
    /// The consensus core refused to start or stopped while starting.
    #[error("the replica stopped while starting: {0}")]
    Stopped(StopReason),
    /// The state was not current in time.
    #[error("the state was not current after {} ms ({condition})", waited.as_millis())]
    NotReady {
        /// How long was waited.
        waited: Duration,
        /// What storage says about itself.
        condition: String,
    },
}

/// Why a proposal was not acknowledged. Each variant says whether the commands may have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// There is no leader to take it. Did not happen; try again after `retry_after`.
    #[error("no leader at the moment; try again in {} ms", retry_after.as_millis())]
    NoLeader {
        /// When a leader can be expected.
        retry_after: Duration,
    },
    /// The disk has no room. Did not happen; works again by itself when there is room.
    #[error("the disk is full: {free_bytes} bytes are free, {needed_bytes} are needed")]
    StorageFull {
        /// What is free, in bytes.
        free_bytes: u64,
        /// What must be free, in bytes.
        needed_bytes: u64,
    },
    /// Too many commands wait already. Did not happen; try again later.
    #[error("overloaded: {waiting_commands} commands wait already")]
    Overloaded {
        /// How many wait.
        waiting_commands: usize,
    },
    /// The commands of one call must fit into one entry. Did not happen, and never will.
    #[error("the commands take {bytes} bytes, but an entry holds {bytes_max}")]
    TooLarge {
        /// What they take, encoded.
        bytes: usize,
        /// What fits.
        bytes_max: usize,
    },
    /// Accepted, but the leader was lost or the time was up before the outcome was known. May
    /// have happened, or may still happen.
    #[error("the outcome is unknown: the commands may or may not have been applied")]
    OutcomeUnknown,
    /// The replica has stopped. Did not happen.
    #[error(transparent)]
    Stopped(StopReason),
}

/// Why a linearizable read was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader could confirm what is current. Try again after `retry_after`, or show
    /// [`Replica::local`](crate::Replica::local) as stale.
    #[error("no leader at the moment; try again in {} ms", retry_after.as_millis())]
    NoLeader {
        /// When a leader can be expected.
        retry_after: Duration,
    },
    /// Too many reads wait already. Try again later.
    #[error("overloaded: {waiting_reads} reads wait already")]
    Overloaded {
        /// How many wait.
        waiting_reads: usize,
    },
    /// The confirmation did not come in time.
    #[error("the read was not confirmed within {} ms", waited.as_millis())]
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// The replica has stopped.
    #[error(transparent)]
    Stopped(StopReason),
}

/// Why a snapshot was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It was not finished in time; it may still finish, for instance when the disk has room.
    #[error("the snapshot was not finished within {} ms", waited.as_millis())]
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// The replica has stopped.
    #[error(transparent)]
    Stopped(StopReason),
}
