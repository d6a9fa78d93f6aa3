//! What is done once, however often a client asks for it: requests with an
//! idempotency key, and what came of them.
//!
//! A request and the record of it are one command, so there is no moment at
//! which one exists without the other. Records end lazily: an expired one
//! counts no longer, and those that come after it push it out. Nothing waits
//! for that time to pass.

use std::ops::Bound;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::apply::{Transition, decide};
use crate::domain::command::{Command, Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::ids::{ClientId, IdempotencyKey};
use crate::domain::request::{Fingerprint, KeptRequest, shorten};
use crate::domain::settings::Settings;

/// Expired records that a new one pushes out. More than one, so that what
/// expired while nothing came is gone after a while; few, so that no command
/// takes long.
const SWEPT_PER_KEY: usize = 4;

/// Outcomes, and servers that they list, which a client's records may hold on
/// average. The number of keys alone would not bound the memory: one request
/// may have a thousand items.
pub(super) const WEIGHT_PER_KEY: u64 = 20;

/// Does all of it, or says what came of it before.
pub(super) fn once(
    t: &mut Transition<'_>,
    client: ClientId,
    key: IdempotencyKey,
    fingerprint: Fingerprint,
    request_id: String,
    commands: Vec<Command>,
) -> Outcome {
    let retention = t.fleet.settings.idempotency_retention;
    let kept = t.fleet.requests.get(&client, &key).filter(|kept| !kept.has_expired(t.stamp.at, retention));
    if let Some(kept) = kept {
        return if kept.fingerprint == fingerprint {
            Outcome::Repeated { request_id: kept.request_id.clone(), outcomes: kept.outcomes.clone() }
        } else {
            Outcome::Refused(Refusal::KeyReused)
        };
    }
    let mut outcomes: Vec<Outcome> = commands.into_iter().map(|command| one_of_many(t, command)).collect();
    shorten(&mut outcomes);
    t.emit(Event::RequestKept(Arc::new(KeptRequest {
        number: t.fleet.requests.next_number(),
        client,
        key,
        fingerprint,
        request_id,
        at: t.stamp.at,
        outcomes: outcomes.clone(),
    })));
    Outcome::Once(outcomes)
}

/// What one command comes to: the same as if it stood in the log by itself, so
/// those who wait are served before the next one.
fn one_of_many(t: &mut Transition<'_>, command: Command) -> Outcome {
    if let Command::Once { .. } | Command::Audited { .. } = command {
        return Outcome::Refused(Refusal::Nested);
    }
    let outcome = decide(t, command);
    t.settle();
    outcome
}

/// What is kept of a client, in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    keys: u64,
    weight: u64,
}

impl Tally {
    /// Whether it is more than may be. The newest record stays, however much
    /// it holds.
    fn is_over(self, settings: &Settings) -> bool {
        let keys_max = u64::from(settings.idempotency_keys_max);
        self.keys > keys_max || (self.keys > 1 && self.weight > keys_max * WEIGHT_PER_KEY)
    }
}

/// The kept requests. All but the records themselves is derived from them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Requests {
    records: OrdMap<u64, Arc<KeptRequest>>,
    by_key: OrdMap<(ClientId, IdempotencyKey), u64>,
    by_client: OrdSet<(ClientId, u64)>,
    tallies: OrdMap<ClientId, Tally>,
}

impl Requests {
    /// The record under a key, an expired one too.
    fn get(&self, client: &ClientId, key: &IdempotencyKey) -> Option<&Arc<KeptRequest>> {
        self.by_key.get(&(client.clone(), key.clone())).and_then(|number| self.records.get(number))
    }

    /// All records, oldest first.
    pub(super) fn by_age(&self) -> impl ExactSizeIterator<Item = &Arc<KeptRequest>> {
        self.records.values()
    }

    /// The number that the next record gets.
    fn next_number(&self) -> u64 {
        self.records.get_max().map_or(1, |(number, _)| number.saturating_add(1))
    }

    /// Keeps a record in the place of an expired one under its key. The oldest
    /// make room for it: expired ones of anybody, and those of its client
    /// beyond what may be kept.
    pub(super) fn keep(&mut self, request: &Arc<KeptRequest>, settings: &Settings) {
        for _ in 0..SWEPT_PER_KEY {
            let oldest = self.records.get_min().map(|(_, record)| record);
            match oldest.filter(|record| record.has_expired(request.at, settings.idempotency_retention)) {
                Some(expired) => self.remove(expired.number),
                None => break,
            }
        }
        if let Some(number) = self.get(&request.client, &request.key).map(|record| record.number) {
            self.remove(number);
        }
        self.insert(request);
        self.trim_client(&request.client, settings);
    }

    /// Drops what is more than may be kept.
    pub(super) fn trim(&mut self, settings: &Settings) {
        let over: Vec<ClientId> = self
            .tallies
            .iter()
            .filter(|(_, tally)| tally.is_over(settings))
            .map(|(client, _)| client.clone())
            .collect();
        for client in over {
            self.trim_client(&client, settings);
        }
    }

    fn trim_client(&mut self, client: &ClientId, settings: &Settings) {
        while self.tallies.get(client).is_some_and(|tally| tally.is_over(settings)) {
            let from = Bound::Included((client.clone(), 0));
            let oldest = self.by_client.range((from, Bound::Unbounded)).next();
            match oldest.filter(|(of, _)| of == client).map(|(_, number)| *number) {
                Some(number) => self.remove(number),
                None => return,
            }
        }
    }

    fn insert(&mut self, request: &Arc<KeptRequest>) {
        let KeptRequest { number, client, key, .. } = &**request;
        self.records.insert(*number, Arc::clone(request));
        self.by_key.insert((client.clone(), key.clone()), *number);
        self.by_client.insert((client.clone(), *number));
        let tally = self.tallies.entry(client.clone()).or_default();
        tally.keys += 1;
        tally.weight += request.weight();
    }

    fn remove(&mut self, number: u64) {
        let Some(request) = self.records.remove(&number) else { return };
        let client = &request.client;
        self.by_key.remove(&(client.clone(), request.key.clone()));
        self.by_client.remove(&(client.clone(), number));
        let tally = self.tallies.get(client).copied().unwrap_or_default();
        // What is zero is not listed, so that equal states are equal.
        match tally.keys.saturating_sub(1) {
            0 => self.tallies.remove(client),
            keys => {
                let weight = tally.weight.saturating_sub(request.weight());
                self.tallies.insert(client.clone(), Tally { keys, weight })
            }
        };
    }
}

impl FromIterator<Arc<KeptRequest>> for Requests {
    fn from_iter<I: IntoIterator<Item = Arc<KeptRequest>>>(records: I) -> Self {
        let mut requests = Self::default();
        for record in records {
            requests.insert(&record);
        }
        requests
    }
}
