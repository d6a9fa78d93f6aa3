//! What is derived from the state to find things without walking through it.
//!
//! A function of the state alone: kept up by `fold`, built anew from a snapshot,
//! and the same either way, or replicas would let deadlines pass in different
//! orders.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::lookup::Lookup;
use super::waiting::Waiting;
use crate::domain::ids::{Owner, ServerId, SessionId};
use crate::domain::placement::{Changed, Counts, ServerSets};
use crate::domain::server::Server;
use crate::domain::session::{Phase, Session, SessionKind};
use crate::domain::time::Timestamp;

/// Something that waits for its time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Session(SessionId),
    Server(ServerId),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Index {
    lookup: Lookup,
    counts: OrdMap<ServerId, Counts>,
    /// Virtual sessions of an owner on a server; none is not listed.
    owner_counts: OrdMap<(Owner, ServerId), u32>,
    /// Where sessions are that were set aside.
    conflicts: OrdSet<(SessionId, ServerId)>,
    pub(super) waiting: Waiting,
    deadlines: OrdSet<(Timestamp, Due)>,
    server_deadlines: OrdMap<ServerId, Timestamp>,
    pub(super) sets: ServerSets,
    /// Servers that may now take what they could not take before; empty
    /// between commands.
    grown: OrdSet<ServerId>,
    /// Ids that were freed and that a session set aside may take; empty
    /// between commands.
    freed: OrdSet<SessionId>,
}

impl Index {
    pub(super) fn sessions_on<'a>(&'a self, server: &ServerId) -> impl Iterator<Item = &'a SessionId> + use<'a> {
        self.lookup.sessions_on(server).map(|(id, _)| id)
    }

    /// Sessions by what listings ask for.
    pub(super) const fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// Brings what sessions show of a server up to its record; `None` for a
    /// server that is gone.
    pub(super) fn set_server(&mut self, id: &ServerId, server: Option<&Server>) {
        self.lookup.set_server(id, server);
    }

    pub(super) fn counts(&self, server: &ServerId) -> Counts {
        self.counts.get(server).copied().unwrap_or_default()
    }

    /// Virtual sessions of an owner on a server.
    pub(super) fn owner_count(&self, server: &ServerId, owner: &Owner) -> u32 {
        self.owner_counts.get(&(owner.clone(), server.clone())).copied().unwrap_or_default()
    }

    /// Servers on which an owner has virtual sessions.
    pub(super) fn servers_of<'a>(&'a self, owner: &Owner) -> impl Iterator<Item = &'a ServerId> + use<'a> {
        let from = (owner.clone(), ServerId::least());
        let owner = owner.clone();
        self.owner_counts.range(from..).map(|(key, _)| key).take_while(move |(of, _)| *of == owner).map(|(_, id)| id)
    }

    /// Servers where a session of an id was set aside.
    pub(super) fn conflicts_over<'a>(&'a self, id: &SessionId) -> impl Iterator<Item = &'a ServerId> + use<'a> {
        let from = (id.clone(), ServerId::least());
        let id = id.clone();
        self.conflicts.range(from..).take_while(move |(of, _)| *of == id).map(|(_, server)| server)
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.get_min().map(|(at, _)| *at)
    }

    /// The first thing that is due by `now`.
    pub(super) fn first_due(&self, now: Timestamp) -> Option<Due> {
        self.deadlines.get_min().filter(|(at, _)| *at <= now).map(|(_, due)| due.clone())
    }

    /// A server may now take what it could not take before.
    pub(super) fn note_grown(&mut self, server: &ServerId) {
        self.grown.insert(server.clone());
    }

    /// The servers that were noted since the last time.
    pub(super) fn take_grown(&mut self) -> OrdSet<ServerId> {
        std::mem::take(&mut self.grown)
    }

    /// The ids that were freed since the last time, and that somebody wants.
    pub(super) fn take_freed(&mut self) -> OrdSet<SessionId> {
        std::mem::take(&mut self.freed)
    }

    /// Takes a session out as it was and puts it in as it is.
    pub(super) fn replace_session(&mut self, old: Option<&Session>, new: Option<&Arc<Session>>) {
        self.lookup.replace_session(old, new);
        if let Some(session) = old {
            if let Some(server) = session.phase.occupies() {
                self.count(server, session.spec.kind, &session.spec.owner, false);
            }
            if matches!(session.phase, Phase::Placing { .. }) {
                self.waiting.remove(session);
            }
            if let Some(at) = session.phase.deadline() {
                self.deadlines.remove(&(at, Due::Session(session.id.clone())));
            }
            let is_freed = new.is_none_or(|new| new.phase.is_deleted());
            if is_freed && self.conflicts_over(&session.id).next().is_some() {
                self.freed.insert(session.id.clone());
            }
        }
        if let Some(session) = new {
            if let Some(server) = session.phase.occupies() {
                self.count(server, session.spec.kind, &session.spec.owner, true);
            }
            if matches!(session.phase, Phase::Placing { .. }) {
                self.waiting.insert(session);
            }
            if let Some(at) = session.phase.deadline() {
                self.deadlines.insert((at, Due::Session(session.id.clone())));
            }
        }
    }

    /// A session was set aside, or is so no longer.
    pub(super) fn note_conflict(&mut self, id: &SessionId, server: &ServerId, came: bool) {
        let key = (id.clone(), server.clone());
        if came {
            self.conflicts.insert(key);
        } else {
            self.conflicts.remove(&key);
        }
    }

    /// A session came to a server or left it. What is zero is not listed, so
    /// that equal states have equal indexes.
    pub(super) fn count(&mut self, server: &ServerId, kind: SessionKind, owner: &Owner, came: bool) {
        let step = |number: u32| if came { number + 1 } else { number.saturating_sub(1) };
        let mut counts = self.counts(server);
        match kind {
            SessionKind::Console => counts.console = step(counts.console),
            SessionKind::Virtual => {
                counts.virtual_ = step(counts.virtual_);
                let key = (owner.clone(), server.clone());
                match step(self.owner_count(server, owner)) {
                    0 => self.owner_counts.remove(&key),
                    number => self.owner_counts.insert(key, number),
                };
            }
        }
        match counts.total() {
            0 => self.counts.remove(server),
            _ => self.counts.insert(server.clone(), counts),
        };
    }

    /// Sets when a server is looked at again; `None` for a server that is gone.
    pub(super) fn set_server_deadline(&mut self, server: &ServerId, at: Option<Timestamp>) {
        let old = self.server_deadlines.get(server).copied();
        if old == at {
            return;
        }
        if let Some(old) = old {
            self.server_deadlines.remove(server);
            self.deadlines.remove(&(old, Due::Server(server.clone())));
        }
        if let Some(at) = at {
            self.server_deadlines.insert(server.clone(), at);
            self.deadlines.insert((at, Due::Server(server.clone())));
        }
    }

    /// Works out anew where a server stands.
    pub(super) fn restand(&mut self, server: &Server, closed: bool, changed: Changed) {
        let counts = self.counts(&server.id);
        if self.sets.put(server, closed, counts, changed) {
            self.note_grown(&server.id);
        }
    }
}
