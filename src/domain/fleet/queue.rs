//! Room that appeared goes to those who wait for it.

use std::collections::BTreeMap;

use imbl::OrdSet;

use super::Fleet;
use super::apply::Transition;
use super::sessions;
use crate::domain::ids::{ServerId, SessionId};
use crate::domain::placement::{self, Wish};
use crate::domain::session::{Session, SessionKind};

impl Session {
    /// What is to be placed.
    pub(super) fn wish(&self) -> Wish<'_> {
        Wish { id: Some(&self.id), spec: &self.spec, failed_on: &self.failed_on }
    }
}

/// Places whom it can on the servers that may now take more, in the order of
/// arrival; one that fits nowhere does not hold up the others. The other
/// servers could take none of them before, and cannot now.
pub(super) fn place_waiting(t: &mut Transition<'_>, grown: &OrdSet<ServerId>) {
    // For each server the first who could have it. It stays so until somebody
    // is placed there, or that one elsewhere.
    let mut firsts: BTreeMap<ServerId, u64> = BTreeMap::new();
    let mut to_ask: Vec<ServerId> = grown.iter().cloned().collect();
    let mut ids: BTreeMap<u64, SessionId> = BTreeMap::new();
    loop {
        for server in to_ask.drain(..) {
            if let Some((arrival, id)) = first_for(t.fleet, &server) {
                ids.insert(arrival, id.clone());
                firsts.insert(server, arrival);
            }
        }
        let Some(arrival) = firsts.values().min().copied() else { return };
        let Some(session) = ids.get(&arrival).and_then(|id| t.fleet.session(id)).cloned() else { return };
        let Some(chosen) = placement::choose_among(t.fleet, session.wish(), firsts.keys()) else { return };
        sessions::place(t, &session.id, chosen.clone());
        to_ask.extend(
            firsts.iter().filter(|(server, first)| **first == arrival || **server == chosen).map(|(s, _)| s.clone()),
        );
        for server in &to_ask {
            firsts.remove(server);
        }
    }
}

/// The first in the order of arrival whom a server could take.
fn first_for<'a>(fleet: &'a Fleet, server: &ServerId) -> Option<(u64, &'a SessionId)> {
    let standing = fleet.standing(server)?;
    if standing.refusal(SessionKind::Console).is_some() && standing.refusal(SessionKind::Virtual).is_some() {
        return None;
    }
    let server = fleet.server(server)?;
    fleet
        .index
        .waiting
        .groups_for(fleet.index.sets.facts_of(&server.id))
        .filter(|group| standing.refusal(group.kind).is_none())
        .filter(|group| group.requirements.as_ref().is_none_or(|expression| expression.holds(&**server)))
        .filter_map(|group| {
            fleet.index.waiting.of_group(group).find(|(_, id)| {
                fleet.session(id).is_some_and(|session| placement::refusal(fleet, server, session.wish()).is_none())
            })
        })
        .min_by_key(|(arrival, _)| *arrival)
}
