//! Deliberate faults between the fleet and those who look at it: a model that
//! does not notice them would prove nothing.

use super::placing;
use super::shadow::Shadow;
use super::world::World;
use crate::domain::command::Command;
use crate::domain::event::Event;
use crate::domain::ids::{Epoch, ServerId, SessionId};
use crate::domain::instruction::Action;
use crate::domain::placement::Rule;
use crate::domain::session::Phase;

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
    (Fault::LedgerLost, "twice"),
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

/// The request that was placed first, and where its placement stands.
fn first_placement(shadow: &Shadow, events: &[Event]) -> Option<(SessionId, ServerId)> {
    events.iter().find_map(|event| match event {
        Event::SessionPlaced { id, server, .. } if shadow.sessions.contains_key(id) => {
            Some((id.clone(), server.clone()))
        }
        _ => None,
    })
}

/// Puts a session that waited elsewhere.
fn misplace(shadow: &Shadow, events: &mut [Event], wanted: impl Fn(&ServerId, Option<Rule>) -> bool) {
    let Some((id, chosen)) = first_placement(shadow, events) else { return };
    let session = &shadow.sessions[&id];
    let other = shadow
        .servers
        .keys()
        .find(|server| **server != chosen && wanted(server, placing::refusal(shadow, server, &id, session.wish())));
    let Some(other) = other else { return };
    for event in events {
        match event {
            Event::InstructionIssued { server, instruction } if *instruction.action.session() == id => {
                *server = other.clone();
            }
            Event::SessionPlaced { id: of, server, .. } if *of == id => *server = other.clone(),
            _ => {}
        }
    }
}

/// Gives the place of a session that waited to a later one that fits there.
fn exchange(shadow: &Shadow, events: &mut [Event]) {
    let Some((id, server)) = first_placement(shadow, events) else { return };
    let arrival = shadow.sessions[&id].arrival;
    let later = shadow.waiting().find(|(later, other)| {
        other.arrival > arrival && placing::refusal(shadow, &server, later, other.wish()).is_none()
    });
    let Some((later, _)) = later else { return };
    for event in events {
        match event {
            Event::InstructionIssued { instruction, .. } if *instruction.action.session() == id => {
                if let Action::CreateSession { session, .. } = &mut instruction.action {
                    *session = later.clone();
                }
            }
            Event::SessionPlaced { id: of, .. } if *of == id => *of = later.clone(),
            _ => {}
        }
    }
}
