//! Keys that all replicas have in common: in the log, sealed with the
//! cluster's secret. Replicas that start together each offer one; the first
//! offer counts.

use std::time::Duration;

use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::broker::api::door::{Unavailable, UnavailableReason};
use crate::broker::core::Broker;
use crate::broker::identity::ClusterKey;
use crate::broker::identity::seal::SealError;
use crate::domain::key::KeyPurpose;
use crate::domain::{Command, KeyId};

/// Between two attempts while the log takes nothing.
const RETRY: Duration = Duration::from_millis(200);
/// How often it is told what is waited for.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// Why a common key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SharedKeyError {
    /// It does not open with the secret of this data folder.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// This replica ends.
    #[error(transparent)]
    Unavailable(Unavailable),
}

/// What a sealed key is bound to: it does not open as another key.
pub fn context(id: &KeyId, purpose: KeyPurpose) -> String {
    format!("berth signing key {purpose:?} {id}")
}

/// The key that the cluster has for a purpose; `offer` when it has none yet.
/// Waits while the log takes nothing: a replica that knows the key already
/// does not need the log.
pub async fn agree(
    broker: &Broker,
    cluster_key: &ClusterKey,
    purpose: KeyPurpose,
    offer: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SharedKeyError> {
    let mut told_at: Option<Instant> = None;
    loop {
        if let Some(key) = broker.fleet().key(purpose) {
            return Ok(cluster_key.open(&context(&key.id, purpose), &key.sealed)?);
        }
        let id = KeyId::new(&uuid::Uuid::new_v4().to_string()).expect("a UUID is a valid id");
        let sealed = cluster_key.seal(&context(&id, purpose), offer)?;
        match broker.propose(vec![Command::InstallKey { id, purpose, sealed }]).await {
            Ok(_) => {}
            Err(error) if error.reason == UnavailableReason::NotServing => {
                return Err(SharedKeyError::Unavailable(error));
            }
            Err(error) => {
                if told_at.is_none_or(|at| at.elapsed() >= TELL_INTERVAL) {
                    told_at = Some(Instant::now());
                    tracing::warn!(%error, ?purpose, "waiting for the log: this replica does not serve yet");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
