//! A simulated disk, for stores that live in memory: the twin of a folder on a
//! real one, with the faults of real disks on demand.
//!
//! A store on it ([`Store::in_memory`](crate::Store::in_memory)) is the same
//! code as on a real disk: the same queue, groups, records and checks. Replaced
//! are what is below them (sled's tree by a `table`, files by `files`) and
//! the thread that writes: the disk's [`Pace`] says when the writer gets to each
//! step. So nothing here waits, and what happens is a function of the calls.
//!
//! What a disk keeps:
//! - when a process dies ([`Disk::kill`]), everything that was written,
//! - when the power is cut ([`Disk::cut_power`]), everything that was synced; of
//!   what was not, whatever the caller chooses among what a real disk may leave:
//!   of a table a beginning of its batches, of a file any of its writes, each
//!   whole or cut off; of names those before or after,
//! - and what damage makes of it ([`Disk::damage`]).

mod files;
mod pace;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use files::Content;
pub(crate) use files::{Handle, Mount};
pub(crate) use pace::Driver;
pub use pace::{Pace, Step, Work};
use table::Table;
pub(crate) use table::TableHandle;

use crate::log::record;

/// Free at the beginning, in bytes.
const FREE_BYTES: u64 = 1 << 40;

/// See the module. Clones are the same disk.
#[derive(Clone, Default)]
pub struct Disk {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Disk").finish_non_exhaustive()
    }
}

/// What of the disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Writing to a file or to the log's database.
    Write,
    /// Making something durable. What is on the disk is unknown afterwards.
    Sync,
    /// Reading.
    Read,
}

/// What becomes of a disk between two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// A flipped bit in an entry of the log.
    Entry,
    /// A flipped bit in the vote.
    Vote,
    /// A flipped bit in the current snapshot.
    Snapshot,
    /// The log's database is gone.
    LogLost,
    /// The current snapshot is gone. No check can notice that: a folder without
    /// a snapshot is what a young store looks like.
    SnapshotLost,
    /// The vote is gone, as if it had never been written. No check can notice.
    VoteForgotten,
}

/// Where a random choice is to be made: called with a number above 0, answers
/// with one below it.
pub type Choose<'a> = &'a mut dyn FnMut(u64) -> u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Folder,
    File(u64),
    Table(u64),
}

type Names = BTreeMap<PathBuf, Node>;

struct State {
    /// Number of the mount that counts; what earlier ones do has no effect.
    generation: u64,
    is_mounted: bool,
    /// Names as processes see them, and as they are after a power cut.
    names: Names,
    durable_names: Names,
    files: BTreeMap<u64, Content>,
    tables: BTreeMap<u64, Table>,
    last_node: u64,
    free_bytes: u64,
    syncs_are_lies: bool,
    /// Operations that are to fail, and how many times.
    failing: BTreeMap<Operation, u32>,
    /// How many have failed.
    failures: u64,
    pace: Option<Arc<dyn Pace>>,
    /// Writers that wait for room.
    waiting: Vec<Work>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            generation: 0,
            is_mounted: false,
            names: Names::new(),
            durable_names: Names::new(),
            files: BTreeMap::new(),
            tables: BTreeMap::new(),
            last_node: 0,
            free_bytes: FREE_BYTES,
            syncs_are_lies: false,
            failing: BTreeMap::new(),
            failures: 0,
            pace: None,
            waiting: Vec::new(),
        }
    }
}

impl Disk {
    /// An empty disk, on which everything is done at once.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who says when a writer gets to work; `None` for at once. Counts for
    /// stores that are opened from now on, too.
    pub fn set_pace(&self, pace: Option<Arc<dyn Pace>>) {
        self.state().pace = pace;
    }

