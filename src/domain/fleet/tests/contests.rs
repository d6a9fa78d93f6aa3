//! Two agents with one server id: the same run that connects again, and the
//! agent of a copied host.

use super::*;
use crate::domain::server::CONTEST_INTERVAL;

const OTHER: Outcome = Outcome::Refused(Refusal::OtherInstance);

fn plain() -> HostFacts {
    facts(None, None, false)
}

/// When the journal says that server 1 was contested.
fn told(log: &Log) -> Vec<u64> {
    let records = log.fleet.journal().after(None);
    let contested = records
        .filter(|record| record.event == Event::ServerContested { server: server_id(1) })
        .map(|record| record.at.0);
    contested.collect()
}

fn contested_at(log: &Log) -> Option<Timestamp> {
    log.fleet.server(&server_id(1)).expect("listed").contested_at
}

/// A copied host knows nothing of the sessions; it must not end them.
fn ready_session() -> (Log, Epoch) {
    let mut log = Log::new();
    let epoch = log.connect(1, plain());
    log.ready(1, 1, 1, epoch);
    (log, epoch)
}

#[test]
fn the_same_agent_replaces_its_own_connection_at_once() {
    let mut log = Log::new();
    let old = log.connect(1, plain());
    let new = log.connect(1, plain());
    assert!(new > old);
    assert_eq!(contested_at(&log), None);
    assert!(told(&log).is_empty());
}

#[test]
fn another_agent_is_refused_while_the_first_is_connected_and_disturbs_nothing() {
    let (mut log, epoch) = ready_session();
    let before = log.fleet.server(&server_id(1)).expect("listed").clone();
    let elsewhere = HostFacts { hostname: "copy".to_owned(), ..plain() };
    assert_eq!(log.hello(1, 1, elsewhere, vec![reported(7, 2, true)]), OTHER);
    let after = log.fleet.server(&server_id(1)).expect("listed");
    assert_eq!((&after.link, &after.facts, after.heard_at), (&before.link, &before.facts, before.heard_at));
    assert_eq!(log.state(1), Some(SessionState::Ready));
    assert_eq!(log.state(7), None, "what a refused agent reports does not count");
    let report = Command::Report { server: server_id(1), epoch, report: Report::default() };
    assert_eq!(log.apply(report), Outcome::Done);
    let next = log.connect(2, plain());
    assert_eq!(next, epoch.next(), "a refused connection has no number");
}

#[test]
fn another_agent_is_welcome_after_a_connection_broke() {
    let (mut log, epoch) = ready_session();
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER);
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch });
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER, "it has none of the sessions: a copy");
    assert_eq!(log.state(1), Some(SessionState::Ready));
    assert!(matches!(log.hello(1, 2, plain(), vec![reported(1, 1, true)]), Outcome::Welcome { .. }));
    assert_eq!(log.state(1), Some(SessionState::Ready));
    assert_eq!(log.hello(1, 0, plain(), Vec::new()), OTHER, "now the first is the other");
}

#[test]
fn another_agent_is_welcome_at_once_when_the_first_gave_no_sign_of_life() {
    let (mut log, epoch) = ready_session();
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER);
    log.apply(Command::AgentSilent { server: server_id(1), epoch });
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    assert!(matches!(log.hello(1, 1, plain(), Vec::new()), Outcome::Welcome { .. }));
}

#[test]
fn a_copy_does_not_get_in_when_a_replica_starts_anew() {
    let (mut log, _) = ready_session();
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER);
    log.apply(Command::ReplicaStarted { replica: ReplicaId(1) });
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER);
    assert!(matches!(log.hello(1, 0, plain(), vec![reported(1, 1, true)]), Outcome::Welcome { .. }));
    assert_eq!(log.state(1), Some(SessionState::Ready));
}

#[test]
fn a_copy_does_not_get_in_when_a_replica_falls_silent() {
    let (mut log, _) = ready_session();
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER);
    log.apply(Command::ReplicaSilent { replica: ReplicaId(1) });
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER, "the original has yet to come back elsewhere");
    assert!(matches!(log.hello(1, 0, plain(), vec![reported(1, 1, true)]), Outcome::Welcome { .. }));
    assert_eq!(log.state(1), Some(SessionState::Ready));
}

#[test]
fn another_agent_is_welcome_when_the_first_is_lost() {
    let (mut log, epoch) = ready_session();
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER);
    log.wait(90_000);
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    assert!(matches!(log.hello(1, 1, plain(), Vec::new()), Outcome::Welcome { .. }));
    let report = Command::Report { server: server_id(1), epoch, report: Report::default() };
    assert_eq!(log.apply(report), Outcome::Refused(Refusal::StaleEpoch), "the first came too late");
}

#[test]
fn an_agent_that_was_lost_and_spoke_again_is_still_the_one_that_counts() {
    let (mut log, epoch) = ready_session();
    log.wait(90_000);
    log.apply(Command::Report { server: server_id(1), epoch, report: Report::default() });
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER);
    assert!(matches!(log.hello(1, 0, plain(), Vec::new()), Outcome::Welcome { .. }));
}

#[test]
fn another_agent_is_welcome_after_the_replica_of_the_first_began_anew() {
    let (mut log, _) = ready_session();
    log.apply(Command::ReplicaStarted { replica: ReplicaId(1) });
    assert!(matches!(log.hello(1, 1, plain(), Vec::new()), Outcome::Welcome { .. }));
}

#[test]
fn a_contested_server_is_told_once_a_minute_however_often_others_come() {
    let (mut log, epoch) = ready_session();
    let start = log.at;
    assert!(!log.fleet.refuses_silently(&server_id(1), &instance(1)), "the first one is news");
    for second in 0..130 {
        log.at = start + second * 1_000;
        // So that it is not lost meanwhile.
        log.apply(Command::Report { server: server_id(1), epoch, report: Report::default() });
        let silently = log.fleet.refuses_silently(&server_id(1), &instance(1));
        assert_eq!(silently, ![0, 60, 120].contains(&second), "after {second} s");
        for run in 1..=3 {
            assert_eq!(log.hello(1, run, plain(), Vec::new()), OTHER);
        }
    }
    let minute = CONTEST_INTERVAL.0;
    assert_eq!(told(&log), [start, start + minute, start + 2 * minute]);
    assert_eq!(contested_at(&log), Some(Timestamp(start + 2 * minute)));
    assert!(!log.fleet.refuses_silently(&server_id(1), &instance(0)), "its own agent is welcome");

    // A new connection does not make the broker forget that it told it.
    log.connect(1, plain());
    assert_eq!(contested_at(&log), Some(Timestamp(start + 2 * minute)));
    assert_eq!(log.hello(1, 1, plain(), Vec::new()), OTHER);
    assert_eq!(told(&log).len(), 3);
}
