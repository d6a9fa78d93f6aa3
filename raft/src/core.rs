//! What the tasks of one replica share.

use crate::applier::Applier;
use crate::barrier::Reads;
use crate::checkpoints::Checkpoints;
use crate::codec;
use crate::config::Config;
use crate::error::{ProposeError, ReadError, StopReason};
use crate::formats::Formats;
use crate::forwarder;
use crate::halt::Halt;
use crate::handover::Holding;
use crate::ids::{LogIndex, ReplicaId};
use crate::incoming::SnapshotReceiver;
use crate::log_time::LogTime;
use crate::machine::StateMachine;
use crate::peers::{Lane, PeerError, Peers};
use crate::published::Published;
use crate::queue::{Memory, Outlook, Proposals, Unproposed};
use crate::replica::Proposed;
use crate::seldom::Seldom;
use crate::sequences::{OpenCall, Sequences};
use crate::taken::Taken;
use crate::types::{Call, Types};
use crate::wire::{Answer, Request};
use berth_storage::{Condition, Log};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Instant as _, Raft};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long to wait before looking again for a leader when nothing tells of a change.
const LEADER_POLL: Duration = Duration::from_millis(20);

pub(crate) struct Core<M: StateMachine> {
    pub(crate) config: Config,
    pub(crate) time: LogTime,
    pub(crate) raft: Raft<Types, Applier<M>>,
    pub(crate) log: Log,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) published: Arc<Published<M>>,
    pub(crate) formats: Arc<Formats>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) halt: Halt,
    /// What waits for a place in an entry.
    pub(crate) proposals: Proposals<M::Outcome>,
    /// What waits to be passed on to the leader.
    pub(crate) forwards: Proposals<M::Outcome>,
    /// What others have passed on and is not settled.
    pub(crate) taken: Arc<Taken>,
    pub(crate) sequences: Arc<Sequences>,
    pub(crate) reads: Reads,
    pub(crate) incoming: SnapshotReceiver,
    pub(crate) stop: CancellationToken,
    /// Held while members are changed.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Keeps proposals out of the log while the leadership is handed over.
    pub(crate) holding: Holding,
    /// Requests of peers that were not understood.
    pub(crate) nonsense: Seldom,
}

impl<M: StateMachine> Core<M> {
    /// The leader, as far as this replica knows. One that has not heard of a majority for a while
    /// does not lead any more, whatever it believes: what it takes on might never be committed.
    pub(crate) fn leader(&self) -> Option<ReplicaId> {
        // Of the library's three channels the one with everything changes last: whoever is woken by
        // one of the other two would find it as it was, and no change of it would wake him again.
        let (server, data) = (self.raft.server_metrics(), self.raft.data_metrics());
        let server = server.borrow_watched();
        let leader = server.current_leader.map(ReplicaId)?;
        let heard_of_majority = || {
            let acked = data.borrow_watched().last_quorum_acked;
            acked.is_none_or(|at| at.elapsed() < self.majority_silence())
        };
        let is_alone = || server.membership_config.voter_ids().nth(1).is_none();
        (leader != self.config.replica || is_alone() || heard_of_majority()).then_some(leader)
    }

    /// How long no majority may have answered a leader. By then it would have elected another one.
    fn majority_silence(&self) -> Duration {
        Duration::from_millis(self.config.election_timeout_ms) * 3
    }

    pub(crate) fn leads(&self) -> bool {
        self.leader() == Some(self.config.replica)
    }

    /// Whether this replica knows of another leader.
    pub(crate) fn another_leads(&self) -> bool {
        self.leader().is_some_and(|leader| leader != self.config.replica)
    }

