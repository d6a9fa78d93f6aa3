//! The behaviour that callers rely on, one sentence a test.

use super::*;

#[test]
fn a_session_is_ready_only_after_its_agent_said_so_and_gone_after_it_was_closed() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    assert!(matches!(log.create(1, spec(1, SessionKind::Virtual)), Outcome::Created { .. }));
    assert_eq!(log.state(1), Some(SessionState::Creating));
    let (instruction, action) = log.only_instruction(1);
    assert!(matches!(action, Action::CreateSession { session, .. } if session == session_id(1)));
    log.answer(1, epoch, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Ready));

    assert_eq!(log.delete(1, 1, false), Outcome::Deleting(SessionState::Deleting));
    let (instruction, action) = log.only_instruction(1);
    assert!(matches!(action, Action::CloseSession { .. }));
    log.answer(1, epoch, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    log.wait(Settings::default().deleted_retention.0);
    assert_eq!(log.state(1), None, "a deleted session is shown for its time and then forgotten");
    assert_eq!(log.fleet.session_count(), 0);
}

#[test]
fn the_same_create_twice_makes_one_session() {
    let mut log = Log::new();
    log.connect(1, facts(None, None, false));
    let first = log.create(1, spec(1, SessionKind::Virtual));
    assert_eq!(log.create(1, spec(1, SessionKind::Virtual)), first);
    assert_eq!(log.fleet.outbox(&server_id(1)).count(), 1);
    assert_eq!(log.create(1, spec(2, SessionKind::Virtual)), Outcome::Refused(Refusal::Exists));
}

#[test]
fn a_failed_creation_ends_with_the_reason_that_the_agent_gave() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.create(1, spec(1, SessionKind::Virtual));
    let (instruction, _) = log.only_instruction(1);
    log.answer(1, epoch, instruction, Answer::Failed { reason: "owner x is no user of this host".to_owned() });
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    let reason = log.reason(1);
    assert!(reason.starts_with("owner x is no user of this host; no other server: 1 of 1 servers: failed"), "{reason}");
}

#[test]
fn the_server_with_the_fewest_sessions_is_chosen() {
    let mut log = Log::new();
    for number in 1..=3 {
        log.connect(number, facts(None, None, false));
    }
    for number in 0..9 {
        log.create(number, spec(number, SessionKind::Virtual));
    }
    let counts: Vec<u32> = (1..=3).map(|number| log.fleet.counts(&server_id(number)).virtual_).collect();
    assert_eq!(counts, [3, 3, 3]);
}

