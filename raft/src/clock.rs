//! The one source of time for everything that is decided or stamped.
//!
//! Election and heartbeat timers run on the runtime's own timers, not on this clock.

use crate::ids::UnixMillis;
use futures_util::future::BoxFuture;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Tells the time and waits for a moment.
pub trait Clock: Send + Sync + 'static {
    /// The current moment. May run backwards; stamps in the log never do.
    fn now(&self) -> UnixMillis;

    /// Completes once [`now`](Self::now) has reached `at`.
    fn sleep_until(&self, at: UnixMillis) -> BoxFuture<'_, ()>;
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// The longest single sleep of [`SystemClock`]: a clock that was set forward is noticed after at
/// most this long.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

impl Clock for SystemClock {
    fn now(&self) -> UnixMillis {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        // A clock before 1970 counts as the epoch itself; the stamps' monotony does the rest.
        let millis = since_epoch.map_or(0, |elapsed| elapsed.as_millis());
        UnixMillis(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, at: UnixMillis) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let remaining_ms = at.0.saturating_sub(self.now().0);
                if remaining_ms == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(remaining_ms).min(RECHECK_INTERVAL)).await;
            }
        })
    }
}

/// A clock that stands still until it is moved, for tests and simulations.
#[derive(Debug)]
pub struct ManualClock {
    now: watch::Sender<UnixMillis>,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: UnixMillis) -> Self {
        Self { now: watch::Sender::new(now) }
    }

    /// Sets the clock, forwards or backwards, and wakes the sleepers whose moment has come.
    pub fn set(&self, now: UnixMillis) {
        self.now.send_replace(now);
    }

    /// Moves the clock forward by `by_ms` milliseconds.
    pub fn advance(&self, by_ms: u64) {
        self.now.send_modify(|now| now.0 = now.0.saturating_add(by_ms));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMillis {
        *self.now.borrow()
    }

    fn sleep_until(&self, at: UnixMillis) -> BoxFuture<'_, ()> {
        let mut now = self.now.subscribe();
        Box::pin(async move {
            // The sender lives in `self`, which outlives this future: the wait cannot fail.
            let _ = now.wait_for(|now| *now >= at).await;
        })
    }
}
