//! Names under which gateways reach servers, where a server's own name does
//! not do.

use serde::{Deserialize, Serialize};

/// Mappings that are kept.
pub const DNS_MAPPINGS_MAX: usize = 200_000;
/// Mappings in one command; more are given in several.
pub const DNS_MAPPINGS_PER_COMMAND_MAX: usize = 10_000;
/// Longest name or address, in bytes (RFC 1035 section 2.3.4 allows 253).
pub const NAME_BYTES_MAX: usize = 253;

/// What a server is named by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServerName {
    /// Its address.
    Ip(String),
    /// Its id.
    Id(String),
    /// Its EC2 instance.
    Ec2InstanceId(String),
}

impl ServerName {
    /// The kind, as mapping files name it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Ip(_) => "Ip",
            Self::Id(_) => "Id",
            Self::Ec2InstanceId(_) => "Host.Aws.Ec2InstanceId",
        }
    }

    /// The name itself.
    pub fn value(&self) -> &str {
        match self {
            Self::Ip(value) | Self::Id(value) | Self::Ec2InstanceId(value) => value,
        }
    }
}

/// Names of a server in the DNS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsNames {
    /// Where gateways reach it.
    pub internal: String,
    /// Where clients reach it; kept for those who ask.
    pub external: Option<String>,
}

/// A server and its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsMapping {
    /// Which server.
    pub server: ServerName,
    /// Its names.
    pub names: DnsNames,
}