#[test]
fn a_refusal_counts_the_rules_that_refused() {
    let mut log = Log::new();
    let refusal = |outcome| match outcome {
        Outcome::Refused(refusal) => refusal.to_string(),
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(
        refusal(log.create(1, spec(1, SessionKind::Virtual))),
        "no dcv server found for placement: no server is connected"
    );
    log.connect(1, facts(Some(1), None, false));
    log.create(2, spec(1, SessionKind::Virtual));
    log.connect(
        2,
        HostFacts {
            os: crate::domain::host::Os { family: OsFamily::Windows, ..Default::default() },
            ..facts(None, None, true)
        },
    );
    assert_eq!(
        refusal(log.create(3, spec(1, SessionKind::Virtual))),
        "no dcv server found for placement: 1 of 2 servers: virtual sessions need Linux, 1 of 2 servers: full \
         (server-1: full; server-2: virtual sessions need Linux)"
    );
    let picky = SessionSpec { requirements: requirements("tag:color = 'pink'"), ..spec(1, SessionKind::Console) };
    assert_eq!(
        refusal(log.create(4, picky)),
        "no dcv server found for placement: 1 of 2 servers: sessions of this type not offered, \
         1 of 2 servers: requirements not met \
         (server-1: sessions of this type not offered; server-2: requirements not met)"
    );
}

#[test]
fn limits_of_servers_and_owners_hold() {
    let mut log = Log::new();
    log.connect(1, facts(Some(3), Some(2), true));
    assert!(matches!(log.create(1, spec(1, SessionKind::Virtual)), Outcome::Created { .. }));
    assert!(matches!(log.create(2, spec(1, SessionKind::Virtual)), Outcome::Created { .. }));
    assert!(matches!(log.create(3, spec(1, SessionKind::Virtual)), Outcome::Refused(_)), "owner's limit");
    assert!(matches!(log.create(4, spec(2, SessionKind::Console)), Outcome::Refused(_)), "virtual excludes console");
    assert!(matches!(log.create(5, spec(2, SessionKind::Virtual)), Outcome::Created { .. }));
    let server = log.fleet.server(&server_id(1)).expect("listed").clone();
    assert_eq!(log.fleet.unavailability(&server), Some(Unavailability::ServerFull));
}

#[test]
fn a_queued_request_is_placed_as_soon_as_there_is_room_in_the_order_of_arrival() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(Some(1), None, false));
    log.ready(1, 1, 1, epoch);
    let queued = |owner| SessionSpec { enqueue: true, ..spec(owner, SessionKind::Virtual) };
    assert!(matches!(log.create(2, queued(2)), Outcome::Created { .. }));
    let elsewhere = SessionSpec { requirements: requirements("tag:x = '1'"), ..queued(3) };
    assert!(matches!(log.create(3, elsewhere), Outcome::Created { .. }));
    assert!(matches!(log.create(4, queued(4)), Outcome::Created { .. }));
    assert_eq!(log.fleet.waiting().count(), 3);
    log.delete(1, 1, false);
    let (close, _) = log.only_instruction(1);
    log.answer(1, epoch, close, Answer::Done);
    assert!(matches!(log.fleet.session(&session_id(2)).expect("listed").phase, Phase::Preparing { .. }));
    assert!(matches!(log.fleet.session(&session_id(4)).expect("listed").phase, Phase::Placing { .. }));
    let tagged = HostFacts { tags: BTreeMap::from([("x".to_owned(), "1".to_owned())]), ..facts(Some(9), None, false) };
    log.connect(2, tagged);
    assert_eq!(log.fleet.waiting().count(), 0);
    assert_eq!(log.state(3), Some(SessionState::Creating));
}

#[test]
fn a_request_leaves_the_queue_when_its_time_is_up() {
    let mut log = Log::new();
    log.create(1, SessionSpec { enqueue: true, ..spec(1, SessionKind::Virtual) });
    assert_eq!(log.fleet.next_deadline(), Some(Timestamp(1_000) + Settings::default().queue_timeout));
    log.wait(Settings::default().queue_timeout.0);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    assert!(log.reason(1).contains("no dcv server found for placement"), "{}", log.reason(1));
}

#[test]
fn nothing_stays_creating_or_deleting_for_ever() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.create(2, spec(2, SessionKind::Virtual));
    log.delete(1, 1, false);
    log.wait_and_report(5, 1, epoch);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    assert_eq!(log.reason(1), "its server did not confirm the end within 120 s");
    assert_eq!(log.state(2), Some(SessionState::Creating));
    assert_eq!(log.reason(2), "its server did not create it within 120 s");
    log.wait_and_report(5, 1, epoch);
    assert_eq!(log.state(2), Some(SessionState::Deleted));
    assert_eq!(log.reason(2), "its server did not create it within 120 s, and did not confirm that it gave up");
    let closes = log.fleet.outbox(&server_id(1)).filter(|i| matches!(i.action, Action::CloseSession { .. })).count();
    assert_eq!(closes, 2, "the host is still told to end both");
}

#[test]
fn a_silent_agent_makes_its_sessions_unknown_and_a_word_from_it_brings_them_back() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch });
    let server = log.fleet.server(&server_id(1)).expect("listed").clone();
    assert_eq!(log.fleet.unavailability(&server), Some(Unavailability::Unknown));
    assert_eq!(log.state(1), Some(SessionState::Ready), "a moment's interruption is no loss");
    log.wait(90_000);
    assert_eq!(log.fleet.unavailability(&server), Some(Unavailability::UnreachableAgent));
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    log.connect_with(1, facts(None, None, false), vec![reported(1, 1, true)]);
    assert_eq!(log.state(1), Some(SessionState::Ready));
}

