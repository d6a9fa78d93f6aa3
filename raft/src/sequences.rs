//! The numbers of this replica's own calls, and which of them still wait for their outcome.

use crate::calls::CALLS_KEPT_MAX;
use crate::error::ProposeError;
use crate::ids::ReplicaId;
use crate::types::CallId;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Numbers the calls of one run of this replica.
pub(crate) struct Sequences {
    replica: ReplicaId,
    /// 0: calls have no ids.
    incarnation: u64,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    waiting: BTreeSet<u64>,
}

impl Open {
    /// All below are answered.
    fn answered_below(&self) -> u64 {
        self.waiting.first().copied().unwrap_or(self.next)
    }
}

impl Sequences {
    pub(crate) fn new(replica: ReplicaId, incarnation: u64) -> Arc<Self> {
        Arc::new(Self { replica, incarnation, open: Mutex::default() })
    }

    /// Whether calls have ids.
    pub(crate) fn are_remembered(&self) -> bool {
        self.incarnation != 0
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call; `None` when calls have no ids. Refused while too many are unanswered.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<Option<OpenCall>, ProposeError> {
        if !self.are_remembered() {
            return Ok(None);
        }
        let mut open = self.open();
        let sequence = open.next;
        if sequence - open.answered_below() >= CALLS_KEPT_MAX {
            return Err(overloaded());
        }
        open.next += 1;
        open.waiting.insert(sequence);
        Ok(Some(OpenCall { sequences: Arc::clone(self), sequence }))
    }
}

/// What a call is told while as many are unanswered as are remembered.
pub(crate) fn overloaded() -> ProposeError {
    ProposeError::Overloaded { waiting_commands: usize::try_from(CALLS_KEPT_MAX).unwrap_or(usize::MAX) }
}

/// A call that waits for its outcome. Dropped, nobody waits any more.
pub(crate) struct OpenCall {
    sequences: Arc<Sequences>,
    sequence: u64,
}

impl OpenCall {
    /// The id, with what is answered by now.
    pub(crate) fn id(&self) -> CallId {
        let Sequences { replica, incarnation, .. } = *self.sequences;
        let answered_below = self.sequences.open().answered_below();
        CallId { replica, incarnation, sequence: self.sequence, answered_below }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.sequences.open().waiting.remove(&self.sequence);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_answered_is_told_up_to_the_oldest_that_waits() {
        let sequences = Sequences::new(ReplicaId(3), 9);
        let [first, second, third] = [(); 3].map(|()| sequences.begin().unwrap().unwrap());
        let id = third.id();
        assert_eq!((id.replica, id.incarnation, id.sequence, id.answered_below), (ReplicaId(3), 9, 2, 0));
        drop(second);
        assert_eq!(third.id().answered_below, 0);
        drop(first);
        assert_eq!(third.id().answered_below, 2);
    }

    #[test]
    fn without_an_incarnation_calls_have_no_ids() {
        assert!(Sequences::new(ReplicaId(1), 0).begin().unwrap().is_none());
    }

    #[test]
    fn no_more_calls_are_taken_than_are_kept() {
        let sequences = Sequences::new(ReplicaId(1), 1);
        let oldest = sequences.begin().unwrap().unwrap();
        for _ in 1..CALLS_KEPT_MAX {
            sequences.begin().unwrap();
        }
        assert_eq!(sequences.begin().err(), Some(overloaded()));
        drop(oldest);
        assert!(sequences.begin().is_ok());
    }
}
