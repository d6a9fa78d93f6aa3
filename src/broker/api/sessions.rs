//! Sessions: describe, create, delete.

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::auth::Calling;
use super::body::Query;
use super::change::{Changed, Changing};
use super::consistency::Reading;
use super::door::Caller;
use super::envelope::RequestId;
use super::error::Error;
use super::find::SessionQuery;
use super::policy::PlacementHeader;
use super::scan::JsonBytes;
use super::{ApiState, Failure, rows, validate, view, wire};
use crate::domain::{Command, Fleet, Outcome, Owner, Refusal, SessionId, SessionSpec};

/// Describes sessions, page by page.
#[utoipa::path(
    post,
    path = "/describeSessions",
    operation_id = "describeSessions",
    tag = "sessions",
    request_body = wire::DescribeSessionsRequestData,
    responses((status = 200, description = "The sessions", body = wire::DescribeSessionsResponse))
)]
pub(super) async fn describe(
    State(api): State<ApiState>,
    RequestId(request_id): RequestId,
    reading: Reading,
    Calling(caller): Calling,
    Query(request): Query<wire::DescribeSessionsRequestData>,
) -> Result<Response, Error> {
    let query = SessionQuery::try_from(request)?.of_owner(caller.grant.owner);
    let fleet = api.see(&reading).await?;
    let body = api.scans.look(fleet, move |fleet, steps_max| page(fleet, &query, &request_id, steps_max)).await?;
    Ok(JsonBytes(body).into_response())
}

/// The body of an answer; `None` when too many sessions would have to be
/// looked at for it.
fn page(fleet: &Fleet, query: &SessionQuery, request_id: &str, steps_max: usize) -> Option<Vec<u8>> {
    let (page, next_token) = query.page(fleet, steps_max)?;
    Some(rows::sessions_body(&page, request_id, next_token.as_deref()))
}

/// The body of the answer to a describe call, as the handler makes it from its
/// view of the fleet; for measuring.
pub fn describe_page(
    fleet: &Fleet,
    request: wire::DescribeSessionsRequestData,
    request_id: &str,
) -> Result<Vec<u8>, Error> {
    let query = SessionQuery::try_from(request)?;
    page(fleet, &query, request_id, usize::MAX).ok_or(Error::Internal)
}

/// Creates sessions. What is accepted is being created when this answers.
#[utoipa::path(
    post,
    path = "/createSessions",
    operation_id = "createSessions",
    tag = "sessions",
    request_body = Vec<wire::CreateSessionRequestData>,
    responses(
        (status = 200, description = "What became of each item", body = wire::CreateSessionsResponse),
        (status = 400, description = "The request cannot be understood")
    )
)]
pub(super) async fn create(
    State(api): State<ApiState>,
    PlacementHeader(placement): PlacementHeader,
    request: Changing<wire::CreateSessionRequestData>,
) -> Result<Changed<wire::CreateSessionsResponse>, Error> {
    let request = request.map(|item| {
        let spec = validate::session_spec(&item, &api.settings.autorun).map(|spec| SessionSpec { placement, ..spec });
        (item, spec)
    });
    let done = api
        .carry_out(request, |caller, (_, spec)| {
            let spec = spec.clone()?;
            if let Some(bound) = caller.grant.owner.as_ref().filter(|bound| **bound != spec.owner) {
                return Err(Failure::BoundTo { bound: bound.clone(), wanted: spec.owner });
            }
            let id = api.new_session_id()?;
            Ok(Command::CreateSession { id, spec, client: caller.client.clone() })
        })
        .await?;
    let mut body =
        wire::CreateSessionsResponse { request_id: done.request_id, ..wire::CreateSessionsResponse::default() };
    for ((item, spec), result) in done.results {
        match (result, spec) {
            (Ok(Outcome::Created { id, created_at }), Ok(spec)) => {
                body.successful_list.push(view::created_session(&id, created_at, &spec));
            }
            (Ok(other), _) => return Err(super::unexpected(&other)),
            (Err(failure), _) => body.unsuccessful_list.push(wire::UnsuccessfulCreateSessionRequestData {
                create_session_request_data: Some(item),
                failure_reason: Some(failure.to_string()),
            }),
        }
    }
    Ok(Changed { body, is_repeated: done.is_repeated })
}

/// Deletes sessions. What is accepted is being deleted when this answers.
#[utoipa::path(
    post,
    path = "/deleteSessions",
    operation_id = "deleteSessions",
    tag = "sessions",
    request_body = Vec<wire::DeleteSessionRequestData>,
    responses(
        (status = 200, description = "What became of each item", body = wire::DeleteSessionsResponse),
        (status = 400, description = "The request cannot be understood")
    )
)]
pub(super) async fn delete(
    State(api): State<ApiState>,
    request: Changing<wire::DeleteSessionRequestData>,
) -> Result<Changed<wire::DeleteSessionsResponse>, Error> {
    let done = api
        .carry_out(request, |caller, item| {
            let (id, owner) = own_session(caller, item.session_id.as_deref(), item.owner.as_deref())?;
            Ok(Command::DeleteSession { id, owner, force: item.force.unwrap_or(false), client: caller.client.clone() })
        })
        .await?;
    let mut body =
        wire::DeleteSessionsResponse { request_id: done.request_id, ..wire::DeleteSessionsResponse::default() };
    for (item, result) in done.results {
        let session_id = item.session_id;
        match result {
            Ok(Outcome::Deleting(state)) => body.successful_list.push(wire::DeleteSessionSuccessfulResponse {
                session_id,
                state: Some(view::state_name(state).to_owned()),
            }),
            Ok(other) => return Err(super::unexpected(&other)),
            Err(failure) => body.unsuccessful_list.push(wire::DeleteSessionUnsuccessfulResponse {
                session_id,
                failure_reason: Some(failure.to_string()),
            }),
        }
    }
    Ok(Changed { body, is_repeated: done.is_repeated })
}

/// The same for a caller who names its owner. One who is bound to an owner
/// learns nothing about the sessions of others.
pub(super) fn own_session(
    caller: &Caller,
    id: Option<&str>,
    owner: Option<&str>,
) -> Result<(SessionId, Owner), Failure> {
    let id = existing_session(id)?;
    let owner = validate::owner(owner)?;
    match &caller.grant.owner {
        Some(bound) if *bound != owner => Err(Failure::OfAnother(id)),
        _ => Ok((id, owner)),
    }
}

/// The id of a session that should exist. A text that cannot be an id is told
/// like the id of nothing: clients compare that text.
pub(super) fn existing_session(text: Option<&str>) -> Result<SessionId, super::Failure> {
    match validate::session_id(text) {
        Ok(id) => Ok(id),
        Err(missing @ (validate::Invalid::Missing { .. } | validate::Invalid::Blank { .. })) => Err(missing.into()),
        Err(_) => Err(Refusal::UnknownSession.into()),
    }
}
