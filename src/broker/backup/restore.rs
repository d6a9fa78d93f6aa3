//! A new cluster of a backup.
//!
//! It has a secret, and so an id, of its own: its replicas and those of the old
//! cluster do not talk to each other, whatever becomes of the old one. The data
//! folder gets its identity last, so that one that was not finished is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_raft::{Beginning, Member, UnixMillis};

use super::format::{BackupError, Checked, check};
use crate::broker::cluster::authority::{Authorities, AuthorityError, ClusterId};
use crate::broker::cluster::identity::{self, Identity, IdentityError, Origin};
use crate::broker::cluster::shared;
use crate::broker::config::Config;
use crate::broker::deeds;
use crate::broker::identity::ClusterKey;
use crate::broker::identity::seal::SealError;
use crate::broker::machine::Machine;
use crate::broker::notes::noted;
use crate::domain::audit::{Actor, Deed};
use crate::domain::fleet::Stamp;
use crate::domain::key::{KeyPurpose, RetiredKey, SigningKey};
use crate::domain::{Command, Fleet, LogIndex, ReplicaId};
use crate::files::FileError;
use crate::secret::{Secret, SecretError};

/// What every new file system has in it.
const LOST_AND_FOUND: &str = "lost+found";

/// Why no cluster was made.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file is no good backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The data folder is in use.
    #[error("the data folder {} is not empty: it holds {}; restore into an empty one", folder.display(), found.display())]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// Something in it.
        found: PathBuf,
    },
    /// Another process uses the data folder.
    #[error("the data folder {} is locked by another process; stop it, or restore into another folder", folder.display())]
    Locked {
        /// The data folder.
        folder: PathBuf,
    },
    /// A file or folder cannot be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// A secret cannot be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A secret gives no certificates.
    #[error("the secret in {} cannot be used", path.display())]
    Authority {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: AuthorityError,
    },
    /// The new cluster would be the old one.
    #[error(
        "the secret in {} is that of the cluster that the backup is of; a restored cluster has one of its own: name \
         another file, and give this one as --old-secret-file", path.display()
    )]
    SameCluster {
        /// The secret's file.
        path: PathBuf,
    },
    /// What should be the old secret is another one.
    #[error("the secret in {} is that of cluster {found}, but the backup is of cluster {backup}", path.display())]
    OtherSecret {
        /// The secret's file.
        path: PathBuf,
        /// Its cluster.
        found: ClusterId,
        /// The backup's cluster.
        backup: ClusterId,
    },
    /// A key cannot be sealed anew.
    #[error("the key for {purpose:?} cannot be sealed anew")]
    Seal {
        /// What it is for.
        purpose: KeyPurpose,
        /// Why.
        #[source]
        source: SealError,
    },
    /// The data folder cannot be begun.
    #[error(transparent)]
    Begin(#[from] berth_raft::RestoreError),
    /// The data folder's identity cannot be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What was made.
#[derive(Debug)]
pub struct Restored {
    /// The backup.
    pub backup: Checked,
    /// The new cluster.
    pub cluster: ClusterId,
    /// Its one replica.
    pub replica: ReplicaId,
    /// The entry of the new log that the state counts as.
    pub index: LogIndex,
    /// Whether the old cluster's keys are still good.
    pub keeps_keys: bool,
    /// Who is let in.
    pub active: Active,
}

/// Who is let in by a cluster: as in the backup, also those that were
/// unregistered after it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Active {
    /// API clients.
    pub clients: usize,
    /// Agents that enrolled.
    pub agents: usize,
    /// Software statements that agents can enrol with.
    pub statements: usize,
    /// Certificates of gateways, good by the log's time.
    pub gateways: usize,
}

