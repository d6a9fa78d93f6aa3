//! Who waits for a server, and who of them a server could take.
//!
//! Requests that ask for the same form a group, in the order of arrival. A
//! group whose expression demands a fact is found by the facts of a server, so
//! that a server looks only at the groups that could want it.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::domain::ids::SessionId;
use crate::domain::placement::{FactKey, required_facts};
use crate::domain::requirements::Expression;
use crate::domain::session::{Session, SessionKind};

/// What the requests of a group have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) kind: SessionKind,
    pub(super) requirements: Option<Arc<Expression>>,
}

impl Group {
    fn of(session: &Session) -> Self {
        Self { kind: session.spec.kind, requirements: session.spec.requirements.clone() }
    }

    /// The fact by which it is found; `FactKey::LEAST` when it demands none.
    fn fact(&self) -> FactKey {
        self.requirements.as_deref().and_then(|e| required_facts(e).next()).unwrap_or(FactKey::LEAST)
    }

    fn reads_load(&self) -> bool {
        self.requirements.as_ref().is_some_and(|expression| expression.reads_load())
    }
}

/// All who wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    by_arrival: OrdMap<u64, SessionId>,
    groups: OrdMap<Group, OrdMap<u64, SessionId>>,
    by_fact: OrdMap<FactKey, OrdSet<Group>>,
    /// Groups whose expression reads the load of servers.
    load_readers: usize,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.by_arrival.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_arrival.len()
    }

    /// All of them in the order of arrival.
    pub(super) fn iter(&self) -> impl Iterator<Item = &SessionId> {
        self.by_arrival.values()
    }

    /// Whether somebody waits for the load of a server to change.
    pub(super) fn for_load(&self) -> bool {
        self.load_readers > 0
    }

    /// The groups that a server with these facts could be wanted by.
    pub(super) fn groups_for<'a>(&'a self, facts: &'a [FactKey]) -> impl Iterator<Item = &'a Group> {
        let demanding = facts.iter().filter(|_| self.by_fact.len() > 1 || !self.by_fact.contains_key(&FactKey::LEAST));
        let keys = std::iter::once(&FactKey::LEAST).chain(demanding);
        keys.filter_map(|fact| self.by_fact.get(fact)).flatten()
    }

    /// Those of a group in the order of arrival.
    pub(super) fn of_group(&self, group: &Group) -> impl Iterator<Item = (u64, &SessionId)> {
        self.groups.get(group).into_iter().flatten().map(|(arrival, id)| (*arrival, id))
    }

    pub(super) fn insert(&mut self, session: &Session) {
        self.by_arrival.insert(session.arrival, session.id.clone());
        let group = Group::of(session);
        if let Some(members) = self.groups.get_mut(&group) {
            members.insert(session.arrival, session.id.clone());
            return;
        }
        self.load_readers += usize::from(group.reads_load());
        self.by_fact.entry(group.fact()).or_default().insert(group.clone());
        self.groups.insert(group, OrdMap::unit(session.arrival, session.id.clone()));
    }

    pub(super) fn remove(&mut self, session: &Session) {
        self.by_arrival.remove(&session.arrival);
        let group = Group::of(session);
        let Some(members) = self.groups.get_mut(&group) else { return };
        members.remove(&session.arrival);
        if !members.is_empty() {
            return;
        }
        self.groups.remove(&group);
        self.load_readers -= usize::from(group.reads_load());
        let fact = group.fact();
        if let Some(groups) = self.by_fact.get_mut(&fact) {
            groups.remove(&group);
            if groups.is_empty() {
                self.by_fact.remove(&fact);
            }
        }
    }
}
