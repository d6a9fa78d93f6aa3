//! Reading a snapshot, checked chunk by chunk.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use super::format::{self, CHUNK_BYTES, CHUNK_HEADER_BYTES, Contents, END_BYTES};
use crate::Error;
use crate::files::Handle;

/// Streams the content of a snapshot and checks it: bytes that are not what was
/// written end in an error of kind [`io::ErrorKind::InvalidData`] that names the
/// file and the offset, before any of the chunk they stand in is handed out; so
/// does a file that ends early. Holds one chunk of 256 KiB in memory.
#[derive(Debug)]
pub struct SnapshotReader {
    path: PathBuf,
    file: Arc<Handle>,
    contents: Arc<Contents>,
    /// Where the next chunk starts.
    offset: u64,
    /// Content bytes in the chunks read so far.
    content_bytes: u64,
    chunk: Vec<u8>,
    /// How much of `chunk` was handed out.
    used: usize,
}

impl SnapshotReader {
    pub(super) fn new(path: PathBuf, file: Arc<Handle>, contents: Arc<Contents>) -> Self {
        let offset = contents.chunks_start;
        Self { path, file, contents, offset, content_bytes: 0, chunk: Vec::new(), used: 0 }
    }

    /// Reads all of it, for the check alone.
    pub(super) fn check(mut self) -> Result<(), Error> {
        while self.next_chunk()? {}
        Ok(())
    }

    fn damaged(&self, reason: impl Into<String>) -> Error {
        let what = format!("the content at offset {}", self.offset);
        Error::damaged(&self.path, what, reason)
    }

    /// Reads the next chunk; false at the end.
    fn next_chunk(&mut self) -> Result<bool, Error> {
        self.chunk.clear();
        self.used = 0;
        let left = self.contents.chunks_end - self.offset;
        if left == 0 {
            return self.check_end().map(|()| false);
        }
        if left < CHUNK_HEADER_BYTES as u64 {
            return Err(self.damaged("a chunk is cut off"));
        }
        let mut header = [0; CHUNK_HEADER_BYTES];
        self.read_at(&mut header, self.offset)?;
        let (length, crc) = format::parse_chunk_header(header);
        if length == 0 || length > CHUNK_BYTES || (CHUNK_HEADER_BYTES + length) as u64 > left {
            return Err(self.damaged(format!("a chunk of {length} bytes")));
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.resize(length, 0);
        self.read_at(&mut chunk, self.offset + CHUNK_HEADER_BYTES as u64)?;
        if format::chunk_crc(self.offset, &chunk) != crc {
            return Err(self.damaged("the checksum does not match"));
        }
        self.chunk = chunk;
        self.offset += (CHUNK_HEADER_BYTES + length) as u64;
        self.content_bytes += length as u64;
        Ok(true)
    }

    fn check_end(&self) -> Result<(), Error> {
        let mut end = [0; END_BYTES];
        self.read_at(&mut end, self.offset)?;
        if end != [0; END_BYTES] {
            return Err(self.damaged("the end mark is not there"));
        }
        if self.content_bytes != self.contents.length {
            return Err(
                self.damaged(format!("{} bytes of content, {} were written", self.content_bytes, self.contents.length))
            );
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_exact_at(buffer, offset).map_err(|error| Error::io("read", &self.path, error))
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.used == self.chunk.len() && !self.next_chunk().map_err(into_io)? {
            return Ok(0);
        }
        let available = &self.chunk[self.used..];
        let taken = available.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&available[..taken]);
        self.used += taken;
        Ok(taken)
    }
}

/// The error as `Read` and `Write` carry it: kind and text stay.
pub(super) fn into_io(error: Error) -> io::Error {
    let kind = match &error {
        Error::Damaged { .. } | Error::Version { .. } => io::ErrorKind::InvalidData,
        Error::Full { .. } => io::ErrorKind::StorageFull,
        Error::Io { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
