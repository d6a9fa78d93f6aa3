//! The load of the power-cut test, and what must be left of it.
//!
//! Writer and judge make up the same steps from a seed. The writer reports each
//! step that the store acknowledged. What is found after the cut must be the
//! state after the last step reported, or after a later one, or half-way
//! between two later ones; nothing else.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use berth_storage::{Done, Entry, Log, Options, Snapshot, Store};

use crate::random::Random;

/// Steps that may wait for their acknowledgement.
pub const STEPS_IN_FLIGHT_MAX: u64 = 64;
/// Entries after which a snapshot is made and the older half is purged: often
/// with even seeds, so that segments are used again; rarely with odd ones, so
/// that the file grows and no snapshot's sync covers up for a missing one.
fn entries_max(seed: u64) -> u64 {
    if seed.is_multiple_of(2) { 600 } else { 8000 }
}

/// How both sides open the store.
pub fn options() -> Options {
    Options { cache_bytes: 32 << 20, window_bytes: 1 << 20, ..Options::default() }
}

/// One step of the load. An entry's term is the number of the step it came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Appends entries from `start` on, of these lengths.
    Append {
        /// Index of the first one.
        start: u64,
        /// Payload length of each.
        lengths: Vec<usize>,
    },
    /// Saves the vote.
    Vote,
    /// Drops the entry at this index and all after it.
    Truncate(u64),
    /// Makes a snapshot of this index.
    Snapshot(u64),
    /// Purges through this index.
    Purge(u64),
}

/// What decides the next step: known to both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The first index not purged.
    pub first: u64,
    /// The next index to be appended.
    pub next: u64,
    /// Index of the last snapshot.
    pub snapshot: Option<u64>,
}

impl Shape {
    /// The shape of an open store.
    pub fn of(store: &Store) -> anyhow::Result<Self> {
        let log = store.log();
        let first = log.purged().map_or(0, |(index, _)| index + 1);
        Ok(Self {
            first,
            next: log.last().map_or(first, |(index, _)| index + 1),
            snapshot: store.snapshots().current()?.map(|snapshot| snapshot.index()),
        })
    }

    /// Step `number` of the load of `seed`.
    pub fn step(self, seed: u64, number: u64) -> Step {
        let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9));
        let unpurged = self.first.max(self.next.saturating_sub(entries_max(seed) / 2));
        if self.next - self.first > entries_max(seed) {
            return match self.snapshot {
                Some(snapshot) if snapshot + 1 >= unpurged => Step::Purge(unpurged - 1),
                _ => Step::Snapshot(self.next - 1),
            };
        }
        // Never into what a snapshot covers.
        let floor = self.first.max(self.snapshot.map_or(0, |index| index + 1));
        match random.below(20) {
            0..=2 => Step::Vote,
            3 if self.next > floor => {
                let back = 1 + random.below((self.next - floor).min(20));
                Step::Truncate(self.next - back)
            }
            _ => Step::Append { start: self.next, lengths: lengths(&mut random) },
        }
    }

    /// The shape after a step.
    #[must_use]
    pub fn after(mut self, step: &Step) -> Self {
        match step {
            Step::Append { start, lengths } => self.next = start + lengths.len() as u64,
            Step::Vote => {}
            Step::Truncate(index) => self.next = *index,
            Step::Snapshot(index) => self.snapshot = Some(*index),
            Step::Purge(index) => self.first = index + 1,
        }
        self
    }
}

fn lengths(random: &mut Random) -> Vec<usize> {
    let (count, limit) = match random.below(20) {
        0..=11 => (1 + random.below(16), 2 << 10),
        12..=17 => (1 + random.below(4), 60 << 10),
        18 => return vec![1 << 20],
        _ => (1 + random.below(100), 100),
    };
    (0..count).map(|_| usize::try_from(random.below(limit)).unwrap_or_default()).collect()
}

