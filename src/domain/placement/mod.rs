//! Placement: which server gets a session.
//!
//! A pure function of committed state. Of the servers that may take the
//! session, the policy's best is chosen; among equals a stable hash decides, so
//! that every replica chooses the same one and neighbours in the alphabet do
//! not fill up first.
//!
//! - `rank.rs`: where a server stands: its place in the order, or the rule by
//!   which it takes no session of a kind,
//! - `facts.rs`: finding servers by a fact that requirements ask for,
//! - `sets.rs`: the servers that match each expression in use, in order,
//! - `choose.rs`: the choice,
//! - `explanation.rs`: why there was none.

mod choose;
mod explanation;
mod facts;
mod rank;
mod sets;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(super) use choose::refusal;
pub(super) use choose::{Wish, choose_among, choose_or_explain};

pub use self::explanation::{Explanation, Rule, SERVERS_LISTED_MAX, Survey, survey};
pub use self::rank::{Counts, WEIGHT_TAG};
pub(super) use facts::{FactKey, required_facts};
pub(super) use rank::Standing;
pub(super) use sets::{Changed, ServerSets};

/// Which of the servers that may take a session gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The one with the fewest sessions for its weight.
    #[default]
    Spread,
    /// The one with the most sessions for its weight: fills one before the next.
    Pack,
    /// One where the owner has a session already; [`Policy::Spread`] when there
    /// is none.
    Affinity,
}

impl Policy {
    /// The name in configuration and requests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::Pack => "pack",
            Self::Affinity => "affinity",
        }
    }

    /// The policy of a name; the case does not matter.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Spread, Self::Pack, Self::Affinity].into_iter().find(|policy| policy.as_str().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// FNV-1a, 64 bits: the same on every replica and in every version.
fn stable_hash(parts: &[&str]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    let mut hash = OFFSET_BASIS;
    for (number, part) in parts.iter().enumerate() {
        if number > 0 {
            hash = step(hash, 0);
        }
        hash = part.bytes().fold(hash, step);
    }
    hash
}
