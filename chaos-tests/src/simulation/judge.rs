//! What must hold all the time, checked while it happens: on each replica after
//! each of its steps, at each vote, at each answer, on each desktop host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth::domain::fleet::invariants::violations;
use berth::domain::ids::InstructionId;
use berth::domain::{Event, ServerId, SessionId};
use berth_raft::{Configuration, ReplicaId};
use tokio::time::Instant;

use super::configurations::Configurations;
use super::machine::Replicated;
use super::trace::Trace;

/// Violations that are kept; the first few say it.
const VIOLATIONS_MAX: usize = 5;
/// Each so many entries replicas are compared.
const COMPARE_EVERY: u64 = 8;

/// See the module.
#[derive(Debug)]
pub struct Judge {
    trace: Arc<Trace>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    violations: Vec<String>,
    /// State after an entry, and who showed it first.
    states: BTreeMap<u64, (u64, ReplicaId)>,
    compared: u64,
    /// Who leads in a term, and since when at the latest.
    leaders: BTreeMap<u64, (ReplicaId, Instant)>,
    /// Who votes, entry by entry.
    configurations: Configurations,
    /// Replicas that were removed, and by which term.
    removed: BTreeMap<ReplicaId, u64>,
    /// For whom a replica voted in a term.
    votes: BTreeMap<(ReplicaId, u64), u64>,
    /// Entries that answers were as new as.
    seen: u64,
    /// Sessions that came to the log by their hosts, on whose word alone they
    /// then stand.
    adopted: BTreeSet<SessionId>,
    survivors: BTreeSet<SessionId>,
    /// Sessions that the broker ended by itself, or may have.
    ended: BTreeSet<SessionId>,
    /// Desktops that the broker had made and that run, and where.
    desktops: BTreeMap<SessionId, (String, ServerId)>,
    /// Servers of which a copy was taken for the original.
    doubled: BTreeSet<ServerId>,
    /// Entries after which the invariants were worked out.
    inspected: BTreeSet<u64>,
    /// Creations that were carried out, and where.
    made: BTreeSet<(String, InstructionId)>,
}

