//! A session: one remote desktop of one owner.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ids::{ClientId, InstructionId, Owner, ServerId, SessionId};
use super::placement::Policy;
use super::requirements::Expression;
use super::time::Timestamp;

/// Kind of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionKind {
    /// The host's own screen; one on a host.
    Console,
    /// A display of its own; several on a host.
    Virtual,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    /// Name for people.
    pub name: String,
    /// User of the host.
    pub owner: Owner,
    /// Kind.
    pub kind: SessionKind,
    /// OpenGL acceleration of a virtual session.
    #[serde(default)]
    pub gl: bool,
    /// Most clients at a time.
    #[serde(default)]
    pub clients_max: Option<u32>,
    /// Start script of a virtual session, relative to the host's init folder.
    #[serde(default)]
    pub init_file: Option<String>,
    /// Program to run in the session, relative to the host's autorun folder.
    #[serde(default)]
    pub autorun_file: Option<String>,
    /// Its arguments.
    #[serde(default)]
    pub autorun_arguments: Vec<String>,
    /// Text of the permissions file.
    #[serde(default)]
    pub permissions: Option<String>,
    /// What the server must be.
    #[serde(default)]
    pub requirements: Option<Arc<Expression>>,
    /// Folder for file transfer.
    #[serde(default)]
    pub storage_root: Option<String>,
    /// Wait in the queue when no server fits.
    #[serde(default)]
    pub enqueue: bool,
    /// Do not try another server after a failure.
    #[serde(default)]
    pub retry_disabled: bool,
    /// Which of several servers gets it; `None` leaves it to the settings.
    #[serde(default)]
    pub placement: Option<Policy>,
}

impl SessionSpec {
    /// A session with nothing asked for beyond what it must have.
    pub const fn plain(name: String, owner: Owner, kind: SessionKind) -> Self {
        Self {
            name,
            owner,
            kind,
            gl: false,
            clients_max: None,
            init_file: None,
            autorun_file: None,
            autorun_arguments: Vec::new(),
            permissions: None,
            requirements: None,
            storage_root: None,
            enqueue: false,
            retry_disabled: false,
            placement: None,
        }
    }
}

/// Where a session is in its life. The API's states are derived from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for a server. CREATING, SESSION_PLACING.
    Placing {
        /// When it is given up.
        deadline: Timestamp,
    },
    /// A server was told to make it. CREATING, PENDING_PREPARATION.
    Preparing {
        /// Which server.
        server: ServerId,
        /// The instruction to it.
        instruction: InstructionId,
        /// When it is given up.
        deadline: Timestamp,
    },
    /// Its desktop answers. READY; UNKNOWN while its server is lost.
    Ready {
        /// Which server.
        server: ServerId,
    },
    /// A server was told to end it. DELETING.
    Deleting {
        /// Which server.
        server: ServerId,
        /// The instruction to it.
        instruction: InstructionId,
        /// When it counts as deleted all the same.
        deadline: Timestamp,
        /// How often the server was told.
        attempt: u32,
        /// Whether its desktop had answered: should the server not be able to
        /// end it, it is usable as before.
        was_ready: bool,
    },
    /// Gone; shown for a while. DELETED.
    Deleted {
        /// Server it was on, if it got that far.
        server: Option<ServerId>,
        /// When it is forgotten.
        forget_at: Timestamp,
        /// Whether the broker wanted it gone: should it be seen on a host
        /// again, it is closed there.
        unwanted: bool,
    },
    /// A server that did not make it in time was told to give it up; another
    /// one is tried when it has confirmed that. CREATING, PENDING_PREPARATION.
    Withdrawing {
        /// Which server.
        server: ServerId,
        /// The instruction to it.
        instruction: InstructionId,
        /// When it is given up.
        deadline: Timestamp,
    },
}

impl Phase {
    /// Server that the session is, or was, on.
    pub const fn server(&self) -> Option<&ServerId> {
        match self {
            Self::Placing { .. } => None,
            Self::Preparing { server, .. }
            | Self::Withdrawing { server, .. }
            | Self::Ready { server }
            | Self::Deleting { server, .. } => Some(server),
            Self::Deleted { server, .. } => server.as_ref(),
        }
    }

    /// Server on which the session takes up room now.
    pub const fn occupies(&self) -> Option<&ServerId> {
        match self {
            Self::Placing { .. } | Self::Deleted { .. } => None,
            Self::Preparing { server, .. }
            | Self::Withdrawing { server, .. }
            | Self::Ready { server }
            | Self::Deleting { server, .. } => Some(server),
        }
    }

    /// When this phase ends by itself; only `Ready` waits for nothing.
    pub const fn deadline(&self) -> Option<Timestamp> {
        match self {
            Self::Placing { deadline }
            | Self::Preparing { deadline, .. }
            | Self::Withdrawing { deadline, .. }
            | Self::Deleting { deadline, .. } => Some(*deadline),
            Self::Deleted { forget_at, .. } => Some(*forget_at),
            Self::Ready { .. } => None,
        }
    }

    /// Whether the session is gone.
    pub const fn is_deleted(&self) -> bool {
        matches!(self, Self::Deleted { .. })
    }
}

/// A session as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Id.
    pub id: SessionId,
    /// What was asked for, or what the host reported of a session it made.
    pub spec: SessionSpec,
    /// Client that asked; `None` when the host made it.
    pub requested_by: Option<ClientId>,
    /// When it was asked for, or made by its host.
    pub created_at: Timestamp,
    /// Place in the order of arrival; 0 for one that its host made.
    pub arrival: u64,
    /// When its phase, or the reason for it, last changed.
    pub changed_at: Timestamp,
    /// Where it is in its life.
    pub phase: Phase,
    /// Servers that failed to create it, in order.
    pub failed_on: Vec<ServerId>,
    /// Why it is in this state, when something went wrong or ended.
    pub state_reason: Option<String>,
    /// Clients connected, as last reported.
    pub connections: u32,
    /// When the last client left, as last reported.
    pub last_disconnected_at: Option<Timestamp>,
}

impl Session {
    /// State as callers see it, while its server counts as gone or is not
    /// listed (`server_is_lost`), or is there.
    pub const fn state(&self, server_is_lost: bool) -> SessionState {
        match &self.phase {
            Phase::Preparing { .. } | Phase::Withdrawing { .. } | Phase::Ready { .. } if server_is_lost => {
                SessionState::Unknown
            }
            Phase::Placing { .. } | Phase::Preparing { .. } | Phase::Withdrawing { .. } => SessionState::Creating,
            Phase::Ready { .. } => SessionState::Ready,
            Phase::Deleting { .. } => SessionState::Deleting,
            Phase::Deleted { .. } => SessionState::Deleted,
        }
    }

    /// Why it is in a state, when something went wrong or ended.
    pub fn reason_for(&self, state: SessionState) -> Option<&str> {
        match state {
            SessionState::Unknown => Some("the agent of its server cannot be reached"),
            _ => self.state_reason.as_deref(),
        }
    }
}

/// State of a session as callers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SessionState {
    /// Being created.
    Creating,
    /// Usable.
    Ready,
    /// Being deleted.
    Deleting,
    /// Gone.
    Deleted,
    /// Its server is out of reach.
    Unknown,
}
