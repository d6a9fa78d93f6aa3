//! Whether what clients saw can be told as a story in which every call happens
//! at one moment between its sending and its answer.
//!
//! The check is Wing and Gong's search with Lowe's memory: it looks for an
//! order of the calls that the real time allows and a sequential model accepts,
//! and never tries twice to go on from the same calls done in the same state.
//! A call without an answer may happen at any moment after it was sent, or
//! never. Histories are cut by key first, since objects that do not touch each
//! other can be judged one by one; a few hundred calls a key, of which a few
//! without an answer, take milliseconds.
//!
//! - [`session`], [`server`], [`queue`]: the models, and how a history becomes
//!   calls of them.

pub mod queue;
pub mod server;
pub mod session;

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use crate::history::{Moment, Span};

/// Most states of the search. A history that needs more has too many calls
/// without an answer for one key.
const STEPS_MAX: usize = 500_000;

/// What an object does when one call comes after the other.
pub trait Sequential {
    /// All that decides later answers.
    type State: Clone + Eq + Hash;
    /// What is asked.
    type Input: Debug + PartialEq;
    /// What is answered.
    type Output: Debug;

    /// Before the first call.
    fn initial(&self) -> Self::State;

    /// The states in which a call may leave the object; none when it cannot have
    /// had this answer. Without an answer every effect that the call may have is
    /// allowed, none among them.
    fn step(&self, state: &Self::State, input: &Self::Input, output: Option<&Self::Output>) -> Vec<Self::State>;
}

/// A call of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<I, O> {
    /// What was asked.
    pub input: I,
    /// When it was sent.
    pub sent: Moment,
    /// When its answer had come, and what it was.
    pub answer: Option<(Moment, O)>,
}

impl<I, O> Call<I, O> {
    /// A call with an answer.
    pub const fn answered(span: Span, input: I, output: O) -> Self {
        Self { input, sent: span.sent, answer: Some((span.answered, output)) }
    }

    /// A call whose outcome nobody knows.
    pub const fn unknown(sent: Moment, input: I) -> Self {
        Self { input, sent, answer: None }
    }

    /// When it was over at the latest.
    fn end(&self) -> Moment {
        self.answer.as_ref().map_or(Moment(u64::MAX), |(moment, _)| *moment)
    }
}

/// Why there is no such story.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// No order explains the answers.
    #[error(
        "no order explains the answers: of {calls} calls {explained} can be told, then not {next}; around it: {around:?}"
    )]
    Unexplained {
        /// Calls in all.
        calls: usize,
        /// Most of them that some order explains.
        explained: usize,
        /// The call that came next then.
        next: String,
        /// Calls that were under way at the same time, or just before.
        around: Vec<String>,
    },
    /// Too many orders are possible.
    #[error("the search was given up after {steps} steps: {pending} of {calls} calls have no answer")]
    TooHard {
        /// Steps taken.
        steps: usize,
        /// Calls without an answer.
        pending: usize,
        /// Calls in all.
        calls: usize,
    },
}

/// Looks for a story of the calls to one object.
pub fn check<M: Sequential>(model: &M, calls: &[Call<M::Input, M::Output>]) -> Result<(), Flaw> {
    let mut order: Vec<&Call<M::Input, M::Output>> = calls.iter().collect();
    order.sort_by_key(|call| (call.sent, call.end()));
    Search { model, calls: order, seen: HashSet::new(), best: Vec::new() }.run()
}

/// Which calls are done: a bit for each.
type Done = Box<[u64]>;

struct Search<'a, M: Sequential> {
    model: &'a M,
    /// By the time of sending.
    calls: Vec<&'a Call<M::Input, M::Output>>,
    seen: HashSet<(Done, M::State)>,
    /// The most that was ever done.
    best: Vec<usize>,
}

/// Calls done, and the state that they left.
struct Position<S> {
    done: Done,
    /// All before it are done.
    first_open: usize,
    answered: usize,
    state: S,
}