impl Judge {
    /// A judge who has seen nothing.
    pub fn new(trace: Arc<Trace>) -> Self {
        Self { trace, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data, whole between steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that must not be.
    pub fn violation(&self, text: String) {
        self.trace.note(&format!("VIOLATION: {text}"));
        let mut state = self.state();
        if state.violations.len() < VIOLATIONS_MAX {
            state.violations.push(text);
        }
    }

    /// What was found.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Whether anything was found.
    pub fn has_found(&self) -> bool {
        !self.state().violations.is_empty()
    }

    /// How often replicas were compared.
    pub fn compared(&self) -> u64 {
        self.state().compared
    }

    /// Sessions that came to the log by their hosts.
    pub fn adopted(&self) -> BTreeSet<SessionId> {
        self.state().adopted.clone()
    }

    /// Sessions that their hosts could not end, time and again: they live on.
    pub fn survivors(&self) -> BTreeSet<SessionId> {
        self.state().survivors.clone()
    }

    /// Sessions that the broker ended by itself, or may have.
    pub fn ended_unasked(&self) -> BTreeSet<SessionId> {
        self.state().ended.clone()
    }

    /// A replica has applied entries.
    pub fn applied(&self, replica: ReplicaId, machine: &Replicated, events: &[Event]) {
        let fleet = machine.fleet();
        // A state that was replaced as a whole is always looked at. Of others, one of those that
        // must be equal, and now and then each: that takes most of the time of a world.
        let compares = fleet.applied().0.is_multiple_of(COMPARE_EVERY) || events.is_empty();
        let is_first = self.state().inspected.insert(fleet.applied().0);
        if is_first {
            self.trace.detail(|| format!("entry {}: {events:?}", fleet.applied()));
        }
        if is_first || compares {
            for violation in violations(fleet) {
                self.violation(format!("replica {replica} at entry {}: {violation}", fleet.applied()));
            }
        }
        let adopted = events.iter().filter_map(|event| match event {
            Event::SessionAdopted { session, .. } => Some(session.id.clone()),
            _ => None,
        });
        let survivors = events.iter().filter_map(|event| match event {
            Event::SessionDeletionFailed { id, .. } => Some(id.clone()),
            _ => None,
        });
        let ended = events.iter().filter_map(|event| match event {
            Event::SessionDeleting { id, reason: Some(_), .. } | Event::SessionDeleted { id, reason: Some(_), .. } => {
                Some(id.clone())
            }
            _ => None,
        });
        let mut state = self.state();
        state.ended.extend(ended);
        state.adopted.extend(adopted);
        state.survivors.extend(survivors);
        drop(state);
        if compares {
            self.compare(replica, machine);
        }
    }

    /// Holds a replica's state against what others had at the same entry.
    pub fn compare(&self, replica: ReplicaId, machine: &Replicated) {
        let (index, found) = (machine.fleet().applied().0, machine.fingerprint());
        let mut state = self.state();
        let (known, first) = *state.states.entry(index).or_insert((found, replica));
        state.compared += u64::from(first != replica);
        drop(state);
        if known != found {
            self.violation(format!("replicas {first} and {replica} differ at entry {index}"));
        }
    }

    /// A replica says that it leads.
    pub fn leads(&self, replica: ReplicaId, term: u64) {
        let mut state = self.state();
        let (first, _) = *state.leaders.entry(term).or_insert((replica, Instant::now()));
        let removed_by = state.removed.get(&replica).copied();
        drop(state);
        if first != replica {
            self.violation(format!("replicas {first} and {replica} lead in term {term}"));
        }
        if let Some(by) = removed_by.filter(|by| *by < term) {
            self.violation(format!("replica {replica} leads in term {term}, though it was removed by term {by}"));
        }
    }

    /// A replica that leads in a term sent something at a moment that a majority
    /// of those who vote, as it knows them, answered as if nobody else led.
    pub fn had_majority(&self, replica: ReplicaId, term: u64, at: Instant) {
        let later = term.saturating_add(1)..;
        let led_by_then =
            self.state().leaders.range(later).find(|(_, (_, since))| *since < at).map(|(t, (id, _))| (*t, *id));
        if let Some((other_term, other)) = led_by_then {
            self.violation(format!(
                "replica {replica} still had a majority in term {term} when replica {other} led in term {other_term}"
            ));
        }
    }

    /// What replicas have agreed on about their members, as one of them knows it.
    pub fn agreed(&self, replica: ReplicaId, configuration: Configuration) {
        let error = self.state().configurations.add(replica, configuration);
        if let Some(error) = error {
            self.violation(error);
        }
    }

    /// A replica is no member any more, as was agreed in this term or before.
    pub fn removed(&self, replica: ReplicaId, by_term: u64) {
        self.state().removed.insert(replica, by_term);
    }

    /// A replica gave its vote.
    pub fn voted(&self, replica: ReplicaId, term: u64, candidate: u64) {
        let first = *self.state().votes.entry((replica, term)).or_insert(candidate);
        if first != candidate {
            self.violation(format!("replica {replica} voted for {first} and for {candidate} in term {term}"));
        }
    }

    /// The entry that no answer from now on may be older than.
    pub fn seen(&self) -> u64 {
        self.state().seen
    }

    /// An answer as of entry `index` came to somebody who asked when others had
    /// seen `before`.
    pub fn answered(&self, what: &str, index: u64, before: u64, is_write: bool) {
        let is_old = if is_write { index <= before } else { index < before };
        if is_old {
            self.violation(format!(
                "{what} is as of entry {index}, though entry {before} was seen before it was asked"
            ));
        }
        let mut state = self.state();
        state.seen = state.seen.max(index);
    }

    /// A host made a desktop that the broker wanted.
    pub fn made(&self, host: &str, server: &ServerId, session: &SessionId, by: InstructionId) {
        let mut state = self.state();
        let is_again = !state.made.insert((host.to_owned(), by));
        let there = (host.to_owned(), server.clone());
        let elsewhere = if state.doubled.contains(server) {
            None
        } else {
            state.desktops.insert(session.clone(), there).filter(|(other, _)| other != host)
        };
        drop(state);
        if is_again {
            self.violation(format!("server {server} carried out instruction {by} twice"));
        }
        if let Some((other, _)) = elsewhere {
            self.violation(format!("session {session} has a desktop on {other} and on {host}"));
        }
    }

    /// What a host says of desktops is not so; those it has do not count.
    pub fn mistrusts(&self, host: &str) {
        self.state().desktops.retain(|_, (there, _)| there != host);
    }

    /// The broker took a copy for a server whose host was lost to it. What that one still has may
    /// run elsewhere, and nobody can know.
    pub fn mistrusts_server(&self, server: &ServerId) {
        let mut state = self.state();
        state.doubled.insert(server.clone());
        state.desktops.retain(|_, (_, there)| there != server);
    }

    /// A host has neither desktops nor a memory any more.
    pub fn lost_all(&self, host: &str) {
        self.state().made.retain(|(there, _)| there != host);
    }

    /// A desktop that the broker wanted is gone.
    pub fn ended(&self, host: &str, session: &SessionId) {
        let mut state = self.state();
        if state.desktops.get(session).is_some_and(|(there, _)| there == host) {
            state.desktops.remove(session);
        }
    }
}
