//! How a replica stops by itself: the reason first, so that everybody is told the same.

use crate::error::StopReason;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Stops the replica it belongs to. Clones stop the same one.
#[derive(Clone)]
pub(crate) struct Halt {
    pub(crate) stopped: Arc<watch::Sender<Option<StopReason>>>,
    pub(crate) stop: CancellationToken,
}

impl Halt {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { stopped: Arc::new(watch::Sender::new(None)), stop }
    }

    /// Stops for `reason`, unless the replica has stopped already.
    pub(crate) fn because(&self, reason: StopReason) {
        tracing::error!(%reason, "the replica stops");
        set_if_running(&self.stopped, reason);
        self.stop.cancel();
    }

    /// Why it has stopped, if it has.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        self.stopped.borrow().clone()
    }
}

/// The first reason stays.
pub(crate) fn set_if_running(stopped: &watch::Sender<Option<StopReason>>, reason: StopReason) {
    stopped.send_if_modified(|current| {
        let first = current.is_none();
        if first {
            *current = Some(reason);
        }
        first
    });
}
