//! What happens to packets on their way, decided packet by packet.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cut::HostId;
use crate::random::Random;

/// Parts of a thousand.
const THOUSAND: u64 = 1000;

/// The state of a one-way path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weather {
    /// Time that every packet takes.
    pub delay: Duration,
    /// Up to this much more, at random, without one packet overtaking another.
    pub jitter: Duration,
    /// Of a thousand packets so many are lost; 1000 cuts the path.
    pub lost_permille: u32,
    /// Of a thousand packets so many arrive twice.
    pub doubled_permille: u32,
    /// Of a thousand packets so many are held back until later ones have overtaken them.
    pub overtaken_permille: u32,
}

/// Least time for which a packet is held back to be overtaken.
const HELD_BACK_MIN: Duration = Duration::from_millis(5);

impl Weather {
    /// Nothing is done to packets.
    pub const fn fair() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            lost_permille: 0,
            doubled_permille: 0,
            overtaken_permille: 0,
        }
    }

    /// When the copies of one packet go on: none if it is lost, two if it is doubled.
    pub(super) fn fate(&self, random: &mut Random) -> Fate {
        let mut hits = |permille: u32| permille > 0 && random.below(THOUSAND) < u64::from(permille);
        let (lost, doubled, overtaken) =
            (hits(self.lost_permille), hits(self.doubled_permille), hits(self.overtaken_permille));
        let jitter_us = u64::try_from(self.jitter.as_micros()).unwrap_or(u64::MAX - 1);
        let delay = self.delay + Duration::from_micros(random.below(jitter_us + 1));
        Fate { lost, doubled, held_back: overtaken.then(|| (delay + self.jitter).max(HELD_BACK_MIN)), delay }
    }
}

/// What becomes of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) lost: bool,
    pub(super) doubled: bool,
    /// How much later than in its turn, if it is to be overtaken.
    pub(super) held_back: Option<Duration>,
    pub(super) delay: Duration,
}

/// The weather everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Climate {
    /// Where nothing else is said.
    pub everywhere: Weather,
    /// On single one-way paths.
    pub paths: BTreeMap<(HostId, HostId), Weather>,
}

impl Climate {
    /// The same weather everywhere.
    pub const fn same(everywhere: Weather) -> Self {
        Self { everywhere, paths: BTreeMap::new() }
    }

    /// This weather on all paths between two of these hosts, fair elsewhere.
    pub fn among(hosts: &[HostId], weather: Weather) -> Self {
        let pairs = hosts.iter().flat_map(|&a| hosts.iter().map(move |&b| (a, b)));
        let paths = pairs.filter(|(a, b)| a != b).map(|pair| (pair, weather)).collect();
        Self { everywhere: Weather::fair(), paths }
    }

    /// This weather on all paths from and to one host, fair elsewhere.
    pub fn around(host: HostId, hosts: &[HostId], weather: Weather) -> Self {
        let others = hosts.iter().filter(|&&other| other != host);
        let paths = others.flat_map(|&other| [((host, other), weather), ((other, host), weather)]).collect();
        Self { everywhere: Weather::fair(), paths }
    }

    /// The weather from one host to another.
    pub(super) fn on(&self, from: HostId, to: HostId) -> Weather {
        self.paths.get(&(from, to)).copied().unwrap_or(self.everywhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: u32 = 1000;

    #[test]
    fn what_is_certain_happens_to_every_packet() {
        let mut random = Random::new(1);
        for _ in 0..100 {
            let fate = Weather::fair().fate(&mut random);
            assert_eq!(fate, Fate { lost: false, doubled: false, held_back: None, delay: Duration::ZERO });
            assert!(Weather { lost_permille: FULL, ..Weather::fair() }.fate(&mut random).lost);
            assert!(Weather { doubled_permille: FULL, ..Weather::fair() }.fate(&mut random).doubled);
            let held = Weather { overtaken_permille: FULL, ..Weather::fair() }.fate(&mut random).held_back;
            assert!(held.is_some_and(|held| held >= HELD_BACK_MIN));
        }
    }

    #[test]
    fn what_is_likely_happens_about_as_often() {
        let mut random = Random::new(2);
        let weather = Weather { lost_permille: 100, ..Weather::fair() };
        let lost = (0..10_000).filter(|_| weather.fate(&mut random).lost).count();
        assert!((800..1200).contains(&lost), "{lost} of 10000");
    }

    #[test]
    fn delays_stay_within_their_bounds() {
        let mut random = Random::new(3);
        let (delay, jitter) = (Duration::from_millis(20), Duration::from_millis(10));
        let weather = Weather { delay, jitter, ..Weather::fair() };
        for _ in 0..1000 {
            let taken = weather.fate(&mut random).delay;
            assert!((delay..=delay + jitter).contains(&taken), "{taken:?}");
        }
    }

    #[test]
    fn weather_is_local() {
        let hosts = [HostId(0), HostId(1), HostId(2)];
        let bad = Weather { lost_permille: FULL, ..Weather::fair() };
        let climate = Climate::around(HostId(1), &hosts, bad);
        assert_eq!((climate.on(HostId(0), HostId(1)), climate.on(HostId(1), HostId(2))), (bad, bad));
        assert_eq!(climate.on(HostId(0), HostId(2)), Weather::fair());
        let among = Climate::among(&hosts[..2], bad);
        assert_eq!((among.on(HostId(0), HostId(1)), among.on(HostId(0), HostId(2))), (bad, Weather::fair()));
    }
}
