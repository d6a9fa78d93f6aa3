//! Why no server was found.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Policy;
use super::choose::{Wish, choose, refusal};
use crate::domain::fleet::Fleet;
use crate::domain::ids::{ServerId, SessionId};
use crate::domain::server::Server;
use crate::domain::session::{SessionKind, SessionSpec};

/// Servers that an explanation lists one by one.
pub const SERVERS_LISTED_MAX: usize = 100;

/// A rule that can refuse a server, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Rule {
    /// An operator closed it.
    Closed,
    /// The connection to its agent broke a moment ago.
    Interrupted,
    /// Nothing was heard of its agent for too long.
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
    /// It failed to create this very session.
    FailedBefore,
    /// The requirements do not hold for it.
    Requirements,
    /// It has another session of the same id.
    IdTaken,
}

impl Rule {
    /// The name in answers of the broker; it stays the same.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "CLOSED",
            Self::Interrupted => "INTERRUPTED",
            Self::Unreachable => "UNREACHABLE",
            Self::Unhealthy => "UNHEALTHY",
            Self::InUse => "IN_USE",
            Self::OperatingSystem => "OPERATING_SYSTEM",
            Self::Kind => "TYPE_NOT_OFFERED",
            Self::ConsoleExclusive => "CONSOLE_EXCLUSIVE",
            Self::Full => "FULL",
            Self::OwnerLimit => "OWNER_LIMIT",
            Self::FailedBefore => "FAILED_BEFORE",
            Self::Requirements => "REQUIREMENTS",
            Self::IdTaken => "ID_TAKEN",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Interrupted => "agent connection interrupted",
            Self::Unreachable => "agent not connected",
            Self::Unhealthy => "desktop server unhealthy",
            Self::InUse => "in use by a logged-in user",
            Self::OperatingSystem => "virtual sessions need Linux",
            Self::Kind => "sessions of this type not offered",
            Self::ConsoleExclusive => "console and virtual sessions exclude each other",
            Self::Full => "full",
            Self::OwnerLimit => "owner has as many sessions there as allowed",
            Self::FailedBefore => "failed to create this session before",
            Self::Requirements => "requirements not met",
            Self::IdTaken => "has another session of the same id",
        })
    }
}

/// Why no server was found: how many servers each rule refused, and the first
/// servers one by one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Explanation {
    /// Servers there are.
    pub servers: u32,
    /// Servers refused, by the first rule that did.
    pub refused: BTreeMap<Rule, u32>,
    /// The first [`SERVERS_LISTED_MAX`] servers by id that are refused, each
    /// with the first rule that refuses it.
    pub servers_refused: Vec<(ServerId, Rule)>,
}

impl Explanation {
    /// The counts alone, without the servers one by one.
    #[must_use]
    pub fn counts(&self) -> Self {
        Self { servers: self.servers, refused: self.refused.clone(), servers_refused: Vec::new() }
    }
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
        for (number, (server, rule)) in self.servers_refused.iter().enumerate() {
            let separator = if number == 0 { " (" } else { "; " };
            write!(f, "{separator}{server}: {rule}")?;
        }
        if !self.servers_refused.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// Why a wish that fits nowhere fits nowhere.
///
/// Costs what the owner's sessions and the listed servers cost: the servers
/// that take no session of the kind are counted as they change, three rules name
/// their servers, and the others are those with unmet requirements.
pub(in crate::domain) fn explain(fleet: &Fleet, wish: Wish<'_>) -> Explanation {
    let mut refused: BTreeMap<Rule, u32> = fleet.refusals(wish.spec.kind).collect();
    let mut left = fleet.servers_that_take(wish.spec.kind);
    let count = |servers: &mut dyn Iterator<Item = &Arc<Server>>, rule| {
        servers.filter(|server| refusal(fleet, server, wish) == Some(rule)).count()
    };
    let owner_limit = match wish.spec.kind {
        SessionKind::Virtual => count(&mut fleet.servers_of(&wish.spec.owner), Rule::OwnerLimit),
        SessionKind::Console => 0,
    };
    let mut failed = wish.failed_on.iter().filter_map(|id| fleet.server(id));
    let failed_before = count(&mut failed, Rule::FailedBefore);
    let mut taken = wish.id.into_iter().flat_map(|id| fleet.servers_that_set_aside(id));
    let id_taken = count(&mut taken, Rule::IdTaken);
    let counts = [(Rule::OwnerLimit, owner_limit), (Rule::FailedBefore, failed_before), (Rule::IdTaken, id_taken)];
    for (rule, number) in counts {
        if number > 0 {
            refused.insert(rule, u32::try_from(number).unwrap_or(u32::MAX));
        }
        left = left.saturating_sub(number);
    }
    if left > 0 {
        refused.insert(Rule::Requirements, u32::try_from(left).unwrap_or(u32::MAX));
    }
    let servers_refused = fleet
        .servers()
        .take(SERVERS_LISTED_MAX)
        .filter_map(|server| refusal(fleet, server, wish).map(|rule| (server.id.clone(), rule)))
        .collect();
    Explanation { servers: server_count(fleet), refused, servers_refused }
}

/// How every server fares with a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The policy that decides between servers.
    pub policy: Policy,
    /// The server that would be chosen now.
    pub chosen: Option<ServerId>,
    /// Servers that no rule refuses.
    pub eligible: u32,
    /// The others.
    pub explanation: Explanation,
}

/// Looks at every server; for people who ask, not for placing.
pub fn survey(fleet: &Fleet, id: Option<&SessionId>, spec: &SessionSpec, failed_on: &[ServerId]) -> Survey {
    let wish = Wish { id, spec, failed_on };
    let mut explanation = Explanation { servers: server_count(fleet), ..Explanation::default() };
    let mut eligible = 0;
    for server in fleet.servers() {
        let Some(rule) = refusal(fleet, server, wish) else {
            eligible += 1;
            continue;
        };
        *explanation.refused.entry(rule).or_default() += 1;
        if explanation.servers_refused.len() < SERVERS_LISTED_MAX {
            explanation.servers_refused.push((server.id.clone(), rule));
        }
    }
    Survey { policy: wish.policy(fleet), chosen: choose(fleet, wish), eligible, explanation }
}

fn server_count(fleet: &Fleet) -> u32 {
    u32::try_from(fleet.server_count()).unwrap_or(u32::MAX)
}
