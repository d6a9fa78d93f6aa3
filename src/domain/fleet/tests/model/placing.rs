//! Where sessions may go, worked out anew from the rules: every server is
//! looked at, nothing is kept.

use std::cmp::Ordering;

use super::shadow::{Link, Shadow, ShadowServer};
use super::wishes;
use super::{Check, ensure};
use crate::domain::host::{Health, OsFamily};
use crate::domain::ids::{Owner, ServerId, SessionId};
use crate::domain::placement::{Explanation, Policy, Rule, WEIGHT_TAG};
use crate::domain::session::{SessionKind, SessionSpec};
use crate::domain::time::Timestamp;

/// What a request asks for, and the servers that failed to give it.
#[derive(Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) spec: &'a SessionSpec,
    pub(super) failed_on: &'a [ServerId],
}

/// The first rule by which a server refuses a request, in the order of [`Rule`].
pub(super) fn refusal(shadow: &Shadow, id: &ServerId, session: &SessionId, wish: Wish<'_>) -> Option<Rule> {
    let Wish { spec, failed_on } = wish;
    let server = shadow.servers.get(id)?;
    let there = shadow.room_taken_on(id);
    let limits = server.facts.limits;
    let of = |kind| there.iter().filter(|(found, _)| *found == kind).count();
    let (console, virtual_) = (of(SessionKind::Console), of(SessionKind::Virtual));
    let own = there.iter().filter(|found| **found == (SessionKind::Virtual, spec.owner.clone())).count();
    let reached = |limit: Option<u32>, count: usize| limit.is_some_and(|limit| count >= limit as usize);
    let is_virtual = spec.kind == SessionKind::Virtual;
    let is_none_offered = if is_virtual {
        limits.virtual_sessions_max == Some(0) || limits.sessions_per_owner_max == Some(0)
    } else {
        !limits.console_sessions
    };
    let excludes = if is_virtual { console > 0 } else { console + virtual_ > 0 };
    [
        (shadow.is_closed(id), Rule::Closed),
        (server.link == Link::Broken, Rule::Interrupted),
        (matches!(server.link, Link::Lost { .. }), Rule::Unreachable),
        (matches!(server.health, Health::Unhealthy(_)), Rule::Unhealthy),
        (server.health == Health::InUse, Rule::InUse),
        (is_virtual && server.facts.os.family != OsFamily::Linux, Rule::OperatingSystem),
        (is_none_offered, Rule::Kind),
        (excludes, Rule::ConsoleExclusive),
        (is_virtual && reached(limits.virtual_sessions_max, virtual_), Rule::Full),
        (is_virtual && reached(limits.sessions_per_owner_max, own), Rule::OwnerLimit),
        (failed_on.contains(id), Rule::FailedBefore),
        (!wishes::holds(spec, id, &server.facts, &server.load), Rule::Requirements),
        (shadow.set_aside.contains_key(&(id.clone(), session.clone())), Rule::IdTaken),
    ]
    .into_iter()
    .find(|(refuses, _)| *refuses)
    .map(|(_, rule)| rule)
}

/// A server that could take a request now.
pub(super) fn taker<'a>(shadow: &'a Shadow, session: &SessionId, wish: Wish<'_>) -> Option<&'a ServerId> {
    shadow.servers.keys().find(|id| refusal(shadow, id, session, wish).is_none())
}

/// A placement keeps every rule, is the policy's best, and passes nobody over
/// who has waited for longer and could have had the place.
pub(super) fn check(shadow: &Shadow, at: Timestamp, id: &SessionId, server: &ServerId) -> Check {
    let Some(placed) = shadow.sessions.get(id) else { return Err(format!("{id} was placed and is not known")) };
    ensure!(shadow.servers.contains_key(server), "{id} was placed on {server}, which is not listed");
    ensure!(!shadow.closes.contains(server), "{id} was placed on {server}, although its closing was acknowledged");
    if let Some(rule) = refusal(shadow, server, id, placed.wish()) {
        return Err(format!("{id} was placed on {server}, which refuses it: {rule}"));
    }
    let eligible = shadow.servers.iter().filter(|(other, _)| refusal(shadow, other, id, placed.wish()).is_none());
    let policy = placed.spec.placement.unwrap_or(shadow.settings.placement);
    let standing = |id: &ServerId, server: &ShadowServer| Standing::of(shadow, at, id, server, &placed.spec.owner);
    let chosen = standing(server, &shadow.servers[server]);
    for (other, found) in eligible {
        let better = standing(other, found).compare(&chosen, policy) == Ordering::Less;
        ensure!(!better, "{id} was placed on {server} by {policy}, although {other} is better");
    }
    for (other, waiting) in shadow.waiting().filter(|(other, _)| *other != id) {
        let passed_over = waiting.arrival < placed.arrival && refusal(shadow, server, other, waiting.wish()).is_none();
        ensure!(!passed_over, "{id} got {server}, although {other} came before it and fits there");
    }
    Ok(())
}

/// An explanation counts each server once, under the first rule that refuses it.
pub(super) fn check_explanation(
    shadow: &Shadow,
    session: &SessionId,
    spec: &SessionSpec,
    explanation: &Explanation,
) -> Check {
    let wish = Wish { spec, failed_on: &[] };
    let mut naive = Explanation {
        servers: u32::try_from(shadow.servers.len()).map_err(|error| error.to_string())?,
        ..Explanation::default()
    };
    for id in shadow.servers.keys() {
        let Some(rule) = refusal(shadow, id, session, wish) else {
            return Err(format!("refused, although {id} could take the session"));
        };
        *naive.refused.entry(rule).or_default() += 1;
        naive.servers_refused.push((id.clone(), rule));
    }
    ensure!(*explanation == naive, "the refusal says {explanation:?}, but it is {naive:?}");
    Ok(())
}

/// What decides between servers that may take a session.
struct Standing {
    is_foreign: bool,
    is_avoided: bool,
    sessions: u64,
    weight_hundredths: u64,
    tie: u64,
}

impl Standing {
    fn of(shadow: &Shadow, at: Timestamp, id: &ServerId, server: &ShadowServer, owner: &Owner) -> Self {
        let there = shadow.room_taken_on(id);
        let weight_hundredths = match server.facts.tags.get(WEIGHT_TAG).map(String::as_str) {
            Some("3") => 300,
            Some("0.5") => 50,
            _ => 100,
        };
        Self {
            is_foreign: !there.contains(&(SessionKind::Virtual, owner.clone())),
            is_avoided: server.avoided_until.is_some_and(|until| until > at),
            sessions: there.len() as u64,
            weight_hundredths,
            tie: fnv1a(id.as_str()),
        }
    }

    fn compare(&self, other: &Self, policy: Policy) -> Ordering {
        let load = (self.sessions * other.weight_hundredths).cmp(&(other.sessions * self.weight_hundredths));
        let rest = |load: Ordering| self.is_avoided.cmp(&other.is_avoided).then(load).then(self.tie.cmp(&other.tie));
        match policy {
            Policy::Spread => rest(load),
            Policy::Pack => rest(load.reverse()),
            Policy::Affinity => self.is_foreign.cmp(&other.is_foreign).then(rest(load)),
        }
    }
}

/// The hash that decides between equals.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
