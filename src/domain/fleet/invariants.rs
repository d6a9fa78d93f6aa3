//! What must hold at every log index. Checked after every step of the
//! property tests and of the fault tests.

use std::collections::{BTreeMap, BTreeSet};

use super::Fleet;
use super::index::Index;
use super::requests::{Requests, WEIGHT_PER_KEY};
use crate::domain::ids::{ClientId, InstructionId, ServerId, SessionId};
use crate::domain::instruction::Action;
use crate::domain::placement;
use crate::domain::session::{Phase, SessionKind};

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A session stands under another id than its own.
    #[error("session {0} stands under the id {1}")]
    MisplacedSession(SessionId, SessionId),
    /// A session waits for the answer to an instruction that nobody holds.
    #[error("session {0} waits for instruction {1}, which is not in the outbox of {2}")]
    WaitsForNothing(SessionId, InstructionId, ServerId),
    /// Two sessions wait at the same place in the order of arrival.
    #[error("two sessions have the arrival {0}")]
    SameArrival(u64),
    /// A server has more than one console session that the broker put there,
    /// or a console session beside virtual ones.
    #[error("server {0} has {1} console and {2} virtual sessions made by the broker")]
    ConsoleShared(ServerId, u32, u32),
    /// An instruction has an id that was never given out.
    #[error("instruction {0} is greater than the last one given out")]
    UnknownInstruction(InstructionId),
    /// An instruction waits for a server that is not listed.
    #[error("the outbox holds instruction {0} for server {1}, which does not exist")]
    StrandedInstruction(InstructionId, ServerId),
    /// A server's connection has a number that was never given out.
    #[error("server {0} has an epoch that was never given out")]
    UnknownEpoch(ServerId),
    /// Two connections have the same number.
    #[error("servers {0} and {1} share an epoch")]
    SharedEpoch(ServerId, ServerId),
    /// A set of servers holds others than those that match, or in another order.
    #[error("the sets of servers differ from what the servers are")]
    Sets,
    /// A session is set aside although its id is free.
    #[error("session {0} on {1} is set aside although no other has its id")]
    SetAsideForNothing(SessionId, ServerId),
    /// Somebody waits although a server could take the session.
    #[error("session {0} waits although {1} could take it")]
    WaitsInVain(SessionId, ServerId),
    /// The index differs from what the state says.
    #[error("the index differs from one that is built anew")]
    Index,
    /// The journal holds more than it may.
    #[error("the journal holds {0} records of {1} bytes")]
    Journal(usize, u64),
    /// Two creations of one session are under way.
    #[error("session {0} is being created twice")]
    CreatedTwice(SessionId),
    /// More is kept of a client's requests than may be.
    #[error("{1} requests of client {0} are kept")]
    Requests(ClientId, usize),
    /// What finds kept requests differs from what is kept.
    #[error("the kept requests are not found as they are")]
    RequestIndex,
}

/// Everything that is wrong with a state; empty when it is sound.
pub fn violations(fleet: &Fleet) -> Vec<Violation> {
    let mut found = Vec::new();
    sessions(fleet, &mut found);
    servers(fleet, &mut found);
    outbox(fleet, &mut found);
    if !index_is_true(fleet) {
        found.push(Violation::Index);
    }
    if !fleet.index.sets.are_true(fleet.servers.values()) {
        found.push(Violation::Sets);
    }
    for (server, id) in fleet.conflicts.keys() {
        if fleet.sessions.get(id).is_none_or(|session| session.phase.is_deleted()) {
            found.push(Violation::SetAsideForNothing(id.clone(), server.clone()));
        }
    }
    for session in fleet.waiting() {
        let taker = fleet.servers().find(|server| placement::refusal(fleet, server, session.wish()).is_none());
        if let Some(server) = taker {
            found.push(Violation::WaitsInVain(session.id.clone(), server.id.clone()));
        }
    }
    let (records, bytes) = (fleet.journal.len(), fleet.journal.bytes());
    if records > fleet.settings.journal_records_max as usize || bytes > fleet.settings.journal_bytes_max {
        found.push(Violation::Journal(records, bytes));
    }
    requests(fleet, &mut found);
    found
}

