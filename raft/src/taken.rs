//! The calls that other replicas passed on to this one and that are not settled yet.
//!
//! A call whose answer takes long comes again, with the same id. It joins the one that waits
//! already: queued again it would be applied once all the same (`calls.rs`), but a slow leader
//! would get slower with each repetition.
//!
//! What is in here is in the queue, in an entry on its way, or answered at this moment: the bounds
//! are those of the queue and of the entries in flight.

use crate::ids::ReplicaId;
use crate::types::CallId;
use crate::wire::{CallReply, Refusal};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

type Key = (ReplicaId, u64, u64);

/// What the second attempt at a call listens to.
pub(crate) type Reply = watch::Receiver<Option<CallReply>>;

/// The calls that are under way.
#[derive(Default)]
pub(crate) struct Taken {
    open: Mutex<BTreeMap<Key, Reply>>,
}

/// How a call stands that was passed on.
pub(crate) enum Turn {
    /// It is the first of its id.
    First(Settling),
    /// The same one is under way.
    Again(Reply),
}

/// The duty to say what a call came to. Dropped without, nobody knows.
pub(crate) struct Settling {
    taken: Arc<Taken>,
    key: Key,
    reply: watch::Sender<Option<CallReply>>,
}

impl Taken {
    fn open(&self) -> MutexGuard<'_, BTreeMap<Key, Reply>> {
        // Nothing under the lock can panic half-way through a change.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a call.
    pub(crate) fn enter(self: &Arc<Self>, id: &CallId) -> Turn {
        let key = (id.replica, id.incarnation, id.sequence);
        let mut open = self.open();
        if let Some(reply) = open.get(&key) {
            return Turn::Again(reply.clone());
        }
        let (reply, replied) = watch::channel(None);
        open.insert(key, replied);
        Turn::First(Settling { taken: Arc::clone(self), key, reply })
    }
}

impl Settling {
    /// Tells everybody who waits for the same call.
    pub(crate) fn settle(self, reply: &CallReply) {
        self.reply.send_replace(Some(reply.clone()));
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.taken.open().remove(&self.key);
    }
}

/// What a call came to that was under way already.
pub(crate) async fn joined(mut reply: Reply) -> CallReply {
    match reply.wait_for(Option::is_some).await {
        Ok(reply) => reply.clone().unwrap_or(CallReply::Refused(Refusal::Unknown)),
        Err(_) => CallReply::Refused(Refusal::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: u64) -> CallId {
        CallId { replica: ReplicaId(2), incarnation: 1, sequence, answered_below: 0 }
    }

    #[tokio::test]
    async fn whoever_comes_again_hears_what_the_first_one_hears() {
        let taken = Arc::new(Taken::default());
        let Turn::First(first) = taken.enter(&id(1)) else { panic!("nobody was there before") };
        let Turn::Again(again) = taken.enter(&id(1)) else { panic!("the first one is under way") };
        assert!(matches!(taken.enter(&id(2)), Turn::First(_)), "another call");
        let reply = CallReply::Proposed { index: 7, outcomes: vec![vec![1]] };
        first.settle(&reply);
        assert_eq!(joined(again).await, reply);
        assert!(taken.open().is_empty());

        let Turn::First(left) = taken.enter(&id(1)) else { panic!("it is settled") };
        let Turn::Again(again) = taken.enter(&id(1)) else { panic!("it is under way again") };
        drop(left);
        assert_eq!(joined(again).await, CallReply::Refused(Refusal::Unknown));
    }
}
