//! Places that many share: connections of a port, requests under way.
//!
//! Who has some already gets another one only while enough are left for the
//! others: at most [`PARTS`] times as many as are free. So one alone gets all
//! but an eighth, however many there are, two together all but a fifteenth of them, and
//! whoever has none gets one as long as there is any. A small fixed number
//! would shut out those who come from one address with good reason.
//!
//! Invariants: never more are taken than there are; who has none left costs no
//! memory.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// How many times as many as are free one may have.
pub const PARTS: usize = 7;

/// Places, and who has how many of them.
#[derive(Debug)]
pub struct Shares<K> {
    max: usize,
    taken: Mutex<Counts<K>>,
}

#[derive(Debug)]
struct Counts<K> {
    all: usize,
    of: HashMap<K, usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// All are taken.
    All,
    /// What is left is for others.
    Share,
}

/// A place, given back when it is dropped.
pub struct Share<K: Hash + Eq> {
    among: Arc<Shares<K>>,
    /// Whose; nobody's when the holder takes places without a bound.
    key: Option<K>,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// So many places.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::new(Counts { all: 0, of: HashMap::new() }) })
    }

    /// A place for somebody; for `None` as long as there is any.
    pub fn take(self: &Arc<Self>, key: Option<K>) -> Result<Share<K>, Full> {
        // Nothing under the lock can panic half-way through a change.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.max.saturating_sub(taken.all);
        if free == 0 {
            return Err(Full::All);
        }
        if let Some(key) = &key {
            let has = taken.of.get(key).copied().unwrap_or_default();
            if has >= free.saturating_mul(PARTS) {
                return Err(Full::Share);
            }
            // A clone of a key takes no memory: it is an address, or shares its text.
            taken.of.insert(key.clone(), has + 1);
        }
        taken.all += 1;
        drop(taken);
        Ok(Share { among: Arc::clone(self), key })
    }
}

impl<K: Hash + Eq> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.among.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        let Some(key) = &self.key else { return };
        if let Some(count) = taken.of.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                taken.of.remove(key);
            }
        }
    }
}

impl<K: Hash + Eq + fmt::Debug> fmt::Debug for Share<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// As many as somebody gets.
    fn all_for(shares: &Arc<Shares<u8>>, key: Option<u8>) -> (Vec<Share<u8>>, Full) {
        let mut got = Vec::new();
        loop {
            match shares.take(key) {
                Ok(share) => got.push(share),
                Err(full) => return (got, full),
            }
        }
    }

    #[test]
    fn one_gets_all_but_an_eighth_and_others_find_room() {
        for (max, expected) in [(8, 7), (16, 14), (10_000, 8_750)] {
            let shares = Shares::new(max);
            let (first, full) = all_for(&shares, Some(1));
            assert_eq!((first.len(), full), (expected, Full::Share), "of {max}");
            let (second, full) = all_for(&shares, Some(2));
            assert!(!second.is_empty() && second.len() <= max - expected, "of {max}");
            assert_eq!(full, if shares.take(None).is_ok() { Full::Share } else { Full::All });
        }
    }

    #[test]
    fn whoever_has_none_gets_one_as_long_as_there_is_any() {
        let shares = Shares::new(1_000);
        let mut held = Vec::new();
        // Each takes what it gets, until nothing is left.
        let takers = (0..=u8::MAX).take_while(|key| {
            let (got, _) = all_for(&shares, Some(*key));
            let any = !got.is_empty();
            held.extend(got);
            any
        });
        assert!(takers.count() >= 4, "three together cannot have all of a thousand");
        assert_eq!((held.len(), shares.take(Some(u8::MAX)).unwrap_err()), (1_000, Full::All));
    }

    #[test]
    fn small_numbers_can_be_used_up_by_one() {
        for max in 1..8 {
            let (got, _) = all_for(&Shares::new(max), Some(1));
            assert_eq!(got.len(), max);
        }
        assert_eq!(Shares::new(0).take(Some(1)).unwrap_err(), Full::All);
    }

    #[test]
    fn a_place_that_is_given_back_can_be_taken_and_who_has_none_is_forgotten() {
        let shares = Shares::new(16);
        let (mut held, _) = all_for(&shares, Some(1));
        held.pop();
        held.push(shares.take(Some(1)).unwrap());
        assert_eq!(shares.take(Some(1)).unwrap_err(), Full::Share);
        let (unbounded, full) = all_for(&shares, None);
        assert_eq!((unbounded.len(), full), (2, Full::All));
        drop((held, unbounded));
        let taken = shares.taken.lock().unwrap();
        assert_eq!((taken.all, taken.of.len()), (0, 0));
    }
}
