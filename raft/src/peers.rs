//! How replicas reach each other: a transport that this crate is given.

use crate::ids::ReplicaId;
use crate::members::Member;
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;

/// What kind of traffic a request belongs to. A transport that sends requests of one connection
/// one after another should give each lane its own connection, so that signs of life do not wait
/// behind a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Log entries, votes, forwarded proposals and reads.
    Replication,
    /// Signs of life and the confirmation of reads: must not be delayed.
    Heartbeat,
    /// Chunks of a snapshot, of up to 1 MiB each.
    Snapshot,
}

/// A request that got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The request surely did not reach the peer (no connection, refused).
    #[error("replica {to} cannot be reached: {reason}")]
    Unreachable {
        /// The peer.
        to: ReplicaId,
        /// Why, for the log.
        reason: String,
    },
    /// The request may have reached the peer, but no answer came.
    #[error("replica {to} did not answer: {reason}")]
    NoAnswer {
        /// The peer.
        to: ReplicaId,
        /// Why, for the log.
        reason: String,
    },
}

/// Carries requests to other replicas. The transport authenticates both ends; it does not look
/// into the bytes.
///
/// On the receiving side the transport hands the bytes to
/// [`Replica::answer_peer`](crate::Replica::answer_peer) and sends back what that returns.
/// Requests are at most [`ENTRY_BYTES_MAX`](crate::ENTRY_BYTES_MAX) plus a few KiB long.
pub trait Peers: Send + Sync + 'static {
    /// Sends one request and waits for its answer. The caller bounds the time and drops the
    /// future when it is up.
    fn call(&self, to: ReplicaId, lane: Lane, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, PeerError>>;

    /// Tells where members are, as the log says now. Those not named are as they were before: a
    /// replica that was removed may still have to be told so.
    fn learn(&self, members: &BTreeMap<ReplicaId, Member>) {
        let _ = members;
    }
}

/// The transport of a cluster of one: nobody is there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NoPeers;

impl Peers for NoPeers {
    fn call(&self, to: ReplicaId, _lane: Lane, _request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        let reason = "this replica was started without peers".to_owned();
        Box::pin(std::future::ready(Err(PeerError::Unreachable { to, reason })))
    }
}
