//! Whom a client's certificate names.
//!
//! Certificates of the cluster's authority name agents and gateways, each in
//! one URI of the subject's alternative names. Other authorities that an
//! operator trusts may put there what they like: a certificate counts as an
//! agent's or a gateway's only when the cluster's own authority signed it.

use std::fmt;
use std::net::SocketAddr;

use crate::domain::ClientId;

/// Longest name of a gateway, and id of an agent.
const NAME_BYTES_MAX: usize = 64;
const AGENT: &str = "berth:agent:";
const GATEWAY: &str = "berth:gateway:";

/// Who showed a certificate that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The agent that was enrolled under this id.
    Agent(ClientId),
    /// The gateway of this name.
    Gateway(GatewayName),
    /// The holder of a certificate of another authority that is trusted here:
    /// its subject, as X.509 writes it.
    Other(String),
}

/// Who is at the other end of a connection. Each request carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// From where.
    pub address: SocketAddr,
    /// Whom the certificate names that was shown and accepted.
    pub certificate: Option<Subject>,
}

/// What operators call a gateway by: letters, digits, `.`, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayName(String);

/// Why somebody cannot be named in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot stand in a certificate; use at most {bytes_max} letters, digits, `.`, `-` and `_`")]
pub struct SubjectError {
    /// The name.
    pub text: String,
    /// The limit.
    pub bytes_max: usize,
}

impl GatewayName {
    /// Checks a name.
    pub fn new(text: &str) -> Result<Self, SubjectError> {
        if is_plain(text, NAME_BYTES_MAX) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SubjectError { text: text.to_owned(), bytes_max: NAME_BYTES_MAX })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_plain(text: &str, bytes_max: usize) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text.len() <= bytes_max && text.bytes().all(is_plain)
}

impl Subject {
    /// The subject as a URI of a certificate of ours. An id that is not as
    /// plain as a UUID has none; neither do strangers.
    pub fn uri(&self) -> Result<String, SubjectError> {
        match self {
            Self::Agent(id) if is_plain(id.as_str(), NAME_BYTES_MAX) => Ok(format!("{AGENT}{}", id.as_str())),
            Self::Gateway(name) => Ok(format!("{GATEWAY}{name}")),
            Self::Agent(_) | Self::Other(_) => Err(SubjectError { text: self.to_string(), bytes_max: NAME_BYTES_MAX }),
        }
    }

    /// The subject that a URI names.
    pub(super) fn of_uri(uri: &str) -> Option<Self> {
        if let Some(id) = uri.strip_prefix(AGENT) {
            return is_plain(id, NAME_BYTES_MAX).then(|| ClientId::new(id).ok().map(Self::Agent))?;
        }
        GatewayName::new(uri.strip_prefix(GATEWAY)?).ok().map(Self::Gateway)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(id) => f.write_str(id.as_str()),
            Self::Gateway(name) => f.write_str(name.as_str()),
            Self::Other(subject) => f.write_str(subject),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_comes_back_from_its_uri_and_nothing_else_is_one() {
        let agent = Subject::Agent(ClientId::new("0191e1a2-6c1d-7aa2-bb1c-a8f2a4d9b1c3").expect("valid"));
        let gateway = Subject::Gateway(GatewayName::new("gw-1.example").expect("valid"));
        for subject in [agent, gateway] {
            assert_eq!(Subject::of_uri(&subject.uri().expect("plain")), Some(subject));
        }
        for uri in ["", "berth:agent:", "berth:agent:a b", "berth:gateway:ü", "berth:admin:a", "https://a.example"] {
            assert_eq!(Subject::of_uri(uri), None, "{uri}");
        }
        assert!(Subject::Other("CN=gw".to_owned()).uri().is_err());
        assert!(Subject::Agent(ClientId::new("with space").expect("an id")).uri().is_err());
        assert!(GatewayName::new(&"a".repeat(65)).is_err());
    }
}