/// The entry that step `number` puts at `index`.
pub fn entry(seed: u64, number: u64, index: u64, length: usize) -> Entry {
    let mut random = Random::new(seed ^ (number << 32) ^ index);
    let mut payload = vec![0; length];
    for word in payload.chunks_mut(8) {
        let bytes = random.next().to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
    Entry { index, term: number, payload }
}

/// The content of the snapshot of `index`.
fn snapshot_content(seed: u64, index: u64) -> Vec<u8> {
    let length = 100_000 + usize::try_from(index % 13).unwrap_or_default() * 50_000;
    entry(seed, 0, index, length).payload
}

/// Puts load on the store until it fails or the process is killed. `report` is
/// called with the number of each step, after it was acknowledged.
pub fn put_load(
    store: &Store,
    seed: u64,
    first_step: u64,
    report: impl Fn(u64) + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let log = store.log();
    let report = Arc::new(report);
    let flight = Arc::new(Flight::default());
    let mut shape = Shape::of(store)?;
    for number in first_step.. {
        let step = shape.step(seed, number);
        flight.take_off(STEPS_IN_FLIGHT_MAX)?;
        let landing = Arc::clone(&flight);
        let reporter = Arc::clone(&report);
        let done: Done = Box::new(move |result| {
            if result.is_ok() {
                reporter(number);
            }
            landing.land(result.is_ok());
        });
        match &step {
            Step::Append { start, lengths } => {
                let entries =
                    (*start..).zip(lengths).map(|(index, length)| entry(seed, number, index, *length)).collect();
                log.append(entries, done)?;
                log.save_committed(start.to_le_bytes().to_vec());
            }
            Step::Vote => log.save_vote(number.to_le_bytes().to_vec(), done),
            Step::Truncate(index) => log.truncate_from(*index, done),
            Step::Purge(index) => log.purge_through(*index, index.to_le_bytes().to_vec(), done),
            Step::Snapshot(index) => {
                // Steps are reported in order: those before it come first.
                flight.all_landed()?;
                let mut writer = store.snapshots().begin()?;
                writer.write_all(&snapshot_content(seed, *index))?;
                writer.finish(index.to_le_bytes(), *index)?;
                done(Ok(()));
            }
        }
        shape = shape.after(&step);
    }
    Ok(())
}

/// Counts the steps that wait for their acknowledgement.
#[derive(Debug, Default)]
struct Flight {
    /// How many, and whether one has failed.
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

impl Flight {
    fn take_off(&self, limit: u64) -> anyhow::Result<()> {
        self.wait_below(limit)?;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        Ok(())
    }

    /// Waits until only the step that asks is left.
    fn all_landed(&self) -> anyhow::Result<()> {
        self.wait_below(2)
    }

    fn wait_below(&self, limit: u64) -> anyhow::Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self
            .changed
            .wait_while(state, |(count, failed)| *count >= limit && !*failed)
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(!state.1, "a write failed");
        Ok(())
    }

    fn land(&self, whole: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= 1;
        state.1 |= !whole;
        self.changed.notify_all();
    }
}

/// What the judge expects.
#[derive(Debug, Clone)]
pub struct Expected {
    seed: u64,
    shape: Shape,
    /// Step and length of each live entry.
    entries: BTreeMap<u64, (u64, usize)>,
    vote: Option<u64>,
    /// The next step.
    step: u64,
}

impl Expected {
    /// Before the first step.
    pub fn new(seed: u64) -> Self {
        Self { seed, shape: Shape { first: 0, next: 0, snapshot: None }, entries: BTreeMap::new(), vote: None, step: 1 }
    }

    /// The next step's number.
    pub fn next_step(&self) -> u64 {
        self.step
    }

    /// Number of live entries.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Judges `store`, found after a cut: everything through step `acknowledged`
    /// must be there. Answers with the state to go on from.
    pub fn judge(self, store: &Store, acknowledged: Option<u64>) -> anyhow::Result<Self> {
        let found = Found::read(store, self.seed)?;
        let mut state = self;
        while acknowledged.is_some_and(|acknowledged| state.step <= acknowledged) {
            state = state.advance();
        }
        let mut reasons = Vec::new();
        for _ in 0..=STEPS_IN_FLIGHT_MAX + 1 {
            match state.compare(&found) {
                Ok(whole) => return Ok(whole),
                Err(reason) => reasons.push(format!("before step {}: {reason:#}", state.step)),
            }
            state = state.advance();
        }
        let first = reasons.first().map_or("", String::as_str);
        bail!(
            "what was found is no state after step {acknowledged:?}: {first}; found {} entries, {:?} to {:?}, vote {:?}, purged {:?}, snapshot {:?}",
            found.entries.len(),
            found.entries.first(),
            found.entries.last(),
            found.vote,
            found.purged,
            found.snapshot,
        )
    }

    fn advance(mut self) -> Self {
        let number = self.step;
        let step = self.shape.step(self.seed, number);
        match &step {
            Step::Append { start, lengths } => {
                let entries = (*start..).zip(lengths).map(|(index, length)| (index, (number, *length)));
                self.entries.extend(entries);
            }
            Step::Vote => self.vote = Some(number),
            Step::Truncate(index) => drop(self.entries.split_off(index)),
            Step::Snapshot(_) => {}
            Step::Purge(index) => self.entries = self.entries.split_off(&(index + 1)),
        }
        self.shape = self.shape.after(&step);
        self.step += 1;
        self
    }

    /// Compares with this state, or this one with a part of the next step done.
    fn compare(&self, found: &Found) -> anyhow::Result<Self> {
        let next = self.clone().advance();
        let step = self.shape.step(self.seed, self.step);
        let mut whole = self.clone();
        // A snapshot becomes visible before it is acknowledged.
        if let Step::Snapshot(index) = step
            && found.snapshot == Some(index)
        {
            whole = next.clone();
        }
        ensure!(found.vote == whole.vote, "the vote is {:?}, not {:?}", found.vote, whole.vote);
        let purged = whole.shape.first.checked_sub(1);
        ensure!(found.purged == purged, "purged is {:?}, not {purged:?}", found.purged);
        ensure!(
            found.snapshot == whole.shape.snapshot,
            "the snapshot is {:?}, not {:?}",
            found.snapshot,
            whole.shape.snapshot
        );
        let length = found.entries.len();
        let expected: Vec<_> = match step {
            // Some of its entries may be there already.
            Step::Append { .. } if length > whole.entries.len() => next.entries.iter().take(length).collect(),
            // Some of the entries it drops may be gone already.
            Step::Truncate(index) if length < whole.entries.len() => {
                ensure!(length >= next.entries.len(), "entries before {index} are gone");
                whole.entries.iter().take(length).collect()
            }
            _ => whole.entries.iter().collect(),
        };
        ensure!(expected.len() == length, "{length} entries, not {}", expected.len());
        for ((index, (step, _)), found) in expected.iter().zip(&found.entries) {
            ensure!((**index, *step) == *found, "entry {index} of step {step} is missing, {found:?} stands there");
        }
        // Later steps follow from what is there, so nothing half done may stay.
        let entries = expected.into_iter().map(|(index, entry)| (*index, *entry)).collect();
        whole.entries = entries;
        whole.shape.next = found.next;
        whole.step = next.step + STEPS_IN_FLIGHT_MAX;
        if let Some(committed) = found.committed {
            ensure!(
                committed < whole.shape.next + STEPS_IN_FLIGHT_MAX * 100,
                "committed is {committed}, far beyond the log"
            );
        }
        Ok(whole)
    }
}

/// What is in a store, with every byte compared to what was written.
#[derive(Debug)]
struct Found {
    /// Index and step of each entry.
    entries: Vec<(u64, u64)>,
    next: u64,
    vote: Option<u64>,
    purged: Option<u64>,
    committed: Option<u64>,
    snapshot: Option<u64>,
}

impl Found {
    fn read(store: &Store, seed: u64) -> anyhow::Result<Self> {
        let log = store.log();
        let shape = Shape::of(store)?;
        let snapshot = store.snapshots().current()?;
        if let Some(snapshot) = &snapshot {
            check_snapshot(snapshot, seed)?;
        }
        let purged = log.purged();
        if let Some((index, marker)) = &purged {
            ensure!(number(marker)? == *index, "the purged marker is not its index");
        }
        Ok(Self {
            entries: check_entries(&log, seed, shape)?,
            next: shape.next,
            vote: log.vote().map(|vote| number(&vote)).transpose()?,
            purged: purged.map(|(index, _)| index),
            committed: log.committed().map(|committed| number(&committed)).transpose()?,
            snapshot: snapshot.map(|snapshot| snapshot.index()),
        })
    }
}

fn number(marker: &[u8]) -> anyhow::Result<u64> {
    Ok(u64::from_le_bytes(marker.try_into().context("a marker of other than 8 bytes")?))
}

fn check_entries(log: &Log, seed: u64, shape: Shape) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut next = shape.first;
    while next < shape.next {
        let entries = log.read(next..shape.next, 4 << 20)?;
        ensure!(!entries.is_empty(), "entry {next} cannot be read");
        for read in entries {
            let written = entry(seed, read.term, read.index, read.payload.len());
            ensure!(read == written, "entry {} holds other bytes", read.index);
            found.push((read.index, read.term));
            next += 1;
        }
    }
    Ok(found)
}

fn check_snapshot(snapshot: &Snapshot, seed: u64) -> anyhow::Result<()> {
    let index = snapshot.index();
    ensure!(number(snapshot.meta())? == index, "the snapshot's meta is not its index");
    let mut content = Vec::new();
    snapshot.open().read_to_end(&mut content)?;
    ensure!(content == snapshot_content(seed, index), "the snapshot of {index} holds other bytes");
    Ok(())
}
