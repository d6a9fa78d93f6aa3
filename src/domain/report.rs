//! Reports: what an agent says of its host and of the sessions there.

use serde::{Deserialize, Serialize};

use super::host::{Health, HostFacts, HostLoad};
use super::ids::{InstructionId, Owner, SessionId};
use super::session::SessionKind;
use super::time::Timestamp;

/// What changed since the agent's last report. The first report of a
/// connection is full: everything is present and the inventory is
/// [`Inventory::Full`]. A report without any part is a sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Facts of the host, when one of them changed.
    pub facts: Option<HostFacts>,
    /// Load of the host, when it changed.
    pub load: Option<HostLoad>,
    /// Health, when it changed.
    pub health: Option<Health>,
    /// Sessions, when one of them changed.
    pub sessions: Option<Inventory>,
}

/// The sessions of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inventory {
    /// All there are: one that is not listed does not exist.
    Full(Vec<ReportedSession>),
    /// Only what changed.
    Changes {
        /// New or different.
        changed: Vec<ReportedSession>,
        /// No longer there.
        gone: Vec<EndedSession>,
    },
}

/// A session that ended on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedSession {
    /// Which.
    pub id: SessionId,
    /// Why, as far as the host knows.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A session as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedSession {
    /// Id.
    pub id: SessionId,
    /// Name; may be empty for a session that the host made by itself.
    #[serde(default)]
    pub name: String,
    /// Owner.
    pub owner: Owner,
    /// Kind.
    pub kind: SessionKind,
    /// Whether a person can use it now.
    pub usable: bool,
    /// Clients connected now.
    #[serde(default)]
    pub connections: u32,
    /// Most clients at a time.
    #[serde(default)]
    pub clients_max: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the last client left.
    #[serde(default)]
    pub last_disconnected_at: Option<Timestamp>,
    /// Folder for file transfer.
    #[serde(default)]
    pub storage_root: Option<String>,
    /// The instruction that made it; `None` when the host made it by itself.
    #[serde(default)]
    pub created_by: Option<InstructionId>,
}
