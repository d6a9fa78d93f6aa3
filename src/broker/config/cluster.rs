//! `[cluster]`: the other replicas.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use crate::broker::cluster::node::check_address;
use crate::domain::ReplicaId;

/// Port for other replicas.
pub const PEER_PORT: u16 = 47_100;

/// The other replicas. Without `address` and `members` a replica is alone and
/// has no port for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Address and port for other replicas.
    pub listen: SocketAddr,
    /// Where other replicas reach this one, as `host:port`.
    pub address: Option<String>,
    /// Replicas that form a cluster by themselves, once: their numbers and
    /// addresses, this one among them. Not looked at afterwards.
    pub members: Vec<ClusterMember>,
    /// File with the cluster's secret, the same on all of `members`. In the
    /// data folder when absent.
    pub secret_file: Option<PathBuf>,
    /// How long the leader may be silent before another one is elected, in
    /// milliseconds; the actual time is drawn from 1.5 times to twice as long.
    pub election_timeout_ms: u64,
    /// How often the leader gives a sign of life, in milliseconds.
    pub heartbeat_ms: u64,
    /// Log entries after which a snapshot is made.
    pub snapshot_after_entries: u64,
    /// How long a request may take to be acknowledged, in seconds.
    pub request_timeout_seconds: u64,
    /// The newest format of the log that this replica reads; 1 or 2. Held back,
    /// it can still be replaced by an earlier build.
    pub format_max: u16,
}

/// One of the replicas that form a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterMember {
    /// Its number.
    pub replica: u64,
    /// Where other replicas reach it, as `host:port`.
    pub address: String,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PEER_PORT),
            address: None,
            members: Vec::new(),
            secret_file: None,
            election_timeout_ms: 450,
            heartbeat_ms: 150,
            snapshot_after_entries: 50_000,
            request_timeout_seconds: 10,
            format_max: 2,
        }
    }
}

impl Cluster {
    /// The members by their numbers.
    pub fn addresses(&self) -> BTreeMap<ReplicaId, String> {
        self.members.iter().map(|member| (ReplicaId(member.replica), member.address.clone())).collect()
    }

    /// Where others reach a replica, as far as the configuration says.
    pub fn address_of(&self, replica: ReplicaId) -> Option<String> {
        self.address.clone().or_else(|| self.addresses().remove(&replica))
    }

    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<ConfigError> {
        let refused = |key, reason: String| ConfigError::Cluster { key, reason };
        let own = self.address.iter().map(|address| ("cluster.address", address));
        let members = self.members.iter().map(|member| ("cluster.members", &member.address));
        let mut problems: Vec<ConfigError> =
            own.chain(members).filter_map(|(key, address)| Some(refused(key, check_address(address).err()?))).collect();
        if self.addresses().len() < self.members.len() {
            problems.push(refused("cluster.members", "a replica is named twice".to_owned()));
        }
        problems
    }

    /// Whether `members` can form a cluster with this replica among them.
    /// Nobody looks at them once it is formed.
    pub fn check_formation(&self, replica: u64) -> Result<(), ConfigError> {
        let refused = |reason: String| Err(ConfigError::Cluster { key: "cluster.members", reason });
        if !self.members.iter().any(|member| member.replica == replica) {
            return refused(format!("this replica must be named too, which is `replica = {replica}`"));
        }
        if self.members.iter().any(|member| member.replica == 0) {
            return refused("replicas are numbered from 1".to_owned());
        }
        if self.secret_file.is_none() {
            return refused("they need `cluster.secret_file`, the same secret on all of them".to_owned());
        }
        Ok(())
    }
}
