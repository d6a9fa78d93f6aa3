//! Requests that clients may repeat: what is kept of each, so that the same
//! one again has no second effect and gets the same answer.

use serde::{Deserialize, Serialize};

use super::command::{Outcome, Refusal};
use super::ids::{ClientId, IdempotencyKey};
use super::time::{Millis, Timestamp};

/// Outcomes of one request that keep their list of refused servers; the
/// others keep the counts only. Such a list is far longer than everything
/// else that an outcome says.
pub const LISTS_MAX: usize = 10;

/// SHA-256 over all that a request says: two requests are the same when theirs
/// are. Made at the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub [u8; 32]);

/// A request that was carried out, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptRequest {
    /// Place in the order of keeping.
    pub number: u64,
    /// Who asked.
    pub client: ClientId,
    /// What the client calls it by.
    pub key: IdempotencyKey,
    /// Tells another request under the same key.
    pub fingerprint: Fingerprint,
    /// Its id, which its answer bears.
    pub request_id: String,
    /// When it was carried out.
    pub at: Timestamp,
    /// What its commands came to, one by one.
    pub outcomes: Vec<Outcome>,
}

impl KeptRequest {
    /// Whether it counts no longer.
    pub fn has_expired(&self, now: Timestamp, retention: Millis) -> bool {
        self.at + retention <= now
    }

    /// How much is kept: one for each outcome and each server that one lists.
    pub(super) fn weight(&self) -> u64 {
        self.outcomes
            .iter()
            .map(|outcome| match outcome {
                Outcome::Refused(Refusal::NoServer(explanation) | Refusal::QueueFull { explanation, .. }) => {
                    1 + explanation.servers_refused.len() as u64
                }
                _ => 1,
            })
            .sum()
    }
}

/// Takes from outcomes what is not kept of them, before anybody sees them, so
/// that the first answer and a repeated one say the same.
pub fn shorten(outcomes: &mut [Outcome]) {
    let lists = outcomes.iter_mut().filter_map(|outcome| match outcome {
        Outcome::Refused(Refusal::NoServer(explanation) | Refusal::QueueFull { explanation, .. }) => {
            Some(&mut explanation.servers_refused)
        }
        _ => None,
    });
    for list in lists.skip(LISTS_MAX) {
        *list = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ServerId;
    use crate::domain::placement::{Explanation, Rule};

    fn refused(servers: usize) -> Outcome {
        let server = ServerId::new("server-1").expect("valid");
        let explanation =
            Explanation { servers_refused: vec![(server, Rule::Full); servers], ..Explanation::default() };
        Outcome::Refused(Refusal::NoServer(explanation))
    }

    #[test]
    fn only_the_first_refusals_keep_their_lists_and_weigh_as_much() {
        let mut outcomes: Vec<Outcome> = [Outcome::Done, refused(0)].into_iter().chain(vec![refused(3); 12]).collect();
        shorten(&mut outcomes);
        let kept = outcomes.iter().filter(|outcome| **outcome == refused(3)).count();
        assert_eq!(kept, LISTS_MAX - 1, "an empty list is one of them");
        assert_eq!(outcomes[2..].iter().filter(|outcome| **outcome == refused(0)).count(), 12 - kept);
        let request = KeptRequest {
            number: 1,
            client: ClientId::new("portal").expect("valid"),
            key: IdempotencyKey::new("k").expect("valid"),
            fingerprint: Fingerprint([0; 32]),
            request_id: String::new(),
            at: Timestamp(1),
            outcomes,
        };
        assert_eq!(request.weight(), 14 + 3 * kept as u64);
        let (before, after) = (Timestamp(10), Timestamp(11));
        assert_eq!([before, after].map(|now| request.has_expired(now, Millis(10))), [false, true]);
    }
}
