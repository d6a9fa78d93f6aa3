//! What the handles of a log and its writer thread share.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};
use std::time::{Duration, Instant};

use super::database::Database;
use super::view::View;
use super::{Condition, Done, Entry};
use crate::error::chain;
use crate::files::Files;
use crate::memory::Driver;
use crate::{Error, Options};

/// How long a reader waits before it tries again, if nobody wakes it.
const REOPENING_PAUSE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) files: Files,
    /// Folder of the log database.
    pub(crate) folder: PathBuf,
    pub(crate) options: Options,
    state: Mutex<State>,
    /// Wakes the writer: something is queued, or the store closes.
    pub(crate) wake: Condvar,
    /// Drives the writer where no thread does.
    pub(crate) driver: OnceLock<Weak<Driver>>,
    /// Wakes readers after the database was opened anew.
    reopened: Condvar,
    /// Missing once closed, and while it is opened anew. Written to by the
    /// writer only; taken exclusively only to replace it.
    database: RwLock<Option<Database>>,
}

/// Under the lock: short steps in memory, never a wait for the disk.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) view: View,
    /// Accepted and not taken up by the writer.
    pub(crate) queue: VecDeque<Write>,
    /// Bytes and number of writes accepted and not finished.
    pub(crate) waiting_bytes: u64,
    pub(crate) waiting_writes: usize,
    /// Number of the last write accepted, and of the last one durable.
    pub(crate) last_write: u64,
    pub(crate) durable_write: u64,
    pub(crate) committed: Option<CommittedWaiting>,
    pub(crate) condition: Condition,
    pub(crate) closing: bool,
    /// Whom to tell when the log stops for good.
    pub(crate) on_failure: Option<OnFailure>,
}

/// Called once, with the reason.
pub(crate) struct OnFailure(pub(crate) Box<dyn FnOnce(Arc<str>) + Send>);

impl std::fmt::Debug for OnFailure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("OnFailure")
    }
}

/// A committed marker that is not on disk yet.
#[derive(Debug)]
pub(crate) struct CommittedWaiting {
    pub(crate) marker: Vec<u8>,
    /// The writes through this one come before it.
    pub(crate) after_write: u64,
    pub(crate) since: Instant,
}

/// One accepted write.
pub(crate) struct Write {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) action: Action,
    pub(crate) done: Done,
}

impl std::fmt::Debug for Write {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Write")
            .field("number", &self.number)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// What a write does.
#[derive(Debug)]
pub(crate) enum Action {
    /// `start` is where a log that never held an entry begins.
    Append {
        start: Option<u64>,
        entries: Vec<Arc<Entry>>,
    },
    Vote(Vec<u8>),
    Truncate(u64),
    Purge {
        index: u64,
        marker: Vec<u8>,
    },
}

impl Shared {
    pub(crate) fn new(files: Files, folder: PathBuf, options: Options, view: View, database: Database) -> Self {
        Self {
            files,
            folder,
            options,
            state: Mutex::new(State {
                view,
                queue: VecDeque::new(),
                waiting_bytes: 0,
                waiting_writes: 0,
                last_write: super::load::LOADED_WRITE,
                durable_write: super::load::LOADED_WRITE,
                committed: None,
                condition: Condition::Healthy,
                closing: false,
                on_failure: None,
            }),
            wake: Condvar::new(),
            driver: OnceLock::new(),
            reopened: Condvar::new(),
            database: RwLock::new(Some(database)),
        }
    }

    /// Tells the writer that there is something to do. Not to be called with the
    /// state locked: the writer may get to it at once.
    pub(crate) fn wake_writer(&self) {
        self.wake.notify_one();
        if let Some(driver) = self.driver.get().and_then(Weak::upgrade) {
            driver.call();
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a defect of ours; the writer reports it. The
        // handles go on with what is there, which is whole between steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn database_exclusively(&self) -> RwLockWriteGuard<'_, Option<Database>> {
        self.database.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits a while for the database to be opened anew: until then sled refuses
    /// what it had not written when it met a full disk.
    pub(crate) fn wait_for_reopening(&self) {
        let state = self.state();
        let woken = self.reopened.wait_timeout(state, REOPENING_PAUSE);
        drop(woken.unwrap_or_else(PoisonError::into_inner));
    }

    /// Tells readers that the database was opened anew.
    pub(crate) fn has_reopened(&self) {
        self.reopened.notify_all();
    }

    /// Stops the log for good, loudly. The writer then fails what is queued.
    pub(crate) fn fail(&self, error: &Error) {
        let reason: Arc<str> = chain(error).into();
        let mut state = self.state();
        if !matches!(state.condition, Condition::Failed(_)) {
            tracing::error!(folder = %self.folder.display(), reason = &*reason, "storage has stopped");
            state.condition = Condition::Failed(Arc::clone(&reason));
        }
        let told = state.on_failure.take();
        drop(state);
        self.wake.notify_all();
        if let Some(OnFailure(tell)) = told {
            tell(reason);
        }
    }
}

impl State {
    /// The error that every call gets once the log has stopped or is closed.
    pub(crate) fn refusal(&self) -> Option<Error> {
        match &self.condition {
            Condition::Failed(reason) => Some(Error::Failed { reason: Arc::clone(reason) }),
            _ if self.closing => Some(Error::Closed),
            _ => None,
        }
    }

    /// Queues a write.
    pub(crate) fn enqueue(&mut self, bytes: u64, action: Action, done: Done) {
        self.last_write += 1;
        self.waiting_bytes += bytes;
        self.waiting_writes += 1;
        self.queue.push_back(Write { number: self.last_write, bytes, action, done });
    }
}
