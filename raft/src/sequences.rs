//! The numbers of this replica's own calls, and which of them still wait for their outcome.

use crate::calls::CALLS_KEPT_MAX;
use crate::error::ProposeError;
use crate::ids::ReplicaId;
use crate::types::CallId;
use std::collections::VecDeque;
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
    /// All below are answered.
    answered_below: u64,
    /// The calls from there on: whether they still wait. The first one does.
    waiting: VecDeque<bool>,
}

impl Open {
    fn begin(&mut self) -> u64 {
        self.waiting.push_back(true);
        self.answered_below + self.waiting.len() as u64 - 1
    }

    fn end(&mut self, sequence: u64) {
        let place = sequence.checked_sub(self.answered_below).and_then(|place| usize::try_from(place).ok());
        if let Some(waits) = place.and_then(|place| self.waiting.get_mut(place)) {
            *waits = false;
        }
        while self.waiting.front() == Some(&false) {
            self.waiting.pop_front();
            self.answered_below += 1;
        }
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
        if open.waiting.len() as u64 >= CALLS_KEPT_MAX {
            return Err(overloaded());
        }
        let sequence = open.begin();
        let id = CallId {
            replica: self.replica,
            incarnation: self.incarnation,
            sequence,
            answered_below: open.answered_below,
        };
        Ok(Some(OpenCall { sequences: Arc::clone(self), id }))
    }
}

/// What a call is told while as many are unanswered as are remembered.
pub(crate) fn overloaded() -> ProposeError {
    ProposeError::Overloaded { waiting_commands: usize::try_from(CALLS_KEPT_MAX).unwrap_or(usize::MAX) }
}

/// A call that waits for its outcome. Dropped, nobody waits any more.
pub(crate) struct OpenCall {
    sequences: Arc<Sequences>,
    id: CallId,
}

impl OpenCall {
    /// The same for every attempt; what it says to be answered is what was when the call began.
    pub(crate) fn id(&self) -> CallId {
        self.id
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.sequences.open().end(self.id.sequence);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_answered_is_told_up_to_the_oldest_that_waits() {
        let sequences = Sequences::new(ReplicaId(3), 9);
        let begin = || sequences.begin().unwrap().unwrap();
        let [first, second, third] = [(); 3].map(|()| begin());
        let id = third.id();
        assert_eq!((id.replica, id.incarnation, id.sequence, id.answered_below), (ReplicaId(3), 9, 2, 0));
        drop(second);
        assert_eq!(begin().id().answered_below, 0);
        drop(first);
        let id = begin().id();
        assert_eq!((id.sequence, id.answered_below), (4, 2));
        drop(third);
        let id = begin().id();
        assert_eq!((id.sequence, id.answered_below), (5, 5));
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
