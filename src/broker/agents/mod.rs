//! The agents' side of a replica:
//!
//! - `registry.rs`: who is connected here,
//! - `link.rs`: one connection; `hello.rs` and `farewell.rs`: its beginning and
//!   its end; `bounds.rs`: how much may be said,
//! - `stray.rs`: ends connections that the log knows and nobody has,
//! - `enrolment.rs`: how agents become known, and which of them may connect,
//! - `connecting.rs`: whether a user may connect, as desktop servers ask,
//! - `proofs.rs`: what both show,
//! - `colleagues.rs`: questions to agents of other replicas,
//! - `missing.rs`: tells the log which replicas are not heard of.

mod bounds;
mod colleagues;
mod connecting;
mod enrolment;
mod farewell;
mod hello;
mod link;
mod missing;
mod proofs;
mod registry;
mod stray;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use berth_raft::seldom::Seldom;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use self::colleagues::Desk;
pub use self::colleagues::{Colleagues, NoColleagues};
use self::enrolment::Stranger;
pub use self::missing::{SILENT_AFTER, report_missing};
pub use self::proofs::{Proofs, Ticket};
pub use self::registry::Links;
use super::api::Error;
use super::contact::Contact;
use super::core::Broker;
use super::listen::Place;
use super::notes::Notes;
use super::throttle::Throttle;
use super::tls::{Authority, Peer};
use crate::domain::audit::{Actor, Deed};
use crate::protocol;
use crate::protocol::enrolment::REGISTRATION_BYTES_MAX;
use crate::pulse::Pulse;

/// How long a request may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// What the connections need.
#[derive(Clone)]
pub struct Agents {
    /// The replica.
    pub broker: Arc<Broker>,
    /// Reads what agents and desktop servers show.
    pub proofs: Arc<dyn Proofs>,
    /// Signs the certificates of agents.
    pub authority: Arc<Authority>,
    /// Takes what is done for the audit.
    pub notes: Notes,
    /// Those who wanted to connect and may not.
    pub strangers: Arc<Seldom>,
    /// How many keys and tokens an address may have checked; `None` for any
    /// number.
    pub throttle: Option<Arc<Throttle>>,
    /// Whether agents must prove themselves (`enable-agent-authorization`).
    pub authorization: bool,
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
    // Keys and tokens take time to check. A certificate was looked at in the handshake, so that who
    // may not connect costs little; and agents that come back together may share an address.
    let bounded = from_fn_with_state(agents.clone(), bounded);
    Router::new()
        .route(protocol::enrolment::PATH, post(enrolment::enrol).layer(bounded.clone()))
        .route(connecting::PATH, post(connecting::validate).layer(bounded))
        .route(protocol::PATH, get(upgrade))
        .route("/health", get(|| async { Json(serde_json::json!({ "status": "ok" })) }))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is nothing here") })
        .with_state(agents)
}

/// Lets an agent in that enrolled and may connect.
async fn upgrade(
    State(agents): State<Agents>,
    Extension(place): Extension<Place>,
    Extension(pulse): Extension<Pulse>,
    Extension(peer): Extension<Peer>,
    upgrade: WebSocketUpgrade,
) -> Response {
    if agents.shutdown.is_cancelled() || !agents.opened.is_cancelled() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "this replica takes no agents now");
    }
    if *agents.broker.contact().borrow() != Contact::Kept {
        let why = "this replica cannot reach a majority of the others; connect to another one";
        return refuse(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    let who = match enrolment::admitted(&agents, &peer).await {
        Ok(who) => who,
        Err(Stranger::Unavailable(error)) => return refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        Err(stranger) => {
            // Anybody gets as far as this, any number of times.
            if let Some(count) = agents.strangers.count() {
                tracing::warn!(from = %peer.address.ip(), error = %stranger, count, "an agent was refused");
            }
            let deed = deed(&agents, &peer, Actor::Unknown, protocol::PATH, String::new());
            agents.notes.take(deed, &format!("refused: {stranger}"));
            return refuse(StatusCode::UNAUTHORIZED, &stranger.to_string());
        }
    };
    upgrade.max_message_size(protocol::MESSAGE_BYTES_MAX).max_frame_size(protocol::MESSAGE_BYTES_MAX).on_upgrade(
        move |socket| async move {
            let tasks = agents.tasks.clone();
            // Tracked, so that the end of the replica waits for its farewell.
            let _ = tasks.spawn(link::serve(socket, pulse, agents, who)).await;
            drop(place);
        },
    )
}

/// Lets a request through once it is there as a whole, unless it takes too long
/// or too many come from its address.
async fn bounded(
    State(agents): State<Agents>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let address = peer.address.ip();
    let admitted = agents.throttle.as_deref().map_or(Ok(()), |throttle| throttle.admit_address(address));
    let Err(refused) = admitted else { return whole(request, next).await };
    if let Some(text) = refused.told() {
        let deed = deed(&agents, &peer, Actor::Unknown, request.uri().path(), String::new());
        agents.notes.take(deed, &text);
    }
    let retry_after = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
    (retry_after, refuse(StatusCode::TOO_MANY_REQUESTS, &Error::from(refused).to_string())).into_response()
}

/// What is done at a path of the port.
fn deed(agents: &Agents, peer: &Peer, actor: Actor, path: &str, target: String) -> Deed {
    Deed {
        actor,
        from: peer.address.ip().to_string(),
        action: path.trim_start_matches('/').to_owned(),
        target,
        request_id: String::new(),
        via: agents.broker.id(),
    }
}

async fn whole(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match timeout(BODY_TIMEOUT, to_bytes(body, REGISTRATION_BYTES_MAX)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body))).await,
        // Who broke off does not hear it.
        Ok(Err(_)) => refuse(StatusCode::PAYLOAD_TOO_LARGE, "the request is too long"),
        Err(_) => refuse(StatusCode::REQUEST_TIMEOUT, "the request did not come in time"),
    }
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error }))).into_response()
}
