//! What Berth adds to the API of the original, under `/v1/`: one module for
//! each thing that can be asked for.

mod events;

use axum::Router;
use axum::routing::get;

pub(super) use self::events::Places;
use super::ApiState;

/// The routes; all of them want an access token.
pub(super) fn routes() -> Router<ApiState> {
    Router::new().route("/v1/events", get(events::list))
}
