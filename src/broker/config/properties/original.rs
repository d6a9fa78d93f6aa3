//! The keys of the original's `session-manager-broker.properties`, and what
//! becomes of each. `docs/operations.md` holds the same table; a test compares
//! the two.

/// A key of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginalKey {
    /// Its name.
    pub name: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// What an operator should know of that: for one that is ignored why, and
    /// what does its work here.
    pub note: &'static str,
}

/// What becomes of a key of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is a key of ours.
    Becomes {
        /// Ours.
        key: &'static str,
        /// How its value becomes one of ours.
        by: Conversion,
    },
    /// It has no effect.
    Ignored,
}

/// How a value of the original becomes one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    /// A number from 0, as it is.
    Number,
    /// Hours, which become seconds.
    Hours,
    /// `true` or `false`.
    Truth,
    /// A word; ours are in small letters.
    Word,
    /// A path, which must be whole.
    Path,
    /// The port of a listener, whose address is another key.
    Port,
    /// The address of a listener, whose port is another key.
    Host,
    /// A password.
    Password,
}

const fn becomes(name: &'static str, key: &'static str, by: Conversion, note: &'static str) -> OriginalKey {
    OriginalKey { name, fate: Fate::Becomes { key, by }, note }
}

const fn ignored(name: &'static str, note: &'static str) -> OriginalKey {
    OriginalKey { name, fate: Fate::Ignored, note }
}

use Conversion::{Host, Hours, Number, Password, Path, Port, Truth, Word};

/// More or less the same is true of several keys.
const FORMING: &str =
    "nothing is discovered: a cluster is formed with `berth cluster init` and `join`, or by `cluster.members`";
const PEERS: &str = "replicas know each other by certificates that are made of the cluster's secret";
const LOG: &str = "everything is kept in the replicated log, always; there is no database";
const METRICS: &str = "no metrics go to CloudWatch";
const INLINE: &str = "in `berth.toml` a file with the password is named instead";

