//! How an agent becomes known to its brokers: it posts a registration to
//! [`PATH`] and gets a certificate for its key.
//!
//! The form is that of RFC 7591 (dynamic client registration): JSON, with a
//! software statement that an operator made. What is not of the RFC: the
//! server's id, a request for a certificate (PKCS #10) in PEM, and the
//! certificate. The client is known by its key: whoever posts a request with
//! the key of an agent that enrolled before gets a new certificate, and needs
//! no statement for that.

use serde::{Deserialize, Serialize};

use crate::domain::{ClientId, ServerId};

/// Where agents enrol, on the agents' port.
pub const PATH: &str = "/agent/enrol";

/// Longest registration, in bytes.
pub const REGISTRATION_BYTES_MAX: usize = 32 * 1024;

/// Longest answer, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Longest name of a client, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 255;

/// What an agent posts (RFC 7591 section 3.1). It shows no secret when it is
/// printed, for it cannot be.
#[derive(Serialize, Deserialize)]
pub struct Registration {
    /// What an operator made; not needed by who enrolled before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_statement: Option<String>,
    /// Name of the host, for people.
    #[serde(default)]
    pub client_name: String,
    /// The server that the agent is.
    pub server_id: ServerId,
    /// A request for a certificate (PKCS #10) in PEM, signed with the agent's key.
    pub certificate_request: String,
}

/// The answer (RFC 7591 section 3.2.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Id of the agent, which follows from its key.
    pub client_id: ClientId,
    /// When it enrolled, in seconds since 1970.
    pub client_id_issued_at: u64,
    /// Name of the host.
    pub client_name: String,
    /// The server that the agent is.
    pub server_id: ServerId,
    /// How it proves itself: always `tls_client_auth` (RFC 8705 section 2.1).
    pub token_endpoint_auth_method: String,
    /// What its certificates name (RFC 8705 section 2.1.2).
    pub tls_client_auth_san_uri: String,
    /// The certificate in PEM.
    pub certificate: String,
    /// How long it is good, in seconds.
    pub certificate_expires_in: u64,
}

/// Why an agent is not enrolled (RFC 7591 section 3.2.2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A word for programs, of [`error`].
    #[serde(default)]
    pub error: String,
    /// What to do, for people.
    #[serde(default)]
    pub error_description: String,
}

/// The words of [`Refused`].
pub mod error {
    /// The registration cannot be used as it is.
    pub const METADATA: &str = "invalid_client_metadata";
    /// It has no statement, or none of this cluster.
    pub const STATEMENT: &str = "invalid_software_statement";
    /// The statement was deactivated.
    pub const UNAPPROVED: &str = "unapproved_software_statement";
    /// An operator shut the agent out.
    pub const DENIED: &str = "access_denied";
    /// Not now: try again later.
    pub const UNAVAILABLE: &str = "temporarily_unavailable";
}
