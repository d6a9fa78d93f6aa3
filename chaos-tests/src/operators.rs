//! Two who are not after sessions: a doorkeeper, who opens and closes servers,
//! and a waiter, who keeps a queue of requests that no server can serve.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::client::Answer;
use crate::history::{Event, History, Outcome};
use crate::linearizability::server::Input;
use crate::random::Random;
use crate::traffic::{Actor, Caller, Verdict, text};

/// Each pauses for less than this between two requests.
const PAUSE_MS: u64 = 60;
/// Longest that a waiter lets its queue become.
const QUEUE_MAX: usize = 8;
/// A drain that never ends anything while a test lasts.
const DRAIN_SECONDS: u64 = 604_800;
/// No server has this tag.
const NEVER: &str = "tag:served-by = 'nobody'";

/// Opens, closes and drains one server, and looks whether it is so.
#[derive(Debug)]
pub struct Doorkeeper {
    api: Caller,
    server: String,
    random: Random,
    history: Arc<History>,
}

impl Doorkeeper {
    /// Of a server that nobody else opens or closes.
    pub fn new(api: impl Into<Caller>, server: String, random: Random, history: Arc<History>) -> Self {
        Self { api: api.into(), server, random, history }
    }

    /// Leaves the server open.
    pub async fn open(&mut self) -> anyhow::Result<bool> {
        self.wish(Input::Open).await
    }

    async fn wish(&mut self, wish: Input) -> anyhow::Result<bool> {
        let id = &self.server;
        let (operation, body) = match wish {
            Input::Open => ("openServers", json!([{ "ServerId": id }])),
            Input::Close => ("closeServers", json!([{ "ServerId": id, "Force": true }])),
            _ => ("v1/servers:drain", json!([{ "ServerId": id, "WithinSeconds": DRAIN_SECONDS }])),
        };
        let sent = self.history.now();
        let answer = self.api.call(operation, &body).await;
        let span = self.history.since(sent);
        let outcome = match Verdict::of(&answer)? {
            Verdict::Each(lists) => {
                let found = lists.find(|entry| entry["ServerId"] == *id, |_| true)?;
                found.map_or_else(Outcome::Refused, |_| Outcome::Acknowledged(()))
            }
            Verdict::All(Outcome::NotTaken(reason)) => Outcome::NotTaken(reason),
            Verdict::All(other) => Outcome::Unknown(format!("{other:?}")),
        };
        let is_done = matches!(outcome, Outcome::Acknowledged(()));
        self.history.add([Event::Door { span, server: id.clone(), wish, outcome }]);
        Ok(is_done)
    }

    async fn look(&mut self) -> anyhow::Result<bool> {
        let sent = self.history.now();
        let answer = self.api.call("describeServers", &json!({ "ServerIds": [self.server] })).await;
        let span = self.history.since(sent);
        if let Answer::Done(body) = &answer {
            let server = &body["Servers"][0];
            // Other reasons say nothing of the door.
            let closed = match (server["Availability"].as_str(), server["UnavailabilityReason"].as_str()) {
                (Some("AVAILABLE"), _) => Some(false),
                (_, Some("SERVER_CLOSED")) => Some(true),
                _ => None,
            };
            let server = self.server.clone();
            self.history.add(closed.map(|closed| Event::DoorSeen { span, server, closed }));
        }
        Ok(answer != Answer::NotSent)
    }
}

impl Actor for Doorkeeper {
    async fn act(&mut self) -> anyhow::Result<bool> {
        match self.random.below(8) {
            0 | 1 => self.wish(Input::Open).await.map(|_| true),
            2 => self.wish(Input::Close).await.map(|_| true),
            3 => self.wish(Input::Drain).await.map(|_| true),
            _ => self.look().await,
        }
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.below(PAUSE_MS))
    }
}

/// Keeps requests waiting, and looks whether they wait in their order.
#[derive(Debug)]
pub struct Waiter {
    api: Caller,
    name: String,
    random: Random,
    history: Arc<History>,
    asked: u64,
    /// Ids of those that wait, as far as they are known.
    waiting: Vec<String>,
}

