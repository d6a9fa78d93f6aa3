//! How replicas that a configuration names become a cluster, exactly once.
//!
//! The one with the lowest number forms the cluster, when all the others have
//! said that they have no log and never had one. The others wait for it. One
//! that comes with an empty folder when the cluster exists already has lost
//! its log, or was never a member: it must not take part under that number.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_raft::{Formation, Member, Peers};
use tokio::time::Instant;

use super::frame::Unwelcome;
use super::message::Introduction;
use super::node::Node;
use crate::domain::ReplicaId;

/// Between two rounds of questions.
const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// How often it is told who is waited for.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// Why a replica does not take part.
#[derive(Debug, thiserror::Error)]
pub enum FormingError {
    /// The cluster knows it with another folder, or not at all.
    #[error("the cluster exists, and this data folder is empty: {0}")]
    Unwelcome(Unwelcome),
    /// The cluster exists without it.
    #[error(
        "the cluster exists already, and replica {0} is no member of it: `berth cluster add` on a member, then \
         `berth cluster join` here"
    )]
    NotAMember(ReplicaId),
}

/// What a replica with an empty log is to do, among the members that its
/// configuration names.
pub async fn form(node: &Node, addresses: &BTreeMap<ReplicaId, String>) -> Result<Formation, FormingError> {
    let own = node.own().replica;
    let others: Vec<ReplicaId> = addresses.keys().copied().filter(|id| *id != own).collect();
    let is_first = others.iter().all(|id| own < *id);
    node.dialer().learn(
        &addresses
            .iter()
            .map(|(id, address)| {
                (berth_raft::ReplicaId(id.0), Member { address: address.clone(), folder: String::new() })
            })
            .collect(),
    );
    let mut told_at = Instant::now();
    loop {
        let mut introduced = BTreeMap::new();
        for id in &others {
            match node.introduced(*id).await {
                Ok(introduction) => drop(introduced.insert(*id, introduction)),
                Err(failure) => {
                    if let Some(unwelcome) = node.dialer().unwelcome().borrow().clone() {
                        return Err(FormingError::Unwelcome(unwelcome));
                    }
                    tracing::debug!(replica = %id, %failure, "a member was not met yet");
                }
            }
        }
        if let Some(decided) = decide(node, addresses, is_first, others.len(), &introduced)? {
            return Ok(decided);
        }
        if told_at.elapsed() >= TELL_INTERVAL {
            told_at = Instant::now();
            let missing: Vec<_> = others.iter().filter(|id| !introduced.contains_key(*id)).map(|id| id.0).collect();
            tracing::warn!(replicas = ?missing, "waiting for other replicas to form the cluster");
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

/// Decides, once enough is known.
fn decide(
    node: &Node,
    addresses: &BTreeMap<ReplicaId, String>,
    is_first: bool,
    others: usize,
    introduced: &BTreeMap<ReplicaId, Introduction>,
) -> Result<Option<Formation>, FormingError> {
    let own = node.own();
    for introduction in introduced.values() {
        let known = introduction.members.iter().find(|(id, _)| *id == own.replica);
        match known {
            // The log comes from there.
            Some((_, folder)) if folder == own.folder.as_str() => return Ok(Some(Formation::Wait)),
            Some(_) => return Err(FormingError::Unwelcome(Unwelcome::OtherFolder { id: own.replica })),
            None if !introduction.members.is_empty() => return Err(FormingError::NotAMember(own.replica)),
            None => {}
        }
    }
    if !is_first {
        // The first one forms it. Should this one have been a member before,
        // it will be told so when it is met.
        return Ok((!introduced.is_empty()).then_some(Formation::Wait));
    }
    // One that had a log and does not know the members yet will know them soon.
    if introduced.len() < others || introduced.values().any(|introduction| introduction.has_log) {
        return Ok(None);
    }
    let folder = |id: &ReplicaId| match introduced.get(id) {
        Some(introduction) => introduction.folder.as_str().to_owned(),
        None => own.folder.as_str().to_owned(),
    };
    let members = addresses
        .iter()
        .map(|(id, address)| (berth_raft::ReplicaId(id.0), Member { address: address.clone(), folder: folder(id) }));
    Ok(Some(Formation::Members(members.collect())))
}
