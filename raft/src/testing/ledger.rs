//! A small state machine that remembers what was applied, how often, and when.

use crate::ids::{Stamp, UnixMillis};
use crate::machine::{CodecError, StateMachine};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

/// Sums up amounts and watches that nothing is lost, doubled or out of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// How often each id was applied.
    pub seen: Seen,
    /// The sum of all amounts.
    pub total: u64,
    /// How often time moved.
    pub advanced: u64,
    /// How many deadlines fired.
    pub fired: u64,
    /// The last stamp's moment.
    pub at: UnixMillis,
    /// Whether a stamp ever ran backwards.
    pub ran_backwards: bool,
    /// The next deadline.
    pub deadline: Option<UnixMillis>,
    /// Whether the deadline stays when it has fired.
    pub stuck: bool,
    /// How long its snapshot takes to be read, in milliseconds.
    pub read_ms: u64,
    /// How this ledger goes wrong. Not replicated: one replica may be given another than the rest.
    pub skew: Skew,
}

/// How often each id was applied. Costs little to copy, also with a million of them: copies share
/// all groups of ids but those that change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen(BTreeMap<u64, Arc<BTreeMap<u64, u32>>>);

impl Seen {
    /// Neighbours that are copied together.
    const GROUP: u64 = 1_024;

    /// Counts an id once more; how often it came by now.
    fn count(&mut self, id: u64) -> u32 {
        let times = Arc::make_mut(self.0.entry(id / Self::GROUP).or_default()).entry(id).or_default();
        *times += 1;
        *times
    }

    fn iter(&self) -> impl Iterator<Item = (&u64, &u32)> {
        self.0.values().flat_map(|group| group.iter())
    }

    /// Whether an id ever came.
    pub fn contains(&self, id: u64) -> bool {
        self.0.get(&(id / Self::GROUP)).is_some_and(|group| group.contains_key(&id))
    }

    /// All ids, in order.
    pub fn keys(&self) -> impl Iterator<Item = &u64> {
        self.iter().map(|(id, _)| id)
    }

    /// How often they came, in the order of ids.
    pub fn values(&self) -> impl Iterator<Item = &u32> {
        self.iter().map(|(_, times)| times)
    }

    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.0.values().map(|group| group.len()).sum()
    }

    /// Whether none ever came.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u64, u32)> for Seen {
    fn from_iter<T: IntoIterator<Item = (u64, u32)>>(all: T) -> Self {
        let mut groups: BTreeMap<u64, BTreeMap<u64, u32>> = BTreeMap::new();
        for (id, times) in all {
            groups.entry(id / Self::GROUP).or_default().insert(id, times);
        }
        Self(groups.into_iter().map(|(number, group)| (number, Arc::new(group))).collect())
    }
}

/// How a ledger breaks the promise to be deterministic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Skew {
    /// It does not.
    #[default]
    None,
    /// It counts one too many with each amount, and says so in its outcomes.
    Outcomes,
    /// It counts how often time moved in another way, which shows in nothing but its state.
    State,
}

/// What the ledger is told.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Command {
    /// Adds `amount` under `id`.
    Add {
        /// Any id; counted how often it comes.
        id: u64,
        /// What is added.
        amount: u64,
        /// Makes the command as long as wanted.
        padding: Vec<u8>,
    },
    /// Sets the next deadline, in milliseconds.
    Deadline {
        /// When.
        at: u64,
        /// Whether it stays when it has fired.
        stuck: bool,
    },
    /// Panics: a broken state machine.
    Panic,
    /// Encodes to bytes that cannot be decoded: a newer version.
    Unreadable,
    /// Makes snapshots take so long to be read.
    SlowToRead {
        /// In milliseconds.
        read_ms: u64,
    },
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The sum afterwards.
    pub total: u64,
    /// How often the id was seen, this time included.
    pub times: u32,
}

/// What the observer is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Effect {
    /// An amount was added under this id.
    Added(u64),
    /// A deadline fired.
    Fired(UnixMillis),
}

type Parts = (BTreeMap<u64, u32>, u64, u64, u64, u64, bool, Option<u64>, bool, u64);

impl StateMachine for Ledger {
    type Command = Command;
    type Outcome = Outcome;
    type Effect = Effect;

    fn encode_command(command: &Command) -> Vec<u8> {
        if *command == Command::Unreadable {
            return vec![0xff];
        }
        bincode::encode_to_vec(command, bincode::config::standard()).expect("writing plain data to memory cannot fail")
    }

    fn decode_command(bytes: &[u8]) -> Result<Command, CodecError> {
        let (command, _) = bincode::decode_from_slice(bytes, bincode::config::standard())?;
        Ok(command)
    }

    fn advance(&mut self, stamp: Stamp, effects: &mut Vec<Effect>) {
        self.ran_backwards |= stamp.at < self.at;
        self.at = stamp.at;
        self.advanced += if self.skew == Skew::State { 2 } else { 1 };
        if let Some(deadline) = self.deadline.filter(|deadline| *deadline <= stamp.at) {
            self.fired += 1;
            effects.push(Effect::Fired(deadline));
            if !self.stuck {
                self.deadline = None;
            }
        }
    }

    fn apply(&mut self, _stamp: Stamp, command: Command, effects: &mut Vec<Effect>) -> Outcome {
        match command {
            Command::Add { id, amount, .. } => {
                self.total += amount + u64::from(self.skew == Skew::Outcomes);
                let times = self.seen.count(id);
                effects.push(Effect::Added(id));
                Outcome { total: self.total, times }
            }
            Command::Deadline { at, stuck } => {
                self.deadline = Some(UnixMillis(at));
                self.stuck = stuck;
                Outcome { total: self.total, times: 0 }
            }
            Command::SlowToRead { read_ms } => {
                self.read_ms = read_ms;
                Outcome { total: self.total, times: 0 }
            }
            Command::Panic | Command::Unreadable => panic!("a broken state machine"),
        }
    }

    fn next_deadline(&self) -> Option<UnixMillis> {
        self.deadline
    }

    fn write_snapshot(&self, mut out: &mut dyn Write) -> io::Result<()> {
        let parts: Parts = (
            self.seen.iter().map(|(id, times)| (*id, *times)).collect(),
            self.total,
            self.advanced,
            self.fired,
            self.at.0,
            self.ran_backwards,
            self.deadline.map(|at| at.0),
            self.stuck,
            self.read_ms,
        );
        bincode::encode_into_std_write(parts, &mut out, bincode::config::standard()).map_err(io::Error::other)?;
        Ok(())
    }

    fn read_snapshot(mut input: &mut dyn Read) -> Result<Self, CodecError> {
        let parts: Parts = bincode::decode_from_std_read(&mut input, bincode::config::standard())?;
        let (seen, total, advanced, fired, at, ran_backwards, deadline, stuck, read_ms) = parts;
        std::thread::sleep(std::time::Duration::from_millis(read_ms));
        Ok(Self {
            seen: seen.into_iter().collect(),
            total,
            advanced,
            fired,
            at: UnixMillis(at),
            ran_backwards,
            deadline: deadline.map(UnixMillis),
            stuck,
            read_ms,
            skew: Skew::None,
        })
    }
}
