//! What can break, as data: a seed tells all that a run will do.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

use crate::random::Random;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each is told by `about`
pub enum Kind {
    Kill,
    KillMajority,
    KillAll,
    Pause,
    PauseMajority,
    Restart,
    RestartAll,
    RollingRestart,
    PowerLoss,
    PowerLossOfAll,
    OneOff,
    Halves,
    Ring,
    OneWay,
    Delay,
    Loss,
    Doubling,
    Reordering,
    ClockJump,
    ClockDrift,
    SyncError,
    WriteError,
    ReadError,
    ShortWrites,
    FullDisk,
    SlowSync,
    FlippedLog,
    MissingFile,
    HandOver,
    Replacement,
    Rotation,
    LongAbsence,
    AgentDeath,
    AgentFlaps,
    AgentClone,
    SwarmReturns,
    FlippedVote,
    FlippedSnapshot,
    Addition,
    Removal,
    AgentLate,
    AgentRepeats,
    AgentLies,
    PauseAll,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 44] = [
        Self::Kill,
        Self::KillMajority,
        Self::KillAll,
        Self::Pause,
        Self::PauseMajority,
        Self::Restart,
        Self::RestartAll,
        Self::RollingRestart,
        Self::PowerLoss,
        Self::PowerLossOfAll,
        Self::OneOff,
        Self::Halves,
        Self::Ring,
        Self::OneWay,
        Self::Delay,
        Self::Loss,
        Self::Doubling,
        Self::Reordering,
        Self::ClockJump,
        Self::ClockDrift,
        Self::SyncError,
        Self::WriteError,
        Self::ReadError,
        Self::ShortWrites,
        Self::FullDisk,
        Self::SlowSync,
        Self::FlippedLog,
        Self::MissingFile,
        Self::HandOver,
        Self::Replacement,
        Self::Rotation,
        Self::LongAbsence,
        Self::AgentDeath,
        Self::AgentFlaps,
        Self::AgentClone,
        Self::SwarmReturns,
        Self::FlippedVote,
        Self::FlippedSnapshot,
        Self::Addition,
        Self::Removal,
        Self::AgentLate,
        Self::AgentRepeats,
        Self::AgentLies,
        Self::PauseAll,
    ];

    /// What it does.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Kill => "replicas, fewer than a majority, are killed",
            Self::KillMajority => "a majority of replicas is killed",
            Self::KillAll => "all replicas are killed",
            Self::Pause => "replicas, fewer than a majority, stand still and go on (SIGSTOP)",
            Self::PauseMajority => "a majority of replicas stands still and goes on",
            Self::PauseAll => "all replicas stand still and go on",
            Self::Restart => "a replica is ended in order (SIGTERM) and started",
            Self::RestartAll => "all replicas are ended in order at once, and started",
            Self::RollingRestart => "one replica after the other is ended in order and started",
            Self::PowerLoss => "a replica loses its power, and what was not synced",
            Self::PowerLossOfAll => "all replicas lose their power, and what was not synced",
            Self::OneOff => "one replica is cut off from everybody",
            Self::Halves => "replicas are cut into a majority and a minority",
            Self::Ring => "replicas hear their neighbours only",
            Self::OneWay => "one replica does not hear another, which hears it",
            Self::Delay => "packets take long",
            Self::Loss => "packets are lost",
            Self::Doubling => "packets arrive twice",
            Self::Reordering => "packets overtake each other",
            Self::ClockJump => "a replica's clock jumps by minutes",
            Self::ClockDrift => "a replica's clock runs too fast or too slowly",
            Self::SyncError => "a replica's disk cannot sync",
            Self::WriteError => "a replica's disk cannot write",
            Self::ReadError => "some reads of a replica's disk fail",
            Self::ShortWrites => "a replica's disk takes half of what it is given",
            Self::FullDisk => "a replica's disk is full",
            Self::SlowSync => "a replica's disk takes seconds to sync",
            Self::FlippedLog => "a bit of a replica's log flips while it is off",
            Self::FlippedVote => "a bit of a replica's vote flips while it is off",
            Self::FlippedSnapshot => "a bit of a replica's snapshot flips while it is off",
            Self::MissingFile => "a file of a replica is gone when it starts",
            Self::HandOver => "another replica is made to lead",
            Self::Replacement => "a replica is lost with its disk, and another one joins in its place",
            Self::Addition => "a further replica joins, votes, and is removed",
            Self::Removal => "a replica is removed while it runs, and a new one joins",
            Self::Rotation => "replicas change their certificates",
            Self::LongAbsence => "a replica is away until it needs a snapshot",
            Self::AgentDeath => "an agent dies with its desktops",
            Self::AgentFlaps => "an agent loses its network again and again",
            Self::AgentClone => "an agent's host is copied, and the copy started",
            Self::AgentLate => "an agent answers seconds later",
            Self::AgentRepeats => "an agent says everything twice",
            Self::AgentLies => "an agent claims what is not so: sessions of others, ends, answers nobody asked for",
            Self::SwarmReturns => "thousands of agents lose their network, and return at once",
        }
    }

    /// What a hit is, of those that are counted.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Kill | Self::KillMajority | Self::KillAll | Self::AgentDeath => "processes killed",
            Self::Pause | Self::PauseMajority | Self::PauseAll => "processes seen standing still",
            Self::Restart | Self::RestartAll | Self::RollingRestart => "processes ended in order",
            Self::PowerLoss | Self::PowerLossOfAll => "changes lost that were not synced",
            Self::OneOff | Self::Halves | Self::Ring | Self::OneWay => "packets dropped",
            Self::Delay => "packets delayed",
            Self::Loss => "packets lost",
            Self::Doubling => "packets doubled",
            Self::Reordering => "packets overtaken",
            Self::ClockJump | Self::ClockDrift => "readings of a wrong clock",
            Self::SyncError => "syncs failed",
            Self::WriteError | Self::FullDisk => "writes failed",
            Self::ReadError => "reads failed",
            Self::ShortWrites => "writes shortened",
            Self::SlowSync => "syncs delayed",
            Self::FlippedLog | Self::FlippedVote | Self::FlippedSnapshot | Self::MissingFile => "damage refused",
            Self::HandOver => "leaders changed",
            Self::Replacement => "replicas replaced",
            Self::Addition => "replicas added and removed",
            Self::Removal => "replicas removed and added",
            Self::Rotation => "replicas with other certificates",
            Self::LongAbsence => "snapshots taken over",
            Self::AgentFlaps => "connections made anew",
            Self::AgentClone => "refusals",
            Self::SwarmReturns => "agents returned",
            Self::AgentLate => "late answers",
            Self::AgentRepeats => "messages said again",
            Self::AgentLies => "lies in the log",
        }
    }

    /// Whether it befalls an agent, and no replica.
    pub fn is_of_agents(self) -> bool {
        self.class() == Class::Agent
    }

    const fn class(self) -> Class {
        match self {
            Self::Delay | Self::Loss | Self::Doubling | Self::Reordering => Class::Weather,
            Self::ClockJump | Self::ClockDrift => Class::Clock,
            Self::OneOff | Self::Halves | Self::Ring | Self::OneWay => Class::Cut,
            Self::AgentDeath | Self::AgentFlaps | Self::AgentLate | Self::AgentRepeats | Self::AgentLies => {
                Class::Agent
            }
            Self::SyncError
            | Self::WriteError
            | Self::ReadError
            | Self::FlippedLog
            | Self::FlippedVote
            | Self::FlippedSnapshot
            | Self::MissingFile
            | Self::Replacement
            | Self::Addition
            | Self::Removal
            | Self::LongAbsence
            | Self::Rotation
            | Self::RollingRestart => Class::Members,
            Self::AgentClone | Self::SwarmReturns => Class::Connections,
            _ => Class::Replica,
        }
    }

    /// Whether both can be done at the same time.
    pub fn goes_with(self, other: Self) -> bool {
        use Class::{Agent, Clock, Connections, Cut, Members, Replica, Weather};
        // A liar claims sessions that run elsewhere; one that ended with its agent
        // would rightly be taken for the liar's.
        let is_pair = |a, b| (self, other) == (a, b) || (other, self) == (a, b);
        if self == other || is_pair(Self::AgentDeath, Self::AgentLies) {
            return false;
        }
        // Who stands still does not end when it is told to.
        let pauses = |kind| matches!(kind, Self::Pause | Self::PauseMajority | Self::PauseAll);
        let restarts = |kind| matches!(kind, Self::Restart | Self::RestartAll);
        if (pauses(self) && restarts(other)) || (pauses(other) && restarts(self)) {
            return false;
        }
        let allowed = |a: Class, b: Class| match a {
            Weather => matches!(b, Clock | Agent),
            Clock | Agent => b == Agent,
            Cut => matches!(b, Weather | Clock | Agent),
            Replica => matches!(b, Weather | Clock | Agent | Cut | Replica),
            Members => matches!(b, Clock | Agent),
            Connections => b == Clock,
        };
        // On a line that loses much it would take minutes, as it would anywhere.
        let joins = |a: Self, b: Self| {
            let is_long = matches!(a, Self::LongAbsence | Self::RollingRestart);
            a.class() == Members && b.class() == Weather && b != Self::Loss && !is_long
        };
        let (a, b) = (self.class(), other.class());
        allowed(a, b) || allowed(b, a) || joins(self, other) || joins(other, self)
    }
}

