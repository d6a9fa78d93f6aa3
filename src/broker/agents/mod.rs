//! The agents' side of a replica:
//!
//! - `registry.rs`: who is connected here,
//! - `link.rs`: one connection; `hello.rs` and `farewell.rs`: its beginning and
//!   its end; `bounds.rs`: how much may be said,
//! - `stray.rs`: ends connections that the log knows and nobody has,
//! - `connecting.rs`: whether a user may connect, as desktop servers ask,
//! - `colleagues.rs`: questions to agents of other replicas,
//! - `missing.rs`: tells the log which replicas are not heard of.

mod bounds;
mod colleagues;
mod connecting;
mod farewell;
mod hello;
mod link;
mod missing;
mod registry;
mod stray;

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use self::colleagues::Desk;
pub use self::colleagues::{Colleagues, NoColleagues};
pub use self::connecting::{Ticket, Tickets};
pub use self::missing::{SILENT_AFTER, report_missing};
pub use self::registry::Links;
use super::contact::Contact;
use super::core::Broker;
use super::listen::Place;
use super::notes::Notes;
use crate::protocol;
use crate::pulse::Pulse;
use crate::secret::Secret;

/// What the connections need.
#[derive(Clone)]
pub struct Agents {
    /// The replica.
    pub broker: Arc<Broker>,
    /// Checks what desktop servers ask about.
    pub tickets: Arc<dyn Tickets>,
    /// Takes what is done for the audit.
    pub notes: Notes,
    /// Whether agents must prove themselves (`enable-agent-authorization`).
    pub authorization: bool,
    /// What an agent proves itself with.
    pub secret: Arc<Secret>,
    /// Cancelled when the log knows that this replica began anew, which breaks
    /// the connections it had: none is taken before.
    pub opened: CancellationToken,
    /// Ends all connections.
    pub shutdown: CancellationToken,
    /// The connections, so that the end can wait for them.
    pub tasks: TaskTracker,
}

/// Routes of the agents' port.
pub fn router(agents: Agents) -> Router {
    Router::new()
        .route(protocol::PATH, get(upgrade))
        .route(connecting::PATH, post(connecting::validate).layer(DefaultBodyLimit::max(connecting::FORM_BYTES_MAX)))
        .route("/health", get(|| async { Json(serde_json::json!({ "status": "ok" })) }))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is nothing here") })
        .with_state(agents)
}

/// Lets an agent in that knows the secret.
async fn upgrade(
    State(agents): State<Agents>,
    Extension(place): Extension<Place>,
    Extension(pulse): Extension<Pulse>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let given = bearer(&headers);
    if given.is_none() && agents.authorization {
        return refuse(StatusCode::UNAUTHORIZED, "no agent secret was given");
    }
    if agents.authorization && !given.is_some_and(|given| agents.secret.matches(given)) {
        tracing::warn!("an agent was refused: its secret is not the one of this broker");
        return refuse(StatusCode::UNAUTHORIZED, "the agent secret is not the one of this broker");
    }
    if agents.shutdown.is_cancelled() || !agents.opened.is_cancelled() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "this replica takes no agents now");
    }
    if *agents.broker.contact().borrow() != Contact::Kept {
        let why = "this replica cannot reach a majority of the others; connect to another one";
        return refuse(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    upgrade.max_message_size(protocol::MESSAGE_BYTES_MAX).max_frame_size(protocol::MESSAGE_BYTES_MAX).on_upgrade(
        move |socket| async move {
            let tasks = agents.tasks.clone();
            // Tracked, so that the end of the replica waits for its farewell.
            let _ = tasks.spawn(link::serve(socket, pulse, agents)).await;
            drop(place);
        },
    )
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error }))).into_response()
}
