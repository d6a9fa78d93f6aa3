//! Deeds that change nothing, on their way to the audit: tokens that were
//! issued, calls that were refused. Nobody waits for them, so that a replica
//! without a majority goes on issuing tokens; and they come in any number, so
//! that the same deed within a while is one record, which says how often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::api::door::{Core, Unavailable, UnavailableReason};
use crate::domain::Command;
use crate::domain::audit::{Actor, Deed, bounded};

/// Notes that may wait to be read.
const WAITING_MAX: usize = 4_096;
/// How long deeds are gathered before they are recorded.
const GATHER: Duration = Duration::from_secs(2);
/// Different deeds that are told apart meanwhile.
const DIFFERENT_MAX: usize = 256;
/// The same for what is refused to those who did not prove who they are: any
/// number of them must not push out what others did.
const STRANGERS_MAX: usize = 16;
/// The action of the record that counts what is not told apart.
pub(super) const OTHERS: &str = "others";
/// How the result of what was refused begins.
const REFUSED: &str = "refused";
/// Between two attempts while the log takes nothing.
const RETRY: Duration = Duration::from_secs(1);

/// How long the log may take at the end of a replica.
const END: Duration = Duration::from_secs(10);

/// Something that was done.
#[derive(Debug)]
struct Note {
    deed: Deed,
    result: String,
}

/// Takes notes.
#[derive(Debug, Clone)]
pub struct Notes(mpsc::Sender<Note>);

/// Brings notes to the log.
#[derive(Debug)]
pub struct Scribe(mpsc::Receiver<Note>);

/// The command that records a deed which changes nothing else.
pub(super) const fn noted(deed: Deed, result: String) -> Command {
    Command::Audited { deed, result: Some(result), commands: Vec::new(), refused_before: 0 }
}

/// A place for notes, and who empties it.
pub fn notes() -> (Notes, Scribe) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Notes(sender), Scribe(receiver))
}

impl Notes {
    /// Nobody reads them: they are only logged.
    pub fn unread() -> Self {
        notes().0
    }

    /// Has a deed recorded soon. When too many wait it is only logged.
    pub(super) fn take(&self, deed: Deed, result: &str) {
        let note = Note { deed: deed.bounded(), result: bounded(result.to_owned()) };
        let (note, why) = match self.0.try_send(note) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(note)) => (note, "too many wait to be recorded"),
            Err(mpsc::error::TrySendError::Closed(note)) => (note, "nobody records here any more"),
        };
        tracing::warn!(actor = %note.deed.actor, from = note.deed.from, action = note.deed.action, result, why,
            "a deed is not in the audit");
    }
}

/// What makes deeds the same: who, from where, what, with what, and the result.
type Sort = (String, String, String, String, String);

/// Deeds that were gathered.
#[derive(Default)]
struct Gathered {
    deeds: BTreeMap<Sort, (Deed, u64)>,
    /// How many of them were refused to strangers.
    strangers: usize,
    others: u64,
}

impl Gathered {
    fn add(&mut self, note: Note) {
        let Note { deed, result } = note;
        let is_strangers = deed.actor == Actor::Unknown && result.starts_with(REFUSED);
        let sort = (deed.actor.to_string(), deed.from.clone(), deed.action.clone(), deed.target.clone(), result);
        if !self.deeds.contains_key(&sort) {
            let known = self.deeds.len() - self.strangers;
            if if is_strangers { self.strangers >= STRANGERS_MAX } else { known >= DIFFERENT_MAX } {
                self.others += 1;
                return;
            }
            self.strangers += usize::from(is_strangers);
        }
        self.deeds.entry(sort).or_insert((deed, 0)).1 += 1;
    }

    /// The commands that record them, and nothing is left.
    fn take(&mut self, via: crate::domain::ReplicaId) -> Vec<Command> {
        let mut commands: Vec<Command> = std::mem::take(&mut self.deeds)
            .into_iter()
            .map(|((.., result), (deed, times))| match times {
                1 => noted(deed, result),
                times => noted(deed, format!("{result} ({times} times)")),
            })
            .collect();
        self.strangers = 0;
        let others = std::mem::take(&mut self.others);
        if others > 0 {
            let deed = Deed {
                actor: Actor::Unknown,
                from: String::new(),
                action: OTHERS.to_owned(),
                target: String::new(),
                request_id: String::new(),
                via,
            };
            commands.push(noted(deed, format!("{others} further deeds, too many different ones to be told apart")));
        }
        commands
    }
}

