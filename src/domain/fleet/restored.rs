//! The state of a backup as the beginning of a new cluster.
//!
//! The old cluster may have gone on after the backup was made, and agents and
//! clients remember what it told them then. So whatever is counted goes on far
//! beyond where it could have come to: no log index, epoch or instruction of
//! the new cluster is one that the old one gave out.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Fleet, Stamp};
use crate::domain::cluster::Cluster;
use crate::domain::command::Command;
use crate::domain::ids::{Epoch, InstructionId, LogIndex, ReplicaId};
use crate::domain::key::{KeyPurpose, RetiredKey, SigningKey};

/// How far a new cluster's counters are ahead of those in the backup. At ten
/// thousand entries a second the old cluster would need three years to get
/// there; and 9,000 restorations later the numbers are still exact in JSON.
pub const LEAP: u64 = 1_000_000_000_000;

impl Fleet {
    /// Makes this state that of a new cluster, and says which entry of the new
    /// log it counts as. `index` is the entry of the old log that it was of,
    /// `last_replica` the highest number that a replica had there, and `keys`
    /// and `retired` those of the old keys that the new cluster can open.
    ///
    /// No agent is connected any more; who was invited or let in by the old
    /// cluster is not here, and no number of a replica is given again.
    pub fn begin_anew(
        &mut self,
        index: LogIndex,
        last_replica: ReplicaId,
        keys: Vec<SigningKey>,
        retired: Vec<RetiredKey>,
    ) -> LogIndex {
        let index = LogIndex(index.0.max(self.index_applied.0).saturating_add(LEAP));
        self.last_epoch = Epoch(self.last_epoch.0.saturating_add(LEAP));
        self.last_instruction = InstructionId(self.last_instruction.0.saturating_add(LEAP));
        let stamp = Stamp { index, at: self.at };
        let holders: BTreeSet<ReplicaId> = self.servers.values().filter_map(|server| server.link.held_by()).collect();
        for replica in holders {
            self.apply(stamp, Command::ReplicaSilent { replica });
        }
        self.cluster = Cluster { last_replica: last_replica.max(self.cluster.last_replica), ..Cluster::default() };
        let access = Arc::make_mut(&mut self.access);
        access.keys = keys.into_iter().map(|key| (key.purpose, Arc::new(key))).collect();
        let retired = retired.into_iter().map(|retired| (retired.key.id.clone(), Arc::new(retired)));
        access.retired = retired.collect();
        if !access.keys.contains_key(&KeyPurpose::Authority) {
            // Another authority will sign, and nobody can show a certificate of this one.
            access.gateways = imbl::OrdMap::new();
        }
        self.index_applied = index;
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::audit::Digest;
    use crate::domain::fleet::invariants::violations;
    use crate::domain::gateway::GatewayName;
    use crate::domain::ids::{AgentInstance, FolderId, InvitationId, KeyId, ServerId};
    use crate::domain::report::Report;
    use crate::domain::time::{Millis, Timestamp};

    fn fleet() -> Fleet {
        let mut fleet = Fleet::default();
        let invitation = |text: &str| InvitationId::new(text).expect("valid");
        let invite = |text: &str| Command::InviteReplica {
            id: invitation(text),
            within: Millis(60_000),
            replaces: None,
            by: ReplicaId(1),
        };
        let connect = |server: &str, via: u64| Command::ConnectAgent {
            server: ServerId::new(server).expect("valid"),
            instance: AgentInstance::new("run").expect("valid"),
            via: ReplicaId(via),
            report_interval: Millis(30_000),
            report: Report::default(),
        };
        let commands = [
            invite("a"),
            invite("b"),
            Command::AdmitReplica {
                invitation: invitation("a"),
                folder: FolderId::new("f").expect("valid"),
                address: "b:47100".to_owned(),
                proof: crate::domain::request::Fingerprint([7; 32]),
                above: ReplicaId(3),
            },
            Command::RotateAuthority { to: 1 },
            Command::CertifyGateway {
                gateway: GatewayName::new("gw").expect("valid"),
                certificate: Digest([1; 32]),
                until: Timestamp(1_000),
            },
            Command::InstallKey {
                id: KeyId::new("k").expect("valid"),
                purpose: KeyPurpose::Authority,
                sealed: vec![1],
            },
            connect("s1", 1),
            connect("s2", 2),
        ];
        for (index, command) in (1..).zip(commands) {
            let stamp = Stamp { index: LogIndex(index), at: Timestamp(index) };
            fleet.advance(stamp);
            fleet.apply(stamp, command);
        }
        fleet
    }

    #[test]
    fn nobody_is_connected_or_let_in_and_no_number_comes_again() {
        let old = fleet();
        let mut new = old.clone();
        let index = new.begin_anew(LogIndex(9), ReplicaId(3), Vec::new(), Vec::new());
        assert_eq!((index, new.applied()), (LogIndex(9 + LEAP), index));
        assert_eq!(new.server_count(), 2);
        assert!(new.servers().all(|server| server.link.held_by().is_none() && !server.link.is_up()));
        assert_eq!(new.cluster(), &Cluster { last_replica: ReplicaId(4), ..Cluster::default() });
        assert!(new.key(KeyPurpose::Authority).is_none());
        assert_eq!(new.gateway_certificates().count(), 0, "nobody can show one of the authority to come");
        let server = ServerId::new("s1").expect("valid");
        assert!(new.oldest_instruction(&server).0 > old.oldest_instruction(&server).0 + LEAP - 1);
        assert!(new.last_epoch.0 >= LEAP + 2);
        assert_eq!(new.journal().last().map(|position| position.index), Some(index), "the journal tells of it");
        assert_eq!(violations(&new), []);
    }

    #[test]
    fn keys_that_can_be_opened_stay() {
        let mut fleet = fleet();
        let key = SigningKey { sealed: vec![2], ..(**fleet.key(KeyPurpose::Authority).expect("installed")).clone() };
        fleet.begin_anew(LogIndex(9), ReplicaId(0), vec![key.clone()], Vec::new());
        assert_eq!(fleet.key(KeyPurpose::Authority).map(|key| (**key).clone()), Some(key));
        assert_eq!(fleet.gateway_certificates().count(), 1, "and what was signed with them is good");
    }

    #[test]
    fn what_was_restored_can_be_restored_again() {
        let mut fleet = fleet();
        let first = fleet.begin_anew(LogIndex(9), ReplicaId(3), Vec::new(), Vec::new());
        assert_eq!(fleet.begin_anew(first, ReplicaId(3), Vec::new(), Vec::new()), LogIndex(9 + 2 * LEAP));
    }
}
