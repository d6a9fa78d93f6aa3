//! Peers in one process, with connections that can be cut.

use crate::ids::ReplicaId;
use crate::machine::StateMachine;
use crate::peers::{Lane, PeerError, Peers};
use crate::replica::Replica;
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Handler = Arc<dyn Fn(ReplicaId, Vec<u8>) -> BoxFuture<'static, Vec<u8>> + Send + Sync>;

#[derive(Default)]
struct State {
    handlers: BTreeMap<ReplicaId, Handler>,
    isolated: BTreeSet<ReplicaId>,
    snapshot_chunks: u64,
}

/// Connects replicas of one process. Clones are the same network.
#[derive(Clone, Default)]
pub struct LocalNetwork {
    state: Arc<Mutex<State>>,
}

impl LocalNetwork {
    /// A network without replicas.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The transport of the replica `from`.
    pub fn peers_of(&self, from: ReplicaId) -> Arc<dyn Peers> {
        Arc::new(LocalPeers { from, network: self.clone() })
    }

    /// Makes `replica` reachable, in place of an earlier one of the same id.
    pub fn connect<M: StateMachine>(&self, replica: &Replica<M>) {
        let id = replica.status().replica;
        let replica = replica.clone();
        let handler: Handler = Arc::new(move |from, request| {
            let replica = replica.clone();
            Box::pin(async move { replica.answer_peer(from, &request).await })
        });
        self.state().handlers.insert(id, handler);
    }

    /// Forgets a replica: it cannot be reached any more.
    pub fn disconnect(&self, id: ReplicaId) {
        self.state().handlers.remove(&id);
    }

    /// Cuts all connections of a replica, both ways.
    pub fn isolate(&self, id: ReplicaId) {
        self.state().isolated.insert(id);
    }

    /// Restores all connections.
    pub fn heal(&self) {
        self.state().isolated.clear();
    }

    /// How many parts of snapshots have been carried.
    pub fn snapshot_chunks(&self) -> u64 {
        self.state().snapshot_chunks
    }
}

struct LocalPeers {
    from: ReplicaId,
    network: LocalNetwork,
}

impl LocalPeers {
    fn handler(&self, to: ReplicaId, lane: Lane) -> Result<Handler, PeerError> {
        let mut state = self.network.state();
        let cut = state.isolated.contains(&self.from) || state.isolated.contains(&to);
        let handler = state.handlers.get(&to).filter(|_| !cut).cloned();
        if lane == Lane::Snapshot && handler.is_some() {
            state.snapshot_chunks += 1;
        }
        handler.ok_or_else(|| PeerError::Unreachable { to, reason: "not connected".to_owned() })
    }
}

impl Peers for LocalPeers {
    fn call(&self, to: ReplicaId, lane: Lane, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        Box::pin(async move {
            let handler = self.handler(to, lane)?;
            let answer = handler(self.from, request).await;
            // A connection that was cut in between loses the answer, not the effect.
            match self.handler(to, Lane::Replication) {
                Ok(_) => Ok(answer),
                Err(_) => Err(PeerError::NoAnswer { to, reason: "connection lost".to_owned() }),
            }
        })
    }
}
