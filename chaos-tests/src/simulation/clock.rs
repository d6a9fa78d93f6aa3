//! The clock of one machine: off, too fast or too slow, and set by somebody now
//! and then.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use berth_raft::{Clock, UnixMillis};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};

/// When simulations begin.
const EPOCH_MS: i64 = 1_763_690_000_000;
/// The longest single sleep: as the clock of the operating system is waited for.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct MachineClock {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    offset_ms: i64,
    /// Too fast by so many millionths.
    drift_ppm: i64,
}

impl MachineClock {
    /// A clock that shows `offset_ms` more than it is, and gains `drift_ppm`
    /// millionths.
    pub fn new(offset_ms: i64, drift_ppm: i64) -> Self {
        Self { began: Instant::now(), state: Mutex::new(State { offset_ms, drift_ppm }) }
    }

    /// Somebody sets it.
    pub fn jump(&self, by_ms: i64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).offset_ms += by_ms;
    }
}

impl Clock for MachineClock {
    fn now(&self) -> UnixMillis {
        let State { offset_ms, drift_ppm } = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed_ms = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let shown = EPOCH_MS + offset_ms + elapsed_ms + elapsed_ms / 1_000 * drift_ppm / 1_000;
        UnixMillis(u64::try_from(shown).unwrap_or_default())
    }

    fn sleep_until(&self, at: UnixMillis) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let remaining_ms = at.0.saturating_sub(self.now().0);
                if remaining_ms == 0 {
                    return;
                }
                sleep(Duration::from_millis(remaining_ms).min(RECHECK_INTERVAL)).await;
            }
        })
    }
}