/// What kinds of faults have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// What happens to packets.
    Weather,
    /// A clock.
    Clock,
    /// An agent; it does not matter how replicas fare.
    Agent,
    /// Who hears whom: two cuts at a time are one cut.
    Cut,
    /// Replicas, which have their data afterwards.
    Replica,
    /// Takes a replica's data, or may, or needs the others whole: it goes with
    /// no other fault of replicas. What a majority has lost nobody can bring back.
    Members,
    /// Needs connections to agents that stand.
    Connections,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string().eq_ignore_ascii_case(text));
        found.with_context(|| format!("{text} is no kind of fault; there are {:?}", Self::ALL))
    }
}

/// A fault of one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its kind.
    pub kind: Kind,
    /// The places of the replicas that it hits, if it hits any.
    pub victims: Vec<usize>,
    /// Whoever leads when it begins is the first of them.
    pub aims_at_leader: bool,
    /// Decides what else there is to decide.
    pub seed: u64,
}

impl Fault {
    /// A fault of a kind, with its victims drawn.
    pub fn of(kind: Kind, replicas: usize, random: &mut Random) -> Self {
        let minority = (replicas - 1) / 2;
        let majority = replicas / 2 + 1;
        let count = match kind {
            Kind::Kill | Kind::Pause => 1 + below(random, minority.max(1)),
            Kind::KillMajority | Kind::PauseMajority => majority,
            Kind::KillAll
            | Kind::PauseAll
            | Kind::RestartAll
            | Kind::PowerLossOfAll
            | Kind::RollingRestart
            | Kind::Ring => replicas,
            Kind::Halves => minority.max(1),
            Kind::OneWay => 2.min(replicas),
            Kind::Rotation
            | Kind::HandOver
            | Kind::AgentDeath
            | Kind::AgentFlaps
            | Kind::AgentClone
            | Kind::AgentLate
            | Kind::AgentRepeats
            | Kind::AgentLies
            | Kind::SwarmReturns
            | Kind::Addition
            | Kind::Delay
            | Kind::Loss
            | Kind::Doubling
            | Kind::Reordering => 0,
            _ => 1,
        };
        let mut places: Vec<usize> = (0..replicas).collect();
        let victims = (0..count).map(|_| places.swap_remove(below(random, places.len()))).collect();
        Self { kind, victims, aims_at_leader: random.below(2) == 0, seed: random.next() }
    }

