//! Clients that create, delete and look at sessions, one request after the
//! other, and take down everything. They go on while the broker is dead.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Answer, Api};
use crate::history::{Event, History, Outcome};
use crate::portal::Portal;
use crate::random::Random;

/// Most items of one request.
const ITEMS_MAX: u64 = 8;
/// Most sessions that a client keeps; with more it deletes.
const OWN_MAX: usize = 25;
/// A client pauses for less than this between two requests.
const PAUSE_MS: u64 = 12;
/// How long a client waits for a broker that is not there.
const ABSENCE_PAUSE: Duration = Duration::from_millis(10);

/// Through what a client calls.
#[derive(Debug)]
pub enum Caller {
    /// One broker, and no second attempt.
    One(Api),
    /// Several replicas.
    Any(Portal),
}

impl Caller {
    /// POSTs a body to an operation.
    pub async fn call(&mut self, operation: &str, body: &Value) -> Answer {
        match self {
            Self::One(api) => api.call(operation, body).await,
            Self::Any(portal) => portal.call(operation, body).await,
        }
    }

    /// GETs a path.
    pub async fn get(&mut self, path: &str) -> Answer {
        match self {
            Self::One(api) => api.get(path).await,
            Self::Any(portal) => portal.get(path).await,
        }
    }
}

impl From<Api> for Caller {
    fn from(api: Api) -> Self {
        Self::One(api)
    }
}

impl From<Portal> for Caller {
    fn from(portal: Portal) -> Self {
        Self::Any(portal)
    }
}

/// Somebody who sends one request after the other.
pub trait Actor: Send + Sized + 'static {
    /// Sends one; tells whether anybody was there to take it.
    fn act(&mut self) -> impl Future<Output = anyhow::Result<bool>> + Send;

    /// A little time to think.
    fn pause(&mut self) -> Duration;
}

/// A client and what it remembers.
#[derive(Debug)]
pub struct Client {
    api: Caller,
    name: String,
    random: Random,
    history: Arc<History>,
    pause_ms: u64,
    /// Sessions asked for so far.
    asked: u64,
    /// Ids of its sessions that it has not deleted, or not for certain.
    own: Vec<String>,
    /// Ids of sessions that it has deleted.
    deleted: Vec<String>,
}

impl Actor for Client {
    async fn act(&mut self) -> anyhow::Result<bool> {
        match self.random.below(10) {
            0..=4 if self.own.len() < OWN_MAX => self.create().await,
            0..=8 if !self.own.is_empty() => self.delete().await,
            _ => self.look().await,
        }
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.below(self.pause_ms))
    }
}

impl Client {
    /// A client with a name that no other has.
    pub fn new(api: impl Into<Caller>, name: String, random: Random, history: Arc<History>) -> Self {
        let (own, deleted) = (Vec::new(), Vec::new());
        Self { api: api.into(), name, random, history, pause_ms: PAUSE_MS, asked: 0, own, deleted }
    }

    /// Has it pause for less than this between two requests.
    #[must_use]
    pub const fn pausing(mut self, pause_ms: u64) -> Self {
        self.pause_ms = pause_ms;
        self
    }

    /// One item in half of the requests, several in the others.
    fn count(&mut self, max: usize) -> usize {
        let wanted = if self.random.below(2) == 0 { 1 } else { 1 + self.random.below(ITEMS_MAX) };
        usize::try_from(wanted).unwrap_or(usize::MAX).min(max)
    }

    async fn create(&mut self) -> anyhow::Result<bool> {
        let owner = self.name.clone();
        let items: Vec<Value> = (0..self.count(usize::MAX))
            .map(|_| {
                self.asked += 1;
                let name = format!("{}-{}", self.name, self.asked);
                json!({ "Name": name, "Owner": owner, "Type": "VIRTUAL", "EnqueueRequest": self.random.below(2) == 0 })
            })
            .collect();
        let sent = self.history.now();
        let answer = self.api.call("createSessions", &json!(items)).await;
        let span = self.history.since(sent);
        let verdict = Verdict::of(&answer)?;
        for item in &items {
            let name = text(&item["Name"])?;
            let outcome = match &verdict {
                Verdict::Each(lists) => match lists
                    .find(|entry| entry["Name"] == name, |entry| entry["CreateSessionRequestData"]["Name"] == name)?
                {
                    Ok(entry) => Outcome::Acknowledged(text(&entry["Id"])?),
                    Err(reason) => Outcome::Refused(reason),
                },
                Verdict::All(outcome) => outcome.clone(),
            };
            if let Outcome::Acknowledged(id) = &outcome {
                self.own.push(id.clone());
            }
            self.history.add([Event::Create { span, name, owner: owner.clone(), outcome }]);
        }
        Ok(answer != Answer::NotSent)
    }

    async fn delete(&mut self) -> anyhow::Result<bool> {
        let count = self.count(self.own.len());
        let chosen: Vec<String> = (0..count).map(|_| self.take_own()).collect();
        let items: Vec<Value> =
            chosen.iter().map(|id| json!({ "SessionId": id, "Owner": self.name, "Force": false })).collect();
        let sent = self.history.now();
        let answer = self.api.call("deleteSessions", &json!(items)).await;
        let span = self.history.since(sent);
        let verdict = Verdict::of(&answer)?;
        for session in chosen {
            let outcome = match &verdict {
                Verdict::Each(lists) => {
                    match lists.find(|entry| entry["SessionId"] == session, |entry| entry["SessionId"] == session)? {
                        Ok(_) => Outcome::Acknowledged(()),
                        Err(reason) => Outcome::Refused(reason),
                    }
                }
                Verdict::All(Outcome::NotTaken(reason)) => Outcome::NotTaken(reason.clone()),
                Verdict::All(Outcome::Unknown(reason)) => Outcome::Unknown(reason.clone()),
                Verdict::All(other) => bail!("{other:?} is no outcome of a whole request"),
            };
            match &outcome {
                Outcome::Acknowledged(()) => self.deleted.push(session.clone()),
                // It ended before; the judge says whether that may be.
                Outcome::Refused(_) => {}
                // To be tried again.
                Outcome::NotTaken(_) | Outcome::Unknown(_) => self.own.push(session.clone()),
            }
            self.history.add([Event::Delete { span, session, outcome }]);
        }
        Ok(answer != Answer::NotSent)
    }

