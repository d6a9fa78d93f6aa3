//! What was asked of the agent and how it ended, on disk.
//!
//! Instructions arrive at least once; their effect is at most once, also when
//! the agent is killed between doing and answering. So the ledger has an
//! instruction on disk before it is carried out, and its outcome before it is
//! answered. An entry leaves when the broker has the answer in its log.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::InstructionId;
use crate::domain::instruction::{Action, Answer, Instruction};

use crate::files::{self, FileError};

/// Version of the entries' format.
const VERSION: u32 = 1;

/// Largest entry in bytes; a permissions file is the bulk of it.
const ENTRY_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Most entries. The broker settles answers as they come, so this many means
/// that something is broken; further instructions are refused, not forgotten.
pub(crate) const ENTRIES_MAX: usize = 20_000;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// An entry cannot be understood; nothing is thrown away silently.
    #[error(
        "the ledger entry {} cannot be understood ({problem}); close the sessions of this host and remove the file",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There are as many entries as there may be.
    #[error("the ledger holds {ENTRIES_MAX} instructions that the broker has not settled")]
    Full,
}

/// An instruction and its fate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    version: u32,
    instruction: Instruction,
    /// `None` while it runs.
    answer: Option<Answer>,
}

/// What to do with an instruction that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Carry it out: it is in the ledger now.
    Run,
    /// It is being carried out: the answer will follow.
    Running,
    /// It was carried out: this is the answer.
    Answered(Answer),
}

/// The ledger. Methods that write block until the disk has it.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// `None` keeps it in memory: for desktops that end with the agent.
    folder: Option<PathBuf>,
    entries: BTreeMap<InstructionId, Entry>,
}

impl Ledger {
    /// Opens the ledger in a folder, or an empty one in memory.
    pub(crate) fn open(folder: Option<&Path>) -> Result<Self, Error> {
        let mut entries = BTreeMap::new();
        let Some(folder) = folder else { return Ok(Self { folder: None, entries }) };
        files::make_folder(folder, 0o700)?;
        let listing = fs::read_dir(folder).map_err(FileError::of("list", folder))?;
        for found in listing {
            let path = found.map_err(FileError::of("list", folder))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => {}
                // Left by a crash while it was written beside: never counted.
                Some("new") => {
                    files::remove(&path)?;
                    continue;
                }
                _ => continue,
            }
            let text = files::read_text(&path, ENTRY_BYTES_MAX).map_err(FileError::of("read", &path))?;
            let damaged = |problem: String| Error::Damaged { path: path.clone(), problem };
            let entry: Entry = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
            if entry.version != VERSION {
                return Err(damaged(format!("version {} is not {VERSION}", entry.version)));
            }
            entries.insert(entry.instruction.id, entry);
        }
        Ok(Self { folder: Some(folder.to_path_buf()), entries })
    }

    /// Whether writing waits for a disk.
    pub(crate) const fn is_on_disk(&self) -> bool {
        self.folder.is_some()
    }

    /// Takes an instruction in, once.
    ///
    /// When the disk does not take it, a create is answered as failed: it could
    /// be done twice after a crash. The others do no harm when repeated.
    ///
    /// A session that was closed by a later instruction is not made again by an
    /// earlier one that arrives behind it: such a create is answered as failed.
    pub(crate) fn admit(&mut self, instruction: &Instruction) -> Result<Admission, Error> {
        if let Some(entry) = self.entries.get(&instruction.id) {
            return Ok(entry.answer.clone().map_or(Admission::Running, Admission::Answered));
        }
        if self.entries.len() >= ENTRIES_MAX {
            return Err(Error::Full);
        }
        let answer = self.closed_later(instruction).map(|closing| Answer::Failed {
            reason: format!("superseded: instruction {closing} closed the session already"),
        });
        let mut entry = Entry { version: VERSION, instruction: instruction.clone(), answer };
        if let Err(error) = self.write(&entry) {
            tracing::error!(instruction = %instruction.id, %error, "an instruction cannot be written down");
            if matches!(instruction.action, Action::CreateSession { .. }) {
                entry.answer = Some(Answer::Failed { reason: format!("the agent cannot write its ledger: {error}") });
            }
        }
        let answer = entry.answer.clone();
        self.entries.insert(instruction.id, entry);
        Ok(answer.map_or(Admission::Run, Admission::Answered))
    }

    fn closed_later(&self, instruction: &Instruction) -> Option<InstructionId> {
        let Action::CreateSession { session, .. } = &instruction.action else { return None };
        self.entries
            .range(instruction.id.next()..)
            .find(|(_, entry)| {
                matches!(&entry.instruction.action, Action::CloseSession { session: closed } if closed == session)
            })
            .map(|(id, _)| *id)
    }

    /// Writes down how an instruction ended. One that was forgotten in between
    /// stays forgotten.
    pub(crate) fn finish(&mut self, id: InstructionId, answer: &Answer) -> Result<(), Error> {
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        entry.answer = Some(answer.clone());
        let entry = entry.clone();
        self.write(&entry)
    }

    /// Forgets an instruction: its answer is in the broker's log.
    fn forget(&mut self, id: InstructionId) -> Result<(), Error> {
        let folder = self.folder.clone();
        if let (Some(_), Some(folder)) = (self.entries.remove(&id), folder) {
            files::remove(&file_of(&folder, id))?;
        }
        Ok(())
    }

    /// The broker has the answer: forgets it. One that still runs stays, so
    /// that a repetition does not run it again.
    pub(crate) fn settle(&mut self, id: InstructionId) -> Result<(), Error> {
        if self.entries.get(&id).is_some_and(|entry| entry.answer.is_some()) { self.forget(id) } else { Ok(()) }
    }

    /// Forgets what the broker no longer waits for and which is not running.
    pub(crate) fn forget_below(&mut self, oldest: InstructionId) -> Result<(), Error> {
        let done: Vec<InstructionId> =
            self.entries.range(..oldest).filter(|(_, entry)| entry.answer.is_some()).map(|(id, _)| *id).collect();
        done.into_iter().try_for_each(|id| self.forget(id))
    }

    /// Answers that the broker has not settled, oldest first.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&Instruction, &Answer)> {
        self.entries.values().filter_map(|entry| Some((&entry.instruction, entry.answer.as_ref()?)))
    }

    /// Instructions without an answer, oldest first: after a start these are
    /// the ones that the agent's end interrupted.
    pub(crate) fn running(&self) -> Vec<Instruction> {
        let unanswered = self.entries.values().filter(|entry| entry.answer.is_none());
        unanswered.map(|entry| entry.instruction.clone()).collect()
    }

    fn write(&self, entry: &Entry) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let path = file_of(folder, entry.instruction.id);
        let content = serde_json::to_vec(entry)
            .map_err(|error| Error::Damaged { path: path.clone(), problem: error.to_string() })?;
        Ok(files::replace(&path, &content, 0o600)?)
    }
}

fn file_of(folder: &Path, id: InstructionId) -> PathBuf {
    folder.join(format!("{id}.json"))
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
