//! Replicas join and leave; their certificates change authority.

use super::agents;
use super::apply::Transition;
use crate::domain::cluster::{ADMITTED_MAX, Admission, INVITATIONS_MAX, Invitation};
use crate::domain::command::{Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::ids::{FolderId, InvitationId, ReplicaId};
use crate::domain::request::Fingerprint;
use crate::domain::time::Millis;

/// Opens an invitation. The same again is no error: its answer was lost.
pub(super) fn invite(
    t: &mut Transition<'_>,
    id: InvitationId,
    within: Millis,
    replaces: Option<ReplicaId>,
    by: ReplicaId,
) -> Outcome {
    let now = t.stamp.at;
    let open = t.fleet.cluster.invitations.values().filter(|invitation| invitation.expires_at > now).count();
    match t.fleet.cluster.invitations.get(&id) {
        Some(known) if known.replaces == replaces => Outcome::Done,
        Some(_) => Outcome::Refused(Refusal::Exists),
        None if open >= INVITATIONS_MAX => Outcome::Refused(Refusal::TooMany),
        None => {
            t.emit(Event::ReplicaInvited { id, invitation: Invitation { expires_at: now + within, replaces, by } });
            Outcome::Done
        }
    }
}

/// Takes an invitation back: nobody comes with it any more.
pub(super) fn revoke(t: &mut Transition<'_>, id: InvitationId) -> Outcome {
    if t.fleet.cluster.admitted.values().any(|admission| admission.invitation == id) {
        return Outcome::Refused(Refusal::InvitationUsed);
    }
    if !t.fleet.cluster.invitations.contains_key(&id) {
        return Outcome::Refused(Refusal::UnknownInvitation);
    }
    t.emit(Event::InvitationRevoked { id });
    Outcome::Done
}

/// Lets a replica in, under a number that was never given before: also above
/// `above`, the highest number that its proposer knows of.
pub(super) fn admit(
    t: &mut Transition<'_>,
    invitation: InvitationId,
    folder: FolderId,
    address: String,
    proof: Fingerprint,
    above: ReplicaId,
) -> Outcome {
    let cluster = &t.fleet.cluster;
    // It asks again when the answer was lost.
    let before = cluster.admitted.iter().find(|(_, admission)| admission.invitation == invitation);
    if let Some((replica, admission)) = before {
        return if admission.folder == folder && admission.proof == proof {
            Outcome::Admitted { replica: *replica }
        } else {
            Outcome::Refused(Refusal::InvitationUsed)
        };
    }
    let Some(open) = cluster.invitations.get(&invitation).filter(|open| open.expires_at > t.stamp.at) else {
        return Outcome::Refused(Refusal::UnknownInvitation);
    };
    let place_is_taken =
        open.replaces.is_some() && cluster.admitted.values().any(|admission| admission.replaces == open.replaces);
    if place_is_taken {
        return Outcome::Refused(Refusal::InvitationUsed);
    }
    if cluster.admitted.len() >= ADMITTED_MAX {
        return Outcome::Refused(Refusal::TooMany);
    }
    let replica = ReplicaId(cluster.last_replica.0.max(above.0).saturating_add(1));
    let admission = Admission { invitation, folder, proof, address, replaces: open.replaces };
    t.emit(Event::ReplicaAdmitted { replica, admission });
    Outcome::Admitted { replica }
}

/// A replica is to leave, or was never to come. Its number is not given again,
/// and the agents that it holds are welcome elsewhere.
pub(super) fn retire(t: &mut Transition<'_>, replica: ReplicaId) -> Outcome {
    agents::replica_gone(t, replica);
    t.emit(Event::ReplicaRetired { replica });
    Outcome::Done
}

/// Moves on to the next authority; `to` must be the one after the current.
pub(super) fn rotate_authority(t: &mut Transition<'_>, to: u32) -> Outcome {
    let current = t.fleet.cluster.authority;
    if to == current {
        return Outcome::Done;
    }
    if current.checked_add(1) != Some(to) {
        return Outcome::Refused(Refusal::WrongState(format!("signed by authority {current}")));
    }
    t.emit(Event::AuthorityRotated { to });
    Outcome::Done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Fleet;
    use crate::domain::command::Command;
    use crate::domain::fleet::Stamp;
    use crate::domain::ids::LogIndex;
    use crate::domain::time::Timestamp;

    fn run(fleet: &mut Fleet, at: u64, command: Command) -> Outcome {
        let stamp = Stamp { index: LogIndex(at), at: Timestamp(at) };
        fleet.advance(stamp);
        fleet.apply(stamp, command).outcome
    }

    fn invitation(text: &str) -> InvitationId {
        InvitationId::new(text).expect("valid")
    }

    fn invite(id: &str) -> Command {
        Command::InviteReplica { id: invitation(id), within: Millis(1_000), replaces: None, by: ReplicaId(1) }
    }

    fn admit(id: &str, folder: &str) -> Command {
        Command::AdmitReplica {
            invitation: invitation(id),
            folder: FolderId::new(folder).expect("valid"),
            address: "b:47100".to_owned(),
            proof: Fingerprint([folder.as_bytes()[0]; 32]),
            above: ReplicaId(3),
        }
    }

    #[test]
    fn an_invitation_lets_one_replica_in_once_and_in_time() {
        let mut fleet = Fleet::default();
        assert_eq!(run(&mut fleet, 1, admit("a", "f")), Outcome::Refused(Refusal::UnknownInvitation));
        assert_eq!(run(&mut fleet, 2, invite("a")), Outcome::Done);
        assert_eq!(run(&mut fleet, 3, invite("a")), Outcome::Done, "its answer may have been lost");
        assert_eq!(run(&mut fleet, 4, admit("a", "f")), Outcome::Admitted { replica: ReplicaId(4) });
        assert_eq!(run(&mut fleet, 5, admit("a", "f")), Outcome::Admitted { replica: ReplicaId(4) }, "asked again");
        assert_eq!(run(&mut fleet, 6, admit("a", "g")), Outcome::Refused(Refusal::InvitationUsed));
        let stranger = Command::AdmitReplica {
            invitation: invitation("a"),
            folder: FolderId::new("f").expect("valid"),
            address: "b:47100".to_owned(),
            proof: Fingerprint([9; 32]),
            above: ReplicaId(3),
        };
        let refused = Outcome::Refused(Refusal::InvitationUsed);
        assert_eq!(run(&mut fleet, 7, stranger), refused, "who knows the folder is not yet the one");
        assert_eq!(run(&mut fleet, 7, invite("b")), Outcome::Done);
        assert_eq!(run(&mut fleet, 1_007, admit("b", "g")), Outcome::Refused(Refusal::UnknownInvitation), "too late");
    }

    #[test]
    fn a_number_is_never_given_again() {
        let mut fleet = Fleet::default();
        run(&mut fleet, 1, invite("a"));
        run(&mut fleet, 2, admit("a", "f"));
        assert_eq!(run(&mut fleet, 3, Command::RetireReplica { replica: ReplicaId(4) }), Outcome::Done);
        assert_eq!(run(&mut fleet, 4, admit("a", "f")), Outcome::Refused(Refusal::UnknownInvitation));
        run(&mut fleet, 5, invite("b"));
        assert_eq!(run(&mut fleet, 6, admit("b", "f")), Outcome::Admitted { replica: ReplicaId(5) });
    }

    #[test]
    fn a_replica_whose_place_another_one_takes_is_not_brought_in_again() {
        let mut fleet = Fleet::default();
        run(&mut fleet, 1, invite("a"));
        run(&mut fleet, 2, admit("a", "f"));
        let (id, replaces) = (invitation("b"), Some(ReplicaId(4)));
        let replacing = Command::InviteReplica { id, within: Millis(1_000), replaces, by: ReplicaId(1) };
        run(&mut fleet, 3, replacing);
        assert!(fleet.cluster().admitted.contains_key(&ReplicaId(4)), "it is there until the other one comes");
        assert_eq!(run(&mut fleet, 4, admit("b", "g")), Outcome::Admitted { replica: ReplicaId(5) });
        assert_eq!(fleet.cluster().admitted.keys().collect::<Vec<_>>(), [&ReplicaId(5)]);
    }

    #[test]
    fn an_invitation_that_was_taken_back_lets_nobody_in() {
        let mut fleet = Fleet::default();
        let revoke = |id: &str| Command::RevokeInvitation { id: invitation(id) };
        run(&mut fleet, 1, invite("a"));
        run(&mut fleet, 2, invite("b"));
        assert_eq!(run(&mut fleet, 3, revoke("a")), Outcome::Done);
        assert_eq!(run(&mut fleet, 4, admit("a", "f")), Outcome::Refused(Refusal::UnknownInvitation));
        assert_eq!(run(&mut fleet, 5, revoke("a")), Outcome::Refused(Refusal::UnknownInvitation));
        run(&mut fleet, 6, admit("b", "f"));
        assert_eq!(run(&mut fleet, 7, revoke("b")), Outcome::Refused(Refusal::InvitationUsed), "it is too late");
    }

    #[test]
    fn invitations_are_bounded_and_expired_ones_make_room() {
        let mut fleet = Fleet::default();
        for number in 0..INVITATIONS_MAX {
            assert_eq!(run(&mut fleet, 1, invite(&format!("i{number}"))), Outcome::Done);
        }
        assert_eq!(run(&mut fleet, 2, invite("more")), Outcome::Refused(Refusal::TooMany));
        assert_eq!(run(&mut fleet, 1_001, invite("more")), Outcome::Done);
        assert_eq!(fleet.cluster().invitations.len(), 1, "those that expired are gone");
    }

    #[test]
    fn authorities_follow_each_other() {
        let mut fleet = Fleet::default();
        assert_eq!(run(&mut fleet, 1, Command::RotateAuthority { to: 1 }), Outcome::Done);
        assert_eq!(run(&mut fleet, 2, Command::RotateAuthority { to: 1 }), Outcome::Done);
        assert!(matches!(run(&mut fleet, 3, Command::RotateAuthority { to: 3 }), Outcome::Refused(_)));
        assert_eq!(fleet.cluster().authority, 1);
    }
}
