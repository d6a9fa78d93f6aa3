//! What types cannot say: bounds, and what goes together.

use std::net::SocketAddr;

use super::Config;
use super::error::ConfigError;
use crate::broker::api::limits;

const DAY_SECONDS: u64 = 24 * 3600;
const MONTH_SECONDS: u64 = 31 * DAY_SECONDS;
const YEAR_SECONDS: u64 = 366 * DAY_SECONDS;

/// A key, its value, the least and the most that it may be, and that in words.
type Bound = (&'static str, u64, u64, u64, &'static str);

/// Whether the system gives only one of two addresses. It chooses a free port
/// for 0.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let (first, second) = (one.ip(), other.ip());
    let overlap = first == second || first.is_unspecified() || second.is_unspecified();
    one.port() != 0 && one.port() == other.port() && first.is_ipv4() == second.is_ipv4() && overlap
}

impl Config {
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.problems().into_iter().next().map_or(Ok(()), Err)
    }

    /// All that is wrong with it.
    pub fn problems(&self) -> Vec<ConfigError> {
        let mut bounds = self.bounds_of_replica();
        bounds.extend(self.bounds_of_access());
        bounds.extend(self.bounds_of_sessions());
        let mut problems: Vec<ConfigError> = bounds
            .into_iter()
            .filter(|(_, value, least, most, _)| !(least..=most).contains(&value))
            .map(|(key, value, _, _, must)| ConfigError::Bounds { key, value, must })
            .collect();
        problems.extend(self.same_ports());
        problems.extend(self.cluster.problems());
        problems.extend(self.clients.problems("clients"));
        problems.extend(self.agents.listener().problems("agents"));
        problems.extend(self.gateway.problems());
        problems
    }

    /// What is allowed, but not safe; to be told at each start.
    pub fn warnings(&self) -> Vec<String> {
        let gateways_unknown = self.gateway.enabled && !self.gateway.require_client_certificate;
        let anybody_forwards = self.limits.forwarded_for && self.limits.trusted_proxies.is_empty();
        let warnings = [
            (
                !self.authorization.enabled,
                "authorization.enabled is false: everybody who reaches the port may do everything",
            ),
            (
                !self.agents.authorization,
                "agents.authorization is false: everybody who reaches the port may be a server",
            ),
            (
                gateways_unknown,
                "gateway.require_client_certificate is false: everybody who reaches the port may ask where sessions are",
            ),
            (
                anybody_forwards,
                "limits.forwarded_for is true and limits.trusted_proxies empty: clients choose the address that they are \
                 limited by; name your proxies",
            ),
        ];
        warnings.into_iter().filter(|(holds, _)| *holds).map(|(_, text)| text.to_owned()).collect()
    }

    /// Listeners that cannot listen beside each other.
    fn same_ports(&self) -> Vec<ConfigError> {
        let has_others = self.cluster.address.is_some() || !self.cluster.members.is_empty();
        let listeners = [
            ("clients.listen", self.clients.listen, true),
            ("agents.listen", self.agents.listen, true),
            ("gateway.listen", self.gateway.listen, self.gateway.enabled),
            ("cluster.listen", self.cluster.listen, has_others),
        ];
        let listeners: Vec<_> =
            listeners.into_iter().filter(|(.., listens)| *listens).map(|(key, address, _)| (key, address)).collect();
        let pairs = listeners
            .iter()
            .enumerate()
            .flat_map(|(place, one)| listeners[..place].iter().map(move |other| (*one, *other)));
        pairs
            .filter(|((_, address), (_, other))| collide(*address, *other))
            .map(|((key, address), (other, _))| ConfigError::SamePort { key, other, address })
            .collect()
    }

    fn bounds_of_replica(&self) -> Vec<Bound> {
        let cluster = &self.cluster;
        let connections = |key, connections: usize| (key, connections as u64, 1, 1_000_000, "1 to 1000000");
        vec![
            ("replica", self.replica, 1, u64::MAX, "at least 1"),
            ("cluster.election_timeout_ms", cluster.election_timeout_ms, 100, 60_000, "100 to 60000"),
            (
                "cluster.heartbeat_ms",
                cluster.heartbeat_ms,
                1,
                cluster.election_timeout_ms / 2,
                "at most half of cluster.election_timeout_ms",
            ),
            ("cluster.snapshot_after_entries", cluster.snapshot_after_entries, 1, u64::MAX, "at least 1"),
            ("cluster.format_max", cluster.format_max.into(), 1, 2, "1 or 2"),
            ("cluster.request_timeout_seconds", cluster.request_timeout_seconds, 1, 60, "1 to 60"),
            connections("clients.connections_max", self.clients.connections_max),
            connections("agents.connections_max", self.agents.connections_max),
            connections("gateway.connections_max", self.gateway.connections_max),
        ]
    }

    fn bounds_of_access(&self) -> Vec<Bound> {
        let tokens = &self.tokens;
        let requests = u64::from(self.limits.requests_per_second);
        vec![
            ("tokens.access_seconds", tokens.access_seconds, 60, DAY_SECONDS, "60 to 86400"),
            ("tokens.connection_minutes", tokens.connection_minutes, 1, 10_080, "1 to 10080"),
            ("limits.requests_per_second", requests, 0, 1_000_000, "at most 1000000"),
        ]
    }

    fn bounds_of_sessions(&self) -> Vec<Bound> {
        let Self { sessions, journal, idempotency, screenshots, .. } = self;
        let at_most_a_year = |key, seconds| (key, seconds, 0, YEAR_SECONDS, "at most a year");
        let within_a_day = |key, seconds| (key, seconds, 1, DAY_SECONDS, "1 to 86400");
        let side = |key, pixels: u32| (key, u64::from(pixels), 1, 8_192, "1 to 8192");
        vec![
            at_most_a_year("sessions.deleted_retention_seconds", sessions.deleted_retention_seconds),
            within_a_day("sessions.prepare_timeout_seconds", sessions.prepare_timeout_seconds),
            within_a_day("sessions.delete_timeout_seconds", sessions.delete_timeout_seconds),
            ("sessions.queue_max", sessions.queue_max.into(), 0, 1_000_000, "at most 1000000"),
            ("sessions.queue_timeout_seconds", sessions.queue_timeout_seconds, 1, YEAR_SECONDS, "1 second to a year"),
            ("sessions.reports_missed_max", sessions.reports_missed_max.into(), 1, 100, "1 to 100"),
            (
                "sessions.lost_server_retention_seconds",
                sessions.lost_server_retention_seconds,
                60,
                YEAR_SECONDS,
                "60 seconds to a year",
            ),
            at_most_a_year("sessions.lost_session_retention_seconds", sessions.lost_session_retention_seconds),
            ("sessions.create_retries_max", sessions.create_retries_max.into(), 0, 10, "at most 10"),
            (
                "sessions.avoid_failed_server_seconds",
                sessions.avoid_failed_server_seconds,
                0,
                DAY_SECONDS,
                "at most 86400",
            ),
            (
                "sessions.autorun_arguments_max",
                sessions.autorun_arguments_max as u64,
                0,
                limits::AUTORUN_ARGUMENTS_MAX as u64,
                "at most 1000",
            ),
            (
                "sessions.autorun_argument_length_max",
                sessions.autorun_argument_length_max as u64,
                1,
                limits::AUTORUN_ARGUMENT_CHARS_MAX as u64,
                "1 to 4096",
            ),
            ("journal.records_max", journal.records_max.into(), 0, 10_000_000, "at most 10000000"),
            ("journal.bytes_max", journal.bytes_max, 1 << 20, 1 << 36, "1048576 to 68719476736"),
            at_most_a_year("journal.retention_seconds", journal.retention_seconds),
            ("idempotency.retention_seconds", idempotency.retention_seconds, 1, MONTH_SECONDS, "1 second to 31 days"),
            ("idempotency.keys_max_per_client", idempotency.keys_max_per_client.into(), 1, 1_000_000, "1 to 1000000"),
            side("screenshots.width_max", screenshots.width_max),
            side("screenshots.height_max", screenshots.height_max),
        ]
    }
}
