//! What a client asks for, and a page of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::http::HeaderMap;

use super::LAST_EVENT_ID;
use super::wire::{Kind, position};
use crate::broker::api::error::Error;
use crate::broker::api::form;
use crate::broker::api::limits::{EVENTS_DEFAULT, EVENTS_LOOKED_AT_MAX, EVENTS_MAX};
use crate::domain::journal::{Position, Record};
use crate::domain::{Event, Fleet, ServerId, SessionId, Timestamp};

/// Parameters that there are, for the one who gave another.
const PARAMETERS: &str = "after, session, server, kind, since and limit";

/// A parsed query.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Query {
    /// Only what happened after this.
    pub(super) after: Option<Position>,
    /// Which events.
    pub(super) filter: Filter,
    limit: Option<usize>,
}

/// Which events are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Filter {
    session: Option<SessionId>,
    server: Option<ServerId>,
    /// Empty: of every kind.
    kinds: BTreeSet<Kind>,
    /// Only what happened at this time or later.
    pub(super) since: Option<Timestamp>,
    /// Whether records of the audit are among them.
    pub(super) audit: bool,
}

/// Some events, oldest first.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) records: Vec<Arc<Record>>,
    /// Where to go on; everything up to here was looked at.
    pub(super) next: Position,
    /// Whether there may be more after it already.
    pub(super) more: bool,
}

impl Query {
    /// Reads the query of a URL.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let pairs = form::pairs(text).ok_or_else(|| bad("the query is not form-encoded"))?;
        let mut query = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "after" => set(&mut query.after, "after", cursor("after", &value)?)?,
                "session" => {
                    let id = SessionId::new(&value).map_err(|error| bad(&format!("session is not valid: {error}")))?;
                    set(&mut query.filter.session, "session", id)?;
                }
                "server" => {
                    let id = ServerId::new(&value).map_err(|error| bad(&format!("server is not valid: {error}")))?;
                    set(&mut query.filter.server, "server", id)?;
                }
                "kind" => {
                    query.filter.kinds.insert(kind(&value)?);
                }
                "since" => set(&mut query.filter.since, "since", time(&value)?)?,
                "limit" => set(&mut query.limit, "limit", limit(&value)?)?,
                other => {
                    let shown: String = other.chars().take(64).collect();
                    return Err(bad(&format!("{shown:?} is not a parameter of this call; there are {PARAMETERS}")));
                }
            }
        }
        Ok(query)
    }

    /// Takes over what is said of streams only: the id of the last event that
    /// the client has goes before the cursor with which it once began.
    pub(super) fn go_on_after(&mut self, headers: &HeaderMap) -> Result<(), Error> {
        if self.limit.is_some() {
            return Err(bad("limit is for pages; a stream has no end"));
        }
        if let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) {
            self.after = Some(cursor("Last-Event-ID", id.to_str().unwrap_or_default())?);
        }
        Ok(())
    }

    /// How many events a page holds at most.
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(EVENTS_DEFAULT)
    }
}

impl Filter {
    /// A page of what there is after a position. It looks at a bounded number
    /// of records, so it may be short, or empty, although more follows.
    pub(super) fn page(&self, fleet: &Fleet, after: Position, limit: usize) -> Page {
        let mut records = Vec::new();
        let mut candidates = self.candidates(fleet, after).take(EVENTS_LOOKED_AT_MAX + 1).peekable();
        let mut looked_at = 0;
        let mut last = after;
        while let Some(record) = candidates.next_if(|_| records.len() < limit && looked_at < EVENTS_LOOKED_AT_MAX) {
            looked_at += 1;
            last = record.position;
            if self.holds_for(record) {
                records.push(Arc::clone(record));
            }
        }
        let more = candidates.peek().is_some();
        // All of this state was looked at. The cursor moves on with it even when
        // nothing was found, so that it does not fall behind what is kept. It
        // does not go back in a state that is older than the one it came from.
        let end = Position::end_of(fleet.applied());
        let next = if more { last } else { last.max(end) };
        Page { records, next, more }
    }

