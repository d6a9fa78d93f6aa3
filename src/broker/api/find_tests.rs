//! Walking through pages of a fleet that changes between them.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::domain::fleet::Stamp;
use crate::domain::fleet::invariants::violations;
use crate::domain::host::{Health, HostFacts, HostLoad};
use crate::domain::report::{EndedSession, Inventory, Report, ReportedSession};
use crate::domain::{Command, LogIndex, Millis, ReplicaId, Session, SessionKind, Timestamp};

/// What happens between two pages.
#[derive(Debug, Clone)]
enum Change {
    /// An agent connects, with these tags and sessions.
    Connect { server: u8, tags: [u8; 2], sessions: Vec<(u8, u8)> },
    /// Facts of a server are others.
    Retag { server: u8, tags: [u8; 2] },
    /// A session appears on a server: it comes, or comes back elsewhere.
    Appear { server: u8, session: u8, owner: u8 },
    /// A session ends on the server that it is on.
    End { session: u8 },
    /// Time passes: deleted sessions are forgotten, silent servers too.
    Wait { millis: u64 },
}

fn any_change() -> impl Strategy<Value = Change> {
    let tags = [0..3_u8, 0..3_u8];
    prop_oneof![
        2 => (0..4_u8, tags.clone(), prop::collection::vec((0..24_u8, 0..3_u8), 0..10))
            .prop_map(|(server, tags, sessions)| Change::Connect { server, tags, sessions }),
        3 => (0..4_u8, tags).prop_map(|(server, tags)| Change::Retag { server, tags }),
        4 => (0..4_u8, 0..24_u8, 0..3_u8).prop_map(|(server, session, owner)| Change::Appear { server, session, owner }),
        3 => (0..24_u8).prop_map(|session| Change::End { session }),
        1 => prop_oneof![Just(1_000), Just(200_000), Just(4_000_000)].prop_map(|millis| Change::Wait { millis }),
    ]
}

/// Values of the filters: no owner means that the key is not asked for.
#[derive(Debug, Clone)]
struct Asked {
    owners: BTreeSet<u8>,
    pool: BTreeSet<u8>,
    site: BTreeSet<u8>,
}

fn any_asked() -> impl Strategy<Value = Asked> {
    let some = || prop::collection::btree_set(0..4_u8, 0..3);
    (some(), some(), some()).prop_map(|(owners, pool, site)| Asked { owners, pool, site })
}

fn owner(number: u8) -> String {
    format!("owner-{number}")
}

fn tags([pool, site]: [u8; 2]) -> BTreeMap<String, String> {
    // The last value stands for a server without the tag.
    let pairs = [("pool", pool), ("site", site)].into_iter().filter(|(_, value)| *value < 2);
    pairs.map(|(name, value)| (name.to_owned(), format!("v{value}"))).collect()
}

fn reported(session: u8, of: u8) -> ReportedSession {
    ReportedSession {
        id: SessionId::new(&format!("s{session:02}")).unwrap(),
        name: String::new(),
        owner: Owner::new(&owner(of)).unwrap(),
        kind: SessionKind::Virtual,
        usable: true,
        connections: 0,
        clients_max: None,
        created_at: Timestamp(1),
        last_disconnected_at: None,
        storage_root: None,
        created_by: None,
    }
}

struct Log {
    fleet: Fleet,
    at: u64,
}

impl Log {
    fn apply(&mut self, command: Option<Command>) {
        self.at += 1;
        let stamp = Stamp { index: LogIndex(self.at), at: Timestamp(self.at) };
        self.fleet.advance(stamp);
        if let Some(command) = command {
            self.fleet.apply(stamp, command);
        }
        assert_eq!(violations(&self.fleet), []);
    }

    fn report(&mut self, server: &ServerId, report: Report) {
        let Some(epoch) = self.fleet.server(server).map(|server| server.link.epoch()) else { return };
        self.apply(Some(Command::Report { server: server.clone(), epoch, report }));
    }

    fn change(&mut self, change: &Change) {
        let server_id = |number: u8| ServerId::new(&format!("server-{number}")).unwrap();
        match change {
            Change::Connect { server, tags: with, sessions } => {
                let sessions = sessions.iter().map(|(session, owner)| reported(*session, *owner)).collect();
                let report = Report {
                    facts: Some(HostFacts { tags: tags(*with), ..HostFacts::default() }),
                    load: Some(HostLoad::default()),
                    health: Some(Health::Healthy),
                    sessions: Some(Inventory::Full(sessions)),
                };
                self.apply(Some(Command::ConnectAgent {
                    instance: crate::domain::ids::AgentInstance::new("run-1").unwrap(),
                    server: server_id(*server),
                    via: ReplicaId(1),
                    report_interval: Millis::from_secs(30),
                    report,
                }));
            }
            Change::Retag { server, tags: with } => {
                let facts = Some(HostFacts { tags: tags(*with), ..HostFacts::default() });
                self.report(&server_id(*server), Report { facts, ..Report::default() });
            }
            Change::Appear { server, session, owner } => {
                let changed = vec![reported(*session, *owner)];
                let sessions = Some(Inventory::Changes { changed, gone: Vec::new() });
                self.report(&server_id(*server), Report { sessions, ..Report::default() });
            }
            Change::End { session } => {
                let id = reported(*session, 0).id;
                let found = self.fleet.session(&id).and_then(|session| session.phase.occupies()).cloned();
                if let Some(server) = found {
                    let gone = vec![EndedSession { id, reason: None }];
                    let sessions = Some(Inventory::Changes { changed: Vec::new(), gone });
                    self.report(&server, Report { sessions, ..Report::default() });
                }
            }
            Change::Wait { millis } => {
                self.at += millis;
                self.apply(None);
            }
        }
    }

