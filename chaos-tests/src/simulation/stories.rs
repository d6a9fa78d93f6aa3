//! Whether what clients saw of sessions and of servers can be told one call after
//! the other, by the same checker and models that judge real processes.
//!
//! It is given what [`registers`](super::registers) do not cover. Those are exact
//! for permissions, which get no text twice: there each answer says which write it
//! saw, and then zones decide in full. Lives and doors are not like that: a door
//! is open or closed time and again, so that an answer fits to many calls, and a
//! single call in doubt makes both right for `registers` from then on; and what a
//! session does by itself, becoming READY or ending, is no write of anybody. A
//! search tells which of all these calls can have been which.
//!
//! Histories are short, since each session and each server has its own, and the
//! search never goes on twice from the same place. Should one take too many steps
//! all the same, it is counted and says nothing.

use std::collections::BTreeSet;

use berth::domain::session::SessionState;
use berth::domain::{Fleet, Session, SessionId};

use crate::client::Seen;
use crate::history::{Event, Moment, Outcome, Span};
use crate::linearizability::{self, Call, Flaw, Sequential, server, session};

/// Later than everything.
const EVER: Moment = Moment(u64::MAX);

/// What was found.
#[derive(Debug, Default)]
pub struct Told {
    /// Histories that have no order, and why.
    pub flaws: Vec<String>,
    /// Histories that were looked at.
    pub stories: u64,
    /// Those of them that were given up.
    pub too_hard: u64,
}

/// Sessions of which more is known than what clients were told.
#[derive(Debug, Default)]
pub struct Known {
    /// Anything may be with these: the word of a host stands for them.
    pub lawless: BTreeSet<SessionId>,
    /// The broker ended these by itself, or may have.
    pub ended: BTreeSet<SessionId>,
}

/// The state of a session in the words of the API.
pub fn word(fleet: &Fleet, session: &Session) -> &'static str {
    match fleet.state_of(session) {
        SessionState::Creating => "CREATING",
        SessionState::Ready => "READY",
        SessionState::Deleting => "DELETING",
        SessionState::Deleted => "DELETED",
        SessionState::Unknown => "UNKNOWN",
    }
}

/// Looks for a story of each session and of each server; `fleet` is what is there
/// at last.
pub fn tell(events: &[Event], fleet: &Fleet, known: &Known) -> Told {
    let is_lawless = |id: &str| known.lawless.iter().any(|lawless| lawless.as_str() == id);
    let at_last: Vec<Seen> = fleet
        .sessions_from(None)
        .map(|session| Seen {
            id: session.id.as_str().to_owned(),
            name: session.spec.name.clone(),
            state: word(fleet, session).to_owned(),
            ..Seen::default()
        })
        .filter(|seen| !is_lawless(&seen.id))
        .collect();
    let judged = events.iter().filter(|event| match event {
        Event::Create { outcome: Outcome::Acknowledged(id), .. } => !is_lawless(id),
        // Its id is its name, if it has none yet.
        Event::Create { name, .. } => !is_lawless(name),
        Event::Delete { session, .. } | Event::Look { session, .. } => !is_lawless(session),
        _ => true,
    });
    let judged: Vec<Event> = judged.cloned().collect();
    let mut lives = session::calls(&judged, &at_last);
    for (name, calls) in &mut lives {
        let found = at_last.iter().find(|seen| seen.name == *name);
        let may_end = found.is_some_and(|seen| known.ended.iter().any(|id| id.as_str() == seen.id));
        if let Some(made) = calls.iter().find(|call| call.input == session::Input::Create).filter(|_| may_end) {
            calls.push(Call::unknown(made.sent, session::Input::EndUnasked));
        }
        let last = Span { sent: EVER, answered: EVER };
        let output = session::Output::Seen(found.map(|seen| seen.state.clone()));
        calls.push(Call::answered(last, session::Input::Look, output));
    }
    let mut told = Told::default();
    for (name, calls) in &lives {
        told.add(&format!("session {name}"), &session::Session, calls);
    }
    for (id, calls) in &server::calls(&judged) {
        told.add(&format!("the door of {id}"), &server::Server, calls);
    }
    told
}

impl Told {
    fn add<M: Sequential>(&mut self, what: &str, model: &M, calls: &[Call<M::Input, M::Output>]) {
        self.stories += 1;
        match linearizability::check(model, calls) {
            Ok(()) => {}
            Err(Flaw::TooHard { .. }) => self.too_hard += 1,
            Err(flaw) => self.flaws.push(format!("{what}: {flaw}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(sent: u64, answered: u64) -> Span {
        Span { sent: Moment(sent), answered: Moment(answered) }
    }

    fn made(at: u64) -> Event {
        let (name, owner) = ("s-1".to_owned(), "ann".to_owned());
        Event::Create { span: span(at, at + 1), name, owner, outcome: Outcome::Unknown("no answer".to_owned()) }
    }

    fn door(at: u64, wish: server::Input, outcome: Outcome<()>) -> Event {
        Event::Door { span: span(at, at + 1), server: "server-1".to_owned(), wish, outcome }
    }

    fn door_seen(at: u64, closed: bool) -> Event {
        Event::DoorSeen { span: span(at, at + 1), server: "server-1".to_owned(), closed }
    }

    fn flaws(events: &[Event]) -> usize {
        tell(events, &Fleet::default(), &Known::default()).flaws.len()
    }

    #[test]
    fn a_door_in_doubt_may_have_closed_once_and_no_more() {
        let doubtful = |at| door(at, server::Input::Close, Outcome::Unknown("no answer".to_owned()));
        let opened = door(9, server::Input::Open, Outcome::Acknowledged(()));
        let story = [doubtful(1), door_seen(3, false), door_seen(5, true), opened, door_seen(20, false)];
        assert_eq!(flaws(&story), 0);
        // It closed before somebody opened it, and cannot close again.
        let lie = [&story[..], &[door_seen(30, true)]].concat();
        assert_eq!(flaws(&lie), 1);
    }

    #[test]
    fn what_was_never_seen_to_be_made_may_not_have_been() {
        assert_eq!(flaws(&[made(1)]), 0);
    }

    #[test]
    fn a_session_that_was_acknowledged_and_is_not_there_has_no_story() {
        let Event::Create { span, name, owner, .. } = made(1) else { unreachable!() };
        let acknowledged = Event::Create { span, name, owner, outcome: Outcome::Acknowledged("s-1".to_owned()) };
        assert_eq!(flaws(std::slice::from_ref(&acknowledged)), 1);
        let lawless =
            Known { lawless: BTreeSet::from([SessionId::new("s-1").expect("a short text")]), ..Known::default() };
        assert_eq!(tell(&[acknowledged], &Fleet::default(), &lawless).flaws, [""; 0]);
    }
}
