//! Pictures of sessions. The agents of the sessions' servers take them when
//! asked; nothing of it enters the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::extract::State;
use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};

use super::audit::{self, Route};
use super::auth::Calling;
use super::body::Items;
use super::connection::not_ready;
use super::consistency::Reading;
use super::door::AskError;
use super::envelope::RequestId;
use super::error::Error;
use super::limits::{AGENTS_ASKED_MAX, SCREENSHOT_SIDE_MAX, SCREENSHOTS_BYTES_MAX};
use super::validate::Invalid;
use super::{ApiState, validate, view, wire};
use crate::domain::audit::{Actor, Deed};
use crate::domain::session::SessionState;
use crate::domain::{Fleet, Owner, ServerId, SessionId, Timestamp};
use crate::protocol::{Image, Question, Reply};

/// Why there is no picture of a session. The texts are for clients.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("Dcv session not found.")]
    NotFound,
    #[error("{0}")]
    Invalid(#[from] Invalid),
    #[error("{}", not_ready(*.0))]
    NotReady(SessionState),
    #[error("{0}")]
    Ask(#[from] AskError),
    #[error("the host could not take it: {0}")]
    Host(String),
    #[error("there is no time left in this request; ask for fewer sessions")]
    NoTime,
    #[error("the pictures of this request have more than {SCREENSHOTS_BYTES_MAX} bytes; ask for fewer or smaller ones")]
    TooMuch,
}

/// Takes pictures of sessions.
#[utoipa::path(
    post,
    path = "/getSessionScreenshots",
    operation_id = "getSessionScreenshots",
    tag = "sessions",
    request_body = Vec<wire::GetSessionScreenshotRequestData>,
    responses(
        (status = 200, description = "What became of each item", body = wire::GetSessionScreenshotsResponse),
        (status = 400, description = "The request cannot be understood")
    )
)]
pub(super) async fn take(
    State(api): State<ApiState>,
    RequestId(request_id): RequestId,
    reading: Reading,
    Calling(caller): Calling,
    Route { action, from }: Route,
    Items(items): Items<wire::GetSessionScreenshotRequestData>,
) -> Result<Json<wire::GetSessionScreenshotsResponse>, Error> {
    let fleet = api.see_current(&reading).await?;
    // Whoever has a picture of a desktop has seen what was on it.
    let ids: Vec<&str> = items.iter().filter_map(|item| item.session_id.as_deref()).collect();
    let deed = Deed {
        actor: Actor::Client(caller.client),
        from,
        action,
        target: audit::told(&ids),
        request_id: request_id.clone(),
        via: api.core.replica(),
    };
    if let Some(owner) = &caller.grant.owner {
        let is_anothers = |id: &&&str| {
            let session = SessionId::new(id).ok().and_then(|id| fleet.session(&id).cloned());
            session.is_some_and(|session| session.spec.owner != *owner)
        };
        let of_another: Vec<&str> = ids.iter().filter(is_anothers).copied().collect();
        if !of_another.is_empty() {
            api.notes.take(Deed { target: audit::told(&of_another), ..deed.clone() }, audit::OF_ANOTHER);
        }
    }
    api.notes.take(deed, "pictures were asked for");
    let end = Instant::now() + api.settings.screenshots.request_timeout;
    let shared = Arc::new(Sitting { api, fleet, owner: caller.grant.owner, end, bytes: AtomicUsize::new(0) });
    let pictures = stream::iter(items).map(|item| {
        let shared = Arc::clone(&shared);
        async move {
            let result = shared.picture(&item).await;
            (item, result)
        }
    });
    let mut body = wire::GetSessionScreenshotsResponse { request_id, ..wire::GetSessionScreenshotsResponse::default() };
    let mut pictures = std::pin::pin!(pictures.buffered(AGENTS_ASKED_MAX));
    while let Some((item, result)) = pictures.next().await {
        match result {
            Ok(images) => body.successful_list.push(wire::GetSessionScreenshotSuccessfulResponse {
                session_screenshot: Some(wire::SessionScreenshot {
                    session_id: item.session_id,
                    images: Some(images.into_iter().map(image).collect()),
                }),
            }),
            Err(failure) => body.unsuccessful_list.push(wire::GetSessionScreenshotUnsuccessfulResponse {
                get_session_screenshot_request_data: Some(item),
                failure_reason: Some(failure.to_string()),
            }),
        }
    }
    Ok(Json(body))
}

/// What the pictures of one request have in common.
struct Sitting {
    api: ApiState,
    fleet: Arc<Fleet>,
    /// The one whose sessions the caller may see, if not everybody's.
    owner: Option<Owner>,
    end: Instant,
    bytes: AtomicUsize,
}

impl Sitting {
    async fn picture(&self, item: &wire::GetSessionScreenshotRequestData) -> Result<Vec<Image>, Failure> {
        let (server, question) = self.question(item)?;
        let now = Instant::now();
        if now >= self.end {
            return Err(Failure::NoTime);
        }
        let deadline = self.end.min(now + self.api.settings.screenshots.agent_timeout);
        let asked = timeout_at(deadline, self.api.core.ask(&server, question)).await;
        match asked.unwrap_or(Err(AskError::TimedOut))? {
            Reply::Screenshot(images) if images.is_empty() => Err(Failure::Host("it has no screen".to_owned())),
            Reply::Screenshot(images) => {
                let bytes = images.iter().map(|image| image.data.len()).sum::<usize>();
                let room = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= SCREENSHOTS_BYTES_MAX);
                let added = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
                added.map(|_| images).map_err(|_| Failure::TooMuch)
            }
            Reply::Failed { reason } => Err(Failure::Host(reason)),
        }
    }

    /// Whom to ask, and what.
    fn question(&self, item: &wire::GetSessionScreenshotRequestData) -> Result<(ServerId, Question), Failure> {
        let id = match validate::session_id(item.session_id.as_deref()) {
            Ok(id) => id,
            Err(missing @ (Invalid::Missing { .. } | Invalid::Blank { .. })) => return Err(missing.into()),
            Err(_) => return Err(Failure::NotFound),
        };
        let width_max = validate::side_max("MaxWidth", item.max_width)?;
        let height_max = validate::side_max("MaxHeight", item.max_height)?;
        let session = self.fleet.session(&id).ok_or(Failure::NotFound)?;
        if self.owner.as_ref().is_some_and(|owner| *owner != session.spec.owner) {
            return Err(Failure::NotFound);
        }
        let state = self.fleet.state_of(session);
        let server = match (state, session.phase.server()) {
            (SessionState::Ready, Some(server)) => server.clone(),
            (SessionState::Deleted, _) => return Err(Failure::NotFound),
            _ => return Err(Failure::NotReady(state)),
        };
        Ok((server, self.screenshot(id, width_max, height_max)))
    }

    fn screenshot(&self, session: SessionId, width_max: Option<u32>, height_max: Option<u32>) -> Question {
        let settings = &self.api.settings.screenshots;
        Question::Screenshot {
            session,
            width_max: width_max.unwrap_or(settings.width_max).min(SCREENSHOT_SIDE_MAX),
            height_max: height_max.unwrap_or(settings.height_max).min(SCREENSHOT_SIDE_MAX),
            format: settings.format,
        }
    }
}

fn image(image: Image) -> wire::SessionScreenshotImage {
    wire::SessionScreenshotImage {
        format: Some(image.format.as_str().to_owned()),
        data: Some(image.data),
        creation_time: Some(view::time(Timestamp(image.taken_at_ms))),
        primary: Some(image.primary),
    }
}
