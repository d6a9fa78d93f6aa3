//! `GET /v1/events`: what happened, out of the journal, as pages of JSON or as
//! a stream of server-sent events.
//!
//! - `query.rs`: what is asked for, and a page of it,
//! - `wire.rs`: an event as JSON,
//! - `stream.rs`: events as they happen,
//! - `places.rs`: how many streams there may be.

mod places;
mod query;
mod stream;
mod wire;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};

pub(in crate::broker::api) use self::places::Places;
use self::query::Query;
use crate::broker::api::ApiState;
use crate::broker::api::auth::{self, Calling};
use crate::broker::api::consistency::Reading;
use crate::broker::api::envelope::RequestId;
use crate::broker::api::error::Error;
use crate::domain::client::Scope;
use crate::domain::journal::Position;
use crate::domain::{Fleet, LogIndex};
use crate::secret::Secret;

/// Header with the id of the last event that a client has of a stream.
const LAST_EVENT_ID: &str = "last-event-id";

/// Answers with a page of events or, when the client accepts it, with a stream.
pub(in crate::broker::api) async fn list(
    State(api): State<ApiState>,
    Calling(caller): Calling,
    RequestId(request_id): RequestId,
    reading: Reading,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let mut query = Query::parse(query.as_deref().unwrap_or_default())?;
    query.filter.audit = caller.grant.scopes.has(Scope::Admin);
    if accepts_stream(&headers) {
        query.go_on_after(&headers)?;
        let token =
            if api.settings.authorization { Some(Secret::new(auth::bearer(&headers)?.to_owned())) } else { None };
        let place = api.event_places.take(&caller.client)?;
        let start = start(&query, &*api.see(&reading).await?)?;
        return Ok(stream::follow(api, query.filter, start, token, place).into_response());
    }
    let fleet = api.see(&reading).await?;
    let start = start(&query, &fleet)?;
    let page = query.filter.page(&fleet, start, query.limit());
    let body = wire::Listing {
        events: page.records.iter().map(|record| wire::Event::of(record)).collect(),
        next: wire::cursor(page.next),
        more: page.more,
        oldest: fleet.journal().oldest().map(|record| wire::cursor(record.position)),
        request_id,
    };
    Ok(Json(body).into_response())
}

/// Where a reading begins: after the cursor, unless something after it is no
/// longer kept; without one, with the oldest event that is wanted.
fn start(query: &Query, fleet: &Fleet) -> Result<Position, Error> {
    let journal = fleet.journal();
    if let Some(cursor) = query.after {
        return Lost::after(cursor, fleet).map_or(Ok(cursor), |lost| Err(lost.into()));
    }
    let before = query.filter.since.and_then(|since| journal.position_before(since));
    // The first entry of a log names the members of the cluster; nothing happens in it.
    Ok(before.max(journal.horizon()).unwrap_or(Position::end_of(LogIndex(0))))
}

/// What a reader missed.
struct Lost {
    /// The newest record that is no longer kept.
    horizon: Position,
    /// The oldest index whose events are kept.
    oldest: LogIndex,
}

impl Lost {
    /// What a reader with this cursor missed, if anything.
    fn after(cursor: Position, fleet: &Fleet) -> Option<Self> {
        let journal = fleet.journal();
        let horizon = journal.horizon().filter(|_| journal.has_lost_after(cursor))?;
        let oldest = journal.oldest().map_or(horizon.index.next(), |record| record.position.index);
        Some(Self { horizon, oldest })
    }
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        Self::EventsGone { dropped: wire::cursor(lost.horizon), oldest: lost.oldest.0 }
    }
}

/// Whether a stream is among what the client accepts.
fn accepts_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| {
        let essence = range.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("text/event-stream")
    })
}
