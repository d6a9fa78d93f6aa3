//! Deliberate faults between the fleet and those who look at it: a model that
//! does not notice them would prove nothing.

use super::placing::{self, Wish};
use super::shadow::Shadow;
use super::world::World;
use crate::domain::command::Command;
use crate::domain::event::Event;
use crate::domain::ids::{Epoch, ServerId, SessionId};
use crate::domain::instruction::Action;
use crate::domain::placement::Rule;
use crate::domain::session::{Phase, SessionSpec};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// An acknowledged request is not in the state.
    CreateForgotten,
    /// One replica does not apply some command.
    CommandMissed,
    /// Nothing happens when time passes.
    TimersStopped,
    /// A word of an old connection counts.
    StaleWordCounts,
    /// Reports reach the log without their sessions.
    InventoryIgnored,
    /// A creation is sent to all hosts.
    InstructionDoubled,
    /// Agents forget what they carried out.
    LedgerLost,
    /// A session is placed on a closed server.
    PlacedOnClosed,
    /// A session is placed beyond a limit.
    PlacedBeyondLimit,
    /// A session is placed where its requirements do not hold.
    PlacedAgainstRequirements,
    /// A session is placed on a server that is not the best.
    PlacedBadly,
    /// A later request is placed before an earlier one.
    PlacedOutOfOrder,
    /// A session becomes ready before its server said so.
    ReadyUnasked,
    /// A session ends without a reason.
    ReasonLost,
    /// A session ends twice.
    EndedTwice,
    /// An event does not reach its readers.
    EventLost,
}

/// Each fault, and a part of what is said when it is noticed.
pub(super) const ALL: [(Fault, &str); 16] = [
    (Fault::CreateForgotten, "is not what was acknowledged"),
    (Fault::CommandMissed, "a replay"),
    (Fault::TimersStopped, "should"),
    (Fault::StaleWordCounts, "a word of an old connection had an effect"),
    (Fault::InventoryIgnored, "not what the broker has"),
    (Fault::InstructionDoubled, "runs on"),
    (Fault::LedgerLost, "carried out"),
    (Fault::PlacedOnClosed, "although its closing was acknowledged"),
    (Fault::PlacedBeyondLimit, "which refuses it: full"),
    (Fault::PlacedAgainstRequirements, "which refuses it: requirements not met"),
    (Fault::PlacedBadly, "is better"),
    (Fault::PlacedOutOfOrder, "came before it"),
    (Fault::ReadyUnasked, "did not say so"),
    (Fault::ReasonLost, "without a reason"),
    (Fault::EndedTwice, "ended twice"),
    (Fault::EventLost, "but events told"),
];

impl World {
    /// A command as it reaches the log.
    pub(super) fn tampered(&self, mut command: Command) -> Command {
        match (self.fault, &mut command) {
            (
                Some(Fault::StaleWordCounts),
                Command::Report { server, epoch, .. } | Command::DisconnectAgent { server, epoch },
            ) => *epoch = self.fleet.server(server).map_or(Epoch(0), |server| server.link.epoch()),
            (Some(Fault::InventoryIgnored), Command::Report { report, .. }) => report.sessions = None,
            _ => {}
        }
        command
    }

    /// Events as they reach their readers.
    pub(super) fn misread(&mut self, mut events: Vec<Event>) -> Vec<Event> {
        let shadow = &self.shadow;
        match self.fault {
            Some(Fault::PlacedOnClosed) => misplace(shadow, &mut events, |id, _| shadow.closes.contains(id)),
            Some(Fault::PlacedBeyondLimit) => misplace(shadow, &mut events, |_, rule| rule == Some(Rule::Full)),
            Some(Fault::PlacedAgainstRequirements) => {
                misplace(shadow, &mut events, |_, rule| rule == Some(Rule::Requirements));
            }
            Some(Fault::PlacedBadly) => misplace(shadow, &mut events, |_, rule| rule.is_none()),
            Some(Fault::PlacedOutOfOrder) => exchange(shadow, &mut events),
            Some(Fault::ReadyUnasked) => {
                let mut preparing = shadow.sessions.iter().filter(|(_, s)| matches!(s.phase, Phase::Preparing { .. }));
                events.extend(preparing.next().map(|(id, _)| Event::SessionReady { id: id.clone() }));
            }
            Some(Fault::ReasonLost) => {
                for event in &mut events {
                    if let Event::SessionDeleted { reason, .. } = event {
                        *reason = None;
                    }
                }
            }
            Some(Fault::EndedTwice) => {
                let ended = events.iter().find(|event| matches!(event, Event::SessionDeleted { .. })).cloned();
                events.extend(ended);
            }
            Some(Fault::EventLost) => events.retain(|event| !matches!(event, Event::SessionReady { .. })),
            _ => {}
        }
        events
    }
}

/// The first placement of some events, and the request as it stood before them.
struct Placement {
    id: SessionId,
    server: ServerId,
    spec: SessionSpec,
    failed_on: Vec<ServerId>,
    arrival: u64,
}

impl Placement {
    fn first(shadow: &Shadow, events: &[Event]) -> Option<Self> {
        let placed = events.iter().find_map(|event| match event {
            Event::SessionPlaced { id, server, .. } => Some((id.clone(), server.clone())),
            _ => None,
        });
        let (id, server) = placed?;
        let known = shadow.sessions.get(&id);
        let created = events.iter().find_map(|event| match event {
            Event::SessionCreated { id: new, spec, .. } if *new == id => Some(spec.clone()),
            _ => None,
        });
        let spec = known.map(|session| session.spec.clone()).or(created)?;
        let failed_on = known.map(|session| session.failed_on.clone()).unwrap_or_default();
        Some(Self { id, server, spec, failed_on, arrival: known.map_or(u64::MAX, |session| session.arrival) })
    }
}

/// Puts a session elsewhere.
fn misplace(shadow: &Shadow, events: &mut [Event], wanted: impl Fn(&ServerId, Option<Rule>) -> bool) {
    let Some(placed) = Placement::first(shadow, events) else { return };
    let wish = Wish { spec: &placed.spec, failed_on: &placed.failed_on };
    let other = shadow
        .servers
        .keys()
        .find(|server| **server != placed.server && wanted(server, placing::refusal(shadow, server, &placed.id, wish)));
    let Some(other) = other else { return };
    for event in events {
        match event {
            Event::InstructionIssued { server, instruction } if *instruction.action.session() == placed.id => {
                *server = other.clone();
            }
            Event::SessionPlaced { id, server, .. } if *id == placed.id => *server = other.clone(),
            _ => {}
        }
    }
}

/// Gives the place of a session that waited to a later one that asked for the same.
fn exchange(shadow: &Shadow, events: &mut [Event]) {
    let Some(placed) = Placement::first(shadow, events) else { return };
    let asks_for = |spec: &SessionSpec| (spec.kind, spec.owner.clone(), spec.requirements.clone());
    let later = shadow.waiting().find(|(_, other)| {
        other.arrival > placed.arrival
            && asks_for(&other.spec) == asks_for(&placed.spec)
            && !other.failed_on.contains(&placed.server)
    });
    let Some((later, _)) = later else { return };
    for event in events {
        match event {
            Event::InstructionIssued { instruction, .. } if *instruction.action.session() == placed.id => {
                if let Action::CreateSession { session, .. } = &mut instruction.action {
                    *session = later.clone();
                }
            }
            Event::SessionPlaced { id, .. } if *id == placed.id => *id = later.clone(),
            _ => {}
        }
    }
}
