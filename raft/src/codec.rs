//! The bytes of everything this crate stores or sends.
//!
//! Layout: `[version u16, little endian][bincode 2, standard configuration]`. The stored forms are
//! types of this module, so that neither the consensus library nor a change elsewhere can change
//! them unnoticed; enum variants are appended, never moved. Decoding is bounded and refuses
//! unknown versions and bytes that are left over. Checksums are storage's and the transport's.

use crate::formats;
use crate::ids::{LogIndex, ReplicaId, UnixMillis};
use crate::members::Member;
use crate::trail::Trail;
use crate::types::{Batch, Call, CallId, Entry, LogId, Membership, SnapshotMeta, StoredMembership, Vote, Work, log_id};
use bincode::{Decode, Encode};
use openraft::EntryPayload;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;

/// The version of votes and markers, and the first of everything stored.
pub(crate) const STORED_VERSION: u16 = 1;

/// The version of entries that hold calls with their ids, or raise the format, and of snapshots
/// that hold what became of the calls. Written only once the replicas have agreed on format 2.
pub(crate) const STORED_VERSION_CALLS: u16 = 2;

/// What this build reads of entries and snapshots.
const STORED_VERSIONS: RangeInclusive<u16> = STORED_VERSION..=STORED_VERSION_CALLS;

/// The most that one record may claim while it is decoded: the largest entry and what surrounds it.
const DECODE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} has {length} bytes, too few for a version")]
    NoVersion { what: &'static str, length: usize },
    #[error("{what} has version {found}, but this build reads up to {newest}; use a newer build")]
    Version { what: &'static str, found: u16, newest: u16 },
    #[error("{what} cannot be decoded")]
    Malformed {
        what: &'static str,
        #[source]
        source: bincode::error::DecodeError,
    },
    #[error("{what} has {extra} bytes too many")]
    TrailingBytes { what: &'static str, extra: usize },
    #[error("{what} holds an impossible membership: {reason}")]
    Membership { what: &'static str, reason: String },
    #[error("{what} cannot be true: {reason}")]
    Impossible { what: &'static str, reason: String },
    #[error("{what} cannot be read")]
    Read {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, chain(&error))
    }
}

/// An error with its sources in one line: the consensus library keeps only texts.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn config() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<DECODE_BYTES_MAX>,
> {
    bincode::config::standard().with_limit::<DECODE_BYTES_MAX>()
}

/// Encodes `value` after `version`.
pub(crate) fn encode_versioned<T: Encode>(version: u16, value: &T) -> Vec<u8> {
    let mut bytes = version.to_le_bytes().to_vec();
    bincode::encode_into_std_write(value, &mut bytes, config())
        .expect("writing plain data to memory cannot fail: every type here has a total encoding");
    bytes
}

/// The version of `bytes`, which has to be one of `versions`, and what follows it.
pub(crate) fn split_version<'a>(
    versions: &RangeInclusive<u16>,
    what: &'static str,
    bytes: &'a [u8],
) -> Result<(u16, &'a [u8]), Error> {
    let Some((head, body)) = bytes.split_first_chunk::<2>() else {
        let length = bytes.len();
        return Err(Error::NoVersion { what, length });
    };
    let found = u16::from_le_bytes(*head);
    if !versions.contains(&found) {
        return Err(Error::Version { what, found, newest: *versions.end() });
    }
    Ok((found, body))
}

/// Decodes what [`encode_versioned`] wrote with the same version.
pub(crate) fn decode_versioned<T: Decode<()>>(version: u16, what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    let (_, body) = split_version(&(version..=version), what, bytes)?;
    decode_body(what, body)
}

/// Decodes all of `body`, which follows a version.
pub(crate) fn decode_body<T: Decode<()>>(what: &'static str, body: &[u8]) -> Result<T, Error> {
    let (value, used) =
        bincode::decode_from_slice(body, config()).map_err(|source| Error::Malformed { what, source })?;
    if used != body.len() {
        let extra = body.len() - used;
        return Err(Error::TrailingBytes { what, extra });
    }
    Ok(value)
}

/// A log id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RawLogId {
    term: u64,
    index: u64,
}

impl From<&LogId> for RawLogId {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<RawLogId> for LogId {
    fn from(raw: RawLogId) -> Self {
        log_id(raw.term, raw.index)
    }
}

/// A vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RawVote {
    term: u64,
    voted_for: u64,
    committed: bool,
}

impl From<&Vote> for RawVote {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id().term, voted_for: vote.leader_id().voted_for, committed: vote.is_committed() }
    }
}

