//! Who belongs to the cluster, and how that changes.
//!
//! Members stand in the log: a change counts from the moment its entry is appended, on every
//! replica. One change at a time, through the leader. A new replica is a learner first, which gets
//! the log and has no vote; it is promoted when it has nearly all of it. An id is never used
//! again: a replica that lost its folder comes back under a new one.

use crate::core::Core;
use crate::error::StopReason;
use crate::ids::{LogIndex, ReplicaId};
use crate::machine::StateMachine;
use crate::replica::Replica;
use crate::types::Types;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How far a learner may be behind the leader's log to be given a vote, in entries. The next
/// entries reach it while its promotion is on its way.
const PROMOTION_LAG_MAX: u64 = 256;

/// How many times the election timeout a replica may be silent and still counts as alive.
const ALIVE_TIMEOUTS: u32 = 3;

/// Between two looks at whether a majority answers.
const QUORUM_POLL: Duration = Duration::from_millis(20);

/// A replica as the log knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where other replicas reach it, in the words of the transport (host and port).
    pub address: String,
    /// The id of the data folder that this replica's log lives in. A transport refuses a replica
    /// that comes with another folder: it has lost what it once acknowledged.
    pub folder: String,
}

/// What a replica with an empty folder does at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Formation {
    /// Forms the cluster of these members, this replica among them. On one replica only, or with
    /// the same members on all.
    Members(BTreeMap<ReplicaId, Member>),
    /// Waits until the leader of a cluster sends it the log.
    Wait,
    /// The same, while replicas that know of each other form it.
    Meet,
    /// Nothing: this replica had a log before, and one that is missing was lost.
    Existing,
}

/// One member, as the replica that was asked sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Address and folder.
    pub member: Member,
    /// Whether it votes; otherwise it learns.
    pub is_voter: bool,
    /// Up to where its log agrees with the leader's; known by the leader only.
    pub matched: Option<LogIndex>,
    /// How long ago it last answered; known by the leader only.
    pub heard: Option<Duration>,
}

/// Who belongs to the cluster, as its replicas have agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The entry of the log that says so.
    pub entry: LogIndex,
    /// Of each of these a majority is needed: of one set, or of two while voters change.
    pub voters: Vec<BTreeSet<ReplicaId>>,
    /// All members, voting or not.
    pub members: BTreeSet<ReplicaId>,
}

/// Why members were not changed. Unless it says otherwise, nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Only the leader changes members.
    #[error("this replica does not lead; ask {}", leader.map_or_else(|| "again when there is a leader".to_owned(), |id| format!("replica {id}")))]
    NotLeader {
        /// Who leads, if that is known.
        leader: Option<ReplicaId>,
    },
    /// There is no such member.
    #[error("replica {0} is not a member of the cluster")]
    Unknown(ReplicaId),
    /// The id belongs to another member, or to this one with another folder.
    #[error("replica {0} is a member already, with another data folder; ids are never used again")]
    IdTaken(ReplicaId),
    /// The learner has not got enough of the log yet.
    #[error("replica {id} has not caught up yet: {behind} entries are missing")]
    Behind {
        /// The learner.
        id: ReplicaId,
        /// How many entries it lacks.
        behind: u64,
    },
    /// Without it, those that answer would be no majority.
    #[error(
        "without replica {id}, {alive} of {voters} voting replicas answer, which is no majority; \
         bring the others back, or add a replica, before this one is removed"
    )]
    NoQuorum {
        /// Who was to be removed.
        id: ReplicaId,
        /// How many of those left answer.
        alive: usize,
        /// How many are left.
        voters: usize,
    },
    /// The leader does not remove itself.
    #[error("replica {0} leads; hand the leadership over before it is removed")]
    Leads(ReplicaId),
    /// Another change is on its way.
    #[error("another change of members is on its way; try again when it is done")]
    InProgress,
    /// The change may have happened, or may still happen: look at the members.
    #[error("it is not known whether the members have changed; look before you try again")]
    OutcomeUnknown,
    /// The replica has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

impl<M: StateMachine> Replica<M> {
    /// The members as this replica knows them, committed or not.
    pub fn members(&self) -> BTreeMap<ReplicaId, MemberStatus> {
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let own = self.core.config.replica;
        let status = |id: &u64, member: &Member| MemberStatus {
            member: member.clone(),
            is_voter: voters.contains(id),
            matched: match &metrics.replication {
                Some(_) if *id == own.0 => metrics.last_log_index.map(LogIndex),
                Some(progress) => progress.get(id).copied().flatten().map(|id| LogIndex(id.index)),
                None => None,
            },
            heard: match &metrics.heartbeat {
                Some(_) if *id == own.0 => Some(Duration::ZERO),
                Some(heard) => heard.get(id).copied().flatten().map(|at| at.elapsed()),
                None => None,
            },
        };
        membership.nodes().map(|(id, member)| (ReplicaId(*id), status(id, member))).collect()
    }

