//! Compares what is there, once everything has come to rest, with what the
//! history allows.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::Seen;
use crate::desktops::Desktops;
use crate::history::{Event, Moment, Outcome, Span};
use crate::linearizability::{self, Call, Flaw, Sequential, queue, server, session};
use crate::model::{Create, Model};

/// Later than everything.
const EVER: Moment = Moment(u64::MAX);

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// All sessions, in the order of the pages.
    pub sessions: Vec<Seen>,
    /// What really exists, for each server.
    pub desktops: Vec<Desktops>,
}

/// What must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An acknowledged session is not there.
    #[error("session {id} ({name}) was acknowledged and is lost")]
    Lost {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// One request, several sessions.
    #[error("the one request for {name} made several sessions: {ids:?}")]
    Doubled {
        /// The request's name.
        name: String,
        /// The sessions.
        ids: Vec<String>,
    },
    /// A session that nobody asked for.
    #[error("nobody asked for session {id} ({name})")]
    Stranger {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// A session whose request was refused.
    #[error("session {id} ({name}) is there although it was refused: {refusal}")]
    MadeThoughRefused {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// The broker's words.
        refusal: String,
    },
    /// A session is another's.
    #[error("session {id} was asked for by {asked} and belongs to {found}")]
    OwnerChanged {
        /// Its id.
        id: String,
        /// Who it was asked for.
        asked: String,
        /// Whose it is.
        found: String,
    },
    /// An acknowledged delete had no effect, or its effect was undone.
    #[error("the end of session {id} was acknowledged, but it is {state}")]
    DeleteUndone {
        /// Its id.
        id: String,
        /// Its state.
        state: String,
    },
    /// A session ended without cause.
    #[error("nothing ended session {id}, but it is {state}: {reason:?}")]
    EndedByNobody {
        /// Its id.
        id: String,
        /// Its state.
        state: String,
        /// The broker's words.
        reason: Option<String>,
    },
    /// The end of a session that was there was refused.
    #[error("session {id} is there, but its end was refused: {refusal}")]
    DeleteRefused {
        /// Its id.
        id: String,
        /// The broker's words.
        refusal: String,
    },
    /// Pages that overlap or are out of order.
    #[error("the pages list session {id} twice or out of order")]
    PagesOverlap {
        /// Its id.
        id: String,
    },
    /// A state that is to pass.
    #[error("session {id} stays {state}")]
    Unsettled {
        /// Its id.
        id: String,
        /// Its state.
        state: String,
    },
    /// A READY session without a desktop.
    #[error("session {id} is READY without a desktop on server {server:?}")]
    DesktopMissing {
        /// The session's id.
        id: String,
        /// Its server.
        server: Option<String>,
    },
    /// A desktop without a READY session.
    #[error("server {server} has a desktop for session {id}, which is not READY there")]
    DesktopLeft {
        /// The session's id.
        id: String,
        /// The server.
        server: String,
    },
    /// Two desktops for one session.
    #[error("session {id} got two desktops")]
    DesktopTwice {
        /// The session's id.
        id: String,
    },
    /// What clients saw cannot have happened in any order.
    #[error("{what}: {flaw}")]
    NoStory {
        /// Of what.
        what: String,
        /// Why not.
        flaw: Flaw,
    },
    /// More sessions than a server allows.
    #[error("server {server} has {count} sessions, but allows {max}")]
    OverLimit {
        /// The server.
        server: String,
        /// Its sessions.
        count: usize,
        /// Its limit.
        max: usize,
    },
}

impl Violation {
    /// Whether it may be over by itself a little later.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Unsettled { .. } | Self::DesktopMissing { .. } | Self::DesktopLeft { .. })
    }
}

/// Everything in which `observed` is not what the history allows.
pub fn judge(events: &[Event], observed: &Observed, sessions_per_server_max: usize) -> Vec<Violation> {
    let judge = Judge::new(events, observed);
    let mut violations = judge.pages();
    violations.extend(judge.requests());
    violations.extend(judge.sessions());
    violations.extend(judge.refused_deletes());
    violations.extend(judge.looks(events));
    violations.extend(judge.desktops());
    violations.extend(judge.limits(sessions_per_server_max));
    violations
}

