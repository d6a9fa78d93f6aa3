//! The calls that were applied and whose outcome somebody may still ask for.
//!
//! Part of the replicated state: every replica keeps the same, and a snapshot holds it. A call that
//! comes again, because its answer was lost, is answered from here and not applied a second time.
//!
//! Invariants: a call is applied at most once; of one replica only its newest run is known; at most
//! [`CALLS_KEPT_MAX`] calls of it are kept, and no more once they hold [`OUTCOMES_BYTES_MAX`]; a
//! replica that is no member has none.
//!
//! Records of a snapshot have no version of their own: they are of the format that its header
//! names, and other ones would be another format. A clone shares the outcomes; it copies a few
//! words for each call that is not answered yet.

use crate::codec::{self, Error};
use crate::ids::{LogIndex, ReplicaId};
use crate::types::CallId;
use bincode::{Decode, Encode};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// How far a replica's newest call may be ahead of its oldest unanswered one. A replica takes no
/// more calls itself by then, so that this refuses nothing in honest operation.
pub(crate) const CALLS_KEPT_MAX: u64 = 65_536;

/// With so many bytes of outcomes kept, of one replica, only its oldest unanswered call is applied:
/// the others are told to come again, and forgotten ones make room.
pub(crate) const OUTCOMES_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The applied calls, by the replica that was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    origins: BTreeMap<ReplicaId, Origin>,
}

/// What is known of one replica's newest run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Origin {
    incarnation: u64,
    answered_below: u64,
    /// The calls from `answered_below` on, where they were applied. The last one was.
    kept: VecDeque<Option<Kept>>,
    /// The bytes of their outcomes.
    bytes: usize,
}

impl Origin {
    /// Where a call that is not answered stands, if it is not too far ahead.
    fn place(&self, sequence: u64) -> Option<usize> {
        let place = sequence.checked_sub(self.answered_below).filter(|place| *place < CALLS_KEPT_MAX)?;
        usize::try_from(place).ok()
    }

    /// Nobody waits for what is below.
    fn forget_below(&mut self, answered_below: u64) {
        let Some(more) = answered_below.checked_sub(self.answered_below) else { return };
        // Each call comes and goes once: this costs nothing that grows.
        let more = usize::try_from(more).unwrap_or(usize::MAX).min(self.kept.len());
        let forgotten = self.kept.drain(..more).flatten().map(|kept| kept.outcomes.len());
        self.bytes -= forgotten.sum::<usize>();
        self.answered_below = answered_below;
    }
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The entry it was applied with.
    pub(crate) index: LogIndex,
    /// Its outcomes, encoded.
    pub(crate) outcomes: Arc<[u8]>,
}

/// What has to be done with a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Apply it, and [`Calls::keep`] what it came to.
    Apply,
    /// It was applied.
    Repeated(Kept),
    /// Nobody waits for it.
    Forgotten,
    /// Too far ahead of what is not answered, or too much of that is kept.
    TooMany,
}

impl Calls {
    /// Whether a call of a member is to be applied. Forgets what its replica no longer waits for.
    pub(crate) fn admit(&mut self, id: &CallId) -> Admission {
        let origin = self.origins.entry(id.replica).or_default();
        if id.incarnation < origin.incarnation {
            return Admission::Forgotten;
        }
        if id.incarnation > origin.incarnation {
            *origin = Origin { incarnation: id.incarnation, ..Origin::default() };
        }
        origin.forget_below(id.answered_below);
        if id.sequence < origin.answered_below {
            return Admission::Forgotten;
        }
        let Some(place) = origin.place(id.sequence) else {
            return Admission::TooMany;
        };
        if let Some(Some(kept)) = origin.kept.get(place) {
            return Admission::Repeated(kept.clone());
        }
        if origin.bytes >= OUTCOMES_BYTES_MAX && place > 0 {
            return Admission::TooMany;
        }
        Admission::Apply
    }

