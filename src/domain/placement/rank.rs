//! Where a server stands.

use super::explanation::Rule;
use super::stable_hash;
use crate::domain::host::{Health, OsFamily};
use crate::domain::ids::ServerId;
use crate::domain::server::{Link, Server, Unavailability};
use crate::domain::session::SessionKind;

/// The tag that says how much a server takes compared with others: a decimal
/// number from 0.01 to 1000. Without it, or when it is no such number, the
/// weight is 1.
pub const WEIGHT_TAG: &str = "berth:weight";

/// Weights are counted in hundredths.
const WEIGHT_ONE: u64 = 100;
const WEIGHT_MAX: u64 = 1000 * WEIGHT_ONE;
/// Load is counted in billionths of a session for each hundredth of weight, so
/// that loads of different weights compare as fractions do.
const LOAD_SCALE: u64 = 1_000_000_000;

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
        self.console.saturating_add(self.virtual_)
    }
}

/// In which order servers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::domain) enum Order {
    /// Least loaded first.
    LeastFirst,
    /// Most loaded first.
    MostFirst,
}

/// Place of a server in an order: the smaller, the better.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::domain) struct Rank {
    avoided: bool,
    load: u64,
    tie: u64,
    pub(in crate::domain) server: ServerId,
}

/// The standing of a server: how loaded it is, and by which rule it takes no
/// session of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::domain) struct Standing {
    /// It failed to create a session a while ago: others are asked first.
    avoided: bool,
    load: u64,
    tie: u64,
    console: Option<Rule>,
    virtual_: Option<Rule>,
}

impl Standing {
    pub(in crate::domain) fn of(server: &Server, closed: bool, counts: Counts) -> Self {
        Self {
            avoided: server.avoided_until.is_some(),
            load: u64::from(counts.total()) * LOAD_SCALE / weight(server),
            tie: stable_hash(&[server.id.as_str()]),
            console: refusal_of_any(server, SessionKind::Console, closed, counts),
            virtual_: refusal_of_any(server, SessionKind::Virtual, closed, counts),
        }
    }

    /// The rule by which the server takes no session of a kind; `None` when it
    /// takes some.
    pub(in crate::domain) const fn refusal(&self, kind: SessionKind) -> Option<Rule> {
        match kind {
            SessionKind::Console => self.console,
            SessionKind::Virtual => self.virtual_,
        }
    }

    /// Why the server takes no session of any kind.
    pub(in crate::domain) fn unavailability(&self) -> Option<Unavailability> {
        let (Some(rule), Some(_)) = (self.virtual_, self.console) else { return None };
        Some(match rule {
            Rule::Closed => Unavailability::ServerClosed,
            Rule::Interrupted => Unavailability::Unknown,
            Rule::Unreachable => Unavailability::UnreachableAgent,
            Rule::Unhealthy => Unavailability::UnhealthyDcvServer,
            Rule::InUse => Unavailability::ExistingLoggedInUser,
            _ => Unavailability::ServerFull,
        })
    }

    /// The place in an order.
    pub(super) fn rank(&self, server: &ServerId, order: Order) -> Rank {
        let load = match order {
            Order::LeastFirst => self.load,
            Order::MostFirst => u64::MAX - self.load,
        };
        Rank { avoided: self.avoided, load, tie: self.tie, server: server.clone() }
    }

    /// Whether a session may fit now that did not fit when the server stood as
    /// in `before`.
    pub(in crate::domain) fn takes_more_than(&self, before: &Self) -> bool {
        let newly = |kind| self.refusal(kind).is_none() && before.refusal(kind).is_some();
        let takes_some = self.console.is_none() || self.virtual_.is_none();
        newly(SessionKind::Console) || newly(SessionKind::Virtual) || (takes_some && self.load < before.load)
    }
}

/// Weight in hundredths.
fn weight(server: &Server) -> u64 {
    server.facts.tags.get(WEIGHT_TAG).and_then(|text| hundredths(text)).unwrap_or(WEIGHT_ONE)
}

/// A decimal number with at most two digits behind the point, in hundredths.
/// Read without floating point: replicas must agree.
fn hundredths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    let digits = |text: &str| text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 2 || text.trim().ends_with('.') {
        return None;
    }
    let fraction = match fraction.len() {
        0 => 0,
        1 => fraction.parse::<u64>().ok()? * 10,
        _ => fraction.parse::<u64>().ok()?,
    };
    let weight = whole.parse::<u64>().ok()? * WEIGHT_ONE + fraction;
    (1..=WEIGHT_MAX).contains(&weight).then_some(weight)
}

/// The first rule by which a server refuses every session of a kind.
fn refusal_of_any(server: &Server, kind: SessionKind, closed: bool, counts: Counts) -> Option<Rule> {
    if closed {
        return Some(Rule::Closed);
    }
    match server.link {
        Link::Up { .. } => {}
        Link::Interrupted { .. } => return Some(Rule::Interrupted),
        Link::Lost { .. } => return Some(Rule::Unreachable),
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
        SessionKind::Virtual if limits.virtual_sessions_max == Some(0) || limits.sessions_per_owner_max == Some(0) => {
            Some(Rule::Kind)
        }
        SessionKind::Virtual if counts.console > 0 => Some(Rule::ConsoleExclusive),
        SessionKind::Virtual if limits.virtual_sessions_max.is_some_and(|max| counts.virtual_ >= max) => {
            Some(Rule::Full)
        }
        SessionKind::Console | SessionKind::Virtual => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_a_plain_decimal_number_within_bounds() {
        for (text, expected) in [("1", 100), ("2", 200), (" 0.5 ", 50), ("0.01", 1), ("12.25", 1225), ("1000", 100_000)]
        {
            assert_eq!(hundredths(text), Some(expected), "{text}");
        }
        for text in ["", "0", "0.00", "-1", "+1", "1.", ".5", "1e3", "0.001", "1000.01", "10000", "99999", "two", "1,5"]
        {
            assert_eq!(hundredths(text), None, "{text}");
        }
    }

    #[test]
    fn load_compares_sessions_with_weight() {
        let load = |sessions: u64, weight: u64| sessions * LOAD_SCALE / weight;
        assert_eq!(load(2, 200), load(1, 100));
        assert!(load(3, 200) > load(1, 100) && load(1, 200) < load(1, 100));
    }
}
