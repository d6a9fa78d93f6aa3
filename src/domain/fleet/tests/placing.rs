//! Where sessions go: policies, weights, sets, explanations.

use super::*;
use crate::domain::placement::survey;

fn tagged(tags: &[(&str, &str)], virtual_max: Option<u32>) -> HostFacts {
    let tags = tags.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    HostFacts { tags, ..facts(virtual_max, None, false) }
}

fn policy(owner_number: u8, policy: Policy) -> SessionSpec {
    SessionSpec { placement: Some(policy), ..spec(owner_number, SessionKind::Virtual) }
}

fn counts(log: &Log, servers: u8) -> Vec<u32> {
    (1..=servers).map(|number| log.fleet.counts(&server_id(number)).virtual_).collect()
}

fn server_of(log: &Log, session: u8) -> ServerId {
    log.fleet.session(&session_id(session)).and_then(|session| session.phase.server()).expect("placed").clone()
}

#[test]
fn a_heavier_server_takes_more() {
    let mut log = Log::new();
    log.connect(1, tagged(&[(WEIGHT_TAG, "3")], None));
    log.connect(2, tagged(&[(WEIGHT_TAG, "nonsense")], None));
    log.connect(3, tagged(&[(WEIGHT_TAG, "0.5")], None));
    for number in 0..90 {
        log.create(number, spec(number, SessionKind::Virtual));
    }
    assert_eq!(counts(&log, 3), [60, 20, 10]);
}

#[test]
fn pack_fills_one_server_before_the_next() {
    let mut log = Log::new();
    for number in 1..=3 {
        log.connect(number, facts(Some(4), None, false));
    }
    for number in 0..8 {
        log.create(number, policy(number, Policy::Pack));
    }
    let mut filled = counts(&log, 3);
    filled.sort_unstable();
    assert_eq!(filled, [0, 4, 4]);
}

#[test]
fn affinity_puts_an_owner_where_the_owner_is_and_spreads_the_others() {
    let mut log = Log::new();
    for number in 1..=3 {
        log.connect(number, facts(Some(2), None, false));
    }
    log.apply(Command::Configure(Settings { placement: Policy::Affinity, ..Settings::default() }));
    log.create(1, spec(1, SessionKind::Virtual));
    log.create(2, spec(2, SessionKind::Virtual));
    log.create(3, spec(1, SessionKind::Virtual));
    assert_eq!(server_of(&log, 1), server_of(&log, 3));
    assert_ne!(server_of(&log, 1), server_of(&log, 2));
    log.create(4, policy(2, Policy::Spread));
    assert_ne!(server_of(&log, 2), server_of(&log, 4), "the request decides before the settings");
    log.create(5, spec(1, SessionKind::Virtual));
    assert_ne!(server_of(&log, 1), server_of(&log, 5), "it is full");
}

#[test]
fn the_choice_is_the_same_whether_or_not_a_set_is_kept() {
    let mut log = Log::new();
    for number in 0..40 {
        let pool = if number % 3 == 0 { "a" } else { "b" };
        log.connect(number, tagged(&[("pool", pool), ("size", &(number % 7).to_string())], Some(3)));
    }
    let wishes = ["tag:pool := 'a'", "not tag:pool = 'a'", "tag:size >= 4", "tag:size < 2 or tag:pool := 'b'"];
    for round in 0..30u8 {
        for (number, text) in (0u8..).zip(wishes) {
            let wish = SessionSpec { requirements: requirements(text), ..spec(1, SessionKind::Virtual) };
            let mut image = Vec::new();
            log.fleet.write_image(&mut image).expect("memory");
            // No set is kept right after a snapshot was read.
            let mut restored = Fleet::read_image(&mut image.as_slice()).expect("just written");
            let id = session_id(round * 4 + number);
            let command = Command::CreateSession { id: id.clone(), spec: wish, client: client() };
            let stamp = Stamp { index: LogIndex(log.index + 1), at: Timestamp(log.at) };
            let applied = restored.apply(stamp, command.clone());
            assert_eq!(log.apply(command), applied.outcome);
            assert!(restored == log.fleet);
        }
    }
}

#[test]
fn a_server_is_found_by_a_fact_that_requirements_demand() {
    let mut log = Log::new();
    for number in 0..200 {
        log.connect(number, tagged(&[("session", &format!("id-{number}")), ("pool", "a")], None));
    }
    for number in [7, 123, 199] {
        let wanted = format!("tag:pool = 'a' and tag:session = 'id-{number}'");
        log.create(number, SessionSpec { requirements: requirements(&wanted), ..spec(1, SessionKind::Virtual) });
        assert_eq!(server_of(&log, number), server_id(number));
    }
    let by_id = "server:Id = 'server-55' and (tag:pool = 'a' or tag:pool = 'b')";
    log.create(55, SessionSpec { requirements: requirements(by_id), ..spec(1, SessionKind::Virtual) });
    assert_eq!(server_of(&log, 55), server_id(55));
}

