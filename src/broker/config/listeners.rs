//! `[clients]`, `[agents]`, `[gateway]`: listening ports and their certificates.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use crate::protocol;
use crate::secret::Secret;

/// Port for API clients, as in the original.
pub const CLIENT_PORT: u16 = 8443;
/// Port for connection gateways, as in the original.
pub const GATEWAY_PORT: u16 = 8447;

/// A listening port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listener {
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificate chain in PEM; made by the broker's own CA when absent.
    pub certificate_file: Option<PathBuf>,
    /// Its private key in PEM.
    pub key_file: Option<PathBuf>,
    /// Certificate chain and key in a key store (JKS or PKCS#12) instead.
    pub key_store_file: Option<PathBuf>,
    /// File with its password.
    pub key_store_password_file: Option<PathBuf>,
    /// Its password, as the original's file holds it. No key of `berth.toml`.
    #[serde(skip)]
    pub key_store_password: Option<Secret>,
    /// Connections at a time.
    pub connections_max: usize,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), CLIENT_PORT),
            certificate_file: None,
            key_file: None,
            key_store_file: None,
            key_store_password_file: None,
            key_store_password: None,
            connections_max: 10_000,
        }
    }
}

impl Listener {
    /// What is wrong with it.
    pub(super) fn problems(&self, listener: &'static str) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        if self.certificate_file.is_some() != self.key_file.is_some() {
            problems.push(ConfigError::HalfCertificate { listener });
        }
        if self.key_store_file.is_some() && (self.certificate_file.is_some() || self.key_file.is_some()) {
            problems.push(ConfigError::TwoCertificates { listener });
        }
        let has_password = self.key_store_password_file.is_some() || self.key_store_password.is_some();
        if has_password && self.key_store_file.is_none() {
            problems.push(ConfigError::PasswordAlone { listener, store: "key_store" });
        }
        problems
    }
}

/// The port for agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentListener {
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificate chain in PEM; made by the broker's own CA when absent.
    pub certificate_file: Option<PathBuf>,
    /// Its private key in PEM.
    pub key_file: Option<PathBuf>,
    /// Certificate chain and key in a key store (JKS or PKCS#12) instead.
    pub key_store_file: Option<PathBuf>,
    /// File with its password.
    pub key_store_password_file: Option<PathBuf>,
    /// Its password, as the original's file holds it. No key of `berth.toml`.
    #[serde(skip)]
    pub key_store_password: Option<Secret>,
    /// Connections at a time.
    pub connections_max: usize,
    /// Whether agents must prove who they are (`enable-agent-authorization`).
    pub authorization: bool,
}

impl Default for AgentListener {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), protocol::DEFAULT_PORT),
            certificate_file: None,
            key_file: None,
            key_store_file: None,
            key_store_password_file: None,
            key_store_password: None,
            connections_max: 100_000,
            authorization: true,
        }
    }
}

impl AgentListener {
    /// What it has in common with other listeners.
    pub fn listener(&self) -> Listener {
        Listener {
            listen: self.listen,
            certificate_file: self.certificate_file.clone(),
            key_file: self.key_file.clone(),
            key_store_file: self.key_store_file.clone(),
            key_store_password_file: self.key_store_password_file.clone(),
            key_store_password: self.key_store_password.clone(),
            connections_max: self.connections_max,
        }
    }
}

/// The port for connection gateways, which ask there where a session is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayListener {
    /// Whether there is such a port (`enable-gateway`).
    pub enabled: bool,
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificate chain in PEM; made by the broker's own CA when absent.
    pub certificate_file: Option<PathBuf>,
    /// Its private key in PEM.
    pub key_file: Option<PathBuf>,
    /// Certificate chain and key in a key store (JKS or PKCS#12) instead.
    pub key_store_file: Option<PathBuf>,
    /// File with its password.
    pub key_store_password_file: Option<PathBuf>,
    /// Its password, as the original's file holds it. No key of `berth.toml`.
    #[serde(skip)]
    pub key_store_password: Option<Secret>,
    /// Whether gateways must show a certificate
    /// (`enable-tls-client-auth-gateway`).
    pub require_client_certificate: bool,
    /// Authorities whose certificates gateways may show, in PEM.
    pub trust_file: Option<PathBuf>,
    /// The same in a trust store (JKS or PKCS#12) instead.
    pub trust_store_file: Option<PathBuf>,
    /// File with its password.
    pub trust_store_password_file: Option<PathBuf>,
    /// Its password, as the original's file holds it. No key of `berth.toml`.
    #[serde(skip)]
    pub trust_store_password: Option<Secret>,
    /// Connections at a time.
    pub connections_max: usize,
}

impl Default for GatewayListener {
    fn default() -> Self {
        Self {
            enabled: false,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), GATEWAY_PORT),
            certificate_file: None,
            key_file: None,
            key_store_file: None,
            key_store_password_file: None,
            key_store_password: None,
            require_client_certificate: true,
            trust_file: None,
            trust_store_file: None,
            trust_store_password_file: None,
            trust_store_password: None,
            connections_max: 1_000,
        }
    }
}

impl GatewayListener {
    /// What it has in common with other listeners.
    pub fn listener(&self) -> Listener {
        Listener {
            listen: self.listen,
            certificate_file: self.certificate_file.clone(),
            key_file: self.key_file.clone(),
            key_store_file: self.key_store_file.clone(),
            key_store_password_file: self.key_store_password_file.clone(),
            key_store_password: self.key_store_password.clone(),
            connections_max: self.connections_max,
        }
    }

    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<ConfigError> {
        let mut problems = self.listener().problems("gateway");
        if self.trust_file.is_some() && self.trust_store_file.is_some() {
            problems.push(ConfigError::TwoTrusts);
        }
        let has_password = self.trust_store_password_file.is_some() || self.trust_store_password.is_some();
        if has_password && self.trust_store_file.is_none() {
            problems.push(ConfigError::PasswordAlone { listener: "gateway", store: "trust_store" });
        }
        problems
    }
}
