//! Whether a server takes sessions, as operators may see it.

use std::collections::BTreeMap;

use super::{Call, Sequential};
use crate::history::{Event, Outcome};

/// What is asked of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Input {
    /// To take sessions again; ends a drain.
    Open,
    /// To take none.
    Close,
    /// To take none, and to lose those it has.
    Drain,
    /// How it is.
    Look,
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Done.
    Done,
    /// Whether it counts as closed.
    Closed(bool),
}

/// Whether it takes sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// It does.
    Open,
    /// It does not.
    Closed,
    /// It does not, and its sessions end.
    Draining,
}

/// The model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Server;

impl Sequential for Server {
    type State = Door;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Door {
        Door::Open
    }

    fn step(&self, state: &Door, input: &Input, output: Option<&Output>) -> Vec<Door> {
        match (input, output) {
            (Input::Open, Some(Output::Done) | None) => vec![Door::Open],
            // Closing does not end a drain.
            (Input::Close, Some(Output::Done) | None) if *state == Door::Draining => vec![Door::Draining],
            (Input::Close, Some(Output::Done) | None) => vec![Door::Closed],
            (Input::Drain, Some(Output::Done) | None) => vec![Door::Draining],
            (Input::Look, Some(Output::Closed(closed))) if *closed == (*state != Door::Open) => vec![*state],
            (Input::Look, None) => vec![*state],
            _ => Vec::new(),
        }
    }
}

/// The calls to each server of a history, by its id.
pub fn calls(events: &[Event]) -> BTreeMap<String, Vec<Call<Input, Output>>> {
    let mut calls: BTreeMap<String, Vec<Call<Input, Output>>> = BTreeMap::new();
    for event in events {
        let (server, call) = match event {
            Event::Door { span, server, wish, outcome } => match outcome {
                Outcome::Acknowledged(()) => (server, Call::answered(*span, *wish, Output::Done)),
                Outcome::Unknown(_) => (server, Call::unknown(span.sent, *wish)),
                Outcome::Refused(_) | Outcome::NotTaken(_) => continue,
            },
            Event::DoorSeen { span, server, closed } => {
                (server, Call::answered(*span, Input::Look, Output::Closed(*closed)))
            }
            _ => continue,
        };
        calls.entry(server.clone()).or_default().push(call);
    }
    calls
}
