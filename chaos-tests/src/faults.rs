//! What breaks: processes die without warning, and come back.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::random::Random;

/// Longest time that a broker is given to start before it is killed again: it
/// serves after about as long.
const START_MS: u64 = 250;
/// Longest time that a dead process stays away.
const ABSENCE_MS: u64 = 150;

/// A fault of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The broker is killed.
    Broker,
    /// The broker is killed, and again while it starts.
    BrokerTwice,
    /// The broker is killed and one agent, with its desktops.
    BrokerAndAgent,
    /// Everything is killed.
    Everything,
}

impl Fault {
    /// Draws one.
    pub fn draw(random: &mut Random) -> Self {
        match random.below(10) {
            0..=4 => Self::Broker,
            5..=6 => Self::BrokerTwice,
            7..=8 => Self::BrokerAndAgent,
            _ => Self::Everything,
        }
    }

    /// Lets it happen, and starts again what was killed. The broker may not
    /// serve yet when this returns.
    pub async fn strike(self, cluster: &mut Cluster, random: &mut Random) -> anyhow::Result<()> {
        let agents = match self {
            Self::Broker | Self::BrokerTwice => Vec::new(),
            Self::BrokerAndAgent => vec![usize::try_from(random.below(cluster.agents_count() as u64))?],
            Self::Everything => (0..cluster.agents_count()).collect(),
        };
        let agents_first = random.below(2) == 0;
        if agents_first {
            cluster.kill_agents(&agents)?;
            moment(random, ABSENCE_MS).await;
        }
        cluster.kill_broker()?;
        if !agents_first {
            moment(random, ABSENCE_MS).await;
            cluster.kill_agents(&agents)?;
        }
        moment(random, ABSENCE_MS).await;
        let agents_back_first = random.below(2) == 0;
        if agents_back_first {
            cluster.start_agents()?;
        }
        cluster.start_broker()?;
        if self == Self::BrokerTwice {
            moment(random, START_MS).await;
            cluster.kill_broker()?;
            cluster.start_broker()?;
        }
        cluster.start_agents()
    }
}

/// Lets a random time pass. Not to wait for something: this is the random
/// moment of a fault.
pub async fn moment(random: &mut Random, milliseconds_max: u64) {
    tokio::time::sleep(Duration::from_millis(random.below(milliseconds_max + 1))).await;
}
