//! Configuration of a replica: `berth.toml`. Unknown keys are errors;
//! `docs/operations.md` lists every key, and a test compares the two.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::domain::placement::Policy;
use crate::domain::{Millis, ReplicaId, Settings};
use crate::protocol::{self, ImageFormat};

/// Port for API clients, as in the original.
pub const CLIENT_PORT: u16 = 8443;

/// Configuration of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of everything that must survive: log, snapshots, keys.
    pub data_folder: PathBuf,
    /// Number of this replica.
    pub replica: u64,
    /// Further names and addresses for which the server certificate is to hold.
    pub names: Vec<String>,
    /// The other replicas.
    pub cluster: Cluster,
    /// Port for API clients.
    pub clients: Listener,
    /// Port for agents.
    pub agents: AgentListener,
    /// Sessions and their times.
    pub sessions: Sessions,
    /// Journal of what happened.
    pub journal: Journal,
    /// Requests that clients may repeat.
    pub idempotency: Idempotency,
    /// Screenshots.
    pub screenshots: Screenshots,
    /// Serve the API description at `/dcv-session-manager-api.yaml`.
    pub enable_api_yaml: bool,
    /// Lifetime of access tokens, in seconds.
    pub access_token_seconds: u64,
    /// Lifetime of connection tokens, in minutes
    /// (`connect-session-token-duration-minutes`).
    pub connection_token_minutes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_folder: PathBuf::from("/var/lib/berth"),
            replica: 1,
            names: Vec::new(),
            cluster: Cluster::default(),
            clients: Listener::default(),
            agents: AgentListener::default(),
            sessions: Sessions::default(),
            journal: Journal::default(),
            idempotency: Idempotency::default(),
            screenshots: Screenshots::default(),
            enable_api_yaml: true,
            access_token_seconds: 3600,
            connection_token_minutes: 60,
        }
    }
}

/// Port for other replicas.
pub const PEER_PORT: u16 = 47_100;

/// The other replicas. Without `address` and `members` a replica is alone and
/// has no port for others.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Address and port for other replicas.
    pub listen: SocketAddr,
    /// Where other replicas reach this one, as `host:port`.
    pub address: Option<String>,
    /// Replicas that form a cluster by themselves, once: their numbers and
    /// addresses, this one among them. Not looked at afterwards.
    pub members: Vec<ClusterMember>,
    /// File with the cluster's secret, the same on all of `members`. In the
    /// data folder when absent.
    pub secret_file: Option<PathBuf>,
    /// How long the leader may be silent before another one is elected, in
    /// milliseconds; the actual time is drawn from once to twice as long.
    pub election_timeout_ms: u64,
    /// How often the leader gives a sign of life, in milliseconds.
    pub heartbeat_ms: u64,
    /// Log entries after which a snapshot is made.
    pub snapshot_after_entries: u64,
    /// How long a request may take to be acknowledged, in seconds.
    pub request_timeout_seconds: u64,
    /// The newest format of the log that this replica reads; 1 or 2. Held back,
    /// it can still be replaced by an earlier build.
    pub format_max: u16,
}

/// One of the replicas that form a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterMember {
    /// Its number.
    pub replica: u64,
    /// Where other replicas reach it, as `host:port`.
    pub address: String,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PEER_PORT),
            address: None,
            members: Vec::new(),
            secret_file: None,
            election_timeout_ms: 450,
            heartbeat_ms: 150,
            snapshot_after_entries: 50_000,
            request_timeout_seconds: 10,
            format_max: 2,
        }
    }
}

impl Cluster {
    /// The members by their numbers.
    pub fn addresses(&self) -> BTreeMap<ReplicaId, String> {
        self.members.iter().map(|member| (ReplicaId(member.replica), member.address.clone())).collect()
    }

    /// Where others reach a replica, as far as the configuration says.
    pub fn address_of(&self, replica: ReplicaId) -> Option<String> {
        self.address.clone().or_else(|| self.addresses().remove(&replica))
    }

