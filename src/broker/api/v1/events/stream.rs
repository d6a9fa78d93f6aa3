//! Events as they happen, as server-sent events.
//!
//! A stream holds a cursor and at most one small page. It reads the next page
//! from the current state when the client has taken the last one, so a slow
//! client costs nothing; one that falls behind what is kept is told so. Nothing
//! is polled: the stream sleeps until the journal has grown.
//!
//! A stream ends when the broker does, and when its token is no longer good,
//! which is looked at with each sign of life.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt as _, stream};
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::places::Place;
use super::query::Filter;
use super::{Lost, wire};
use crate::broker::api::ApiState;
use crate::broker::api::door::Caller;
use crate::broker::api::error::Error;
use crate::broker::api::limits::EVENTS_AHEAD_MAX;
use crate::domain::client::Scope;
use crate::domain::journal::{Position, Record};
use crate::secret::Secret;

/// How long a client is to wait before it comes back after an end.
const RETRY: Duration = Duration::from_secs(1);
/// Tells nginx not to gather what is to arrive at once.
const NO_BUFFERING: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// One client's reading.
struct Follower {
    api: ApiState,
    filter: Filter,
    token: Option<Secret>,
    /// Read and not taken yet.
    ahead: VecDeque<Arc<Record>>,
    /// Where the next page begins.
    cursor: Position,
    /// Up to where the client has everything that it wants.
    seen: Position,
    signs_of_life: Interval,
    has_begun: bool,
    has_ended: bool,
    // Held as long as the stream lives.
    _place: Place,
}

/// Data of the event that ends a stream whose cursor was left behind.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Gone {
    error: String,
    /// The oldest index whose events are kept.
    oldest_index: u64,
    /// Cursor with which everything that is kept can be had.
    next: String,
}

impl From<Lost> for Gone {
    fn from(lost: Lost) -> Self {
        let (oldest_index, next) = (lost.oldest.0, wire::cursor(lost.horizon));
        Self { error: Error::from(lost).to_string(), oldest_index, next }
    }
}

/// What happens from a position on.
pub(super) fn follow(
    api: ApiState,
    filter: Filter,
    start: Position,
    token: Option<Secret>,
    place: Place,
) -> impl IntoResponse {
    let period = api.settings.event_keep_alive;
    let mut signs_of_life = interval_at(Instant::now() + period, period);
    signs_of_life.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let follower = Follower {
        api,
        filter,
        token,
        ahead: VecDeque::new(),
        cursor: start,
        seen: start,
        signs_of_life,
        has_begun: false,
        has_ended: false,
        _place: place,
    };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let response: Response = ([NO_BUFFERING], Sse::new(events)).into_response();
    response
}

impl Follower {
    /// What comes next; `None` at the end.
    async fn next(&mut self) -> Option<sse::Event> {
        if !self.has_begun {
            self.has_begun = true;
            return Some(sse::Event::default().retry(RETRY));
        }
        loop {
            if self.has_ended || self.api.ending.is_cancelled() {
                return None;
            }
            // Also while there is always something to say.
            if self.signs_of_life.tick().now_or_never().is_some() {
                return self.sign_of_life();
            }
            if let Some(record) = self.ahead.pop_front() {
                self.seen = record.position;
                return shown(&record);
            }
            // What the client may do counts now, not when it began to listen.
            if !self.may_listen() {
                return None;
            }
            match self.read_on() {
                Progress::Read => {}
                Progress::Gone(event) => {
                    self.has_ended = true;
                    return Some(event);
                }
                // A long stretch of the journal without anything that is wanted.
                Progress::Searching => tokio::task::yield_now().await,
                Progress::Exhausted(position) => {
                    let ending = self.api.ending.clone();
                    tokio::select! {
                        () = self.api.core.journaled_after(position) => {}
                        _ = self.signs_of_life.tick() => return self.sign_of_life(),
                        () = ending.cancelled() => return None,
                    }
                }
            }
        }
    }

    /// Reads the next page from the current state.
    fn read_on(&mut self) -> Progress {
        let fleet = self.api.core.local().fleet;
        if let Some(lost) = Lost::after(self.cursor, &fleet) {
            let event = sse::Event::default().event("gone").json_data(Gone::from(lost));
            return Progress::Gone(event.unwrap_or_default());
        }
        let page = self.filter.page(&fleet, self.cursor, EVENTS_AHEAD_MAX);
        self.cursor = page.next;
        self.ahead.extend(page.records);
        if !self.ahead.is_empty() {
            return Progress::Read;
        }
        self.seen = self.cursor;
        if page.more { Progress::Searching } else { Progress::Exhausted(page.next) }
    }

    /// Whether the client may hear this still.
    fn may_listen(&self) -> bool {
        let Some(token) = &self.token else { return true };
        match self.api.identity.verify(token.expose()) {
            Ok(Caller { client: _, grant }) => {
                let hears_audit = self.filter.audit == grant.scopes.has(Scope::Admin);
                grant.scopes.has(Scope::Read) && grant.owner.is_none() && hears_audit
            }
            Err(error) => {
                tracing::debug!(%error, "a stream of events ends");
                false
            }
        }
    }

    /// A comment that keeps the connection open and, with it, how far the
    /// client is, though nothing happened that it wants. `None` when it may no
    /// longer listen.
    fn sign_of_life(&self) -> Option<sse::Event> {
        if !self.may_listen() {
            return None;
        }
        Some(sse::Event::default().comment("").id(wire::cursor(self.seen)))
    }
}

/// What reading on came to.
enum Progress {
    /// There is something to send.
    Read,
    /// Nothing yet, and more to look at.
    Searching,
    /// Nothing more up to here.
    Exhausted(Position),
    /// The cursor was left behind.
    Gone(sse::Event),
}

/// A record as an event of the stream.
fn shown(record: &Record) -> Option<sse::Event> {
    let event = wire::Event::of(record);
    let shown = sse::Event::default().id(wire::cursor(record.position)).event(event.kind.as_str()).json_data(&event);
    shown.inspect_err(|error| tracing::error!(%error, "an event cannot be shown")).ok()
}
