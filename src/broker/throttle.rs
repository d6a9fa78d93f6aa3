//! How much callers may ask for: a number of requests per second, of each
//! address and of each client.
//!
//! Every caller has a bucket of tokens: a request takes one, time brings them
//! back, and as many as a second brings may be spent at once. The address is
//! looked at before anything else, so that what costs (checking a secret, a
//! token) is not to be had in any number; the client once it is known.
//!
//! Invariants: a request costs no more memory than its caller's bucket, and
//! there is room for a fixed number of buckets; what is refused takes nothing;
//! that somebody is refused is told once in a while and not each time.
//!
//! Each port has a throttle of its own, or shares one with another, and tells
//! the audit in its own words who was refused.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::api::Error;
use super::api::limits::CALLERS_MAX;
use crate::domain::ClientId;

/// Least that may be spent at once, however low the limit: portals ask for
/// some things together.
const BURST_MIN: u32 = 10;
/// Between two times that the audit is told that somebody is refused.
const TELL_INTERVAL: Duration = Duration::from_mins(1);
/// Buckets lie in so many places, so that requests seldom wait for each other.
const SHARDS: usize = 16;

/// Nanoseconds since the throttle was made.
type Nanos = u64;

/// A rate and what may be spent at once, as times.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// What one request costs.
    interval: Nanos,
    /// How far a bucket may be from full, for another request.
    slack: Nanos,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        let interval = 1_000_000_000 / u64::from(per_second.max(1));
        Self { interval, slack: interval * u64::from(per_second.max(BURST_MIN) - 1) }
    }
}

/// What one caller has left.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// When nothing is lacking any more.
    full_at: Nanos,
    /// When it was last told that the caller is refused.
    told_at: Option<Nanos>,
    /// Requests that were refused since.
    refused: u64,
}

/// That a bucket is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Empty {
    /// How often it was since that was last told, when it is time to tell.
    tell: Option<u64>,
}

/// A request that is too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    whose: &'static str,
    per_second: u32,
    tell: Option<u64>,
}

impl Refused {
    /// What the audit is to be told, when it is time to tell it something.
    pub fn told(&self) -> Option<String> {
        let error = Error::from(*self);
        match self.tell? {
            1 => Some(format!("refused: {error}")),
            times => Some(format!("refused: {error} ({times} since this was last told)")),
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::TooManyRequests { whose: refused.whose, per_second: refused.per_second }
    }
}

impl Bucket {
    fn take(&mut self, rate: Rate, now: Nanos) -> Result<(), Empty> {
        let full_at = self.full_at.max(now);
        if full_at - now <= rate.slack {
            self.full_at = full_at + rate.interval;
            return Ok(());
        }
        self.refused += 1;
        let is_time =
            self.told_at.is_none_or(|told_at| u128::from(now.saturating_sub(told_at)) >= TELL_INTERVAL.as_nanos());
        let tell = is_time.then(|| std::mem::take(&mut self.refused));
        if is_time {
            self.told_at = Some(now);
        }
        Err(Empty { tell })
    }
}

/// Buckets of those who called lately. When the recent half is full it becomes
/// the older one, and who was in that and did not call since is forgotten.
#[derive(Debug)]
struct Halves<K> {
    recent: HashMap<K, Bucket>,
    older: HashMap<K, Bucket>,
}

impl<K: Hash + Eq + Clone> Halves<K> {
    fn bucket(&mut self, key: &K, half_max: usize) -> &mut Bucket {
        if !self.recent.contains_key(key) {
            let bucket = self.older.remove(key).unwrap_or_default();
            if self.recent.len() >= half_max {
                std::mem::swap(&mut self.recent, &mut self.older);
                self.recent.clear();
            }
            self.recent.insert(key.clone(), bucket);
        }
        // A clone of a key takes no memory: it is an address, or shares its text.
        self.recent.entry(key.clone()).or_default()
    }
}

/// Buckets of callers of one kind.
#[derive(Debug)]
struct Buckets<K> {
    hasher: RandomState,
    shards: [Mutex<Halves<K>>; SHARDS],
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new() -> Self {
        let shard = |_| Mutex::new(Halves { recent: HashMap::new(), older: HashMap::new() });
        Self { hasher: RandomState::new(), shards: std::array::from_fn(shard) }
    }

    fn take(&self, key: &K, rate: Rate, now: Nanos) -> Result<(), Empty> {
        let hash = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        // Nothing under the lock can panic half-way through a change.
        let mut shard = self.shards[hash].lock().unwrap_or_else(PoisonError::into_inner);
        shard.bucket(key, CALLERS_MAX / SHARDS / 2).take(rate, now)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let shards = self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner));
        shards.map(|shard| shard.recent.len() + shard.older.len()).sum()
    }
}

/// The address that a caller is limited by. Who has an IPv6 address has all
/// that begin with the same 64 bits.
pub(super) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Limits callers.
#[derive(Debug)]
pub struct Throttle {
    per_second: u32,
    rate: Rate,
    started: Instant,
    addresses: Buckets<IpAddr>,
    clients: Buckets<ClientId>,
}

impl Throttle {
    /// One for so many requests per second; none for 0.
    pub fn new(per_second: u32) -> Option<Self> {
        (per_second > 0).then(|| Self {
            per_second,
            rate: Rate::new(per_second),
            started: Instant::now(),
            addresses: Buckets::new(),
            clients: Buckets::new(),
        })
    }