    /// Sets how much room there is. Writers that wait for some get to work.
    pub fn set_free_bytes(&self, bytes: u64) {
        let mut state = self.state();
        state.free_bytes = bytes;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Work::run);
    }

    /// Makes the next `times` of an operation fail with an I/O error.
    pub fn fail(&self, operation: Operation, times: u32) {
        self.state().failing.insert(operation, times);
    }

    /// How many operations have failed that way.
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    /// Makes a disk of it whose syncs are reported as done and are not.
    pub fn set_lying(&self, lies: bool) {
        self.state().syncs_are_lies = lies;
    }

    /// The process that has a store open here ends at this instant, whatever it
    /// is doing. What it still does has no effect.
    pub fn kill(&self) {
        let mut state = self.state();
        state.generation += 1;
        state.is_mounted = false;
        state.waiting.clear();
    }

    /// Cuts the power: as [`kill`](Self::kill), and what was not synced may be
    /// lost. Answers whether anything was.
    pub fn cut_power(&self, choose: Choose<'_>) -> bool {
        self.kill();
        let mut state = self.state();
        let mut lost = false;
        let State { names, durable_names, files, tables, .. } = &mut *state;
        lost |= settle_names(names, durable_names, choose);
        for content in files.values_mut() {
            lost |= content.cut_power(choose);
        }
        for table in tables.values_mut() {
            lost |= table.cut_power(choose);
        }
        lost
    }

    /// Damages what is there; false if there is nothing of the kind. To be used
    /// while no store is open here.
    pub fn damage(&self, damage: Damage, choose: Choose<'_>) -> bool {
        let mut state = self.state();
        let tables = state.tables_in_use();
        let table = tables.first().and_then(|id| state.tables.get_mut(id));
        match damage {
            Damage::Entry => table.is_some_and(|table| table.flip_bit(record::is_entry_key, choose)),
            Damage::Vote => table.is_some_and(|table| table.flip_bit(|key| key == record::VOTE_KEY, choose)),
            Damage::VoteForgotten => table.is_some_and(|table| table.forget(record::VOTE_KEY)),
            Damage::LogLost => {
                let known = state.names.len();
                state.names.retain(|_, node| !matches!(node, Node::Table(_)));
                state.durable_names.retain(|_, node| !matches!(node, Node::Table(_)));
                state.names.len() < known
            }
            Damage::Snapshot => {
                let snapshot = state.newest_snapshot().map(|(_, id)| id);
                snapshot.and_then(|id| state.files.get_mut(&id)).is_some_and(|content| content.flip_bit(choose))
            }
            Damage::SnapshotLost => match state.newest_snapshot() {
                Some((path, _)) => {
                    state.durable_names.remove(&path);
                    state.names.remove(&path).is_some()
                }
                None => false,
            },
        }
    }

    /// A copy of all that a power cut would leave if nothing more survived than
    /// what was synced.
    #[must_use]
    pub fn synced_copy(&self) -> Self {
        let copy = Self::new();
        {
            let (from, mut to) = (self.state(), copy.state());
            to.names = from.durable_names.clone();
            to.durable_names = from.durable_names.clone();
            to.files = from.files.iter().map(|(id, content)| (*id, content.synced_copy())).collect();
            to.tables = from.tables.iter().map(|(id, table)| (*id, table.synced_copy())).collect();
            to.last_node = from.last_node;
        }
        copy
    }

    /// Changes a file by hand, for a test.
    #[cfg(test)]
    pub(crate) fn change_file(&self, path: &std::path::Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let Some(Node::File(id)) = state.names.get(path).copied() else { panic!("there is no {}", path.display()) };
        state.files.get_mut(&id).expect("what has a name is there").change(change);
    }

    /// Removes a file by hand, for a test.
    #[cfg(test)]
    pub(crate) fn remove_file(&self, path: &std::path::Path) {
        self.state().names.remove(path).expect("it is there");
    }

    /// What is in a folder, for a test.
    #[cfg(test)]
    pub(crate) fn paths_in(&self, folder: &std::path::Path) -> Vec<PathBuf> {
        self.state().names.keys().filter(|path| path.parent() == Some(folder)).cloned().collect()
    }

    /// Opens the disk for one store; `None` while another one has it.
    pub(crate) fn mount(&self) -> Option<Mount> {
        let mut state = self.state();
        if std::mem::replace(&mut state.is_mounted, true) {
            return None;
        }
        state.generation += 1;
        Some(Mount::new(self.clone(), state.generation))
    }
}

impl State {
    fn next_node(&mut self) -> u64 {
        self.last_node += 1;
        self.last_node
    }

    /// Fails if it is time to.
    fn pass(&mut self, operation: Operation) -> io::Result<()> {
        let Some(times) = self.failing.get_mut(&operation).filter(|times| **times > 0) else { return Ok(()) };
        *times -= 1;
        self.failures += 1;
        Err(io::Error::other("the disk answers with an input/output error"))
    }

    fn tables_in_use(&self) -> Vec<u64> {
        let tables = self.names.values();
        tables.filter_map(|node| if let Node::Table(id) = node { Some(*id) } else { None }).collect()
    }

    fn newest_snapshot(&self) -> Option<(PathBuf, u64)> {
        let mut snapshots = self.names.iter().filter_map(|(path, node)| match node {
            Node::File(id) if path.extension().is_some_and(|extension| extension == "snapshot") => {
                Some((path.clone(), *id))
            }
            _ => None,
        });
        snapshots.next_back()
    }
}

/// Of the changes of names that were not synced each may survive or not. One that
/// was renamed stands under one of its two names.
fn settle_names(names: &mut Names, durable: &mut Names, choose: Choose<'_>) -> bool {
    let is_new = |(path, node): &(&PathBuf, &Node)| durable.get(*path) != Some(*node);
    let given: Vec<(PathBuf, Node)> = names.iter().filter(is_new).map(|(path, node)| (path.clone(), *node)).collect();
    let is_gone =
        |(path, node): &(&PathBuf, &Node)| !names.contains_key(*path) && names.values().all(|other| other != *node);
    let removed: Vec<PathBuf> = durable.iter().filter(is_gone).map(|(path, _)| path.clone()).collect();
    let mut lost = false;
    for (path, node) in given {
        if choose(2) == 0 {
            lost = true;
            continue;
        }
        durable.retain(|_, other| node == Node::Folder || *other != node);
        durable.insert(path, node);
    }
    for path in removed {
        if choose(2) == 0 {
            lost = true;
        } else {
            durable.remove(&path);
        }
    }
    names.clone_from(durable);
    lost
}
