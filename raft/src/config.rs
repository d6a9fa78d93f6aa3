//! The settings of a replica, their defaults and their bounds.

use crate::formats;
use crate::ids::ReplicaId;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// The largest log entry that storage takes, in bytes.
pub const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What an entry needs besides its commands' bytes, at most, per entry and per command.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 64;
pub(crate) const COMMAND_OVERHEAD_BYTES: usize = 16;

/// The same per call: its id.
pub(crate) const CALL_OVERHEAD_BYTES: usize = 48;

/// The settings of a replica. [`Config::new`] gives the defaults; every field is checked by
/// [`Config::validate`] at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data folder; created when it does not exist. It belongs to this replica alone.
    pub folder: PathBuf,
    /// This replica's id.
    pub replica: ReplicaId,
    /// How long a follower waits for a sign of its leader before it stands for election, in
    /// milliseconds; the actual wait is drawn from 1.5 to 2 times this. 30 to 60,000. Default 450.
    /// A cluster of one has slower timers of its own: it waits for nobody.
    pub election_timeout_ms: u64,
    /// How often a leader without news sends a sign of life, in milliseconds. At most half of
    /// [`election_timeout_ms`](Self::election_timeout_ms), about a third is right. Default 150.
    pub heartbeat_ms: u64,
    /// A snapshot is made after this many entries since the last one. At least 1. Default 50,000.
    pub snapshot_after_entries: u64,
    /// A snapshot is made after this many bytes of entries since the last one. At least 1.
    /// Default 256 MiB.
    pub snapshot_after_bytes: u64,
    /// How many entries that a snapshot covers are kept, so that a replica that was away for a
    /// moment catches up from the log. Default 5,000.
    pub keep_entries: u64,
    /// The most commands in one entry, unless one call brings more. 1 to 65,536. Default 4,096.
    pub batch_commands_max: usize,
    /// The most command bytes in one entry, unless one call brings more. 1 to 8 MiB. Default 1 MiB.
    pub batch_bytes_max: usize,
    /// How many entries may wait for their commit at once. 1 to 256. Default 8.
    pub entries_in_flight_max: usize,
    /// How many commands may wait for a place in an entry. At least 1. Default 65,536.
    pub queue_commands_max: usize,
    /// How many command bytes may wait for a place in an entry. At least 1. Default 64 MiB.
    pub queue_bytes_max: usize,
    /// How long a proposal or a read waits before it is given up, in milliseconds. At least 1.
    /// Default 10,000.
    pub request_timeout_ms: u64,
    /// The shortest time between two ticks whose deadline does not move, in milliseconds: bounds
    /// the log's growth when a state keeps a deadline that has passed. At least 1. Default 100.
    pub tick_interval_min_ms: u64,
    /// How long [`Replica::start`](crate::Replica::start) waits for the state to be current, in
    /// milliseconds. At least 1. Default 60,000.
    pub start_timeout_ms: u64,
    /// The memory that the log store's cache may take, in bytes. Default 64 MiB.
    pub cache_bytes: u64,
    /// Writing stops while less than this is free on the disk, in bytes. Default 64 MiB.
    pub disk_reserve_bytes: u64,
    /// Which run of this replica's process this is: larger with each start, for ever, by the
    /// caller's care. With it, a proposal whose answer was lost is tried again without happening
    /// twice; at most 65,536 of this replica may be unanswered at a time. With 0 proposals are not
    /// remembered and never tried again. Default 0.
    pub incarnation: u64,
    /// The formats of the log and of snapshots that this replica reads. From 1, which every cluster
    /// begins with, to at most 2. Held back to `1..=1`, the replicas can still be replaced by an
    /// earlier build. Default `1..=2`.
    pub formats: RangeInclusive<u16>,
    /// After each so many entries replicas compare what these brought, and after 16 times as many
    /// their whole states. The same on all replicas. At least 1. Default 4,096.
    pub hash_every_entries: u64,
    /// How many bytes of a snapshot are sent at once. 1 KiB to 8 MiB. Default 1 MiB.
    pub snapshot_part_bytes: usize,
}

/// A setting outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting `{field}` is {value}, but must be {must}")]
pub struct ConfigError {
    /// The field of [`Config`].
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// What it must be.
    pub must: &'static str,
}