    /// What the replicas have agreed on last, as far as this one knows: other than in
    /// [`members`](Self::members) a change counts when it is committed. `None` while it knows of no
    /// cluster.
    pub fn agreed(&self) -> Option<Configuration> {
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow_watched();
        let agreed = &metrics.committed_membership_config;
        let entry = LogIndex(agreed.log_id().as_ref()?.index);
        let membership = agreed.membership();
        let ids = |ids: &BTreeSet<u64>| ids.iter().copied().map(ReplicaId).collect();
        let voters = membership.get_joint_config().iter().map(ids).collect();
        Some(Configuration { entry, voters, members: membership.nodes().map(|(id, _)| ReplicaId(*id)).collect() })
    }

    /// How long ago the newest request was sent that a majority has answered; `None` unless this
    /// replica leads and there was one. Until then nobody else led.
    pub fn majority_heard(&self) -> Option<Duration> {
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.last_quorum_acked.as_ref().map(|at| at.elapsed())
    }

    /// Adds a replica that gets the log and has no vote. It has to answer under its id from now
    /// on. The same replica again is no error; its address is then replaced.
    pub async fn add_learner(&self, id: ReplicaId, member: Member) -> Result<(), MemberError> {
        let _one_at_a_time = self.core.changing.try_lock().map_err(|_| MemberError::InProgress)?;
        self.must_lead()?;
        let change = match self.members().get(&id) {
            Some(known) if known.member == member => return Ok(()),
            // One that was alone until now has no folder that anybody knows of.
            Some(known) if !known.member.folder.is_empty() && known.member.folder != member.folder => {
                return Err(MemberError::IdTaken(id));
            }
            Some(_) => ChangeMembers::SetNodes(BTreeMap::from([(id.0, member.clone())])),
            None => ChangeMembers::AddNodes(BTreeMap::from([(id.0, member.clone())])),
        };
        self.core.peers.learn(&BTreeMap::from([(id, member)]));
        self.change(change).await
    }