/// Makes the first replica of a new cluster, in an empty data folder, of a
/// backup. With the old cluster's secret its keys stay good: those that sign
/// tokens, the certificate authority and the secret of agents.
pub async fn restore(config: &Config, file: &Path, old_secret: Option<&Path>) -> Result<Restored, RestoreError> {
    let folder = &config.data_folder;
    refuse_used(folder)?;
    let backup = check(file)?;
    let mut fleet = backup.fleet()?;
    let old = old_secret.map(|path| old_key(path, &backup.header.cluster)).transpose()?;

    crate::files::make_folder(folder, 0o700)?;
    // Held to the end: a broker that is started meanwhile must not begin a
    // cluster here. One may have while the backup was read.
    let lock = crate::files::lock(&folder.join(identity::LOCK))?;
    let _lock = lock.ok_or_else(|| RestoreError::Locked { folder: folder.clone() })?;
    refuse_used(folder)?;
    let path = config.cluster.secret_file.clone().unwrap_or_else(|| folder.join(identity::SECRET));
    let secret = if path.exists() { Secret::read(&path)? } else { Secret::random() };
    let cluster = cluster_of(&path, &secret)?;
    if cluster == backup.header.cluster {
        return Err(RestoreError::SameCluster { path });
    }
    let (keys, retired) = match &old {
        Some(old) => reseal(&fleet, old, &key_of(&path, &secret)?)?,
        None => (Vec::new(), Vec::new()),
    };
    let replica = ReplicaId(config.replica);
    let index = fleet.begin_anew(backup.header.index, backup.header.last_replica.max(replica), keys, retired);
    let record = first_record(&backup, file, &cluster, replica);
    fleet.apply(Stamp { index, at: fleet.at() }, record);
    let active = Active::of(&fleet);

    if !path.exists() {
        secret.write(&path)?;
    }
    let mut identity = Identity::new(cluster.clone(), replica, Origin::Founded);
    identity.has_log = true;
    let member = Member {
        address: config.cluster.address_of(replica).unwrap_or_default(),
        folder: identity.folder.as_str().to_owned(),
    };
    let at = UnixMillis(fleet.at().0);
    let beginning = Beginning { state: Machine(fleet), index: berth_raft::LogIndex(index.0), at, member };
    berth_raft::restore(crate::broker::replica_config(config, replica, 0), beginning).await?;
    // Last: without it nothing is served.
    identity.write(folder)?;
    Ok(Restored { backup, cluster, replica, index, keeps_keys: old.is_some(), active })
}

/// What the audit of the new cluster begins with. The log's time is still that
/// of the backup, so it says when this is by the clock of the host.
fn first_record(backup: &Checked, file: &Path, cluster: &ClusterId, replica: ReplicaId) -> Command {
    let deed = Deed {
        actor: Actor::Operator,
        from: deeds::of_user(rustix::process::getuid().as_raw()),
        action: deeds::RESTORE.to_owned(),
        target: format!("cluster {}, entry {}, of {}", backup.header.cluster, backup.header.index, file.display()),
        request_id: String::new(),
        via: replica,
    };
    let now = jiff::Timestamp::now();
    noted(deed.bounded(), format!("cluster {cluster} begins with it; by the clock of the host it is {now}"))
}

impl Active {
    fn of(fleet: &Fleet) -> Self {
        Self {
            clients: fleet.clients().filter(|client| client.active).count(),
            agents: fleet.agent_clients().filter(|agent| agent.active).count(),
            statements: fleet.statements().filter(|statement| statement.active).count(),
            gateways: fleet.gateway_certificates().filter(|known| known.until > fleet.at()).count(),
        }
    }
}

/// Only an empty folder is restored into, or none.
fn refuse_used(folder: &Path) -> Result<(), RestoreError> {
    let listed = match std::fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::of("list", folder)(error).into()),
    };
    for found in listed {
        let found = found.map_err(FileError::of("list", folder))?;
        // A start that was refused leaves its lock file.
        if found.file_name() != LOST_AND_FOUND && found.file_name() != identity::LOCK {
            return Err(RestoreError::InUse { folder: folder.to_owned(), found: found.file_name().into() });
        }
    }
    Ok(())
}

fn cluster_of(path: &Path, secret: &Secret) -> Result<ClusterId, RestoreError> {
    let authority = |source| RestoreError::Authority { path: path.to_owned(), source };
    Ok(Authorities::new(secret).map_err(authority)?.cluster().clone())
}

fn key_of(path: &Path, secret: &Secret) -> Result<ClusterKey, RestoreError> {
    let unusable = |_| RestoreError::Authority { path: path.to_owned(), source: AuthorityError::Secret };
    ClusterKey::new(secret).map_err(unusable)
}

/// The key that the old cluster's keys are sealed with.
fn old_key(path: &Path, backup: &ClusterId) -> Result<ClusterKey, RestoreError> {
    let secret = Secret::read(path)?;
    let found = cluster_of(path, &secret)?;
    if found != *backup {
        return Err(RestoreError::OtherSecret { path: path.to_owned(), found, backup: backup.clone() });
    }
    key_of(path, &secret)
}

/// The old cluster's keys, sealed with the new cluster's secret.
fn reseal(
    fleet: &Fleet,
    old: &ClusterKey,
    new: &ClusterKey,
) -> Result<(Vec<SigningKey>, Vec<RetiredKey>), RestoreError> {
    let resealed = |key: &SigningKey| {
        let context = shared::context(&key.id, key.purpose);
        let sealed = old.open(&context, &key.sealed).and_then(|clear| new.seal(&context, &clear));
        let sealed = sealed.map_err(|source| RestoreError::Seal { purpose: key.purpose, source })?;
        Ok::<_, RestoreError>(SigningKey { sealed, ..key.clone() })
    };
    let keys = fleet.keys().map(|key| resealed(key)).collect::<Result<_, _>>()?;
    let retired = |retired: &Arc<RetiredKey>| {
        Ok::<_, RestoreError>(RetiredKey { key: resealed(&retired.key)?, until: retired.until })
    };
    Ok((keys, fleet.retired_keys().map(retired).collect::<Result<_, _>>()?))
}
