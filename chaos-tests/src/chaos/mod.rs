//! Real replicas of one cluster, real agents and clients on hosts of a lab, and
//! everything that can go wrong at once. `cargo run -p berth-chaos-tests --bin
//! chaos -- --help` runs it for as long as wanted.
//!
//! - [`plug`]: how replicas find each other and are administered; all that
//!   depends on the cluster's commands and configuration.
//! - [`world`]: replicas, agents and clients, and when all of it is whole.
//! - [`fault`]: what can break, as data drawn from a seed.
//! - [`strike`]: how each of it is done and undone, and how often it struck;
//!   [`harm`] what is done to data, [`members`] what operators do.
//! - [`odd`]: agents that are late, repeat themselves, or lie; `wire` is what
//!   they speak through.
//! - [`swarm`]: thousands of agents in one process.
//! - [`journal`]: what the cluster's own record of events says.
//! - [`run`]: rounds of faults under load, and the verdict; [`report`] what
//!   came of it.

pub mod fault;
pub mod harm;
pub mod journal;
pub mod members;
pub mod odd;
pub mod plug;
pub mod report;
pub mod run;
pub mod strike;
pub mod swarm;
mod wire;
pub mod world;
