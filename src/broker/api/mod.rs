//! The client API: the nine operations of the original, its token end point,
//! its description, and the health check.
//!
//! Handlers are thin. A request becomes domain types at once (`body`,
//! `validate`, `find`), goes through the door (`door`) as
//! commands (`change`) or reads a view of the fleet, and what comes back is
//! shown in the words of the API (`view`, `wire`). An answer never holds a
//! field outside the 2023.0 description; what is new stands in headers, or
//! under `/v1/` (`v1`). `docs/api.md` tells clients the rest.

mod audit;
mod auth;
mod body;
mod change;
mod connection;
mod consistency;
mod description;
pub mod door;
mod envelope;
mod error;
mod find;
pub(super) mod form;
mod idempotency;
mod lanes;
pub mod limits;
mod origin;
mod pages;
mod permissions;
mod policy;
mod routes;
mod rows;
mod scan;
mod screenshots;
mod servers;
mod sessions;
mod throttle;
mod token;
mod v1;
mod validate;
mod view;
pub mod wire;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, header};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use consistency::{CONSISTENCY_HEADER, INDEX_HEADER, MIN_INDEX_HEADER, STALE_HEADER};
pub use description::yaml as description_yaml;
pub use envelope::REQUEST_ID_HEADER;
pub use error::Error;
pub use lanes::{Lane, LaneWidths};
pub use policy::PLACEMENT_HEADER;
pub use routes::{Demand, Route, routes};
pub use sessions::describe_page;

use self::door::{AnyCore, AnyIdentity, Core, Identity};
use self::idempotency::Running;
use self::lanes::Lanes;
use self::scan::Scans;
use self::validate::Invalid;
use crate::broker::config::Limits;
use crate::broker::notes::Notes;
use crate::broker::throttle::Throttle;
use crate::domain::{Outcome, Owner, Refusal, SessionId};
use crate::protocol::ImageFormat;

/// Header of answers to a cursor after which events were dropped: the oldest
/// log index whose events are kept.
pub const OLDEST_INDEX_HEADER: HeaderName = HeaderName::from_static("berth-oldest-index");

/// Where load balancers ask whether this replica answers.
const HEALTH_PATH: &str = "/health";

/// What an operator can set, and tests as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSettings {
    /// Pictures of sessions.
    pub screenshots: Screenshots,
    /// Whether `GET /dcv-session-manager-api.yaml` answers
    /// (`enable-api-yaml` of the original).
    pub description_served: bool,
    /// Whether callers must have an access token (`enable-authorization`).
    /// Without, everybody may do what clients usually may.
    pub authorization: bool,
    /// How often a stream of events shows a sign of life, and its token is
    /// looked at.
    pub event_keep_alive: Duration,
    /// Arguments of autorun files.
    pub autorun: Autorun,
    /// How many requests callers may send, and by which address they are known.
    pub limits: Limits,
    /// How many requests may be under way.
    pub lanes: LaneWidths,
}

/// Limits of the arguments of an autorun file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autorun {
    /// Most of them (`autorun-file-arguments-max-size`).
    pub arguments_max: usize,
    /// Characters of the longest
    /// (`autorun-file-arguments-max-argument-length`).
    pub argument_chars_max: usize,
}

impl Default for Autorun {
    fn default() -> Self {
        Self {
            arguments_max: limits::AUTORUN_ARGUMENTS_DEFAULT,
            argument_chars_max: limits::AUTORUN_ARGUMENT_CHARS_DEFAULT,
        }
    }
}

/// Pictures of sessions, when the client does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screenshots {
    /// Largest width in pixels (`session-screenshot-max-width`).
    pub width_max: u32,
    /// Largest height in pixels (`session-screenshot-max-height`).
    pub height_max: u32,
    /// Format (`session-screenshot-format`).
    pub format: ImageFormat,
    /// How long one agent may take.
    pub agent_timeout: Duration,
    /// How long all pictures of a request may take.
    pub request_timeout: Duration,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            screenshots: Screenshots::default(),
            description_served: true,
            authorization: true,
            event_keep_alive: limits::EVENT_KEEP_ALIVE,
            autorun: Autorun::default(),
            // Whoever serves a network says how many.
            limits: Limits { requests_per_second: 0, ..Limits::default() },
            lanes: LaneWidths::default(),
        }
    }
}