    fn take_own(&mut self) -> String {
        let place = self.random.below(self.own.len() as u64);
        self.own.swap_remove(usize::try_from(place).unwrap_or_default())
    }

    /// Looks at a session of its own and at one that it has deleted.
    async fn look(&mut self) -> anyhow::Result<bool> {
        let mut ids = Vec::new();
        for list in [&self.own, &self.deleted] {
            if !list.is_empty() {
                let place = usize::try_from(self.random.below(list.len() as u64)).unwrap_or_default();
                ids.push(list[place].clone());
            }
        }
        if ids.is_empty() {
            return Ok(true);
        }
        let sent = self.history.now();
        let answer = self.api.call("describeSessions", &json!({ "SessionIds": ids })).await;
        let span = self.history.since(sent);
        if let Answer::Done(body) = &answer {
            let sessions = body["Sessions"].as_array().context("no list of sessions")?;
            for session in ids {
                let seen = sessions.iter().find(|seen| seen["Id"] == session);
                let found = seen.map(|seen| text(&seen["State"])).transpose()?;
                self.history.add([Event::Look { span, session, found }]);
            }
        }
        if !matches!(answer, Answer::Stale(_)) {
            Verdict::of(&answer)?;
        }
        Ok(answer != Answer::NotSent)
    }
}

pub(crate) fn text(value: &Value) -> anyhow::Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("{value} is no text"))
}

/// What an answer says of the items.
pub(crate) enum Verdict<'a> {
    /// Each has its own.
    Each(Lists<'a>),
    /// The same for all: not taken, or unknown.
    All(Outcome<String>),
}

/// The two lists of an answer.
pub(crate) struct Lists<'a> {
    successes: &'a [Value],
    failures: &'a [Value],
}

impl<'a> Verdict<'a> {
    /// An error when the answer is one that no client may get here.
    pub(crate) fn of(answer: &'a Answer) -> anyhow::Result<Self> {
        Ok(match answer {
            Answer::Done(body) => {
                let list = |name: &str| body[name].as_array().map(Vec::as_slice).unwrap_or_default();
                Self::Each(Lists { successes: list("SuccessfulList"), failures: list("UnsuccessfulList") })
            }
            // Nobody may be told of a write that it may be out of date.
            Answer::Stale(_) => bail!("a write was answered with a state that may be out of date"),
            Answer::Refused(refusal) if refusal.status == 503 => Self::All(Outcome::NotTaken(format!("{refusal:?}"))),
            // Also a token from before a kill that counts no longer.
            Answer::Refused(refusal) => bail!("a good request was refused: {refusal:?}"),
            Answer::Unknown(reason) => Self::All(Outcome::Unknown(reason.clone())),
            Answer::NotSent => Self::All(Outcome::NotTaken("not sent".to_owned())),
        })
    }
}

impl<'a> Lists<'a> {
    /// The one entry of an item: a success, or the reason of a failure.
    pub(crate) fn find(
        &self,
        is_success: impl Fn(&Value) -> bool,
        is_failure: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Result<&'a Value, String>> {
        let successes: Vec<&Value> = self.successes.iter().filter(|entry| is_success(entry)).collect();
        let failures: Vec<&Value> = self.failures.iter().filter(|entry| is_failure(entry)).collect();
        match (successes[..].first(), failures[..].first()) {
            (Some(success), None) if successes.len() == 1 => Ok(Ok(*success)),
            (None, Some(failure)) if failures.len() == 1 => Ok(Err(text(&failure["FailureReason"])?)),
            _ => bail!("an item has no entry, or several: {successes:?}, {failures:?}"),
        }
    }
}

/// Sends requests until told to stop, and finishes the last one.
async fn work<A: Actor>(mut actor: A, stop: Arc<AtomicBool>) -> anyhow::Result<A> {
    while !stop.load(Ordering::Relaxed) {
        // Not to wait for something: this is the time to think.
        tokio::time::sleep(actor.pause()).await;
        if !actor.act().await? {
            tokio::time::sleep(ABSENCE_PAUSE).await;
        }
    }
    Ok(actor)
}

/// Clients at work.
#[derive(Debug)]
pub struct Traffic<A = Client> {
    stop: Arc<AtomicBool>,
    actors: JoinSet<anyhow::Result<A>>,
}

impl<A: Actor> Traffic<A> {
    /// Has clients work beside each other.
    pub fn start(actors: Vec<A>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let actors = actors.into_iter().map(|actor| work(actor, Arc::clone(&stop))).collect();
        Self { stop, actors }
    }

    /// Has them finish and gives them back.
    pub async fn stop(mut self) -> anyhow::Result<Vec<A>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut actors = Vec::new();
        while let Some(actor) = self.actors.join_next().await {
            actors.push(actor??);
        }
        Ok(actors)
    }

    /// An error when one of them met something that must not be.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.actors.try_join_next() {
            Some(ended) => ended?.and_then(|_| bail!("a client ended by itself")),
            None => Ok(()),
        }
    }
}
