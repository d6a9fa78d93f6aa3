//! Replicas of the broker, as far as the log decides about them: who may join,
//! and under which number. Who belongs to the cluster is the log's own account
//! of its members.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::ids::{FolderId, InvitationId, ReplicaId};
use super::request::Fingerprint;
use super::time::Timestamp;

/// Invitations that may be open at a time.
pub const INVITATIONS_MAX: usize = 64;

/// Replicas that joined and were not retired, at most. More than any cluster
/// has; bounds what the log keeps of joins that were never finished.
pub const ADMITTED_MAX: usize = 64;

/// Lets one new replica join, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Until when.
    pub expires_at: Timestamp,
    /// The replica whose place it takes; that one is removed first.
    pub replaces: Option<ReplicaId>,
    /// The replica that gave it out.
    pub by: ReplicaId,
}

/// A replica that was let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The invitation that it came with.
    pub invitation: InvitationId,
    /// Its data folder.
    pub folder: FolderId,
    /// Hash of the secret that it proves with that it asks again.
    pub proof: Fingerprint,
    /// Where other replicas reach it.
    pub address: String,
    /// The replica whose place it takes.
    pub replaces: Option<ReplicaId>,
}

/// What the log decided about replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The highest number that was ever given.
    pub last_replica: ReplicaId,
    /// Open invitations.
    pub invitations: OrdMap<InvitationId, Invitation>,
    /// Replicas that joined, by their number.
    pub admitted: OrdMap<ReplicaId, Admission>,
    /// Which of the cluster's certificate authorities, one after the other,
    /// signs the certificates that replicas show each other.
    pub authority: u32,
}
