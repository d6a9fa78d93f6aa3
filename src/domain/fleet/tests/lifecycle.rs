//! What becomes of a session that meets trouble on its way.

use super::*;

fn failed(reason: &str) -> Answer {
    Answer::Failed { reason: reason.to_owned() }
}

/// The only unanswered creation in the fleet, and its server.
fn creation(log: &Log) -> (u8, InstructionId) {
    let mut found = (0..10).flat_map(|number| {
        let server = server_id(number);
        let creations = log.fleet.outbox(&server).filter(|i| matches!(i.action, Action::CreateSession { .. }));
        creations.map(move |instruction| (number, instruction.id)).collect::<Vec<_>>()
    });
    let only = found.next().expect("a creation");
    assert_eq!(found.next(), None);
    only
}

#[test]
fn a_failed_creation_is_tried_on_another_server_as_often_as_allowed() {
    let mut log = Log::new();
    let epochs: Vec<Epoch> = (0..5).map(|number| log.connect(number, facts(None, None, false))).collect();
    log.create(1, spec(1, SessionKind::Virtual));
    let mut tried = Vec::new();
    for attempt in 1..=3 {
        let (server, instruction) = creation(&log);
        assert!(!tried.contains(&server), "never on the same server again");
        tried.push(server);
        log.answer(server, epochs[usize::from(server)], instruction, failed(&format!("no {attempt}")));
        if attempt < 3 {
            assert_eq!(log.state(1), Some(SessionState::Creating));
            assert_eq!(log.reason(1), format!("no {attempt}"));
        }
    }
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    assert_eq!(log.reason(1), "no 3 (after 3 attempts)");
}

#[test]
fn a_request_without_retry_ends_with_its_first_failure() {
    let mut log = Log::new();
    let epochs: Vec<Epoch> = (0..2).map(|number| log.connect(number, facts(None, None, false))).collect();
    log.create(1, SessionSpec { retry_disabled: true, ..spec(1, SessionKind::Virtual) });
    let (server, instruction) = creation(&log);
    log.answer(server, epochs[usize::from(server)], instruction, failed("no"));
    assert_eq!((log.state(1), log.reason(1)), (Some(SessionState::Deleted), "no".to_owned()));
}

#[test]
fn a_silent_host_is_left_only_after_it_confirmed_that_it_gave_up() {
    let mut log = Log::new();
    let epochs: Vec<Epoch> = (0..2).map(|number| log.connect(number, facts(None, None, false))).collect();
    log.create(1, spec(1, SessionKind::Virtual));
    let (server, instruction) = creation(&log);
    let other = 1 - server;
    let epoch = epochs[usize::from(server)];
    for _ in 0..5 {
        log.wait(29_000);
        for number in [server, other] {
            let epoch = epochs[usize::from(number)];
            log.apply(Command::Report { server: server_id(number), epoch, report: Report::default() });
        }
    }
    assert_eq!(log.state(1), Some(SessionState::Creating));
    assert_eq!(log.fleet.outbox(&server_id(other)).count(), 0, "nothing is made elsewhere yet");
    // The creation's late answer has no effect any more.
    log.answer(server, epoch, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Creating));
    let (close, action) = log.only_instruction(server);
    assert!(matches!(action, Action::CloseSession { .. }));
    log.answer(server, epoch, close, Answer::Done);
    let (next, instruction) = creation(&log);
    assert_eq!(next, other);
    log.answer(other, epochs[usize::from(other)], instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Ready));
    // The first host shows it after all: it is told to end it, and counts it.
    let late = ReportedSession { created_by: Some(InstructionId(1)), ..reported(1, 1, true) };
    let changes = Inventory::Changes { changed: vec![late], gone: Vec::new() };
    let report = Report { sessions: Some(changes), ..Report::default() };
    log.apply(Command::Report { server: server_id(server), epoch, report });
    let (close, action) = log.only_instruction(server);
    assert!(matches!(action, Action::CloseSession { .. }));
    assert_eq!(log.fleet.counts(&server_id(server)).total(), 1);
    let gone = Inventory::Changes { changed: vec![], gone: vec![EndedSession { id: session_id(1), reason: None }] };
    let report = Report { sessions: Some(gone), ..Report::default() };
    log.apply(Command::Report { server: server_id(server), epoch, report });
    log.answer(server, epoch, close, Answer::Done);
    assert_eq!(log.fleet.counts(&server_id(server)).total(), 0);
    assert_eq!(log.state(1), Some(SessionState::Ready));
}

