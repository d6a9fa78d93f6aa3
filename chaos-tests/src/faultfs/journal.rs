//! Reads what the library wrote down of changes that were not synced: a file of
//! records for each file, by its number, and one list of changes to names.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

const MAGIC: u32 = 0x6a72_6e6c;
const HEADER_BYTES: usize = 48;
const NAMES_FILE: &str = "tree";

/// A change to the content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) what: What,
    /// Length of the file before.
    pub(super) old_length: u64,
    /// Where the old content stood.
    pub(super) offset: u64,
    /// What stood there, as far as the file reached.
    pub(super) old: Vec<u8>,
    /// Whether it was synced.
    pub(super) is_durable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// These bytes were written at the offset.
    Write(Vec<u8>),
    /// The file got this length.
    Length(u64),
}

/// The changes to one file since its last sync, in their order.
pub(super) fn changes(bytes: &[u8]) -> anyhow::Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    // Changes before a sync that failed: a later one does not help them.
    let mut lost = 0;
    let mut rest = bytes;
    // A kill may have cut off the last record; its change was not made then.
    while let Some((header, body)) = rest.split_at_checked(HEADER_BYTES) {
        let number = |at: usize| header[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or_default();
        let small = |at: usize| header[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or_default();
        ensure!(small(0) == MAGIC, "the journal of a file is damaged at {}", bytes.len() - rest.len());
        let (offset, old_length, new_length) = (number(8), number(16), number(24));
        let (old_bytes, new_bytes) = (usize::try_from(number(32))?, usize::try_from(number(40))?);
        let Some((old, body)) = body.split_at_checked(old_bytes) else { break };
        let Some((new, body)) = body.split_at_checked(new_bytes) else { break };
        let what = match small(4) {
            1 => Some(What::Write(new.to_vec())),
            2 => Some(What::Length(new_length)),
            3 => {
                let synced = usize::try_from(offset)?.min(changes.len());
                changes[lost.min(synced)..synced].iter_mut().for_each(|change| change.is_durable = true);
                None
            }
            4 => {
                lost = usize::try_from(offset)?.min(changes.len());
                None
            }
            kind => bail!("a record of the unknown kind {kind} in the journal of a file"),
        };
        if let Some(what) = what {
            changes.push(Change { what, old_length, offset, old: old.to_vec(), is_durable: false });
        }
        rest = body;
    }
    Ok(changes)
}

/// A change to names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameChange {
    Create(PathBuf),
    MakeFolder(PathBuf),
    RemoveFolder(PathBuf),
    /// What was removed lives on as `saved`.
    Remove {
        path: PathBuf,
        saved: PathBuf,
    },
    /// File `number` was renamed; what had the new name lives on as `saved`, if
    /// anything had it.
    Rename {
        from: PathBuf,
        to: PathBuf,
        saved: Option<PathBuf>,
        number: u64,
    },
}

impl NameChange {
    /// The folder whose sync makes it durable.
    fn folder(&self) -> Option<&Path> {
        let (Self::Create(path)
        | Self::MakeFolder(path)
        | Self::RemoveFolder(path)
        | Self::Remove { path, .. }
        | Self::Rename { to: path, .. }) = self;
        path.parent()
    }

    fn saved(&self) -> Option<&Path> {
        match self {
            Self::Remove { saved, .. } => Some(saved),
            Self::Rename { saved, .. } => saved.as_deref(),
            _ => None,
        }
    }
}

/// A line of the list: a change, or a sync.
struct Line<'a> {
    text: &'a str,
    change: Option<NameChange>,
    is_durable: bool,
}

fn lines(text: &str) -> anyhow::Result<Vec<Line<'_>>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    // A kill may have cut off the last line; its change was not made then.
    for text in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let fields: Vec<&str> = text.split('\t').collect();
        let field = |place: usize| {
            let field = fields.get(place).filter(|field| !field.is_empty());
            field.copied().with_context(|| format!("`{text}` in the journal of names lacks a field"))
        };
        let change = match fields[0] {
            "create" => Some(NameChange::Create(field(1)?.into())),
            "mkdir" => Some(NameChange::MakeFolder(field(1)?.into())),
            "rmdir" => Some(NameChange::RemoveFolder(field(1)?.into())),
            // There was nothing to remove, or to keep.
            "unlink" if field(2).is_err() => None,
            "unlink" => Some(NameChange::Remove { path: field(1)?.into(), saved: field(2)?.into() }),
            "rename" => Some(NameChange::Rename {
                from: field(1)?.into(),
                to: field(2)?.into(),
                saved: field(3).ok().map(PathBuf::from),
                number: field(4)?.parse()?,
            }),
            "synced" => {
                let (folder, before) = (Path::new(field(1)?), field(2)?.parse::<usize>()?);
                for line in lines.iter_mut().take(before) {
                    let is_there = line.change.as_ref().and_then(NameChange::folder) == Some(folder);
                    line.is_durable |= is_there;
                }
                None
            }
            other => bail!("`{other}` is no change of names"),
        };
        lines.push(Line { text, change, is_durable: false });
    }
    Ok(lines)
}