impl From<RawVote> for Vote {
    fn from(raw: RawVote) -> Self {
        if raw.committed { Vote::new_committed(raw.term, raw.voted_for) } else { Vote::new(raw.term, raw.voted_for) }
    }
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct RawMember {
    address: String,
    folder: String,
}

impl From<&Member> for RawMember {
    fn from(member: &Member) -> Self {
        Self { address: member.address.clone(), folder: member.folder.clone() }
    }
}

impl From<RawMember> for Member {
    fn from(raw: RawMember) -> Self {
        Self { address: raw.address, folder: raw.folder }
    }
}

/// Who votes (more than one set only while members change) and who else is known.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RawMembership {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, RawMember>,
}

impl From<&Membership> for RawMembership {
    fn from(membership: &Membership) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, member)| (*id, member.into())).collect(),
        }
    }
}

impl RawMembership {
    fn into_membership(self, what: &'static str) -> Result<Membership, Error> {
        if self.configs.is_empty() && self.nodes.is_empty() {
            return Ok(Membership::default());
        }
        let nodes: BTreeMap<u64, Member> = self.nodes.into_iter().map(|(id, raw)| (id, raw.into())).collect();
        Membership::new(self.configs, nodes).map_err(|error| Error::Membership { what, reason: error.to_string() })
    }
}

/// What an entry carries, besides its term and index.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
enum RawPayload {
    Blank,
    Membership(RawMembership),
    /// One call without an id.
    Batch {
        at: u64,
        commands: Vec<Vec<u8>>,
    },
    /// From version 2 on.
    Calls {
        at: u64,
        calls: Vec<RawCall>,
    },
    /// From version 2 on.
    RaiseFormat {
        at: u64,
        to: u16,
    },
}

/// A call with what it is remembered by.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RawCall {
    id: Option<RawCallId>,
    commands: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
struct RawCallId {
    replica: u64,
    incarnation: u64,
    sequence: u64,
    /// How far the sequence is ahead of what is not answered: shorter than that itself.
    ahead: u64,
}

impl From<Call> for RawCall {
    fn from(call: Call) -> Self {
        let id = call.id.map(|id| RawCallId {
            replica: id.replica.0,
            incarnation: id.incarnation,
            sequence: id.sequence,
            ahead: id.sequence.saturating_sub(id.answered_below),
        });
        Self { id, commands: call.commands }
    }
}

impl From<RawCall> for Call {
    fn from(raw: RawCall) -> Self {
        let id = raw.id.map(|id| CallId {
            replica: ReplicaId(id.replica),
            incarnation: id.incarnation,
            sequence: id.sequence,
            answered_below: id.sequence.saturating_sub(id.ahead),
        });
        Self { id, commands: raw.commands }
    }
}

/// An entry on its way to another replica.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RawEntry {
    id: RawLogId,
    payload: RawPayload,
}

impl From<EntryPayload<Batch, u64, Member>> for RawPayload {
    fn from(payload: EntryPayload<Batch, u64, Member>) -> Self {
        match payload {
            EntryPayload::Blank => Self::Blank,
            EntryPayload::Membership(membership) => Self::Membership((&membership).into()),
            EntryPayload::Normal(Batch { at, work }) => match work {
                Work::Calls(mut calls) if calls.len() == 1 && calls[0].id.is_none() => {
                    Self::Batch { at: at.0, commands: std::mem::take(&mut calls[0].commands) }
                }
                Work::Calls(calls) => Self::Calls { at: at.0, calls: calls.into_iter().map(RawCall::from).collect() },
                Work::RaiseFormat(to) => Self::RaiseFormat { at: at.0, to },
            },
        }
    }
}

