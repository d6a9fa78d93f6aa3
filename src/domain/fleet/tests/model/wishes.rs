//! What clients ask for: requests of all kinds, and what their requirements
//! mean, written by hand beside the text.

use rand::Rng;
use rand::rngs::StdRng;

use super::super::requirements;
use crate::domain::host::{HostFacts, HostLoad};
use crate::domain::ids::{Owner, ServerId};
use crate::domain::placement::Policy;
use crate::domain::session::{SessionKind, SessionSpec};

type Meaning = fn(&ServerId, &HostFacts, &HostLoad) -> bool;

fn pool(facts: &HostFacts) -> Option<&str> {
    facts.tags.get("pool").map(String::as_str)
}

fn busy(load: &HostLoad) -> u32 {
    load.load_average.one_minute_hundredths
}

/// Requirements in canonical form, and when they hold. Some demand a fact, some
/// read the load, some do neither.
const REQUIREMENTS: [(&str, Meaning); 9] = [
    ("tag:pool = 'a'", |_, facts, _| pool(facts) == Some("a")),
    ("not tag:pool = 'a'", |_, facts, _| pool(facts) != Some("a")),
    ("tag:pool != 'a'", |_, facts, _| pool(facts).is_some_and(|pool| pool != "a")),
    ("tag:pool = 'b' and server:Host.CpuLoadAverage.OneMinute < 2", |_, facts, load| {
        pool(facts) == Some("b") && busy(load) < 200
    }),
    ("server:Host.CpuLoadAverage.OneMinute >= 1", |_, _, load| busy(load) >= 100),
    ("server:Id = 'server-1'", |id, _, _| id.as_str() == "server-1"),
    ("server:Host.Memory.UsedBytes <= 5 or tag:pool := 'a'", |_, facts, load| {
        load.memory.used_bytes <= 5 || pool(facts).is_some_and(|pool| pool.contains('a'))
    }),
    ("server:Hostname = 'desk' and tag:pool := ''", |_, facts, _| facts.hostname == "desk" && pool(facts).is_some()),
    ("tag:pool = 'nowhere'", |_, _, _| false),
];

/// Whether a server meets a request's requirements.
pub(super) fn holds(spec: &SessionSpec, id: &ServerId, facts: &HostFacts, load: &HostLoad) -> bool {
    let Some(expression) = &spec.requirements else { return true };
    let text = expression.to_string();
    let (_, meaning) = REQUIREMENTS.iter().find(|(known, _)| *known == text).expect("all requests come from here");
    meaning(id, facts, load)
}

/// Owners of sessions.
pub(super) fn any_owner(rng: &mut StdRng) -> Owner {
    super::super::owner(rng.random_range(0..4))
}

pub(super) fn any_kind(rng: &mut StdRng) -> SessionKind {
    if rng.random_bool(0.15) { SessionKind::Console } else { SessionKind::Virtual }
}

pub(super) fn any_policy(rng: &mut StdRng) -> Policy {
    [Policy::Spread, Policy::Pack, Policy::Affinity][rng.random_range(0..3)]
}

/// A request.
pub(super) fn any_spec(rng: &mut StdRng) -> SessionSpec {
    let text = rng.random_bool(0.5).then(|| REQUIREMENTS[rng.random_range(0..REQUIREMENTS.len())].0);
    SessionSpec {
        requirements: text.and_then(requirements),
        enqueue: rng.random_bool(0.6),
        retry_disabled: rng.random_bool(0.2),
        placement: rng.random_bool(0.3).then(|| any_policy(rng)),
        ..SessionSpec::plain("work".to_owned(), any_owner(rng), any_kind(rng))
    }
}

/// What a host is made of.
pub(super) fn any_facts(rng: &mut StdRng) -> HostFacts {
    let limit = |rng: &mut StdRng| [None, Some(0), Some(1), Some(2), Some(2), Some(3)][rng.random_range(0..6)];
    let virtual_max = if rng.random_bool(0.7) { Some(rng.random_range(1..4)) } else { limit(rng) };
    let mut facts = super::super::facts(virtual_max, limit(rng).filter(|max| *max > 0), rng.random_bool(0.4));
    facts.hostname = ["desk", "host"][rng.random_range(0..2)].to_owned();
    let tags = [("pool", ["a", "b", "ab"]), ("berth:weight", ["3", "0.5", "nonsense"])];
    for (key, texts) in tags {
        if rng.random_bool(0.7) {
            facts.tags.insert(key.to_owned(), texts[rng.random_range(0..3)].to_owned());
        }
    }
    if rng.random_bool(0.1) {
        facts.os.family = crate::domain::host::OsFamily::Windows;
    }
    facts
}

/// How a host fares.
pub(super) fn any_load(rng: &mut StdRng) -> HostLoad {
    let mut load = HostLoad::default();
    load.load_average.one_minute_hundredths = [0, 99, 100, 199, 200][rng.random_range(0..5)];
    load.memory.used_bytes = rng.random_range(4..8);
    load
}
