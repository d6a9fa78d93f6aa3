//! Berth: a highly available session broker for fleets of remote desktops.
//!
//! `docs/architecture.md` is the map. The binary `berth` has one role a
//! command: a broker replica, an agent on a desktop host, both on one machine
//! for a first look, and verbs for people.

pub mod agent;
pub mod broker;
pub mod cli;
pub mod domain;
pub mod files;
pub mod protocol;
pub mod pulse;
pub mod secret;
pub mod sockets;