/// The changes to names that were not synced, in their order.
pub(super) fn open_name_changes(journal: &Path) -> anyhow::Result<Vec<NameChange>> {
    let text = read_names(journal)?;
    Ok(lines(&text)?.into_iter().filter(|line| !line.is_durable).filter_map(|line| line.change).collect())
}

/// Drops what is synced from the list of names, and the files that were kept for it.
pub(super) fn tidy_names(journal: &Path) -> anyhow::Result<()> {
    let text = read_names(journal)?;
    let mut open = String::new();
    for line in lines(&text)? {
        match &line.change {
            Some(change) if line.is_durable => {
                if let Some(saved) = change.saved() {
                    remove_if_there(saved)?;
                }
            }
            Some(_) => {
                open.push_str(line.text);
                open.push('\n');
            }
            None => {}
        }
    }
    Ok(std::fs::write(journal.join(NAMES_FILE), open)?)
}

fn read_names(journal: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(journal.join(NAMES_FILE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => Ok(text?),
    }
}

pub(super) fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn record(kind: u32, offset: u64, old: &[u8], new: &[u8]) -> Vec<u8> {
        let lengths = [offset, 7, 9, old.len() as u64, new.len() as u64];
        let numbers = lengths.iter().flat_map(|number| number.to_ne_bytes());
        [&MAGIC.to_ne_bytes()[..], &kind.to_ne_bytes(), &numbers.collect::<Vec<_>>(), old, new].concat()
    }

    fn durable(journal: &[Vec<u8>]) -> Vec<bool> {
        changes(&journal.concat()).unwrap().iter().map(|change| change.is_durable).collect()
    }

    #[test]
    fn a_sync_covers_what_came_before_it_began() {
        let (write, length) = (record(1, 3, b"old", b"new"), record(2, 0, b"", b""));
        assert_eq!(durable(&[write.clone(), length.clone(), record(3, 1, b"", b"")]), [true, false]);
        let read = changes(&[write, length].concat()).unwrap();
        assert_eq!(read[0].what, What::Write(b"new".to_vec()));
        assert_eq!((read[0].offset, read[0].old_length, &read[0].old[..]), (3, 7, &b"old"[..]));
        assert_eq!(read[1].what, What::Length(9));
    }

    #[test]
    fn what_a_failed_sync_left_is_never_synced() {
        let write = record(1, 0, b"", b"x");
        let journal = [write.clone(), record(4, 1, b"", b""), write.clone(), record(3, 2, b"", b"")];
        assert_eq!(durable(&journal), [false, true]);
    }

    #[test]
    fn a_record_that_was_cut_off_does_not_count() {
        let (write, mut cut) = (record(1, 0, b"", b"x"), record(1, 0, b"", b"longer"));
        cut.pop();
        assert_eq!(durable(&[write.clone(), cut]), [false]);
        assert_eq!(durable(&[write, record(1, 0, b"", b"")[..20].to_vec()]), [false]);
        assert!(changes(&[0; HEADER_BYTES]).is_err());
    }

    #[test]
    fn names_become_durable_with_their_folder() {
        let text = "create\t/d/a\t\t\ncreate\t/e/b\t\t\nrename\t/d/a\t/d/c\t/j/saved\t12\nsynced\t/d\t2\t\nunlink\t/d/x\t/j/y\t\ncut";
        let open: Vec<NameChange> =
            lines(text).unwrap().into_iter().filter(|line| !line.is_durable).filter_map(|line| line.change).collect();
        let rename =
            NameChange::Rename { from: "/d/a".into(), to: "/d/c".into(), saved: Some("/j/saved".into()), number: 12 };
        let remove = NameChange::Remove { path: "/d/x".into(), saved: "/j/y".into() };
        assert_eq!(open, [NameChange::Create("/e/b".into()), rename, remove]);
    }
}
