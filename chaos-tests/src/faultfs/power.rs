//! A loss of power: what was not synced is gone, or a part of it.
//!
//! First everything in the journal is undone, the last change first; then what
//! was synced, and what of the rest the disk had happened to write, is done
//! again in order. Writes that were not synced may reach a disk in any choice
//! and in pieces of a sector. Changes of names go through the journal of a file
//! system, so that of those that were not synced the first so and so many are
//! kept.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::journal::{self, Change, NameChange, What};
use crate::random::Random;

/// What a disk writes at once.
const SECTOR_BYTES: u64 = 512;

/// What of the changes that were not synced had reached the disk by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Nothing.
    Nothing,
    /// Some, of some only pieces.
    Some,
}

/// What a loss of power did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loss {
    /// Changes of content that were not synced.
    pub changes: u64,
    /// Those of them that are kept whole.
    pub kept: u64,
    /// Those of which pieces are kept.
    pub torn: u64,
    /// Changes of names that were not synced.
    pub names: u64,
    /// Those of them that are kept.
    pub names_kept: u64,
}

pub(super) fn lose(folder: &Path, journal: &Path, kept: Kept, random: &mut Random) -> anyhow::Result<Loss> {
    let mut loss = Loss::default();
    let mut files = BTreeMap::new();
    find_files(folder, &mut files)?;
    find_files(journal, &mut files)?;
    for entry in std::fs::read_dir(journal)? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
        let changes = journal::changes(&std::fs::read(entry.path())?)?;
        // Without a name in either folder it is gone for good.
        if let Some(path) = files.get(&number) {
            roll_back(path, &changes, kept, random, &mut loss)
                .with_context(|| format!("cannot undo what was not synced of {}", path.display()))?;
        }
    }
    lose_names(journal, kept, random, &mut loss)?;
    for entry in std::fs::read_dir(journal)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(loss)
}

/// The files below a folder by their numbers.
fn find_files(folder: &Path, files: &mut BTreeMap<u64, PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            find_files(&entry.path(), files)?;
        } else if kind.is_file() {
            files.insert(entry.metadata()?.ino(), entry.path());
        }
    }
    Ok(())
}

fn roll_back(path: &Path, changes: &[Change], kept: Kept, random: &mut Random, loss: &mut Loss) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    for change in changes.iter().rev() {
        file.set_len(change.old_length)?;
        file.write_all_at(&change.old, change.offset)?;
    }
    for change in changes {
        if change.is_durable {
            redo(&file, change)?;
            continue;
        }
        loss.changes += 1;
        match (kept, random.below(3)) {
            (Kept::Some, 0) => {
                redo(&file, change)?;
                loss.kept += 1;
            }
            (Kept::Some, 1) => {
                if let What::Write(new) = &change.what {
                    redo_pieces(&file, change.offset, new, random)?;
                    loss.torn += 1;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn redo(file: &File, change: &Change) -> anyhow::Result<()> {
    match &change.what {
        What::Write(new) => file.write_all_at(new, change.offset)?,
        What::Length(length) => file.set_len(*length)?,
    }
    Ok(())
}

/// Writes some of the sectors.
fn redo_pieces(file: &File, offset: u64, new: &[u8], random: &mut Random) -> anyhow::Result<()> {
    let mut at = 0;
    while at < new.len() {
        let in_sector = SECTOR_BYTES - (offset + at as u64) % SECTOR_BYTES;
        let end = new.len().min(at + usize::try_from(in_sector)?);
        if random.below(2) == 0 {
            file.write_all_at(&new[at..end], offset + at as u64)?;
        }
        at = end;
    }
    Ok(())
}

fn lose_names(journal: &Path, kept: Kept, random: &mut Random, loss: &mut Loss) -> anyhow::Result<()> {
    let changes = journal::open_name_changes(journal)?;
    loss.names = changes.len() as u64;
    loss.names_kept = match kept {
        Kept::Nothing => 0,
        Kept::Some => random.below(loss.names + 1),
    };
    for change in changes.iter().skip(usize::try_from(loss.names_kept)?).rev() {
        undo_name(change).with_context(|| format!("cannot undo {change:?}"))?;
    }
    Ok(())
}

/// Undoes a change that may not have been made, when the process died before it.
fn undo_name(change: &NameChange) -> anyhow::Result<()> {
    match change {
        NameChange::Create(path) => journal::remove_if_there(path)?,
        NameChange::MakeFolder(path) => {
            if path.exists() {
                std::fs::remove_dir_all(path)?;
            }
        }
        NameChange::RemoveFolder(path) => std::fs::create_dir_all(path)?,
        NameChange::Remove { path, saved } => {
            if !path.exists() {
                std::fs::rename(saved, path)?;
            }
        }
        NameChange::Rename { from, to, saved, number } => {
            let is_made = std::fs::metadata(to).is_ok_and(|found| found.ino() == *number);
            if is_made {
                std::fs::rename(to, from)?;
                if let Some(saved) = saved {
                    std::fs::rename(saved, to)?;
                }
            }
        }
    }
    Ok(())
}
