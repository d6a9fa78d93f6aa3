//! Connections that the log knows and nobody has.
//!
//! A hello that is given up is not proposed any more, but it may have been under
//! way, and be applied later. The log says then that the agent is connected
//! here, and refuses other runs of it until three reports are missed, although
//! nobody would ever tell it that the connection ended. So whoever gave a hello
//! up looks for a while whether that happened, and tells the log. The same where
//! the end of a connection did not reach the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Agents;
use super::registry::Links;
use crate::domain::{Command, Epoch, Fleet, ReplicaId, ServerId};

/// How long a hello that was given up is looked for: longer than the log takes
/// to settle what is under way when its leader is lost.
const LOOK_FOR: Duration = Duration::from_secs(30);
/// Between two looks: much longer than a connection takes from the log to the
/// list of those that are held here.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Until when is looked for the connections of which servers, each by one task.
#[derive(Default)]
pub(super) struct Strays(Mutex<BTreeMap<ServerId, Instant>>);

impl Strays {
    fn known(&self) -> MutexGuard<'_, BTreeMap<ServerId, Instant>> {
        // Nothing under the lock can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is to be looked for from now on; whether nobody does yet.
    fn begin(&self, server: &ServerId) -> bool {
        self.known().insert(server.clone(), Instant::now() + LOOK_FOR).is_none()
    }

    /// Whether the time to look is over. It is looked for no more then.
    fn is_over(&self, server: &ServerId) -> bool {
        let mut known = self.known();
        let is_over = known.get(server).is_none_or(|until| *until <= Instant::now());
        if is_over {
            known.remove(server);
        }
        is_over
    }
}

/// Sees to it that the log hears of a connection's end: of one that a hello,
/// given up just now, may still come to be, or of one whose end it did not take.
pub(super) fn look_for(agents: &Agents, server: ServerId) {
    if agents.broker.links().strays.begin(&server) {
        let agents = agents.clone();
        agents.tasks.clone().spawn(async move {
            tokio::select! {
                // A replica that begins anew says that it has no connections.
                () = agents.shutdown.cancelled() => {}
                () = look(&agents, &server) => {}
            }
        });
    }
}

async fn look(agents: &Agents, server: &ServerId) {
    let broker = &agents.broker;
    let strays = &broker.links().strays;
    let mut seen = None;
    // One that is there is seen to, however long the log takes nothing.
    while seen.is_some() || !strays.is_over(server) {
        sleep(LOOK_INTERVAL).await;
        let found = stray(&broker.fleet(), broker.links(), broker.id(), server);
        // Seen once, its connection may be about to be listed.
        if let Some(epoch) = found.filter(|_| found == seen) {
            tracing::info!(%server, %epoch, "an agent is connected by the log only");
            let gone = Command::DisconnectAgent { server: server.clone(), epoch };
            match broker.propose(vec![gone]).await {
                // Another hello may have been given up meanwhile, for which nobody else looks.
                Ok(_) => {
                    seen = None;
                    continue;
                }
                Err(error) => tracing::debug!(%server, %error, "the end of a connection did not reach the log"),
            }
        }
        seen = found;
    }
}

/// The server's connection, if the log knows it as one of this replica and
/// nobody here has it.
fn stray(fleet: &Fleet, links: &Links, own: ReplicaId, server: &ServerId) -> Option<Epoch> {
    let link = &fleet.server(server)?.link;
    let is_stray = link.held_by() == Some(own) && !links.holds(server, link.epoch());
    is_stray.then(|| link.epoch())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::domain::fleet::Stamp;
    use crate::domain::report::Report;
    use crate::domain::{AgentInstance, LogIndex, Millis, Timestamp};

    #[test]
    fn a_connection_of_this_replica_that_nobody_has_is_stray_until_the_log_hears_of_its_end() {
        let (mut fleet, links, server) = (Fleet::default(), Links::default(), ServerId::new("desk").unwrap());
        let (own, other) = (ReplicaId(1), ReplicaId(2));
        assert_eq!(stray(&fleet, &links, own, &server), None, "nobody knows the server");
        let apply = |fleet: &mut Fleet, at: u64, command| {
            let stamp = Stamp { index: LogIndex(at), at: Timestamp(at) };
            fleet.advance(stamp);
            fleet.apply(stamp, command);
        };
        let connect = Command::ConnectAgent {
            server: server.clone(),
            instance: AgentInstance::new("run").unwrap(),
            via: own,
            report_interval: Millis(30_000),
            report: Report::default(),
        };
        apply(&mut fleet, 1, connect);
        let epoch = stray(&fleet, &links, own, &server).unwrap();
        assert_eq!(stray(&fleet, &links, other, &server), None, "it is another replica's");
        let registered = links.register(&server, epoch);
        assert_eq!(stray(&fleet, &links, own, &server), None, "somebody has it");
        links.unregister(&server, epoch);
        drop(registered);
        assert_eq!(stray(&fleet, &links, own, &server), Some(epoch));
        apply(&mut fleet, 2, Command::DisconnectAgent { server: server.clone(), epoch });
        assert_eq!(stray(&fleet, &links, own, &server), None, "its end is known");
    }
}
