//! Deeds that change nothing, on their way to the audit: tokens that were
//! issued, calls that were refused. Nobody waits for them, so that a replica
//! without a majority goes on issuing tokens; and they come in any number, so
//! that the same deed within a while is one record, which says how often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
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
/// Those of one actor but operators: the other half is for others. One gateway
/// speaks for many users, and so do hosts, which do not say who they are.
const OF_ONE_MAX: usize = DIFFERENT_MAX / 2;
/// The same for what is refused to those who did not prove who they are: any
/// number of them must not push out what others did.
const STRANGERS_MAX: usize = 16;
/// Actors whose further deeds are counted apart.
const ACTORS_MAX: usize = 64;
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
pub struct Notes {
    notes: mpsc::Sender<Note>,
    /// Those that there was no room for.
    lost: Arc<AtomicU64>,
}

/// Brings notes to the log.
#[derive(Debug)]
pub struct Scribe {
    notes: mpsc::Receiver<Note>,
    lost: Arc<AtomicU64>,
}

/// The command that records a deed which changes nothing else.
pub(super) const fn noted(deed: Deed, result: String) -> Command {
    Command::Audited { deed, result: Some(result), commands: Vec::new(), refused_before: 0 }
}

/// A place for notes, and who empties it.
pub fn notes() -> (Notes, Scribe) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let lost = Arc::default();
    (Notes { notes: sender, lost: Arc::clone(&lost) }, Scribe { notes: receiver, lost })
}

impl Notes {
    /// Nobody reads them: they are only logged.
    pub fn unread() -> Self {
        notes().0
    }

