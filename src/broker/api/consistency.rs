//! Which state of the fleet an answer shows: what a request may ask for, and
//! what its answer says.
//!
//! A read shows the fleet as of now unless its headers want less. Whoever
//! looks at the fleet for an answer does so through [`ApiState::see`] or
//! [`ApiState::see_current`]; whoever changes it does so through
//! [`ApiState::propose`] and says so with [`Reading::show`]. What was shown then stands in the headers of the answer,
//! also when that is an error that the state gave rise to.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::timeout;

use super::ApiState;
use super::door::{Proposed, Unavailable, UnavailableReason, View};
use super::error::Error;
use super::limits::{MIN_INDEX_WAIT_MAX, READ_WAIT_MAX};
use crate::domain::{Command, Fleet, LogIndex};

/// Header of answers: the log index of the state that the answer shows, or of
/// the entry that it acknowledges.
pub const INDEX_HEADER: HeaderName = HeaderName::from_static("berth-index");
/// Header of answers that show what this replica knows, which others may know
/// to be out of date: `true`.
pub const STALE_HEADER: HeaderName = HeaderName::from_static("berth-stale");
/// Header of requests: the oldest log index that the answer may show.
pub const MIN_INDEX_HEADER: HeaderName = HeaderName::from_static("berth-min-index");
/// Header of requests: `linearizable` or `stale`.
pub const CONSISTENCY_HEADER: HeaderName = HeaderName::from_static("berth-consistency");

const CUT_OFF: Unavailable = Unavailable { reason: UnavailableReason::NoQuorum, retry_after: Duration::from_secs(1) };
const BEHIND: Unavailable = Unavailable { reason: UnavailableReason::Behind, retry_after: Duration::from_secs(1) };

/// What a request says of the state that it wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Nothing: the fleet as of now or, where that is allowed, what this
    /// replica knows while nobody can tell.
    Default,
    /// The fleet as of now and nothing else, and no older than an index.
    Current(Option<LogIndex>),
    /// What this replica knows, once it knows as much as an index.
    Known(Option<LogIndex>),
}

impl Wanted {
    fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let min_index = single(headers, &MIN_INDEX_HEADER)?.map(index).transpose()?;
        match (single(headers, &CONSISTENCY_HEADER)?, min_index) {
            (None, None) => Ok(Self::Default),
            (Some("stale"), _) | (None, Some(_)) => Ok(Self::Known(min_index)),
            (Some("linearizable"), _) => Ok(Self::Current(min_index)),
            (Some(_), _) => Err(Error::BadRequest("the header Berth-Consistency must be linearizable or stale".into())),
        }
    }
}

/// The value of a header that may be there once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let shown = if *name == MIN_INDEX_HEADER { "Berth-Min-Index" } else { "Berth-Consistency" };
        return Err(Error::BadRequest(format!("{shown} is given more than once")));
    }
    // What is no text is no valid value either, and is refused as such.
    Ok(Some(value.to_str().unwrap_or_default().trim()))
}

fn index(text: &str) -> Result<LogIndex, Error> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.map(LogIndex).ok_or_else(|| {
        Error::BadRequest("the header Berth-Min-Index must be a log index, as in Berth-Index of an answer".to_owned())
    })
}

/// The state that an answer shows.
#[derive(Debug, Clone, Copy)]
struct Shown {
    index: LogIndex,
    is_stale: bool,
}

/// A request's wish, and what its answer came to show.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    wanted: Wanted,
    shown: Arc<OnceLock<Shown>>,
}

impl Reading {
    /// The answer shows the state after an entry of the log.
    pub(super) fn show(&self, index: LogIndex) {
        self.set(Shown { index, is_stale: false });
    }

    /// Whether the answer shows a state that may be out of date.
    pub(super) fn is_stale(&self) -> bool {
        self.shown.get().is_some_and(|shown| shown.is_stale)
    }

    fn set(&self, shown: Shown) {
        // Who looks twice shows the older of two states.
        let _ = self.shown.set(shown);
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Reading {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            tracing::error!("a request came to a handler without what it wants to read");
            Error::Internal
        })
    }
}

/// Reads the wish of a request, and says in the answer what it shows.
pub(super) async fn attend(mut request: Request, next: Next) -> Result<Response, Error> {
    let reading = Reading { wanted: Wanted::of(request.headers())?, shown: Arc::default() };
    request.extensions_mut().insert(reading.clone());
    let mut response = next.run(request).await;
    if let Some(shown) = reading.shown.get() {
        let headers = response.headers_mut();
        headers.insert(INDEX_HEADER, HeaderValue::from(shown.index.0));
        if shown.is_stale {
            headers.insert(STALE_HEADER, HeaderValue::from_static("true"));
        }
    }
    Ok(response)
}

