//! The bytes of everything this crate stores or sends.
//!
//! Layout: `[version u16, little endian][bincode 2, standard configuration]`. The stored forms are
//! types of this module, so that neither the consensus library nor a change elsewhere can change
//! them unnoticed; enum variants are appended, never moved. Decoding is bounded and refuses
//! unknown versions and bytes that are left over. Checksums are storage's and the transport's.

use crate::ids::{ReplicaId, UnixMillis};
use crate::members::Member;
use crate::types::{Batch, Entry, LogId, Membership, SnapshotMeta, StoredMembership, Vote, log_id};
use bincode::{Decode, Encode};
use openraft::EntryPayload;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};

/// The version of every stored form.
pub(crate) const STORED_VERSION: u16 = 1;

/// The most that one record may claim while it is decoded: the largest entry and what surrounds it.
const DECODE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} has {length} bytes, too few for a version")]
    NoVersion { what: &'static str, length: usize },
    #[error("{what} has version {found}, but this build reads {supported}; use a newer build")]
    Version { what: &'static str, found: u16, supported: u16 },
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

/// Decodes what [`encode_versioned`] wrote with the same version.
pub(crate) fn decode_versioned<T: Decode<()>>(version: u16, what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    let Some((head, body)) = bytes.split_first_chunk::<2>() else {
        let length = bytes.len();
        return Err(Error::NoVersion { what, length });
    };
    let found = u16::from_le_bytes(*head);
    if found != version {
        return Err(Error::Version { what, found, supported: version });
    }
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
    Batch { at: u64, commands: Vec<Vec<u8>> },
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
            EntryPayload::Normal(batch) => Self::Batch { at: batch.at.0, commands: batch.commands },
        }
    }
}

impl RawPayload {
    fn into_payload(self) -> Result<EntryPayload<Batch, u64, Member>, Error> {
        Ok(match self {
            Self::Blank => EntryPayload::Blank,
            Self::Membership(raw) => EntryPayload::Membership(raw.into_membership("an entry")?),
            Self::Batch { at, commands } => EntryPayload::Normal(Batch { at: UnixMillis(at), commands }),
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
    let payload = encode_versioned(STORED_VERSION, &RawPayload::from(entry.payload));
    berth_storage::Entry { index, term, payload }
}

/// The inverse of [`encode_entry`].
pub(crate) fn decode_entry(stored: &berth_storage::Entry) -> Result<Entry, Error> {
    let raw: RawPayload = decode_versioned(STORED_VERSION, "a log entry", &stored.payload)?;
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

/// What is kept with a snapshot: up to where it goes, the members, and the last stamp's time.
pub(crate) fn encode_snapshot_meta(meta: &SnapshotMeta, at: UnixMillis) -> Vec<u8> {
    let raw = RawSnapshotMeta {
        last: meta.last_log_id.as_ref().map(RawLogId::from),
        membership_at: meta.last_membership.log_id().as_ref().map(RawLogId::from),
        membership: meta.last_membership.membership().into(),
        at: at.0,
    };
    encode_versioned(STORED_VERSION, &raw)
}

/// The inverse of [`encode_snapshot_meta`].
pub(crate) fn decode_snapshot_meta(bytes: &[u8]) -> Result<(SnapshotMeta, UnixMillis), Error> {
    let what = "a snapshot's header";
    let raw: RawSnapshotMeta = decode_versioned(STORED_VERSION, what, bytes)?;
    let membership = raw.membership.into_membership(what)?;
    let meta = SnapshotMeta {
        last_log_id: raw.last.map(LogId::from),
        last_membership: StoredMembership::new(raw.membership_at.map(LogId::from), membership),
    };
    Ok((meta, UnixMillis(raw.at)))
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
