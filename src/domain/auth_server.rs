//! Authorization servers of others, whose access tokens are taken.

use serde::{Deserialize, Serialize};

/// Servers that may be registered.
pub const AUTH_SERVERS_MAX: usize = 16;
/// Longest URL, in bytes.
pub const URL_BYTES_MAX: usize = 2_048;
/// Longest issuer, audience, type or scope that is demanded, in bytes.
pub const DEMAND_BYTES_MAX: usize = 512;
/// Longest set of keys in PEM that is given by hand, in bytes.
pub const PEM_BYTES_MAX: usize = 64 * 1024;

/// An algorithm that tokens may be signed with: asymmetric ones alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SignatureAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RS384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RS512,
    /// RSASSA-PSS with SHA-256.
    PS256,
    /// RSASSA-PSS with SHA-384.
    PS384,
    /// RSASSA-PSS with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

impl SignatureAlgorithm {
    /// All there are.
    pub const ALL: [Self; 9] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::EdDSA,
    ];

    /// Its name in JOSE (RFC 7518 section 3.1, RFC 8037 section 3.1).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDSA => "EdDSA",
        }
    }

    /// The algorithm with a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }
}

/// A server whose tokens are taken. What is not demanded is not looked at:
/// tokens of widespread servers have no fixed `typ`, `aud` or scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthServer {
    /// Where its keys are: ends with `.well-known/jwks.json`. Also its name
    /// here when the keys are given by hand.
    pub url: String,
    /// Algorithms that its tokens may be signed with; empty for each that fits
    /// the key.
    pub algorithms: Vec<SignatureAlgorithm>,
    /// `iss` that is demanded.
    pub issuer: Option<String>,
    /// `aud` that is demanded.
    pub audience: Option<String>,
    /// `typ` that is demanded.
    pub token_type: Option<String>,
    /// A word that must be in `scope` or `scp`.
    pub scope: Option<String>,
    /// Public keys in PEM, instead of those at the URL.
    pub keys_pem: Option<String>,
    /// Authorities in PEM that the URL's certificate may come from, besides
    /// those of the system.
    pub ca_pem: Option<String>,
}

impl AuthServer {
    /// Whether nothing is said of it but its URL.
    pub fn demands_nothing(&self) -> bool {
        let Self { url: _, algorithms, issuer, audience, token_type, scope, keys_pem, ca_pem } = self;
        let texts = [issuer, audience, token_type, scope, keys_pem, ca_pem];
        algorithms.is_empty() && texts.into_iter().all(Option::is_none)
    }

    /// What is demanded of its tokens, in words.
    pub fn demands(&self) -> String {
        let algorithms: Vec<_> = self.algorithms.iter().map(|algorithm| algorithm.as_str()).collect();
        let named = [
            ("issuer", &self.issuer),
            ("audience", &self.audience),
            ("type", &self.token_type),
            ("scope", &self.scope),
        ];
        let named = named.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?)));
        let algorithms = (!algorithms.is_empty()).then(|| format!("algorithms {}", algorithms.join(" ")));
        let keys = self.keys_pem.as_ref().map(|_| "keys given by hand".to_owned());
        let all: Vec<String> = named.chain(algorithms).chain(keys).collect();
        if all.is_empty() { "nothing demanded".to_owned() } else { all.join(", ") }
    }
}
