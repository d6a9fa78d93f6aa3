//! Connection gateways, and the certificates that they were given.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::audit::Digest;
use super::time::Timestamp;

/// Longest name of a gateway, in bytes.
pub const GATEWAY_NAME_BYTES_MAX: usize = 64;
/// Certificates of gateways that are good at the same time.
pub const GATEWAY_CERTIFICATES_MAX: usize = 10_000;

/// What operators call a gateway by: 1 to [`GATEWAY_NAME_BYTES_MAX`] letters,
/// digits, `.`, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GatewayName(String);

/// Why somebody cannot be named in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` cannot stand in a certificate; use at most {GATEWAY_NAME_BYTES_MAX} letters, digits, `.`, `-` and `_`"
)]
pub struct NameError {
    /// The name.
    pub text: String,
}

impl GatewayName {
    /// Checks a name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if is_plain(text) { Ok(Self(text.to_owned())) } else { Err(NameError { text: text.to_owned() }) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a text is as the name of a gateway must be.
pub fn is_plain(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text.len() <= GATEWAY_NAME_BYTES_MAX && text.bytes().all(is_plain)
}

impl fmt::Display for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for GatewayName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        if is_plain(&text) { Ok(Self(text)) } else { Err(NameError { text }) }
    }
}

impl From<GatewayName> for String {
    fn from(name: GatewayName) -> Self {
        name.0
    }
}

/// A certificate of the cluster's authority that lets a gateway in until it
/// ends or is revoked. A gateway may have several: its next one is made while
/// the present one is good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayCertificate {
    /// Whose it is.
    pub gateway: GatewayName,
    /// SHA-256 of the certificate.
    pub digest: Digest,
    /// When it was signed.
    pub signed_at: Timestamp,
    /// Its end.
    pub until: Timestamp,
}

impl GatewayCertificate {
    /// Whether it is that gateway's and, when one is told, that certificate.
    pub fn is(&self, gateway: &GatewayName, certificate: Option<Digest>) -> bool {
        self.gateway == *gateway && certificate.is_none_or(|certificate| self.digest == certificate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_stand_in_a_certificate_as_it_is() {
        for text in ["a", "gw-1.example", "GW_2", &"a".repeat(64)] {
            let name = GatewayName::new(text).expect("valid");
            assert_eq!(GatewayName::try_from(text.to_owned()), Ok(name.clone()));
            assert_eq!((name.as_str(), String::from(name.clone()).as_str()), (text, text));
        }
        for text in ["", "a b", "ü", "a/b", &"a".repeat(65)] {
            let error = Err(NameError { text: text.to_owned() });
            assert_eq!((GatewayName::new(text), GatewayName::try_from(text.to_owned())), (error.clone(), error));
        }
    }
}