    fn check(&self, replica: u64) -> Result<(), ConfigError> {
        let refused = |reason: String| Err(ConfigError::Cluster { reason });
        for address in self.address.iter().chain(self.members.iter().map(|member| &member.address)) {
            if let Err(reason) = super::cluster::node::check_address(address) {
                return refused(reason);
            }
        }
        if self.members.is_empty() {
            return Ok(());
        }
        if self.addresses().len() < self.members.len() {
            return refused("`members` names a replica twice".to_owned());
        }
        if !self.members.iter().any(|member| member.replica == replica) {
            return refused(format!("`members` must name this replica too, which is `replica = {replica}`"));
        }
        if self.members.iter().any(|member| member.replica == 0) {
            return refused("replicas are numbered from 1".to_owned());
        }
        if self.secret_file.is_none() {
            return refused("`members` needs `secret_file`, the same secret on all of them".to_owned());
        }
        Ok(())
    }
}

/// A listening port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listener {
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificate chain in PEM; made by the broker's own CA when absent.
    pub certificate_file: Option<PathBuf>,
    /// Its private key in PEM.
    pub key_file: Option<PathBuf>,
    /// Connections at a time.
    pub connections_max: usize,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), CLIENT_PORT),
            certificate_file: None,
            key_file: None,
            connections_max: 10_000,
        }
    }
}

/// The port for agents.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentListener {
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificate chain in PEM; made by the broker's own CA when absent.
    pub certificate_file: Option<PathBuf>,
    /// Its private key in PEM.
    pub key_file: Option<PathBuf>,
    /// Connections at a time.
    pub connections_max: usize,
    /// File with the secret that agents prove themselves with. Made with a
    /// random one at `data_folder/agent-secret` when absent.
    pub secret_file: Option<PathBuf>,
}

impl Default for AgentListener {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), protocol::DEFAULT_PORT),
            certificate_file: None,
            key_file: None,
            connections_max: 100_000,
            secret_file: None,
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
            connections_max: self.connections_max,
        }
    }
}

/// Sessions and their times. Every replica proposes them at its start; they
/// are part of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// How long deleted sessions stay visible, in seconds.
    pub deleted_retention_seconds: u64,
    /// How long a host may take to make a session, in seconds.
    pub prepare_timeout_seconds: u64,
    /// How long a host may take to end a session, in seconds.
    pub delete_timeout_seconds: u64,
    /// Requests that may wait for a server.
    pub queue_max: u32,
    /// How long they may wait, in seconds.
    pub queue_timeout_seconds: u64,
    /// Reports an agent may miss before its sessions are UNKNOWN.
    pub reports_missed_max: u32,
    /// How long an unreachable server stays listed, in seconds; at least 60.
    pub lost_server_retention_seconds: u64,
    /// How long the sessions of an unreachable server stay listed as UNKNOWN,
    /// in seconds; 0 keeps them until somebody deletes them.
    pub lost_session_retention_seconds: u64,
    /// Further servers that are tried when one fails to create a session.
    pub create_retries_max: u32,
    /// How long a server that failed to create a session is asked last, in seconds.
    pub avoid_failed_server_seconds: u64,
    /// Which server gets a session when the request does not say: `spread`,
    /// `pack` or `affinity`.
    pub placement: Policy,
}

impl Default for Sessions {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            deleted_retention_seconds: settings.deleted_retention.as_secs(),
            prepare_timeout_seconds: settings.prepare_timeout.as_secs(),
            delete_timeout_seconds: settings.delete_timeout.as_secs(),
            queue_max: settings.queue_max,
            queue_timeout_seconds: settings.queue_timeout.as_secs(),
            reports_missed_max: settings.reports_missed_max,
            lost_server_retention_seconds: settings.lost_server_retention.as_secs(),
            lost_session_retention_seconds: settings.lost_session_retention.map_or(0, Millis::as_secs),
            create_retries_max: settings.create_retries_max,
            avoid_failed_server_seconds: settings.avoid_failed_server.as_secs(),
            placement: settings.placement,
        }
    }
}

/// How much of what happened is kept. What goes beyond one of the bounds is
/// dropped, the oldest first. Replicated like [`Sessions`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// Records.
    pub records_max: u32,
    /// Bytes of all records together, as they are in a snapshot.
    pub bytes_max: u64,
    /// Age of a record in seconds; 0 sets no limit.
    pub retention_seconds: u64,
}

