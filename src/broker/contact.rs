//! Whether this replica has contact with a majority of the replicas.
//!
//! Nothing else tells for certain: a replica that is cut off goes on believing
//! in the leader that it had, or that it leads itself. So one task reads the
//! log's newest state at intervals, as clients do, and says when that has not
//! been confirmed for too long. Reads are then answered at once from what the
//! replica knows, and later its agents are sent elsewhere.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::api::door::{Core, UnavailableReason};

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

/// Watches over the contact until told to stop.
pub async fn keep(core: Arc<impl Core>, contact: watch::Sender<Contact>, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = watch_over(&*core, &contact) => {}
    }
}

async fn watch_over(core: &impl Core, contact: &watch::Sender<Contact>) {
    loop {
        let began = Instant::now();
        let confirmed = confirmed(core);
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

/// Returns when a majority has confirmed what is current.
async fn confirmed(core: &impl Core) {
    loop {
        match core.read().await {
            Err(error) if error.reason == UnavailableReason::NoQuorum => sleep(RETRY_PAUSE).await,
            // Busy or ending, but not cut off.
            Ok(_) | Err(_) => return,
        }
    }
}
