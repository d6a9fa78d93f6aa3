//! The requirements language: which servers a session may be placed on.
//!
//! A client writes `tag:color = 'pink' and server:Host.CpuInfo.NumberOfCpus >= 2`; [`Expression::parse`]
//! checks it and [`Expression::holds`] answers it for one [`Subject`]. Grammar, meaning and limits
//! stand in `docs/requirements.md`, whose tables the tests run.
//!
//! Invariants:
//! - An [`Expression`] is within [`TEXT_BYTES_MAX`] and [`DEPTH_MAX`]. The text it prints is within
//!   [`CANONICAL_BYTES_MAX`] and [`DEPTH_MAX`] and reads back as an equal expression, so whatever was
//!   accepted once can be stored and read.
//! - Parsing takes time linear in the text (`steps` counts it), evaluation allocates nothing, neither
//!   panics.
//! - Numbers are compared as the decimals they are written as; nothing is rounded on the way.
//!
//! What it must not do: read a clock, draw random numbers, do I/O, or know what a server is beyond
//! [`Subject`].

mod error;
mod expression;
mod lexer;
mod number;
mod parser;
mod property;
mod steps;
mod term;

#[cfg(test)]
mod tests;

pub use self::term::{Comparison, Key, Literal, Subject, Term, Test, Value};
pub use error::{Error, Position};
pub use expression::{Expression, Terms};
pub use number::Number;
pub use property::{Property, UnknownProperty};

/// Longest text in bytes, blanks included. Far above what clients send (under 200 bytes); it bounds
/// what a request can add to the log and to the work of placing.
pub const TEXT_BYTES_MAX: usize = 8 * 1024;

/// Longest canonical text in bytes. A text grows by single blanks between its parts and by numbers
/// whose zeros are written out: from `tag:a=1e20or`, 12 bytes, to 33 at most.
pub const CANONICAL_BYTES_MAX: usize = 3 * TEXT_BYTES_MAX;

/// Deepest nesting of parentheses. It bounds the stack that parsing, evaluating and dropping use.
pub const DEPTH_MAX: usize = 64;
