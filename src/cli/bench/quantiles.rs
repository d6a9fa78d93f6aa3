//! Times, and what of them is told.

use std::time::Duration;

/// The middle, the edge and the end of a number of times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quantiles {
    pub(super) median: Duration,
    pub(super) p99: Duration,
    pub(super) max: Duration,
}

impl Quantiles {
    pub(super) fn of(mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let at = |per_mille: usize| {
            let place = samples.len().saturating_mul(per_mille) / 1000;
            samples.get(place.min(samples.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        Self { median: at(500), p99: at(990), max: at(1000) }
    }
}

/// Milliseconds with their fraction.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { median, p99, max } = self;
        write!(f, "median {:.2} ms, p99 {:.2} ms, max {:.2} ms", millis(*median), millis(*p99), millis(*max))
    }
}
