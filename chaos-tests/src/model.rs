//! What a history allows. Nothing is assumed of the order of requests that were
//! under way at the same time, nor of those without an answer.

use std::collections::BTreeMap;

use crate::history::{Event, Moment, Outcome, Span};

/// A request for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// When.
    pub span: Span,
    /// Whose session.
    pub owner: String,
    /// What became of it.
    pub outcome: Outcome<String>,
}

/// All requests for the end of one session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deletes {
    /// When the first one that may have had an effect was sent.
    pub first_sent: Option<Moment>,
    /// When the first acknowledgement had come.
    pub acknowledged: Option<Moment>,
    /// Those that were refused, with the broker's words.
    pub refused: Vec<(Span, String)>,
}

/// What must, may and must not be there.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Requests for sessions by name.
    pub creates: BTreeMap<String, Create>,
    /// Requests for ends by session.
    pub deletes: BTreeMap<String, Deletes>,
    /// When agents were killed, by server.
    pub kills: BTreeMap<String, Vec<Span>>,
}

impl Model {
    /// Of a history.
    pub fn of(events: &[Event]) -> Self {
        let mut model = Self::default();
        for event in events {
            match event {
                Event::Create { span, name, owner, outcome } => {
                    let create = Create { span: *span, owner: owner.clone(), outcome: outcome.clone() };
                    model.creates.insert(name.clone(), create);
                }
                Event::Delete { span, session, outcome } => {
                    let deletes = model.deletes.entry(session.clone()).or_default();
                    let sent = Some(deletes.first_sent.map_or(span.sent, |first| first.min(span.sent)));
                    match outcome {
                        Outcome::Acknowledged(()) => {
                            deletes.first_sent = sent;
                            let first = deletes.acknowledged.map_or(span.answered, |first| first.min(span.answered));
                            deletes.acknowledged = Some(first);
                        }
                        Outcome::Unknown(_) => deletes.first_sent = sent,
                        Outcome::Refused(reason) => deletes.refused.push((*span, reason.clone())),
                        Outcome::NotTaken(_) => {}
                    }
                }
                Event::AgentKilled { span, server } => model.kills.entry(server.clone()).or_default().push(*span),
                // Judged by the stories that they have.
                Event::Look { .. }
                | Event::Door { .. }
                | Event::DoorSeen { .. }
                | Event::QueueSeen { .. }
                | Event::Fault { .. }
                | Event::BrokerKilled { .. } => {}
            }
        }
        model
    }

    /// Whether a session that was asked for in `create` on `server` may have
    /// ended by the moment `by`.
    pub fn may_have_ended(&self, session: &str, server: Option<&str>, create: &Create, by: Moment) -> bool {
        let asked =
            self.deletes.get(session).and_then(|deletes| deletes.first_sent).is_some_and(|first_sent| first_sent < by);
        // Simulated desktops die with their agent.
        let died = server
            .and_then(|server| self.kills.get(server))
            .is_some_and(|kills| kills.iter().any(|kill| kill.answered > create.span.sent && kill.sent < by));
        asked || died
    }
}
