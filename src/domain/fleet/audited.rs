//! What is carried out and recorded in the audit in one step, so that there is
//! no moment at which one exists without the other.

use super::apply::{Transition, decide};
use crate::domain::audit::{Deed, counted};
use crate::domain::command::{Command, Outcome, Refusal};
use crate::domain::event::Event;

/// Does all of it and records what came of it. `refused_before` items of the
/// call did not get so far.
pub(super) fn audited(
    t: &mut Transition<'_>,
    deed: Deed,
    result: Option<String>,
    commands: Vec<Command>,
    refused_before: u32,
) -> Outcome {
    // An agent may ask several replicas at once. What came first is the record.
    if let [Command::EnrolAgent { id, server, .. }] = &commands[..]
        && t.fleet.agent_client(id).is_some_and(|agent| agent.active && agent.server == *server)
    {
        return Outcome::Audited(vec![Outcome::Done]);
    }
    let settings = match &commands[..] {
        [Command::Configure(settings)] => {
            let changed = t.fleet.settings.changed(settings);
            if changed.is_empty() {
                return Outcome::Audited(vec![Outcome::Done]);
            }
            Some(format!("changed {}", changed.join(", ")))
        }
        _ => None,
    };
    let outcomes: Vec<Outcome> = commands.into_iter().map(|command| one_of_many(t, command)).collect();
    let result = result.or(settings).unwrap_or_else(|| told(&outcomes, refused_before));
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

/// What outcomes come to, in words: of a call with several items, how many were
/// carried out.
fn told(outcomes: &[Outcome], refused_before: u32) -> String {
    match outcomes {
        [Outcome::Once(outcomes)] => told(outcomes, refused_before),
        [Outcome::Repeated { request_id, outcomes }] => {
            format!("repeats {request_id}: {}", told(outcomes, refused_before))
        }
        // Nothing of the call was looked at.
        [Outcome::Refused(refusal @ Refusal::KeyReused)] => format!("refused: {}", refusal.code()),
        [Outcome::Refused(refusal)] if refused_before == 0 => format!("refused: {}", refusal.code()),
        [] if refused_before == 0 => "nothing to do".to_owned(),
        [_] if refused_before == 0 => "done".to_owned(),
        many => {
            let refused = many.iter().filter(|outcome| matches!(outcome, Outcome::Refused(_))).count();
            counted(many.len() - refused, refused + refused_before as usize)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::audit::{Actor, AuditRecord, verify};
    use crate::domain::client::{Grant, SecretHash};
    use crate::domain::fleet::Stamp;
    use crate::domain::ids::{ClientId, IdempotencyKey, LogIndex, ReplicaId};
    use crate::domain::placement::Policy;
    use crate::domain::request::Fingerprint;
    use crate::domain::time::Timestamp;
    use crate::domain::{Fleet, Settings};

    fn run(fleet: &mut Fleet, command: Command) -> Outcome {
        let next = fleet.applied().0 + 1;
        let stamp = Stamp { index: LogIndex(next), at: Timestamp(next) };
        fleet.advance(stamp);
        fleet.apply(stamp, command).outcome
    }

    fn client(id: &str) -> ClientId {
        ClientId::new(id).expect("valid")
    }

    fn register(id: &str) -> Command {
        let secret = SecretHash("one".to_owned());
        Command::RegisterClient { id: client(id), name: "n".to_owned(), secret, grant: Grant::default() }
    }

    fn deed() -> Deed {
        Deed {
            actor: Actor::Operator,
            from: "local".to_owned(),
            action: "test".to_owned(),
            target: "t".to_owned(),
            request_id: String::new(),
            via: ReplicaId(1),
        }
    }

    fn audited_of(fleet: &Fleet) -> Vec<AuditRecord> {
        let records = fleet.journal().records();
        let audited = records.filter_map(|record| match &record.event {
            Event::Audited(record) => Some((**record).clone()),
            _ => None,
        });
        audited.collect()
    }

    #[test]
    fn a_record_counts_the_items_that_were_refused_before_the_log() {
        let mut fleet = Fleet::default();
        let audited =
            |commands, refused_before| Command::Audited { deed: deed(), result: None, commands, refused_before };
        let once = Command::Once {
            client: client("c"),
            key: IdempotencyKey::new("k").expect("valid"),
            fingerprint: Fingerprint([1; 32]),
            request_id: "r1".to_owned(),
            commands: vec![register("e")],
        };
        run(&mut fleet, audited(vec![register("c")], 2));
        run(&mut fleet, audited(vec![register("d"), Command::DeactivateClient { id: client("nobody") }], 1));
        run(&mut fleet, audited(vec![once.clone()], 3));
        run(&mut fleet, audited(vec![once], 3));
        let records = audited_of(&fleet);
        let results: Vec<_> = records.iter().map(|record| record.result.as_str()).collect();
        assert_eq!(
            results,
            ["1 done, 2 refused", "1 done, 2 refused", "1 done, 3 refused", "repeats r1: 1 done, 3 refused"]
        );
        assert_eq!(verify(&records), Ok(Some(fleet.audit().clone())));
    }

    #[test]
    fn settings_are_recorded_when_they_change_and_not_at_each_start() {
        let mut fleet = Fleet::default();
        let configure = |settings: Settings| Command::Audited {
            deed: deed(),
            result: None,
            commands: vec![Command::Configure(settings)],
            refused_before: 0,
        };
        let other = Settings { queue_max: 7, placement: Policy::Pack, ..Settings::default() };
        for settings in [Settings::default(), other.clone(), other.clone(), Settings { queue_max: 8, ..other }] {
            assert_eq!(run(&mut fleet, configure(settings)), Outcome::Audited(vec![Outcome::Done]));
        }
        let records = audited_of(&fleet);
        let results: Vec<_> = records.iter().map(|record| record.result.as_str()).collect();
        assert_eq!(results, ["changed queue_max, placement", "changed queue_max"]);
        assert_eq!(fleet.settings().queue_max, 8);
        assert_eq!(verify(&records), Ok(Some(fleet.audit().clone())));
    }
}
