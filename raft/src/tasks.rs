//! What runs beside the calls: ticks, snapshots, and the watch over the consensus core.

use crate::applier::{Applier, SnapshotPolicy};
use crate::core::Core;
use crate::error::StopReason;
use crate::halt::{Halt, set_if_running};
use crate::machine::StateMachine;
use crate::outgoing::Transfers;
use crate::queue::Memory;
use crate::runtime;
use crate::types::{Call, Types};
use berth_storage::{Condition, Store};
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Proposes an entry without commands whenever the state's next deadline is due and this replica
/// leads. Sleeps in between.
pub(crate) async fn tick<M: StateMachine>(core: Arc<Core<M>>) {
    let pause = Duration::from_millis(core.config.tick_interval_min_ms);
    let mut deadlines = core.published.deadlines();
    let mut leadership = core.raft.server_metrics();
    loop {
        let deadline = *deadlines.borrow_and_update();
        let due = async {
            match deadline {
                Some(deadline) => core.time.sleep_until(deadline, || core.published.latest().at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            changed = deadlines.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            () = due => {}
        }
        leadership.borrow_and_update();
        if !core.leads() {
            // The leader ticks. Looked at again when somebody else leads or time moves on.
            tokio::select! {
                biased;
                () = core.stop.cancelled() => return,
                _ = deadlines.changed() => {}
                // A leader that finds its majority again tells nobody.
                () = tokio::time::sleep(core.retry_after()) => {}
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            continue;
        }
        let tick = Call { id: None, commands: Vec::new() };
        let give_up_at = tokio::time::Instant::now() + core.config.request_timeout();
        let proposed = core.propose_here(tick, Memory::Wanted, give_up_at).await;
        let moved = *core.published.deadlines().borrow() != deadline;
        if let Err(error) = &proposed {
            tracing::debug!(?error, "tick not proposed");
        }
        if proposed.is_err() || !moved {
            // A state that keeps a deadline in the past must not fill the log.
            tokio::select! {
                biased;
                () = core.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Starts a snapshot whenever the applier says that one is due. Puts it off while one is being sent
/// to another replica, but not for ever.
pub(crate) async fn snapshot<M: StateMachine>(core: Arc<Core<M>>, policy: SnapshotPolicy, outgoing: Transfers) {
    loop {
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            () = policy.due.notified() => {}
        }
        let put_off = outgoing.under_way() && !policy.overdue.load(Ordering::Relaxed);
        if !put_off && core.raft.trigger().snapshot().await.is_err() {
            return;
        }
        // While one is being written, asking again has no effect: no need to do it per entry.
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}

/// What the supervisor owns.
pub(crate) struct Supervised<M: StateMachine> {
    pub(crate) raft: Raft<Types, Applier<M>>,
    pub(crate) store: Store,
    pub(crate) tasks: TaskTracker,
    pub(crate) halt: Halt,
    /// Set at the very end, when the data folder is closed.
    pub(crate) closed: watch::Sender<Option<Result<(), StopReason>>>,
}

/// Waits for the end of the consensus core or for the order to stop, and winds everything up.
pub(crate) async fn supervise<M: StateMachine>(supervised: Supervised<M>) {
    let Supervised { raft, store, tasks, halt: Halt { stopped, stop }, closed } = supervised;
    let mut core_state = raft.server_metrics();
    let failed = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break false,
            changed = core_state.changed() => if changed.is_err() { break true },
        }
    };
    if failed {
        let mut text = match &raft.metrics().borrow_watched().running_state {
            Ok(()) => "the consensus core ended".to_owned(),
            Err(fatal) => fatal.to_string(),
        };
        if let Condition::Failed(reason) = store.log().condition() {
            text = format!("{text}; storage: {reason}");
        }
        tracing::error!(reason = %text, "the replica has stopped; restart it after removing the cause");
        set_if_running(&stopped, StopReason::Failed(text));
    } else {
        set_if_running(&stopped, StopReason::Requested);
    }
    stop.cancel();
    if let Err(error) = raft.shutdown().await {
        tracing::error!(%error, "the consensus core did not end cleanly");
    }
    tasks.close();
    tasks.wait().await;
    drop(raft);
    let result = match runtime::blocking(move || store.close()).await {
        Ok(result) => result.map_err(|error| StopReason::Failed(crate::codec::chain(&error))),
        Err(error) => Err(StopReason::Failed(error.to_string())),
    };
    if let Err(reason) = &result {
        tracing::error!(%reason, "the data folder was not closed cleanly");
    }
    closed.send_replace(Some(result));
}
