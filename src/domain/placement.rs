//! Placement: which server gets a session.
//!
//! A pure function of committed state. Of the servers that may take the
//! session, the one with the fewest sessions is chosen; among equals a stable
//! hash decides, so that every replica chooses the same one and neighbours in
//! the alphabet do not fill up first.
//!
//! The servers that can take *some* session of a kind are kept in the order
//! of preference (see `fleet::index`), so the first of them is usually the
//! answer and a placement does not walk through the fleet.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::fleet::Fleet;
use super::host::{Health, OsFamily};
use super::ids::ServerId;
use super::requirements::Expression;
use super::server::Server;
use super::session::{SessionKind, SessionSpec};

/// A rule that can refuse a server, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Rule {
    /// An operator closed it.
    Closed,
    /// Its agent is not connected.
    Unreachable,
    /// Its desktop server does not work.
    Unhealthy,
    /// Somebody works at it outside the broker.
    InUse,
    /// Virtual sessions need Linux.
    OperatingSystem,
    /// It does not offer sessions of this kind.
    Kind,
    /// It has a console session, or virtual sessions that exclude one.
    ConsoleExclusive,
    /// It has as many virtual sessions as it takes.
    Full,
    /// The owner has as many sessions there as one may have.
    OwnerLimit,
    /// The requirements do not hold for it.
    Requirements,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Unreachable => "agent not connected",
            Self::Unhealthy => "desktop server unhealthy",
            Self::InUse => "in use by a logged-in user",
            Self::OperatingSystem => "virtual sessions need Linux",
            Self::Kind => "sessions of this type not offered",
            Self::ConsoleExclusive => "console and virtual sessions exclude each other",
            Self::Full => "full",
            Self::OwnerLimit => "owner has as many sessions there as allowed",
            Self::Requirements => "requirements not met",
        })
    }
}

/// Why no server was found: how many servers each rule refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Explanation {
    /// Servers there are.
    pub servers: u32,
    /// Servers refused, by the first rule that did.
    pub refused: BTreeMap<Rule, u32>,
    /// Some of the refused servers, each with the first rule that did.
    pub servers_refused: Vec<(ServerId, Rule)>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.servers == 0 {
            return f.write_str("no server is connected");
        }
        for (number, (rule, count)) in self.refused.iter().enumerate() {
            let separator = if number == 0 { "" } else { ", " };
            write!(f, "{separator}{count} of {} servers: {rule}", self.servers)?;
        }
        Ok(())
    }
}

/// Sessions that take up room on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Console sessions.
    pub console: u32,
    /// Virtual sessions.
    pub virtual_: u32,
}

impl Counts {
    /// Both kinds.
    pub const fn total(self) -> u32 {
        self.console + self.virtual_
    }
}

/// Place of a server in the order of preference: fewest sessions first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    sessions: u32,
    tie: u64,
    pub(super) server: ServerId,
}

impl Rank {
    /// The rank of a server for sessions of a kind, or the rule by which it
    /// takes none.
    pub(super) fn of(server: &Server, kind: SessionKind, closed: bool, counts: Counts) -> Result<Self, Rule> {
        match refusal_of_any(server, kind, closed, counts) {
            Some(rule) => Err(rule),
            None => {
                Ok(Self { sessions: counts.total(), tie: stable_hash(server.id.as_str()), server: server.id.clone() })
            }
        }
    }
}

/// The first rule by which a server refuses every session of a kind.
fn refusal_of_any(server: &Server, kind: SessionKind, closed: bool, counts: Counts) -> Option<Rule> {
    if closed {
        return Some(Rule::Closed);
    }
    if !server.link.is_up() {
        return Some(Rule::Unreachable);
    }
    match server.health {
        Health::Healthy => {}
        Health::Unhealthy(_) => return Some(Rule::Unhealthy),
        Health::InUse => return Some(Rule::InUse),
    }
    let limits = server.facts.limits;
    match kind {
        SessionKind::Console if !limits.console_sessions => Some(Rule::Kind),
        SessionKind::Console if counts.total() > 0 => Some(Rule::ConsoleExclusive),
        SessionKind::Virtual if server.facts.os.family != OsFamily::Linux => Some(Rule::OperatingSystem),
        SessionKind::Virtual if limits.virtual_sessions_max == Some(0) => Some(Rule::Kind),
        SessionKind::Virtual if counts.console > 0 => Some(Rule::ConsoleExclusive),
        SessionKind::Virtual if limits.virtual_sessions_max.is_some_and(|max| counts.virtual_ >= max) => {
            Some(Rule::Full)
        }
        SessionKind::Console | SessionKind::Virtual => None,
    }
}

/// The first rule by which a server that takes some session of the kind
/// refuses this one.
fn refusal_of_this(fleet: &Fleet, server: &Server, spec: &SessionSpec, requirements: &Requirements) -> Option<Rule> {
    let owner_limit = match spec.kind {
        SessionKind::Virtual => server.facts.limits.sessions_per_owner_max,
        SessionKind::Console => None,
    };
    if owner_limit.is_some_and(|max| fleet.virtual_sessions_of(&server.id, &spec.owner) >= max) {
        return Some(Rule::OwnerLimit);
    }
    match requirements {
        Requirements::Anything => None,
        Requirements::Holds(expression) if expression.holds(server) => None,
        Requirements::Holds(_) | Requirements::Nothing => Some(Rule::Requirements),
    }
}

/// Chooses a server, or says why there is none.
pub(super) fn choose(fleet: &Fleet, spec: &SessionSpec) -> Result<ServerId, Explanation> {
    let requirements = requirements_of(spec);
    let mut refused: BTreeMap<Rule, u32> = BTreeMap::new();
    for server in fleet.servers_by_preference(spec.kind) {
        match refusal_of_this(fleet, server, spec, &requirements) {
            None => return Ok(server.id.clone()),
            Some(rule) => *refused.entry(rule).or_default() += 1,
        }
    }
    // The others are counted already, by the rule that keeps them from any
    // session of the kind.
    refused.extend(fleet.refusals(spec.kind));
    let servers = u32::try_from(fleet.server_count()).unwrap_or(u32::MAX);
    Err(Explanation { servers, refused, servers_refused: Vec::new() })
}

/// The best of a few servers, if one of them takes the session.
pub(super) fn choose_among<'a>(
    fleet: &Fleet,
    spec: &SessionSpec,
    servers: impl Iterator<Item = &'a ServerId>,
) -> Option<ServerId> {
    let requirements = requirements_of(spec);
    servers
        .filter_map(|id| fleet.rank(id, spec.kind).zip(fleet.server(id)))
        .filter(|(_, server)| refusal_of_this(fleet, server, spec, &requirements).is_none())
        .min_by_key(|(rank, _)| *rank)
        .map(|(rank, _)| rank.server.clone())
}

/// What a server must be.
enum Requirements {
    Anything,
    Holds(Expression),
    /// The edge refuses expressions that do not parse; one that comes from a
    /// version with another grammar holds for no server.
    Nothing,
}

fn requirements_of(spec: &SessionSpec) -> Requirements {
    match Expression::parse(spec.requirements.as_deref().unwrap_or_default()) {
        Ok(None) => Requirements::Anything,
        Ok(Some(expression)) => Requirements::Holds(expression),
        Err(_) => Requirements::Nothing,
    }
}

/// FNV-1a, 64 bits: the same on every replica and in every version.
fn stable_hash(text: &str) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    text.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}