impl RawPayload {
    /// The version that can say this.
    fn version(&self) -> u16 {
        match self {
            Self::Blank | Self::Membership(_) | Self::Batch { .. } => STORED_VERSION,
            Self::Calls { .. } | Self::RaiseFormat { .. } => STORED_VERSION_CALLS,
        }
    }

    fn into_payload(self) -> Result<EntryPayload<Batch, u64, Member>, Error> {
        Ok(match self {
            Self::Blank => EntryPayload::Blank,
            Self::Membership(raw) => EntryPayload::Membership(raw.into_membership("an entry")?),
            Self::Batch { at, commands } => {
                let work = Work::Calls(vec![Call { id: None, commands }]);
                EntryPayload::Normal(Batch { at: UnixMillis(at), work })
            }
            Self::Calls { at, calls } => {
                let work = Work::Calls(calls.into_iter().map(Call::from).collect());
                EntryPayload::Normal(Batch { at: UnixMillis(at), work })
            }
            Self::RaiseFormat { at, to } => {
                EntryPayload::Normal(Batch { at: UnixMillis(at), work: Work::RaiseFormat(to) })
            }
        })
    }
}

impl From<Entry> for RawEntry {
    fn from(entry: Entry) -> Self {
        Self { id: (&entry.log_id).into(), payload: entry.payload.into() }
    }
}

impl RawEntry {
    pub(crate) fn into_entry(self) -> Result<Entry, Error> {
        Ok(Entry { log_id: self.id.into(), payload: self.payload.into_payload()? })
    }
}

/// An entry as storage keeps it: term and index beside the payload's bytes.
pub(crate) fn encode_entry(entry: Entry) -> berth_storage::Entry {
    let RawLogId { term, index } = (&entry.log_id).into();
    let raw = RawPayload::from(entry.payload);
    let payload = encode_versioned(raw.version(), &raw);
    berth_storage::Entry { index, term, payload }
}

/// The inverse of [`encode_entry`].
pub(crate) fn decode_entry(stored: &berth_storage::Entry) -> Result<Entry, Error> {
    let what = "a log entry";
    let (version, body) = split_version(&STORED_VERSIONS, what, &stored.payload)?;
    let raw: RawPayload = decode_body(what, body)?;
    if raw.version() > version {
        let reason = format!("version {version} cannot hold what is in it");
        return Err(Error::Impossible { what, reason });
    }
    Ok(Entry { log_id: log_id(stored.term, stored.index), payload: raw.into_payload()? })
}

/// The vote of `replica`, which the folder thereby belongs to.
pub(crate) fn encode_vote(replica: ReplicaId, vote: &Vote) -> Vec<u8> {
    encode_versioned(STORED_VERSION, &(replica.0, RawVote::from(vote)))
}

/// The inverse of [`encode_vote`].
pub(crate) fn decode_vote(bytes: &[u8]) -> Result<(ReplicaId, Vote), Error> {
    let (replica, raw): (u64, RawVote) = decode_versioned(STORED_VERSION, "the vote", bytes)?;
    Ok((ReplicaId(replica), raw.into()))
}

/// The committed or the purged marker.
pub(crate) fn encode_log_id(id: Option<&LogId>) -> Vec<u8> {
    encode_versioned(STORED_VERSION, &id.map(RawLogId::from))
}

/// The inverse of [`encode_log_id`].
pub(crate) fn decode_log_id(what: &'static str, bytes: &[u8]) -> Result<Option<LogId>, Error> {
    let raw: Option<RawLogId> = decode_versioned(STORED_VERSION, what, bytes)?;
    Ok(raw.map(LogId::from))
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct RawSnapshotMeta {
    last: Option<RawLogId>,
    membership_at: Option<RawLogId>,
    membership: RawMembership,
    at: u64,
}

/// What a snapshot of format 2 tells besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
struct RawSnapshotExtra {
    format: u16,
    trail_since: u64,
    trail_version: u32,
    trail_hash: u64,
    content_hash: u64,
}

/// What is kept with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotHeader {
    /// Up to where it goes, and the members.
    pub(crate) meta: SnapshotMeta,
    /// The last stamp's time.
    pub(crate) at: UnixMillis,
    /// From format 2 on.
    pub(crate) extra: Option<SnapshotExtra>,
}