/// Every session, server and queue of which the history, and what is there at its
/// end, cannot be told one call after the other.
pub fn stories(events: &[Event], observed: &Observed) -> Vec<Violation> {
    let mut sessions = session::calls(events, &observed.sessions);
    let states: BTreeMap<&str, &str> =
        observed.sessions.iter().map(|seen| (seen.name.as_str(), seen.state.as_str())).collect();
    let last = Span { sent: EVER, answered: EVER };
    for (name, calls) in &mut sessions {
        let found = states.get(name.as_str()).map(|state| (*state).to_owned());
        calls.push(Call::answered(last, session::Input::Look, session::Output::Seen(found)));
    }
    let mut violations = untold("session", &session::Session, &sessions);
    violations.extend(untold("server", &server::Server, &server::calls(events)));
    violations.extend(untold("queue of", &queue::Queue, &queue::calls(events)));
    violations
}

/// What was asked and answered, by what it is about.
type Calls<M> = BTreeMap<String, Vec<Call<<M as Sequential>::Input, <M as Sequential>::Output>>>;

fn untold<M: Sequential>(kind: &str, model: &M, calls: &Calls<M>) -> Vec<Violation> {
    let flaws = calls.iter().filter_map(|(key, calls)| Some((key, linearizability::check(model, calls).err()?)));
    flaws.map(|(key, flaw)| Violation::NoStory { what: format!("{kind} {key}"), flaw }).collect()
}

struct Judge<'a> {
    model: Model,
    observed: &'a Observed,
    by_id: BTreeMap<&'a str, &'a Seen>,
    /// Names of acknowledged requests by session.
    names: BTreeMap<String, String>,
}

impl<'a> Judge<'a> {
    fn new(events: &[Event], observed: &'a Observed) -> Self {
        let model = Model::of(events);
        let names = model.creates.iter().filter_map(|(name, create)| match &create.outcome {
            Outcome::Acknowledged(id) => Some((id.clone(), name.clone())),
            _ => None,
        });
        let names = names.collect();
        let by_id = observed.sessions.iter().map(|session| (session.id.as_str(), session)).collect();
        Self { model, observed, by_id, names }
    }

    fn pages(&self) -> Vec<Violation> {
        let neighbours = self.observed.sessions.iter().zip(self.observed.sessions.iter().skip(1));
        let disordered = neighbours.filter(|(left, right)| left.id >= right.id);
        disordered.map(|(_, right)| Violation::PagesOverlap { id: right.id.clone() }).collect()
    }

    /// Each request made as many sessions as its outcome says.
    fn requests(&self) -> Vec<Violation> {
        let mut made: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for session in &self.observed.sessions {
            made.entry(&session.name).or_default().insert(&session.id);
        }
        let mut violations = Vec::new();
        for (name, create) in &self.model.creates {
            let ids = made.remove(name.as_str()).unwrap_or_default();
            if ids.len() > 1 {
                let ids = ids.iter().map(|id| (*id).to_owned()).collect();
                violations.push(Violation::Doubled { name: name.clone(), ids });
            } else {
                let id = ids.first().map(|id| (*id).to_owned());
                violations.extend(judge_request(name, create, id));
            }
        }
        for (name, ids) in made {
            let strangers = ids.into_iter().map(|id| Violation::Stranger { id: id.to_owned(), name: name.to_owned() });
            violations.extend(strangers);
        }
        violations
    }

    /// Each session is in a state that it may be in.
    fn sessions(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        for session in &self.observed.sessions {
            let Some(create) = self.model.creates.get(&session.name) else { continue };
            let id = session.id.clone();
            if session.owner != create.owner {
                let (asked, found) = (create.owner.clone(), session.owner.clone());
                violations.push(Violation::OwnerChanged { id: id.clone(), asked, found });
            }
            violations.extend(self.state(session, create, EVER, EVER));
            if matches!(session.state.as_str(), "CREATING" | "DELETING" | "UNKNOWN") {
                violations.push(Violation::Unsettled { id, state: session.state.clone() });
            }
        }
        violations
    }