#[test]
fn a_queued_request_waits_again_when_nobody_else_can_take_it() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.create(1, SessionSpec { enqueue: true, ..spec(1, SessionKind::Virtual) });
    let (_, instruction) = creation(&log);
    log.answer(1, epoch, instruction, failed("no"));
    assert_eq!((log.state(1), log.reason(1)), (Some(SessionState::Creating), "no".to_owned()));
    assert_eq!(log.fleet.waiting_count(), 1);
    let second = log.connect(2, facts(None, None, false));
    let (server, instruction) = creation(&log);
    assert_eq!(server, 2);
    log.answer(2, second, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Ready));
    let session = log.fleet.session(&session_id(1)).expect("listed");
    assert_eq!(session.state_reason, None);
}

#[test]
fn a_session_that_its_host_cannot_end_lives_on_with_the_reason() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.delete(1, 1, false);
    for _ in 0..3 {
        assert_eq!(log.state(1), Some(SessionState::Deleting));
        let (close, _) = log.only_instruction(1);
        log.answer(1, epoch, close, failed("busy"));
    }
    assert_eq!(
        (log.state(1), log.reason(1)),
        (Some(SessionState::Ready), "its server could not end it: busy".to_owned())
    );
    assert_eq!(log.fleet.outbox(&server_id(1)).count(), 0);
    log.delete(1, 1, false);
    let (close, _) = log.only_instruction(1);
    log.answer(1, epoch, close, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
}

#[test]
fn sessions_of_a_server_that_stays_away_end_after_their_time_and_come_back_with_it() {
    let mut log = Log::new();
    let settings = Settings { lost_session_retention: Some(Millis::from_secs(300)), ..Settings::default() };
    log.apply(Command::Configure(settings));
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.create(2, spec(2, SessionKind::Virtual));
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch });
    log.wait(90_000);
    assert_eq!((log.state(1), log.state(2)), (Some(SessionState::Unknown), Some(SessionState::Unknown)));
    log.wait(300_000);
    assert_eq!((log.state(1), log.state(2)), (Some(SessionState::Deleted), Some(SessionState::Deleted)));
    assert_eq!(log.reason(1), "its server could not be reached for 300 s");
    log.connect_with(1, facts(None, None, false), vec![reported(1, 1, true)]);
    assert_eq!(log.state(1), Some(SessionState::Ready));
    assert_eq!(log.state(2), Some(SessionState::Deleted));
}

#[test]
fn sessions_outlive_the_record_of_their_server_and_still_end_after_their_time() {
    let mut log = Log::new();
    let settings = Settings { lost_session_retention: Some(Millis::from_secs(7200)), ..Settings::default() };
    log.apply(Command::Configure(settings));
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.wait(90_000);
    log.wait(Settings::default().lost_server_retention.0);
    assert!(log.fleet.server(&server_id(1)).is_none());
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    log.wait(7_200_000 - Settings::default().lost_server_retention.0);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
}

#[test]
fn a_mark_of_a_server_that_never_returns_is_dropped_in_the_end() {
    let mut log = Log::new();
    log.connect(1, facts(None, None, false));
    log.apply(Command::CloseServer { id: server_id(1), force: true, client: client() });
    log.wait(90_000);
    log.wait(Settings::default().lost_server_retention.0);
    assert!(log.fleet.server(&server_id(1)).is_none() && log.fleet.is_closed(&server_id(1)));
    log.wait(30 * 24 * 3_600_000);
    assert!(!log.fleet.is_closed(&server_id(1)));
    assert_eq!(log.fleet.next_deadline(), None);
}

