//! What is derived from the state to find things without walking through it.
//!
//! A function of the state alone: kept up by `fold`, built anew from a snapshot,
//! and the same either way, or replicas would let deadlines pass in different
//! orders.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::lookup::Lookup;
use crate::domain::ids::{Owner, ServerId, SessionId};
use crate::domain::placement::{Counts, Rank, Rule};
use crate::domain::server::{Server, Unavailability};
use crate::domain::session::{Phase, Session, SessionKind};
use crate::domain::time::Timestamp;

/// Something that waits for its time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Session(SessionId),
    Server(ServerId),
}

/// The standing of a server: where it is in the orders of preference, or by
/// which rule it takes no session of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    console: Result<Rank, Rule>,
    virtual_: Result<Rank, Rule>,
}

impl Standing {
    /// Why the server takes no session of any kind.
    fn unavailability(&self) -> Option<Unavailability> {
        let (Err(rule), Err(_)) = (&self.virtual_, &self.console) else { return None };
        Some(match rule {
            Rule::Closed => Unavailability::ServerClosed,
            Rule::Unreachable => Unavailability::UnreachableAgent,
            Rule::Unhealthy => Unavailability::UnhealthyDcvServer,
            Rule::InUse => Unavailability::ExistingLoggedInUser,
            _ => Unavailability::ServerFull,
        })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    lookup: Lookup,
    counts: OrdMap<ServerId, Counts>,
    /// Virtual sessions of an owner on a server; none is not listed.
    owner_counts: OrdMap<(ServerId, Owner), u32>,
    waiting: OrdMap<u64, SessionId>,
    deadlines: OrdSet<(Timestamp, Due)>,
    server_deadlines: OrdMap<ServerId, Timestamp>,
    standings: OrdMap<ServerId, Standing>,
    console_ranks: OrdSet<Rank>,
    virtual_ranks: OrdSet<Rank>,
    /// How many servers take no session of a kind, by the rule that says so.
    refusals: OrdMap<(SessionKind, Rule), u32>,
    /// Servers that may now take what they could not take before; empty
    /// between commands.
    grown: OrdSet<ServerId>,
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
        self.owner_counts.get(&(server.clone(), owner.clone())).copied().unwrap_or_default()
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &SessionId> {
        self.waiting.values()
    }

    pub(super) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.get_min().map(|(at, _)| *at)
    }

    /// The first thing that is due by `now`.
    pub(super) fn first_due(&self, now: Timestamp) -> Option<Due> {
        self.deadlines.get_min().filter(|(at, _)| *at <= now).map(|(_, due)| due.clone())
    }

    pub(super) fn servers_by_preference(&self, kind: SessionKind) -> impl Iterator<Item = &ServerId> {
        let ranks = match kind {
            SessionKind::Console => &self.console_ranks,
            SessionKind::Virtual => &self.virtual_ranks,
        };
        ranks.iter().map(|rank| &rank.server)
    }

    pub(super) fn unavailability(&self, server: &ServerId) -> Option<Unavailability> {
        self.standings.get(server).and_then(Standing::unavailability)
    }

    /// Where a server is in the order of preference; `None` when it takes no
    /// session of the kind.
    pub(super) fn rank(&self, server: &ServerId, kind: SessionKind) -> Option<&Rank> {
        let standing = self.standings.get(server)?;
        match kind {
            SessionKind::Console => standing.console.as_ref().ok(),
            SessionKind::Virtual => standing.virtual_.as_ref().ok(),
        }
    }

    /// How many servers take no session of a kind, by the rule that says so.
    pub(super) fn refusals(&self, kind: SessionKind) -> impl Iterator<Item = (Rule, u32)> {
        self.refusals.iter().filter(move |((refused, _), _)| *refused == kind).map(|((_, rule), count)| (*rule, *count))
    }

    /// A server may now take what it could not take before.
    pub(super) fn note_grown(&mut self, server: &ServerId) {
        self.grown.insert(server.clone());
    }