#[test]
fn what_an_older_connection_says_has_no_effect() {
    let mut log = Log::new();
    let old = log.connect(1, facts(None, None, false));
    log.create(1, spec(1, SessionKind::Virtual));
    let (instruction, _) = log.only_instruction(1);
    let new = log.connect(1, facts(None, None, false));
    assert!(new > old);
    let stale = Outcome::Refused(Refusal::StaleEpoch);
    assert_eq!(log.answer(1, old, instruction, Answer::Done), stale);
    assert_eq!(log.apply(Command::Report { server: server_id(1), epoch: old, report: Report::default() }), stale);
    assert_eq!(log.apply(Command::DisconnectAgent { server: server_id(1), epoch: old }), stale);
    assert_eq!(log.state(1), Some(SessionState::Creating));
    log.answer(1, new, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Ready));
}

#[test]
fn a_session_that_a_host_made_is_adopted_also_over_a_deleted_one() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.delete(1, 1, false);
    let (close, _) = log.only_instruction(1);
    log.answer(1, epoch, close, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    let changes = Inventory::Changes { changed: vec![reported(1, 1, true), reported(7, 2, true)], gone: Vec::new() };
    let report = Report { sessions: Some(changes), ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch, report });
    assert_eq!(log.state(1), Some(SessionState::Ready));
    assert_eq!(log.state(7), Some(SessionState::Ready));
}

#[test]
fn a_session_that_is_to_be_closed_is_not_adopted_again() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch });
    assert_eq!(log.delete(1, 1, true), Outcome::Deleting(SessionState::Deleted));
    let epoch = log.connect_with(1, facts(None, None, false), vec![reported(1, 1, true)]);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    let (close, _) = log.only_instruction(1);
    log.answer(1, epoch, close, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
}

#[test]
fn a_session_that_is_missing_on_its_host_ends_with_a_reason() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.ready(2, 2, 1, epoch);
    let gone = vec![EndedSession { id: session_id(2), reason: Some("the user logged out".to_owned()) }];
    let changes = Inventory::Changes { changed: Vec::new(), gone };
    log.apply(Command::Report {
        server: server_id(1),
        epoch,
        report: Report { sessions: Some(changes), ..Report::default() },
    });
    assert_eq!(log.reason(2), "the user logged out");
    log.connect(1, facts(None, None, false));
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    assert_eq!(log.reason(1), "it is no longer on its server");
}

#[test]
fn a_closed_server_takes_nothing_new_and_stays_closed_while_it_is_away() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    let close = |force| Command::CloseServer { id: server_id(1), force, client: client() };
    assert_eq!(log.apply(close(false)), Outcome::Refused(Refusal::ServerHasSessions { sessions: 1 }));
    assert_eq!(log.apply(close(true)), Outcome::Done);
    assert!(matches!(log.create(2, spec(2, SessionKind::Virtual)), Outcome::Refused(_)));
    assert_eq!(log.state(1), Some(SessionState::Ready));
    log.wait(90_000);
    log.wait(Settings::default().lost_server_retention.0);
    assert!(log.fleet.server(&server_id(1)).is_none(), "a lost server is forgotten after its time");
    log.connect(1, facts(None, None, false));
    assert!(matches!(log.create(3, spec(2, SessionKind::Virtual)), Outcome::Refused(_)));
    log.apply(Command::OpenServer { id: server_id(1), client: client() });
    assert!(matches!(log.create(4, spec(2, SessionKind::Virtual)), Outcome::Created { .. }));
}

