//! `[sessions]`, `[journal]`, `[idempotency]`, `[screenshots]`.

use serde::{Deserialize, Serialize};

use crate::broker::api::limits;
use crate::domain::placement::Policy;
use crate::domain::{Millis, Settings};
use crate::protocol::ImageFormat;

/// Sessions and their times. Except for the limits of arguments, every replica
/// proposes them at its start; they are part of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Most arguments of an autorun file (`autorun-file-arguments-max-size`).
    pub autorun_arguments_max: usize,
    /// Longest of them, in characters
    /// (`autorun-file-arguments-max-argument-length`).
    pub autorun_argument_length_max: usize,
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
            autorun_arguments_max: limits::AUTORUN_ARGUMENTS_DEFAULT,
            autorun_argument_length_max: limits::AUTORUN_ARGUMENT_CHARS_DEFAULT,
        }
    }
}

/// How much of what happened is kept. What goes beyond one of the bounds is
/// dropped, the oldest first. Replicated like [`Sessions`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