    /// Records after a position, from the smallest listing that has all that
    /// are wanted.
    fn candidates<'a>(&self, fleet: &'a Fleet, after: Position) -> Box<dyn Iterator<Item = &'a Arc<Record>> + 'a> {
        let (journal, after) = (fleet.journal(), Some(after));
        match (&self.session, &self.server) {
            (Some(session), _) => Box::new(journal.of_session_after(session, after)),
            (None, Some(server)) => Box::new(journal.of_server_after(server, after)),
            (None, None) => Box::new(journal.after(after)),
        }
    }

    fn holds_for(&self, record: &Record) -> bool {
        let is_of_session = self.session.as_ref().is_none_or(|session| record.session() == Some(session));
        let is_of_server = self.server.as_ref().is_none_or(|server| record.server() == Some(server));
        let is_of_kind = self.kinds.is_empty() || self.kinds.contains(&Kind::of(&record.event));
        let is_for_all = !matches!(record.event, Event::Audited(_));
        (is_for_all || self.audit)
            && is_of_session
            && is_of_server
            && is_of_kind
            && self.since.is_none_or(|since| record.at >= since)
    }
}

fn bad(text: &str) -> Error {
    Error::BadRequest(text.to_owned())
}

/// Takes over a parameter that may be given once.
fn set<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), Error> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad(&format!("{name} is given twice"))),
    }
}

fn cursor(name: &str, value: &str) -> Result<Position, Error> {
    position(value).ok_or_else(|| bad(&format!("{name} must be a log index or a cursor, for example 12 or 12.3")))
}

fn kind(value: &str) -> Result<Kind, Error> {
    Kind::parse(value).ok_or_else(|| {
        let shown: String = value.chars().take(64).collect();
        bad(&format!("kind {shown:?} is not known; kinds are written like SessionReady"))
    })
}

fn time(value: &str) -> Result<Timestamp, Error> {
    let time: jiff::Timestamp = value
        .parse()
        .map_err(|_| bad("since must be a time as in RFC 3339, for example 2020-10-06T10:15:31Z; write + as %2B"))?;
    Ok(Timestamp(u64::try_from(time.as_millisecond()).unwrap_or_default()))
}

fn limit(value: &str) -> Result<usize, Error> {
    let limit = value.parse().ok().filter(|limit| (1..=EVENTS_MAX).contains(limit));
    limit.ok_or_else(|| bad(&format!("limit must be between 1 and {EVENTS_MAX}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::domain::LogIndex;

    #[test]
    fn a_query_is_understood() {
        let query = Query::parse(
            "after=12.3&session=s%201&server=desk&kind=SessionReady&kind=ServerLost&since=1970-01-01T01:00:01%2B01:00&limit=7",
        )
        .unwrap();
        assert_eq!(query.after, Some(Position { index: LogIndex(12), number: 3 }));
        assert_eq!(query.filter.session.as_ref().unwrap().as_str(), "s 1");
        assert_eq!(query.filter.server.as_ref().unwrap().as_str(), "desk");
        assert_eq!(query.filter.kinds, BTreeSet::from([Kind::SessionReady, Kind::ServerLost]));
        assert_eq!(query.filter.since, Some(Timestamp(1_000)));
        assert_eq!(query.limit(), 7);
        let empty = Query::parse("").unwrap();
        assert_eq!((empty.after, empty.limit()), (None, EVENTS_DEFAULT));
        assert_eq!(Query::parse("after=12").unwrap().after, Some(Position::end_of(LogIndex(12))));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |query: &str| Query::parse(query).unwrap_err().to_string();
        for after in ["", "x", "-1", "%2B1", "1.", ".1", "1.2.3", "1.4294967296", "18446744073709551616", "1%200"] {
            let text = wrong(&format!("after={after}"));
            assert_eq!(text, "after must be a log index or a cursor, for example 12 or 12.3", "{after}");
        }
        assert_eq!(wrong("session="), "session is not valid: session id must not be empty");
        assert_eq!(wrong("server=a%0Ab"), "server is not valid: server id must not hold control characters");
        assert_eq!(wrong("kind=ready"), "kind \"ready\" is not known; kinds are written like SessionReady");
        for since in ["yesterday", "2020-10-06", "2020-10-06T10:15:31", "2020-10-06T10:15:31+01:00"] {
            assert!(wrong(&format!("since={since}")).starts_with("since must be a time"), "{since}");
        }
        for limit in ["0", "1001", "-1", "x", ""] {
            assert_eq!(wrong(&format!("limit={limit}")), "limit must be between 1 and 1000");
        }
        assert_eq!(wrong("after=1&after=1"), "after is given twice");
        assert_eq!(
            wrong("sesion=x"),
            "\"sesion\" is not a parameter of this call; there are after, session, server, kind, since and limit"
        );
        assert_eq!(wrong("session=%ff"), "the query is not form-encoded");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_query_panic(text in ".{0,80}") {
            let _ = Query::parse(&text);
            let _ = Query::parse(&format!("after={text}"));
            let _ = Query::parse(&format!("since={text}"));
        }
    }
}
