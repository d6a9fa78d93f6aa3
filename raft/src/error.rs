//! Why a replica did not start, and why it did not answer.

use crate::config::ConfigError;
use crate::ids::{LogIndex, ReplicaId};
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
    /// The replicas have agreed on a format that this one does not read.
    #[error(
        "the data is in format {format}, but this replica reads {from} to {to}; \
         start it with a build, or a setting, that reads format {format}"
    )]
    FormatNotRead {
        /// The format that was agreed on.
        format: u16,
        /// The lowest that this replica reads.
        from: u16,
        /// The highest that this replica reads.
        to: u16,
    },
    /// This replica came to another state than a majority of the voters. What it holds is wrong,
    /// and it does not start again with it.
    #[error(
        "this replica's state differs from that of a majority of the voters at entry {index}; remove it from the \
         cluster, delete its data folder and let it join anew"
    )]
    Diverged {
        /// The entry at which they were compared.
        index: LogIndex,
    },
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
    /// The replica was started alone, but it has others.
    #[error("the cluster of replica {replica} has {members} members, but this replica has no address for the others")]
    OthersMissing {
        /// The replica.
        replica: ReplicaId,
        /// How many its log names.
        members: usize,
    },
    /// There was a log, and it is gone.
    #[error(
        "the log of replica {replica} is missing in {}; what it acknowledged may be lost, so it cannot go on under this \
         number: let it join anew with an empty data folder (`berth cluster add --replace {replica}`), or restore a backup",
        folder.display()
    )]
    LogLost {
        /// The folder of the log.
        folder: PathBuf,
        /// The replica.
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
    /// The log no longer has its first entries, and no snapshot has them: it was removed.
    #[error(
        "{}: no snapshot holds the entries up to {purged}, which the log no longer has; restore the data folder \
         from a backup, or move it away and let this replica join again under a new id", folder.display()
    )]
    SnapshotLost {
        /// The folder of snapshots.
        folder: PathBuf,
        /// The last entry that the log no longer has.
        purged: LogIndex,
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
    /// Accepted, but the time was up before the outcome was known; or the leader was lost, and
    /// the call is not remembered. May have happened, or may still happen.
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

/// Why the format was not raised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RaiseError {
    /// A member does not read it. Replace its build, or its setting, first.
    #[error("replica {member} reads formats {from} to {to}, but not {wanted}; start it with a build that does")]
    NotRead {
        /// The member.
        member: ReplicaId,
        /// The lowest that it reads.
        from: u16,
        /// The highest that it reads.
        to: u16,
        /// The format that was asked for.
        wanted: u16,
    },
    /// A member did not say what it reads. All have to be there; remove it if it is gone for good.
    #[error("replica {member} did not say which formats it reads: {reason}")]
    MemberSilent {
        /// The member.
        member: ReplicaId,
        /// Why there is no answer, for the log.
        reason: String,
    },
    /// Formats are never lowered.
    #[error("format {agreed} is agreed on and cannot be lowered to {to}")]
    Lower {
        /// The format that was agreed on.
        agreed: u16,
        /// The format that was asked for.
        to: u16,
    },
    /// Only the leader raises the format; ask there.
    #[error("this replica does not lead; ask the leader")]
    NotLeader {
        /// The leader, if it is known.
        leader: Option<ReplicaId>,
    },
    /// It was not committed in time; it may still be.
    #[error("the format was not raised within {} ms", waited.as_millis())]
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// Members are being changed, and a new one might not read it.
    #[error("members are being changed; try again when that is done")]
    MembersChange,
    /// The replica has stopped.
    #[error(transparent)]
    Stopped(StopReason),
}