impl Default for Journal {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            records_max: settings.journal_records_max,
            bytes_max: settings.journal_bytes_max,
            retention_seconds: settings.journal_retention.as_secs(),
        }
    }
}

/// Requests that clients may repeat. Every replica proposes it at its start;
/// it is part of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Idempotency {
    /// How long an answer is kept, in seconds.
    pub retention_seconds: u64,
    /// Keys that are kept for one client; further ones push out its oldest.
    pub keys_max_per_client: u32,
}

impl Default for Idempotency {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            retention_seconds: settings.idempotency_retention.as_secs(),
            keys_max_per_client: settings.idempotency_keys_max,
        }
    }
}

/// Screenshots.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Screenshots {
    /// Largest width in pixels when the request names none.
    pub width_max: u32,
    /// Largest height in pixels when the request names none.
    pub height_max: u32,
    /// `png` or `jpeg`.
    pub format: ImageFormat,
}

impl Default for Screenshots {
    fn default() -> Self {
        Self { width_max: 160, height_max: 100, format: ImageFormat::Png }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML, or holds an unknown key or a wrong type.
    #[error("the configuration {} is invalid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is outside its bounds.
    #[error("`{key}` is {value}, but must be {must}")]
    Bounds {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        must: &'static str,
    },
    /// The cluster cannot be as it is described.
    #[error("`[cluster]`: {reason}")]
    Cluster {
        /// Why.
        reason: String,
    },
    /// A certificate without a key, or the reverse.
    #[error("`{listener}` needs certificate_file and key_file together, or neither")]
    HalfCertificate {
        /// Which listener.
        listener: &'static str,
    },
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        Ok(config)
    }

    /// The part that is replicated.
    pub const fn settings(&self) -> Settings {
        let Self { sessions, journal, idempotency, .. } = self;
        Settings {
            deleted_retention: Millis::from_secs(sessions.deleted_retention_seconds),
            prepare_timeout: Millis::from_secs(sessions.prepare_timeout_seconds),
            delete_timeout: Millis::from_secs(sessions.delete_timeout_seconds),
            queue_max: sessions.queue_max,
            queue_timeout: Millis::from_secs(sessions.queue_timeout_seconds),
            reports_missed_max: sessions.reports_missed_max,
            lost_server_retention: Millis::from_secs(sessions.lost_server_retention_seconds),
            lost_session_retention: match sessions.lost_session_retention_seconds {
                0 => None,
                seconds => Some(Millis::from_secs(seconds)),
            },
            create_retries_max: sessions.create_retries_max,
            avoid_failed_server: Millis::from_secs(sessions.avoid_failed_server_seconds),
            placement: sessions.placement,
            journal_records_max: journal.records_max,
            journal_bytes_max: journal.bytes_max,
            journal_retention: Millis::from_secs(journal.retention_seconds),
            idempotency_retention: Millis::from_secs(idempotency.retention_seconds),
            idempotency_keys_max: idempotency.keys_max_per_client,
        }
    }