    /// Keeps what a call came to that was just admitted and applied.
    pub(crate) fn keep(&mut self, id: &CallId, index: LogIndex, outcomes: &[u8]) {
        let kept = Kept { index, outcomes: Arc::from(outcomes) };
        let origin = self.origins.entry(id.replica).or_default();
        let Some(place) = origin.place(id.sequence) else { return };
        if origin.kept.len() <= place {
            origin.kept.resize(place + 1, None);
        }
        origin.bytes += outcomes.len();
        let before = origin.kept[place].replace(kept);
        origin.bytes -= before.map_or(0, |before| before.outcomes.len());
    }

    /// Forgets the replicas that are no members any more.
    pub(crate) fn retain_members(&mut self, is_member: impl Fn(ReplicaId) -> bool) {
        self.origins.retain(|replica, _| is_member(*replica));
    }

    /// Writes all of it, record by record.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        codec::write_record(out, &(self.origins.len() as u64))?;
        for (replica, origin) in &self.origins {
            let head = RawOrigin {
                replica: replica.0,
                incarnation: origin.incarnation,
                answered_below: origin.answered_below,
                kept: origin.kept.iter().flatten().count() as u64,
            };
            codec::write_record(out, &head)?;
            let numbered = (origin.answered_below..).zip(&origin.kept);
            for (sequence, kept) in numbered.filter_map(|(sequence, kept)| Some((sequence, kept.as_ref()?))) {
                let record = RawKept { sequence, index: kept.index.0, outcomes: kept.outcomes.to_vec() };
                codec::write_record(out, &record)?;
            }
        }
        Ok(())
    }

    /// Reads what [`write`](Self::write) wrote.
    pub(crate) fn read(input: &mut dyn Read) -> Result<Self, Error> {
        let what = "the calls in a snapshot";
        let impossible = |reason: String| Error::Impossible { what, reason };
        let mut calls = Self::default();
        let origins: u64 = codec::read_record(what, input)?;
        for _ in 0..origins {
            let head: RawOrigin = codec::read_record(what, input)?;
            let (incarnation, answered_below) = (head.incarnation, head.answered_below);
            let mut origin = Origin { incarnation, answered_below, kept: VecDeque::new(), bytes: 0 };
            for _ in 0..head.kept {
                let RawKept { sequence, index, outcomes } = codec::read_record(what, input)?;
                // They come in order, each once.
                let Some(place) = origin.place(sequence).filter(|place| *place >= origin.kept.len()) else {
                    return Err(impossible(format!("call {sequence} of replica {} is kept", head.replica)));
                };
                origin.kept.resize(place, None);
                origin.bytes += outcomes.len();
                origin.kept.push_back(Some(Kept { index: LogIndex(index), outcomes: outcomes.into() }));
            }
            calls.origins.insert(ReplicaId(head.replica), origin);
        }
        Ok(calls)
    }
}

#[derive(Encode, Decode)]
struct RawOrigin {
    replica: u64,
    incarnation: u64,
    answered_below: u64,
    kept: u64,
}

#[derive(Encode, Decode)]
struct RawKept {
    sequence: u64,
    index: u64,
    outcomes: Vec<u8>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn id(incarnation: u64, sequence: u64, answered_below: u64) -> CallId {
        CallId { replica: ReplicaId(1), incarnation, sequence, answered_below }
    }

    /// Applies a call as the applier does; whether it was applied.
    fn offer(calls: &mut Calls, id: CallId) -> bool {
        let admitted = calls.admit(&id) == Admission::Apply;
        if admitted {
            calls.keep(&id, LogIndex(id.sequence), &id.sequence.to_le_bytes());
        }
        admitted
    }

    fn kept(calls: &Calls) -> usize {
        calls.origins.values().map(|origin| origin.kept.iter().flatten().count()).sum()
    }

    #[test]
    fn a_repeated_call_is_answered_with_what_it_came_to() {
        let mut calls = Calls::default();
        assert!(offer(&mut calls, id(1, 0, 0)));
        let kept = Kept { index: LogIndex(0), outcomes: 0_u64.to_le_bytes().to_vec().into() };
        assert_eq!(calls.admit(&id(1, 0, 0)), Admission::Repeated(kept));
    }

