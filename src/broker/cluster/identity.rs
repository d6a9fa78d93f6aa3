//! Which replica a data folder belongs to.
//!
//! `identity.json` is made with the folder and goes with it: a folder that was
//! lost and made anew has another identity, also when the configuration says
//! that it is the same replica. Nothing may be served in its place then,
//! because what it once acknowledged is gone.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::authority::ClusterId;
use crate::domain::ReplicaId;
use crate::domain::ids::FolderId;
use crate::files::{self, FileError};

/// Name of the file in the data folder.
pub const FILE: &str = "identity.json";
/// Name of the folder with log and snapshots in the data folder.
pub const STORE: &str = "replica";
/// Name of the file with the cluster's secret in the data folder.
pub const SECRET: &str = "cluster.key";

/// Name of the file in the data folder that whoever uses the folder holds a
/// lock on.
pub const LOCK: &str = "lock";

/// Version of the file.
const VERSION: u16 = 1;
/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// How the replica became, or becomes, a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// It forms a cluster of its own.
    Founded,
    /// It is one of the members that the configuration names.
    Configured,
    /// It joins, or joined, a cluster that there was.
    Joined,
}

/// Whose data folder it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    version: u16,
    /// The cluster.
    pub cluster: ClusterId,
    /// The replica's number.
    pub replica: ReplicaId,
    /// The folder's own id.
    pub folder: FolderId,
    /// How it became a member.
    pub origin: Origin,
    /// Whether its log was ever begun. A log that is missing afterwards was
    /// lost, and must not be begun anew.
    pub has_log: bool,
    /// How many times it was started.
    pub starts: u64,
    /// The authority whose certificates it showed last.
    pub authority: u32,
    /// Where others reach it, if it was told so when it joined.
    pub address: Option<String>,
    /// What it proves with that it asks again, while it joins. It has no number
    /// as long as this is here.
    pub joining: Option<String>,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It does not hold what it should.
    #[error("{} is damaged; restore it from a backup, or let the replica join anew with an empty data folder", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What and where.
        #[source]
        source: serde_json::Error,
    },
    /// A newer version wrote it.
    #[error("{} has version {found}, but this build reads {VERSION}; use a newer build", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
    /// There is a log, but nothing says whose.
    #[error(
        "{} has a log but no {FILE}; restore that file, or let the replica join anew with an empty data folder",
        folder.display()
    )]
    Missing {
        /// The data folder.
        folder: PathBuf,
    },
    /// The log is gone.
    #[error(
        "the log of replica {replica} is missing in {}; what it acknowledged may be lost, so it cannot go on under \
         this number: let it join anew with an empty data folder (`berth cluster add --replace {replica}`), or \
         restore a backup", folder.display()
    )]
    LogLost {
        /// The data folder.
        folder: PathBuf,
        /// The replica.
        replica: ReplicaId,
    },
    /// The secret is another cluster's.
    #[error("the secret in {} is that of cluster {secret}, but the data folder belongs to cluster {folder}", path.display())]
    OtherCluster {
        /// The secret's file.
        path: PathBuf,
        /// Its cluster.
        secret: ClusterId,
        /// The folder's cluster.
        folder: ClusterId,
    },
    /// The configuration names another number.
    #[error("the data folder belongs to replica {found}, but the configuration says `replica = {configured}`")]
    OtherReplica {
        /// The folder's.
        found: ReplicaId,
        /// The configuration's.
        configured: ReplicaId,
    },
}

impl Identity {
    /// The identity of a new data folder.
    pub fn new(cluster: ClusterId, replica: ReplicaId, origin: Origin) -> Self {
        let folder = FolderId::new(&uuid::Uuid::new_v4().to_string()).expect("a UUID is a valid id");
        Self {
            version: VERSION,
            cluster,
            replica,
            folder,
            origin,
            has_log: false,
            starts: 0,
            authority: 0,
            address: None,
            joining: None,
        }
    }

    /// The identity of a data folder, if it has one.
    pub fn read(data_folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data_folder.join(FILE);
        let has_log = data_folder.join(STORE).exists();
        if !path.exists() {
            let folder = data_folder.to_owned();
            return if has_log { Err(IdentityError::Missing { folder }) } else { Ok(None) };
        }
        let text = files::read_text(&path, FILE_BYTES_MAX).map_err(FileError::of("read", &path))?;
        let identity: Self =
            serde_json::from_str(&text).map_err(|source| IdentityError::Damaged { path: path.clone(), source })?;
        if identity.version != VERSION {
            return Err(IdentityError::Version { path, found: identity.version });
        }
        if identity.has_log && !has_log {
            return Err(IdentityError::LogLost { folder: data_folder.to_owned(), replica: identity.replica });
        }
        Ok(Some(identity))
    }

    /// Notes of which authority the replica's certificates are, so that it can
    /// show them at once after the next start.
    pub fn note_authority(data_folder: &Path, authority: u32) -> Result<(), IdentityError> {
        match Self::read(data_folder)? {
            Some(identity) if identity.authority != authority => Self { authority, ..identity }.write(data_folder),
            _ => Ok(()),
        }
    }

    /// Writes it, durably.
    pub fn write(&self, data_folder: &Path) -> Result<(), IdentityError> {
        let mut text = serde_json::to_string_pretty(self).expect("texts and numbers can be written");
        text.push('\n');
        Ok(files::replace(&data_folder.join(FILE), text.as_bytes(), 0o600)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::cluster::authority::Authorities;
    use crate::secret::Secret;

    fn identity() -> Identity {
        let cluster = Authorities::new(&Secret::random()).expect("made").cluster().clone();
        Identity::new(cluster, ReplicaId(2), Origin::Joined)
    }

    #[test]
    fn an_identity_comes_back_and_two_folders_differ() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Identity::read(folder.path()).expect("nothing"), None);
        let written = identity();
        written.write(folder.path()).expect("written");
        assert_eq!(Identity::read(folder.path()).expect("read"), Some(written.clone()));
        assert_ne!(written.folder, identity().folder);
    }

    #[test]
    fn a_log_without_its_identity_and_an_identity_without_its_log_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(STORE)).expect("made");
        assert!(matches!(Identity::read(folder.path()), Err(IdentityError::Missing { .. })));
        std::fs::remove_dir(folder.path().join(STORE)).expect("removed");
        Identity { has_log: true, ..identity() }.write(folder.path()).expect("written");
        let refused = Identity::read(folder.path()).expect_err("lost").to_string();
        assert!(refused.contains("--replace 2"), "{refused}");
    }

    #[test]
    fn damage_and_newer_versions_are_told() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(FILE), "{").expect("written");
        assert!(matches!(Identity::read(folder.path()), Err(IdentityError::Damaged { .. })));
        Identity { version: 9, ..identity() }.write(folder.path()).expect("written");
        assert!(matches!(Identity::read(folder.path()), Err(IdentityError::Version { found: 9, .. })));
    }
}
