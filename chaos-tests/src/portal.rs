//! A client of several replicas: it calls one of them, and once more another
//! one when it got no answer, or one that says to try again. Both calls have
//! the same idempotency key, so that they have one effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::client::{Answer, Api};
use crate::random::Random;

/// How calls fared, of all portals together.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls.
    pub calls: AtomicU64,
    /// Calls that needed a second attempt.
    pub retried: AtomicU64,
    /// Calls of which the second attempt failed as well.
    pub failed: AtomicU64,
    /// Answers that said they may be out of date.
    pub stale: AtomicU64,
}

/// A client of several replicas.
#[derive(Debug, Clone)]
pub struct Portal {
    replicas: Vec<Api>,
    random: Random,
    counters: Arc<Counters>,
}

impl Portal {
    /// A client of these replicas.
    pub const fn new(replicas: Vec<Api>, random: Random, counters: Arc<Counters>) -> Self {
        Self { replicas, random, counters }
    }

    /// POSTs a body to an operation, of one replica or of two.
    pub async fn call(&mut self, operation: &str, body: &Value) -> Answer {
        let key = format!("{:016x}{:016x}", self.random.next(), self.random.next());
        let (first, second) = self.choose();
        let answer = first.call_once(operation, body, &key).await;
        self.complete(answer, second, async |api| api.call_once(operation, body, &key).await).await
    }

    /// GETs a path, of one replica or of two.
    pub async fn get(&mut self, path: &str) -> Answer {
        let (first, second) = self.choose();
        let answer = first.get(path).await;
        self.complete(answer, second, async |api| api.get(path).await).await
    }

    fn choose(&mut self) -> (Api, Api) {
        let count = self.replicas.len() as u64;
        let first = self.random.below(count);
        let second = (first + 1 + self.random.below((count - 1).max(1))) % count;
        let api = |place: u64| self.replicas[usize::try_from(place).unwrap_or_default()].clone();
        (api(first), api(second))
    }

    async fn complete(&self, answer: Answer, second: Api, again: impl AsyncFnOnce(Api) -> Answer) -> Answer {
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        add(&self.counters.calls);
        let answer = if wants_retry(&answer) {
            add(&self.counters.retried);
            let answer_again = again(second).await;
            if wants_retry(&answer_again) {
                add(&self.counters.failed);
            }
            both(answer, answer_again)
        } else {
            answer
        };
        if matches!(answer, Answer::Stale(_)) {
            add(&self.counters.stale);
        }
        answer
    }
}

fn wants_retry(answer: &Answer) -> bool {
    match answer {
        Answer::Done(_) | Answer::Stale(_) => false,
        Answer::Refused(refusal) => refusal.status == 503,
        Answer::Unknown(_) | Answer::NotSent => true,
    }
}

/// What is known after two attempts. What the second one did not answer, the
/// first may still do.
fn both(first: Answer, second: Answer) -> Answer {
    match (first, second) {
        (Answer::Unknown(reason), second) if wants_retry(&second) => Answer::Unknown(reason),
        // The key was not known there: that says nothing of the first attempt.
        (Answer::Unknown(reason), Answer::Refused(refusal)) => Answer::Unknown(format!("{reason}; then {refusal:?}")),
        (Answer::Refused(refusal), Answer::NotSent) => Answer::Refused(refusal),
        (_, second) => second,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Refusal;

    #[test]
    fn what_may_have_happened_stays_possible() {
        let unknown = || Answer::Unknown("cut".to_owned());
        let refused = |status| {
            Answer::Refused(Refusal { status, error: Some("no leader".to_owned()), retry_after_secs: Some(1) })
        };
        let done = || Answer::Done(Value::Null);
        assert_eq!(both(unknown(), done()), done());
        assert_eq!(both(Answer::NotSent, done()), done());
        for second in [unknown(), refused(503), Answer::NotSent] {
            assert_eq!(both(unknown(), second), unknown());
        }
        assert!(matches!(both(unknown(), refused(400)), Answer::Unknown(_)));
        assert_eq!(both(refused(503), Answer::NotSent), refused(503));
        assert_eq!(both(refused(503), unknown()), unknown());
        assert_eq!(both(Answer::NotSent, Answer::NotSent), Answer::NotSent);
    }
}
