//! Counts the work that reading a text takes, so that tests can bound it without a clock. Nothing of
//! it is left in a build without tests.
//!
//! A step is a byte or character looked at, a candidate compared, or a node visited. Whatever loops
//! over the text or the tree says here how often.

#[cfg(test)]
use std::cell::Cell;

#[cfg(test)]
thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// Adds to the count.
#[inline]
pub(super) fn took(steps: usize) {
    #[cfg(test)]
    TAKEN.set(TAKEN.get() + steps);
    #[cfg(not(test))]
    let _ = steps;
}

/// What the work gives and the steps it took.
#[cfg(test)]
pub(super) fn counted<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = TAKEN.get();
    let result = work();
    (result, TAKEN.get() - before)
}