impl Waiter {
    /// A waiter with a name that nobody else has.
    pub fn new(api: impl Into<Caller>, name: String, random: Random, history: Arc<History>) -> Self {
        Self { api: api.into(), name, random, history, asked: 0, waiting: Vec::new() }
    }

    async fn join(&mut self) -> anyhow::Result<bool> {
        self.asked += 1;
        let (name, owner) = (format!("{}-{}", self.name, self.asked), self.name.clone());
        let item = json!({
            "Name": name, "Owner": owner, "Type": "VIRTUAL", "EnqueueRequest": true, "Requirements": NEVER
        });
        let sent = self.history.now();
        let answer = self.api.call("createSessions", &json!([item])).await;
        let span = self.history.since(sent);
        let outcome = match Verdict::of(&answer)? {
            Verdict::Each(lists) => match lists.find(|entry| entry["Name"] == name, |_| true)? {
                Ok(entry) => Outcome::Acknowledged(text(&entry["Id"])?),
                Err(reason) => Outcome::Refused(reason),
            },
            Verdict::All(outcome) => outcome,
        };
        if let Outcome::Acknowledged(id) = &outcome {
            self.waiting.push(id.clone());
        }
        self.history.add([Event::Create { span, name, owner, outcome }]);
        Ok(answer != Answer::NotSent)
    }

    async fn leave(&mut self, session: String) -> anyhow::Result<bool> {
        let sent = self.history.now();
        let item = json!({ "SessionId": session, "Owner": self.name });
        let answer = self.api.call("deleteSessions", &json!([item])).await;
        let span = self.history.since(sent);
        let outcome = match Verdict::of(&answer)? {
            Verdict::Each(lists) => {
                let found = lists.find(|entry| entry["SessionId"] == session, |_| true)?;
                found.map_or_else(Outcome::Refused, |_| Outcome::Acknowledged(()))
            }
            Verdict::All(Outcome::NotTaken(reason)) => Outcome::NotTaken(reason),
            Verdict::All(other) => Outcome::Unknown(format!("{other:?}")),
        };
        if matches!(outcome, Outcome::Acknowledged(()) | Outcome::Refused(_)) {
            self.waiting.retain(|waiting| *waiting != session);
        }
        self.history.add([Event::Delete { span, session, outcome }]);
        Ok(answer != Answer::NotSent)
    }

    /// Looks at the queue; none when nobody could tell.
    async fn look(&mut self) -> anyhow::Result<Option<usize>> {
        let sent = self.history.now();
        let answer = self.api.get(&format!("v1/queue?Owner={}", self.name)).await;
        let span = self.history.since(sent);
        let Answer::Done(body) = &answer else { return Ok(None) };
        let requests = body["Requests"].as_array().context("no list of requests")?;
        let pair = |request: &Value| Ok((text(&request["Name"])?, text(&request["SessionId"])?));
        let waiting = requests.iter().map(pair).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(body["NextToken"].is_null(), "a queue of {} has pages", waiting.len());
        self.waiting = waiting.iter().map(|(_, id)| id.clone()).collect();
        let count = waiting.len();
        self.history.add([Event::QueueSeen { span, owner: self.name.clone(), waiting }]);
        Ok(Some(count))
    }

    /// Has all of its requests wait no longer; false when there are some left.
    pub async fn leave_all(&mut self) -> anyhow::Result<bool> {
        let left = self.look().await?;
        for session in std::mem::take(&mut self.waiting) {
            self.leave(session).await?;
        }
        Ok(left == Some(0))
    }
}

impl Actor for Waiter {
    async fn act(&mut self) -> anyhow::Result<bool> {
        match self.random.below(6) {
            0 | 1 if self.waiting.len() < QUEUE_MAX => self.join().await,
            2 if !self.waiting.is_empty() => {
                let place = self.random.below(self.waiting.len() as u64);
                let session = self.waiting[usize::try_from(place)?].clone();
                self.leave(session).await
            }
            _ => self.look().await.map(|seen| seen.is_some()),
        }
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.below(PAUSE_MS))
    }
}
