//! Servers: describe, open, close.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::body::Query;
use super::change::{Changed, Changing};
use super::consistency::Reading;
use super::envelope::RequestId;
use super::error::Error;
use super::find::ServerQuery;
use super::{ApiState, Failure};
use super::{validate, view, wire};
use crate::domain::{Command, Outcome, Refusal, ServerId};

/// Describes servers, page by page.
#[utoipa::path(
    post,
    path = "/describeServers",
    operation_id = "describeServers",
    tag = "servers",
    request_body = wire::DescribeServersRequestData,
    responses((status = 200, description = "The servers", body = wire::DescribeServersResponse))
)]
pub(super) async fn describe(
    State(api): State<ApiState>,
    RequestId(request_id): RequestId,
    reading: Reading,
    Query(request): Query<wire::DescribeServersRequestData>,
) -> Result<Response, Error> {
    let query = ServerQuery::try_from(request)?;
    let fleet = api.see(&reading).await?;
    let (page, next_token) = query.page(&fleet);
    let servers = page.into_iter().map(|server| view::server(&fleet, server)).collect();
    let body = wire::DescribeServersResponse { request_id, servers, next_token };
    Ok(Json(body).into_response())
}

/// Opens servers for placement.
#[utoipa::path(
    post,
    path = "/openServers",
    operation_id = "openServers",
    tag = "servers",
    request_body = Vec<wire::OpenServerRequestData>,
    responses(
        (status = 200, description = "What became of each item", body = wire::OpenServersResponse),
        (status = 400, description = "The request cannot be understood")
    )
)]
pub(super) async fn open(
    State(api): State<ApiState>,
    request: Changing<wire::OpenServerRequestData>,
) -> Result<Changed<wire::OpenServersResponse>, Error> {
    let done = api
        .carry_out(request, |caller, item| {
            let id = existing_server(item.server_id.as_deref())?;
            Ok(Command::OpenServer { id, client: caller.client.clone() })
        })
        .await?;
    let mut body = wire::OpenServersResponse { request_id: done.request_id, ..wire::OpenServersResponse::default() };
    for (item, result) in done.results {
        match result {
            Ok(Outcome::Done) => {
                body.successful_list.push(wire::OpenServerSuccessfulResponse { server_id: item.server_id });
            }
            Ok(other) => return Err(super::unexpected(&other)),
            Err(failure) => body.unsuccessful_list.push(wire::OpenServerUnsuccessfulResponse {
                open_server_request_data: Some(item),
                failure_code: Some(failure_code(&failure).to_owned()),
                failure_reason: Some(failure.to_string()),
            }),
        }
    }
    Ok(Changed { body, is_repeated: done.is_repeated })
}

/// Closes servers for placement.
#[utoipa::path(
    post,
    path = "/closeServers",
    operation_id = "closeServers",
    tag = "servers",
    request_body = Vec<wire::CloseServerRequestData>,
    responses(
        (status = 200, description = "What became of each item", body = wire::CloseServersResponse),
        (status = 400, description = "The request cannot be understood")
    )
)]
pub(super) async fn close(
    State(api): State<ApiState>,
    request: Changing<wire::CloseServerRequestData>,
) -> Result<Changed<wire::CloseServersResponse>, Error> {
    let done = api
        .carry_out(request, |caller, item| {
            let id = existing_server(item.server_id.as_deref())?;
            Ok(Command::CloseServer { id, force: item.force.unwrap_or(false), client: caller.client.clone() })
        })
        .await?;
    let mut body = wire::CloseServersResponse { request_id: done.request_id, ..wire::CloseServersResponse::default() };
    for (item, result) in done.results {
        match result {
            Ok(Outcome::Done) => {
                body.successful_list.push(wire::CloseServerSuccessfulResponse { server_id: item.server_id });
            }
            Ok(other) => return Err(super::unexpected(&other)),
            Err(failure) => body.unsuccessful_list.push(wire::CloseServerUnsuccessfulResponse {
                close_server_request_data: Some(item),
                failure_code: Some(failure_code(&failure).to_owned()),
                failure_reason: Some(failure.to_string()),
            }),
        }
    }
    Ok(Changed { body, is_repeated: done.is_repeated })
}

/// The id of a server that should exist. A text that cannot be an id is told
/// like the id of nothing.
pub(super) fn existing_server(text: Option<&str>) -> Result<ServerId, Failure> {
    match validate::server_id(text) {
        Ok(id) => Ok(id),
        Err(missing @ (validate::Invalid::Missing { .. } | validate::Invalid::Blank { .. })) => Err(missing.into()),
        Err(_) => Err(Refusal::UnknownServer.into()),
    }
}

pub(super) const fn failure_code(failure: &Failure) -> &'static str {
    match failure {
        Failure::Refused(Refusal::UnknownServer) => "DCV_SERVER_NOT_FOUND",
        Failure::Refused(Refusal::ServerHasSessions { .. }) => "DCV_SERVER_HAS_SESSIONS",
        Failure::Refused(_) | Failure::BoundTo { .. } | Failure::OfAnother(_) => "REFUSED",
        Failure::Invalid(_) => "INVALID_PARAMETER",
    }
}