    /// Everything that the filters ask for, found by looking at everything.
    fn matching(&self, asked: &Asked) -> Vec<String> {
        let has = |wanted: &BTreeSet<u8>, name: &str, session: &Session| {
            let server = session.phase.server().and_then(|id| self.fleet.server(id));
            let value = server.and_then(|server| server.facts.tags.get(name));
            wanted.is_empty() || value.is_some_and(|value| wanted.iter().any(|number| *value == format!("v{number}")))
        };
        let is_owner = |session: &Session| {
            asked.owners.is_empty() || asked.owners.iter().any(|number| session.spec.owner.as_str() == owner(*number))
        };
        let all = self.fleet.sessions_from(None);
        all.filter(|session| {
            is_owner(session) && has(&asked.pool, "pool", session) && has(&asked.site, "site", session)
        })
        .map(|session| session.id.as_str().to_owned())
        .collect()
    }

    /// A page by the code of the handler.
    fn page(&self, asked: &Asked, size: usize, token: Option<String>) -> (Vec<String>, Option<String>) {
        let pair = |key: &str, value: String| wire::KeyValuePair { key: Some(key.to_owned()), value: Some(value) };
        let owners = asked.owners.iter().map(|number| pair("owner", owner(*number)));
        let pools = asked.pool.iter().map(|number| pair("tag:pool", format!("v{number}")));
        let sites = asked.site.iter().map(|number| pair("tag:site", format!("v{number}")));
        let request = wire::DescribeSessionsRequestData {
            filters: Some(owners.chain(pools).chain(sites).collect()),
            max_results: Some(i64::try_from(size).unwrap()),
            next_token: token,
            ..wire::DescribeSessionsRequestData::default()
        };
        let query = SessionQuery::try_from(request).unwrap();
        let (page, token) = query.page(&self.fleet, usize::MAX).unwrap();
        (page.into_iter().map(|seen| seen.session.id.as_str().to_owned()).collect(), token)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_finds_what_looking_at_everything_finds(
        changes in prop::collection::vec(any_change(), 1..40), asked in any_asked(),
    ) {
        let mut log = Log { fleet: Fleet::default(), at: 1_000 };
        for change in &changes {
            log.change(change);
        }
        let (found, token) = log.page(&asked, 1000, None);
        prop_assert_eq!(found, log.matching(&asked));
        prop_assert_eq!(token, None);
    }

    #[test]
    fn what_matches_throughout_a_walk_is_seen_exactly_once(
        before in prop::collection::vec(any_change(), 1..30),
        between in prop::collection::vec(prop::collection::vec(any_change(), 0..4), 1..12),
        sizes in prop::collection::vec(1_usize..6, 1..6),
        asked in any_asked(),
    ) {
        let mut log = Log { fleet: Fleet::default(), at: 1_000 };
        for change in &before {
            log.change(change);
        }
        let mut throughout: BTreeSet<String> = log.matching(&asked).into_iter().collect();
        let mut seen: Vec<String> = Vec::new();
        let mut token = None;
        for (number, size) in sizes.iter().cycle().enumerate() {
            let matching: BTreeSet<String> = log.matching(&asked).into_iter().collect();
            throughout.retain(|id| matching.contains(id));
            let (page, next) = log.page(&asked, *size, token);
            prop_assert!(page.len() <= *size);
            prop_assert!(page.iter().all(|id| matching.contains(id)), "{:?} is not all in {:?}", page, matching);
            seen.extend(page);
            token = next;
            if token.is_none() {
                break;
            }
            between.get(number).into_iter().flatten().for_each(|change| log.change(change));
        }
        let once: BTreeSet<String> = seen.iter().cloned().collect();
        prop_assert_eq!(once.len(), seen.len(), "something was seen twice: {:?}", seen);
        prop_assert!(throughout.is_subset(&once), "{:?} lacks some of {:?}", once, throughout);
    }

    /// A listing cut short for its length is not answered in part.
    #[test]
    fn a_page_that_takes_too_many_steps_is_none(
        changes in prop::collection::vec(any_change(), 1..40), asked in any_asked(), steps in 0_usize..30,
    ) {
        let mut log = Log { fleet: Fleet::default(), at: 1_000 };
        for change in &changes {
            log.change(change);
        }
        let filters = Filters {
            owners: (!asked.owners.is_empty()).then(|| asked.owners.iter().map(|of| Owner::new(&owner(*of)).unwrap()).collect()),
            tags: BTreeMap::new(),
        };
        let query = SessionQuery { ids: None, filters, size: 5, after: None, fingerprint: Fingerprint::new("x", []) };
        let whole = query.page(&log.fleet, usize::MAX).unwrap();
        if let Some(page) = query.page(&log.fleet, steps) {
            let ids = |page: &Page<Sighting<'_>>| -> Vec<SessionId> { page.0.iter().map(|seen| seen.session.id.clone()).collect() };
            prop_assert_eq!((ids(&page), page.1), (ids(&whole), whole.1));
        }
    }
}