    /// The servers that were noted since the last time.
    pub(super) fn take_grown(&mut self) -> OrdSet<ServerId> {
        std::mem::take(&mut self.grown)
    }

    /// Takes a session out as it was and puts it in as it is.
    pub(super) fn replace_session(&mut self, old: Option<&Session>, new: Option<&Arc<Session>>) {
        self.lookup.replace_session(old, new);
        if let Some(session) = old {
            if let Some(server) = session.phase.occupies() {
                self.count(server, session, false);
            }
            if let Phase::Placing { arrival, .. } = session.phase {
                self.waiting.remove(&arrival);
            }
            if let Some(at) = session.phase.deadline() {
                self.deadlines.remove(&(at, Due::Session(session.id.clone())));
            }
        }
        if let Some(session) = new {
            if let Some(server) = session.phase.occupies() {
                self.count(server, session, true);
            }
            if let Phase::Placing { arrival, .. } = session.phase {
                self.waiting.insert(arrival, session.id.clone());
            }
            if let Some(at) = session.phase.deadline() {
                self.deadlines.insert((at, Due::Session(session.id.clone())));
            }
        }
    }

    /// A session came to a server or left it. What is zero is not listed, so
    /// that equal states have equal indexes.
    fn count(&mut self, server: &ServerId, session: &Session, came: bool) {
        let step = |number: u32| if came { number + 1 } else { number.saturating_sub(1) };
        let mut counts = self.counts(server);
        match session.spec.kind {
            SessionKind::Console => counts.console = step(counts.console),
            SessionKind::Virtual => {
                counts.virtual_ = step(counts.virtual_);
                let key = (server.clone(), session.spec.owner.clone());
                match step(self.owner_count(server, &session.spec.owner)) {
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
        if let Some(old) = self.server_deadlines.remove(server) {
            self.deadlines.remove(&(old, Due::Server(server.clone())));
        }
        if let Some(at) = at {
            self.server_deadlines.insert(server.clone(), at);
            self.deadlines.insert((at, Due::Server(server.clone())));
        }
    }

    /// Works out anew where a server stands.
    pub(super) fn restand(&mut self, server: &Server, closed: bool, counts: Counts) {
        let new = Standing {
            console: Rank::of(server, SessionKind::Console, closed, counts),
            virtual_: Rank::of(server, SessionKind::Virtual, closed, counts),
        };
        if self.standings.get(&server.id) == Some(&new) {
            return;
        }
        self.drop_standing(&server.id);
        if let Ok(rank) = &new.console {
            self.console_ranks.insert(rank.clone());
        }
        if let Ok(rank) = &new.virtual_ {
            self.virtual_ranks.insert(rank.clone());
        }
        self.count_refusals(&new, true);
        if new.console.is_ok() || new.virtual_.is_ok() {
            self.note_grown(&server.id);
        }
        self.standings.insert(server.id.clone(), new);
    }

    pub(super) fn drop_standing(&mut self, server: &ServerId) {
        let Some(standing) = self.standings.remove(server) else { return };
        self.count_refusals(&standing, false);
        if let Ok(rank) = standing.console {
            self.console_ranks.remove(&rank);
        }
        if let Ok(rank) = standing.virtual_ {
            self.virtual_ranks.remove(&rank);
        }
    }

    fn count_refusals(&mut self, standing: &Standing, came: bool) {
        let kinds = [(SessionKind::Console, &standing.console), (SessionKind::Virtual, &standing.virtual_)];
        for (kind, result) in kinds {
            let Err(rule) = result else { continue };
            let key = (kind, *rule);
            let count = self.refusals.get(&key).copied().unwrap_or_default();
            match if came { count + 1 } else { count.saturating_sub(1) } {
                0 => self.refusals.remove(&key),
                count => self.refusals.insert(key, count),
            };
        }
    }
}
