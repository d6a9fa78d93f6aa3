//! What is known of a session on disk, so that it is found again when the
//! agent comes back: one folder for each session.
//!
//! The agent runs as root and the owner may be hostile, so nothing that the
//! agent writes, or reads again, lies in a folder that the owner can change:
//!
//! - `session.json` and `permissions` are the agent's alone, `*.log` are what
//!   the session's programs print through descriptors they inherit;
//! - `access` is the agent's folder with files that the owner may read (X
//!   authority, VNC password);
//! - `runtime` is the owner's folder: once it is given away the agent does
//!   nothing below it until the processes have ended, and then only removes it.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::process::Process;
use crate::agent::desktops::Failure;
use crate::domain::report::ReportedSession;
use crate::domain::{InstructionId, SessionId, SessionSpec, Timestamp};
use crate::files::{self, FileError};

/// Version of the record's format.
pub(super) const VERSION: u32 = 1;
/// Largest record in bytes.
const RECORD_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A log that is larger is cut back to nothing.
const LOG_BYTES_MAX: u64 = 1024 * 1024;
/// How much of a log a reason quotes, in bytes.
const TAIL_BYTES: u64 = 600;

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) id: SessionId,
    pub(super) spec: SessionSpec,
    pub(super) created_by: Option<InstructionId>,
    pub(super) created_at: Timestamp,
    /// Value of the mark in the environment of all its processes.
    pub(super) mark: String,
    pub(super) last_disconnected_at: Option<Timestamp>,
    /// The display, written down before its X server starts; `None` until then.
    pub(super) screen: Option<Screen>,
    /// What runs; `None` while it is being started.
    pub(super) running: Option<Running>,
}

/// The display of a session, and what the agent needs to look at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Screen {
    /// Number.
    pub(super) display: u16,
    /// User id of the session's owner: the cookie goes to no X server of
    /// anybody else's.
    pub(super) owner: u32,
    /// The key to the display.
    pub(super) cookie: Cookie,
}

/// A key to a display. It never shows in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cookie(pub(super) [u8; 16]);

impl std::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookie(..)")
    }
}

/// The processes of a session that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    /// The X server.
    pub(super) server: Process,
    /// The window manager or the init file.
    pub(super) desktop: Process,
    /// The autorun file; it may have ended long ago.
    pub(super) autorun: Option<Process>,
}

impl Running {
    /// The processes that lead kernel sessions.
    pub(super) fn leaders(&self) -> Vec<Process> {
        [self.server, self.desktop].into_iter().chain(self.autorun).collect()
    }
}

impl Record {
    /// As the broker is told.
    pub(super) fn report(&self, connections: u32) -> ReportedSession {
        ReportedSession {
            id: self.id.clone(),
            name: self.spec.name.clone(),
            owner: self.spec.owner.clone(),
            kind: self.spec.kind,
            usable: true,
            connections,
            clients_max: self.spec.clients_max,
            created_at: self.created_at,
            last_disconnected_at: self.last_disconnected_at,
            storage_root: self.spec.storage_root.clone(),
            created_by: self.created_by,
        }
    }
}

/// The folder of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Where a session's folder lies.
    pub(super) fn of(sessions: &Path, id: &SessionId) -> Result<Self, Failure> {
        let name = files::as_file_name(id.as_str())
            .ok_or_else(|| Failure(format!("session id {id} is too long for this host's file system")))?;
        Ok(Self(sessions.join(name)))
    }

    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Files that the owner may read and nobody but the agent can change.
    pub(super) fn access(&self) -> PathBuf {
        self.0.join("access")
    }

    pub(super) fn authority(&self) -> PathBuf {
        self.access().join("xauthority")
    }

    pub(super) fn password(&self) -> PathBuf {
        self.access().join("vnc-password")
    }

    /// The owner's folder.
    pub(super) fn runtime(&self) -> PathBuf {
        self.0.join("runtime")
    }

    pub(super) fn permissions(&self) -> PathBuf {
        self.0.join("permissions")
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.log"))
    }

    fn record(&self) -> PathBuf {
        self.0.join("session.json")
    }

    /// Writes the record durably.
    pub(super) fn write(&self, record: &Record) -> Result<(), Failure> {
        let content = serde_json::to_vec_pretty(record)
            .map_err(|error| Failure(format!("the record of session {} cannot be written: {error}", record.id)))?;
        files::replace(&self.record(), &content, 0o600).map_err(|error| Failure(error.to_string()))
    }

    /// Reads the record; `None` when there is none.
    pub(super) fn read(&self) -> Result<Option<Record>, String> {
        let path = self.record();
        let text = match files::read_text(&path, RECORD_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::of("read", &path)(error).to_string()),
        };
        let record: Record =
            serde_json::from_str(&text).map_err(|error| format!("{} is damaged: {error}", path.display()))?;
        if record.version != VERSION {
            return Err(format!("{} has version {}, not {VERSION}", path.display(), record.version));
        }
        Ok(Some(record))
    }

    /// Opens a log for a program to write to; appending, so that it can be cut.
    pub(super) fn open_log(&self, name: &str) -> Result<fs::File, Failure> {
        let path = self.log(name);
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Failure(format!("{} cannot be opened: {error}", path.display())))
    }

    /// The end of a log on one line, for a reason.
    pub(super) fn tail(&self, name: &str) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = fs::File::open(self.log(name))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut tail = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut tail)?;
            Ok(tail)
        };
        let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let printable = |c: &char| !c.is_control();
        if lines.is_empty() {
            "it printed nothing".to_owned()
        } else {
            lines.join("; ").chars().filter(printable).collect()
        }
    }

    /// Cuts logs that have grown too large.
    pub(super) fn bound_logs(&self) {
        for name in ["xvnc", "desktop", "autorun"] {
            let path = self.log(name);
            if path.metadata().is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX)
                && let Err(error) = fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(0))
            {
                tracing::warn!(file = %path.display(), %error, "a log of a session cannot be cut");
            }
        }
    }
}
