//! This replica among the others.
//!
//! - `identity.rs`: whose data folder it is,
//! - `authority.rs`: the certificates that replicas show each other,
//! - `frame.rs`, `message.rs`: what goes over the wire,
//! - `dial.rs`, `accept.rs`: connections to others and from others,
//! - `runs.rs`: which run of a replica is connected,
//! - `node.rs`: what a replica answers, and operators' wishes,
//! - `forming.rs`, `token.rs`: how a cluster comes to be and grows,
//! - `admin.rs`: what operators see and ask for,
//! - `members.rs`: how members come and go,
//! - `steward.rs`: what is done for members without being asked,
//! - `shared.rs`: keys that all replicas have in common.

pub mod accept;
pub mod admin;
pub mod authority;
pub mod dial;
pub mod forming;
pub mod frame;
pub mod identity;
pub mod members;
pub mod message;
pub mod node;
pub mod runs;
pub mod shared;
pub mod steward;
pub mod token;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use berth_raft::{Formation, Member};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::authority::{Authorities, AuthorityError};
use self::dial::{Dialer, Own};
use self::identity::{Identity, IdentityError, Origin};
use self::node::{Keys, Node};
use super::config::Config;
use super::listen::BindError;
use crate::domain::ReplicaId;
use crate::files::{self, FileError};
use crate::secret::{Secret, SecretError};

