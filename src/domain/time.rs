//! Time as the log tells it. The only clock of the domain is the stamp that
//! the leader put on an entry.

use std::ops::Add;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

/// A length of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// So many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Whole seconds, rounded down: for texts that people read.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }
}

impl Add<Millis> for Timestamp {
    type Output = Self;
    /// Saturates: a deadline beyond the end of time is never due.
    fn add(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}
