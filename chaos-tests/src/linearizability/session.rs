//! One session, as its clients may see it.

use std::collections::BTreeMap;

use super::{Call, Sequential};
use crate::client::Seen;
use crate::history::{Event, Outcome};

/// What is asked of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// To be made.
    Create,
    /// To end.
    Delete,
    /// How it is.
    Look,
    /// Its host died, and it may end for that at any later time.
    LoseHost,
    /// Something ended it that no client asked for: at any later time.
    EndUnasked,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Done.
    Done,
    /// Refused: there is no such session.
    Refused,
    /// Its state, when it was found.
    Seen(Option<String>),
}

/// Where it is in its life. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Life {
    /// Not made yet.
    Absent,
    /// Being made.
    Creating,
    /// Made.
    Ready,
    /// Being ended.
    Deleting,
    /// Ended.
    Deleted,
}

/// The model: time may make it ready, and complete its end, at any moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Session;

impl Sequential for Session {
    type State = Life;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Life {
        Life::Absent
    }

    fn step(&self, state: &Life, input: &Input, output: Option<&Output>) -> Vec<Life> {
        use Life::{Absent, Creating, Deleted, Deleting, Ready};
        match (input, output) {
            (Input::Create, Some(Output::Done) | None) if *state == Absent => vec![Creating],
            // One that still waits for a server is gone at once.
            (Input::Delete, Some(Output::Done)) if matches!(state, Creating | Ready | Deleting) => {
                vec![Deleting, Deleted]
            }
            (Input::Delete, None) if matches!(state, Creating | Ready) => vec![Deleting, Deleted],
            (Input::Delete, Some(Output::Refused)) => match state {
                Absent => vec![Absent],
                Deleting | Deleted => vec![Deleted],
                Creating | Ready => Vec::new(),
            },
            (Input::Look, Some(Output::Seen(seen))) => match (seen.as_deref(), state) {
                (None, Absent) => vec![Absent],
                (Some("CREATING"), Creating) => vec![Creating],
                // UNKNOWN: its host fell silent before it was READY, or afterwards.
                (Some("UNKNOWN"), Creating) => vec![Creating, Ready],
                (Some("READY"), Creating | Ready) | (Some("UNKNOWN"), Ready) => vec![Ready],
                (Some("DELETING"), Deleting) => vec![Deleting],
                (Some("DELETED"), Deleting | Deleted) => vec![Deleted],
                _ => Vec::new(),
            },
            (Input::EndUnasked, None) if matches!(state, Creating | Ready) => vec![Deleting, Deleted],
            (Input::LoseHost, None) if matches!(state, Creating | Ready) => vec![Deleted],
            // Without an answer, an effect that is none.
            (_, None) => vec![*state],
            _ => Vec::new(),
        }
    }
}

/// The calls to each session of a history, by its name. What was there at last
/// tells which session is whose and on which server; where that is not known,
/// every host's death may have ended it.
pub fn calls(events: &[Event], at_last: &[Seen]) -> BTreeMap<String, Vec<Call<Input, Output>>> {
    let mut names: BTreeMap<&str, &str> = at_last.iter().map(|seen| (seen.id.as_str(), seen.name.as_str())).collect();
    let servers = at_last.iter().filter_map(|seen| Some((seen.id.as_str(), seen.server.as_deref()?)));
    let servers: BTreeMap<&str, &str> = servers.collect();
    let mut calls: BTreeMap<String, Vec<Call<Input, Output>>> = BTreeMap::new();
    for event in events {
        let Event::Create { span, name, outcome, .. } = event else { continue };
        let of_session = calls.entry(name.clone()).or_default();
        match outcome {
            Outcome::Acknowledged(id) => {
                names.insert(id, name);
                of_session.push(Call::answered(*span, Input::Create, Output::Done));
            }
            Outcome::Unknown(_) => of_session.push(Call::unknown(span.sent, Input::Create)),
            Outcome::Refused(_) | Outcome::NotTaken(_) => {}
        }
    }
    // Ids that were never answered can be learned from the queue.
    for event in events {
        let Event::QueueSeen { waiting, .. } = event else { continue };
        names.extend(waiting.iter().map(|(name, id)| (id.as_str(), name.as_str())));
    }
    for event in events {
        let (session, call) = match event {
            Event::Delete { span, session, outcome } => match outcome {
                Outcome::Acknowledged(()) => (session, Call::answered(*span, Input::Delete, Output::Done)),
                Outcome::Refused(_) => (session, Call::answered(*span, Input::Delete, Output::Refused)),
                Outcome::Unknown(_) => (session, Call::unknown(span.sent, Input::Delete)),
                Outcome::NotTaken(_) => continue,
            },
            Event::Look { span, session, found } => {
                (session, Call::answered(*span, Input::Look, Output::Seen(found.clone())))
            }
            Event::AgentKilled { span, server } => {
                for (id, name) in &names {
                    if servers.get(*id).is_none_or(|of_session| of_session == server)
                        && let Some(of_session) = calls.get_mut(*name)
                    {
                        of_session.push(Call::unknown(span.sent, Input::LoseHost));
                    }
                }
                continue;
            }
            _ => continue,
        };
        if let Some(name) = names.get(session.as_str()) {
            calls.entry((*name).to_owned()).or_default().push(call);
        }
    }
    calls
}
