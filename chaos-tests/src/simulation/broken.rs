//! Variants with a defect. A judge that has never found anything proves nothing:
//! these it must find.

/// What is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Disks report writes as durable that are not: a store that acknowledges
    /// before it synced.
    LostSync,
    /// Clients are answered from the state that the replica has, unconfirmed, as
    /// if it were current.
    StaleRead,
    /// Agents forget which instructions they have carried out, and the broker
    /// tells them again.
    DoubledInstruction,
    /// Replicas forget at a restart whom they voted for.
    ForgottenVote,
    /// The state depends on the clock of the machine that it is on.
    LocalClock,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::LostSync, Self::StaleRead, Self::DoubledInstruction, Self::ForgottenVote, Self::LocalClock];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LostSync => "lost-sync",
            Self::StaleRead => "stale-read",
            Self::DoubledInstruction => "doubled-instruction",
            Self::ForgottenVote => "forgotten-vote",
            Self::LocalClock => "local-clock",
        }
    }

    /// The one of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|broken| broken.name() == name)
    }
}
