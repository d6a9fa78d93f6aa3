//! Keys that all replicas have in common: those that sign tokens and certificates.

use serde::{Deserialize, Serialize};

use super::ids::KeyId;
use super::time::Timestamp;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyPurpose {
    /// Access tokens of API clients.
    AccessToken,
    /// Tokens that open one desktop for one user.
    ConnectionToken,
    /// The certificates that clients and agents are shown: certificate and
    /// private key of the authority, sealed together.
    Authority,
}

impl KeyPurpose {
    /// Its name, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessToken => "ACCESS_TOKEN",
            Self::ConnectionToken => "CONNECTION_TOKEN",
            Self::Authority => "AUTHORITY",
        }
    }
}

/// A key. Its secret half is sealed with the cluster's key before it is
/// proposed; the log never holds it in clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    /// Id, sent as `kid` with each token.
    pub id: KeyId,
    /// What it is for.
    pub purpose: KeyPurpose,
    /// The sealed secret.
    pub sealed: Vec<u8>,
    /// When it was installed.
    pub installed_at: Timestamp,
}

/// A key that another one took the place of: what it signed is still good for
/// a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredKey {
    /// The key.
    pub key: SigningKey,
    /// Until when.
    pub until: Timestamp,
}

/// Retired keys of one purpose that are kept; the oldest go first.
pub const RETIRED_MAX: usize = 4;
