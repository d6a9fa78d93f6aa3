//! The writer without a thread, for stores on a simulated disk: one step at a
//! time, and nothing that waits.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Job, Writer, unless_full};
use crate::Error;
use crate::log::Condition;
use crate::memory::Step;

/// What came of a step.
pub(crate) enum Turn {
    /// What is to be done next; `None` when nothing is.
    Next(Option<Step>),
    /// The writer is to be ended with this.
    Ended(Result<(), Error>),
}

impl Writer {
    /// Takes one step. `called` is cleared when the queue is looked at.
    pub(crate) fn take_turn(&mut self, step: Step, called: &AtomicBool) -> Turn {
        let result = if self.is_written { self.sync_written() } else { self.write_next(step, called) };
        result.unwrap_or_else(|error| Turn::Ended(Err(error)))
    }

    fn sync_written(&mut self) -> Result<Turn, Error> {
        self.make_durable()?;
        self.is_written = false;
        self.report();
        Ok(Turn::Next(self.next_step()))
    }

    fn write_next(&mut self, step: Step, called: &AtomicBool) -> Result<Turn, Error> {
        called.store(false, Ordering::Relaxed);
        // What found no room before comes first.
        let job = if self.in_flight.writes.is_empty() {
            let shared = std::sync::Arc::clone(&self.shared);
            let idle = step == Step::Tidy;
            self.take_job(&mut shared.state(), idle, idle)
        } else {
            Some(Job::Group)
        };
        let written = match job {
            None => Ok(()),
            Some(Job::Stop(result)) => return Ok(Turn::Ended(result)),
            Some(Job::Group) => match self.if_room(Self::write_records) {
                Err(Error::Full { .. }) => return Ok(Turn::Next(Some(Step::Retry))),
                Ok(()) => {
                    self.is_written = true;
                    return Ok(Turn::Next(Some(Step::Sync)));
                }
                result => result,
            },
            Some(Job::Committed(marker)) => {
                self.in_flight.committed = Some(marker);
                let result = self.if_room(Self::write_committed);
                self.in_flight.committed = None;
                unless_full(result)
            }
            Some(Job::Purge) => unless_full(self.if_room(Self::write_purge)),
        };
        written?;
        Ok(Turn::Next(self.next_step()))
    }

    fn next_step(&self) -> Option<Step> {
        let state = self.shared.state();
        if !state.queue.is_empty() {
            return Some(Step::Write);
        }
        (self.leftovers || state.committed.is_some()).then_some(Step::Tidy)
    }

    /// Does `write` if there is room for it.
    fn if_room(&mut self, write: fn(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        let needed_bytes = self.needed_bytes();
        if self.shared.options.reserve_bytes > 0 {
            self.shared.files.require_room(&self.shared.folder, needed_bytes).inspect_err(|full| self.note(full))?;
        }
        match write(self) {
            Err(error) if error.is_disk_full() => {
                // Some of it may be there.
                self.again = true;
                let full = Error::Full { path: self.shared.folder.clone(), free_bytes: 0, needed_bytes };
                self.note(&full);
                Err(full)
            }
            result => {
                self.shared.state().condition.recover();
                result
            }
        }
    }

    fn note(&self, full: &Error) {
        if let Error::Full { free_bytes, needed_bytes, .. } = full {
            let mut state = self.shared.state();
            state.condition = Condition::Full { free_bytes: *free_bytes, needed_bytes: *needed_bytes };
        }
    }

    /// The error of those who wait for room in vain.
    pub(crate) fn fullness(&self) -> Error {
        let needed_bytes = self.needed_bytes();
        let free_bytes = match self.shared.state().condition {
            Condition::Full { free_bytes, .. } => free_bytes,
            _ => 0,
        };
        Error::Full { path: self.shared.folder.clone(), free_bytes, needed_bytes }
    }
}

impl Condition {
    fn recover(&mut self) {
        if matches!(self, Self::Full { .. }) {
            *self = Self::Healthy;
        }
    }
}
