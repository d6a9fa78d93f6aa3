//! What is done for the members without being asked: the leader brings in those
//! that were let in (`members.rs`), and each replica keeps its own address and
//! certificates up to date.
//!
//! The log is told of replicas that are not heard of, so that their agents are
//! welcome elsewhere.
//!
//! All of it follows from the log, so that whoever leads next goes on with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_raft::Replica;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::identity::Identity;
use super::members;
use super::message::Wish;
use super::node::Node;
use crate::broker::agents::report_missing;
use crate::broker::core::Broker;
use crate::broker::machine::Machine;

/// Between two looks at what there is to do.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A replica makes a new certificate for itself this often.
const CERTIFICATE_INTERVAL: Duration = Duration::from_hours(24);
/// How often it says where it is, while the log says something else.
const MOVE_INTERVAL: Duration = Duration::from_secs(2);

/// Runs until `stop`.
pub async fn run(
    node: Arc<Node>,
    replica: Replica<Machine>,
    broker: Arc<Broker>,
    folder: PathBuf,
    stop: CancellationToken,
) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut certified_at = Instant::now();
    let mut moved_at: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = stop.cancelled() => return,
        }
        let authority = broker.fleet().cluster().authority;
        if authority != node.authority() || certified_at.elapsed() >= CERTIFICATE_INTERVAL {
            certified_at = Instant::now();
            if let Err(error) = node.certify(authority) {
                tracing::error!(%error, "no new certificate for other replicas; the old one is kept");
            }
            if let Err(error) = Identity::note_authority(&folder, authority) {
                tracing::warn!(%error, "the next start begins with certificates of an earlier authority");
            }
        }
        if moved_at.is_none_or(|at| at.elapsed() >= MOVE_INTERVAL)
            && let Some(wish) = own_move(&node, &replica)
        {
            moved_at = Some(Instant::now());
            let moved = tokio::select! {
                moved = node.wish(wish, None) => moved,
                () = stop.cancelled() => return,
            };
            if let Err(error) = moved {
                tracing::warn!(%error, "the cluster does not know the address of this replica yet");
            }
        }
        members::tend(&replica, || broker.fleet().cluster().clone()).await;
    }
}

/// What to wish for when the log names another address of this replica than
/// its configuration.
fn own_move(node: &Node, replica: &Replica<Machine>) -> Option<Wish> {
    let own = node.own();
    let members = replica.members();
    let known = &members.get(&berth_raft::ReplicaId(own.replica.0))?.member;
    let is_moved = !node.address().is_empty() && known.address != node.address();
    is_moved.then(|| Wish::Move {
        replica: own.replica,
        folder: own.folder.clone(),
        address: node.address().to_owned(),
    })
}

/// Tells the log of replicas that are not heard of, until `stop`.
pub async fn miss(node: Arc<Node>, replica: Replica<Machine>, broker: Arc<Broker>, stop: CancellationToken) {
    let leading = std::sync::Mutex::new(None);
    let last_heard = move || {
        let status = replica.status();
        let mut leading = leading.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !status.is_leader() {
            *leading = None;
            return std::collections::BTreeMap::new();
        }
        let began = match *leading {
            Some((term, began)) if term == status.term => began,
            _ => leading.insert((status.term, Instant::now())).1,
        };
        node.last_heard(began)
    };
    report_missing(broker, last_heard, stop).await;
}
