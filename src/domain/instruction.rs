//! Instructions: what the broker wants an agent to do.
//!
//! They wait in the server's outbox, which is part of the replicated state,
//! until the agent answers. Delivery is at least once; the agent keeps a
//! ledger of instruction ids, so the effect is at most once.

use serde::{Deserialize, Serialize};

use super::ids::{InstructionId, SessionId};
use super::session::SessionSpec;
use super::time::Timestamp;

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Id; a later instruction has a greater one.
    pub id: InstructionId,
    /// When the broker decided it.
    pub issued_at: Timestamp,
    /// What to do.
    pub action: Action,
}

/// What an instruction asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Make a session and answer when its desktop answers.
    CreateSession {
        /// Id it is to have.
        session: SessionId,
        /// What it is to be.
        spec: SessionSpec,
    },
    /// End a session and everything that runs in it.
    CloseSession {
        /// Which.
        session: SessionId,
    },
    /// Replace the permissions of a session.
    SetPermissions {
        /// Which.
        session: SessionId,
        /// Text of the permissions file.
        permissions: String,
    },
}

impl Action {
    /// The session it concerns.
    pub const fn session(&self) -> &SessionId {
        match self {
            Self::CreateSession { session, .. }
            | Self::CloseSession { session }
            | Self::SetPermissions { session, .. } => session,
        }
    }
}

/// How an instruction ended on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done. Closing a session that does not exist is done, too.
    Done,
    /// Not done, and it will not be.
    Failed {
        /// Why, for people.
        reason: String,
    },
}
