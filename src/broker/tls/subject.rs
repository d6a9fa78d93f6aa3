//! Whom a client's certificate names.
//!
//! Certificates of the cluster's authority name agents and gateways, each in
//! one URI of the subject's alternative names. Other authorities that an
//! operator trusts may put there what they like: a certificate counts as an
//! agent's or a gateway's only when the cluster's own authority signed it.

use std::fmt;
use std::net::SocketAddr;

use crate::domain::ClientId;
use crate::domain::audit::Digest;
use crate::domain::gateway::{GatewayName, NameError, is_plain};

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
    /// The certificate that was shown and accepted.
    pub certificate: Option<Shown>,
}

/// A certificate that somebody showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Whom it names.
    pub subject: Subject,
    /// SHA-256 of it.
    pub digest: Digest,
}

impl Subject {
    /// The subject as a URI of a certificate of ours. An id that is not as
    /// plain as a UUID has none; neither do strangers.
    pub fn uri(&self) -> Result<String, NameError> {
        match self {
            Self::Agent(id) if is_plain(id.as_str()) => Ok(format!("{AGENT}{}", id.as_str())),
            Self::Gateway(name) => Ok(format!("{GATEWAY}{name}")),
            Self::Agent(_) | Self::Other(_) => Err(NameError { text: self.to_string() }),
        }
    }

    /// The subject that a URI names.
    pub(super) fn of_uri(uri: &str) -> Option<Self> {
        if let Some(id) = uri.strip_prefix(AGENT) {
            return is_plain(id).then(|| ClientId::new(id).ok().map(Self::Agent))?;
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
    }
}