#[test]
fn two_hosts_with_one_session_id_count_both_and_the_second_takes_over() {
    let mut log = Log::new();
    let console = |owner_number| ReportedSession {
        id: SessionId::new("console").expect("valid"),
        kind: SessionKind::Console,
        ..reported(0, owner_number, true)
    };
    let first = log.connect_with(1, facts(None, None, true), vec![console(1)]);
    log.connect_with(2, facts(None, None, true), vec![console(2)]);
    assert_eq!((log.fleet.counts(&server_id(1)).console, log.fleet.counts(&server_id(2)).console), (1, 1));
    assert!(matches!(log.create(3, spec(3, SessionKind::Virtual)), Outcome::Refused(_)), "both have a console session");
    let id = SessionId::new("console").expect("valid");
    assert_eq!(log.fleet.session(&id).expect("listed").spec.owner, owner(1));
    let gone = Inventory::Changes { changed: vec![], gone: vec![EndedSession { id: id.clone(), reason: None }] };
    let report = Report { sessions: Some(gone), ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch: first, report });
    let session = log.fleet.session(&id).expect("listed");
    assert_eq!((session.spec.owner.clone(), session.phase.server().cloned()), (owner(2), Some(server_id(2))));
    assert_eq!(log.fleet.conflicts_on(&server_id(2)).count(), 0);
    assert_eq!(log.fleet.counts(&server_id(2)).console, 1);
}

#[test]
fn a_draining_server_takes_nothing_and_its_sessions_end_at_the_deadline() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.ready(2, 2, 1, epoch);
    let drain = |secs| Command::DrainServer { id: server_id(1), within: Millis::from_secs(secs), client: client() };
    let outcome = log.apply(drain(60));
    assert_eq!(outcome, Outcome::Draining { sessions: 2, deadline: Timestamp(log.at + 60_000) });
    assert!(matches!(log.create(3, spec(3, SessionKind::Virtual)), Outcome::Refused(_)));
    log.wait_and_report(2, 1, epoch);
    assert_eq!(log.state(1), Some(SessionState::Ready));
    log.wait(3_000);
    assert_eq!((log.state(1), log.state(2)), (Some(SessionState::Deleting), Some(SessionState::Deleting)));
    let closes: Vec<InstructionId> = log.fleet.outbox(&server_id(1)).map(|instruction| instruction.id).collect();
    for close in closes {
        log.answer(1, epoch, close, Answer::Done);
    }
    assert_eq!(log.fleet.counts(&server_id(1)).total(), 0);
    let server = log.fleet.server(&server_id(1)).expect("listed").clone();
    assert_eq!(log.fleet.unavailability(&server), Some(Unavailability::ServerClosed));
    log.apply(Command::OpenServer { id: server_id(1), client: client() });
    assert!(matches!(log.create(3, spec(3, SessionKind::Virtual)), Outcome::Created { .. }));
}

#[test]
fn opening_a_draining_server_ends_the_drain() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.apply(Command::DrainServer { id: server_id(1), within: Millis::from_secs(60), client: client() });
    log.apply(Command::OpenServer { id: server_id(1), client: client() });
    log.wait_and_report(4, 1, epoch);
    assert_eq!(log.state(1), Some(SessionState::Ready));
}

#[test]
fn a_drain_ends_in_time_although_its_server_is_not_listed_any_more() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.apply(Command::DrainServer { id: server_id(1), within: Millis::from_secs(7200), client: client() });
    log.wait(90_000);
    log.wait(Settings::default().lost_server_retention.0);
    assert!(log.fleet.server(&server_id(1)).is_none());
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    log.wait(7_200_000);
    assert_eq!(log.reason(1), "deleted after its server had gone");
}