    /// Gives a learner that has caught up a vote. A voter is left as it is.
    pub async fn promote(&self, id: ReplicaId) -> Result<(), MemberError> {
        let _one_at_a_time = self.core.changing.try_lock().map_err(|_| MemberError::InProgress)?;
        self.may_promote(id)?;
        if self.members().get(&id).is_some_and(|member| member.is_voter) {
            return Ok(());
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id.0]))).await
    }

    /// Whether [`promote`](Self::promote) would go through now.
    pub fn may_promote(&self, id: ReplicaId) -> Result<(), MemberError> {
        self.must_lead()?;
        let members = self.members();
        let learner = members.get(&id).ok_or(MemberError::Unknown(id))?;
        if learner.is_voter {
            return Ok(());
        }
        let end = self.status().last_log.map_or(0, |last| last.0 + 1);
        let behind = end - learner.matched.map_or(0, |matched| matched.0 + 1).min(end);
        if behind > PROMOTION_LAG_MAX || !self.is_alive(learner) {
            return Err(MemberError::Behind { id, behind });
        }
        Ok(())
    }

    /// Removes a member for good. Refused when those left that answer would be no majority, and
    /// for the leader itself.
    pub async fn remove(&self, id: ReplicaId) -> Result<(), MemberError> {
        let _one_at_a_time = self.core.changing.try_lock().map_err(|_| MemberError::InProgress)?;
        self.can_remove(id).await?;
        let is_voter = self.members().get(&id).is_some_and(|member| member.is_voter);
        let ids = BTreeSet::from([id.0]);
        if is_voter {
            // It becomes a learner by that; what is left to do then is done
            // the next time if it does not go through now.
            self.change(ChangeMembers::RemoveVoters(ids.clone())).await?;
        }
        if self.members().contains_key(&id) {
            self.change(ChangeMembers::RemoveNodes(ids)).await?;
        }
        Ok(())
    }

    /// Ends a change of voters that was begun and left half done, by a leader that died for
    /// instance: until then two majorities are needed. Nothing to do otherwise.
    pub async fn finish_change(&self) -> Result<(), MemberError> {
        if !self.is_changing() {
            return Ok(());
        }
        let _one_at_a_time = self.core.changing.try_lock().map_err(|_| MemberError::InProgress)?;
        self.must_lead()?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await
    }

    /// Whether a change of voters is under way or was left half done.
    pub fn is_changing(&self) -> bool {
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().len() > 1
    }

    /// Whether a replica is a member, as far as this one knows.
    pub fn is_member(&self, id: ReplicaId) -> bool {
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&id.0).is_some()
    }

    /// Whether [`remove`](Self::remove) would go through: waits for those that are left to answer.
    pub async fn can_remove(&self, id: ReplicaId) -> Result<(), MemberError> {
        // Those that are needed must answer now: with one that died a moment ago the change would
        // be begun and never end, and nothing could be changed any more.
        let began = tokio::time::Instant::now();
        while let Err(error) = self.may_remove(id, began.elapsed()) {
            if !matches!(error, MemberError::NoQuorum { .. }) || began.elapsed() >= self.silence_max() {
                return Err(error);
            }
            tokio::time::sleep(QUORUM_POLL).await;
        }
        Ok(())
    }

    /// Whether a replica can do without `id`, as far as those go that answered within `heard`.
    fn may_remove(&self, id: ReplicaId, heard: Duration) -> Result<(), MemberError> {
        self.must_lead()?;
        let members = self.members();
        let leaving = members.get(&id).ok_or(MemberError::Unknown(id))?;
        if !leaving.is_voter {
            return Ok(());
        }
        if id == self.core.config.replica {
            return Err(MemberError::Leads(id));
        }
        let left: Vec<_> = members.iter().filter(|(other, member)| **other != id && member.is_voter).collect();
        let own = self.core.config.replica;
        let answers = |(other, member): &(&ReplicaId, &MemberStatus)| {
            **other == own || member.heard.is_some_and(|ago| ago < heard)
        };
        let alive = left.iter().filter(|member| answers(member)).count();
        if alive < left.len() / 2 + 1 {
            return Err(MemberError::NoQuorum { id, alive, voters: left.len() });
        }
        Ok(())
    }

    pub(crate) fn is_alive(&self, member: &MemberStatus) -> bool {
        member.heard.is_some_and(|heard| heard <= self.silence_max())
    }

    fn silence_max(&self) -> Duration {
        self.core.retry_after() * ALIVE_TIMEOUTS
    }

    /// A leader whose vote was taken by a change leads on until another one does, but the library
    /// takes no change of members from it.
    fn must_lead(&self) -> Result<(), MemberError> {
        let own = self.core.config.replica;
        let leader = self.core.leader();
        if leader == Some(own) && self.is_voter() {
            return Ok(());
        }
        Err(MemberError::NotLeader { leader: leader.filter(|leader| *leader != own) })
    }

    /// Whether this replica has a vote, as far as it knows.
    pub fn is_voter(&self) -> bool {
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().any(|id| id == self.core.config.replica.0)
    }

    async fn change(&self, change: ChangeMembers<u64, Member>) -> Result<(), MemberError> {
        let changed = self.core.raft.change_membership(change, false);
        match tokio::time::timeout(self.core.config.request_timeout(), changed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(error))) => Err(refused(error)),
            Ok(Err(RaftError::Fatal(_))) => Err(MemberError::Stopped(self.core.reason_or_requested())),
            Err(_) => Err(MemberError::OutcomeUnknown),
        }
    }
}

fn refused(error: ClientWriteError<Types>) -> MemberError {
    match error {
        ClientWriteError::ForwardToLeader(to) => MemberError::NotLeader { leader: to.leader_id.map(ReplicaId) },
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => MemberError::InProgress,
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(unknown)) => {
            MemberError::Unknown(ReplicaId(unknown.node_id))
        }
        error => {
            tracing::warn!(%error, "a change of members did not go through");
            MemberError::OutcomeUnknown
        }
    }
}

/// Tells the transport where the members are, now and whenever that changes.
pub(crate) async fn tell_transport<M: StateMachine>(core: std::sync::Arc<Core<M>>) {
    let mut metrics = core.raft.server_metrics();
    let mut told = None;
    loop {
        let config = std::sync::Arc::clone(&metrics.borrow_and_update().membership_config);
        if told.as_ref() != Some(config.log_id()) {
            told = Some(*config.log_id());
            let members = config.membership().nodes().map(|(id, member)| (ReplicaId(*id), member.clone()));
            core.peers.learn(&members.collect());
        }
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() { return },
        }
    }
}