#[test]
fn a_restarted_replica_has_no_agents_until_they_come_back() {
    let mut log = Log::new();
    log.connect(1, facts(None, None, false));
    log.apply(Command::ReplicaStarted { replica: ReplicaId(1) });
    assert!(matches!(log.create(1, spec(1, SessionKind::Virtual)), Outcome::Refused(_)));
    log.connect(1, facts(None, None, false));
    assert!(matches!(log.create(1, spec(1, SessionKind::Virtual)), Outcome::Created { .. }));
}

#[test]
fn agents_of_a_silent_replica_are_interrupted_and_welcome_elsewhere_at_once() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    let silent = Command::ReplicaSilent { replica: ReplicaId(2) };
    assert_eq!(log.apply(silent), Outcome::Done);
    assert!(log.fleet.server(&server_id(1)).expect("listed").link.is_up(), "it is held by another replica");

    log.apply(Command::ReplicaSilent { replica: ReplicaId(1) });
    assert_eq!(log.state(1), Some(SessionState::Ready), "its session is not lost");
    assert!(matches!(log.create(2, spec(2, SessionKind::Virtual)), Outcome::Refused(_)));
    let report = Command::Report { server: server_id(1), epoch, report: Report::default() };
    assert_eq!(log.apply(report), Outcome::Refused(Refusal::StaleEpoch), "the connection is over");
    let before = log.fleet.journal().last();
    log.apply(Command::ReplicaSilent { replica: ReplicaId(1) });
    assert_eq!(log.fleet.journal().last(), before, "said again, it changes nothing");
    // Another run: the host began anew meanwhile.
    assert!(matches!(log.hello(1, 9, facts(None, None, false), Vec::new()), Outcome::Welcome { .. }));
}

#[test]
fn a_session_that_ended_before_its_creation_was_answered_does_not_become_ready() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.create(1, spec(1, SessionKind::Virtual));
    let (instruction, _) = log.only_instruction(1);
    let gone = vec![EndedSession { id: session_id(1), reason: Some("the user logged out".to_owned()) }];
    let changes = Inventory::Changes { changed: Vec::new(), gone };
    let report = Report { sessions: Some(changes), ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch, report });
    assert_eq!(log.reason(1), "the user logged out");
    log.answer(1, epoch, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
}

#[test]
fn a_session_that_was_deleted_while_its_host_was_away_for_long_is_closed_when_it_shows_again() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch });
    log.wait(90_000);
    log.delete(1, 1, true);
    log.wait(Settings::default().lost_server_retention.0);
    assert!(log.fleet.server(&server_id(1)).is_none());
    let made_here = ReportedSession { created_by: Some(InstructionId(1)), ..reported(1, 1, true) };
    log.connect_with(1, facts(None, None, false), vec![made_here]);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    let (_, action) = log.only_instruction(1);
    assert!(matches!(action, Action::CloseSession { session } if session == session_id(1)));
}

#[test]
fn a_word_on_the_same_connection_brings_a_lost_server_back() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.wait(1_000_000);
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    let report = Command::Report { server: server_id(1), epoch, report: Report::default() };
    assert_eq!(log.apply(report), Outcome::Done);
    assert_eq!(log.state(1), Some(SessionState::Ready));
    assert!(matches!(log.create(2, spec(2, SessionKind::Virtual)), Outcome::Created { .. }));
}

#[test]
fn only_the_newest_permissions_wait_for_a_server_that_does_not_answer() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    for number in 0..5 {
        log.apply(Command::UpdatePermissions {
            id: session_id(1),
            owner: owner(1),
            permissions: format!("[permissions] {number}").repeat(1000),
            client: client(),
        });
    }
    let (_, action) = log.only_instruction(1);
    assert!(matches!(action, Action::SetPermissions { permissions, .. } if permissions.contains(" 4")));
    let journaled = log.fleet.journal().newest().expect("kept").event.clone();
    let Event::PermissionsChanged { permissions, .. } = journaled else { panic!("{journaled:?}") };
    assert!(permissions.len() < 1100, "the journal keeps {} bytes", permissions.len());
}
