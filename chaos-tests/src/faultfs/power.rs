//! A loss of power: what was not synced is gone, or a part of it.
//!
//! First everything in the journal is undone, the last change first; then what
//! was synced, and what of the rest the disk had happened to write, is done
//! again in order. What was not synced reaches a disk sector by sector: each as
//! it was in memory at some moment since the last sync, each at another moment.
//! Changes of names go through the journal of a file system, so that of those
//! that were not synced the first so and so many are kept.

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
    let Some(first) = changes.first() else { return Ok(()) };
    let file = OpenOptions::new().write(true).open(path)?;
    for change in changes.iter().rev() {
        file.set_len(change.old_length)?;
        file.write_all_at(&change.old, change.offset)?;
    }
    // A disk had not begun with a file, or was done with it, or was in the middle.
    let progress = random.below(3);
    let mut cut = |floor: u64, count: u64| match (kept, progress) {
        (Kept::Nothing, _) | (_, 0) => floor,
        (_, 1) => count,
        _ => floor + random.below(count - floor + 1),
    };
    let mut sectors: BTreeMap<u64, Sector> = BTreeMap::new();
    for change in changes {
        for sector in sectors_of(change) {
            sectors.entry(sector).or_default().add(change.is_durable);
        }
    }
    for sector in sectors.values_mut() {
        sector.kept = cut(sector.durable, sector.changes);
    }
    for change in changes {
        let (mut pieces, mut done) = (0, 0);
        for number in sectors_of(change) {
            let Some(sector) = sectors.get_mut(&number) else { continue };
            pieces += 1;
            if sector.seen < sector.kept {
                redo(&file, change, number)?;
                done += 1;
            }
            sector.seen += 1;
        }
        if !change.is_durable {
            loss.changes += 1;
            loss.kept += u64::from(pieces > 0 && done == pieces);
            loss.torn += u64::from(done > 0 && done < pieces);
        }
    }
    // The length has a history of its own.
    let durable = changes.iter().rposition(|change| change.is_durable).map_or(0, |place| place + 1);
    let known = usize::try_from(cut(durable as u64, changes.len() as u64))?;
    let length = changes[..known].iter().fold(first.old_length, |length, change| match &change.what {
        What::Write(new) => length.max(change.offset + new.len() as u64),
        What::Length(length) => *length,
    });
    Ok(file.set_len(length)?)
}

/// The changes to one sector. A disk has it as it was in memory at some moment:
/// after the first so and so many of them.
#[derive(Debug, Default)]
struct Sector {
    changes: u64,
    /// Through the last one that was synced.
    durable: u64,
    kept: u64,
    /// Gone through while doing them again.
    seen: u64,
}

impl Sector {
    fn add(&mut self, is_durable: bool) {
        self.changes += 1;
        if is_durable {
            self.durable = self.changes;
        }
    }
}

/// What a change changes: new content, or zeros where a file was cut off.
fn range(change: &Change) -> std::ops::Range<u64> {
    match &change.what {
        What::Write(new) => change.offset..change.offset + new.len() as u64,
        What::Length(length) => *length..change.old_length.max(*length),
    }
}

fn sectors_of(change: &Change) -> std::ops::Range<u64> {
    let range = range(change);
    range.start / SECTOR_BYTES..range.end.div_ceil(SECTOR_BYTES)
}

/// Does the part of a change again that lies in one sector.
fn redo(file: &File, change: &Change, sector: u64) -> anyhow::Result<()> {
    let range = range(change);
    let start = range.start.max(sector * SECTOR_BYTES);
    let end = range.end.min((sector + 1) * SECTOR_BYTES);
    if start >= end {
        return Ok(());
    }
    let (from, to) = (usize::try_from(start - range.start)?, usize::try_from(end - range.start)?);
    let zeros;
    let bytes = match &change.what {
        What::Write(new) => &new[from..to],
        What::Length(_) => {
            zeros = vec![0; to - from];
            &zeros[..]
        }
    };
    Ok(file.write_all_at(bytes, start)?)
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