/// What a snapshot of format 2 or later tells besides. Its content begins with the kept calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotExtra {
    /// The format that the replicas had agreed on.
    pub(crate) format: u16,
    pub(crate) trail: Trail,
    /// The hash of its content.
    pub(crate) content_hash: u64,
}

impl SnapshotHeader {
    /// The format that the replicas had agreed on.
    pub(crate) fn format(&self) -> u16 {
        self.extra.map_or(formats::FIRST, |extra| extra.format)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let raw = RawSnapshotMeta {
            last: self.meta.last_log_id.as_ref().map(RawLogId::from),
            membership_at: self.meta.last_membership.log_id().as_ref().map(RawLogId::from),
            membership: self.meta.last_membership.membership().into(),
            at: self.at.0,
        };
        match self.extra {
            None => encode_versioned(STORED_VERSION, &raw),
            Some(extra) => {
                let extra = RawSnapshotExtra {
                    format: extra.format,
                    trail_since: extra.trail.since.0,
                    trail_version: extra.trail.version,
                    trail_hash: extra.trail.hash,
                    content_hash: extra.content_hash,
                };
                encode_versioned(STORED_VERSION_CALLS, &(raw, extra))
            }
        }
    }

    /// The inverse of [`encode`](Self::encode).
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let what = "a snapshot's header";
        let (version, body) = split_version(&STORED_VERSIONS, what, bytes)?;
        let (raw, extra): (RawSnapshotMeta, Option<RawSnapshotExtra>) = if version == STORED_VERSION {
            (decode_body(what, body)?, None)
        } else {
            let (raw, extra) = decode_body(what, body)?;
            (raw, Some(extra))
        };
        let membership = raw.membership.into_membership(what)?;
        let meta = SnapshotMeta {
            last_log_id: raw.last.map(LogId::from),
            last_membership: StoredMembership::new(raw.membership_at.map(LogId::from), membership),
        };
        let extra = extra.map(|extra| SnapshotExtra {
            format: extra.format,
            trail: Trail { since: LogIndex(extra.trail_since), version: extra.trail_version, hash: extra.trail_hash },
            content_hash: extra.content_hash,
        });
        Ok(Self { meta, at: UnixMillis(raw.at), extra })
    }
}

/// Writes one record of a sequence: its length, then bincode.
pub(crate) fn write_record<T: Encode>(out: &mut dyn Write, record: &T) -> io::Result<()> {
    let bytes = bincode::encode_to_vec(record, config()).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&bytes)
}

/// Reads what [`write_record`] wrote.
pub(crate) fn read_record<T: Decode<()>>(what: &'static str, input: &mut dyn Read) -> Result<T, Error> {
    let failed = |source| Error::Read { what, source };
    let mut length = [0; 4];
    input.read_exact(&mut length).map_err(failed)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > DECODE_BYTES_MAX {
        return Err(Error::Impossible { what, reason: format!("a record of {length} bytes") });
    }
    let mut bytes = Vec::new();
    // Memory is taken as the bytes come, not as the length claims.
    input.take(length as u64).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() < length {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    decode_body(what, &bytes)
}

/// Adds `value` to `bytes`: what is hashed and what is kept of outcomes.
pub(crate) fn append<T: Serialize + ?Sized>(bytes: &mut Vec<u8>, value: &T) -> io::Result<()> {
    bincode::serde::encode_into_std_write(value, bytes, config()).map_err(io::Error::other)?;
    Ok(())
}

/// An outcome on its way from the leader to the replica that was asked.
pub(crate) fn encode_outcome<O: Serialize>(outcome: &O) -> Result<Vec<u8>, bincode::error::EncodeError> {
    bincode::serde::encode_to_vec(outcome, config())
}

/// The inverse of [`encode_outcome`].
pub(crate) fn decode_outcome<O: DeserializeOwned>(bytes: &[u8]) -> Result<O, Error> {
    let what = "an outcome";
    let (outcome, used) =
        bincode::serde::decode_from_slice(bytes, config()).map_err(|source| Error::Malformed { what, source })?;
    if used != bytes.len() {
        let extra = bytes.len() - used;
        return Err(Error::TrailingBytes { what, extra });
    }
    Ok(outcome)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