/// Every key of the original.
pub const KEYS: &[OriginalKey] = &[
    ignored("broker-java-home", "no Java is needed"),
    becomes(
        "session-manager-working-path",
        "data_folder",
        Path,
        "the original's files in it are neither read nor touched",
    ),
    becomes("enable-api-yaml", "enable_api_yaml", Truth, ""),
    becomes("session-screenshot-max-width", "screenshots.width_max", Number, ""),
    becomes("session-screenshot-max-height", "screenshots.height_max", Number, ""),
    becomes("session-screenshot-format", "screenshots.format", Word, ""),
    becomes("create-sessions-queue-max-size", "sessions.queue_max", Number, ""),
    becomes("create-sessions-queue-max-time-seconds", "sessions.queue_timeout_seconds", Number, ""),
    becomes("create-sessions-number-of-retries-on-failure", "sessions.create_retries_max", Number, "at most 10"),
    becomes("autorun-file-arguments-max-size", "sessions.autorun_arguments_max", Number, ""),
    becomes("autorun-file-arguments-max-argument-length", "sessions.autorun_argument_length_max", Number, ""),
    becomes("connect-session-token-duration-minutes", "tokens.connection_minutes", Number, ""),
    becomes(
        "delete-session-duration-hours",
        "sessions.deleted_retention_seconds",
        Hours,
        "times 3600; `delete-session-duration-seconds` goes before it",
    ),
    becomes("delete-session-duration-seconds", "sessions.deleted_retention_seconds", Number, ""),
    becomes(
        "seconds-before-deleting-unreachable-dcv-server",
        "sessions.lost_server_retention_seconds",
        Number,
        "less than 60 is refused",
    ),
    becomes(
        "seconds-before-deleting-sessions-unreachable-server",
        "sessions.lost_session_retention_seconds",
        Number,
        "",
    ),
    becomes("max-api-requests-per-second", "limits.requests_per_second", Number, "of each client and of each address"),
    becomes(
        "enable-throttling-forwarded-for-header",
        "limits.forwarded_for",
        Truth,
        "name your proxies in `limits.trusted_proxies`",
    ),
    becomes("enable-authorization-server", "authorization.server", Truth, ""),
    becomes("enable-authorization", "authorization.enabled", Truth, ""),
    becomes("enable-agent-authorization", "agents.authorization", Truth, ""),
    becomes("client-to-broker-connector-https-port", "clients.listen", Port, "the port"),
    becomes(
        "client-to-broker-connector-bind-host",
        "clients.listen",
        Host,
        "the address; a name is refused, but for `localhost`",
    ),
    becomes("client-to-broker-connector-key-store-file", "clients.key_store_file", Path, ""),
    becomes("client-to-broker-connector-key-store-pass", "clients.key_store_password_file", Password, INLINE),
    becomes("agent-to-broker-connector-https-port", "agents.listen", Port, "the port"),
    becomes("agent-to-broker-connector-bind-host", "agents.listen", Host, "as for clients"),
    becomes("agent-to-broker-connector-key-store-file", "agents.key_store_file", Path, ""),
    becomes("agent-to-broker-connector-key-store-pass", "agents.key_store_password_file", Password, INLINE),
    becomes("enable-gateway", "gateway.enabled", Truth, ""),
    becomes("gateway-to-broker-connector-https-port", "gateway.listen", Port, "the port"),
    becomes("gateway-to-broker-connector-bind-host", "gateway.listen", Host, "as for clients"),
    becomes("gateway-to-broker-connector-key-store-file", "gateway.key_store_file", Path, ""),
    becomes("gateway-to-broker-connector-key-store-pass", "gateway.key_store_password_file", Password, INLINE),
    becomes("enable-tls-client-auth-gateway", "gateway.require_client_certificate", Truth, ""),
    becomes("gateway-to-broker-connector-trust-store-file", "gateway.trust_store_file", Path, ""),
    becomes("gateway-to-broker-connector-trust-store-pass", "gateway.trust_store_password_file", Password, INLINE),
    ignored("cli-to-broker-port", "operators' commands go through a Unix socket in the data folder, `admin.sock`"),
    becomes(
        "broker-to-broker-port",
        "cluster.listen",
        Port,
        "the port; used when `cluster.address` or `cluster.members` is set",
    ),
    becomes("broker-to-broker-bind-host", "cluster.listen", Host, "as for clients"),
    ignored("broker-to-broker-discovery-port", FORMING),
    ignored("broker-to-broker-discovery-addresses", FORMING),
    ignored("broker-to-broker-discovery-multicast-group", FORMING),
    ignored("broker-to-broker-discovery-multicast-port", FORMING),
    ignored("broker-to-broker-discovery-aws-region", FORMING),
    ignored("broker-to-broker-discovery-aws-alb-target-group-arn", FORMING),
    ignored(
        "broker-to-broker-distributed-memory-max-size-mb",
        "each replica holds the whole state; `journal.bytes_max` bounds what grows with time",
    ),
    ignored("broker-to-broker-key-store-file", PEERS),
    ignored("broker-to-broker-key-store-pass", PEERS),
    ignored("broker-to-broker-connection-login", PEERS),
    ignored("broker-to-broker-connection-pass", PEERS),
    ignored("enable-persistence", LOG),
    ignored("persistence-db", LOG),
    ignored("dynamodb-region", LOG),
    ignored("dynamodb-table-rcu", LOG),
    ignored("dynamodb-table-wcu", LOG),
    ignored("dynamodb-table-name-prefix", LOG),
    ignored("jdbc-connection-url", LOG),
    ignored("jdbc-user", LOG),
    ignored("jdbc-password", LOG),
    ignored("enable-cloud-watch-metrics", METRICS),
    ignored("cloud-watch-region", METRICS),
    ignored("metrics-fleet-name-dimension", METRICS),
];
