//! Linearizable reads: one confirmation of leadership serves all readers that wait for it.
//!
//! A confirmation counts only for readers that asked before it began: those who come later are
//! the next group. Nothing is written to the log.

use crate::core::Core;
use crate::error::ReadError;
use crate::ids::LogIndex;
use crate::machine::StateMachine;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How many reads may wait.
const READS_MAX: usize = 65_536;

type Reply = oneshot::Sender<Result<LogIndex, ReadError>>;

/// The entrance for readers.
pub(crate) struct Reads {
    queue: mpsc::Sender<Reply>,
}

/// Where the readers wait.
pub(crate) type WaitingReads = mpsc::Receiver<Reply>;

pub(crate) fn queue() -> (Reads, WaitingReads) {
    let (queue, waiting) = mpsc::channel(READS_MAX);
    (Reads { queue }, waiting)
}

impl Reads {
    /// Waits for the next confirmation; the published state is then at least as new as told.
    pub(crate) async fn confirmed(
        &self,
        within: Duration,
        stopped: impl Fn() -> ReadError,
    ) -> Result<LogIndex, ReadError> {
        let (reply, answer) = oneshot::channel();
        match self.queue.try_send(reply) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                let waiting_reads = READS_MAX;
                return Err(ReadError::Overloaded { waiting_reads });
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(stopped()),
        }
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(ReadError::TimedOut { waited: within }),
        }
    }
}

/// Runs until the replica stops.
pub(crate) async fn run<M: StateMachine>(core: Arc<Core<M>>, mut waiting: WaitingReads) {
    loop {
        let first = tokio::select! {
            biased;
            first = waiting.recv() => first,
            () = core.stop.cancelled() => return,
        };
        let Some(first) = first else { return };
        let mut readers = vec![first];
        while let Ok(reader) = waiting.try_recv() {
            readers.push(reader);
        }
        let result = tokio::select! {
            biased;
            result = confirm(&core) => result,
            () = core.stop.cancelled() => return,
        };
        for reader in readers {
            // Whoever stopped waiting does not need to know.
            drop(reader.send(result.clone()));
        }
    }
}

/// Confirms what is current and waits until it is visible here.
async fn confirm<M: StateMachine>(core: &Core<M>) -> Result<LogIndex, ReadError> {
    let began = Instant::now();
    let index = loop {
        if let Some(index) = core.read_index().await? {
            break index;
        }
        if began.elapsed() >= core.leader_wait() {
            let retry_after = core.retry_after();
            return Err(ReadError::NoLeader { retry_after });
        }
        core.leader_may_have_changed().await;
    };
    let waited = core.config.request_timeout();
    let mut indexes = core.published.indexes();
    let visible = indexes.wait_for(|applied| *applied >= index);
    match tokio::time::timeout(waited, visible).await {
        Ok(Ok(applied)) => Ok(*applied),
        // The sender lives in the core that is borrowed here.
        Ok(Err(_)) => Err(ReadError::Stopped(core.reason_or_requested())),
        Err(_) => Err(ReadError::TimedOut { waited }),
    }
}
