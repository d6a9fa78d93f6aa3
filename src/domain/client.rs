//! Who may call the API, and the keys that sign tokens.

use serde::{Deserialize, Serialize};

use super::ids::{ClientId, KeyId};
use super::time::Timestamp;

/// A registered client of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiClient {
    /// Id.
    pub id: ClientId,
    /// Name for people.
    pub name: String,
    /// Argon2id hash of the secret, in PHC text form. The secret itself is
    /// shown once and kept nowhere.
    pub secret_hash: String,
    /// Whether it may obtain tokens.
    pub active: bool,
    /// When it was registered.
    pub registered_at: Timestamp,
}

/// What a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyPurpose {
    /// Access tokens of API clients.
    AccessToken,
    /// Tokens that open one desktop for one user.
    ConnectionToken,
    /// The certificates that clients and agents are shown: certificate and
    /// private key of the authority, sealed together.
    Authority,
    /// The secret that agents prove themselves with.
    AgentSecret,
}

/// A signing key. The private half is sealed with the cluster's key before it
/// is proposed; the log never holds it in clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    /// Id, sent as `kid` with each token.
    pub id: KeyId,
    /// What it signs.
    pub purpose: KeyPurpose,
    /// Sealed private key.
    pub sealed: Vec<u8>,
    /// When it was installed.
    pub installed_at: Timestamp,
}
