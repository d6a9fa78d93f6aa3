//! Files and folders of a simulated disk.

use std::io;
use std::path::{Path, PathBuf};

use super::{Choose, Disk, Node, Operation, State};

/// Writes to a file that are remembered as not synced; the oldest of more have
/// long been written back.
const UNSYNCED_MAX: usize = 16;

/// What is in a file.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    data: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Content {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        put(&mut self.data, bytes, offset);
        self.unsynced.push((offset, bytes.to_vec()));
        if self.unsynced.len() > UNSYNCED_MAX {
            let (offset, bytes) = self.unsynced.remove(0);
            put(&mut self.synced, &bytes, offset);
        }
    }

    fn sync(&mut self) {
        self.synced.clone_from(&self.data);
        self.unsynced.clear();
    }

    pub(super) fn cut_power(&mut self, choose: Choose<'_>) -> bool {
        let mut lost = false;
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            let kept = match choose(3) {
                0 => 0,
                1 => usize::try_from(choose(bytes.len() as u64 + 1)).unwrap_or_default(),
                _ => bytes.len(),
            };
            lost |= kept < bytes.len();
            if kept > 0 {
                put(&mut self.synced, &bytes[..kept], offset);
            }
        }
        self.data.clone_from(&self.synced);
        lost
    }

    pub(super) fn synced_copy(&self) -> Self {
        Self { data: self.synced.clone(), synced: self.synced.clone(), unsynced: Vec::new() }
    }

    pub(super) fn flip_bit(&mut self, choose: Choose<'_>) -> bool {
        if self.data.is_empty() {
            return false;
        }
        let bit = usize::try_from(choose(self.data.len() as u64 * 8)).unwrap_or_default();
        self.change(|data| data[bit / 8] ^= 1 << (bit % 8));
        true
    }

    /// Changes what is there, on the disk too.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.data);
        self.sync();
    }
}

fn put(data: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    if data.len() < offset + bytes.len() {
        data.resize(offset + bytes.len(), 0);
    }
    data[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A disk as one process has it. Once that was killed, or has closed its store,
/// it changes nothing there any more.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    disk: Disk,
    generation: u64,
}

impl Mount {
    pub(super) fn new(disk: Disk, generation: u64) -> Self {
        Self { disk, generation }
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Does something to the disk, unless the process is dead.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.generation != self.generation {
            return Err(io::Error::other("the process that had this disk is gone"));
        }
        work(&mut state)
    }

    /// Whether the process still has the disk.
    pub(super) fn is_alive(&self) -> bool {
        self.disk.state().generation == self.generation
    }

    /// Gives the disk back.
    pub(crate) fn unmount(&self) {
        let mut state = self.disk.state();
        if state.generation == self.generation {
            state.generation += 1;
            state.is_mounted = false;
            state.waiting.clear();
        }
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.disk.state().free_bytes
    }

    /// Folders are made durable at once: nothing depends on when.
    pub(crate) fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.with(|state| {
            for path in folder.ancestors().filter(|path| !path.as_os_str().is_empty()) {
                match state.names.get(path) {
                    Some(Node::Folder) => {}
                    Some(_) => return Err(io::ErrorKind::AlreadyExists.into()),
                    None => {
                        state.names.insert(path.to_owned(), Node::Folder);
                        state.durable_names.insert(path.to_owned(), Node::Folder);
                    }
                }
            }
            Ok(())
        })
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.disk.state().names.contains_key(path)
    }

    pub(crate) fn is_folder(&self, path: &Path) -> bool {
        // A database is a folder to those who do not look into it.
        matches!(self.disk.state().names.get(path), Some(Node::Folder | Node::Table(_)))
    }

    pub(crate) fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut state = self.disk.state();
        state.pass(Operation::Read)?;
        Ok(state.names.keys().filter(|path| path.parent() == Some(folder)).cloned().collect())
    }

    pub(crate) fn create(&self, path: &Path, is_new: bool) -> io::Result<Handle> {
        let id = self.with(|state| {
            state.pass(Operation::Write)?;
            if is_new && state.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let id = state.next_node();
            state.files.insert(id, Content::default());
            state.names.insert(path.to_owned(), Node::File(id));
            Ok(id)
        })?;
        Ok(Handle { mount: self.clone(), id })
    }

    pub(crate) fn open(&self, path: &Path) -> io::Result<Handle> {
        let mut state = self.disk.state();
        state.pass(Operation::Read)?;
        match state.names.get(path) {
            Some(Node::File(id)) => Ok(Handle { mount: self.clone(), id: *id }),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|state| match state.names.remove(path) {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|state| {
            state.pass(Operation::Write)?;
            let node = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), node);
            Ok(())
        })
    }

    pub(crate) fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.with(|state| {
            state.pass(Operation::Sync)?;
            if state.syncs_are_lies {
                return Ok(());
            }
            let is_in = |path: &PathBuf| path.parent() == Some(folder);
            state.durable_names.retain(|path, _| !is_in(path));
            let names = state.names.iter().filter(|(path, _)| is_in(path));
            state.durable_names.extend(names.map(|(path, node)| (path.clone(), *node)));
            state.forget_the_unnamed();
            Ok(())
        })
    }
}

impl State {
    /// Gives up files that have no name any more, but for the newest few: a
    /// snapshot that was replaced may still be read.
    fn forget_the_unnamed(&mut self) {
        const KEPT: usize = 8;
        let named: Vec<Node> = self.names.values().chain(self.durable_names.values()).copied().collect();
        let unnamed: Vec<u64> = self.files.keys().copied().filter(|id| !named.contains(&Node::File(*id))).collect();
        for id in unnamed.iter().take(unnamed.len().saturating_sub(KEPT)) {
            self.files.remove(id);
        }
    }
}

/// An open file of a simulated disk.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    mount: Mount,
    id: u64,
}

impl Handle {
    fn missing() -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, "the file is gone")
    }

    pub(crate) fn length(&self) -> io::Result<u64> {
        let state = self.mount.disk.state();
        state.files.get(&self.id).map(|content| content.data.len() as u64).ok_or_else(Self::missing)
    }

    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.mount.disk.state();
        state.pass(Operation::Read)?;
        let data = &state.files.get(&self.id).ok_or_else(Self::missing)?.data;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = data.get(start..start.saturating_add(buffer.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.mount.with(|state| {
            state.pass(Operation::Write)?;
            if state.free_bytes < bytes.len() as u64 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.files.get_mut(&self.id).ok_or_else(Self::missing)?.write(bytes, offset);
            Ok(())
        })
    }

    pub(crate) fn sync_all(&self) -> io::Result<()> {
        self.mount.with(|state| {
            state.pass(Operation::Sync)?;
            if !state.syncs_are_lies {
                state.files.get_mut(&self.id).ok_or_else(Self::missing)?.sync();
            }
            Ok(())
        })
    }
}
