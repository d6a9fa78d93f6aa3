//! The queue of those that wait for the same kind of server: whoever came
//! first is served first, everybody leaves it once, and nobody comes back.

use std::collections::BTreeMap;

use super::{Call, Sequential};
use crate::history::{Event, Outcome};

/// What is asked of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// To wait, under a name that no other has.
    Join(String),
    /// To wait no longer.
    Leave(String),
    /// Who waits.
    Look,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Done.
    Done,
    /// Those who wait, the first one first.
    Waiting(Vec<String>),
}

/// The model: at any moment the first may be served.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queue;

impl Sequential for Queue {
    type State = Vec<String>;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Vec<String> {
        Vec::new()
    }

    fn step(&self, state: &Vec<String>, input: &Input, output: Option<&Output>) -> Vec<Vec<String>> {
        match (input, output) {
            (Input::Join(name), Some(Output::Done) | None) if !state.contains(name) => {
                vec![state.iter().chain([name]).cloned().collect()]
            }
            // It may have been served already.
            (Input::Leave(name), Some(Output::Done) | None) => {
                vec![state.iter().filter(|waiting| *waiting != name).cloned().collect()]
            }
            (Input::Look, Some(Output::Waiting(seen))) if state.ends_with(seen) => vec![seen.clone()],
            (Input::Look | Input::Join(_), None) => vec![state.clone()],
            _ => Vec::new(),
        }
    }
}

/// A call to the queue.
pub type QueueCall = Call<Input, Output>;

/// The calls to the queue of each owner that ever looked at it, in which nobody
/// else's sessions are.
pub fn calls(events: &[Event]) -> BTreeMap<String, Vec<QueueCall>> {
    let mut calls: BTreeMap<String, Vec<QueueCall>> = BTreeMap::new();
    let mut sessions: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for event in events {
        let Event::QueueSeen { span, owner, waiting } = event else { continue };
        sessions.extend(waiting.iter().map(|(name, id)| (id.as_str(), (owner.as_str(), name.as_str()))));
        let names = waiting.iter().map(|(name, _)| name.clone()).collect();
        calls.entry(owner.clone()).or_default().push(Call::answered(*span, Input::Look, Output::Waiting(names)));
    }
    for event in events {
        let Event::Create { span, name, owner, outcome } = event else { continue };
        let Some(of_owner) = calls.get_mut(owner) else { continue };
        let input = Input::Join(name.clone());
        match outcome {
            Outcome::Acknowledged(id) => {
                sessions.insert(id, (owner, name));
                of_owner.push(Call::answered(*span, input, Output::Done));
            }
            Outcome::Unknown(_) => of_owner.push(Call::unknown(span.sent, input)),
            Outcome::Refused(_) | Outcome::NotTaken(_) => {}
        }
    }
    for event in events {
        let Event::Delete { span, session, outcome } = event else { continue };
        let Some((owner, name)) = sessions.get(session.as_str()) else { continue };
        let Some(of_owner) = calls.get_mut(*owner) else { continue };
        let input = Input::Leave((*name).to_owned());
        match outcome {
            Outcome::Acknowledged(()) | Outcome::Refused(_) => {
                of_owner.push(Call::answered(*span, input, Output::Done));
            }
            Outcome::Unknown(_) => of_owner.push(Call::unknown(span.sent, input)),
            Outcome::NotTaken(_) => {}
        }
    }
    calls
}
