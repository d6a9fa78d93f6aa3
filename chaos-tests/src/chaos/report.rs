//! What came of a run, as counts and as the tables of `docs/reliability.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::fault::Kind;
use crate::history::{Event, Outcome};
use crate::lab::switch::Counts;

/// How often a kind of fault was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strikes {
    /// Times that it struck.
    pub times: u64,
    /// What it hit, in the [`unit`](Kind::unit) of the kind.
    pub hits: u64,
    /// Times that it could not be done, or hit nothing.
    pub missed: u64,
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How often each kind was done.
    pub strikes: BTreeMap<Kind, Strikes>,
    /// New clusters.
    pub clusters: u64,
    /// Rounds.
    pub rounds: u64,
    /// Times that everything was judged.
    pub judgements: u64,
    /// Clusters that were given up because the harness itself could not go on.
    pub hiccups: Vec<String>,
    /// What clients were told.
    pub tally: Tally,
    /// Calls of all clients, those that were tried again, and those for which
    /// that did not help either.
    pub calls: [u64; 3],
    /// Answers that said they may be out of date.
    pub stale: u64,
    /// Events of the journal that were compared and audited.
    pub events: u64,
    /// How long the cluster took to be whole after each round.
    pub whole: Vec<Duration>,
    /// What the network did.
    pub packets: Counts,
}

impl Report {
    /// Whether a kind has struck.
    pub fn has_struck(&self, kind: Kind) -> bool {
        self.strikes.get(&kind).is_some_and(|strikes| strikes.times > 0)
    }

    /// What it hit; 0 counts as a miss.
    pub fn add(&mut self, kind: Kind, hits: u64) {
        let strikes = self.strikes.entry(kind).or_default();
        strikes.times += u64::from(hits > 0);
        strikes.missed += u64::from(hits == 0);
        strikes.hits += hits;
    }

    /// Takes in what happened in another cluster.
    pub fn merge(&mut self, other: Self) {
        for (kind, more) in other.strikes {
            let strikes = self.strikes.entry(kind).or_default();
            strikes.times += more.times;
            strikes.hits += more.hits;
            strikes.missed += more.missed;
        }
        self.clusters += other.clusters;
        self.rounds += other.rounds;
        self.judgements += other.judgements;
        self.hiccups.extend(other.hiccups);
        self.tally = self.tally.and(&other.tally);
        for (calls, more) in self.calls.iter_mut().zip(other.calls) {
            *calls += more;
        }
        self.stale += other.stale;
        self.events += other.events;
        self.whole.extend(other.whole);
        self.packets = self.packets.and(&other.packets);
    }
}

/// What clients were told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Acknowledged.
    pub creates: u64,
    /// Acknowledged.
    pub deletes: u64,
    /// Acknowledged: servers opened, closed and drained.
    pub doors: u64,
    /// Had no effect.
    pub refused: u64,
    /// May have had an effect.
    pub in_doubt: u64,
    /// Sessions, servers and queues that were looked at.
    pub looks: u64,
    /// Replicas killed.
    pub broker_kills: u64,
    /// Agents killed.
    pub agent_kills: u64,
}

impl Tally {
    /// Counts a history.
    pub fn of(events: &[Event]) -> Self {
        let mut tally = Self::default();
        for event in events {
            let counter = match event {
                Event::Create { outcome: Outcome::Acknowledged(_), .. } => &mut tally.creates,
                Event::Delete { outcome: Outcome::Acknowledged(()), .. } => &mut tally.deletes,
                Event::Door { outcome: Outcome::Acknowledged(()), .. } => &mut tally.doors,
                Event::Create { outcome: Outcome::Unknown(_), .. }
                | Event::Delete { outcome: Outcome::Unknown(_), .. }
                | Event::Door { outcome: Outcome::Unknown(_), .. } => &mut tally.in_doubt,
                Event::Create { .. } | Event::Delete { .. } | Event::Door { .. } => &mut tally.refused,
                Event::Look { .. } | Event::DoorSeen { .. } | Event::QueueSeen { .. } => &mut tally.looks,
                Event::BrokerKilled { .. } => &mut tally.broker_kills,
                Event::AgentKilled { .. } => &mut tally.agent_kills,
                Event::Fault { .. } => continue,
            };
            *counter += 1;
        }
        tally
    }

