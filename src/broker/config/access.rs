//! `[authorization]`, `[tokens]`, `[limits]`: who may call, with what, how much.

use serde::{Deserialize, Serialize};

use super::network::Network;

/// Who may call the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authorization {
    /// Whether the API asks for an access token (`enable-authorization`).
    pub enabled: bool,
    /// Whether this broker issues access tokens itself
    /// (`enable-authorization-server`).
    pub server: bool,
}

impl Default for Authorization {
    fn default() -> Self {
        Self { enabled: true, server: true }
    }
}

/// How tokens are signed. The names are those of JSON Web Algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum TokenAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// RSA PKCS#1 v1.5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
}

impl TokenAlgorithm {
    /// Its name in JOSE (RFC 7518 section 3.1, RFC 8037 section 3.1).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
            Self::Rs256 => "RS256",
        }
    }
}

/// What the broker issues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// How access tokens are signed.
    pub algorithm: TokenAlgorithm,
    /// Lifetime of access tokens, in seconds.
    pub access_seconds: u64,
    /// Lifetime of connection tokens, in minutes
    /// (`connect-session-token-duration-minutes`).
    pub connection_minutes: u64,
    /// Whether a connection token opens a session once only.
    pub connection_single_use: bool,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            algorithm: TokenAlgorithm::default(),
            access_seconds: 3600,
            connection_minutes: 60,
            connection_single_use: false,
        }
    }
}

/// How much clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests per second, of each client and of each address
    /// (`max-api-requests-per-second`); 0 sets no limit.
    pub requests_per_second: u32,
    /// Whether the address is taken from `X-Forwarded-For`
    /// (`enable-throttling-forwarded-for-header`).
    pub forwarded_for: bool,
    /// Whose `X-Forwarded-For` counts; everybody's when empty.
    pub trusted_proxies: Vec<Network>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests_per_second: 1_000, forwarded_for: false, trusted_proxies: Vec::new() }
    }
}