    /// A session's state, seen by a look that was sent at `sent` and came back
    /// at `answered`, fits to the deletes and kills of that time.
    fn state(&self, session: &Seen, create: &Create, sent: Moment, answered: Moment) -> Option<Violation> {
        let (id, state) = (session.id.clone(), session.state.clone());
        let ends = matches!(state.as_str(), "DELETING" | "DELETED");
        let deletes = self.model.deletes.get(&id);
        let acknowledged = deletes.and_then(|deletes| deletes.acknowledged).is_some_and(|moment| moment < sent);
        if acknowledged && !ends {
            return Some(Violation::DeleteUndone { id, state });
        }
        // A look does not say where; where the session is at last will do, since it never moves.
        let server = self.by_id.get(id.as_str()).and_then(|session| session.server.as_deref());
        if ends && !self.model.may_have_ended(&id, server, create, answered) {
            return Some(Violation::EndedByNobody { id, state, reason: session.reason.clone() });
        }
        None
    }

    fn refused_deletes(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (id, deletes) in &self.model.deletes {
            let Some(create) = self.names.get(id).and_then(|name| self.model.creates.get(name)) else { continue };
            let server = self.by_id.get(id.as_str()).and_then(|session| session.server.as_deref());
            let unfounded = deletes.refused.iter().filter(|(span, _)| {
                create.span.answered < span.sent && !self.model.may_have_ended(id, server, create, span.answered)
            });
            violations.extend(
                unfounded.map(|(_, refusal)| Violation::DeleteRefused { id: id.clone(), refusal: refusal.clone() }),
            );
        }
        violations
    }

    fn looks(&self, events: &[Event]) -> Vec<Violation> {
        let looks = events.iter().filter_map(|event| match event {
            Event::Look { span, session, found } => Some((*span, session, found)),
            _ => None,
        });
        looks.filter_map(|(span, session, found)| self.look(span, session, found.as_deref())).collect()
    }

    fn look(&self, span: Span, id: &str, found: Option<&str>) -> Option<Violation> {
        let name = self.names.get(id)?;
        let create = self.model.creates.get(name)?;
        match found {
            None if create.span.answered < span.sent => Some(Violation::Lost { id: id.to_owned(), name: name.clone() }),
            None => None,
            Some(state) => {
                let seen = Seen { id: id.to_owned(), state: state.to_owned(), ..Seen::default() };
                self.state(&seen, create, span.sent, span.answered)
            }
        }
    }

    /// READY sessions and desktops are the same.
    fn desktops(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        let mut places: BTreeMap<&str, &str> = BTreeMap::new();
        for desktops in &self.observed.desktops {
            let twice = |id: &String| Violation::DesktopTwice { id: id.clone() };
            violations.extend(desktops.made_again.iter().map(twice));
            for id in &desktops.live {
                if places.insert(id, &desktops.server).is_some() {
                    violations.push(twice(id));
                }
                let session = self.by_id.get(id.as_str());
                let belongs = session.is_some_and(|session| {
                    session.state == "READY" && session.server.as_ref() == Some(&desktops.server)
                });
                if !belongs {
                    violations.push(Violation::DesktopLeft { id: id.clone(), server: desktops.server.clone() });
                }
            }
        }
        let ready = self.observed.sessions.iter().filter(|session| session.state == "READY");
        let bare = ready.filter(|session| places.get(session.id.as_str()).copied() != session.server.as_deref());
        violations.extend(
            bare.map(|session| Violation::DesktopMissing { id: session.id.clone(), server: session.server.clone() }),
        );
        violations
    }

    fn limits(&self, max: usize) -> Vec<Violation> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for session in self.observed.sessions.iter().filter(|session| session.state == "READY") {
            *counts.entry(session.server.as_deref().unwrap_or_default()).or_default() += 1;
        }
        let over = counts.into_iter().filter(|(_, count)| *count > max);
        over.map(|(server, count)| Violation::OverLimit { server: server.to_owned(), count, max }).collect()
    }
}

/// What a request's outcome says of the one session that it made, or of none.
fn judge_request(name: &str, create: &Create, made: Option<String>) -> Vec<Violation> {
    let name = name.to_owned();
    match (&create.outcome, made) {
        (Outcome::Acknowledged(id), None) => vec![Violation::Lost { id: id.clone(), name }],
        (Outcome::Acknowledged(id), Some(other)) if *id != other => {
            vec![Violation::Lost { id: id.clone(), name: name.clone() }, Violation::Stranger { id: other, name }]
        }
        (Outcome::Refused(refusal) | Outcome::NotTaken(refusal), Some(id)) => {
            vec![Violation::MadeThoughRefused { id, name, refusal: refusal.clone() }]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
