//! How fast the disks are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_raft::testing::simulation;
use berth_storage::memory::{Pace, Step, Work};
use tokio::time::sleep;

use super::world::Dice;

/// The pace of one machine's disk.
#[derive(Debug)]
pub struct DiskPace {
    dice: Arc<Dice>,
    /// The longest that a sync takes, in milliseconds.
    sync_ms: AtomicU64,
    usual_ms: u64,
}

impl DiskPace {
    /// A disk whose syncs take up to `usual_ms`.
    pub fn new(dice: Arc<Dice>, usual_ms: u64) -> Self {
        Self { dice, sync_ms: AtomicU64::new(usual_ms), usual_ms }
    }

    /// Makes it slow, or with `None` as fast as usual.
    pub fn set_slow(&self, sync_ms: Option<u64>) {
        self.sync_ms.store(sync_ms.unwrap_or(self.usual_ms), Ordering::Relaxed);
    }
}

impl Pace for DiskPace {
    fn arrange(&self, step: Step, work: Work) {
        let sync_ms = self.sync_ms.load(Ordering::Relaxed);
        let wait_ms = match step {
            Step::Write => 0,
            // A slow disk is slow each time.
            Step::Sync if sync_ms > self.usual_ms => sync_ms,
            Step::Sync => self.dice.below(sync_ms + 1),
            Step::Tidy => 500,
            Step::Retry => 100,
        };
        if wait_ms == 0 {
            return work.run();
        }
        // On the machine whose store it is: killed with it.
        simulation::spawn(async move {
            sleep(Duration::from_millis(wait_ms)).await;
            work.run();
        });
    }
}
