//! The consensus library's view of this crate's types. Nothing here leaves the crate.

use crate::ids::UnixMillis;
use crate::members::Member;
use std::any::Any;
use std::fmt;

openraft::declare_raft_types!(
    /// One log for all state machines: commands are bytes, outcomes are opaque.
    pub(crate) Types:
        D = Batch,
        R = Answer,
        NodeId = u64,
        Node = Member,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = TokioRuntime,
);

// The library marks its own default runtime as deprecated in favour of a crate of its own that
// holds the same type.
#[allow(deprecated)]
type TokioRuntime = openraft::impls::TokioRuntime;

pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;

/// The commands of one entry, encoded, with the leader's clock.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) at: UnixMillis,
    pub(crate) commands: Vec<Vec<u8>>,
}

// Commands may hold what must not be in a log file: only their number is shown.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands at {}", self.commands.len(), self.at)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What applying an entry gave: a `Vec<Outcome>` when somebody here waits for it.
pub(crate) struct Answer(Option<Box<dyn Any + Send + Sync>>);

impl Answer {
    /// The answer of an entry that carries no commands of a state machine.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn outcomes<O: Send + Sync + 'static>(outcomes: Vec<O>) -> Self {
        Self(Some(Box::new(outcomes)))
    }

    /// The outcomes, if this is an answer of the machine with outcomes `O`.
    pub(crate) fn into_outcomes<O: 'static>(self) -> Option<Vec<O>> {
        self.0?.downcast::<Vec<O>>().ok().map(|outcomes| *outcomes)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

/// A log id from its parts.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}
