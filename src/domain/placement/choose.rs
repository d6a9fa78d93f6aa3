//! The choice.

use super::Policy;
use super::explanation::Rule;
use super::explanation::{Explanation, explain};
use super::rank::Order;
use crate::domain::fleet::Fleet;
use crate::domain::ids::{ServerId, SessionId};
use crate::domain::server::Server;
use crate::domain::session::{SessionKind, SessionSpec};

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub(in crate::domain) struct Wish<'a> {
    /// The id of a session that is known already.
    pub(in crate::domain) id: Option<&'a SessionId>,
    /// The session.
    pub(in crate::domain) spec: &'a SessionSpec,
    /// Servers that failed to create it.
    pub(in crate::domain) failed_on: &'a [ServerId],
}

impl Wish<'_> {
    pub(super) fn policy(&self, fleet: &Fleet) -> Policy {
        self.spec.placement.unwrap_or(fleet.settings().placement)
    }

    fn order(&self, fleet: &Fleet) -> Order {
        match self.policy(fleet) {
            Policy::Spread | Policy::Affinity => Order::LeastFirst,
            Policy::Pack => Order::MostFirst,
        }
    }
}

/// The first rule by which a server refuses a wish; `None` when it takes it.
pub(in crate::domain) fn refusal(fleet: &Fleet, server: &Server, wish: Wish<'_>) -> Option<Rule> {
    match fleet.standing(&server.id) {
        Some(standing) => standing.refusal(wish.spec.kind).or_else(|| refusal_of_this(fleet, server, wish)),
        None => Some(Rule::Unreachable),
    }
}

/// The first rule by which a server that takes some session of the kind
/// refuses this one.
fn refusal_of_this(fleet: &Fleet, server: &Server, wish: Wish<'_>) -> Option<Rule> {
    let owner_limit = match wish.spec.kind {
        SessionKind::Virtual => server.facts.limits.sessions_per_owner_max,
        SessionKind::Console => None,
    };
    if owner_limit.is_some_and(|max| fleet.virtual_sessions_of(&server.id, &wish.spec.owner) >= max) {
        return Some(Rule::OwnerLimit);
    }
    if wish.failed_on.contains(&server.id) {
        return Some(Rule::FailedBefore);
    }
    match &wish.spec.requirements {
        Some(expression) if !expression.holds(server) => Some(Rule::Requirements),
        _ => wish.id.filter(|id| fleet.is_set_aside(&server.id, id)).map(|_| Rule::IdTaken),
    }
}

/// Chooses a server. Costs the logarithm of the fleet when the expression's
/// set is kept, or a fact that it demands leads to its servers; and beyond that
/// one step for each server where the owner has as many sessions as allowed.
pub(in crate::domain) fn choose(fleet: &Fleet, wish: Wish<'_>) -> Option<ServerId> {
    if wish.policy(fleet) == Policy::Affinity {
        let of_owner = fleet.servers_of(&wish.spec.owner).map(|server| &server.id);
        if let Some(server) = choose_among(fleet, wish, of_owner) {
            return Some(server);
        }
    }
    let sets = fleet.server_sets();
    let expression = wish.spec.requirements.as_deref();
    if let Some(few) = expression.and_then(|expression| sets.narrow(expression)) {
        return choose_among(fleet, wish, few.into_iter());
    }
    sets.in_order(wish.spec.kind, wish.order(fleet), expression)
        .map(|rank| &rank.server)
        .find(|id| fleet.server(id).is_some_and(|server| refusal_of_this(fleet, server, wish).is_none()))
        .cloned()
}

/// Chooses a server, or says why there is none.
pub(in crate::domain) fn choose_or_explain(fleet: &Fleet, wish: Wish<'_>) -> Result<ServerId, Explanation> {
    choose(fleet, wish).ok_or_else(|| explain(fleet, wish))
}

/// The best of a few servers, if one of them takes the session.
pub(in crate::domain) fn choose_among<'a>(
    fleet: &Fleet,
    wish: Wish<'_>,
    servers: impl Iterator<Item = &'a ServerId>,
) -> Option<ServerId> {
    let order = wish.order(fleet);
    let is_affine = wish.policy(fleet) == Policy::Affinity;
    servers
        .filter_map(|id| fleet.server(id))
        .filter(|server| refusal(fleet, server, wish).is_none())
        .filter_map(|server| {
            let is_foreign = is_affine && fleet.virtual_sessions_of(&server.id, &wish.spec.owner) == 0;
            fleet.standing(&server.id).map(|standing| (is_foreign, standing.rank(&server.id, order)))
        })
        .min()
        .map(|(_, rank)| rank.server)
}
