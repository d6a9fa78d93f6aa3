//! Whether what was acknowledged is there in the end, once, and what was refused
//! is not.

use std::collections::{BTreeMap, BTreeSet};

use berth::domain::{ClientId, Fleet, SessionId};

/// What a client was told of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It was done; the session that it made.
    Done(SessionId),
    /// It was refused, or surely did not happen; the words.
    NotDone(String),
    /// Nothing.
    Nothing,
}

/// What clients were told.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// Requests for sessions by the name that each gave its session.
    pub creates: BTreeMap<String, Told>,
    /// Sessions whose end was acknowledged.
    pub deleted: BTreeSet<SessionId>,
    /// Registrations of API clients: whether they were acknowledged; `None` when
    /// nobody knows.
    pub clients: BTreeMap<ClientId, Option<bool>>,
}

impl Accounts {
    /// Everything in which a state is not what was said. `adopted` are sessions
    /// that hosts have shown: these may be anything. `survivors` could not be ended.
    pub fn errors(&self, fleet: &Fleet, adopted: &BTreeSet<SessionId>, survivors: &BTreeSet<SessionId>) -> Vec<String> {
        let mut named: BTreeMap<&str, Vec<&SessionId>> = BTreeMap::new();
        for session in fleet.sessions_from(None) {
            named.entry(&session.spec.name).or_default().push(&session.id);
        }
        let mut errors = Vec::new();
        for (name, told) in &self.creates {
            let made = named.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
            match told {
                Told::Done(id) if adopted.contains(id) => {}
                Told::Done(id) if made != [id] => {
                    errors.push(format!("session {id} ({name}) was acknowledged, but {made:?} is there"));
                }
                Told::NotDone(why) if !made.is_empty() => {
                    errors.push(format!("{name} was not done ({why}), but {made:?} is there"));
                }
                Told::Nothing if made.len() > 1 => errors.push(format!("{name} was done twice: {made:?}")),
                _ => {}
            }
        }
        for id in self.deleted.iter().filter(|id| !adopted.contains(*id) && !survivors.contains(*id)) {
            let phase = fleet.session(id).map(|session| &session.phase);
            if !phase.is_some_and(berth::domain::Phase::is_deleted) {
                errors.push(format!("the end of session {id} was acknowledged, but it is {phase:?}"));
            }
        }
        for (id, acknowledged) in &self.clients {
            let is_there = fleet.client(id).is_some();
            if acknowledged.is_some_and(|acknowledged| acknowledged != is_there) {
                errors.push(format!("client {id}: acknowledged {acknowledged:?}, there {is_there}"));
            }
        }
        errors
    }
}
