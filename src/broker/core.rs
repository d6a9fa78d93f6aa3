//! The door between what talks to the outside and the replicated log.

use std::sync::Arc;
use std::time::Duration;

use berth_raft::{ProposeError, ReadError, Replica, Status};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::agents::{Colleagues, Desk, Links, NoColleagues};
use super::api::door::{self, AskError, Proposed, Unavailable, UnavailableReason, View};
use super::contact::{self, Contact};
use super::machine::Machine;
use crate::domain::audit::Deed;
use crate::domain::journal::Position;
use crate::domain::{Command, Fleet, LogIndex, Outcome, ReplicaId, ServerId, Timestamp};
use crate::protocol::{Question, Reply};

/// When to try again after something that passes by itself.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long it is found out what became of what nobody waits for. While that
/// lasts the log remembers what others of this replica propose: not too long.
const PATIENCE: Duration = Duration::from_mins(1);

/// A replica and the agents that are connected to it.
pub struct Broker {
    replica: Replica<Machine>,
    id: ReplicaId,
    clock: Arc<dyn berth_raft::Clock>,
    links: Arc<Links>,
    journaled: watch::Receiver<Option<Position>>,
    contact: watch::Sender<Contact>,
    colleagues: Arc<dyn Colleagues>,
    /// Questions to colleagues.
    asked: Desk,
    /// Questions of colleagues.
    answered: Desk,
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
        Self {
            replica,
            id,
            clock,
            links,
            journaled,
            contact: watch::Sender::new(Contact::Kept),
            colleagues: Arc::new(NoColleagues),
            asked: Desk::default(),
            answered: Desk::default(),
        }
    }

    /// The same, with other replicas to ask about their agents.
    #[must_use]
    pub fn with_colleagues(self, colleagues: Arc<dyn Colleagues>) -> Self {
        Self { colleagues, ..self }
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

    /// The fleet as of now, also if another replica knew of it first.
    pub async fn current(&self) -> Result<Arc<Fleet>, Unavailable> {
        Ok(door::Core::read(self).await?.fleet)
    }

    /// The time by this host's clock. What is decided goes by the log's time.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock.now().0)
    }

    /// How the replica fares.
    pub fn status(&self) -> Status {
        self.replica.status()
    }

    /// Follows whether a majority of the replicas can be reached; as long as
    /// [`keep_contact`](Self::keep_contact) runs.
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.subscribe()
    }

    /// Watches over the contact with the other replicas until told to stop.
    pub async fn keep_contact(self: Arc<Self>, shutdown: CancellationToken) {
        let contact = self.contact.clone();
        // One that stopped is not cut off.
        let confirms = || async { self.replica.majority_confirms().await.unwrap_or(true) };
        contact::keep(confirms, contact, shutdown).await;
    }

    /// Answers a question that a colleague passes on: by an agent that is
    /// connected here, or not at all.
    pub async fn answer_colleague(&self, server: &ServerId, question: Question) -> Result<Reply, AskError> {
        self.answered.handle(self.links.ask(server, question)).await
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
        Ok(self.proposed(commands).await?.outcomes)
    }

    /// Proposes commands and has it recorded who wanted them. Gives what each
    /// came to.
    pub async fn propose_audited(&self, deed: Deed, commands: Vec<Command>) -> Result<Vec<Outcome>, Unavailable> {
        let audited = Command::Audited { deed, result: None, commands, refused_before: 0 };
        match self.propose(vec![audited]).await?.pop() {
            Some(Outcome::Audited(outcomes)) => Ok(outcomes),
            other => {
                tracing::error!(?other, "a command came to an outcome that it cannot have");
                Err(Unavailable { reason: UnavailableReason::OutcomeUnknown, retry_after: RETRY_AFTER })
            }
        }
    }

    async fn proposed(&self, commands: Vec<Command>) -> Result<Proposed, Unavailable> {
        told(self.replica.propose(commands).await)
    }
}

fn told(proposed: Result<berth_raft::Proposed<Outcome>, ProposeError>) -> Result<Proposed, Unavailable> {
    match proposed {
        Ok(berth_raft::Proposed { index, outcomes }) => Ok(Proposed { index: LogIndex(index.0), outcomes }),
        Err(error) => {
            tracing::debug!(%error, "commands were not acknowledged");
            Err(unavailable(&error))
        }
    }
}

fn view_of(view: &berth_raft::View<Machine>) -> View {
    View { fleet: fleet_of(&view.state), index: LogIndex(view.index.0) }
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
    async fn propose(&self, commands: Vec<Command>) -> Result<Proposed, Unavailable> {
        self.proposed(commands).await
    }

    async fn propose_patiently(&self, commands: Vec<Command>) -> Result<Proposed, Unavailable> {
        told(self.replica.propose_within(commands, PATIENCE).await)
    }

    async fn read(&self) -> Result<View, Unavailable> {
        match self.replica.read().await {
            Ok(view) => Ok(view_of(&view)),
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

    fn local(&self) -> View {
        view_of(&self.replica.local())
    }

    async fn applied(&self, index: LogIndex) {
        let mut applied = self.replica.applied();
        if applied.wait_for(|applied| applied.0 >= index.0).await.is_err() {
            // The replica is gone: nothing will be applied any more.
            std::future::pending::<()>().await;
        }
    }

    fn is_cut_off(&self) -> bool {
        *self.contact.borrow() != Contact::Kept
    }

    async fn journaled_after(&self, position: Position) {
        let mut journaled = self.journaled.clone();
        if journaled.wait_for(|last| *last > Some(position)).await.is_err() {
            // The replica is gone: nothing will be written any more.
            std::future::pending::<()>().await;
        }
    }

    async fn ask(&self, server: &ServerId, question: Question) -> Result<Reply, AskError> {
        // The agent may have come here before the log knows it.
        match self.links.ask(server, question.clone()).await {
            Err(AskError::Unreachable) => {}
            answered => return answered,
        }
        let holder = self.fleet().server(server).and_then(|server| server.link.held_by());
        let holder = holder.filter(|holder| *holder != self.id).ok_or(AskError::Unreachable)?;
        self.asked.handle(self.colleagues.ask(holder, server, question)).await
    }

    fn replica(&self) -> ReplicaId {
        self.id
    }

    fn new_id(&self) -> String {
        uuid::Uuid::now_v7().to_string()
    }

    fn now(&self) -> Timestamp {
        Self::now(self)
    }
}
