//! Variants with a defect. A judge that has never found anything proves nothing:
//! these it must find.

/// What is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Disks report writes as durable that are not, from the first start of their
    /// replica on: a store that acknowledges before it synced.
    LostSync,
    /// The same, and a power cut leaves nothing of them, like an old image of a
    /// machine: no store can notice that.
    RolledBack,
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
    /// A replica that lost its disk comes back under the number that it had: it
    /// counts as a voter before it has the log.
    HastyMember,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::LostSync,
        Self::RolledBack,
        Self::StaleRead,
        Self::DoubledInstruction,
        Self::ForgottenVote,
        Self::LocalClock,
        Self::HastyMember,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LostSync => "lost-sync",
            Self::RolledBack => "rolled-back",
            Self::StaleRead => "stale-read",
            Self::DoubledInstruction => "doubled-instruction",
            Self::ForgottenVote => "forgotten-vote",
            Self::LocalClock => "local-clock",
            Self::HastyMember => "hasty-member",
        }
    }

    /// Words of the judges when they find it, and not something else.
    pub const fn shows(self) -> &'static [&'static str] {
        match self {
            // The store notes what it acknowledged.
            Self::LostSync => &["was acknowledged; restore the folder"],
            Self::RolledBack => &["was acknowledged, but", "differ at entry", "seen before it was asked"],
            Self::StaleRead => &["was seen before it was asked"],
            Self::DoubledInstruction => &["carried out instruction"],
            Self::ForgottenVote => &["voted for", "lead in term"],
            Self::LocalClock => &["differ at entry"],
            Self::HastyMember => &["was acknowledged, but", "seen before it was asked", "voted for", "lead in term"],
        }
    }

    /// Whether disks lie.
    pub const fn is_of_disks(self) -> bool {
        matches!(self, Self::LostSync | Self::RolledBack)
    }

    /// The one of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|broken| broken.name() == name)
    }
}
