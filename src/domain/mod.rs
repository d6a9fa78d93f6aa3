//! The fleet: what exists, and what may happen to it.
//!
//! Everything here is a pure function of the replicated log. There is no
//! clock, no randomness, no I/O and no `async` in this module, and it imports
//! nothing of the rest of the project; `tests/domain_purity.rs` fails when it
//! does. Time arrives as the stamp of a log entry, random ids arrive inside
//! commands.
//!
//! Start reading at [`Fleet::apply`]: a [`Command`] becomes an [`Outcome`] for
//! the caller and a list of [`Event`]s; the events, and nothing else, change
//! the state.

pub mod audit;
pub mod auth_server;
pub mod client;
pub mod cluster;
pub mod codec;
pub mod command;
pub mod dns;
pub mod event;
pub mod fleet;
pub mod gateway;
pub mod host;
pub mod ids;
pub mod instruction;
pub mod journal;
pub mod key;
pub mod permissions;
pub mod placement;
pub mod report;
pub mod request;
pub mod requirements;
pub mod server;
pub mod session;
pub mod settings;
pub mod time;

#[cfg(test)]
mod golden_tests;

pub use command::{Command, Outcome, Refusal};
pub use event::Event;
pub use fleet::Fleet;
pub use ids::{AgentInstance, ClientId, Epoch, InstructionId, KeyId, LogIndex, Owner, ReplicaId, ServerId, SessionId};
pub use instruction::{Action, Instruction};
pub use server::Server;
pub use session::{Phase, Session, SessionKind, SessionSpec};
pub use settings::Settings;
pub use time::{Millis, Timestamp};
