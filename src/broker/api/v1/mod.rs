//! What Berth adds to the API of the original, under `/v1/`: one module for
//! each thing that can be asked for, with the same callers, errors and headers.
//! `docs/api.md` describes them for clients.

mod drain;
mod events;
mod placement;
mod queue;

use axum::Router;
use axum::routing::{get, post};

pub(super) use self::events::Places;
use super::ApiState;

/// The routes; all of them want an access token.
pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/v1/events", get(events::list))
        .route("/v1/placement:explain", post(placement::explain))
        .route("/v1/queue", get(queue::list))
        .route("/v1/servers:drain", post(drain::drain))
}
