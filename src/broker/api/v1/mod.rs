//! What the original's API does not have: one file for each route.

mod field;
mod listing;
mod select;
mod servers;
mod sessions;

use axum::Router;
use axum::routing::get;

use super::ApiState;

/// The routes under `/v1`; each wants an access token.
pub(super) fn routes() -> Router<ApiState> {
    Router::new().route("/v1/sessions", get(sessions::list)).route("/v1/servers", get(servers::list))
}
