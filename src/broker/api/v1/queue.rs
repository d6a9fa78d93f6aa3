//! `GET /v1/queue`: who waits for a server, in the order of arrival.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::broker::api::consistency::Reading;
use crate::broker::api::envelope::RequestId;
use crate::broker::api::error::Error;
use crate::broker::api::pages::{self, Fingerprint};
use crate::broker::api::{ApiState, form, view};
use crate::domain::{Fleet, Session, Timestamp};

/// A page of the queue.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Queue {
    request_id: String,
    /// How many wait in all.
    length: usize,
    /// How many may wait.
    max_length: u32,
    requests: Vec<Request>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

/// One who waits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    /// From 1.
    position: usize,
    session_id: String,
    name: String,
    owner: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    requirements: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    creation_time: String,
    age_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<String>,
    /// Servers that failed to create it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed_servers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_reason: Option<String>,
}

/// Lists who waits.
pub(in crate::broker::api) async fn list(
    State(api): State<ApiState>,
    RequestId(request_id): RequestId,
    reading: Reading,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let asked = Asked::parse(query.as_deref().unwrap_or_default())?;
    let fleet = api.see(&reading).await?;
    let now = api.core.now();
    let (length, max_length) = (fleet.waiting_count(), fleet.settings().queue_max);
    // A position is how many come before: the queue is walked from its start.
    let look = move |fleet: &Fleet, steps_max| (length <= steps_max).then(|| asked.page(fleet, now));
    let (requests, next_token) = api.scans.look(fleet, look).await?;
    let body = Queue { request_id, length, max_length, requests, next_token };
    Ok(Json(body).into_response())
}

/// What is asked; checked.
struct Asked {
    size: usize,
    after: u64,
    owner: Option<String>,
    fingerprint: Fingerprint,
}

impl Asked {
    fn parse(query: &str) -> Result<Self, Error> {
        let (mut size, mut token, mut owner) = (None, None, None);
        let pairs = form::pairs(query).ok_or_else(|| Error::BadRequest("the query is not form-encoded".to_owned()))?;
        for (key, value) in pairs {
            match key.as_str() {
                "MaxResults" => {
                    let number =
                        value.parse().map_err(|_| Error::BadRequest("MaxResults must be a number".to_owned()))?;
                    size = Some(number);
                }
                "NextToken" => token = Some(value),
                "Owner" => owner = Some(value),
                other => {
                    let shown: String = other.chars().take(64).collect();
                    let known = "Owner, MaxResults and NextToken";
                    return Err(Error::BadRequest(format!("{shown:?} is no parameter here; there are {known}")));
                }
            }
        }
        let fingerprint = Fingerprint::new("queue", owner.as_deref());
        let after = match token.filter(|token| !token.is_empty()) {
            None => 0,
            Some(token) => fingerprint
                .resume(&token)?
                .parse()
                .map_err(|_| Error::BadRequest("NextToken is not a token of this broker".to_owned()))?,
        };
        Ok(Self { size: pages::size(size)?, after, owner, fingerprint })
    }

    fn page(&self, fleet: &Fleet, now: Timestamp) -> (Vec<Request>, Option<String>) {
        let mut matching = fleet
            .waiting()
            .enumerate()
            .filter(|(_, session)| session.arrival > self.after)
            .filter(|(_, session)| self.owner.as_ref().is_none_or(|owner| session.spec.owner.as_str() == owner));
        let page: Vec<_> = matching.by_ref().take(self.size).collect();
        let last = matching.next().and_then(|_| page.last()).map(|(_, session)| session.arrival);
        let requests = page.into_iter().map(|(place, session)| request(place + 1, session, now)).collect();
        (requests, last.map(|arrival| self.fingerprint.token(&arrival.to_string())))
    }
}

fn request(position: usize, session: &Session, now: Timestamp) -> Request {
    let spec = &session.spec;
    Request {
        position,
        session_id: session.id.as_str().to_owned(),
        name: spec.name.clone(),
        owner: spec.owner.as_str().to_owned(),
        r#type: view::kind_name(spec.kind),
        requirements: spec.requirements.as_ref().map(ToString::to_string),
        client: session.requested_by.as_ref().map(|client| client.as_str().to_owned()),
        creation_time: view::time(session.created_at),
        age_seconds: now.0.saturating_sub(session.created_at.0) / 1000,
        deadline: session.phase.deadline().map(view::time),
        failed_servers: session.failed_on.iter().map(|server| server.as_str().to_owned()).collect(),
        state_reason: session.state_reason.clone(),
    }
}
