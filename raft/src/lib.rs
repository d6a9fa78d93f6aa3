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
//! - a proposal is applied at most once, however often its answer was lost and it was tried again;
//! - the stamps of entries never run backwards;
//! - a storage error stops the replica for good and loudly; a full disk only makes writes fail
//!   until there is room.

mod applier;
mod barrier;
mod calls;
mod checkpoints;
mod clock;
mod codec;
mod config;
mod core;
mod error;
mod formats;
mod forwarder;
mod halt;
mod handover;
mod ids;
mod incoming;
mod log_store;
mod log_time;
mod machine;
mod members;
mod network;
mod outgoing;
mod peers;
mod proposer;
mod published;
mod queue;
mod receiver;
mod replica;
mod replicated;
mod restore;
mod runtime;
pub mod seldom;
mod sequences;
mod snapshot;
mod status;
mod taken;
mod tasks;
#[doc(hidden)]
pub mod testing;
mod trail;
mod types;
mod wire;

pub use checkpoints::CheckpointStatus;
pub use clock::{Clock, ManualClock, SystemClock};
pub use config::{Config, ConfigError, ENTRY_BYTES_MAX};
pub use error::{ProposeError, RaiseError, ReadError, SnapshotError, StartError, StopReason};
pub use ids::{LogIndex, ReplicaId, Stamp, UnixMillis};
pub use machine::{CodecError, Observer, StateMachine};
pub use members::{Configuration, Formation, Member, MemberError, MemberStatus};
pub use peers::{Lane, PeerError, Peers};
pub use replica::{Proposed, Replica, View};
pub use restore::{Beginning, RestoreError, restore};
pub use status::{Status, StorageCondition};
