//! What happened in a world: its last lines, and a number over all of it.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Lines that are kept.
const LINES_MAX: usize = 120;

/// See the module.
#[derive(Debug)]
pub struct Trace {
    began: Instant,
    verbose: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hasher: DefaultHasher,
    lines: VecDeque<String>,
}

impl Trace {
    /// Begins now.
    pub fn new(verbose: bool) -> Self {
        Self { began: Instant::now(), verbose, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data, whole between steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since the beginning.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Something happened that is worth a line.
    #[expect(clippy::print_stdout, reason = "asked for, to follow one world")]
    pub fn note(&self, text: &str) {
        let line = format!("{:>7} ms  {text}", self.now_ms());
        let mut state = self.state();
        line.hash(&mut state.hasher);
        if self.verbose {
            println!("{line}");
        }
        if state.lines.len() == LINES_MAX {
            state.lines.pop_front();
        }
        state.lines.push_back(line);
    }

    /// What is of interest to who follows one world only.
    #[expect(clippy::print_stdout, reason = "asked for, to follow one world")]
    pub fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>7} ms    {}", self.now_ms(), text());
        }
    }

    /// Something happened that is not, but is to be the same each time.
    pub fn mark(&self, what: impl Hash) {
        let at = self.now_ms();
        let mut state = self.state();
        at.hash(&mut state.hasher);
        what.hash(&mut state.hasher);
    }

    /// The number over all of it, and the last lines.
    pub fn end(&self) -> (u64, Vec<String>) {
        let mut state = self.state();
        (state.hasher.finish(), std::mem::take(&mut state.lines).into())
    }
}
