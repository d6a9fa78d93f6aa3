//! The time that goes into the log.
//!
//! It follows the clock of whoever leads, and never runs backwards. Where the log is ahead of that
//! clock, because it was set back or because another leader's was fast, time goes on at half its
//! speed until the clock has caught up: were it to stand still, no deadline would come meanwhile,
//! and a clock that was an hour ahead for a moment would keep sessions waiting for an hour.

use crate::clock::Clock;
use crate::ids::UnixMillis;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How much slower than real time the log's goes on while it is ahead of the clock.
const SLOWNESS: u32 = 2;

/// The longest sleep until it is looked whether the clock was set.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);

pub(crate) struct LogTime {
    clock: Arc<dyn Clock>,
    state: Mutex<Known>,
}

/// The time told last, or where it began to run ahead of the clock.
#[derive(Clone, Copy)]
struct Known {
    at: UnixMillis,
    /// Since when it has been ahead, if it is.
    ahead_since: Option<Instant>,
}

impl LogTime {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::new(Known { at: UnixMillis(0), ahead_since: None }) }
    }

    fn state(&self) -> MutexGuard<'_, Known> {
        // Two numbers: nothing can be half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time of an entry that follows one of `last`. Not before what was answered earlier.
    pub(crate) fn now(&self, last: UnixMillis) -> UnixMillis {
        self.tell(last, true)
    }

    /// What the clock shows counts once an entry has it: one that stamps nothing, and whose clock
    /// is ahead for a while, must not come back to that time when it leads later.
    fn tell(&self, last: UnixMillis, is_stamp: bool) -> UnixMillis {
        let wall = self.clock.now();
        let mut known = self.state();
        let passed = known.ahead_since.map(|since| since.elapsed() / SLOWNESS).unwrap_or_default();
        let passed = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let slowed = UnixMillis(known.at.0.saturating_add(passed));
        let at = wall.max(last).max(slowed);
        if at == wall {
            if is_stamp {
                *known = Known { at, ahead_since: None };
            }
        } else if at > slowed || known.ahead_since.is_none() {
            *known = Known { at, ahead_since: Some(Instant::now()) };
        }
        at
    }

    /// Completes once [`now`](Self::now) has reached `at`. `last` tells the time of the last entry.
    pub(crate) async fn sleep_until(&self, at: UnixMillis, last: impl Fn() -> UnixMillis) {
        loop {
            let now = self.tell(last(), false);
            let left = Duration::from_millis(at.0.saturating_sub(now.0));
            if left.is_zero() {
                return;
            }
            tokio::select! {
                biased;
                () = self.clock.sleep_until(at) => {}
                () = tokio::time::sleep((left * SLOWNESS).min(RECHECK_INTERVAL)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn at(clock: u64) -> (Arc<ManualClock>, LogTime) {
        let clock = Arc::new(ManualClock::new(UnixMillis(clock)));
        (Arc::clone(&clock), LogTime::new(clock))
    }

    #[tokio::test(start_paused = true)]
    async fn it_follows_the_clock() {
        let (clock, time) = at(1_000);
        assert_eq!(time.now(UnixMillis(0)), UnixMillis(1_000));
        clock.set(UnixMillis(5_000));
        assert_eq!(time.now(UnixMillis(1_000)), UnixMillis(5_000));
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_slowly_while_the_log_is_ahead_and_then_follows_again() {
        let (clock, time) = at(1_000);
        let ahead = UnixMillis(61_000);
        assert_eq!(time.now(ahead), ahead);
        for _ in 0..1_200 {
            tokio::time::advance(Duration::from_micros(2_500)).await;
            time.now(ahead);
        }
        assert_eq!(time.now(ahead), UnixMillis(62_500));
        clock.set(UnixMillis(10_000));
        assert_eq!(time.now(ahead), UnixMillis(62_500), "never backwards");
        clock.set(UnixMillis(70_000));
        assert_eq!(time.now(ahead), UnixMillis(70_000));
        clock.set(UnixMillis(70_100));
        assert_eq!(time.now(ahead), UnixMillis(70_100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_ahead_while_nothing_was_stamped_leaves_no_trace() {
        let (clock, time) = at(1_000);
        assert_eq!(time.now(UnixMillis(0)), UnixMillis(1_000));
        clock.set(UnixMillis(3_600_000));
        let waiting = time.sleep_until(UnixMillis(7_200_000), || UnixMillis(1_000));
        assert!(tokio::time::timeout(Duration::from_mins(1), waiting).await.is_err());
        clock.set(UnixMillis(61_000));
        assert_eq!(time.now(UnixMillis(1_000)), UnixMillis(61_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_comes_although_the_clock_was_set_back_by_an_hour() {
        let (clock, time) = at(3_600_000);
        let last = time.now(UnixMillis(0));
        clock.set(UnixMillis(0));
        let began = Instant::now();
        time.sleep_until(UnixMillis(3_610_000), || last).await;
        assert_eq!(began.elapsed(), Duration::from_secs(20));
    }
}
