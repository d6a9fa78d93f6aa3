//! What Berth adds to the API of the original, under `/v1/`: one module for
//! each thing that can be asked for, with the same callers, errors and headers.
//! `docs/api.md` describes them for clients.

mod drain;
mod events;
mod field;
mod listing;
mod placement;
mod queue;
mod select;
mod servers;
mod sessions;

pub(in crate::broker::api) use self::drain::drain;
pub(in crate::broker::api) use self::events::{Places, list as events};
pub(in crate::broker::api) use self::placement::explain;
pub(in crate::broker::api) use self::queue::list as queue;
pub(in crate::broker::api) use self::servers::list as servers;
pub(in crate::broker::api) use self::sessions::list as sessions;
