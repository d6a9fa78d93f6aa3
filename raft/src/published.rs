//! The applied state as readers see it: immutable views, swapped without a lock.

use crate::ids::{LogIndex, UnixMillis};
use arc_swap::ArcSwap;
use std::sync::Arc;
use tokio::sync::watch;

/// A state and how far it goes.
pub(crate) struct Applied<M> {
    pub(crate) state: Arc<M>,
    pub(crate) index: Option<LogIndex>,
    pub(crate) at: UnixMillis,
}

/// Where the applier puts each new state. The index is announced after the state is visible.
pub(crate) struct Published<M> {
    current: ArcSwap<Applied<M>>,
    index: watch::Sender<LogIndex>,
    deadline: watch::Sender<Option<UnixMillis>>,
}

impl<M> Published<M> {
    pub(crate) fn new(initial: M, deadline: Option<UnixMillis>) -> Self {
        Self {
            current: ArcSwap::from_pointee(Applied { state: Arc::new(initial), index: None, at: UnixMillis(0) }),
            index: watch::Sender::new(LogIndex(0)),
            deadline: watch::Sender::new(deadline),
        }
    }

    pub(crate) fn publish(&self, applied: Applied<M>, deadline: Option<UnixMillis>) {
        let index = applied.index.unwrap_or_default();
        self.current.store(Arc::new(applied));
        self.index.send_replace(index);
        self.deadline.send_if_modified(|current| {
            let changed = *current != deadline;
            *current = deadline;
            changed
        });
    }

    pub(crate) fn latest(&self) -> Arc<Applied<M>> {
        self.current.load_full()
    }

    pub(crate) fn indexes(&self) -> watch::Receiver<LogIndex> {
        self.index.subscribe()
    }

    pub(crate) fn deadlines(&self) -> watch::Receiver<Option<UnixMillis>> {
        self.deadline.subscribe()
    }
}
