//! Whether this replica has contact with a majority of the replicas.
//!
//! Nothing else tells for certain: a replica that is cut off goes on believing
//! in the leader that it had, or that it leads itself. So one task asks
//! a majority at intervals what the log's newest entry is, and says when that
//! has not been confirmed for too long. How far this replica itself has come
//! does not matter: one that lags behind is not cut off. Reads are then
//! answered at once from what the replica knows, and later its agents are told
//! to look for a better one.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

/// Between two confirmations.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Between two attempts while there is none.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Without a confirmation for so long, contact is lost: longer than a new
/// leader takes as a rule.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// Without a confirmation for so long, agents are better off elsewhere.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(3);

/// How it stands between this replica and the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Contact {
    /// A majority can be reached, or could a moment ago.
    #[default]
    Kept,
    /// None can be: whoever waits for one waits in vain.
    Lost,
    /// None could be for so long that agents should look for another replica.
    GivenUp,
}

/// Watches over the contact until told to stop. `confirms` asks the majority
/// once; false when it did not answer.
pub async fn keep<Asked>(confirms: impl Fn() -> Asked, contact: watch::Sender<Contact>, shutdown: CancellationToken)
where
    Asked: Future<Output = bool>,
{
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = watch_over(&confirms, &contact) => {}
    }
}

async fn watch_over<Asked>(confirms: &impl Fn() -> Asked, contact: &watch::Sender<Contact>)
where
    Asked: Future<Output = bool>,
{
    loop {
        let began = Instant::now();
        let confirmed = async {
            while !confirms().await {
                sleep(RETRY_PAUSE).await;
            }
        };
        tokio::pin!(confirmed);
        let mut is_kept = false;
        for (after, meanwhile) in [(LOST_AFTER, Contact::Lost), (GIVEN_UP_AFTER, Contact::GivenUp)] {
            is_kept = timeout_at(began + after, &mut confirmed).await.is_ok();
            if is_kept {
                break;
            }
            tracing::warn!(
                for_ms = began.elapsed().as_millis(),
                ?meanwhile,
                "no majority of the replicas can be reached"
            );
            contact.send_replace(meanwhile);
        }
        if !is_kept {
            confirmed.await;
        }
        if contact.send_replace(Contact::Kept) != Contact::Kept {
            tracing::info!(after_ms = began.elapsed().as_millis(), "a majority of the replicas can be reached again");
        }
        sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn contact_is_lost_then_given_up_and_found_again() {
        let answers = Arc::new(AtomicBool::new(true));
        let contact = watch::Sender::new(Contact::Kept);
        let mut seen = contact.subscribe();
        let shutdown = CancellationToken::new();
        let confirms = {
            let answers = Arc::clone(&answers);
            move || std::future::ready(answers.load(Ordering::Relaxed))
        };
        let watching = tokio::spawn(keep(confirms, contact, shutdown.clone()));
        answers.store(false, Ordering::Relaxed);
        for expected in [Contact::Lost, Contact::GivenUp] {
            seen.changed().await.unwrap();
            assert_eq!(*seen.borrow_and_update(), expected);
        }
        answers.store(true, Ordering::Relaxed);
        seen.wait_for(|contact| *contact == Contact::Kept).await.unwrap();
        shutdown.cancel();
        watching.await.unwrap();
    }
}
