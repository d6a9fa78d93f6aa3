//! The file of a backup.
//!
//! ```text
//! magic "BERTHBAK"   8 bytes
//! version            u16, little endian
//! length of header   u32, little endian
//! header             bincode
//! content            the fleet's image, as many bytes as the header says
//! checksum           SHA-256 of all before it, 32 bytes
//! ```
//!
//! A file of any version that was ever written stays readable; the content has
//! a version of its own.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::broker::cluster::authority::ClusterId;
use crate::domain::{Fleet, LogIndex, ReplicaId, Timestamp};

/// What each file begins with.
const MAGIC: [u8; 8] = *b"BERTHBAK";
/// Version of the files that this build writes.
const VERSION: u16 = 1;
/// Longest header that is read, in bytes.
const HEADER_BYTES_MAX: u32 = 4 * 1024;
/// Bytes of the checksum.
const CHECKSUM_BYTES: usize = 32;
/// Bytes that are read at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// Highest log index that makes sense: numbers up to here are exact in JSON.
const INDEX_MAX: u64 = 1 << 53;

/// What a backup says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The cluster that it is of.
    pub cluster: ClusterId,
    /// The replica that made it.
    pub replica: ReplicaId,
    /// The last entry of the log that is in it.
    pub index: LogIndex,
    /// The time of that entry, by its leader's clock.
    pub at: Timestamp,
    /// Whether it may lack what was acknowledged before it was asked for.
    pub is_stale: bool,
    /// The format that the log was written in.
    pub log_format: u16,
    /// The version of the content.
    pub image_version: u16,
    /// The highest number that a replica of the cluster had.
    pub last_replica: ReplicaId,
    /// Length of the content.
    pub content_bytes: u64,
}

/// Why a file is no good backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no backup of a Berth cluster", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer version wrote it.
    #[error("{} has version {found}, but this build reads {VERSION}; use a newer build", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
    /// Its end is missing, or there is more than one.
    #[error("{} has {found} bytes where a whole one has {expected}; take another copy", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// What the header says.
        expected: u64,
    },
    /// It is not what was written.
    #[error("{} is damaged: {reason}; take another copy", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The content is whole, but cannot be read.
    #[error("the content of {} cannot be read", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: crate::domain::fleet::ImageError,
    },
}

impl Header {
    /// Everything before the content.
    pub fn encode(&self) -> Vec<u8> {
        let header = bincode::serde::encode_to_vec(self, bincode::config::standard())
            .expect("writing plain data to memory cannot fail");
        let length = u32::try_from(header.len()).expect("an id and a few numbers are short");
        [&MAGIC[..], &VERSION.to_le_bytes(), &length.to_le_bytes(), &header].concat()
    }

    /// Reads everything before the content.
    fn read(path: &Path, input: &mut dyn Read) -> Result<Self, BackupError> {
        let damaged = |reason: String| BackupError::Damaged { path: path.to_owned(), reason };
        let short = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it ends in its header".to_owned()),
            _ => BackupError::Io { path: path.to_owned(), source: error },
        };
        let mut magic = [0; MAGIC.len()];
        match input.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(short(error)),
            _ => return Err(BackupError::Foreign { path: path.to_owned() }),
        }
        let (mut version, mut length) = ([0; 2], [0; 4]);
        input.read_exact(&mut version).map_err(short)?;
        let found = u16::from_le_bytes(version);
        if found != VERSION {
            return Err(BackupError::Version { path: path.to_owned(), found });
        }
        input.read_exact(&mut length).map_err(short)?;
        let length = u32::from_le_bytes(length);
        if length > HEADER_BYTES_MAX {
            return Err(damaged(format!("its header claims to have {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        input.read_exact(&mut bytes).map_err(short)?;
        let config = bincode::config::standard().with_limit::<{ HEADER_BYTES_MAX as usize }>();
        let (header, used): (Self, usize) = bincode::serde::decode_from_slice(&bytes, config)
            .map_err(|error| damaged(format!("its header cannot be read: {error}")))?;
        if used != bytes.len() {
            return Err(damaged("its header is too long".to_owned()));
        }
        if header.index.0 > INDEX_MAX {
            return Err(damaged(format!("it claims to be of log entry {}", header.index)));
        }
        Ok(header)
    }

    /// Length of the whole file.
    pub fn file_bytes(&self) -> u64 {
        let ends = (self.encode().len() + CHECKSUM_BYTES) as u64;
        self.content_bytes.saturating_add(ends)
    }
}

/// The checksum of what it is given.
pub struct Checksum(Context);

impl Default for Checksum {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Checksum {
    /// Goes on with some bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all of them.
    pub fn finish(self) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}

/// A checksum as people read it.
pub fn show_checksum(checksum: &[u8]) -> String {
    use std::fmt::Write as _;
    checksum.iter().fold(String::from("sha256:"), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A file that is what it says, byte for byte; its content was not looked at.
#[derive(Debug)]
pub struct Checked {
    path: PathBuf,
    file: File,
    /// What it says about itself.
    pub header: Header,
    /// Its checksum.
    pub checksum: Vec<u8>,
    /// Its length.
    pub bytes: u64,
}

/// Reads all of a file and compares it with its checksum, in little memory.
pub fn check(path: &Path) -> Result<Checked, BackupError> {
    let io = |source| BackupError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(BackupError::Foreign { path: path.to_owned() });
    }
    let bytes = file.metadata().map_err(io)?.len();
    let mut input = BufReader::with_capacity(BUFFER_BYTES, &file);
    let header = Header::read(path, &mut input)?;
    let expected = header.file_bytes();
    if bytes != expected {
        return Err(BackupError::Length { path: path.to_owned(), found: bytes, expected });
    }
    input.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut sum = Checksum::default();
    let mut left = bytes - CHECKSUM_BYTES as u64;
    let mut buffer = vec![0; BUFFER_BYTES];
    while left > 0 {
        let wanted = usize::try_from(left).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
        input.read_exact(&mut buffer[..wanted]).map_err(io)?;
        sum.update(&buffer[..wanted]);
        left -= wanted as u64;
    }
    let mut checksum = vec![0; CHECKSUM_BYTES];
    input.read_exact(&mut checksum).map_err(io)?;
    if sum.finish() != checksum {
        let reason = "its content does not match its checksum".to_owned();
        return Err(BackupError::Damaged { path: path.to_owned(), reason });
    }
    Ok(Checked { path: path.to_owned(), file, header, checksum, bytes })
}

impl Checked {
    /// The fleet in it.
    pub fn fleet(&self) -> Result<Fleet, BackupError> {
        let io = |source| BackupError::Io { path: self.path.clone(), source };
        let start = self.bytes - CHECKSUM_BYTES as u64 - self.header.content_bytes;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(start)).map_err(io)?;
        let mut content = BufReader::with_capacity(BUFFER_BYTES, file.take(self.header.content_bytes));
        let fleet = Fleet::read_image(&mut content)
            .map_err(|source| BackupError::Content { path: self.path.clone(), source })?;
        let damaged = |reason: &str| BackupError::Damaged { path: self.path.clone(), reason: reason.to_owned() };
        if content.read(&mut [0]).map_err(io)? != 0 {
            return Err(damaged("something follows the end of its content"));
        }
        if fleet.applied() > self.header.index {
            return Err(damaged("its content is newer than its header says"));
        }
        Ok(fleet)
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
