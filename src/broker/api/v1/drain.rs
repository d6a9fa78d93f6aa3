//! `POST /v1/servers:drain`: closes servers and gives their sessions a
//! deadline. openServers ends it; `GET /v1/servers` tells how far it is.

use axum::extract::State;
use serde::{Deserialize, Serialize};

use crate::broker::api::change::{Changed, Changing};
use crate::broker::api::error::Error;
use crate::broker::api::servers::{existing_server, failure_code};
use crate::broker::api::{ApiState, limits, unexpected, validate, view};
use crate::domain::{Command, Millis, Outcome};

/// A server to drain.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::broker::api) struct DrainRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    server_id: Option<String>,
    /// After so many seconds, the sessions that are left are deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    within_seconds: Option<i64>,
}

/// What became of each item.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::broker::api) struct DrainAnswer {
    request_id: String,
    successful_list: Vec<Draining>,
    unsuccessful_list: Vec<NotDrained>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Draining {
    server_id: Option<String>,
    /// Sessions on it now.
    sessions: u32,
    deadline: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NotDrained {
    drain_server_request_data: DrainRequest,
    failure_code: &'static str,
    failure_reason: String,
}

/// Drains servers.
pub(in crate::broker::api) async fn drain(
    State(api): State<ApiState>,
    request: Changing<DrainRequest>,
) -> Result<Changed<DrainAnswer>, Error> {
    let done = api
        .carry_out(request, |caller, item| {
            let id = existing_server(item.server_id.as_deref())?;
            let within = validate::seconds("WithinSeconds", item.within_seconds, limits::DRAIN_SECONDS_MAX)?;
            Ok(Command::DrainServer { id, within: Millis::from_secs(within), client: caller.client.clone() })
        })
        .await?;
    let mut body = DrainAnswer { request_id: done.request_id, ..DrainAnswer::default() };
    for (item, result) in done.results {
        match result {
            Ok(Outcome::Draining { sessions, deadline }) => body.successful_list.push(Draining {
                server_id: item.server_id,
                sessions,
                deadline: view::time(deadline),
            }),
            Ok(other) => return Err(unexpected(&other)),
            Err(failure) => body.unsuccessful_list.push(NotDrained {
                drain_server_request_data: item,
                failure_code: failure_code(&failure),
                failure_reason: failure.to_string(),
            }),
        }
    }
    Ok(Changed { body, is_repeated: done.is_repeated })
}