    #[test]
    fn a_call_that_nobody_waits_for_is_not_applied() {
        let mut calls = Calls::default();
        assert!(offer(&mut calls, id(1, 0, 0)));
        assert!(offer(&mut calls, id(1, 5, 5)));
        assert_eq!(kept(&calls), 1, "what is answered is forgotten");
        assert_eq!(calls.admit(&id(1, 0, 0)), Admission::Forgotten);
        assert_eq!(calls.admit(&id(1, 4, 0)), Admission::Forgotten);
    }

    #[test]
    fn a_later_run_of_a_replica_forgets_the_earlier_ones() {
        let mut calls = Calls::default();
        assert!(offer(&mut calls, id(1, 7, 0)));
        assert!(offer(&mut calls, id(2, 0, 0)));
        assert_eq!(kept(&calls), 1);
        assert_eq!(calls.admit(&id(1, 7, 0)), Admission::Forgotten);
        assert_eq!(calls.admit(&id(1, 8, 0)), Admission::Forgotten);
        // Another replica's runs are its own.
        assert!(offer(&mut calls, CallId { replica: ReplicaId(2), ..id(1, 7, 0) }));
    }

    #[test]
    fn a_replica_that_never_says_what_is_answered_is_refused_in_the_end() {
        let mut calls = Calls::default();
        assert!(offer(&mut calls, id(1, CALLS_KEPT_MAX - 1, 0)));
        assert_eq!(calls.admit(&id(1, CALLS_KEPT_MAX, 0)), Admission::TooMany);
        assert!(offer(&mut calls, id(1, CALLS_KEPT_MAX, 1)));
    }

    #[test]
    fn long_outcomes_make_room_before_more_are_kept() {
        let mut calls = Calls::default();
        let half = vec![0; OUTCOMES_BYTES_MAX / 2];
        for sequence in [1, 2] {
            assert_eq!(calls.admit(&id(1, sequence, 0)), Admission::Apply);
            calls.keep(&id(1, sequence, 0), LogIndex(1), &half);
        }
        assert_eq!(calls.admit(&id(1, 3, 0)), Admission::TooMany);
        let mut bytes = Vec::new();
        calls.write(&mut bytes).unwrap();
        let mut read = Calls::read(&mut bytes.as_slice()).unwrap();
        assert_eq!(read, calls);
        assert_eq!(read.admit(&id(1, 3, 0)), Admission::TooMany, "also after a snapshot");
        assert_eq!(read.admit(&id(1, 0, 0)), Admission::Apply, "the others wait for the oldest one");
        assert_eq!(calls.admit(&id(1, 3, 2)), Admission::Apply, "what is answered makes room");
    }

    #[test]
    fn the_calls_of_who_left_go_with_it() {
        let mut calls = Calls::default();
        assert!(offer(&mut calls, id(1, 0, 0)));
        assert!(offer(&mut calls, CallId { replica: ReplicaId(2), ..id(1, 0, 0) }));
        calls.retain_members(|replica| replica == ReplicaId(2));
        assert_eq!(kept(&calls), 1);
    }

    proptest! {
        #[test]
        fn every_call_is_applied_once_and_a_snapshot_in_between_changes_nothing(
            offers in proptest::collection::vec((1..3_u64, 0..40_u64, 0..40_u64), 1..200),
            snapshot_at in 0..200_usize,
        ) {
            let mut calls = Calls::default();
            let mut applied = BTreeSet::new();
            for (number, (incarnation, sequence, answered_below)) in offers.into_iter().enumerate() {
                let id = id(incarnation, sequence, answered_below.min(sequence));
                if offer(&mut calls, id) {
                    prop_assert!(applied.insert((incarnation, sequence)), "applied twice");
                }
                if number == snapshot_at {
                    let mut bytes = Vec::new();
                    calls.write(&mut bytes).unwrap();
                    let read = Calls::read(&mut bytes.as_slice()).unwrap();
                    prop_assert_eq!(&read, &calls);
                    calls = read;
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Calls::read(&mut bytes.as_slice()));
        }
    }
}
