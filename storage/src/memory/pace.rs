//! Who drives the writer of a store on a simulated disk, in place of a thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Mount;
use crate::Error;
use crate::log::{Turn, Writer};

/// What a writer is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Take up what is queued and write it.
    Write,
    /// Make what was written durable, and report it.
    Sync,
    /// Write what is in no hurry: a committed marker that nothing else takes
    /// along, removals of purged entries. A real store does so after half a
    /// second.
    Tidy,
    /// Look again whether there is room. A real store does so ten times a second.
    Retry,
}

/// Decides when writers work.
pub trait Pace: Send + Sync {
    /// `work` is at hand: to be run once, now or later, from anywhere but from
    /// within a call of the same store's. Dropping it stops the writer until the
    /// next call.
    fn arrange(&self, step: Step, work: Work);
}

/// The next step of a writer.
pub struct Work {
    driver: Weak<Driver>,
    step: Step,
}

impl fmt::Debug for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Work").field("step", &self.step).finish_non_exhaustive()
    }
}

impl Work {
    /// Does it, unless the store was closed, or its process killed, meanwhile.
    pub fn run(self) {
        if let Some(driver) = self.driver.upgrade() {
            driver.run(self.step);
        }
    }
}

/// The writer of one store, and what it has to do.
pub(crate) struct Driver {
    mount: Mount,
    /// Missing once it has ended.
    writer: Mutex<Option<Writer>>,
    /// Somebody called for the writer while it was at work.
    called: AtomicBool,
    /// Steps that are arranged for.
    arranged: [AtomicBool; 4],
}

impl fmt::Debug for Driver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Driver {
    pub(crate) fn new(mount: Mount, writer: Writer) -> Arc<Self> {
        Arc::new(Self {
            mount,
            writer: Mutex::new(Some(writer)),
            called: AtomicBool::default(),
            arranged: Default::default(),
        })
    }

    fn flag(&self, step: Step) -> &AtomicBool {
        &self.arranged[step as usize]
    }

    /// Something is queued.
    pub(crate) fn call(self: &Arc<Self>) {
        self.called.store(true, Ordering::Relaxed);
        // It is being made durable: the writer sees what is queued afterwards.
        if !self.flag(Step::Sync).load(Ordering::Relaxed) {
            self.arrange(Step::Write);
        }
    }

    fn arrange(self: &Arc<Self>, step: Step) {
        if self.flag(step).swap(true, Ordering::Relaxed) {
            return;
        }
        let work = Work { driver: Arc::downgrade(self), step };
        let mut state = self.mount.disk().state();
        match state.pace.clone() {
            Some(pace) => {
                drop(state);
                pace.arrange(step, work);
            }
            // Goes on when the room changes.
            None if step == Step::Retry => state.waiting.push(work),
            None => {
                drop(state);
                work.run();
            }
        }
    }

    fn run(self: &Arc<Self>, step: Step) {
        self.flag(step).store(false, Ordering::Relaxed);
        if !self.mount.is_alive() {
            return;
        }
        let next = {
            // Taken by ourselves further up: a callback wrote something.
            let Ok(mut writer) = self.writer.try_lock() else { return };
            // One that has ended takes nothing up any more, whoever calls.
            let Some(working) = writer.as_mut() else { return };
            match working.take_turn(step, &self.called) {
                Turn::Next(next) => next,
                Turn::Ended(result) => {
                    if let Some(ended) = writer.take() {
                        drop(ended.finish(result));
                    }
                    return;
                }
            }
        };
        if let Some(next) = next {
            self.arrange(next);
        }
        // A callback may have come while the writer was taken.
        if self.called.load(Ordering::Relaxed) && !self.flag(Step::Sync).load(Ordering::Relaxed) {
            self.arrange(Step::Write);
        }
    }

    /// Writes what is queued, and ends.
    pub(crate) fn close(&self) -> Result<(), Error> {
        let taken = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut writer) = taken else { return Ok(()) };
        let mut step = if writer.is_written() { Step::Sync } else { Step::Write };
        loop {
            match writer.take_turn(step, &self.called) {
                // There is no room, and nobody to wait for some.
                Turn::Next(Some(Step::Retry)) => {
                    let result = if writer.is_awaited() { Err(writer.fullness()) } else { Ok(()) };
                    return writer.finish(result);
                }
                Turn::Next(next) => step = next.unwrap_or(Step::Write),
                Turn::Ended(result) => return writer.finish(result),
            }
        }
    }
}
