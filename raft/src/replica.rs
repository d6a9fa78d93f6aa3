//! The handle on a running replica.

use crate::clock::Clock;
use crate::config::Config;
use crate::error::{ProposeError, ReadError, SnapshotError, StartError, StopReason};
use crate::ids::{LogIndex, ReplicaId};
use crate::machine::{Observer, StateMachine};
use crate::peers::Peers;
use crate::status::Status;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;

/// What became of the commands of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed<O> {
    /// The entry that holds them all.
    pub index: LogIndex,
    /// One outcome per command, in the order of the commands.
    pub outcomes: Vec<O>,
}

/// An immutable state as it was right after the entry at `index`.
#[derive(Debug)]
pub struct View<M> {
    /// The state.
    pub state: Arc<M>,
    /// The last entry applied to it; 0 also when none was yet.
    pub index: LogIndex,
}

/// A running replica. Clones are handles on the same replica; it ends with
/// [`stop`](Self::stop), or when the last handle is dropped.
pub struct Replica<M: StateMachine>(std::marker::PhantomData<M>);

impl<M: StateMachine> Replica<M> {
    /// Starts a cluster of one.
    ///
    /// On an empty folder the cluster is formed, exactly once, from `initial`; later starts ignore
    /// `initial` unless the log has to be replayed from its beginning. Returns once this replica
    /// leads and its state holds everything that was ever acknowledged.
    pub async fn start(
        config: Config,
        clock: Arc<dyn Clock>,
        initial: M,
        observer: Observer<M>,
    ) -> Result<Self, StartError> {
        let _ = (config, clock, initial, observer);
        todo!()
    }

    /// Starts a replica of a cluster of `members`, which includes this one and is the same on all
    /// of them at their first start; afterwards the members stored in the log count.
    ///
    /// With more than one member this returns as soon as the replica takes part:
    /// [`local`](Self::local) may lag behind, [`read`](Self::read) never does.
    pub async fn start_with_peers(
        config: Config,
        clock: Arc<dyn Clock>,
        initial: M,
        observer: Observer<M>,
        peers: Arc<dyn Peers>,
        members: BTreeSet<ReplicaId>,
    ) -> Result<Self, StartError> {
        let _ = (config, clock, initial, observer, peers, members);
        todo!()
    }

    /// Commits and applies `commands`, all in one log entry and in this order, together with what
    /// other callers propose at the same time. Durable on a majority when this returns. A replica
    /// that does not lead forwards to the leader. No commands is a tick.
    pub async fn propose(
        &self,
        commands: Vec<M::Command>,
    ) -> Result<Proposed<M::Outcome>, ProposeError> {
        let _ = commands;
        todo!()
    }

    /// A state that holds everything acknowledged before this call (linearizable). Concurrent
    /// readers share one confirmation; nothing is written.
    pub async fn read(&self) -> Result<View<M>, ReadError> {
        todo!()
    }

    /// The latest state applied here, without asking anybody. May lag behind other replicas.
    pub fn local(&self) -> View<M> {
        todo!()
    }

    /// Follows the last applied entry; [`local`](Self::local) is at least that new.
    pub fn applied(&self) -> watch::Receiver<LogIndex> {
        todo!()
    }

    /// The replica's own account of itself.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// Follows the reason why the replica has stopped; `None` while it runs.
    pub fn stopped(&self) -> watch::Receiver<Option<StopReason>> {
        todo!()
    }

    /// Makes a snapshot that covers everything applied before this call, and waits for it.
    pub async fn trigger_snapshot(&self) -> Result<LogIndex, SnapshotError> {
        todo!()
    }

    /// Answers a request of another replica, for the receiving side of a [`Peers`] transport.
    /// Garbage is answered with an error that the sender understands; it harms nobody.
    pub async fn answer_peer(&self, from: ReplicaId, request: &[u8]) -> Vec<u8> {
        let _ = (from, request);
        todo!()
    }

    /// Stops taking part, finishes what is being written and closes the data folder. Calls that
    /// wait get [`StopReason::Requested`] or an unknown outcome. Idempotent.
    pub async fn stop(&self) -> Result<(), StopReason> {
        todo!()
    }
}