    fn now(&self) -> Nanos {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Lets a request of an address pass, unless it sends too many.
    pub fn admit_address(&self, address: IpAddr) -> Result<(), Refused> {
        self.take_for_address(address, self.now()).map_err(|empty| self.refused("address", empty))
    }

    /// Lets a request of a client pass, unless it sends too many.
    pub fn admit_client(&self, client: &ClientId) -> Result<(), Refused> {
        self.take_for_client(client, self.now()).map_err(|empty| self.refused("client", empty))
    }

    const fn refused(&self, whose: &'static str, empty: Empty) -> Refused {
        Refused { whose, per_second: self.per_second, tell: empty.tell }
    }

    fn take_for_address(&self, address: IpAddr, now: Nanos) -> Result<(), Empty> {
        self.addresses.take(&neighbourhood(address), self.rate, now)
    }

    fn take_for_client(&self, client: &ClientId, now: Nanos) -> Result<(), Empty> {
        self.clients.take(client, self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn throttle(per_second: u32) -> Throttle {
        Throttle::new(per_second).unwrap()
    }

    /// How many of many requests at one moment pass.
    fn passing(throttle: &Throttle, from: &str, now: Nanos) -> usize {
        (0..2_000).filter(|_| throttle.take_for_address(address(from), now).is_ok()).count()
    }

    #[test]
    fn a_second_s_worth_passes_at_once_and_then_as_time_goes() {
        let throttle = throttle(100);
        assert_eq!(passing(&throttle, "192.0.2.1", 0), 100);
        assert_eq!(passing(&throttle, "192.0.2.1", SECOND / 100 - 1), 0);
        assert_eq!(passing(&throttle, "192.0.2.1", SECOND / 100), 1);
        assert_eq!(passing(&throttle, "192.0.2.1", SECOND / 2), 49);
        assert_eq!(passing(&throttle, "192.0.2.1", 3600 * SECOND), 100, "what is not used is not saved up");
    }

    #[test]
    fn low_limits_leave_room_for_some_requests_together() {
        let throttle = throttle(1);
        assert_eq!(passing(&throttle, "192.0.2.1", 0), 10);
        assert_eq!(passing(&throttle, "192.0.2.1", SECOND), 1);
        assert_eq!(passing(&throttle, "192.0.2.1", 4 * SECOND), 3);
    }

    #[test]
    fn what_is_told_to_wait_for_is_enough() {
        for per_second in [1, 3, 7, 1_000, 1_000_000] {
            let throttle = throttle(per_second);
            while throttle.take_for_address(address("192.0.2.1"), 0).is_ok() {}
            assert!(throttle.take_for_address(address("192.0.2.1"), SECOND).is_ok(), "{per_second}");
        }
        assert!(Throttle::new(0).is_none());
    }

    #[test]
    fn callers_do_not_use_up_what_others_have() {
        let throttle = throttle(10);
        assert_eq!(passing(&throttle, "192.0.2.1", 0), 10);
        assert_eq!(passing(&throttle, "192.0.2.2", 0), 10);
        assert_eq!(passing(&throttle, "2001:db8::1", 0), 10);
        assert_eq!(passing(&throttle, "2001:db8::ffff:1", 0), 0, "of the same network");
        assert_eq!(passing(&throttle, "2001:db8:0:1::1", 0), 10);
        let client = |name: &str| ClientId::new(name).unwrap();
        let passes = |name: &str| (0..50).filter(|_| throttle.take_for_client(&client(name), 0).is_ok()).count();
        assert_eq!([passes("one"), passes("other"), passes("one")], [10, 10, 0]);
    }

    #[test]
    fn who_is_refused_is_told_once_a_minute_and_how_often() {
        let throttle = throttle(1);
        let tells = |now, times: usize| -> Vec<u64> {
            let refused = (0..times).filter_map(|_| throttle.take_for_address(address("192.0.2.1"), now).err());
            refused.filter_map(|empty| empty.tell).collect()
        };
        assert_eq!(tells(0, 110), [1]);
        assert!(tells(59 * SECOND, 110).is_empty());
        assert_eq!(tells(60 * SECOND, 2), [200]);
    }

    #[test]
    fn a_refusal_says_whose_limit_it_is_and_the_audit_hears_the_number() {
        let throttle = throttle(1);
        let somebody = ClientId::new("somebody").unwrap();
        let refused = loop {
            if let Err(refused) = throttle.admit_client(&somebody) {
                break refused;
            }
        };
        let text = "too many requests of this client; 1 per second are allowed";
        assert_eq!(Error::from(refused).to_string(), text);
        assert_eq!(refused.told().unwrap(), format!("refused: {text}"));
        let later = Refused { tell: Some(7), ..refused };
        assert_eq!(later.told().unwrap(), format!("refused: {text} (7 since this was last told)"));
        assert_eq!(Refused { tell: None, ..refused }.told(), None);
    }

    #[test]
    fn any_number_of_addresses_has_bounded_room_and_who_goes_on_is_not_forgotten() {
        let throttle = throttle(1);
        let busy = address("192.0.2.1");
        while throttle.take_for_address(busy, 0).is_ok() {}
        for number in 0..4 * u32::try_from(CALLERS_MAX).unwrap() {
            let other = IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number));
            assert!(throttle.take_for_address(other, 0).is_ok());
            if number % 512 == 0 {
                assert!(throttle.take_for_address(busy, 0).is_err(), "after {number}");
            }
        }
        assert!(throttle.addresses.len() <= CALLERS_MAX);
    }
}
