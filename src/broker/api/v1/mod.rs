//! What Berth adds to the original's API: routes under `/v1/`, with the same
//! callers, errors and headers. `docs/api.md` describes them for clients.

mod drain;
mod placement;
mod queue;

use axum::Router;
use axum::routing::{get, post};

use super::ApiState;

/// The routes.
pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/v1/placement:explain", post(placement::explain))
        .route("/v1/queue", get(queue::list))
        .route("/v1/servers:drain", post(drain::drain))
}