#[test]
fn a_request_that_waits_for_one_host_gets_it_when_its_tag_appears() {
    let mut log = Log::new();
    let epoch = log.connect(1, tagged(&[("pool", "a")], None));
    let wish =
        |text: &str| SessionSpec { requirements: requirements(text), enqueue: true, ..spec(1, SessionKind::Virtual) };
    log.create(1, wish("tag:session = 'x'"));
    log.create(2, wish("server:Host.CpuLoadAverage.OneMinute > 2 and tag:pool = 'a'"));
    assert_eq!(log.fleet.waiting_count(), 2);
    let load = HostLoad {
        load_average: crate::domain::host::LoadAverage { one_minute_hundredths: 201, ..Default::default() },
        ..HostLoad::default()
    };
    let report = Report { load: Some(load), ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch, report });
    assert_eq!(server_of(&log, 2), server_id(1));
    let report = Report { facts: Some(tagged(&[("session", "x")], None)), ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch, report });
    assert_eq!(server_of(&log, 1), server_id(1));
}

#[test]
fn a_survey_says_how_each_server_fares() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(Some(1), None, false));
    log.ready(1, 1, 1, epoch);
    log.connect(2, tagged(&[("pool", "a")], None));
    log.connect(3, facts(None, Some(0), false));
    log.apply(Command::CloseServer { id: server_id(2), force: false, client: client() });
    log.connect(4, tagged(&[("pool", "b")], None));
    let wish = SessionSpec { requirements: requirements("tag:pool = 'b'"), ..spec(1, SessionKind::Virtual) };
    let found = survey(&log.fleet, None, &wish, &[]);
    assert_eq!(found.chosen, Some(server_id(4)));
    assert_eq!((found.eligible, found.explanation.servers), (1, 4));
    let expected = [(server_id(1), Rule::Full), (server_id(2), Rule::Closed), (server_id(3), Rule::Kind)];
    assert_eq!(found.explanation.servers_refused, expected);
    // What a refusal says without looking at all servers is the same.
    log.apply(Command::CloseServer { id: server_id(4), force: true, client: client() });
    let found = survey(&log.fleet, None, &wish, &[]);
    let Outcome::Refused(Refusal::NoServer(explanation)) = log.create(9, wish) else { panic!("not refused") };
    assert_eq!(explanation, found.explanation);
    assert_eq!(found.chosen, None);
}

#[test]
fn a_server_that_failed_is_asked_last_for_five_minutes() {
    let mut log = Log::new();
    let first = log.connect(1, facts(None, None, false));
    log.create(1, SessionSpec { retry_disabled: true, ..spec(1, SessionKind::Virtual) });
    let (instruction, _) = log.only_instruction(1);
    log.answer(1, first, instruction, Answer::Failed { reason: "no".to_owned() });
    let second = log.connect(2, facts(None, None, false));
    for number in 2..6 {
        log.create(number, spec(number, SessionKind::Virtual));
    }
    assert_eq!(counts(&log, 2), [0, 4]);
    for _ in 0..11 {
        log.wait(29_000);
        for (number, epoch) in [(1, first), (2, second)] {
            log.apply(Command::Report { server: server_id(number), epoch, report: Report::default() });
        }
    }
    log.create(6, spec(6, SessionKind::Virtual));
    assert_eq!(server_of(&log, 6), server_id(1));
}

#[test]
fn who_waits_is_placed_in_the_order_of_arrival_whatever_the_owner_limits() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(Some(2), Some(1), false));
    let queued = |owner| SessionSpec { enqueue: true, ..spec(owner, SessionKind::Virtual) };
    log.create(1, queued(1));
    log.create(2, queued(1));
    log.create(3, queued(2));
    log.create(4, queued(1));
    log.create(5, queued(3));
    let waiting: Vec<_> = log.fleet.waiting().map(|session| session.id.clone()).collect();
    assert_eq!(waiting, [session_id(2), session_id(4), session_id(5)]);
    // The first owner's session ends: the first owner's next one is first.
    let create = log.fleet.outbox(&server_id(1)).next().expect("issued").id;
    log.answer(1, epoch, create, Answer::Failed { reason: "no".to_owned() });
    assert_eq!(server_of(&log, 2), server_id(1));
    let waiting: Vec<_> = log.fleet.waiting().map(|session| session.id.clone()).collect();
    assert_eq!(waiting, [session_id(1), session_id(4), session_id(5)], "the failed one keeps its place");
}
