//! What replicas say to each other about the cluster itself.

use serde::{Deserialize, Serialize};

use crate::domain::ReplicaId;
use crate::domain::audit::Deed;
use crate::domain::ids::FolderId;

/// A question to the cluster's service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Who are you, and does your cluster exist?
    Introduce,
    /// An operator's wish that the leader carries out, and what the audit is to
    /// say of it where the log is changed by it.
    Do(Wish, Option<Deed>),
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Who it is.
    Introduction(Introduction),
    /// The wish was carried out.
    Done,
    /// It was not, and would not be if it were asked again.
    Refused(String),
    /// It leads no more, or not yet.
    NotLeader,
    /// It was not: another change of members has to end first.
    Busy,
}

/// What operators want of the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// A member is removed for good.
    Remove(ReplicaId),
    /// Another one leads; whichever is best when none is named.
    TransferLeader(Option<ReplicaId>),
    /// A member is reached elsewhere from now on.
    Move {
        /// Which.
        replica: ReplicaId,
        /// Its data folder.
        folder: FolderId,
        /// Its new address.
        address: String,
    },
    /// Replicas show certificates of the next authority.
    RotateCertificates {
        /// The authority to move on to: the next one, as who asks knows it.
        to: u32,
    },
    /// The log is written in this format from now on.
    RaiseFormat(u16),
}

impl Wish {
    /// Whether a command in the log is part of it, and so the record of it.
    pub const fn changes_log(&self) -> bool {
        matches!(self, Self::Remove(_) | Self::RotateCertificates { .. })
    }
}

/// Who a replica is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its number.
    pub replica: ReplicaId,
    /// Its data folder.
    pub folder: FolderId,
    /// Whether it has a log, or ever had: then its cluster exists.
    pub has_log: bool,
    /// The members that its log names, and their folders.
    pub members: Vec<(ReplicaId, String)>,
    /// The authority whose certificates it shows.
    pub authority: u32,
}

/// A wish to join. The certificate says with which invitation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The data folder of the one who asks.
    pub folder: FolderId,
    /// Where other replicas are to reach it.
    pub address: String,
    /// A secret of the one who asks: whoever asks again must have it.
    pub proof: String,
    /// The newest format of the log that it reads.
    pub format_max: u16,
}

/// The answer to a wish to join.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Joined {
    /// It may join.
    Welcome {
        /// Its number.
        replica: ReplicaId,
        /// The cluster's secret, in the words of its file.
        secret: String,
        /// The authority whose certificates are shown now.
        authority: u32,
    },
    /// It may not.
    Refused(String),
}
