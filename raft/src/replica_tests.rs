//! What happens when storage fails beneath a running replica.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::clock::SystemClock;
use crate::status::StorageCondition;
use crate::testing::{Command, Ledger};
use std::path::Path;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

async fn start(folder: &Path) -> Replica<Ledger> {
    let mut config = Config::new(folder, ReplicaId(1));
    config.request_timeout_ms = 2_000;
    let clock = Arc::new(SystemClock);
    let observer: Observer<Ledger> = Arc::new(|_, _| {});
    Replica::start(config, clock, Ledger::default(), observer).await.unwrap()
}

/// A replica that applies no more once it has applied something, until `closed` is dropped.
struct Held {
    replica: Replica<Ledger>,
    applying: Arc<tokio::sync::Notify>,
    closed: std::sync::mpsc::Sender<()>,
}

async fn start_held(folder: &Path) -> Held {
    let applying = Arc::new(tokio::sync::Notify::new());
    let (closed, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let observer: Observer<Ledger> = {
        let applying = Arc::clone(&applying);
        Arc::new(move |ledger, _| {
            if ledger.total > 0 {
                applying.notify_one();
                // Until the other end is dropped.
                let _ = gate.lock().unwrap().recv();
            }
        })
    };
    let config = Config { incarnation: 1, ..Config::new(folder, ReplicaId(1)) };
    let replica = Replica::start(config, Arc::new(SystemClock), Ledger::default(), observer).await.unwrap();
    Held { replica, applying, closed }
}

fn add(id: u64) -> Command {
    Command::Add { id, amount: 1, padding: Vec::new() }
}

async fn reason_of_the_stop(replica: &Replica<Ledger>) -> StopReason {
    let mut stopped = replica.stopped();
    let reason = timeout(PATIENCE, stopped.wait_for(Option::is_some));
    reason.await.unwrap().unwrap().clone().unwrap()
}

/// Appends behind the library's back, so that its own next append is refused by storage.
fn take_the_next_place(replica: &Replica<Ledger>) {
    let log = &replica.core.log;
    let (index, term) = log.last().unwrap();
    let entry = berth_storage::Entry { index: index + 1, term, payload: b"not an entry of this crate".to_vec() };
    log.append(vec![entry], Box::new(|result| result.unwrap())).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_storage_refuses_stops_the_replica_and_everybody_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    replica.propose(vec![add(1)]).await.unwrap();
    take_the_next_place(&replica);
    let outcome = replica.propose(vec![add(2)]).await.unwrap_err();
    assert!(matches!(outcome, ProposeError::OutcomeUnknown | ProposeError::Stopped(_)), "{outcome}");
    let reason = reason_of_the_stop(&replica).await;
    assert!(matches!(reason, StopReason::Failed(_)), "{reason}");
    assert_eq!(replica.status().stopped, Some(reason.clone()));
    let refused = replica.propose(vec![add(3)]).await.unwrap_err();
    assert_eq!(refused, ProposeError::Stopped(reason.clone()));
    let refused = replica.read().await.unwrap_err();
    assert_eq!(refused, ReadError::Stopped(reason));
    // The last state can still be looked at, as stale.
    assert_eq!(replica.local().state.total, 1);
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_majority_is_found_also_while_what_it_has_is_not_applied_here() {
    let folder = tempfile::tempdir().unwrap();
    let Held { replica, applying, closed } = start_held(folder.path()).await;
    let proposing = tokio::spawn({
        let replica = replica.clone();
        async move { replica.propose(vec![add(1)]).await }
    });
    timeout(PATIENCE, applying.notified()).await.unwrap();
    let last = replica.status().last_log;
    let second = tokio::spawn({
        let replica = replica.clone();
        async move { replica.propose(vec![add(2)]).await }
    });
    let reading = async {
        while replica.status().last_log == last {
            tokio::task::yield_now().await;
        }
        // The second entry is in the log, and waits behind the first one.
        while !replica.majority_confirms().await.unwrap() {}
        assert!(replica.status().applied < replica.status().last_log);
    };
    timeout(PATIENCE, reading).await.unwrap();
    drop(closed);
    for proposed in [proposing, second] {
        proposed.await.unwrap().unwrap();
    }
    replica.stop().await.unwrap();
    assert!(replica.majority_confirms().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_that_is_passed_on_again_while_it_is_under_way_is_not_queued_again() {
    let folder = tempfile::tempdir().unwrap();
    let Held { replica, applying, closed } = start_held(folder.path()).await;
    let last = replica.status().last_log.unwrap();
    let pass_on = || {
        let id = crate::types::CallId { replica: ReplicaId(1), incarnation: 1, sequence: 7, answered_below: 0 };
        let call = Call { id: Some(id), commands: vec![Ledger::encode_command(&add(1))] };
        let request = Request::Calls { calls: vec![call.into()] }.encode();
        let replica = replica.clone();
        async move { replica.answer_peer(ReplicaId(1), &request).await }
    };
    let first = tokio::spawn(pass_on());
    timeout(PATIENCE, applying.notified()).await.unwrap();
    let mut again: Vec<_> = (0..3).map(|_| Box::pin(pass_on())).collect();
    for again in &mut again {
        assert!(futures_util::poll!(again).is_pending());
    }
    drop(closed);
    let answer = timeout(PATIENCE, first).await.unwrap().unwrap();
    assert!(matches!(Answer::decode(&answer).unwrap(), Answer::Calls { .. }));
    for again in again {
        assert_eq!(timeout(PATIENCE, again).await.unwrap(), answer);
    }
    let after = replica.propose(vec![add(2)]).await.unwrap().index;
    assert_eq!(after.0, last.0 + 2, "each call became one entry");
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_cannot_be_read_back_is_never_taken_for_the_end_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    replica.propose(vec![add(1)]).await.unwrap();
    take_the_next_place(&replica);
    replica.stop().await.unwrap();

    // The entry is whole as far as storage can tell, but it is none of this crate's.
    let clock = Arc::new(SystemClock);
    let config = Config::new(folder.path(), ReplicaId(1));
    let observer: Observer<Ledger> = Arc::new(|_, _| {});
    let refused = Replica::start(config, clock, Ledger::default(), observer).await;
    let error = refused.unwrap_err();
    let StartError::Stopped(StopReason::Failed(text)) = &error else {
        panic!("{error}");
    };
    assert!(text.contains("a log entry"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_vanish_before_they_are_applied_stop_the_replica() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    replica.propose(vec![add(1)]).await.unwrap();
    let mut store = LogStore::new(replica.core.log.clone(), ReplicaId(1), CancellationToken::new());
    let (last, term) = replica.core.log.last().unwrap();
    let marker = codec::encode_log_id(Some(&crate::types::log_id(term, last)));
    let (purged, done) = std::sync::mpsc::channel();
    replica.core.log.purge_through(last, marker, Box::new(move |result| purged.send(result).unwrap()));
    done.recv_timeout(PATIENCE).unwrap().unwrap();
    let stream = openraft::RaftLogReader::entries_stream(&mut store, last..=last).await;
    let entries: Result<Vec<_>, _> = futures_util::TryStreamExt::try_collect::<Vec<_>>(stream).await;
    assert!(entries.is_err(), "purged entries were passed over: {entries:?}");
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_its_reserve_refuses_the_start_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path(), ReplicaId(1));
    config.disk_reserve_bytes = u64::MAX / 2;
    config.start_timeout_ms = 500;
    config.request_timeout_ms = 200;
    let again = config.clone();
    let clock = Arc::new(SystemClock);
    let observer: Observer<Ledger> = Arc::new(|_, _| {});
    let started = Replica::start(config, clock, Ledger::default(), observer);
    match timeout(PATIENCE, started).await.unwrap().unwrap_err() {
        StartError::NotReady { condition, .. } => {
            assert!(condition.contains("the disk is full"), "{condition}");
        }
        other => panic!("{other}"),
    }
    // The folder is free again, and works once there is room.
    let config = Config { disk_reserve_bytes: 0, start_timeout_ms: 30_000, ..again };
    let clock = Arc::new(SystemClock);
    let observer: Observer<Ledger> = Arc::new(|_, _| {});
    let replica = Replica::start(config, clock, Ledger::default(), observer).await;
    replica.unwrap().stop().await.unwrap();
}

#[test]
fn a_full_disk_is_told_as_one() {
    let full = berth_storage::Condition::Full { free_bytes: 1, needed_bytes: 2 };
    assert_eq!(StorageCondition::from(full).to_string(), "the disk is full: 1 bytes are free, 2 are needed");
}

/// A call that another replica passes on.
fn call(sequence: u64, answered_below: u64) -> Request {
    let id = crate::types::CallId { replica: ReplicaId(1), incarnation: 5, sequence, answered_below };
    let commands = vec![Ledger::encode_command(&add(sequence))];
    Request::Calls { calls: vec![Call { id: Some(id), commands }.into()] }
}

async fn replies(replica: &Replica<Ledger>, request: Request) -> Vec<crate::wire::CallReply> {
    match replica.answer(ReplicaId(1), request).await {
        Answer::Calls { replies } => replies,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_comes_again_after_a_snapshot_and_a_restart_is_answered_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    let first = replies(&replica, call(0, 0)).await;
    assert!(matches!(first[..], [crate::wire::CallReply::Proposed { .. }]));
    assert_eq!(replies(&replica, call(0, 0)).await, first);
    replica.trigger_snapshot().await.unwrap();
    replica.propose(vec![add(100)]).await.unwrap();
    replica.stop().await.unwrap();

    let replica = start(folder.path()).await;
    assert_eq!(replies(&replica, call(0, 0)).await, first);
    assert_eq!(replica.local().state.total, 2);
    // Once it is answered it is forgotten, and not applied again either.
    replies(&replica, call(1, 1)).await;
    let forgotten = replies(&replica, call(0, 0)).await;
    assert_eq!(forgotten, [crate::wire::CallReply::Refused(Refusal::Unknown)]);
    assert_eq!(replica.local().state.total, 3);
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_speaks_for_its_own_calls_alone() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    let answer = replica.answer(ReplicaId(2), call(0, 0)).await;
    assert!(matches!(answer, Answer::Refused(Refusal::Garbage(_))), "{answer:?}");
    assert_eq!(replica.local().state.total, 0);
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calls_of_a_replica_that_is_no_member_are_not_applied() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    let id = crate::types::CallId { replica: ReplicaId(9), incarnation: 1, sequence: 7, answered_below: 0 };
    let commands = vec![Ledger::encode_command(&add(1))];
    let request = Request::Calls { calls: vec![Call { id: Some(id), commands }.into()] };
    let answer = replica.answer(ReplicaId(9), request).await;
    assert!(matches!(answer, Answer::Calls { .. }), "{answer:?}");
    assert_eq!(replica.local().state.total, 0);
    replica.stop().await.unwrap();
}