impl Default for Screenshots {
    fn default() -> Self {
        Self {
            width_max: 160,
            height_max: 100,
            format: ImageFormat::Png,
            agent_timeout: limits::AGENT_TIMEOUT,
            request_timeout: limits::SCREENSHOTS_TIMEOUT,
        }
    }
}

/// The API over HTTP: what the broker serves on its client port. TLS and
/// listening are the caller's.
pub fn router(state: ApiState) -> Router {
    let mut router = routes::router(&state)
        .route_layer(middleware::from_fn(consistency::attend))
        .route_layer(middleware::from_fn_with_state(state.clone(), auth::authorise))
        .route("/oauth2/token", post(token::token).layer(DefaultBodyLimit::max(limits::FORM_BYTES_MAX)))
        .route(HEALTH_PATH, get(health));
    if state.settings.description_served {
        router = router.route("/dcv-session-manager-api.yaml", get(description::serve));
    }
    router
        .fallback(async || Error::NotFound("there is nothing at this path"))
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(state.clone(), throttle::by_address))
        .layer(middleware::from_fn_with_state(state.clone(), envelope::envelop))
        .with_state(state)
}

/// What the handlers share. One pointer: with each request the router clones
/// it for each of its layers.
#[derive(Clone)]
pub struct ApiState(Arc<Shared>);

/// What is behind an [`ApiState`].
#[derive(Clone)]
pub struct Shared {
    core: Arc<dyn AnyCore>,
    identity: Arc<dyn AnyIdentity>,
    settings: Arc<ApiSettings>,
    event_places: v1::Places,
    ending: CancellationToken,
    running: Arc<Running>,
    scans: Scans,
    throttle: Option<Arc<Throttle>>,
    lanes: Lanes,
    notes: Notes,
}

/// Why an item failed while its neighbours went on. The texts are for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Failure {
    /// The caller may make sessions of one owner only.
    #[error("the client may create sessions of {bound} only")]
    BoundTo {
        /// That owner.
        bound: Owner,
        /// Another one.
        wanted: Owner,
    },
    /// It is not right in itself.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The fleet does not take it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It is about a session of another owner than the one that the caller is
    /// bound to. For the caller there is no such session.
    #[error("{}", Refusal::UnknownSession)]
    OfAnother(SessionId),
}

impl Failure {
    /// What of another owner a caller wanted who is bound to one, for the audit.
    fn of_another(&self) -> Option<String> {
        match self {
            Self::OfAnother(session) => Some(session.as_str().to_owned()),
            Self::BoundTo { wanted, .. } => Some(format!("(new, of {wanted})")),
            Self::Invalid(_) | Self::Refused(_) => None,
        }
    }
}

impl Deref for ApiState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl ApiState {
    /// Puts the parts together.
    pub fn new(core: Arc<impl Core>, identity: Arc<impl Identity>, settings: ApiSettings) -> Self {
        Self(Arc::new(Shared {
            notes: Notes::unread(),
            core,
            identity,
            throttle: Throttle::new(settings.limits.requests_per_second).map(Arc::new),
            lanes: Lanes::new(settings.lanes),
            settings: Arc::new(settings),
            running: Arc::default(),
            event_places: v1::Places::default(),
            ending: CancellationToken::new(),
            scans: Scans::default(),
        }))
    }

    /// Ends what would never end by itself when a token is cancelled.
    #[must_use]
    pub fn ending_with(mut self, ending: CancellationToken) -> Self {
        Arc::make_mut(&mut self.0).ending = ending;
        self
    }

    /// Has what changes nothing noted for the audit.
    #[must_use]
    pub fn noting(mut self, notes: Notes) -> Self {
        Arc::make_mut(&mut self.0).notes = notes;
        self
    }

    /// An id for a session that is to be made.
    fn new_session_id(&self) -> Result<SessionId, Failure> {
        SessionId::new(&self.core.new_id()).map_err(|error| {
            tracing::error!(%error, "a new session id is not valid");
            Failure::Refused(Refusal::Exists)
        })
    }
}

/// An outcome that its command cannot have: a fault of the broker.
fn unexpected(outcome: &Outcome) -> Error {
    tracing::error!(?outcome, "a command came to an outcome that it cannot have");
    Error::Internal
}

/// Body of the health check.
#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// Says that this replica answers; load balancers ask without credentials.
async fn health() -> impl axum::response::IntoResponse {
    ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(Health { status: "ok" }))
}
