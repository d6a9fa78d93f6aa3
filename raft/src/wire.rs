//! The requests that replicas send each other, and the answers.
//!
//! Layout as everything in [`codec`](crate::codec): a version, then bincode. A request of another
//! version is refused with [`Answer::Refused`], which every version keeps at the same place.
//!
//! A message has the oldest version that knows it. Requests of version 2 are sent only once the
//! replicas have agreed on format 2: then all members know them, and no earlier build can come
//! back. The one that asks for the formats comes before, and may be refused.

use crate::checkpoints::RawCheckpoint;
use crate::codec::{self, RawCall, RawEntry, RawLogId, RawVote};
use bincode::{Decode, Encode};
use std::ops::RangeInclusive;

/// The first version of requests and answers.
const WIRE_VERSION: u16 = 1;

/// The version that knows of calls.
const WIRE_VERSION_CALLS: u16 = 2;

/// What this build reads.
const WIRE_VERSIONS: RangeInclusive<u16> = WIRE_VERSION..=WIRE_VERSION_CALLS;

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
    /// A replica asks which formats the receiver reads.
    Formats,
    /// A replica that does not lead passes on several calls. From version 2 on.
    Calls { calls: Vec<RawCall> },
    /// A replica says what it came to, and asks for the same. From version 2 on.
    Checkpoints { mine: Vec<RawCheckpoint> },
    /// The leader asks how much the receiver has of a snapshot with this header. From version 2 on.
    SnapshotOffer { header: Vec<u8>, length: u64 },
    /// The leader sends a part of the snapshot that it has offered. From version 2 on.
    SnapshotPart {
        /// The hash of its header.
        snapshot: u64,
        offset: u64,
        bytes: Vec<u8>,
        /// With the last part: the sender's vote.
        end: Option<RawVote>,
    },
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
    /// The formats that the replica reads.
    Formats {
        from: u16,
        to: u16,
    },
    /// What became of each call, in order. From version 2 on.
    Calls {
        replies: Vec<CallReply>,
    },
    /// What the receiver came to. From version 2 on.
    Checkpoints {
        mine: Vec<RawCheckpoint>,
    },
    /// The receiver has as much of the offered snapshot. From version 2 on.
    SnapshotFrom {
        offset: u64,
    },
}

/// What became of a call that was passed on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum CallReply {
    /// It was applied with this entry; the outcomes are encoded one by one.
    Proposed {
        index: u64,
        outcomes: Vec<Vec<u8>>,
    },
    Refused(Refusal),
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
    /// The receiver is installing this very snapshot.
    SnapshotBusy,
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
    /// The oldest version that knows it. What `Formats` asks for is how to find out, so it claims
    /// to be of the first.
    fn version(&self) -> u16 {
        match self {
            Self::Append { .. }
            | Self::Vote(_)
            | Self::PreVote(_)
            | Self::TransferLeader { .. }
            | Self::SnapshotChunk { .. }
            | Self::Propose { .. }
            | Self::ReadIndex
            | Self::Formats => WIRE_VERSION,
            Self::Calls { .. } | Self::Checkpoints { .. } | Self::SnapshotOffer { .. } | Self::SnapshotPart { .. } => {
                WIRE_VERSION_CALLS
            }
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode_versioned(self.version(), self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        let what = "a request of another replica";
        let (_, body) = codec::split_version(&WIRE_VERSIONS, what, bytes)?;
        codec::decode_body(what, body)
    }
}

impl Answer {
    fn version(&self) -> u16 {
        match self {
            Self::Refused(_)
            | Self::Append(_)
            | Self::Vote { .. }
            | Self::TransferLeader(_)
            | Self::ChunkTaken
            | Self::Snapshot { .. }
            | Self::Proposed { .. }
            | Self::ReadIndex { .. }
            | Self::Formats { .. } => WIRE_VERSION,
            Self::Calls { .. } | Self::Checkpoints { .. } | Self::SnapshotFrom { .. } => WIRE_VERSION_CALLS,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode_versioned(self.version(), self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        let what = "an answer of another replica";
        let (_, body) = codec::split_version(&WIRE_VERSIONS, what, bytes)?;
        codec::decode_body(what, body)
    }
}