impl Config {
    /// The defaults, for one replica with its data in `folder`.
    pub fn new(folder: impl Into<PathBuf>, replica: ReplicaId) -> Self {
        Self {
            folder: folder.into(),
            replica,
            election_timeout_ms: 450,
            heartbeat_ms: 150,
            snapshot_after_entries: 50_000,
            snapshot_after_bytes: 256 * 1024 * 1024,
            keep_entries: 5_000,
            batch_commands_max: 4_096,
            batch_bytes_max: 1024 * 1024,
            entries_in_flight_max: 8,
            queue_commands_max: 65_536,
            queue_bytes_max: 64 * 1024 * 1024,
            request_timeout_ms: 10_000,
            tick_interval_min_ms: 100,
            start_timeout_ms: 60_000,
            cache_bytes: 64 * 1024 * 1024,
            disk_reserve_bytes: 64 * 1024 * 1024,
            incarnation: 0,
            formats: formats::FIRST..=formats::NEWEST,
            hash_every_entries: 4_096,
            snapshot_part_bytes: 1024 * 1024,
        }
    }

    /// Checks every bound; the first field outside is the error.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let at_least_one = "at least 1";
        let checks: [(&'static str, u64, bool, &'static str); 14] = [
            (
                "election_timeout_ms",
                self.election_timeout_ms,
                (30..=60_000).contains(&self.election_timeout_ms),
                "30 to 60000",
            ),
            (
                "heartbeat_ms",
                self.heartbeat_ms,
                self.heartbeat_ms >= 1 && self.heartbeat_ms <= self.election_timeout_ms / 2,
                "at least 1 and at most half of election_timeout_ms",
            ),
            ("snapshot_after_entries", self.snapshot_after_entries, self.snapshot_after_entries >= 1, at_least_one),
            ("snapshot_after_bytes", self.snapshot_after_bytes, self.snapshot_after_bytes >= 1, at_least_one),
            (
                "batch_commands_max",
                self.batch_commands_max as u64,
                (1..=65_536).contains(&self.batch_commands_max),
                "1 to 65536",
            ),
            (
                "batch_bytes_max",
                self.batch_bytes_max as u64,
                (1..=ENTRY_BYTES_MAX / 2).contains(&self.batch_bytes_max),
                "1 to 8388608",
            ),
            (
                "entries_in_flight_max",
                self.entries_in_flight_max as u64,
                (1..=256).contains(&self.entries_in_flight_max),
                "1 to 256",
            ),
            (
                "queue_commands_max",
                self.queue_commands_max as u64,
                (1..=u32::MAX as usize / 2).contains(&self.queue_commands_max),
                at_least_one,
            ),
            ("queue_bytes_max", self.queue_bytes_max as u64, self.queue_bytes_max >= 1, at_least_one),
            (
                "request_timeout_ms",
                self.request_timeout_ms,
                self.request_timeout_ms >= 1 && self.start_timeout_ms >= 1,
                "at least 1, and so start_timeout_ms",
            ),
            ("tick_interval_min_ms", self.tick_interval_min_ms, self.tick_interval_min_ms >= 1, at_least_one),
            ("hash_every_entries", self.hash_every_entries, self.hash_every_entries >= 1, at_least_one),
            (
                "snapshot_part_bytes",
                self.snapshot_part_bytes as u64,
                (1024..=8 * 1024 * 1024).contains(&self.snapshot_part_bytes),
                "1024 to 8388608",
            ),
            (
                "formats",
                (*self.formats.end()).into(),
                *self.formats.start() == formats::FIRST
                    && (formats::FIRST..=formats::NEWEST).contains(self.formats.end()),
                "from 1 to 1 or 2",
            ),
        ];
        for (field, value, holds, must) in checks {
            if !holds {
                return Err(ConfigError { field, value, must });
            }
        }
        Ok(())
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::new("/data", ReplicaId(1)).validate(), Ok(()));
    }

    #[test]
    fn a_heartbeat_slower_than_half_the_election_timeout_is_refused_by_name() {
        let mut config = Config::new("/data", ReplicaId(1));
        config.heartbeat_ms = config.election_timeout_ms;
        assert_eq!(config.validate().map_err(|e| e.field), Err("heartbeat_ms"));
    }

    #[test]
    fn formats_that_this_build_does_not_know_are_refused_by_name() {
        let mut config = Config::new("/data", ReplicaId(1));
        for unknown in [1..=3, 2..=2, 0..=2] {
            config.formats = unknown;
            assert_eq!(config.validate().map_err(|e| e.field), Err("formats"));
        }
    }

    #[test]
    fn a_queue_for_nothing_is_refused_by_name() {
        let mut config = Config::new("/data", ReplicaId(1));
        config.queue_commands_max = 0;
        let refused = config.validate().map_err(|e| e.to_string());
        assert_eq!(refused, Err("setting `queue_commands_max` is 0, but must be at least 1".to_owned()));
    }
}
