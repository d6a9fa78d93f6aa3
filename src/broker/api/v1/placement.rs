//! `POST /v1/placement:explain`: where a session would go, and why it would
//! not go elsewhere.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use crate::broker::api::body::{self, One};
use crate::broker::api::consistency::Reading;
use crate::broker::api::envelope::RequestId;
use crate::broker::api::error::Error;
use crate::broker::api::policy::PlacementHeader;
use crate::broker::api::{ApiState, validate, wire};
use crate::domain::placement::{Explanation, Rule, Survey, survey};
use crate::domain::{Fleet, Phase, ServerId, SessionId, SessionSpec};

/// How the servers fare.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Explained {
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<String>,
    policy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_server_id: Option<String>,
    servers: u32,
    eligible: u32,
    refused: Vec<RuleCount>,
    servers_refused: Vec<ServerRefused>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_reason: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct RuleCount {
    rule: &'static str,
    reason: String,
    servers: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServerRefused {
    server_id: String,
    rule: &'static str,
    reason: String,
}

/// Explains a placement without placing anything.
pub(in crate::broker::api) async fn explain(
    State(api): State<ApiState>,
    RequestId(request_id): RequestId,
    reading: Reading,
    PlacementHeader(policy): PlacementHeader,
    One(asked): One,
) -> Result<Response, Error> {
    let fleet = api.see(&reading).await?;
    let (session_id, spec, failed_on) = if let Some(id) = asked_session(&asked)? {
        of_waiting(&fleet, id)?
    } else {
        let item: wire::CreateSessionRequestData = body::typed(asked)?;
        let spec = validate::session_spec(&item, &api.settings.autorun)
            .map_err(|invalid| Error::BadRequest(invalid.to_string()))?;
        (None, SessionSpec { placement: policy, ..spec }, Vec::new())
    };
    let waiting = session_id.clone();
    let look = move |fleet: &Fleet, steps_max| {
        (fleet.server_count() <= steps_max).then(|| survey(fleet, waiting.as_ref(), &spec, &failed_on))
    };
    let found = api.scans.look(fleet, look).await?;
    Ok(Json(shown(request_id, session_id, found)).into_response())
}

/// The session that the body names, when it names one.
fn asked_session(asked: &Value) -> Result<Option<SessionId>, Error> {
    let Some(id) = asked.get("SessionId") else { return Ok(None) };
    let id =
        id.as_str().ok_or_else(|| Error::BadRequest("SessionId has the wrong type: it must be text".to_owned()))?;
    SessionId::new(id).map(Some).map_err(|error| Error::BadRequest(format!("SessionId is not valid: {error}")))
}

fn of_waiting(fleet: &Fleet, id: SessionId) -> Result<(Option<SessionId>, SessionSpec, Vec<ServerId>), Error> {
    let session = fleet.session(&id).ok_or(Error::NotFound("The requested dcvSession does not exist"))?;
    if !matches!(session.phase, Phase::Placing { .. }) {
        return Err(Error::BadRequest("the session does not wait for a server".to_owned()));
    }
    Ok((Some(id), session.spec.clone(), session.failed_on.clone()))
}

fn shown(request_id: String, session_id: Option<SessionId>, found: Survey) -> Explained {
    let Survey { policy, chosen, eligible, explanation } = found;
    let failure_reason =
        chosen.is_none().then(|| format!("no dcv server found for placement: {}", explanation.counts()));
    let Explanation { servers, refused, servers_refused } = explanation;
    let reason = |rule: Rule| (rule.as_str(), rule.to_string());
    Explained {
        request_id,
        session_id: session_id.map(String::from),
        policy: policy.as_str(),
        chosen_server_id: chosen.map(String::from),
        servers,
        eligible,
        refused: refused
            .into_iter()
            .map(|(refusing, servers)| {
                let (rule, reason) = reason(refusing);
                RuleCount { rule, reason, servers }
            })
            .collect(),
        servers_refused: servers_refused
            .into_iter()
            .map(|(server, refusing)| {
                let (rule, reason) = reason(refusing);
                ServerRefused { server_id: server.into(), rule, reason }
            })
            .collect(),
        failure_reason,
    }
}