#[test]
fn an_answer_brings_a_lost_server_back_for_as_long_as_a_report_would() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.wait(90_000);
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    log.answer(1, epoch, InstructionId(1), Answer::Done);
    log.wait(89_000);
    assert_eq!(log.state(1), Some(SessionState::Ready));
    log.wait(1_000);
    assert_eq!(log.state(1), Some(SessionState::Unknown));
}

#[test]
fn the_end_of_the_connection_of_a_lost_server_changes_nothing_but_that_no_word_brings_it_back() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.wait(90_000);
    let lost_since = log.at;
    log.wait(600_000);
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch });
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    assert_eq!(log.answer(1, epoch, InstructionId(1), Answer::Done), Outcome::Refused(Refusal::StaleEpoch));
    log.at = lost_since + Settings::default().lost_server_retention.0 - 1;
    log.wait(0);
    assert!(log.fleet.server(&server_id(1)).is_some());
    log.wait(1);
    assert!(log.fleet.server(&server_id(1)).is_none());
}

#[test]
fn an_agent_whose_sessions_were_given_up_has_to_connect_again() {
    let mut log = Log::new();
    let settings = Settings { lost_session_retention: Some(Millis::from_secs(300)), ..Settings::default() };
    log.apply(Command::Configure(settings));
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.wait(90_000);
    log.wait(300_000);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    let alive = Command::Report { server: server_id(1), epoch, report: Report::default() };
    assert_eq!(log.apply(alive), Outcome::Refused(Refusal::StaleEpoch));
    log.connect_with(1, facts(None, None, false), vec![reported(1, 1, true)]);
    assert_eq!(log.state(1), Some(SessionState::Ready));
}

#[test]
fn sessions_of_a_server_that_left_no_marks_end_when_that_is_configured_later() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.apply(Command::CloseServer { id: server_id(1), force: true, client: client() });
    log.wait(90_000);
    log.wait(Settings::default().lost_server_retention.0);
    log.wait(31 * 24 * 3_600_000);
    assert!(!log.fleet.is_closed(&server_id(1)));
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    let lost_session_retention = Some(Millis::from_secs(7200));
    log.apply(Command::Configure(Settings { lost_session_retention, ..Settings::default() }));
    log.wait(0);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    log.wait(3_600_000);
    assert_eq!(log.fleet.next_deadline(), None);
}

#[test]
fn a_session_is_not_placed_where_another_one_has_its_id() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.apply(Command::CloseServer { id: server_id(1), force: true, client: client() });
    log.create(1, SessionSpec { enqueue: true, ..spec(1, SessionKind::Virtual) });
    let changes = Inventory::Changes { changed: vec![reported(1, 2, true)], gone: Vec::new() };
    let report = Report { sessions: Some(changes), ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch, report });
    log.apply(Command::OpenServer { id: server_id(1), client: client() });
    assert_eq!((log.fleet.waiting_count(), log.fleet.counts(&server_id(1)).total()), (1, 1));
    let gone = Inventory::Changes { changed: vec![], gone: vec![EndedSession { id: session_id(1), reason: None }] };
    let report = Report { sessions: Some(gone), ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch, report });
    assert_eq!((log.fleet.waiting_count(), log.fleet.counts(&server_id(1)).total()), (0, 1));
}

#[test]
fn a_session_in_a_hosts_way_that_it_cannot_close_is_not_closed_again_and_again() {
    let mut log = Log::new();
    let first = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, first);
    let copy = ReportedSession { created_by: Some(InstructionId(1)), ..reported(1, 1, true) };
    let second = log.connect_with(2, facts(None, None, false), vec![copy.clone()]);
    let (close, _) = log.only_instruction(2);
    log.answer(2, second, close, failed("busy"));
    let changes = Inventory::Changes { changed: vec![copy], gone: Vec::new() };
    let report = Report { sessions: Some(changes), ..Report::default() };
    log.apply(Command::Report { server: server_id(2), epoch: second, report });
    assert_eq!(log.fleet.outbox(&server_id(2)).count(), 0);
    assert_eq!(log.fleet.counts(&server_id(2)).total(), 1);
}
