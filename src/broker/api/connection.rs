//! What a user needs to connect to a session.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::ApiState;
use super::audit::{self, Route};
use super::auth::Calling;
use super::consistency::Reading;
use super::door::UnavailableReason;
use super::envelope::RequestId;
use super::error::Error;
use super::{view, wire};
use crate::domain::audit::{Actor, Deed};
use crate::domain::session::SessionState;
use crate::domain::{Owner, SessionId};

/// What is answered when there is no such session.
pub(super) const NO_SESSION: &str = "The requested dcvSession does not exist";

/// What the audit says of an answer.
const ISSUED: &str = "a connection token was issued";

/// Gives a user a new token for a session that is ready.
#[utoipa::path(
    get,
    path = "/sessionConnectionData/{sessionId}/{user}",
    operation_id = "GetSessionConnectionData",
    tag = "GetSessionConnectionData",
    params(
        ("sessionId" = String, Path, description = "Id of the session"),
        ("user" = String, Path, description = "User who will connect")
    ),
    responses(
        (status = 200, description = "The session and the token", body = wire::GetSessionConnectionDataResponse),
        (status = 400, description = "The session is not ready")
    )
)]
pub(super) async fn get(
    State(api): State<ApiState>,
    RequestId(request_id): RequestId,
    reading: Reading,
    Calling(caller): Calling,
    Route { action, from }: Route,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Error> {
    let Path((session_id, user)) =
        path.map_err(|_| Error::BadRequest("the path is not percent-encoded UTF-8".to_owned()))?;
    let id = SessionId::new(&session_id).map_err(|_| Error::NotFound(NO_SESSION))?;
    let user = Owner::new(&user).map_err(|error| {
        Error::BadRequest(format!("the user in the path is not valid: {error}").replacen("owner", "a user", 1))
    })?;
    // The answer opens a session: nobody gets in by what was true once.
    let fleet = api.see_current(&reading).await?;
    let session = fleet.session(&id).ok_or(Error::NotFound(NO_SESSION))?;
    let deed = Deed {
        actor: Actor::Client(caller.client),
        from,
        action,
        target: format!("{id} {user}"),
        request_id,
        via: api.core.replica(),
    };
    if let Some(owner) = &caller.grant.owner {
        if *owner != session.spec.owner {
            api.notes.take(deed, audit::OF_ANOTHER);
            return Err(Error::NotFound(NO_SESSION));
        }
        if *owner != user {
            let error = Error::OwnersSessionsOnly;
            api.notes.take(deed, &format!("refused: {error}"));
            return Err(error);
        }
    }
    match fleet.state_of(session) {
        SessionState::Ready => {}
        SessionState::Deleted => return Err(Error::NotFound(NO_SESSION)),
        other => return Err(Error::BadRequest(not_ready(other))),
    }
    let connection_token = api.identity.connection_token(session, user.as_str())?;
    if connection_token.is_empty() {
        tracing::error!(session_id = %id, "the signer made an empty connection token");
        return Err(Error::Internal);
    }
    // Whoever has the token gets in, so it is given out only once that is on record.
    match api.record(deed.clone(), ISSUED).await {
        // On a full disk one gets in, and so does who asked for that while no majority is there.
        Err(Error::Unavailable(error))
            if error.reason == UnavailableReason::Storage
                || (error.reason == UnavailableReason::NoQuorum && reading.is_stale()) =>
        {
            api.notes.take(deed, ISSUED);
        }
        recorded => recorded?,
    }
    let body = wire::GetSessionConnectionDataResponse {
        session: Some(view::session(&fleet, session)),
        connection_token: Some(connection_token),
    };
    Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response())
}

/// Text for a session that is not ready. Clients look for `not in READY`.
pub(super) fn not_ready(state: SessionState) -> String {
    format!("The requested dcvSession is {}, not in READY state", view::state_name(state))
}
