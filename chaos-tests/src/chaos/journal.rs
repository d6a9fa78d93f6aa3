//! The record of events that the cluster keeps itself: the same on every
//! replica, and in itself without contradiction.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::client::{Answer, Api};

/// Events of a page.
const PAGE_MAX: usize = 1000;

/// Reads all events after a cursor; tells where they end.
pub async fn read(api: &Api, after: Option<&str>) -> anyhow::Result<(Vec<Value>, Option<String>)> {
    let mut events = Vec::new();
    let mut cursor = after.map(str::to_owned);
    loop {
        let after = cursor.as_ref().map_or_else(String::new, |cursor| format!("&after={cursor}"));
        let page = match api.get(&format!("v1/events?limit={PAGE_MAX}{after}")).await {
            Answer::Done(page) => page,
            other => bail!("no events: {other:?}"),
        };
        events.extend(page["Events"].as_array().context("no list of events")?.iter().cloned());
        cursor = Some(page["Next"].as_str().context("no cursor")?.to_owned());
        if page["More"] != true {
            return Ok((events, cursor));
        }
    }
}

/// Where replicas differ: the one may only have read further than the other.
pub fn difference(one: &[Value], other: &[Value]) -> Option<String> {
    let pairs = one.iter().zip(other);
    pairs
        .into_iter()
        .find(|(one, other)| one != other)
        .map(|(one, other)| format!("{one} on one, {other} on the other"))
}

/// A session as its events tell it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Told {
    /// The server that was told to make it, until that failed.
    server: Option<String>,
    has_ended: bool,
}

/// Reads events in their order and holds them to what may follow on what.
#[derive(Debug, Clone, Default)]
pub struct Auditor {
    last: (u64, u64),
    time: String,
    epoch: u64,
    sessions: BTreeMap<String, Told>,
    closed: BTreeSet<String>,
    count: u64,
}

impl Auditor {
    /// How many events were read.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The next event; an error when it may not follow.
    pub fn read(&mut self, event: &Value) -> anyhow::Result<()> {
        self.count += 1;
        self.follow(event).with_context(|| format!("event {event}"))
    }

    fn follow(&mut self, event: &Value) -> anyhow::Result<()> {
        let number = |field: &str| event[field].as_u64().with_context(|| format!("no {field}"));
        let place = (number("Index")?, number("Number")?);
        ensure!(place > self.last || self.count == 1, "it comes after {:?}", self.last);
        self.last = place;
        let time = event["Time"].as_str().context("no Time")?;
        ensure!(*time >= *self.time, "time runs back: it was {}", self.time);
        time.clone_into(&mut self.time);
        let server = event["ServerId"].as_str();
        let kind = event["Kind"].as_str().context("no Kind")?;
        match kind {
            "ServerClosed" | "ServerDraining" => drop(self.closed.insert(server.context("no server")?.to_owned())),
            "ServerOpened" => drop(self.closed.remove(server.context("no server")?)),
            "ServerConnected" => {
                let epoch = event["Details"]["Epoch"].as_u64().context("no epoch")?;
                ensure!(epoch > self.epoch, "epoch {} was there before", self.epoch);
                self.epoch = epoch;
            }
            _ if kind.starts_with("Session") => {
                let id = event["SessionId"].as_str().context("no session")?;
                self.session(kind, id, server)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn session(&mut self, kind: &str, id: &str, server: Option<&str>) -> anyhow::Result<()> {
        if matches!(kind, "SessionCreated" | "SessionAdopted") {
            let before =
                self.sessions.insert(id.to_owned(), Told { server: server.map(str::to_owned), has_ended: false });
            ensure!(kind == "SessionAdopted" || before.is_none(), "it was made before");
            return Ok(());
        }
        let Some(told) = self.sessions.get_mut(id) else { return Ok(()) };
        match kind {
            "SessionPlaced" => {
                let server = server.context("placed nowhere")?;
                ensure!(!told.has_ended, "it has ended");
                ensure!(told.server.is_none(), "it is on {:?} already", told.server);
                ensure!(!self.closed.contains(server), "the server is closed");
                told.server = Some(server.to_owned());
            }
            // The session ends, waits or is placed again.
            "SessionAttemptFailed" => told.server = None,
            "SessionReady" => {
                ensure!(!told.has_ended, "it has ended");
                ensure!(told.server.as_deref() == server, "it was placed on {:?}", told.server);
            }
            "SessionDeleted" => {
                ensure!(!told.has_ended, "it has ended before");
                told.has_ended = true;
            }
            "SessionDeletionFailed" => told.has_ended = false,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn event(index: u64, kind: &str, session: &str, server: &str) -> Value {
        json!({
            "Index": index, "Number": 0, "Time": format!("2026-01-01T00:00:{index:02}Z"), "Kind": kind,
            "SessionId": session, "ServerId": server, "Details": { "Epoch": index }
        })
    }

    fn audit(events: &[Value]) -> anyhow::Result<()> {
        let mut auditor = Auditor::default();
        events.iter().try_for_each(|event| auditor.read(event))
    }

    #[test]
    fn a_life_in_order_is_accepted() {
        let created = json!({ "Index": 1, "Number": 0, "Time": "2026-01-01T00:00:01Z", "Kind": "SessionCreated", "SessionId": "a" });
        let life = [
            created,
            event(2, "SessionPlaced", "a", "s"),
            event(3, "SessionAttemptFailed", "a", "s"),
            event(4, "SessionPlaced", "a", "t"),
            event(5, "SessionReady", "a", "t"),
            event(6, "SessionDeleted", "a", "t"),
        ];
        audit(&life).unwrap();
        let with = |other: Value| audit(&[&life[..], &[other]].concat());
        assert!(with(event(7, "SessionDeleted", "a", "t")).is_err(), "it ends once");
        assert!(with(event(7, "SessionPlaced", "a", "s")).is_err(), "and does not come back");
        assert!(with(event(6, "SessionReady", "b", "s")).is_err(), "out of order");
        assert!(audit(&[&life[..2], &[event(3, "SessionPlaced", "a", "t")]].concat()).is_err(), "on two servers");
        assert!(audit(&[&life[..2], &[event(3, "SessionReady", "a", "t")]].concat()).is_err(), "elsewhere");
    }

    #[test]
    fn nothing_is_placed_on_a_closed_server() {
        let created = json!({ "Index": 2, "Number": 0, "Time": "2026-01-01T00:00:02Z", "Kind": "SessionCreated", "SessionId": "a" });
        let events = |opened: &str| {
            [
                event(1, "ServerClosed", "", "s"),
                created.clone(),
                event(3, opened, "", "s"),
                event(4, "SessionPlaced", "a", "s"),
            ]
        };
        audit(&events("ServerOpened")).unwrap();
        assert!(audit(&events("ServerAvoided")).is_err());
    }

    #[test]
    fn epochs_and_time_only_grow() {
        let connected = |index, epoch: u64, second: u64| {
            json!({ "Index": index, "Number": 0, "Time": format!("2026-01-01T00:00:0{second}Z"), "Kind": "ServerConnected",
                "ServerId": "s", "Details": { "Epoch": epoch } })
        };
        audit(&[connected(1, 1, 1), connected(2, 2, 1)]).unwrap();
        assert!(audit(&[connected(1, 2, 1), connected(2, 2, 1)]).is_err());
        assert!(audit(&[connected(1, 1, 2), connected(2, 2, 1)]).is_err());
        assert_eq!(difference(&[json!(1), json!(2)], &[json!(1)]), None);
        assert!(difference(&[json!(1), json!(2)], &[json!(1), json!(3)]).is_some());
    }
}
