//! A server: a desktop host with an agent.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::host::{Health, HostFacts, HostLoad};
use super::ids::{Epoch, ReplicaId, ServerId};
use super::time::{Millis, Timestamp};

/// A server as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Id, kept by the agent.
    pub id: ServerId,
    /// Facts that seldom change.
    pub facts: Arc<HostFacts>,
    /// Load as last reported.
    pub load: HostLoad,
    /// Whether it can give desktops.
    pub health: Health,
    /// The connection to its agent.
    pub link: Link,
    /// How often the agent reports.
    pub report_interval: Millis,
    /// When something was last heard of it.
    pub heard_at: Timestamp,
    /// When it first connected.
    pub first_seen_at: Timestamp,
}

/// The connection to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// Connected.
    Up {
        /// Number of the connection.
        epoch: Epoch,
        /// Replica that holds it.
        via: ReplicaId,
    },
    /// The connection broke a moment ago: nothing new is placed there, its
    /// sessions still count as reachable.
    Interrupted {
        /// Number of the connection that broke.
        epoch: Epoch,
    },
    /// Silent for longer than three reports: its sessions are UNKNOWN.
    Lost {
        /// Number of the last connection.
        epoch: Epoch,
        /// Since when.
        since: Timestamp,
    },
}

impl Link {
    /// Number of the current or last connection.
    pub const fn epoch(&self) -> Epoch {
        match self {
            Self::Up { epoch, .. } | Self::Interrupted { epoch } | Self::Lost { epoch, .. } => *epoch,
        }
    }

    /// Whether an agent is connected.
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// Whether the agent counts as gone.
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// Why no session is placed on a server. The names are those of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unavailability {
    /// No further session fits.
    ServerFull,
    /// An operator closed it.
    ServerClosed,
    /// Its agent is not connected.
    UnreachableAgent,
    /// Its desktop server does not work.
    UnhealthyDcvServer,
    /// Somebody works at it outside the broker.
    ExistingLoggedInUser,
}
