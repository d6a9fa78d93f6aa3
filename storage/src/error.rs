//! The one error type of the crate.
//!
//! Every variant says what was attempted, on which file, and what to do about
//! it. Errors are cheap to clone, because one failed group is reported to
//! everybody who waited for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What can go wrong with the data folder of a replica.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has this data folder open. Nothing was touched.
    #[error("{path} is locked by another process: stop the other replica, or give this one a data folder of its own")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },

    /// The data folder, or one record in it, was written in a format this
    /// program does not read. Nothing was touched.
    #[error(
        "{path}: {what} has format version {found}, this program reads version {supported}: start the version of the program that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Which record of the file.
        what: String,
        /// The version found.
        found: u32,
        /// The version this program reads and writes.
        supported: u32,
    },

    /// Bytes on disk are not what was written. Nothing was thrown away.
    #[error(
        "{path}: {what} is damaged: {reason}; restore the folder from a backup, or move it away and let this replica join again under a new id"
    )]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// Which record of it: a key or an offset.
        what: String,
        /// What does not fit.
        reason: String,
    },

    /// The operating system refused a file operation.
    #[error("cannot {attempt} {path}: check the disk and the permissions of the folder")]
    Io {
        /// What was attempted, as a verb.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },

    /// Not enough room on the disk. Queued writes wait and go on by themselves
    /// once there is room; this error reaches those that cannot wait, such as
    /// a snapshot being written.
    #[error(
        "the disk of {path} has {free_bytes} bytes free, {needed_bytes} are needed: make room, writing goes on by itself"
    )]
    Full {
        /// The data folder.
        path: PathBuf,
        /// Bytes free now.
        free_bytes: u64,
        /// Bytes that must be free before writing goes on.
        needed_bytes: u64,
    },

    /// The queue of the writer is full; nothing of this call was accepted.
    #[error("{queued_bytes} bytes in {queued_writes} writes wait for the disk already: try again later")]
    Overloaded {
        /// Bytes that wait.
        queued_bytes: u64,
        /// Writes that wait.
        queued_writes: usize,
    },

    /// The entries do not follow the last one; nothing was accepted.
    #[error("entry {found} cannot be appended where entry {expected} must follow")]
    Hole {
        /// The only index that may come next.
        expected: u64,
        /// The index that came.
        found: u64,
    },

    /// An entry, vote or marker is too long; nothing was accepted.
    #[error("{what} has {bytes} bytes, at most {limit_bytes} fit")]
    TooLarge {
        /// Which one.
        what: String,
        /// Its length.
        bytes: usize,
        /// The most that fits.
        limit_bytes: usize,
    },

    /// The entries asked for were purged; they are in a snapshot.
    #[error("entry {index} is purged, as is everything through {purged}")]
    Purged {
        /// The first index asked for.
        index: u64,
        /// The last purged index.
        purged: u64,
    },

    /// The store has stopped after an earlier failure; the reason was logged.
    #[error("storage stopped: {reason}; repair the cause and restart this replica")]
    Failed {
        /// The first failure.
        reason: Arc<str>,
    },

    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// An [`Error::Io`] for `attempt` on `path`.
    pub(crate) fn io(attempt: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { attempt, path: path.to_owned(), source: Arc::new(source) }
    }

    /// An [`Error::Damaged`].
    pub(crate) fn damaged(path: &Path, what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into(), reason: reason.into() }
    }

    /// Whether this is the operating system saying that the disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// The error and all its sources in one line, for logs and stored reasons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
