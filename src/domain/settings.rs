//! Settings that decide what `apply` does. They are part of the replicated
//! state, because replicas that applied one log with different settings would
//! come to different states.

use serde::{Deserialize, Serialize};

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
    /// Records the journal keeps.
    pub journal_records_max: u32,
    /// How long the answer to a request with an idempotency key is kept.
    pub idempotency_retention: Millis,
    /// Idempotency keys that are kept for one client.
    pub idempotency_keys_max: u32,
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
            journal_records_max: 100_000,
            idempotency_retention: Millis::from_secs(24 * 3600),
            idempotency_keys_max: 50_000,
        }
    }
}