    /// Has a deed recorded soon. When too many wait it is only counted.
    pub(super) fn take(&self, deed: Deed, result: &str) {
        let note = Note { deed: deed.bounded(), result: bounded(result.to_owned()) };
        let (note, why) = match self.notes.try_send(note) {
            Ok(()) => return,
            // Those that follow are told of with the next record.
            Err(mpsc::error::TrySendError::Full(_)) if self.lost.fetch_add(1, Ordering::Relaxed) > 0 => return,
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
    /// How many different ones of each actor; those that were refused to
    /// strangers stand by themselves, under [`REFUSED`].
    different: BTreeMap<String, usize>,
    /// How many more there were of each.
    others: BTreeMap<String, (Actor, u64)>,
}

impl Gathered {
    fn add(&mut self, note: Note) {
        let Note { deed, result } = note;
        let actor = deed.actor.to_string();
        let sort = (actor.clone(), deed.from.clone(), deed.action.clone(), deed.target.clone(), result);
        if !self.deeds.contains_key(&sort) {
            let is_stranger = deed.actor == Actor::Unknown && sort.4.starts_with(REFUSED);
            let (whose, own_max) = match deed.actor {
                _ if is_stranger => (REFUSED, STRANGERS_MAX),
                Actor::Operator => (actor.as_str(), DIFFERENT_MAX),
                _ => (actor.as_str(), OF_ONE_MAX),
            };
            let different = self.different.get(whose).copied().unwrap_or_default();
            // What others do must not push out what operators did.
            let is_full = deed.actor != Actor::Operator && self.deeds.len() >= DIFFERENT_MAX;
            if is_full || different >= own_max {
                return self.add_other(actor, deed.actor);
            }
            self.different.insert(whose.to_owned(), different + 1);
        }
        self.deeds.entry(sort).or_insert((deed, 0)).1 += 1;
    }

    fn add_other(&mut self, name: String, actor: Actor) {
        let is_known = self.others.contains_key(&name) || self.others.len() < ACTORS_MAX;
        let (name, actor) = if is_known { (name, actor) } else { (Actor::Unknown.to_string(), Actor::Unknown) };
        self.others.entry(name).or_insert((actor, 0)).1 += 1;
    }

    /// The commands that record them, and `lost` ones; nothing is left.
    fn take(&mut self, via: crate::domain::ReplicaId, lost: u64) -> Vec<Command> {
        self.different.clear();
        if lost > 0 {
            self.others.entry(Actor::Unknown.to_string()).or_insert((Actor::Unknown, 0)).1 += lost;
        }
        let deeds = std::mem::take(&mut self.deeds).into_iter().map(|((.., result), (deed, times))| match times {
            1 => noted(deed, result),
            times => noted(deed, format!("{result} ({times} times)")),
        });
        let others = std::mem::take(&mut self.others).into_values().map(|(actor, count)| {
            let deed = Deed {
                actor,
                from: String::new(),
                action: OTHERS.to_owned(),
                target: String::new(),
                request_id: String::new(),
                via,
            };
            noted(deed, format!("{count} further deeds, too many different ones to be told apart"))
        });
        deeds.chain(others).collect()
    }
}

impl Scribe {
    /// Records what is noted until told to stop, and then what is left, if the
    /// log takes it.
    pub async fn write(mut self, core: Arc<impl Core>, shutdown: CancellationToken) {
        let mut gathered = Gathered::default();
        while self.gather(&mut gathered, &shutdown).await {
            let commands = gathered.take(core.replica(), self.lost.swap(0, Ordering::Relaxed));
            // Proposed anew only when it is known that they did not get into the log, or when that
            // was not found out with much patience: then they may be there twice. Meanwhile others
            // are read, so that those that come in any number cannot push out the rest.
            while let Err(error) = self.gathering(&mut gathered, patiently(&*core, &commands, &shutdown)).await {
                if shutdown.is_cancelled() {
                    tracing::warn!(%error, deeds = commands.len(), "deeds may not be in the audit: this replica ends");
                    break;
                }
                let pause = async {
                    tokio::select! {
                        () = sleep(RETRY) => {}
                        () = shutdown.cancelled() => {}
                    }
                };
                self.gathering(&mut gathered, pause).await;
            }
        }
        while let Ok(note) = self.notes.try_recv() {
            gathered.add(note);
        }
        let left = gathered.take(core.replica(), self.lost.swap(0, Ordering::Relaxed));
        if !left.is_empty()
            && let Err(error) = core.propose(left).await
        {
            tracing::warn!(%error, "the last deeds are not in the audit: this replica ends");
        }
    }

    /// Waits for something to record, and for what comes with it. Nothing more is
    /// to be written when it is told to stop, or nobody notes any more.
    async fn gather(&mut self, gathered: &mut Gathered, shutdown: &CancellationToken) -> bool {
        if gathered.deeds.is_empty() {
            let first = tokio::select! {
                biased;
                // What is left then goes together.
                () = shutdown.cancelled() => None,
                note = self.notes.recv() => note,
            };
            let Some(first) = first else { return false };
            gathered.add(first);
        }
        let enough = async {
            tokio::select! {
                () = sleep(GATHER) => {}
                () = shutdown.cancelled() => {}
            }
        };
        self.gathering(gathered, enough).await;
        !shutdown.is_cancelled()
    }

    /// Gathers what comes until something ends.
    async fn gathering<T>(&mut self, gathered: &mut Gathered, until: impl Future<Output = T>) -> T {
        tokio::pin!(until);
        loop {
            tokio::select! {
                biased;
                ended = &mut until => return ended,
                Some(note) = self.notes.recv() => gathered.add(note),
            }
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
        assert_eq!(results(gathered.take(ReplicaId(1), 0)), ["refused (3 times)", "refused"]);
        assert!(gathered.take(ReplicaId(1), 0).is_empty());
    }

    #[test]
    fn one_client_does_not_push_out_what_others_did() {
        let mut gathered = Gathered::default();
        let of = |actor: Actor, target: u32| {
            let mut note = note_of("a", &target.to_string());
            note.deed.actor = actor;
            note
        };
        let client = |name: &str| Actor::Client(crate::domain::ClientId::new(name).expect("valid"));
        for number in 0..1_000 {
            gathered.add(of(client("busy"), number));
        }
        gathered.add(of(client("other"), 1));
        gathered.add(of(Actor::Operator, 1));
        let commands = gathered.take(ReplicaId(1), 5);
        let count = |actor: &Actor| {
            let is = |command: &&Command| matches!(command, Command::Audited { deed, .. } if deed.actor == *actor);
            commands.iter().filter(is).count()
        };
        assert_eq!([count(&client("busy")), count(&client("other")), count(&Actor::Operator)], [OF_ONE_MAX + 1, 1, 1]);
        let results = results(commands);
        assert!(
            results.iter().any(|result| result.starts_with(&format!("{} further", 1_000 - OF_ONE_MAX))),
            "of the busy one"
        );
        assert!(results.iter().any(|result| result.starts_with("5 further")), "those that were lost");
    }

    #[test]
    fn strangers_do_not_push_out_hosts_that_do_not_say_who_they_are() {
        let mut gathered = Gathered::default();
        for number in 0..100 {
            gathered.add(note(&number.to_string()));
            let mut connecting = note_of("host", &number.to_string());
            connecting.result = "the user may connect".to_owned();
            gathered.add(connecting);
        }
        let results = results(gathered.take(ReplicaId(1), 0));
        assert_eq!(results.iter().filter(|result| *result == "the user may connect").count(), 100);
        assert_eq!(results.iter().filter(|result| *result == "refused").count(), STRANGERS_MAX);
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
        let commands = gathered.take(ReplicaId(1), 0);
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
        assert_eq!(results(gathered.take(ReplicaId(1), 0)), ["refused (2 times)", "refused"]);
    }

    #[test]
    fn a_flood_from_everywhere_makes_few_records() {
        let mut gathered = Gathered::default();
        for number in 0..10_000 {
            gathered.add(note(&number.to_string()));
        }
        let results = results(gathered.take(ReplicaId(1), 0));
        assert_eq!(results.len(), STRANGERS_MAX + 1);
        assert!(results[STRANGERS_MAX].starts_with("9984 further deeds"));
    }
}
