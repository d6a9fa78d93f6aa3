//! Writing a snapshot beside the current one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{self, CHUNK_BYTES, Footer, META_BYTES_MAX};
use super::reader::into_io;
use super::{Access, Folder, Snapshot};
use crate::Error;
use crate::files::Handle;

/// A snapshot being written. Dropped unfinished, it leaves nothing behind.
/// Holds one chunk of 256 KiB in memory. Once the store is closed, everything
/// here fails with [`Error::Closed`], and an unfinished file stays until the
/// next opening.
#[derive(Debug)]
pub struct SnapshotWriter {
    folder: Arc<Folder>,
    path: PathBuf,
    file: Handle,
    /// Bytes written to the file.
    offset: u64,
    /// Content bytes taken.
    length: u64,
    chunk: Vec<u8>,
    /// All of the file is written.
    ended: bool,
    /// The file as a snapshot, once it is complete and durable.
    sealed: Option<Snapshot>,
    sync_failed: bool,
    /// The file has got its final name, or is gone.
    settled: bool,
}

impl SnapshotWriter {
    pub(super) fn begin(folder: Arc<Folder>, path: PathBuf) -> Result<Self, Error> {
        let header = format::header();
        let file = {
            let _access = folder.access()?;
            folder.require_room(CHUNK_BYTES)?;
            folder.files.create_new(&path)?
        };
        let mut writer = Self {
            folder,
            path,
            file,
            offset: 0,
            length: 0,
            chunk: Vec::with_capacity(CHUNK_BYTES),
            ended: false,
            sealed: None,
            sync_failed: false,
            settled: false,
        };
        let folder = Arc::clone(&writer.folder);
        writer.write_out(&folder.access()?, &header)?;
        Ok(writer)
    }

    /// Completes the file and makes its content durable, without making it
    /// current: to be read before it counts. `index` is the last log index it
    /// covers, `meta` whatever the caller wants back with it (at most 1 MiB).
    /// Takes no content afterwards. After [`Error::Full`] it may be called again.
    pub fn seal(&mut self, meta: impl AsRef<[u8]>, index: u64) -> Result<Snapshot, Error> {
        if let Some(sealed) = &self.sealed {
            return Ok(sealed.clone());
        }
        let meta = meta.as_ref();
        if meta.len() > META_BYTES_MAX {
            return Err(Error::TooLarge {
                what: "the meta of a snapshot".to_owned(),
                bytes: meta.len(),
                limit_bytes: META_BYTES_MAX,
            });
        }
        if self.sync_failed {
            let reason = io::Error::other("a sync failed before, what is on the disk is unknown");
            return Err(Error::io("sync", &self.path, reason));
        }
        let folder = Arc::clone(&self.folder);
        let access = folder.access()?;
        if !self.ended {
            self.write_chunk(&access)?;
            let footer = Footer { index, length: self.length, meta };
            let ending = format::ending(self.offset, &footer);
            folder.require_room(ending.len())?;
            self.write_out(&access, &ending)?;
            self.ended = true;
        }
        self.file.sync_all().map_err(|error| {
            self.sync_failed = true;
            Error::io("sync", &self.path, error)
        })?;
        let sealed = Snapshot::load(&self.folder.files, &self.path)?;
        self.sealed = Some(sealed.clone());
        Ok(sealed)
    }

    /// Makes the snapshot durable and current, then removes older ones; seals it
    /// first, if that was not done. Returns the snapshot that is current
    /// afterwards: this one, or one of a higher index that was finished in the
    /// meantime. After [`Error::Full`] it may be called again.
    pub fn finish(&mut self, meta: impl AsRef<[u8]>, index: u64) -> Result<Snapshot, Error> {
        let sealed = self.seal(meta, index)?;
        let folder = Arc::clone(&self.folder);
        let access = folder.access()?;
        folder.install(&access, self, sealed.index())
    }

    /// Gives the file its final name, durably.
    pub(super) fn settle(&mut self, target: &Path) -> Result<(), Error> {
        if self.settled {
            return self.folder.files.sync_parent(target);
        }
        let result = self.folder.files.rename(&self.path, target);
        // Once renamed it must not be removed, whether its name is durable or not.
        self.settled = result.is_ok() || !self.folder.files.exists(&self.path);
        result
    }

    /// Removes the file.
    pub(super) fn discard(&mut self, _: &Access<'_>) {
        if !std::mem::replace(&mut self.settled, true)
            && let Err(error) = self.folder.files.remove(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error,
                "an unfinished snapshot could not be removed, the next start tries again");
        }
    }

    fn write_chunk(&mut self, access: &Access<'_>) -> Result<(), Error> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.folder.require_room(self.chunk.len())?;
        let mut bytes = format::chunk_header(self.offset, &self.chunk).to_vec();
        bytes.extend_from_slice(&self.chunk);
        self.write_out(access, &bytes)?;
        self.chunk.clear();
        Ok(())
    }

    /// Writes all of `bytes` behind what was written, or, after an error,
    /// nothing that counts.
    fn write_out(&mut self, _: &Access<'_>, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, self.offset).map_err(|error| Error::io("write", &self.path, error))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

/// A full disk is reported as [`io::ErrorKind::StorageFull`]; nothing of the
/// bytes was taken then, and they may be written again.
impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.ended {
            return Err(io::Error::other("the snapshot is sealed, it takes no more content"));
        }
        if self.chunk.len() == CHUNK_BYTES {
            let folder = Arc::clone(&self.folder);
            let access = folder.access().map_err(into_io)?;
            self.write_chunk(&access).map_err(into_io)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        self.length += taken as u64;
        Ok(taken)
    }

    /// Does nothing: only [`SnapshotWriter::finish`] makes anything durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let folder = Arc::clone(&self.folder);
        let Ok(access) = folder.access() else {
            tracing::info!(path = %self.path.display(), "the next start removes an unfinished snapshot");
            return;
        };
        self.discard(&access);
    }
}