    /// Resolves when somebody else than `leader` leads, or nobody.
    pub(crate) async fn leader_is_not(&self, leader: ReplicaId) {
        let mut metrics = self.raft.server_metrics();
        while self.leader() == Some(leader) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn stop_reason(&self) -> Option<StopReason> {
        self.halt.reason()
    }

    /// The reason for the stop, once something has ended that ends only then.
    pub(crate) fn reason_or_requested(&self) -> StopReason {
        self.stop_reason().unwrap_or(StopReason::Requested)
    }

    /// The time after which a leader can be expected.
    pub(crate) fn retry_after(&self) -> Duration {
        Duration::from_millis(self.config.election_timeout_ms)
    }

    /// How long a call looks for a leader before it says that there is none: as long as followers
    /// need to notice the end of one and to elect another, also at the second attempt.
    pub(crate) fn leader_wait(&self) -> Duration {
        (self.retry_after() * 6).min(self.config.request_timeout())
    }

    /// How long a peer may take to answer something small.
    pub(crate) fn answer_timeout(&self) -> Duration {
        Duration::from_millis(self.config.election_timeout_ms)
    }

    /// Waits until the leader may have changed, or a moment.
    pub(crate) async fn leader_may_have_changed(&self) {
        let mut metrics = self.raft.server_metrics();
        // What was before is no change: without this the wait would be none.
        metrics.borrow_and_update();
        tokio::select! {
            biased;
            // Once the consensus core has ended, nothing changes any more.
            Ok(()) = metrics.changed() => {}
            () = tokio::time::sleep(LEADER_POLL) => {}
            // Whoever says why gets his turn.
            () = self.stop.cancelled() => tokio::task::yield_now().await,
        }
    }

    /// Proposes, here or through the leader. Tries again what surely did not happen, and also what
    /// may have happened if it is remembered: then it happens once all the same.
    pub(crate) async fn propose(
        &self,
        commands: Vec<Vec<u8>>,
        within: Duration,
    ) -> Result<Proposed<M::Outcome>, ProposeError> {
        let deadline = Instant::now() + within;
        let leader_deadline = Instant::now() + self.leader_wait();
        let open = self.sequences.begin()?;
        let mut lost = false;
        loop {
            if let Some(reason) = self.stop_reason() {
                return Err(if lost { ProposeError::OutcomeUnknown } else { ProposeError::Stopped(reason) });
            }
            let call = Call { id: open.as_ref().map(OpenCall::id), commands: commands.clone() };
            // A call that may have happened goes only where it is known by its id.
            let memory = if lost { Memory::Required } else { Memory::Wanted };
            match self.attempt(call, memory, deadline).await {
                Ok(proposed) => return Ok(proposed),
                Err(Unproposed::NotLeader) => {}
                Err(Unproposed::Lost) => lost = true,
                Err(Unproposed::Failed(error)) if !lost => return Err(error),
                Err(Unproposed::Failed(ProposeError::OutcomeUnknown)) => return Err(ProposeError::OutcomeUnknown),
                // It says that this attempt did nothing; an earlier one may have.
                Err(Unproposed::Failed(error)) => tracing::debug!(%error, "a call that was lost is not settled yet"),
            }
            let now = Instant::now();
            if lost && now >= deadline {
                return Err(ProposeError::OutcomeUnknown);
            }
            if !lost && now >= leader_deadline {
                let retry_after = self.retry_after();
                return Err(ProposeError::NoLeader { retry_after });
            }
            self.leader_may_have_changed().await;
        }
    }

    /// One attempt, through whoever leads.
    async fn attempt(&self, call: Call, memory: Memory, deadline: Instant) -> Result<Proposed<M::Outcome>, Unproposed> {
        let Some(leader) = self.leader() else {
            return Err(Unproposed::NotLeader);
        };
        if leader == self.config.replica {
            return self.propose_here(call, memory, deadline).await;
        }
        let proposed = if self.formats.calls_are_remembered() {
            let has_id = call.id.is_some();
            let answer = self.forwards.submit(call, memory)?;
            match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(result)) => result?,
                // Dropped, perhaps on its way.
                Ok(Err(_)) if has_id => return Err(Unproposed::Lost),
                Ok(Err(_)) | Err(_) => return Err(ProposeError::OutcomeUnknown.into()),
            }
        } else {
            self.forward_alone(leader, call.commands, deadline).await?
        };
        self.applied_or_deadline(proposed.index, deadline).await;
        Ok(proposed)
    }

    /// Proposes on this replica, which has to lead.
    pub(crate) async fn propose_here(
        &self,
        call: Call,
        memory: Memory,
        deadline: Instant,
    ) -> Result<Proposed<M::Outcome>, Unproposed> {
        let answer = self.submit(call, memory)?;
        self.settled(answer, deadline).await
    }

    /// Queues a call on this replica, which has to lead.
    pub(crate) fn submit(&self, call: Call, memory: Memory) -> Result<Outlook<M::Outcome>, Unproposed> {
        match self.log.condition() {
            Condition::Healthy => {}
            Condition::Full { free_bytes, needed_bytes } => {
                return Err(Unproposed::Failed(ProposeError::StorageFull { free_bytes, needed_bytes }));
            }
            Condition::Failed(reason) => {
                let reason = StopReason::Failed(reason.to_string());
                return Err(Unproposed::Failed(ProposeError::Stopped(reason)));
            }
        }
        Ok(self.proposals.submit(call, memory)?)
    }

    /// What becomes of a call in a queue of this replica.
    pub(crate) async fn settled(
        &self,
        answer: Outlook<M::Outcome>,
        deadline: Instant,
    ) -> Result<Proposed<M::Outcome>, Unproposed> {
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // Dropped before it was made part of an entry.
            Ok(Err(_)) => Err(Unproposed::Failed(ProposeError::Stopped(self.reason_or_requested()))),
            Err(_) => Err(Unproposed::Failed(ProposeError::OutcomeUnknown)),
        }
    }

    /// Passes one call on to a leader that may not know of ids: whether it happened is not found
    /// out when the answer is lost.
    async fn forward_alone(
        &self,
        leader: ReplicaId,
        commands: Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Result<Proposed<M::Outcome>, Unproposed> {
        let count = commands.len();
        let request = Request::Propose { commands };
        let call = self.peers.call(leader, Lane::Replication, request.encode());
        let bytes = match tokio::time::timeout_at(deadline, call).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(PeerError::Unreachable { .. })) => return Err(Unproposed::NotLeader),
            Ok(Err(PeerError::NoAnswer { .. })) | Err(_) => return Err(ProposeError::OutcomeUnknown.into()),
        };
        match Answer::decode(&bytes) {
            Ok(Answer::Proposed { index, outcomes }) => forwarder::understood(leader, index, &outcomes, count),
            Ok(Answer::Refused(refusal)) => Err(forwarder::unproposed(&refusal, false)),
            Ok(_) => Err(ProposeError::OutcomeUnknown.into()),
            Err(error) => {
                tracing::error!(%leader, error = %codec::chain(&error), "answer not understood");
                Err(ProposeError::OutcomeUnknown.into())
            }
        }
    }

    /// Waits until the entry is visible here, so that the caller reads its own write.
    async fn applied_or_deadline(&self, index: LogIndex, deadline: Instant) {
        let mut indexes = self.published.indexes();
        let applied = indexes.wait_for(|applied| *applied >= index);
        tokio::select! {
            biased;
            _ = tokio::time::timeout_at(deadline, applied) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Up to where a read has to see, from the leader wherever it is; `None` when nobody could
    /// say for now.
    pub(crate) async fn read_index(&self) -> Result<Option<LogIndex>, ReadError> {
        match self.leader() {
            Some(leader) if leader == self.config.replica => self.read_index_here().await,
            Some(leader) => {
                let request = Request::ReadIndex.encode();
                let call = self.peers.call(leader, Lane::Heartbeat, request);
                // Given up early: asking again costs nothing, and there may be another leader.
                let bytes = tokio::select! {
                    biased;
                    answer = tokio::time::timeout(self.answer_timeout(), call) => match answer {
                        Ok(Ok(bytes)) => bytes,
                        _ => return Ok(None),
                    },
                    () = self.leader_is_not(leader) => return Ok(None),
                };
                match Answer::decode(&bytes) {
                    Ok(Answer::ReadIndex { index }) => Ok(Some(LogIndex(index))),
                    _ => Ok(None),
                }
            }
            None => Ok(None),
        }
    }

    /// The same, on the leader itself.
    pub(crate) async fn read_index_here(&self) -> Result<Option<LogIndex>, ReadError> {
        use openraft::errors::RaftError;
        let policy = openraft::ReadPolicy::ReadIndex;
        match self.raft.get_read_linearizer(policy).await {
            Ok(linearizer) => Ok(Some(LogIndex(linearizer.read_log_id().index()))),
            Err(RaftError::APIError(error)) => {
                tracing::debug!(%error, "read not confirmed yet");
                Ok(None)
            }
            Err(RaftError::Fatal(_)) => Err(ReadError::Stopped(self.reason_or_requested())),
        }
    }
}
