//! The requests that replicas send each other, and the answers.
//!
//! Layout as everything in [`codec`](crate::codec): a version, then bincode. A request of another
//! version is refused with [`Answer::Refused`], which every version keeps at the same place.

use crate::codec::{self, RawEntry, RawLogId, RawVote};
use bincode::{Decode, Encode};

/// The version of requests and answers.
const WIRE_VERSION: u16 = 1;

/// What one replica asks another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Request {
    /// The leader sends entries, or a sign of life.
    Append { vote: RawVote, previous: Option<RawLogId>, entries: Vec<RawEntry>, committed: Option<RawLogId> },
    /// A candidate asks for a vote.
    Vote(Ballot),
    /// A replica asks whether it would get a vote.
    PreVote(Ballot),
    /// The leader hands over to the receiver.
    TransferLeader { vote: RawVote, to: u64, last: Option<RawLogId> },
    /// The leader sends a part of a snapshot. Parts come in order; the first has offset 0.
    SnapshotChunk {
        transfer: u64,
        offset: u64,
        bytes: Vec<u8>,
        /// With the last part: what makes it a snapshot.
        end: Option<SnapshotEnd>,
    },
    /// A replica that does not lead passes on the commands of one proposal.
    Propose { commands: Vec<Vec<u8>> },
    /// A replica that does not lead asks up to where a read must see.
    ReadIndex,
}

/// What a candidate shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Ballot {
    pub(crate) vote: RawVote,
    pub(crate) last: Option<RawLogId>,
    pub(crate) leadership_transfer: bool,
}

/// The end of a snapshot's transfer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SnapshotEnd {
    pub(crate) vote: RawVote,
    /// The header stored with the snapshot.
    pub(crate) meta: Vec<u8>,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Answer {
    /// The request was not carried out.
    Refused(Refusal),
    Append(AppendAnswer),
    Vote {
        vote: RawVote,
        granted: bool,
        last: Option<RawLogId>,
    },
    TransferLeader(TransferAnswer),
    /// The part was taken; more are expected.
    ChunkTaken,
    /// The whole snapshot was looked at; `vote` tells whether the sender still leads.
    Snapshot {
        vote: RawVote,
    },
    /// The commands were applied; the outcomes are encoded one by one.
    Proposed {
        index: u64,
        outcomes: Vec<Vec<u8>>,
    },
    /// Reads must see at least this entry.
    ReadIndex {
        index: u64,
    },
}

/// Why a request was not carried out. All but `Unknown` say: nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Refusal {
    /// The bytes make no sense to the receiver.
    Garbage(String),
    /// The receiver does not lead, or cannot confirm that it does.
    NoLeader,
    StorageFull {
        free_bytes: u64,
        needed_bytes: u64,
    },
    Overloaded {
        waiting_commands: u64,
    },
    TooLarge {
        bytes: u64,
        bytes_max: u64,
    },
    /// Accepted, but the outcome is not known.
    Unknown,
    /// The receiver has stopped.
    Stopped(String),
    /// A part of a snapshot came out of order: begin again.
    SnapshotOutOfOrder,
    /// The receiver could not store the part.
    SnapshotNotStored(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum AppendAnswer {
    Success,
    PartialSuccess(Option<RawLogId>),
    Conflict,
    HigherVote(RawVote),
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum TransferAnswer {
    Accepted,
    VoteChanged { expected: RawVote, actual: RawVote },
    LogNotFlushed { expected: Option<RawLogId>, actual: Option<RawLogId> },
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode_versioned(WIRE_VERSION, self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        codec::decode_versioned(WIRE_VERSION, "a request of another replica", bytes)
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode_versioned(WIRE_VERSION, self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        codec::decode_versioned(WIRE_VERSION, "an answer of another replica", bytes)
    }
}
