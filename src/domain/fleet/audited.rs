//! What is carried out and recorded in the audit in one step, so that there is
//! no moment at which one exists without the other.

use super::apply::{Transition, decide};
use crate::domain::audit::Deed;
use crate::domain::command::{Command, Outcome, Refusal};
use crate::domain::event::Event;

/// Does all of it and records what came of it.
pub(super) fn audited(t: &mut Transition<'_>, deed: Deed, result: Option<String>, commands: Vec<Command>) -> Outcome {
    let outcomes: Vec<Outcome> = commands.into_iter().map(|command| one_of_many(t, command)).collect();
    let result = result.unwrap_or_else(|| told(&outcomes));
    let record = t.fleet.access.audit.record(t.stamp.at, deed, result);
    t.emit(Event::Audited(Box::new(record)));
    Outcome::Audited(outcomes)
}

/// What one command comes to: the same as if it stood in the log by itself.
fn one_of_many(t: &mut Transition<'_>, command: Command) -> Outcome {
    if let Command::Audited { .. } = command {
        return Outcome::Refused(Refusal::Nested);
    }
    let outcome = decide(t, command);
    t.settle();
    outcome
}

/// What outcomes come to, in words.
fn told(outcomes: &[Outcome]) -> String {
    match outcomes {
        [] => "nothing to do".to_owned(),
        [Outcome::Once(outcomes)] => told(outcomes),
        [Outcome::Repeated { request_id, outcomes }] => format!("repeats {request_id}: {}", told(outcomes)),
        [Outcome::Refused(refusal)] => format!("refused: {}", refusal.code()),
        [_] => "done".to_owned(),
        many => {
            let refused = many.iter().filter(|outcome| matches!(outcome, Outcome::Refused(_))).count();
            format!("{} done, {refused} refused", many.len() - refused)
        }
    }
}