    /// Checks what types cannot say.
    pub fn check(&self) -> Result<(), ConfigError> {
        const YEAR_SECONDS: u64 = 366 * 24 * 3600;
        const MONTH_SECONDS: u64 = 31 * 24 * 3600;
        let sessions = &self.sessions;
        let bounds = [
            ("replica", self.replica, 1, u64::MAX, "at least 1"),
            ("cluster.election_timeout_ms", self.cluster.election_timeout_ms, 100, 60_000, "100 to 60000"),
            (
                "cluster.heartbeat_ms",
                self.cluster.heartbeat_ms,
                1,
                self.cluster.election_timeout_ms / 2,
                "at most half of cluster.election_timeout_ms",
            ),
            ("cluster.snapshot_after_entries", self.cluster.snapshot_after_entries, 1, u64::MAX, "at least 1"),
            ("cluster.format_max", self.cluster.format_max.into(), 1, 2, "1 or 2"),
            ("cluster.request_timeout_seconds", self.cluster.request_timeout_seconds, 1, 60, "1 to 60"),
            ("access_token_seconds", self.access_token_seconds, 60, 86_400, "60 to 86400"),
            ("connection_token_minutes", self.connection_token_minutes, 1, 44_640, "1 to 44640"),
            (
                "sessions.deleted_retention_seconds",
                sessions.deleted_retention_seconds,
                0,
                YEAR_SECONDS,
                "at most a year",
            ),
            ("sessions.prepare_timeout_seconds", sessions.prepare_timeout_seconds, 1, 86_400, "1 to 86400"),
            ("sessions.delete_timeout_seconds", sessions.delete_timeout_seconds, 1, 86_400, "1 to 86400"),
            ("sessions.queue_max", u64::from(sessions.queue_max), 0, 1_000_000, "at most 1000000"),
            ("sessions.queue_timeout_seconds", sessions.queue_timeout_seconds, 1, YEAR_SECONDS, "1 second to a year"),
            ("sessions.reports_missed_max", u64::from(sessions.reports_missed_max), 1, 100, "1 to 100"),
            (
                "sessions.lost_server_retention_seconds",
                sessions.lost_server_retention_seconds,
                60,
                YEAR_SECONDS,
                "60 seconds to a year",
            ),
            (
                "sessions.lost_session_retention_seconds",
                sessions.lost_session_retention_seconds,
                0,
                YEAR_SECONDS,
                "at most a year",
            ),
            ("sessions.create_retries_max", u64::from(sessions.create_retries_max), 0, 10, "at most 10"),
            ("sessions.avoid_failed_server_seconds", sessions.avoid_failed_server_seconds, 0, 86_400, "at most 86400"),
            ("journal.records_max", u64::from(self.journal.records_max), 0, 10_000_000, "at most 10000000"),
            ("journal.bytes_max", self.journal.bytes_max, 1 << 20, 1 << 36, "1048576 to 68719476736"),
            ("journal.retention_seconds", self.journal.retention_seconds, 0, YEAR_SECONDS, "at most a year"),
            (
                "idempotency.retention_seconds",
                self.idempotency.retention_seconds,
                1,
                MONTH_SECONDS,
                "1 second to 31 days",
            ),
            (
                "idempotency.keys_max_per_client",
                u64::from(self.idempotency.keys_max_per_client),
                1,
                1_000_000,
                "1 to 1000000",
            ),
            ("screenshots.width_max", u64::from(self.screenshots.width_max), 1, 8_192, "1 to 8192"),
            ("screenshots.height_max", u64::from(self.screenshots.height_max), 1, 8_192, "1 to 8192"),
            ("clients.connections_max", self.clients.connections_max as u64, 1, 1_000_000, "1 to 1000000"),
            ("agents.connections_max", self.agents.connections_max as u64, 1, 1_000_000, "1 to 1000000"),
        ];
        for (key, value, least, most, must) in bounds {
            if value < least || value > most {
                return Err(ConfigError::Bounds { key, value, must });
            }
        }
        self.cluster.check(self.replica)?;
        for (listener, config) in [("clients", &self.clients), ("agents", &self.agents.listener())] {
            if config.certificate_file.is_some() != config.key_file.is_some() {
                return Err(ConfigError::HalfCertificate { listener });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = toml::from_str::<Config>("[clients]\nlisten_on = '127.0.0.1:1'").expect_err("unknown");
        assert!(error.to_string().contains("listen_on"), "{error}");
    }

    #[test]
    fn the_defaults_are_valid_and_a_value_out_of_bounds_is_named() {
        Config::default().check().expect("valid");
        let mut config = Config::default();
        config.sessions.lost_server_retention_seconds = 59;
        let error = config.check().expect_err("too short").to_string();
        assert_eq!(error, "`sessions.lost_server_retention_seconds` is 59, but must be 60 seconds to a year");
    }

    #[test]
    fn the_settings_of_an_empty_file_are_the_default_ones() {
        let config: Config = toml::from_str("").expect("valid");
        assert_eq!(config, Config::default());
        assert_eq!(config.settings(), Settings::default());
    }
}
