//! What the broker was told, and what is to be told next.

use std::collections::BTreeMap;

use super::desktops::State;
use crate::domain::SessionId;
use crate::domain::host::{Health, HostFacts, HostLoad};
use crate::domain::report::{EndedSession, Inventory, Report, ReportedSession};

/// What the broker knows once it has all reports of this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    facts: HostFacts,
    load: HostLoad,
    health: Health,
    /// `None` for a session that the broker knows by an answer only: it is to
    /// hear more of it, or that it is gone.
    sessions: BTreeMap<SessionId, Option<ReportedSession>>,
}

impl Told {
    /// A full report, and what the broker knows by it.
    pub(super) fn all(facts: HostFacts, load: HostLoad, state: &State) -> (Report, Self) {
        let report = Report {
            facts: Some(facts.clone()),
            load: Some(load.clone()),
            health: Some(state.health.clone()),
            sessions: Some(Inventory::Full(state.sessions.values().cloned().collect())),
        };
        let sessions = state.sessions.iter().map(|(id, session)| (id.clone(), Some(session.clone()))).collect();
        (report, Self { facts, load, health: state.health.clone(), sessions })
    }

    /// The broker is about to hear by an answer that a session exists. From
    /// then on it must hear of its end, too.
    pub(super) fn made(&mut self, session: &SessionId) {
        self.sessions.entry(session.clone()).or_insert(None);
    }

    /// The broker is to hear again of a session that it was told of.
    pub(super) fn again(&mut self, session: &SessionId) {
        if let Some(told) = self.sessions.get_mut(session) {
            *told = None;
        }
    }

    /// Facts and load that differ.
    pub(super) fn host(&mut self, report: &mut Report, facts: HostFacts, load: HostLoad) {
        if facts != self.facts {
            self.facts = facts.clone();
            report.facts = Some(facts);
        }
        if load != self.load {
            self.load = load.clone();
            report.load = Some(load);
        }
    }

    /// Sessions and health that differ.
    pub(super) fn desktops(&mut self, report: &mut Report, state: &State) {
        if state.health != self.health {
            self.health = state.health.clone();
            report.health = Some(state.health.clone());
        }
        let changed: Vec<ReportedSession> = state
            .sessions
            .iter()
            .filter(|(id, session)| self.sessions.get(*id).and_then(Option::as_ref) != Some(*session))
            .map(|(_, session)| session.clone())
            .collect();
        let gone: Vec<EndedSession> = self
            .sessions
            .keys()
            .filter(|id| !state.sessions.contains_key(id))
            .map(|id| EndedSession { id: id.clone(), reason: state.reason_of_end(id).map(str::to_owned) })
            .collect();
        if changed.is_empty() && gone.is_empty() {
            return;
        }
        for session in &changed {
            self.sessions.insert(session.id.clone(), Some(session.clone()));
        }
        for ended in &gone {
            self.sessions.remove(&ended.id);
        }
        report.sessions = Some(Inventory::Changes { changed, gone });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::{Owner, SessionKind, Timestamp};

    fn session(id: &str) -> ReportedSession {
        ReportedSession {
            id: SessionId::new(id).unwrap(),
            name: String::new(),
            owner: Owner::new("ann").unwrap(),
            kind: SessionKind::Virtual,
            usable: true,
            connections: 0,
            clients_max: None,
            created_at: Timestamp(1),
            last_disconnected_at: None,
            storage_root: None,
            created_by: None,
        }
    }

    #[test]
    fn only_what_changed_is_told_again() {
        let mut state = State::default();
        for id in ["a", "b"] {
            state.sessions.insert(SessionId::new(id).unwrap(), session(id));
        }
        let (full, mut told) = Told::all(HostFacts::default(), HostLoad::default(), &state);
        assert!(matches!(full.sessions, Some(Inventory::Full(ref all)) if all.len() == 2));

        let mut report = Report::default();
        told.host(&mut report, HostFacts::default(), HostLoad::default());
        told.desktops(&mut report, &state);
        assert_eq!(report, Report::default(), "nothing changed");

        let [a, c] = ["a", "c"].map(|id| SessionId::new(id).unwrap());
        state.end(&a, "the user logged out");
        state.sessions.insert(c, session("c"));
        state.health = Health::Unhealthy("no".to_owned());
        told.desktops(&mut report, &state);
        assert_eq!(report.health, Some(state.health.clone()));
        let gone = vec![EndedSession { id: a, reason: Some("the user logged out".to_owned()) }];
        assert_eq!(report.sessions, Some(Inventory::Changes { changed: vec![session("c")], gone }));

        let mut report = Report::default();
        told.desktops(&mut report, &state);
        assert_eq!(report, Report::default());
    }

    #[test]
    fn a_session_is_told_again_when_that_is_asked_for() {
        let mut state = State::default();
        let [a, b] = ["a", "b"].map(|id| SessionId::new(id).unwrap());
        state.sessions.insert(a.clone(), session("a"));
        let (_, mut told) = Told::all(HostFacts::default(), HostLoad::default(), &state);
        told.again(&a);
        told.again(&b);
        let mut report = Report::default();
        told.desktops(&mut report, &state);
        let changed = vec![session("a")];
        assert_eq!(report.sessions, Some(Inventory::Changes { changed, gone: Vec::new() }));
    }

    #[test]
    fn a_session_that_was_only_answered_for_is_told_or_its_end_is() {
        let mut state = State::default();
        let (_, mut told) = Told::all(HostFacts::default(), HostLoad::default(), &state);
        let [a, b] = ["a", "b"].map(|id| SessionId::new(id).unwrap());
        told.made(&a);
        told.made(&b);
        state.sessions.insert(a, session("a"));
        state.end(&b, "at once");
        let mut report = Report::default();
        told.desktops(&mut report, &state);
        let gone = vec![EndedSession { id: b, reason: Some("at once".to_owned()) }];
        assert_eq!(report.sessions, Some(Inventory::Changes { changed: vec![session("a")], gone }));
    }
}
