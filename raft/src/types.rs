//! The consensus library's view of this crate's types. Nothing here leaves the crate.

use crate::ids::{LogIndex, ReplicaId, UnixMillis};
use crate::members::Member;
use crate::runtime::Runtime;
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
        AsyncRuntime = Runtime,
);

pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;

/// What one entry asks for, with the leader's clock.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) at: UnixMillis,
    pub(crate) work: Work,
}

/// What is done with an entry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Work {
    /// The calls are applied, in order. None, or one without commands, is a tick.
    Calls(Vec<Call>),
    /// From here on entries and snapshots are written in this format.
    RaiseFormat(u16),
}

/// The commands of one proposal, encoded. They happen together and in this order.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// What it is remembered by; without one, nothing tells a repetition from another call.
    pub(crate) id: Option<CallId>,
    pub(crate) commands: Vec<Vec<u8>>,
}

/// Which call of which replica this is, however often and through whomever it is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallId {
    /// The replica that was asked.
    pub(crate) replica: ReplicaId,
    /// Which run of its process; a later one has a larger number.
    pub(crate) incarnation: u64,
    /// Which call of this run.
    pub(crate) sequence: u64,
    /// All calls of this run below are answered: nobody waits for them, and they may be forgotten.
    pub(crate) answered_below: u64,
}

impl Batch {
    /// How many commands it holds.
    pub(crate) fn command_count(&self) -> usize {
        match &self.work {
            Work::Calls(calls) => calls.iter().map(|call| call.commands.len()).sum(),
            Work::RaiseFormat(_) => 0,
        }
    }

    /// The bytes of its commands.
    pub(crate) fn command_bytes(&self) -> u64 {
        match &self.work {
            Work::Calls(calls) => calls.iter().flat_map(|call| &call.commands).map(|bytes| bytes.len() as u64).sum(),
            Work::RaiseFormat(_) => 0,
        }
    }
}

// Commands may hold what must not be in a log file: only their number is shown.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.work {
            Work::Calls(_) => write!(f, "{} commands at {}", self.command_count(), self.at),
            Work::RaiseFormat(to) => write!(f, "format {to} at {}", self.at),
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands of {:?}", self.commands.len(), self.id)
    }
}

/// What became of one call of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CallAnswer<O> {
    /// It was applied with this entry.
    Applied(Vec<O>),
    /// It had been applied with an earlier entry, and came to this.
    AppliedBefore { index: LogIndex, outcomes: Vec<O> },
    /// It was not applied here, and whether it was before is no longer known: nobody should wait
    /// for it, or its replica is no member.
    Forgotten,
    /// It was not applied: its replica has too many calls that are not answered.
    TooMany,
}

/// What applying an entry gave: a `Vec<CallAnswer<Outcome>>` when somebody here waits for it.
pub(crate) struct Answer(Option<Box<dyn Any + Send + Sync>>);

impl Answer {
    /// The answer of an entry that carries no calls.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn calls<O: Send + Sync + 'static>(answers: Vec<CallAnswer<O>>) -> Self {
        Self(Some(Box::new(answers)))
    }

    /// The answers of the calls, if this is an answer of the machine with outcomes `O`.
    pub(crate) fn into_calls<O: 'static>(self) -> Option<Vec<CallAnswer<O>>> {
        self.0?.downcast::<Vec<CallAnswer<O>>>().ok().map(|answers| *answers)
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
