//! What the journal tells of a session and of a server, and how long.

use super::*;
use crate::domain::journal::Record;

/// The name of an event, its session, its server and the client that caused it.
fn told(record: &Record) -> (String, bool, bool, bool) {
    let name = format!("{:?}", record.event);
    let name = name.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
    (name, record.session().is_some(), record.server().is_some(), record.client().is_some())
}

fn of_session(log: &Log, number: u8) -> Vec<(String, bool, bool, bool)> {
    log.fleet.journal().of_session_after(&session_id(number), None).map(|record| told(record)).collect()
}

fn line(name: &str, server: bool, client: bool) -> (String, bool, bool, bool) {
    (name.to_owned(), true, server, client)
}

#[test]
fn the_timeline_of_a_session_tells_its_life_its_server_and_who_wanted_what() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.ready(2, 2, 1, epoch);
    log.delete(1, 1, false);
    let (close, _) = log.only_instruction(1);
    log.answer(1, epoch, close, Answer::Done);
    assert_eq!(
        of_session(&log, 1),
        [
            line("SessionCreated", false, true),
            line("InstructionIssued", true, true),
            line("SessionPlaced", true, true),
            line("InstructionSettled", true, false),
            line("SessionReady", true, false),
            line("InstructionIssued", true, true),
            line("SessionDeleting", true, true),
            line("InstructionSettled", true, false),
            line("SessionDeleted", true, false),
        ]
    );
}

#[test]
fn who_made_room_did_not_ask_for_the_session_that_gets_it() {
    let mut log = Log::new();
    log.connect(1, facts(Some(1), None, false));
    log.create(1, spec(1, SessionKind::Virtual));
    log.create(2, SessionSpec { enqueue: true, ..spec(2, SessionKind::Virtual) });
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch: Epoch(1) });
    log.connect(1, facts(Some(2), None, false));
    assert_eq!(
        of_session(&log, 2),
        [
            line("SessionCreated", false, true),
            line("InstructionIssued", true, false),
            line("SessionPlaced", true, false),
        ]
    );
}

#[test]
fn the_timeline_of_a_server_has_the_sessions_that_ended_there_by_themselves() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    let gone = vec![EndedSession { id: session_id(1), reason: Some("logged out".to_owned()) }];
    let sessions = Some(Inventory::Changes { changed: Vec::new(), gone });
    let report = Report { sessions, ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch, report });
    let last = log.fleet.journal().of_server_after(&server_id(1), None).last().expect("kept").clone();
    assert_eq!(told(&last), line("SessionDeleted", true, false));
    assert_eq!(last.session(), Some(&session_id(1)));
}

#[test]
fn events_grow_old_with_whatever_happens_next_and_a_restored_replica_knows_it() {
    let mut log = Log::new();
    let retention = Millis::from_secs(60);
    log.apply(Command::Configure(Settings { journal_retention: retention, ..Settings::default() }));
    log.create(1, spec(1, SessionKind::Virtual));
    let last = log.fleet.journal().newest().expect("kept").position;
    log.wait(retention.0);
    assert!(log.fleet.journal().is_empty());
    assert_eq!(log.fleet.journal().horizon(), Some(last));
    let mut bytes = Vec::new();
    log.fleet.write_image(&mut bytes).expect("memory");
    let restored = Fleet::read_image(&mut bytes.as_slice()).expect("just written");
    assert!(restored == log.fleet);
    assert_eq!(restored.journal().horizon(), Some(last));
}
