//! The hash of what the entries brought, one after the other.
//!
//! Replicas that applied the same entries to the same state have the same trail. It is replicated
//! state and goes with snapshots. It begins anew from time to time, so that replicas whose trails
//! began at different entries can be compared again after a while.
//!
//! The hash is xxh3 with 64 bits, each entry's bytes seeded with the hash before: fast, and the
//! same on every machine and in every version. It finds mistakes; it does not protect against
//! anybody.

use crate::ids::LogIndex;
use crate::machine::StateMachine;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// Raised when this crate hashes something else than before for the same entries, or writes the kept
/// calls differently.
const LAYOUT: u32 = 1;

/// The hash of the entries from one on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trail {
    /// The entry after which it began. Trails that began elsewhere are never compared.
    pub(crate) since: LogIndex,
    /// The [`version`] of who made it. Nor are those of another version.
    pub(crate) version: u32,
    pub(crate) hash: u64,
}

/// What hashes of this build for the machine `M` are comparable with.
pub(crate) fn version<M: StateMachine>() -> u32 {
    M::HASH_VERSION.wrapping_shl(8).wrapping_add(LAYOUT)
}

impl Trail {
    /// A trail that begins after the entry `since`.
    pub(crate) fn begin(since: LogIndex, version: u32) -> Self {
        Self { since, version, hash: 0 }
    }

    /// Goes on with what one entry brought.
    pub(crate) fn extend(&mut self, brought: &[u8]) {
        self.hash = xxh3_64_with_seed(brought, self.hash);
    }
}

/// The hash of a long content, part by part. As a writer it takes everything.
#[derive(Default)]
pub(crate) struct ContentHash(Xxh3);

impl ContentHash {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.digest()
    }
}

impl std::io::Write for ContentHash {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trails are compared between builds and kept in snapshots: these never change.
    #[test]
    fn the_hashes_are_what_they_always_were() {
        let mut trail = Trail::begin(LogIndex(7), 1);
        trail.extend(b"what an entry brought");
        let first = trail.hash;
        trail.extend(b"");
        assert_eq!((first, trail.hash), (14_931_031_559_068_075_041, 6_569_963_627_017_106_637));
        let mut content = ContentHash::default();
        content.update(b"a part of ");
        content.update(b"a content");
        assert_eq!(content.finish(), xxh3_64_with_seed(b"a part of a content", 0));
        // The vector for nothing, from the hash's own description.
        assert_eq!(ContentHash::default().finish(), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn the_order_of_entries_counts() {
        let hash = |entries: [&[u8]; 2]| {
            let mut trail = Trail::begin(LogIndex(0), 1);
            for entry in entries {
                trail.extend(entry);
            }
            trail.hash
        };
        assert_ne!(hash([b"one", b"two"]), hash([b"two", b"one"]));
    }
}
