//! What clients asked, and what they were answered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A place in the order of all that happened in a world: of two moments it is
/// known which was first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// Later than everything.
    pub const EVER: Self = Self(u64::MAX);
}

/// What is in a register: nothing at first.
pub type Value = Option<String>;

/// What was asked of a register.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// To hold a value.
    Write(Value),
    /// What it holds.
    Read,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Written.
    Written,
    /// Read.
    Read(Value),
    /// A write may have happened, or may still happen. Its answer never comes.
    Unknown,
}

/// An operation on one register. What surely did not happen is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Who asked; one thing at a time.
    pub client: u32,
    /// The register, such as `permissions of s-12`.
    pub key: String,
    /// What was asked.
    pub input: Input,
    /// What came of it.
    pub output: Output,
    /// When it was asked.
    pub called: Moment,
    /// When the answer came; [`Moment::EVER`] for one that never did.
    pub returned: Moment,
    /// The entry of the log that did it, or that the answer is as new as.
    pub index: Option<u64>,
}

/// All operations of a world.
#[derive(Debug, Default)]
pub struct History {
    last: AtomicU64,
    operations: Mutex<Vec<Operation>>,
}

impl History {
    /// Now.
    pub fn now(&self) -> Moment {
        Moment(self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Adds one.
    pub fn add(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// All there are.
    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
