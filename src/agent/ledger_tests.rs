#![allow(clippy::unwrap_used)]

use super::*;
use crate::domain::{Owner, SessionId, SessionKind, SessionSpec, Timestamp};

fn session() -> SessionId {
    SessionId::new("s-1").unwrap()
}

fn create(id: u64) -> Instruction {
    let spec = SessionSpec::plain("n".to_owned(), Owner::new("ann").unwrap(), SessionKind::Virtual);
    instruction(id, Action::CreateSession { session: session(), spec })
}

fn close(id: u64) -> Instruction {
    instruction(id, Action::CloseSession { session: session() })
}

fn instruction(id: u64, action: Action) -> Instruction {
    Instruction { id: InstructionId(id), issued_at: Timestamp(0), action }
}

#[test]
fn a_repeated_instruction_has_the_same_answer_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(Some(folder.path())).unwrap();
    assert_eq!(ledger.admit(&create(7)).unwrap(), Admission::Run);
    assert_eq!(ledger.admit(&create(7)).unwrap(), Admission::Running);
    ledger.finish(InstructionId(7), &Answer::Done).unwrap();
    drop(ledger);
    let mut ledger = Ledger::open(Some(folder.path())).unwrap();
    assert_eq!(ledger.admit(&create(7)).unwrap(), Admission::Answered(Answer::Done));
    assert_eq!(ledger.answers().count(), 1);
    ledger.settle(InstructionId(7)).unwrap();
    assert_eq!(Ledger::open(Some(folder.path())).unwrap().answers().count(), 0);
}

#[test]
fn an_interrupted_instruction_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    Ledger::open(Some(folder.path())).unwrap().admit(&create(7)).unwrap();
    // A crash while the next entry was written beside its place.
    fs::write(folder.path().join("8.new"), b"{").unwrap();
    let ledger = Ledger::open(Some(folder.path())).unwrap();
    assert_eq!(ledger.running(), [create(7)]);
    assert!(!folder.path().join("8.new").exists());
}

#[test]
fn a_create_that_arrives_behind_its_close_is_superseded() {
    let mut ledger = Ledger::open(None).unwrap();
    assert_eq!(ledger.admit(&close(9)).unwrap(), Admission::Run);
    ledger.finish(InstructionId(9), &Answer::Done).unwrap();
    let Admission::Answered(Answer::Failed { reason }) = ledger.admit(&create(7)).unwrap() else {
        panic!("the create was not refused");
    };
    assert!(reason.starts_with("superseded"), "{reason}");
    assert_eq!(ledger.admit(&create(10)).unwrap(), Admission::Run, "a later create is another matter");
}

#[test]
fn what_the_broker_no_longer_waits_for_is_forgotten_unless_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(Some(folder.path())).unwrap();
    for id in [1, 2, 3] {
        ledger.admit(&create(id)).unwrap();
    }
    ledger.finish(InstructionId(1), &Answer::Done).unwrap();
    ledger.finish(InstructionId(3), &Answer::Done).unwrap();
    ledger.forget_below(InstructionId(3)).unwrap();
    assert_eq!(ledger.running(), [create(2)]);
    assert_eq!(ledger.answers().map(|(instruction, _)| instruction.id).collect::<Vec<_>>(), [InstructionId(3)]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_damaged_entry_stops_the_start_and_names_its_file() {
    let folder = tempfile::tempdir().unwrap();
    for content in [
        "{",
        r#"{"version":2,"instruction":{"id":1,"issued_at":0,"action":{"close_session":{"session":"s"}}},"answer":null}"#,
    ] {
        fs::write(folder.path().join("1.json"), content).unwrap();
        let error = Ledger::open(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("1.json"), "{error}");
    }
}
