//! Configuration of a replica. It comes from several places, each of which
//! goes before the ones above it:
//!
//! 1. defaults,
//! 2. the original's `session-manager-broker.properties` (`properties/`),
//! 3. `berth.toml` (`toml_file.rs`),
//! 4. variables of the environment (`environment.rs`),
//! 5. flags.
//!
//! `sources.rs` puts them together and remembers where each value is from;
//! `keys.rs` is the list of keys, which `docs/operations.md` explains (a test
//! compares the two); `bounds.rs` says what types cannot; `named_files.rs`
//! looks at the files that a configuration names; `effective.rs` shows the
//! result. Unknown keys are errors.

mod access;
mod bounds;
mod cluster;
mod effective;
mod environment;
mod error;
mod keys;
mod listeners;
mod named_files;
mod network;
mod properties;
mod sessions;
mod sources;
#[cfg(test)]
mod tests;
mod toml_file;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::access::{Authorization, Limits, TokenAlgorithm, Tokens};
pub use self::cluster::{Cluster, ClusterMember, PEER_PORT};
pub use self::error::{ConfigError, Problem, Problems};
pub use self::keys::{KEYS, Key, Kind, variable};
pub use self::listeners::{AgentListener, CLIENT_PORT, GATEWAY_PORT, GatewayListener, Listener};
pub use self::network::{Network, NetworkError};
pub use self::properties::original::{Conversion, Fate, KEYS as ORIGINAL_KEYS, OriginalKey};
pub use self::sessions::{Idempotency, Journal, Screenshots, Sessions};
pub use self::sources::{Flag, Loaded, Notice, Origin, Sources};

use crate::domain::{Millis, Settings};

/// Configuration of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Port for connection gateways.
    pub gateway: GatewayListener,
    /// Who may call the API.
    pub authorization: Authorization,
    /// What the broker issues.
    pub tokens: Tokens,
    /// How much clients may ask for.
    pub limits: Limits,
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
            gateway: GatewayListener::default(),
            authorization: Authorization::default(),
            tokens: Tokens::default(),
            limits: Limits::default(),
            sessions: Sessions::default(),
            journal: Journal::default(),
            idempotency: Idempotency::default(),
            screenshots: Screenshots::default(),
            enable_api_yaml: true,
        }
    }
}

impl Config {
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
}