impl Scribe {
    /// Records what is noted until told to stop, and then what is left, if the
    /// log takes it.
    pub async fn write(mut self, core: Arc<impl Core>, shutdown: CancellationToken) {
        let mut gathered = Gathered::default();
        loop {
            let first = tokio::select! {
                biased;
                // What is left then goes together.
                () = shutdown.cancelled() => None,
                note = self.0.recv() => note,
            };
            let Some(first) = first else { break };
            gathered.add(first);
            let end = Instant::now() + GATHER;
            loop {
                tokio::select! {
                    note = self.0.recv() => match note {
                        Some(note) => gathered.add(note),
                        None => break,
                    },
                    () = sleep_until(end) => break,
                    () = shutdown.cancelled() => break,
                }
            }
            let commands = gathered.take(core.replica());
            // Proposed anew only when it is known that they did not get into the log, or when that
            // was not found out with much patience: then they may be there twice.
            while let Err(error) = patiently(&*core, &commands, &shutdown).await {
                if shutdown.is_cancelled() {
                    tracing::warn!(%error, deeds = commands.len(), "deeds may not be in the audit: this replica ends");
                    return;
                }
                tokio::select! {
                    () = sleep(RETRY) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        }
        while let Ok(note) = self.0.try_recv() {
            gathered.add(note);
        }
        let left = gathered.take(core.replica());
        if !left.is_empty()
            && let Err(error) = core.propose(left).await
        {
            tracing::warn!(%error, "the last deeds are not in the audit: this replica ends");
        }
    }
}

/// Proposes, and waits for the end of it for long, but not at the end of the
/// replica.
async fn patiently(core: &impl Core, commands: &[Command], shutdown: &CancellationToken) -> Result<(), Unavailable> {
    let late = async {
        shutdown.cancelled().await;
        sleep(END).await;
    };
    tokio::select! {
        proposed = core.propose_patiently(commands.to_vec()) => proposed.map(drop),
        () = late => Err(Unavailable { reason: UnavailableReason::OutcomeUnknown, retry_after: RETRY }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ReplicaId;

    fn note(from: &str) -> Note {
        note_of(from, "")
    }

    fn note_of(from: &str, target: &str) -> Note {
        let deed = Deed {
            actor: Actor::Unknown,
            from: from.to_owned(),
            action: "describeSessions".to_owned(),
            target: target.to_owned(),
            request_id: "r".to_owned(),
            via: ReplicaId(1),
        };
        Note { deed, result: "refused".to_owned() }
    }

    fn results(commands: Vec<Command>) -> Vec<String> {
        let result = |command| match command {
            Command::Audited { result: Some(result), .. } => result,
            other => panic!("{other:?}"),
        };
        commands.into_iter().map(result).collect()
    }

    #[test]
    fn the_same_is_told_once_and_how_often() {
        let mut gathered = Gathered::default();
        for from in ["a", "b", "a", "a"] {
            gathered.add(note(from));
        }
        assert_eq!(results(gathered.take(ReplicaId(1))), ["refused (3 times)", "refused"]);
        assert!(gathered.take(ReplicaId(1)).is_empty());
    }

    #[test]
    fn strangers_do_not_push_out_what_others_did() {
        let mut gathered = Gathered::default();
        for number in 0..1_000 {
            gathered.add(note(&number.to_string()));
        }
        for number in 0..200 {
            let mut known = note("a");
            known.deed.actor = Actor::Operator;
            known.deed.target = number.to_string();
            gathered.add(known);
        }
        let commands = gathered.take(ReplicaId(1));
        let is_operators =
            |command: &&Command| matches!(command, Command::Audited { deed, .. } if deed.actor == Actor::Operator);
        assert_eq!(commands.iter().filter(is_operators).count(), 200);
    }

    #[test]
    fn what_was_done_with_another_is_told_apart() {
        let mut gathered = Gathered::default();
        for target in ["desk-1", "desk-2", "desk-1"] {
            gathered.add(note_of("a", target));
        }
        assert_eq!(results(gathered.take(ReplicaId(1))), ["refused (2 times)", "refused"]);
    }

    #[test]
    fn a_flood_from_everywhere_makes_few_records() {
        let mut gathered = Gathered::default();
        for number in 0..10_000 {
            gathered.add(note(&number.to_string()));
        }
        let results = results(gathered.take(ReplicaId(1)));
        assert_eq!(results.len(), STRANGERS_MAX + 1);
        assert!(results[STRANGERS_MAX].starts_with("9984 further deeds"));
    }
}
