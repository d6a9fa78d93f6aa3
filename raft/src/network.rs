//! The sending side: the consensus library's requests on their way through [`Peers`].

use crate::codec::{self, RawEntry, RawLogId, RawVote};
use crate::ids::ReplicaId;
use crate::members::Member;
use crate::outgoing::{self, Transfers};
use crate::peers::{Lane, PeerError, Peers};
use crate::snapshot::SnapshotData;
use crate::types::{Types, Vote};
use crate::wire::{Answer, AppendAnswer, Ballot, Refusal, Request, TransferAnswer};
use openraft::alias::SnapshotOf;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long the whole transfer of a snapshot may take before it is begun again.
pub(crate) const SNAPSHOT_TIMEOUT: Duration = Duration::from_hours(1);

/// Makes a sender for each peer and lane.
#[derive(Clone)]
pub(crate) struct Network {
    peers: Arc<dyn Peers>,
    /// How long a peer may take to answer what is not part of a snapshot.
    answer_timeout: Duration,
    /// How much of a snapshot one request carries.
    pub(crate) part_bytes: usize,
    /// Numbers the snapshots that are sent without an offer.
    transfers: Arc<AtomicU64>,
    pub(crate) outgoing: Transfers,
}

impl Network {
    pub(crate) fn new(peers: Arc<dyn Peers>, answer_timeout: Duration, part_bytes: usize) -> Self {
        Self { peers, answer_timeout, part_bytes, transfers: Arc::default(), outgoing: Transfers::default() }
    }

    pub(crate) fn next_transfer(&self) -> u64 {
        self.transfers.fetch_add(1, Ordering::Relaxed)
    }

    fn sender(&self, to: u64, lane: Lane) -> Sender {
        Sender { network: self.clone(), to: ReplicaId(to), lane }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Sender;

    async fn new_client(&mut self, target: u64, _: &Member) -> Sender {
        self.sender(target, Lane::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _: &Member) -> Sender {
        self.sender(target, Lane::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, _: &Member) -> Sender {
        self.sender(target, Lane::Snapshot)
    }
}

/// Sends to one peer on one lane.
pub(crate) struct Sender {
    pub(crate) network: Network,
    pub(crate) to: ReplicaId,
    lane: Lane,
}

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("replica {to} did not answer within {} ms", after.as_millis())]
    TimedOut { to: ReplicaId, after: Duration },
    #[error("replica {to} refused: {refusal:?}")]
    Refused { to: ReplicaId, refusal: Refusal },
    #[error("replica {to} answered something else than what was asked")]
    Mismatch { to: ReplicaId },
    #[error("replica {to} answered nonsense")]
    Nonsense {
        to: ReplicaId,
        #[source]
        source: codec::Error,
    },
}

impl From<CallError> for RPCError<Types> {
    fn from(error: CallError) -> Self {
        let text = codec::chain(&error);
        match error {
            // These make the library wait a moment before it tries again.
            CallError::Peer(PeerError::Unreachable { .. })
            | CallError::Refused { .. }
            | CallError::Nonsense { .. }
            | CallError::Mismatch { .. } => RPCError::Unreachable(Unreachable::from_string(text)),
            CallError::Peer(PeerError::NoAnswer { .. }) | CallError::TimedOut { .. } => {
                RPCError::Network(NetworkError::from_string(text))
            }
        }
    }
}

impl From<CallError> for StreamingError<Types> {
    fn from(error: CallError) -> Self {
        RPCError::from(error).into()
    }
}

impl Sender {
    pub(crate) async fn call(&self, request: Request, within: Duration) -> Result<Answer, CallError> {
        let to = self.to;
        let call = self.network.peers.call(to, self.lane, request.encode());
        let bytes = match tokio::time::timeout(within, call).await {
            Ok(result) => result?,
            Err(_) => return Err(CallError::TimedOut { to, after: within }),
        };
        match Answer::decode(&bytes) {
            Ok(Answer::Refused(refusal)) => Err(CallError::Refused { to, refusal }),
            Ok(answer) => Ok(answer),
            Err(source) => Err(CallError::Nonsense { to, source }),
        }
    }

    async fn ask(&self, request: Request) -> Result<Answer, CallError> {
        self.call(request, self.network.answer_timeout).await
    }

    pub(crate) fn mismatch(&self) -> CallError {
        CallError::Mismatch { to: self.to }
    }

    async fn ballot(&self, request: Request) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ask(request).await? {
            Answer::Vote { vote, granted, last } => {
                Ok(VoteResponse { vote: vote.into(), vote_granted: granted, last_log_id: last.map(Into::into) })
            }
            _ => Err(self.mismatch().into()),
        }
    }
}

impl RaftNetworkV2<Types> for Sender {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let request = Request::Append {
            vote: RawVote::from(&rpc.vote),
            previous: rpc.prev_log_id.as_ref().map(RawLogId::from),
            entries: rpc.entries.into_iter().map(RawEntry::from).collect(),
            committed: rpc.leader_commit.as_ref().map(RawLogId::from),
        };
        match self.ask(request).await? {
            Answer::Append(answer) => Ok(match answer {
                AppendAnswer::Success => AppendEntriesResponse::Success,
                AppendAnswer::PartialSuccess(last) => AppendEntriesResponse::PartialSuccess(last.map(Into::into)),
                AppendAnswer::Conflict => AppendEntriesResponse::Conflict,
                AppendAnswer::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
            }),
            _ => Err(self.mismatch().into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ballot(Request::Vote(Ballot::from(&rpc))).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ballot(Request::PreVote(Ballot::from(&rpc))).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let SnapshotData::Stored(stored) = snapshot.snapshot else {
            let text = "only finished snapshots are sent".to_owned();
            return Err(NetworkError::from_string(text).into());
        };
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = outgoing::send(self, vote, &stored) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let request = Request::TransferLeader {
            vote: RawVote::from(rpc.from_leader()),
            to: *rpc.to_node_id(),
            last: rpc.last_log_id().map(RawLogId::from),
        };
        match self.ask(request).await? {
            Answer::TransferLeader(answer) => Ok(match answer {
                TransferAnswer::Accepted => Ok(()),
                TransferAnswer::VoteChanged { expected, actual } => {
                    Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
                }
                TransferAnswer::LogNotFlushed { expected, actual } => Err(TransferLeaderError::LogNotFlushed {
                    expected: expected.map(Into::into),
                    actual: actual.map(Into::into),
                }),
            }),
            _ => Err(self.mismatch().into()),
        }
    }
}

impl From<&VoteRequest<Types>> for Ballot {
    fn from(request: &VoteRequest<Types>) -> Self {
        Self {
            vote: RawVote::from(&request.vote),
            last: request.last_log_id.as_ref().map(RawLogId::from),
            leadership_transfer: request.leadership_transfer,
        }
    }
}

impl From<Ballot> for VoteRequest<Types> {
    fn from(ballot: Ballot) -> Self {
        Self {
            vote: ballot.vote.into(),
            last_log_id: ballot.last.map(Into::into),
            leadership_transfer: ballot.leadership_transfer,
        }
    }
}
