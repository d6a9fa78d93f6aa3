//! The door between what talks to the outside and the replicated log.

use std::sync::Arc;
use std::time::Duration;

use berth_raft::{ProposeError, ReadError, Replica, Status};
use tokio::sync::watch;

use super::agents::Links;
use super::api::door::{self, AskError, Unavailable, UnavailableReason};
use super::machine::Machine;
use crate::domain::journal::Position;
use crate::domain::{Command, Fleet, Outcome, ReplicaId, ServerId, Timestamp};
use crate::protocol::{Question, Reply};

/// When to try again after something that passes by itself.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A replica and the agents that are connected to it.
pub struct Broker {
    replica: Replica<Machine>,
    id: ReplicaId,
    clock: Arc<dyn berth_raft::Clock>,
    links: Arc<Links>,
    journaled: watch::Receiver<Option<Position>>,
}

impl Broker {
    /// Puts the parts together. `journaled` follows the newest record of the
    /// journal; it changes when that can be read.
    pub fn new(
        replica: Replica<Machine>,
        id: ReplicaId,
        clock: Arc<dyn berth_raft::Clock>,
        links: Arc<Links>,
        journaled: watch::Receiver<Option<Position>>,
    ) -> Self {
        Self { replica, id, clock, links, journaled }
    }

    /// This replica's number.
    pub const fn id(&self) -> ReplicaId {
        self.id
    }

    /// The agents that are connected here.
    pub const fn links(&self) -> &Arc<Links> {
        &self.links
    }

    /// The fleet as this replica knows it.
    pub fn fleet(&self) -> Arc<Fleet> {
        fleet_of(&self.replica.local().state)
    }

    /// The time by this host's clock. What is decided goes by the log's time.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock.now().0)
    }

    /// How the replica fares.
    pub fn status(&self) -> Status {
        self.replica.status()
    }

    /// Resolves when the replica has stopped, by itself or on demand.
    pub async fn stopped(&self) -> berth_raft::StopReason {
        let mut stopped = self.replica.stopped();
        match stopped.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(berth_raft::StopReason::Requested),
            Err(_) => berth_raft::StopReason::Requested,
        }
    }

    /// Hands the leadership over, if this replica leads and another one can take it.
    pub async fn hand_over(&self) {
        if self.replica.status().voters.len() > 1 {
            self.replica.hand_over().await;
        }
    }

    /// Stops the replica.
    pub async fn stop(&self) -> Result<(), berth_raft::StopReason> {
        self.replica.stop().await
    }

    /// Proposes commands as one entry of the log and waits for their outcomes.
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Unavailable> {
        match self.replica.propose(commands).await {
            Ok(proposed) => Ok(proposed.outcomes),
            Err(error) => {
                tracing::debug!(%error, "commands were not acknowledged");
                Err(unavailable(&error))
            }
        }
    }
}

/// The views hold the machine; callers want the fleet in it. A clone of the
/// fleet shares its maps.
fn fleet_of(machine: &Arc<Machine>) -> Arc<Fleet> {
    Arc::new(machine.0.clone())
}

fn unavailable(error: &ProposeError) -> Unavailable {
    match error {
        ProposeError::NoLeader { retry_after } => {
            Unavailable { reason: UnavailableReason::NoQuorum, retry_after: *retry_after }
        }
        ProposeError::StorageFull { .. } => {
            Unavailable { reason: UnavailableReason::Storage, retry_after: Duration::from_secs(5) }
        }
        ProposeError::Overloaded { .. } | ProposeError::TooLarge { .. } => {
            Unavailable { reason: UnavailableReason::Busy, retry_after: RETRY_AFTER }
        }
        ProposeError::OutcomeUnknown => {
            Unavailable { reason: UnavailableReason::OutcomeUnknown, retry_after: RETRY_AFTER }
        }
        ProposeError::Stopped(_) => Unavailable { reason: UnavailableReason::NotServing, retry_after: RETRY_AFTER },
    }
}

impl door::Core for Broker {
    async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Unavailable> {
        Self::propose(self, commands).await
    }

    async fn read(&self) -> Result<Arc<Fleet>, Unavailable> {
        match self.replica.read().await {
            Ok(view) => Ok(fleet_of(&view.state)),
            Err(error) => Err(match error {
                ReadError::NoLeader { retry_after } => Unavailable { reason: UnavailableReason::NoQuorum, retry_after },
                ReadError::Overloaded { .. } => {
                    Unavailable { reason: UnavailableReason::Busy, retry_after: RETRY_AFTER }
                }
                ReadError::TimedOut { .. } => {
                    Unavailable { reason: UnavailableReason::NoQuorum, retry_after: RETRY_AFTER }
                }
                ReadError::Stopped(_) => {
                    Unavailable { reason: UnavailableReason::NotServing, retry_after: RETRY_AFTER }
                }
            }),
        }
    }

    fn local(&self) -> Arc<Fleet> {
        self.fleet()
    }

    async fn journaled_after(&self, position: Position) {
        let mut journaled = self.journaled.clone();
        if journaled.wait_for(|last| *last > Some(position)).await.is_err() {
            // The replica is gone: nothing will be written any more.
            std::future::pending::<()>().await;
        }
    }

    async fn ask(&self, server: &ServerId, question: Question) -> Result<Reply, AskError> {
        self.links.ask(server, question).await
    }

    fn new_id(&self) -> String {
        uuid::Uuid::now_v7().to_string()
    }

    fn now(&self) -> Timestamp {
        Self::now(self)
    }
}
