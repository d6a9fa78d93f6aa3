//! What may happen any number of times and is told once in a while, with the
//! number: a peer that sends nonsense must not fill the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Between two times that it is told.
const INTERVAL: Duration = Duration::from_mins(1);

/// Something of the kind.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Times>);

#[derive(Debug, Default)]
struct Times {
    told_at: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// It happened once more. How often since it was last told, when it is time
    /// to tell.
    pub fn count(&self) -> Option<u64> {
        // Nothing under the lock can panic half-way through a change.
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.untold += 1;
        if times.told_at.is_some_and(|told_at| told_at.elapsed() < INTERVAL) {
            return None;
        }
        times.told_at = Some(Instant::now());
        Some(std::mem::take(&mut times.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_told_at_once_and_then_once_a_minute_with_the_number() {
        let seldom = Seldom::default();
        let told = |times: usize| (0..times).filter_map(|_| seldom.count()).collect::<Vec<_>>();
        assert_eq!(told(100), [1]);
        tokio::time::advance(INTERVAL / 2).await;
        assert_eq!(told(100), []);
        tokio::time::advance(INTERVAL / 2).await;
        assert_eq!(told(1), [200]);
    }
}