fn sessions(fleet: &Fleet, found: &mut Vec<Violation>) {
    let mut arrivals = BTreeSet::new();
    let mut made_by_broker: BTreeMap<&ServerId, (u32, u32)> = BTreeMap::new();
    for (id, session) in &fleet.sessions {
        if *id != session.id {
            found.push(Violation::MisplacedSession(session.id.clone(), id.clone()));
        }
        if session.arrival > 0 && !arrivals.insert(session.arrival) {
            found.push(Violation::SameArrival(session.arrival));
        }
        match &session.phase {
            Phase::Preparing { server, instruction, .. }
                if !fleet.outbox.contains_key(&(server.clone(), *instruction)) =>
            {
                found.push(Violation::WaitsForNothing(id.clone(), *instruction, server.clone()));
            }
            _ => {}
        }
        if let (Some(server), Some(_)) = (session.phase.occupies(), &session.requested_by) {
            let (console, virtual_) = made_by_broker.entry(server).or_default();
            match session.spec.kind {
                SessionKind::Console => *console += 1,
                SessionKind::Virtual => *virtual_ += 1,
            }
        }
    }
    for (server, (console, virtual_)) in made_by_broker {
        if console > 1 || (console == 1 && virtual_ > 0) {
            found.push(Violation::ConsoleShared(server.clone(), console, virtual_));
        }
    }
}

fn servers(fleet: &Fleet, found: &mut Vec<Violation>) {
    let mut epochs = BTreeMap::new();
    for (id, server) in &fleet.servers {
        let epoch = server.link.epoch();
        if epoch > fleet.last_epoch {
            found.push(Violation::UnknownEpoch(id.clone()));
        }
        if let Some(other) = epochs.insert(epoch, id) {
            found.push(Violation::SharedEpoch(other.clone(), id.clone()));
        }
    }
}

fn outbox(fleet: &Fleet, found: &mut Vec<Violation>) {
    for ((server, id), instruction) in &fleet.outbox {
        if *id > fleet.last_instruction || instruction.id != *id {
            found.push(Violation::UnknownInstruction(*id));
        }
        if !fleet.servers.contains_key(server) {
            found.push(Violation::StrandedInstruction(*id, server.clone()));
        }
    }
    // At most one unanswered creation of a session in the whole fleet.
    let mut creations = BTreeSet::new();
    for instruction in fleet.outbox.values() {
        if let Action::CreateSession { session, .. } = &instruction.action
            && !creations.insert(session)
        {
            found.push(Violation::CreatedTwice(session.clone()));
        }
    }
}

fn requests(fleet: &Fleet, found: &mut Vec<Violation>) {
    let rebuilt: Requests = fleet.requests.by_age().cloned().collect();
    if rebuilt != fleet.requests {
        found.push(Violation::RequestIndex);
    }
    let mut tallies: BTreeMap<&ClientId, (usize, u64)> = BTreeMap::new();
    for request in fleet.requests.by_age() {
        let (keys, weight) = tallies.entry(&request.client).or_default();
        *keys += 1;
        *weight += request.weight();
    }
    let keys_max = fleet.settings.idempotency_keys_max;
    for (client, (keys, weight)) in tallies {
        if keys > keys_max as usize || (keys > 1 && weight > u64::from(keys_max) * WEIGHT_PER_KEY) {
            found.push(Violation::Requests(client.clone(), keys));
        }
    }
}

fn index_is_true(fleet: &Fleet) -> bool {
    let mut rebuilt = fleet.clone();
    rebuilt.index = Index::default();
    rebuilt.rebuild_index();
    rebuilt.index == fleet.index
}
