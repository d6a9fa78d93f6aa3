//! Which agents are connected to this replica.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};

use super::stray::Strays;
use crate::broker::api::door::AskError;
use crate::domain::{Epoch, Event, ServerId};
use crate::protocol::{Question, Reply};

/// Questions that may wait for one agent.
const QUESTIONS_MAX: usize = 32;

/// How long an agent may take to answer a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A question under way.
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) reply: oneshot::Sender<Reply>,
}

/// The connection's end of its registration.
pub(super) struct Registered {
    /// Something in the log concerns this server: there is something to send,
    /// or its connection no longer counts.
    pub(super) woken: Arc<Notify>,
    /// Another agent came with the id of this server.
    pub(super) contested: Arc<Notify>,
    /// Questions for its agent.
    pub(super) questions: mpsc::Receiver<Asked>,
}

struct Entry {
    epoch: Epoch,
    woken: Arc<Notify>,
    contested: Arc<Notify>,
    questions: mpsc::Sender<Asked>,
}

/// The agents that are connected to this replica.
#[derive(Default)]
pub struct Links {
    entries: Mutex<HashMap<ServerId, Entry>>,
    /// Servers whose connections the log may know although nobody has them.
    pub(super) strays: Strays,
}

impl Links {
    fn entries(&self) -> MutexGuard<'_, HashMap<ServerId, Entry>> {
        // Nothing under the lock can panic half-way through a change.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection counts from now on. One of an older epoch is woken, and
    /// sees that it was replaced.
    pub(super) fn register(&self, server: &ServerId, epoch: Epoch) -> Registered {
        let (woken, contested) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
        let entry = Entry { epoch, woken: Arc::clone(&woken), contested: Arc::clone(&contested), questions: sender };
        let mut entries = self.entries();
        match entries.get(server) {
            // A newer connection was faster; this one will see so in the log.
            Some(other) if other.epoch > epoch => {}
            _ => {
                if let Some(old) = entries.insert(server.clone(), entry) {
                    old.woken.notify_one();
                }
            }
        }
        Registered { woken, contested, questions }
    }

    /// A connection ended.
    pub(super) fn unregister(&self, server: &ServerId, epoch: Epoch) {
        let mut entries = self.entries();
        if entries.get(server).is_some_and(|entry| entry.epoch == epoch) {
            entries.remove(server);
        }
    }

    /// Whether somebody here has this connection.
    pub(super) fn holds(&self, server: &ServerId, epoch: Epoch) -> bool {
        self.entries().get(server).is_some_and(|entry| entry.epoch == epoch)
    }

    /// How many agents are connected here.
    pub fn count(&self) -> usize {
        self.entries().len()
    }

    /// Called with what applied entries brought, once that is visible: wakes
    /// the connections that it concerns. No events say that the whole state was
    /// replaced, which may concern all of them.
    pub fn notice(&self, events: &[Event]) {
        if events.is_empty() {
            self.entries().values().for_each(|entry| entry.woken.notify_one());
            return;
        }
        let concerned = events.iter().filter_map(|event| match event {
            Event::InstructionIssued { server, .. }
            | Event::ServerConnected { server, .. }
            | Event::ServerInterrupted { server }
            | Event::ServerForgotten { server }
            | Event::AgentUnregistered { server, .. } => Some((server, false)),
            Event::ServerContested { server } => Some((server, true)),
            _ => None,
        });
        let mut entries = None;
        for (server, contested) in concerned {
            if let Some(entry) = entries.get_or_insert_with(|| self.entries()).get(server) {
                if contested { &entry.contested } else { &entry.woken }.notify_one();
            }
        }
    }

    /// Asks an agent something and waits for its answer.
    pub async fn ask(&self, server: &ServerId, question: Question) -> Result<Reply, AskError> {
        let questions = {
            let entries = self.entries();
            entries.get(server).map(|entry| entry.questions.clone()).ok_or(AskError::Unreachable)?
        };
        let (reply, answer) = oneshot::channel();
        questions.try_send(Asked { question, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AskError::Busy,
            mpsc::error::TrySendError::Closed(_) => AskError::Unreachable,
        })?;
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(AskError::Unreachable),
            Err(_) => Err(AskError::TimedOut),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures_util::FutureExt;

    use super::*;
    use crate::domain::report::Report;
    use crate::domain::{AgentInstance, Millis, ReplicaId};

    fn woken(registered: &Registered) -> bool {
        registered.woken.notified().now_or_never().is_some()
    }

    #[test]
    fn a_link_is_woken_by_what_concerns_its_server_and_by_a_replaced_state() {
        let links = Links::default();
        let (one, two) = (ServerId::new("one").unwrap(), ServerId::new("two").unwrap());
        let at_one = links.register(&one, Epoch(1));
        let at_two = links.register(&two, Epoch(1));
        links.notice(&[Event::ServerConnected {
            server: one.clone(),
            instance: AgentInstance::new("run").unwrap(),
            epoch: Epoch(1),
            via: ReplicaId(1),
            report_interval: Millis(5_000),
            report: Report::default(),
        }]);
        assert_eq!((woken(&at_one), woken(&at_two)), (true, false));
        links.notice(&[Event::ServerInterrupted { server: two.clone() }]);
        assert_eq!((woken(&at_one), woken(&at_two)), (false, true));
        links.notice(&[]);
        assert_eq!((woken(&at_one), woken(&at_two)), (true, true));
        assert_eq!((woken(&at_one), woken(&at_two)), (false, false), "once each");

        let contested = |registered: &Registered| registered.contested.notified().now_or_never().is_some();
        assert!(!contested(&at_one), "nobody came with its id");
        links.notice(&[Event::ServerContested { server: one }]);
        assert_eq!((contested(&at_one), contested(&at_two)), (true, false));
        assert!(!woken(&at_one), "there is nothing to send");
    }
}
