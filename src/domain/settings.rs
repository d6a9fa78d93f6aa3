//! Settings that decide what `apply` does. They are part of the replicated
//! state, because replicas that applied one log with different settings would
//! come to different states.

use serde::{Deserialize, Serialize};

use super::journal::Bounds;
use super::placement::Policy;
use super::time::Millis;

/// Limits and times. Each replica proposes its own at start; the last wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How long a deleted session stays visible
    /// (`delete-session-duration-seconds` of the original, 3600).
    pub deleted_retention: Millis,
    /// How long a host may take to make a session.
    pub prepare_timeout: Millis,
    /// How long a host may take to end a session.
    pub delete_timeout: Millis,
    /// Requests that may wait for a server (`create-sessions-queue-max-size`).
    pub queue_max: u32,
    /// How long they may wait (`create-sessions-queue-max-time-seconds`).
    pub queue_timeout: Millis,
    /// Reports an agent may miss before its server counts as lost.
    pub reports_missed_max: u32,
    /// How long a lost server stays listed
    /// (`seconds-before-deleting-unreachable-dcv-server`, 1800).
    pub lost_server_retention: Millis,
    /// How long the sessions of a lost server stay listed as UNKNOWN; `None`
    /// keeps them until somebody deletes them
    /// (`seconds-before-deleting-sessions-unreachable-server`, off).
    pub lost_session_retention: Option<Millis>,
    /// Further servers that are tried when one fails to create a session
    /// (`create-sessions-number-of-retries-on-failure`, 2).
    pub create_retries_max: u32,
    /// How long a server that failed to create a session is asked last.
    pub avoid_failed_server: Millis,
    /// Which server gets a session when the request does not say.
    pub placement: Policy,
    /// Records the journal keeps.
    pub journal_records_max: u32,
    /// Bytes of records, encoded, that the journal keeps.
    pub journal_bytes_max: u64,
    /// How long the journal keeps a record; 0 sets no limit.
    pub journal_retention: Millis,
    /// How long the answer to a request with an idempotency key is kept.
    pub idempotency_retention: Millis,
    /// Idempotency keys that are kept for one client.
    pub idempotency_keys_max: u32,
}

impl Settings {
    /// The names of those that are others in `new`.
    pub fn changed(&self, new: &Self) -> Vec<&'static str> {
        // Whoever adds a setting has to name it here.
        let Self {
            deleted_retention,
            prepare_timeout,
            delete_timeout,
            queue_max,
            queue_timeout,
            reports_missed_max,
            lost_server_retention,
            lost_session_retention,
            create_retries_max,
            avoid_failed_server,
            placement,
            journal_records_max,
            journal_bytes_max,
            journal_retention,
            idempotency_retention,
            idempotency_keys_max,
        } = self;
        let all = [
            ("deleted_retention", *deleted_retention != new.deleted_retention),
            ("prepare_timeout", *prepare_timeout != new.prepare_timeout),
            ("delete_timeout", *delete_timeout != new.delete_timeout),
            ("queue_max", *queue_max != new.queue_max),
            ("queue_timeout", *queue_timeout != new.queue_timeout),
            ("reports_missed_max", *reports_missed_max != new.reports_missed_max),
            ("lost_server_retention", *lost_server_retention != new.lost_server_retention),
            ("lost_session_retention", *lost_session_retention != new.lost_session_retention),
            ("create_retries_max", *create_retries_max != new.create_retries_max),
            ("avoid_failed_server", *avoid_failed_server != new.avoid_failed_server),
            ("placement", *placement != new.placement),
            ("journal_records_max", *journal_records_max != new.journal_records_max),
            ("journal_bytes_max", *journal_bytes_max != new.journal_bytes_max),
            ("journal_retention", *journal_retention != new.journal_retention),
            ("idempotency_retention", *idempotency_retention != new.idempotency_retention),
            ("idempotency_keys_max", *idempotency_keys_max != new.idempotency_keys_max),
        ];
        all.into_iter().filter(|(_, is_other)| *is_other).map(|(name, _)| name).collect()
    }

    /// How much the journal keeps.
    pub(super) const fn journal_bounds(&self) -> Bounds {
        Bounds {
            records_max: self.journal_records_max,
            bytes_max: self.journal_bytes_max,
            retention: self.journal_retention,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            deleted_retention: Millis::from_secs(3600),
            prepare_timeout: Millis::from_secs(120),
            delete_timeout: Millis::from_secs(120),
            queue_max: 1000,
            queue_timeout: Millis::from_secs(1800),
            reports_missed_max: 3,
            lost_server_retention: Millis::from_secs(1800),
            lost_session_retention: None,
            create_retries_max: 2,
            avoid_failed_server: Millis::from_secs(300),
            placement: Policy::Spread,
            journal_records_max: 100_000,
            journal_bytes_max: 256 * 1024 * 1024,
            journal_retention: Millis::from_secs(7 * 24 * 3600),
            idempotency_retention: Millis::from_secs(24 * 3600),
            idempotency_keys_max: 50_000,
        }
    }
}
