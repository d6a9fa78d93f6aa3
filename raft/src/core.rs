//! What the tasks of one replica share.

use crate::applier::Applier;
use crate::barrier::Reads;
use crate::clock::Clock;
use crate::codec;
use crate::config::Config;
use crate::error::{ProposeError, ReadError, StopReason};
use crate::ids::{LogIndex, ReplicaId};
use crate::machine::StateMachine;
use crate::peers::{Lane, PeerError, Peers};
use crate::proposer::{Proposals, Unproposed};
use crate::published::Published;
use crate::receiver::SnapshotReceiver;
use crate::replica::Proposed;
use crate::types::Types;
use crate::wire::{Answer, Refusal, Request};
use berth_storage::{Condition, Log};
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long to wait before looking again for a leader when nothing tells of a change.
const LEADER_POLL: Duration = Duration::from_millis(20);

pub(crate) struct Core<M: StateMachine> {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) raft: Raft<Types, Applier<M>>,
    pub(crate) log: Log,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) published: Arc<Published<M>>,
    pub(crate) proposals: Proposals<M::Outcome>,
    pub(crate) reads: Reads,
    pub(crate) incoming: SnapshotReceiver,
    pub(crate) stopped: Arc<watch::Sender<Option<StopReason>>>,
    pub(crate) stop: CancellationToken,
}

/// What a request to another replica brought.
enum Forwarded<T> {
    Done(T),
    /// It surely had no effect: it may be tried again.
    NotDone,
    Failed(ProposeError),
}

impl<M: StateMachine> Core<M> {
    /// The leader, as far as this replica knows.
    pub(crate) fn leader(&self) -> Option<ReplicaId> {
        let metrics = self.raft.server_metrics();
        let leader = metrics.borrow_watched().current_leader;
        leader.map(ReplicaId)
    }

    pub(crate) fn leads(&self) -> bool {
        self.leader() == Some(self.config.replica)
    }

    pub(crate) fn stop_reason(&self) -> Option<StopReason> {
        self.stopped.borrow().clone()
    }

    /// The reason for the stop, once something has ended that ends only then.
    pub(crate) fn reason_or_requested(&self) -> StopReason {
        self.stop_reason().unwrap_or(StopReason::Requested)
    }

    /// The time after which a leader can be expected.
    pub(crate) fn retry_after(&self) -> Duration {
        Duration::from_millis(self.config.election_timeout_ms)
    }

    /// How long a call looks for a leader before it says that there is none.
    pub(crate) fn leader_wait(&self) -> Duration {
        (self.retry_after() * 3).min(self.config.request_timeout())
    }

    /// Waits until the leader may have changed, or a moment.
    pub(crate) async fn leader_may_have_changed(&self) {
        let mut metrics = self.raft.server_metrics();
        // What was before is no change: without this the wait would be none.
        metrics.borrow_and_update();
        tokio::select! {
            biased;
            _ = metrics.changed() => {}
            () = tokio::time::sleep(LEADER_POLL) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Proposes, here or through the leader; tries again only what surely did not happen.
    pub(crate) async fn propose(&self, commands: Vec<Vec<u8>>) -> Result<Proposed<M::Outcome>, ProposeError> {
        let deadline = Instant::now() + self.config.request_timeout();
        let leader_deadline = Instant::now() + self.leader_wait();
        loop {
            if let Some(reason) = self.stop_reason() {
                return Err(ProposeError::Stopped(reason));
            }
            match self.leader() {
                Some(leader) if leader == self.config.replica => {
                    match self.propose_here(commands.clone(), deadline).await {
                        Ok(proposed) => return Ok(proposed),
                        Err(Unproposed::NotLeader) => {}
                        Err(Unproposed::Failed(error)) => return Err(error),
                    }
                }
                Some(leader) => match self.forward(leader, &commands, deadline).await {
                    Forwarded::Done(proposed) => return Ok(proposed),
                    Forwarded::NotDone => {}
                    Forwarded::Failed(error) => return Err(error),
                },
                None => {}
            }
            if Instant::now() >= leader_deadline {
                let retry_after = self.retry_after();
                return Err(ProposeError::NoLeader { retry_after });
            }
            self.leader_may_have_changed().await;
        }
    }

    /// Proposes on this replica, which has to lead.
    pub(crate) async fn propose_here(
        &self,
        commands: Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Result<Proposed<M::Outcome>, Unproposed> {
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
        let answer = self.proposals.submit(commands)?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // Dropped before it was made part of an entry.
            Ok(Err(_)) => Err(Unproposed::Failed(ProposeError::Stopped(self.reason_or_requested()))),
            Err(_) => Err(Unproposed::Failed(ProposeError::OutcomeUnknown)),
        }
    }

    async fn forward(
        &self,
        leader: ReplicaId,
        commands: &[Vec<u8>],
        deadline: Instant,
    ) -> Forwarded<Proposed<M::Outcome>> {
        let request = Request::Propose { commands: commands.to_vec() };
        let call = self.peers.call(leader, Lane::Replication, request.encode());
        let bytes = match tokio::time::timeout_at(deadline, call).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(PeerError::Unreachable { .. })) => return Forwarded::NotDone,
            Ok(Err(PeerError::NoAnswer { .. })) | Err(_) => {
                return Forwarded::Failed(ProposeError::OutcomeUnknown);
            }
        };
        let answer = match Answer::decode(&bytes) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%leader, error = %codec::chain(&error), "answer not understood");
                return Forwarded::Failed(ProposeError::OutcomeUnknown);
            }
        };
        match answer {
            Answer::Proposed { index, outcomes } => {
                let decoded = outcomes.iter().map(|bytes| codec::decode_outcome(bytes));
                match decoded.collect::<Result<Vec<M::Outcome>, _>>() {
                    Ok(outcomes) if outcomes.len() == commands.len() => {
                        let index = LogIndex(index);
                        self.applied_or_deadline(index, deadline).await;
                        Forwarded::Done(Proposed { index, outcomes })
                    }
                    _ => {
                        tracing::error!(%leader, "outcomes of a forwarded proposal make no sense");
                        Forwarded::Failed(ProposeError::OutcomeUnknown)
                    }
                }
            }
            Answer::Refused(refusal) => match refusal {
                Refusal::NoLeader | Refusal::Stopped(_) => Forwarded::NotDone,
                Refusal::StorageFull { free_bytes, needed_bytes } => {
                    Forwarded::Failed(ProposeError::StorageFull { free_bytes, needed_bytes })
                }
                Refusal::Overloaded { waiting_commands } => Forwarded::Failed(ProposeError::Overloaded {
                    waiting_commands: usize::try_from(waiting_commands).unwrap_or(usize::MAX),
                }),
                Refusal::TooLarge { bytes, bytes_max } => Forwarded::Failed(ProposeError::TooLarge {
                    bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
                    bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
                }),
                other => {
                    tracing::warn!(%leader, refusal = ?other, "the leader refused a proposal");
                    Forwarded::Failed(ProposeError::OutcomeUnknown)
                }
            },
            _ => Forwarded::Failed(ProposeError::OutcomeUnknown),
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
                let Ok(Ok(bytes)) = tokio::time::timeout(self.leader_wait(), call).await else {
                    return Ok(None);
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