    /// Writes that were acknowledged.
    pub const fn acknowledged(&self) -> u64 {
        self.creates + self.deletes + self.doors
    }

    const fn and(&self, other: &Self) -> Self {
        Self {
            creates: self.creates + other.creates,
            deletes: self.deletes + other.deletes,
            doors: self.doors + other.doors,
            refused: self.refused + other.refused,
            in_doubt: self.in_doubt + other.in_doubt,
            looks: self.looks + other.looks,
            broker_kills: self.broker_kills + other.broker_kills,
            agent_kills: self.agent_kills + other.agent_kills,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| Fault | Struck | What was hit | Missed |\n|---|---|---|---|")?;
        for (kind, strikes) in &self.strikes {
            let Strikes { times, hits, missed } = strikes;
            let shown = kind.to_string();
            writeln!(f, "| {shown}: {} | {times} | {hits} {} | {missed} |", kind.about(), kind.unit())?;
        }
        let row = |f: &mut fmt::Formatter<'_>, what: &str, value: String| writeln!(f, "| {what} | {value} | | |");
        row(f, "clusters, rounds, judgements", format!("{}, {}, {}", self.clusters, self.rounds, self.judgements))?;
        let Tally { creates, deletes, doors, refused, in_doubt, looks, .. } = self.tally;
        row(f, "acknowledged: creates, deletes, of servers", format!("{creates}, {deletes}, {doors}"))?;
        row(f, "in doubt", in_doubt.to_string())?;
        row(f, "without effect", refused.to_string())?;
        row(f, "looks", format!("{looks}; answers that may be old, {}", self.stale))?;
        let [calls, retried, failed] = self.calls;
        row(f, "calls, tried again, in vain", format!("{calls}, {retried}, {failed}"))?;
        row(f, "replicas and agents killed", format!("{}, {}", self.tally.broker_kills, self.tally.agent_kills))?;
        row(f, "events compared and audited", self.events.to_string())?;
        let mut whole = self.whole.clone();
        whole.sort();
        let at = |percent: usize| {
            let place = (whole.len() * percent / 100).min(whole.len().saturating_sub(1));
            whole.get(place).map_or_else(String::new, |time| format!("{:.1} s", time.as_secs_f64()))
        };
        row(f, "whole again after p50, p99, at most", format!("{}, {}, {}", at(50), at(99), at(100)))?;
        let Counts { passed, lost, doubled, overtaken, delayed, .. } = self.packets;
        let packets = format!("{passed}, {lost}, {doubled}, {overtaken}, {delayed}");
        row(f, "packets passed, lost, doubled, overtaken, delayed", packets)?;
        row(f, "clusters given up by the harness", self.hiccups.len().to_string())?;
        self.hiccups.iter().try_for_each(|hiccup| writeln!(f, "given up: {hiccup}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_add_up() {
        let mut one = Report { clusters: 1, rounds: 3, whole: vec![Duration::from_secs(1)], ..Report::default() };
        one.add(Kind::Kill, 1);
        one.add(Kind::Loss, 0);
        let mut other = Report { clusters: 1, rounds: 4, whole: vec![Duration::from_secs(2)], ..Report::default() };
        other.add(Kind::Kill, 2);
        other.tally.creates = 7;
        one.merge(other);
        assert_eq!((one.rounds, one.tally.acknowledged()), (7, 7));
        assert_eq!(one.strikes[&Kind::Kill], Strikes { times: 2, hits: 3, missed: 0 });
        assert!(one.has_struck(Kind::Kill) && !one.has_struck(Kind::Loss) && !one.has_struck(Kind::Ring));
        let shown = one.to_string();
        assert!(shown.contains("| 2 | 3 processes killed | 0 |"), "{shown}");
        assert!(shown.contains("1.0 s") || shown.contains("2.0 s"), "{shown}");
    }
}
