//! A data folder that begins with a state, instead of with nothing.
//!
//! The state is laid down as the snapshot that a leader would have sent, with the one member of the
//! new cluster in it, and a vote that makes the folder this replica's. The replica then starts as
//! after any other snapshot: nothing but the folder knows that it was restored, and whoever joins
//! later gets the state as a snapshot too.

use crate::config::Config;
use crate::error::StartError;
use crate::ids::{LogIndex, ReplicaId, UnixMillis};
use crate::log_store::LogStore;
use crate::machine::StateMachine;
use crate::members::Member;
use crate::replica::{failed_start, open_store};
use crate::replicated::Replicated;
use crate::snapshot::{Moment, SnapshotBuilder};
use crate::trail::Trail;
use crate::types::{Membership, SnapshotMeta, StoredMembership, Vote, log_id};
use berth_storage::Store;
use openraft::storage::RaftLogStorage;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// The term of the entry that the state counts as. The first leader has a later one.
const TERM: u64 = 1;

/// What a data folder begins with.
#[derive(Debug)]
pub struct Beginning<M> {
    /// The state.
    pub state: M,
    /// The entry that it counts as. The log goes on after it.
    pub index: LogIndex,
    /// The time of that entry: stamps go on from there.
    pub at: UnixMillis,
    /// The one member: this replica, as others will know it.
    pub member: Member,
}

/// Why a data folder was not begun.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It cannot be opened, or a setting is outside its bounds.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is a log in it. Nothing was changed.
    #[error("the data folder {} is in use; restore into an empty one", folder.display())]
    InUse {
        /// The data folder.
        folder: PathBuf,
    },
    /// It could not be written, and must not be used.
    #[error("cannot write the state into the data folder {}; empty it and begin again", folder.display())]
    Write {
        /// The data folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes the data folder of the only member of a new cluster, which begins with a state. Durable
/// when this returns; [`Replica::start`](crate::Replica::start) then goes on from there.
///
/// It is written in the newest format that the configuration allows, as for any new cluster. Calls
/// of the old cluster are not remembered: none of their callers is a member.
pub async fn restore<M: StateMachine>(config: Config, beginning: Beginning<M>) -> Result<(), RestoreError> {
    config.validate().map_err(StartError::from)?;
    let store = open_store(&config).await?;
    let written = write(&config, &store, beginning).await;
    // Closed in any case, and before anybody hears of it.
    let closed = crate::runtime::blocking(move || store.close()).await.map_err(failed_start)?;
    written?;
    let folder = config.folder;
    closed.map_err(|source| RestoreError::Write { folder, source: io::Error::other(source) })
}

async fn write<M: StateMachine>(config: &Config, store: &Store, beginning: Beginning<M>) -> Result<(), RestoreError> {
    let folder = || config.folder.clone();
    let (log, snapshots) = (store.log(), store.snapshots());
    let current = snapshots.current().map_err(|source| StartError::Storage { folder: folder(), source })?;
    if current.is_some() || log.last().is_some() || log.purged().is_some() || log.vote().is_some() {
        return Err(RestoreError::InUse { folder: folder() });
    }
    let failed = |source| RestoreError::Write { folder: folder(), source };
    let Beginning { state, index, at, member } = beginning;
    let ReplicaId(own) = config.replica;
    let stop = CancellationToken::new();
    LogStore::new(log, config.replica, stop.clone()).save_vote(&Vote::new(TERM, own)).await.map_err(failed)?;
    let last = log_id(TERM, index.0);
    let membership = Membership::new(vec![BTreeSet::from([own])], BTreeMap::from([(own, member)]))
        .map_err(|error| failed(io::Error::other(error.to_string())))?;
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership: StoredMembership::new(Some(last), membership) };
    let replicated = Replicated {
        format: *config.formats.end(),
        trail: Trail::begin(index, M::HASH_VERSION),
        ..Replicated::new(M::HASH_VERSION)
    };
    let builder = SnapshotBuilder::new(Moment { state, replicated }, meta, at, snapshots, stop);
    builder.write().await.map_err(failed)?;
    Ok(())
}
