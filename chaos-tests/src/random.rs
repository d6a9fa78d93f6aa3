//! Repeatable randomness: everything that a test makes up comes from one seed.

use anyhow::Context;

/// A small random generator (splitmix64), so that a seed means the same with
/// every version of every library.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A stream of its own for somebody else.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// The seed in `BERTH_SEED`, or a new one.
pub fn seed() -> anyhow::Result<u64> {
    Ok(match number_from("BERTH_SEED")? {
        Some(seed) => seed,
        None => rand::random(),
    })
}

/// A number out of the environment, when it is set.
pub fn number_from(name: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text}"))?)),
        Err(_) => Ok(None),
    }
}
