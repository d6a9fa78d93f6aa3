//! Members come and go: what the leader does for replicas that were let in, and
//! how one is removed.
//!
//! All of it follows from the log, so that whoever leads next goes on with it.
//! It knows replicas only, whatever carries their words: simulated ones are
//! brought in and removed by the same code.

use berth_raft::{Member, MemberError, Replica, StateMachine};

use crate::domain::ReplicaId;
use crate::domain::cluster::{Admission, Cluster};

/// Why a member was not removed. Unless it says otherwise, it may be on its way.
#[derive(Debug)]
pub enum NotRemoved<E> {
    /// It led and has handed over; whoever leads now is to be asked.
    HandedOver,
    /// It leads, and no other replica can take over. Nothing was begun.
    Leads,
    /// The members were not changed.
    Unchanged(MemberError),
    /// The log did not take it.
    NotTaken(E),
}

/// Does what is to be done next for the members, if this replica leads: ends a
/// change that was left half done, and takes the next step of each replica that
/// was let in. `cluster` gives what the log has decided by now.
pub async fn tend<M: StateMachine>(replica: &Replica<M>, cluster: impl Fn() -> Cluster) {
    if !replica.status().is_leader() {
        return;
    }
    if !replica.is_voter() {
        // It ended a change that took its own vote; members are changed by one that has a vote.
        replica.hand_over().await;
        return;
    }
    if let Err(error) = replica.finish_change().await {
        tracing::debug!(%error, "a change of members is not finished yet");
    }
    for (id, admission) in cluster().admitted {
        // It may have been retired meanwhile.
        if cluster().admitted.contains_key(&id) {
            bring_in(replica, id, &admission).await;
        }
    }
}

/// Takes the next step of a replica that was let in; the rest follows.
async fn bring_in<M: StateMachine>(replica: &Replica<M>, id: ReplicaId, admission: &Admission) {
    let members = replica.members();
    let step = match members.get(&raft_id(id)) {
        Some(member) if member.is_voter => Ok(()),
        None => {
            let folder = admission.folder.as_str().to_owned();
            replica.add_learner(raft_id(id), Member { address: admission.address.clone(), folder }).await
        }
        Some(_) => match replica.may_promote(raft_id(id)) {
            Ok(()) => match admission.replaces.map(raft_id) {
                Some(replaced) if members.contains_key(&replaced) => make_room(replica, replaced).await,
                _ => replica.promote(raft_id(id)).await,
            },
            behind => behind,
        },
    };
    match step {
        Ok(()) | Err(MemberError::Behind { .. } | MemberError::InProgress | MemberError::NotLeader { .. }) => {}
        Err(error) => tracing::warn!(replica = %id, %error, "a replica that joins has to wait"),
    }
}

/// Removes the replica whose place another one takes.
async fn make_room<M: StateMachine>(replica: &Replica<M>, replaced: berth_raft::ReplicaId) -> Result<(), MemberError> {
    if replica.status().replica == replaced {
        // Whoever leads next goes on.
        return if replica.hand_over().await { Ok(()) } else { Err(MemberError::Leads(replaced)) };
    }
    replica.remove(replaced).await?;
    tracing::info!(%replaced, "a replica was removed: another one takes its place");
    Ok(())
}

/// Removes a member, through the replica that leads. `retire` puts into the log
/// that it is retired; `cluster` is what the log has decided by now.
pub async fn remove<M: StateMachine, E>(
    replica: &Replica<M>,
    cluster: &Cluster,
    id: ReplicaId,
    retire: impl Future<Output = Result<(), E>>,
) -> Result<(), NotRemoved<E>> {
    let is_member = replica.is_member(raft_id(id));
    // One that was removed half-way is retired now.
    let was_given = cluster.admitted.contains_key(&id) || id <= cluster.last_replica;
    if !is_member && !was_given {
        return Err(NotRemoved::Unchanged(MemberError::Unknown(raft_id(id))));
    }
    if replica.status().replica == raft_id(id) {
        return Err(if replica.hand_over().await { NotRemoved::HandedOver } else { NotRemoved::Leads });
    }
    // Nobody adds it again once it is retired, nor is its number given again;
    // should it not be removed then, the operator is told, and asks again.
    if is_member {
        replica.can_remove(raft_id(id)).await.map_err(NotRemoved::Unchanged)?;
    }
    retire.await.map_err(NotRemoved::NotTaken)?;
    // Whoever was let in may have been added since.
    if replica.is_member(raft_id(id)) {
        replica.remove(raft_id(id)).await.map_err(NotRemoved::Unchanged)?;
    }
    Ok(())
}

/// Whether a replica was removed, as far as this one knows. One that lags behind
/// does not know newer members; it knows of the numbers that were given and
/// taken back.
pub fn was_removed<M: StateMachine>(replica: &Replica<M>, cluster: &Cluster, id: ReplicaId) -> bool {
    if replica.is_member(raft_id(id)) {
        return false;
    }
    let was_taken_back = id <= cluster.last_replica && !cluster.admitted.contains_key(&id);
    was_taken_back && !replica.members().is_empty()
}

const fn raft_id(id: ReplicaId) -> berth_raft::ReplicaId {
    berth_raft::ReplicaId(id.0)
}