impl<M: Sequential> Search<'_, M> {
    fn run(mut self) -> Result<(), Flaw> {
        let goal = self.calls.iter().filter(|call| call.answer.is_some()).count();
        let done = vec![0; self.calls.len().div_ceil(64)].into_boxed_slice();
        let mut open = vec![Position { done, first_open: 0, answered: 0, state: self.model.initial() }];
        let mut best = None;
        let mut steps = 0;
        while let Some(position) = open.pop() {
            if position.answered == goal {
                return Ok(());
            }
            steps += 1;
            if steps > STEPS_MAX {
                let calls = self.calls.len();
                return Err(Flaw::TooHard { steps, pending: calls - goal, calls });
            }
            if best.is_none_or(|most| position.answered > most) {
                best = Some(position.answered);
                self.best = (0..self.calls.len()).filter(|&number| is_done(&position.done, number)).collect();
            }
            self.successors(&position, &mut open);
        }
        Err(self.flaw(best.unwrap_or_default()))
    }

    /// What may happen next. The most promising comes last, to be taken first:
    /// the call that was over first.
    fn successors(&mut self, position: &Position<M::State>, open: &mut Vec<Position<M::State>>) {
        let mut next = Vec::new();
        // Whatever was sent after another call's answer cannot come before it.
        let mut horizon = Moment(u64::MAX);
        for number in position.first_open..self.calls.len() {
            let call = self.calls[number];
            if call.sent > horizon {
                break;
            }
            if !is_done(&position.done, number) {
                horizon = horizon.min(call.end());
                next.push(number);
            }
        }
        next.retain(|&number| self.calls[number].sent <= horizon);
        // Of calls without an answer that ask for the same, whichever was sent
        // first may stand for all of them.
        let is_later_twin = |&number: &usize| {
            let call = self.calls[number];
            call.answer.is_none()
                && (position.first_open..number).any(|earlier| {
                    let other = self.calls[earlier];
                    !is_done(&position.done, earlier) && other.answer.is_none() && other.input == call.input
                })
        };
        next.retain(|number| !is_later_twin(number));
        next.sort_by_key(|&number| std::cmp::Reverse(self.calls[number].end()));
        for number in next {
            let call = self.calls[number];
            let output = call.answer.as_ref().map(|(_, output)| output);
            for state in self.model.step(&position.state, &call.input, output) {
                // A call that nobody knows of and that changes nothing need not happen.
                if output.is_none() && state == position.state {
                    continue;
                }
                let mut done = position.done.clone();
                done[number / 64] |= 1 << (number % 64);
                if self.seen.insert((done.clone(), state.clone())) {
                    let answered = position.answered + usize::from(output.is_some());
                    let mut first_open = position.first_open;
                    while first_open < self.calls.len() && is_done(&done, first_open) {
                        first_open += 1;
                    }
                    open.push(Position { done, first_open, answered, state });
                }
            }
        }
    }

    fn flaw(&self, explained: usize) -> Flaw {
        const SHOWN: usize = 8;
        let open: Vec<usize> = (0..self.calls.len()).filter(|number| !self.best.contains(number)).collect();
        let first = open.iter().copied().min_by_key(|&number| self.calls[number].end());
        let show = |number: usize| format!("{:?}", self.calls[number]);
        let around = first.map_or_else(Vec::new, |first| {
            let near = (0..self.calls.len()).filter(|&number| number != first);
            let before = near.filter(|&number| self.calls[number].sent <= self.calls[first].end());
            let mut numbers: Vec<usize> = before.collect();
            numbers.sort_by_key(|&number| std::cmp::Reverse(self.calls[number].sent));
            numbers.into_iter().take(SHOWN).map(show).collect()
        });
        Flaw::Unexplained { calls: self.calls.len(), explained, next: first.map(show).unwrap_or_default(), around }
    }
}

fn is_done(done: &[u64], number: usize) -> bool {
    done[number / 64] & (1 << (number % 64)) != 0
}

#[cfg(test)]
mod tests;