/// Why a replica does not take its place.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The data folder cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cluster's secret cannot be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The secret's file does not hold what it should.
    #[error("{} cannot be used", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: AuthorityError,
    },
    /// The secret gives no certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The data folder is empty, and nothing says what is to become of it.
    #[error(
        "the data folder {} is empty. To begin a cluster: `berth cluster init`. To join one: `berth cluster add` on a \
         replica of it, then `berth cluster join` here", folder.display()
    )]
    Unformed {
        /// The data folder.
        folder: PathBuf,
    },
    /// A join was begun and not finished.
    #[error("the data folder {} belongs to a replica that has not joined yet: `berth cluster join`, with the same token", folder.display())]
    NotJoined {
        /// The data folder.
        folder: PathBuf,
    },
    /// A new cluster needs a new secret.
    #[error(
        "a cluster that is begun with `init` gets a secret of its own: {} must have no {}, and the configuration neither \
         `members` nor `secret_file`", folder.display(), identity::SECRET
    )]
    NotNew {
        /// The data folder.
        folder: PathBuf,
    },
    /// The members that the configuration names cannot form a cluster.
    #[error(transparent)]
    Config(#[from] super::config::ConfigError),
    /// A member has no port for the others.
    #[error("replica {replica} has others, but no address: set `address` in `[cluster]`")]
    NoAddress {
        /// The replica.
        replica: ReplicaId,
    },
    /// The data folder is in use.
    #[error("the data folder {} belongs to replica {replica} of cluster {cluster} already", folder.display())]
    Taken {
        /// The data folder.
        folder: PathBuf,
        /// Its replica.
        replica: ReplicaId,
        /// Its cluster.
        cluster: authority::ClusterId,
    },
    /// Another process uses the data folder.
    #[error("the data folder {} is locked by another process; stop it, or use another folder", folder.display())]
    Locked {
        /// The data folder.
        folder: PathBuf,
    },
    /// The data folder cannot be locked.
    #[error(transparent)]
    File(#[from] FileError),
    /// The peer port cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The cluster was not formed.
    #[error(transparent)]
    Forming(#[from] forming::FormingError),
    /// No invitation, or not this time.
    #[error(transparent)]
    Join(#[from] token::JoinError),
}

/// A data folder with an identity, and the secret of its cluster.
pub struct Place {
    /// Held as long as the folder is in use.
    _lock: File,
    folder: PathBuf,
    identity: Identity,
    secret: Secret,
    authorities: Authorities,
}

impl Place {
    /// Takes the place that the data folder and the configuration give.
    pub fn take(config: &Config) -> Result<Self, ClusterError> {
        let folder = config.data_folder.clone();
        // Before anything in it is read: whoever has it counts its starts.
        let lock = lock(&folder)?;
        let secret_path = config.cluster.secret_file.clone().unwrap_or_else(|| folder.join(identity::SECRET));
        let named = |source| ClusterError::SecretFile { path: secret_path.clone(), source };
        let replica = ReplicaId(config.replica);
        let found = Identity::read(&folder)?;
        let (identity, secret) = match found {
            Some(identity) if identity.joining.is_some() => return Err(ClusterError::NotJoined { folder }),
            Some(identity) => {
                if identity.origin != Origin::Joined && identity.replica != replica {
                    let (found, configured) = (identity.replica, replica);
                    return Err(IdentityError::OtherReplica { found, configured }.into());
                }
                // A joined replica has the secret that it was given.
                let path = match identity.origin {
                    Origin::Joined => folder.join(identity::SECRET),
                    Origin::Founded | Origin::Configured => secret_path.clone(),
                };
                (identity, Secret::read(&path)?)
            }
            None if !config.cluster.members.is_empty() => {
                config.cluster.check_formation(config.replica)?;
                let secret = Secret::read(&secret_path)?;
                let cluster = Authorities::new(&secret).map_err(named)?.cluster().clone();
                (Identity::new(cluster, replica, Origin::Configured), secret)
            }
            None if config.cluster.address.is_some() => return Err(ClusterError::Unformed { folder }),
            None => {
                let secret = Secret::read_or_create(&secret_path)?;
                let cluster = Authorities::new(&secret).map_err(named)?.cluster().clone();
                (Identity::new(cluster, replica, Origin::Founded), secret)
            }
        };
        let authorities = Authorities::new(&secret).map_err(named)?;
        if *authorities.cluster() != identity.cluster {
            let (secret, cluster) = (authorities.cluster().clone(), identity.cluster);
            return Err(IdentityError::OtherCluster { path: secret_path.clone(), secret, folder: cluster }.into());
        }
        let mut place = Self { _lock: lock, folder, identity, secret, authorities };
        place.identity.starts += 1;
        place.identity.write(&place.folder)?;
        Ok(place)
    }

    /// Makes the first replica of a new cluster in an empty data folder.
    pub fn found(config: &Config) -> Result<authority::ClusterId, ClusterError> {
        let folder = &config.data_folder;
        // Told first: whoever uses the folder holds the lock, too.
        refuse_taken(config)?;
        let _lock = lock(folder)?;
        refuse_taken(config)?;
        let path = folder.join(identity::SECRET);
        // Another secret is another cluster; the same one would be the same
        // cluster twice.
        if path.exists() || config.cluster.secret_file.is_some() || !config.cluster.members.is_empty() {
            return Err(ClusterError::NotNew { folder: folder.clone() });
        }
        let secret = Secret::read_or_create(&path)?;
        let cluster = Authorities::new(&secret)?.cluster().clone();
        Identity::new(cluster.clone(), ReplicaId(config.replica), Origin::Founded).write(folder)?;
        Ok(cluster)
    }

    /// Makes a replica of an empty data folder that joins with a token.
    pub async fn join(config: &Config, token: &token::JoinToken, address: String) -> Result<ReplicaId, ClusterError> {
        let folder = &config.data_folder;
        if Identity::read(folder)?.is_some_and(|identity| identity.joining.is_none()) {
            refuse_taken(config)?;
        }
        let _lock = lock(folder)?;
        // Written first: one that asks again because the answer was lost is
        // known by what it has here.
        let mut identity = match Identity::read(folder)? {
            Some(identity) if identity.joining.is_some() && identity.cluster == token.cluster => identity,
            Some(_) => {
                return Err(refuse_taken(config).err().unwrap_or(ClusterError::NotNew { folder: folder.clone() }));
            }
            None => Identity::new(token.cluster.clone(), ReplicaId(0), Origin::Joined),
        };
        let proof = identity.joining.get_or_insert_with(|| Secret::random().expose().to_owned()).clone();
        identity.address = Some(address.clone());
        identity.write(folder)?;
        let format_max = config.cluster.format_max;
        let join = message::Join { folder: identity.folder.clone(), address, proof, format_max };
        let (replica, secret, authority) = match token.join(&join).await? {
            message::Joined::Welcome { replica, secret, authority } => (replica, Secret::new(secret), authority),
            message::Joined::Refused(reason) => return Err(token::JoinError::Refused(reason).into()),
        };
        secret.write(&folder.join(identity::SECRET))?;
        (identity.replica, identity.authority, identity.joining) = (replica, authority, None);
        identity.write(folder)?;
        Ok(replica)
    }

    /// Which replica it is.
    pub const fn replica(&self) -> ReplicaId {
        self.identity.replica
    }

    /// How many times this replica was started, this time included.
    pub const fn starts(&self) -> u64 {
        self.identity.starts
    }

    /// The cluster's secret.
    pub const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Notes that the log was begun: it must not be begun anew.
    fn note_log(&mut self) -> Result<(), ClusterError> {
        if !self.identity.has_log {
            self.identity.has_log = true;
            self.identity.write(&self.folder)?;
        }
        Ok(())
    }
}

/// Takes hold of a data folder.
fn lock(folder: &Path) -> Result<File, ClusterError> {
    files::lock(&folder.join(identity::LOCK))?.ok_or_else(|| ClusterError::Locked { folder: folder.to_owned() })
}

fn refuse_taken(config: &Config) -> Result<(), ClusterError> {
    match Identity::read(&config.data_folder)? {
        None => Ok(()),
        Some(identity) => Err(ClusterError::Taken {
            folder: config.data_folder.clone(),
            replica: identity.replica,
            cluster: identity.cluster,
        }),
    }
}

/// A replica that answers others, and knows what to do with its log.
pub struct Peering {
    place: Place,
    /// What this replica answers.
    pub node: Arc<Node>,
    /// Where others reach it, when they do.
    pub listening: Option<SocketAddr>,
    accepting: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Peering {
    /// Opens the peer port, when there is one.
    pub async fn open(place: Place, config: &Config) -> Result<Self, ClusterError> {
        let stop = CancellationToken::new();
        let Identity { cluster, replica, folder, .. } = place.identity.clone();
        let own = Own { cluster: cluster.clone(), replica, folder: folder.clone(), run: runs::Run::random() };
        let authority = place.identity.authority;
        let tls = Arc::new(ArcSwap::from_pointee(place.authorities.tls(authority, replica, &folder)?));
        let dialer = Arc::new(Dialer::new(own.clone(), Arc::clone(&tls), stop.clone()));
        let address = config.cluster.address_of(replica).or_else(|| place.identity.address.clone()).unwrap_or_default();
        let authorities = Authorities::new(&place.secret)?;
        let secret = place.secret.clone();
        let had_log = place.identity.has_log;
        let has_port = !address.is_empty();
        if !has_port && place.identity.origin != Origin::Founded {
            return Err(ClusterError::NoAddress { replica });
        }
        dialer.learn_alternatives(config.cluster.addresses());
        let keys = Keys { secret, authorities, authority, tls: Arc::clone(&tls) };
        let node = Node::new(own, address, had_log, keys, dialer);
        let node = Arc::new(node);
        let (mut listening, mut accepting) = (None, None);
        if has_port {
            let asked = config.cluster.listen;
            let bind = |source| BindError { address: asked, source };
            let listener = TcpListener::bind(asked).await.map_err(bind)?;
            listening = Some(listener.local_addr().map_err(bind)?);
            let answers: Arc<dyn accept::Answers> = Arc::clone(&node) as _;
            accepting = Some(tokio::spawn(accept::serve(listener, cluster, tls, answers, stop.clone())));
        }
        Ok(Self { place, node, listening, accepting, stop })
    }

    /// What is to be done with an empty log.
    pub async fn formation(&self, config: &Config) -> Result<Formation, ClusterError> {
        let identity = &self.place.identity;
        let own = Member { address: self.node.address().to_owned(), folder: identity.folder.as_str().to_owned() };
        Ok(match identity.origin {
            // Whoever the members are by now, the log says so.
            _ if identity.has_log => Formation::Existing,
            Origin::Founded => Formation::Members(BTreeMap::from([(berth_raft::ReplicaId(identity.replica.0), own)])),
            Origin::Joined => Formation::Wait,
            Origin::Configured => {
                let formation = forming::form(&self.node, &config.cluster.addresses()).await?;
                // These connections asked for no folder.
                self.node.dialer().renew();
                formation
            }
        })
    }

    /// How many times this replica was started, this time included.
    pub const fn starts(&self) -> u64 {
        self.place.starts()
    }

    /// Notes that the log was begun.
    pub fn has_log(&mut self) -> Result<(), ClusterError> {
        self.place.note_log()
    }

    /// Ends all connections with others.
    pub async fn close(&mut self) {
        self.stop.cancel();
        if let Some(accepting) = self.accepting.take()
            && let Err(error) = accepting.await
        {
            tracing::warn!(%error, "the peer port did not end in order");
        }
    }

    /// The data folder.
    pub fn folder(&self) -> PathBuf {
        self.place.folder.clone()
    }

    /// Ends with the connections.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_uses_a_folder_and_counts_its_starts() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config { data_folder: folder.path().to_owned(), ..Config::default() };
        let place = Place::take(&config).expect("an empty folder");
        assert!(matches!(Place::take(&config), Err(ClusterError::Locked { .. })));
        assert_eq!(place.starts(), 1);
        drop(place);
        assert_eq!(Place::take(&config).expect("it is free again").starts(), 2);
    }
}