impl ApiState {
    /// The fleet for an answer that only tells what there is. While nobody can
    /// tell what is current, it is the fleet as this replica knows it, unless
    /// the request will have none of that.
    pub(super) async fn see(&self, reading: &Reading) -> Result<Arc<Fleet>, Error> {
        match self.look(reading.wanted).await {
            Err(Unavailable { reason: UnavailableReason::NoQuorum, .. }) if reading.wanted == Wanted::Default => {
                tracing::debug!("answering from what this replica knows");
                Ok(shown(reading, self.core.local(), true))
            }
            looked => Ok(looked.map(|(view, is_stale)| shown(reading, view, is_stale))?),
        }
    }

    /// The fleet for an answer that somebody acts on. It is current, unless the
    /// request asks for less.
    pub(super) async fn see_current(&self, reading: &Reading) -> Result<Arc<Fleet>, Error> {
        let (view, is_stale) = self.look(reading.wanted).await?;
        Ok(shown(reading, view, is_stale))
    }

    /// Proposes commands, unless it is known that no majority would take them:
    /// a replica that leads and is cut off would only come to an unknown outcome.
    pub(super) async fn propose(&self, commands: Vec<Command>) -> Result<Proposed, Unavailable> {
        if self.core.is_cut_off() {
            return Err(CUT_OFF);
        }
        self.core.propose(commands).await
    }

    /// A view, and whether it may be out of date.
    async fn look(&self, wanted: Wanted) -> Result<(View, bool), Unavailable> {
        match wanted {
            Wanted::Default | Wanted::Current(None) => Ok((self.current().await?, false)),
            Wanted::Current(Some(index)) => {
                let view = self.current().await?;
                // Holds for all that was ever acknowledged; what was not may come yet.
                if view.index >= index {
                    return Ok((view, false));
                }
                self.reach(index).await?;
                Ok((self.current().await?, false))
            }
            Wanted::Known(None) => Ok((self.core.local(), true)),
            Wanted::Known(Some(index)) => {
                self.reach(index).await?;
                Ok((self.core.local(), true))
            }
        }
    }

    async fn current(&self) -> Result<View, Unavailable> {
        if self.core.is_cut_off() {
            return Err(CUT_OFF);
        }
        timeout(READ_WAIT_MAX, self.core.read()).await.unwrap_or(Err(CUT_OFF))
    }

    /// Waits until this replica knows as much as an index.
    async fn reach(&self, index: LogIndex) -> Result<(), Unavailable> {
        timeout(MIN_INDEX_WAIT_MAX, self.core.applied(index)).await.map_err(|_| BEHIND)
    }
}

fn shown(reading: &Reading, view: View, is_stale: bool) -> Arc<Fleet> {
    reading.set(Shown { index: view.index, is_stale });
    view.fleet
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn wanted(pairs: &[(HeaderName, &str)]) -> Result<Wanted, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Wanted::of(&headers).map_err(|error| error.to_string())
    }

    #[test]
    fn the_headers_say_which_state_is_wanted() {
        let (min, kind) = (MIN_INDEX_HEADER, CONSISTENCY_HEADER);
        assert_eq!(wanted(&[]), Ok(Wanted::Default));
        assert_eq!(wanted(&[(min.clone(), "7")]), Ok(Wanted::Known(Some(LogIndex(7)))));
        assert_eq!(wanted(&[(kind.clone(), "stale")]), Ok(Wanted::Known(None)));
        assert_eq!(wanted(&[(kind.clone(), "linearizable")]), Ok(Wanted::Current(None)));
        let both = [(min.clone(), "7"), (kind.clone(), " stale ")];
        assert_eq!(wanted(&both), Ok(Wanted::Known(Some(LogIndex(7)))));
        assert_eq!(wanted(&[(min, "7"), (kind, "linearizable")]), Ok(Wanted::Current(Some(LogIndex(7)))));
    }

    #[test]
    fn other_values_are_refused_by_name() {
        for value in ["", "-1", "+1", "1.5", "x", "0x1", "18446744073709551616", "\u{fc}", "1, 2"] {
            let error = wanted(&[(MIN_INDEX_HEADER, value)]).unwrap_err();
            assert!(error.starts_with("the header Berth-Min-Index must be a log index"), "{value}: {error}");
        }
        for value in ["", "Stale", "strong", "stale, stale"] {
            let error = wanted(&[(CONSISTENCY_HEADER, value)]).unwrap_err();
            assert_eq!(error, "the header Berth-Consistency must be linearizable or stale", "{value}");
        }
        let twice = wanted(&[(MIN_INDEX_HEADER, "1"), (MIN_INDEX_HEADER, "1")]).unwrap_err();
        assert_eq!(twice, "Berth-Min-Index is given more than once");
        let twice = wanted(&[(CONSISTENCY_HEADER, "stale"), (CONSISTENCY_HEADER, "stale")]).unwrap_err();
        assert_eq!(twice, "Berth-Consistency is given more than once");
    }
}