    /// The same with the leader as its first victim, if it aims at the leader.
    #[must_use]
    pub fn aimed(mut self, leader: Option<usize>) -> Self {
        if let (true, Some(leader), Some(first)) = (self.aims_at_leader, leader, self.victims.first().copied()) {
            if let Some(place) = self.victims.iter().position(|victim| *victim == leader) {
                self.victims[place] = first;
            }
            self.victims[0] = leader;
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if !self.victims.is_empty() {
            write!(f, " of {:?}", self.victims.iter().map(|place| place + 1).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

fn below(random: &mut Random, limit: usize) -> usize {
    usize::try_from(random.below(limit as u64)).unwrap_or_default()
}

/// What happens in one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// One fault, or some that go together.
    pub faults: Vec<Fault>,
    /// How long they last.
    pub hold: Duration,
}

/// How rounds are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    /// Half of them have two faults or three.
    Some,
    /// As many kinds as go together, each from another class.
    Most,
}

/// Draws rounds.
#[derive(Debug, Clone)]
pub struct Plan {
    kinds: Vec<Kind>,
    /// Kinds that were not drawn yet: every kind comes once before one comes twice.
    due: Vec<Kind>,
    replicas: usize,
    random: Random,
    mix: Mix,
    hold_ms: std::ops::Range<u64>,
}

impl Plan {
    /// Rounds with these kinds.
    pub fn new(kinds: &BTreeSet<Kind>, replicas: usize, random: Random) -> Self {
        let kinds: Vec<Kind> = kinds.iter().copied().collect();
        Self { kinds, due: Vec::new(), replicas, random, mix: Mix::Some, hold_ms: 1_000..8_000 }
    }

    /// All kinds in as few and as short rounds as is sound.
    #[must_use]
    pub const fn dense(mut self) -> Self {
        self.mix = Mix::Most;
        self.hold_ms = 1_500..3_000;
        self
    }

    /// The next round. What befalls packets, clocks and agents begins first, and
    /// lasts while the rest is done.
    pub fn draw(&mut self) -> Round {
        if self.due.is_empty() {
            self.due.clone_from(&self.kinds);
        }
        let mut kinds: Vec<Kind> = Vec::new();
        match self.mix {
            Mix::Some => {
                kinds.extend(self.draw_kind(|_| true));
                if self.random.below(2) == 0 {
                    for _ in 0..=self.random.below(2) {
                        if self.due.is_empty() {
                            self.due.clone_from(&self.kinds);
                        }
                        let so_far = kinds.clone();
                        kinds.extend(self.draw_kind(|kind| so_far.iter().all(|other| kind.goes_with(*other))));
                    }
                }
            }
            // Those that go with fewest first: the others find a place anyway.
            Mix::Most => {
                use Class::{Agent, Clock, Connections, Cut, Members, Replica, Weather};
                for classes in [&[Members, Connections, Cut, Replica][..], &[Weather], &[Clock], &[Agent]] {
                    let so_far = kinds.clone();
                    kinds.extend(self.draw_kind(|kind| {
                        classes.contains(&kind.class()) && so_far.iter().all(|other| kind.goes_with(*other))
                    }));
                }
            }
        }
        kinds.sort_by_key(|kind| kind.class());
        let faults = kinds.into_iter().map(|kind| Fault::of(kind, self.replicas, &mut self.random)).collect();
        let span = self.hold_ms.end - self.hold_ms.start;
        let hold = Duration::from_millis(self.hold_ms.start + self.random.below(span));
        Round { faults, hold }
    }

    /// A kind could not be done, or did not strike: it is to come again.
    pub fn again(&mut self, kind: Kind) {
        if !self.due.contains(&kind) {
            self.due.push(kind);
        }
    }

    fn draw_kind(&mut self, fits: impl Fn(Kind) -> bool) -> Option<Kind> {
        let from_due: Vec<usize> = (0..self.due.len()).filter(|&place| fits(self.due[place])).collect();
        if from_due.is_empty() {
            return None;
        }
        let place = from_due[below(&mut self.random, from_due.len())];
        Some(self.due.swap_remove(place))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn all() -> BTreeSet<Kind> {
        Kind::ALL.into_iter().collect()
    }

    #[test]
    fn every_kind_comes_before_one_comes_twice() {
        let mut plan = Plan::new(&all(), 3, Random::new(1)).dense();
        let mut drawn = Vec::new();
        while drawn.len() < Kind::ALL.len() {
            let round = plan.draw();
            assert!(!round.faults.is_empty(), "{drawn:?}");
            drawn.extend(round.faults.iter().map(|fault| fault.kind));
        }
        assert_eq!(drawn.iter().copied().collect::<BTreeSet<_>>(), all());
        plan.draw();
        plan.again(Kind::Kill);
        assert!((0..Kind::ALL.len()).any(|_| plan.draw().faults.iter().any(|fault| fault.kind == Kind::Kill)));
    }

    #[test]
    fn what_goes_with_what_does_so_both_ways() {
        for one in Kind::ALL {
            for other in Kind::ALL {
                assert_eq!(one.goes_with(other), other.goes_with(one), "{one} {other}");
            }
            assert!(!one.goes_with(one));
        }
        assert!(Kind::Replacement.goes_with(Kind::Doubling) && !Kind::Replacement.goes_with(Kind::Loss));
        assert!(!Kind::Replacement.goes_with(Kind::Kill) && !Kind::OneOff.goes_with(Kind::Ring));
        assert!(Kind::Kill.goes_with(Kind::OneWay) && !Kind::AgentClone.goes_with(Kind::OneOff));
    }

    #[test]
    fn a_seed_tells_everything() {
        let rounds = |seed| {
            let mut plan = Plan::new(&all(), 5, Random::new(seed));
            (0..50).map(|_| plan.draw()).collect::<Vec<_>>()
        };
        assert_eq!(rounds(1), rounds(1));
        assert_ne!(rounds(1), rounds(2));
    }

    #[test]
    fn faults_go_together_that_can_and_data_is_never_lost_twice() {
        let mut plan = Plan::new(&all(), 3, Random::new(3));
        let mut combined = 0;
        for _ in 0..500 {
            let round = plan.draw();
            combined += usize::from(round.faults.len() > 1);
            let takes_data = |fault: &&Fault| {
                matches!(fault.kind, Kind::Replacement | Kind::FlippedLog | Kind::MissingFile | Kind::SyncError)
            };
            assert!(round.faults.iter().filter(takes_data).count() <= 1, "{round:?}");
            for fault in &round.faults {
                assert!(fault.victims.iter().all(|place| *place < 3));
                let distinct: BTreeSet<_> = fault.victims.iter().collect();
                assert_eq!(distinct.len(), fault.victims.len(), "{fault:?}");
            }
        }
        assert!(combined > 50, "{combined}");
    }

    #[test]
    fn a_fault_can_be_aimed_at_who_leads() {
        let fault = |aims_at_leader| Fault { kind: Kind::OneWay, victims: vec![0, 2], aims_at_leader, seed: 1 };
        assert_eq!(fault(true).aimed(Some(1)).victims, [1, 2]);
        assert_eq!(fault(true).aimed(Some(2)).victims, [2, 0]);
        assert_eq!(fault(true).aimed(None).victims, [0, 2]);
        assert_eq!(fault(false).aimed(Some(1)).victims, [0, 2]);
    }

    #[test]
    fn a_majority_is_one() {
        let mut random = Random::new(4);
        for replicas in [3, 5] {
            let hit = |kind, random: &mut Random| Fault::of(kind, replicas, random).victims.len();
            assert!(hit(Kind::KillMajority, &mut random) * 2 > replicas);
            assert!(hit(Kind::Kill, &mut random) * 2 < replicas);
            assert_eq!(hit(Kind::KillAll, &mut random), replicas);
        }
        assert_eq!("powerloss".parse::<Kind>().unwrap(), Kind::PowerLoss);
        assert!("nothing".parse::<Kind>().is_err());
    }
}
