//! A replicated, deterministic state machine.
//!
//! Commands go through a Raft log and are applied in the same order on every replica. This crate
//! knows commands as bytes with a meaning given by a [`StateMachine`]; it decides nothing about
//! them. The consensus library behind it does not show.
//!
//! ```text
//!  propose ──> queue ──> one entry per batch ──> log (durable, majority) ──> apply ──> outcomes
//!                                                                              │
//!  read ──> shared barrier (no write) ───────────> published state <───────────┤
//!                                                                              └──> observer
//! ```
//!
//! What holds:
//!
//! - an outcome is handed out after its entry is durable on a majority and applied, never earlier;
//! - a command is applied at most once per proposal: nothing here retries what may have happened;
//! - the stamps of entries never run backwards;
//! - a storage error stops the replica for good and loudly; a full disk only makes writes fail
//!   until there is room.

mod applier;
mod barrier;
mod clock;
mod codec;
mod config;
mod core;
mod error;
mod ids;
mod log_store;
mod machine;
mod members;
mod network;
mod peers;
mod proposer;
mod published;
mod receiver;
mod replica;
mod snapshot;
mod status;
mod tasks;
#[doc(hidden)]
pub mod testing;
mod types;
mod wire;

pub use clock::{Clock, ManualClock, SystemClock};
pub use config::{Config, ConfigError, ENTRY_BYTES_MAX};
pub use error::{ProposeError, ReadError, SnapshotError, StartError, StopReason};
pub use ids::{LogIndex, ReplicaId, Stamp, UnixMillis};
pub use machine::{CodecError, Observer, StateMachine};
pub use members::{Formation, Member, MemberError, MemberStatus};
pub use peers::{Lane, PeerError, Peers};
pub use replica::{Proposed, Replica, View};
pub use status::{Status, StorageCondition};
