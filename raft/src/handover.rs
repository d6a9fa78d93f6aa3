//! How a leader that goes leaves the leadership to another replica.
//!
//! The heir has to have the whole log when it is asked: the library gives it little time to get the
//! rest, and a leader that has asked once takes no entry any more, whatever comes of it. So this
//! replica first holds back what waits for a place in the log, until the heir has caught up. What
//! was held back goes on to the new leader.

use crate::core::Core;
use crate::error::StopReason;
use crate::ids::ReplicaId;
use crate::machine::StateMachine;
use crate::replica::Replica;
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::BTreeSet;
use tokio::sync::watch;
use tokio::time::Instant;

/// How many election timeouts the heir has to get the rest of the log: nothing is written meanwhile.
const CATCH_UP_TIMEOUTS: u32 = 2;

/// Counts who wants proposals held back.
#[derive(Debug, Clone)]
pub(crate) struct Holding(watch::Sender<u32>);

impl Holding {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// Tells of each change.
    pub(crate) fn watch(&self) -> watch::Receiver<u32> {
        self.0.subscribe()
    }

    /// Proposals are held back until what is returned is dropped.
    fn hold(&self) -> Held {
        self.0.send_modify(|held| *held += 1);
        Held(self.0.clone())
    }
}

struct Held(watch::Sender<u32>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}

impl<M: StateMachine> Replica<M> {
    /// Hands the leadership to the voter that has most of the log, if this replica leads; returns
    /// whether another one leads afterwards. Should the one that was asked not take over, the
    /// others hold an election by themselves, which is waited for until the time for a request is
    /// up. Calls that are on their way go on to the new leader.
    pub async fn hand_over(&self) -> bool {
        let core = &self.core;
        let deadline = Instant::now() + core.config.request_timeout();
        let mut tried = BTreeSet::new();
        let mut asked = false;
        while core.leads()
            && let Some(heir) = self.heir(&tried)
        {
            tried.insert(heir);
            match self.hand_over_to(heir).await {
                Ok(was_asked) => asked |= was_asked,
                Err(_) => return false,
            }
        }
        // If nobody was asked, this replica leads on.
        if asked { followed(core, deadline).await } else { core.another_leads() }
    }

    /// Asks `heir`, a voting member, to lead, if this replica leads and `heir` gets the rest of the
    /// log within two election timeouts; returns whether it was asked, when it has taken over or
    /// had the time to. Once asked, this replica leads no more, whether `heir` takes over or not.
    pub async fn hand_over_to(&self, heir: ReplicaId) -> Result<bool, StopReason> {
        let core = &self.core;
        let _held = core.holding.hold();
        if !core.leads() || !self.has_everything(heir).await {
            return Ok(false);
        }
        let asked = core.raft.trigger().transfer_leader(heir.0).await;
        asked.map_err(|_| core.reason_or_requested())?;
        if followed(core, Instant::now() + core.leader_wait()).await {
            tracing::info!(%heir, "the leadership was handed over");
        }
        Ok(true)
    }

    /// Who is to lead, of those that are heard of.
    fn heir(&self, tried: &BTreeSet<ReplicaId>) -> Option<ReplicaId> {
        let own = self.core.config.replica;
        let members = self.members();
        let could = members
            .iter()
            .filter(|(id, member)| **id != own && !tried.contains(*id) && member.is_voter && self.is_alive(member));
        could.max_by_key(|(_, member)| member.matched).map(|(id, _)| *id)
    }

    /// Waits until `heir` has all that is in the log of this replica, which leads. Nothing is added
    /// meanwhile but what was on its way.
    async fn has_everything(&self, heir: ReplicaId) -> bool {
        let wait = self.core.raft.wait(Some(self.core.retry_after() * CATCH_UP_TIMEOUTS));
        let caught_up = wait.metrics(
            |metrics| {
                let matched = metrics.replication.as_ref().and_then(|all| all.get(&heir.0)?.as_ref());
                metrics.replication.is_none() || matched.map(|id| id.index) >= metrics.last_log_index
            },
            "the heir has the whole log",
        );
        match caught_up.await {
            Ok(_) => self.core.leads(),
            Err(error) => {
                tracing::warn!(%heir, %error, "a replica that was to lead did not get the whole log in time");
                false
            }
        }
    }
}

/// Waits until another replica leads.
async fn followed<M: StateMachine>(core: &Core<M>, deadline: Instant) -> bool {
    let mut metrics = core.raft.server_metrics();
    let another = async {
        while !core.another_leads() {
            if metrics.changed().await.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout_at(deadline, another).await.unwrap_or(false)
}
