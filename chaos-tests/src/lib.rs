//! Faults, and the checkers that judge what is left after them.
//!
//! Storage alone:
//! - [`disk`]: a disk that can be cut from power and filled up,
//! - [`power_cut`]: load on a store, and what must be left of it.
//!
//! The whole, through its API, one module for each question:
//! - [`process`]: what runs,
//! - [`client`], [`portal`]: how it is spoken to, one broker or several replicas,
//! - [`traffic`], [`operators`]: who makes load,
//! - [`faults`]: what breaks,
//! - [`history`]: what was asked and answered,
//! - [`model`]: what that allows,
//! - [`desktops`]: what really exists,
//! - [`judge`]: whether it is as it must be,
//! - [`linearizability`]: whether what clients saw has an order,
//! - [`cluster`]: broker and agents together, and when they have come to rest.
//!
//! The same replicas in one thread, with everything around them simulated:
//! - [`simulation`].
//!
//! The broker's ports and agents on a simulated network:
//! - [`edge`].
//!
//! What breaks beneath it:
//! - [`lab`]: a network of hosts that can be cut, and whose packets can be
//!   delayed, lost, doubled and reordered,
//! - [`faultfs`]: the disk and the clock of a process, with faults at will,
//! - [`preload`]: what is loaded into processes before everything else.
//!
//! Everything at once:
//! - [`chaos`]: several replicas on a lab, faults drawn from a seed.
//!
//! [`random`] makes all of it repeatable as far as processes are.

pub mod chaos;
pub mod client;
pub mod cluster;
pub mod desktops;
pub mod disk;
pub mod edge;
pub mod faultfs;
pub mod faults;
pub mod history;
pub mod judge;
pub mod lab;
pub mod linearizability;
pub mod model;
pub mod operators;
pub mod portal;
pub mod power_cut;
pub mod preload;
pub mod process;
pub mod random;
pub mod simulation;
pub mod traffic;
