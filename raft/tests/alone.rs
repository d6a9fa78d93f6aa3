//! A cluster of one: what is acknowledged stays, in order and in time.
#![allow(clippy::unwrap_used)]

use berth_raft::testing::{Command, Effect, Ledger};
use berth_raft::{
    Clock, Config, LogIndex, ManualClock, ProposeError, ReadError, Replica, ReplicaId, StartError, StopReason,
    SystemClock, UnixMillis,
};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

fn config(folder: &Path) -> Config {
    Config::new(folder, ReplicaId(1))
}

fn add(id: u64) -> Command {
    Command::Add { id, amount: 1, padding: Vec::new() }
}

async fn start_with(config: Config, clock: Arc<dyn Clock>) -> Result<Replica<Ledger>, StartError> {
    Replica::start(config, clock, Ledger::default(), Arc::new(|_, _| {})).await
}

async fn start(folder: &Path) -> Replica<Ledger> {
    start_with(config(folder), Arc::new(SystemClock)).await.unwrap()
}

/// Starts on a folder that an earlier replica may still be closing.
async fn start_when_free(config: Config) -> Replica<Ledger> {
    let started = timeout(PATIENCE, async {
        loop {
            match start_with(config.clone(), Arc::new(SystemClock)).await {
                Ok(replica) => return replica,
                Err(StartError::Storage { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
    });
    started.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_come_back_in_the_order_of_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    let proposed = replica.propose(vec![add(1), add(2), add(1)]).await.unwrap();
    let outcomes: Vec<(u64, u32)> = proposed.outcomes.iter().map(|outcome| (outcome.total, outcome.times)).collect();
    assert_eq!(outcomes, [(1, 1), (2, 1), (3, 2)]);
    let view = replica.local();
    assert_eq!((view.state.total, view.index), (3, proposed.index));
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_finds_everything_before_it_serves() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..5_u64 {
        let replica = start(folder.path()).await;
        // Right after the start, without asking anybody.
        assert_eq!(replica.local().state.total, round * 20, "round {round}");
        assert_eq!(replica.read().await.unwrap().state.total, round * 20);
        for id in 0..20 {
            replica.propose(vec![add(round * 20 + id)]).await.unwrap();
        }
        replica.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_dropped_without_a_stop_keeps_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    for round in 1..=3_u64 {
        let replica = start_when_free(config(folder.path())).await;
        let calls = (0..50).map(|call| {
            let replica = replica.clone();
            tokio::spawn(async move { replica.propose(vec![add(round * 100 + call)]).await })
        });
        let results = futures_util::future::join_all(calls).await;
        assert!(results.iter().all(|result| matches!(result, Ok(Ok(_)))));
        drop(replica);
        let replica = start_when_free(config(folder.path())).await;
        let state = replica.local().state;
        assert_eq!(state.total, round * 50);
        assert!(state.seen.values().all(|times| *times == 1));
        assert!(!state.ran_backwards);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_observer_sees_every_entry_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let observer = Arc::new(move |state: &Ledger, effects: &[Effect]| {
        sink.lock().unwrap().push((state.total, effects.to_vec()));
    });
    let clock = Arc::new(SystemClock);
    let replica = Replica::start(config(folder.path()), clock, Ledger::default(), observer).await.unwrap();
    for id in 1..=10 {
        replica.propose(vec![add(id)]).await.unwrap();
    }
    replica.stop().await.unwrap();
    let expected: Vec<_> =
        std::iter::once((0, Vec::new())).chain((1..=10).map(|id| (id, vec![Effect::Added(id)]))).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_bounds_the_log_and_is_what_the_next_start_begins_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.snapshot_after_entries = 50;
    config.keep_entries = 10;
    let replica = start_with(config.clone(), Arc::new(SystemClock)).await.unwrap();
    for id in 0..300 {
        replica.propose(vec![add(id)]).await.unwrap();
    }
    let covered = replica.trigger_snapshot().await.unwrap();
    assert!(covered >= LogIndex(300), "covers up to {covered}");
    let purged = timeout(PATIENCE, async {
        while replica.status().purged < Some(LogIndex(200)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    purged.await.unwrap();
    replica.stop().await.unwrap();

    let replica = start_with(config.clone(), Arc::new(SystemClock)).await.unwrap();
    let state = replica.local().state;
    assert_eq!((state.total, state.seen.len()), (300, 300));
    assert!(!state.ran_backwards);
    replica.stop().await.unwrap();

    // Without it there is no state to go on from.
    let snapshots = folder.path().join("snapshots");
    for file in std::fs::read_dir(&snapshots).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let error = start_with(config, Arc::new(SystemClock)).await.unwrap_err();
    assert!(matches!(error, StartError::SnapshotLost { .. }), "{error}");
    assert!(error.to_string().contains(&snapshots.display().to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_made_by_themselves_by_entries_and_by_bytes() {
    for by_bytes in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        if by_bytes {
            config.snapshot_after_bytes = 20_000;
        } else {
            config.snapshot_after_entries = 20;
        }
        let replica = start_with(config, Arc::new(SystemClock)).await.unwrap();
        for id in 0..25 {
            let padding = vec![7; 1_000];
            let command = Command::Add { id, amount: 1, padding };
            replica.propose(vec![command]).await.unwrap();
        }
        let made = timeout(PATIENCE, async {
            while replica.status().snapshot.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        made.await.unwrap();
        replica.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stamps_never_run_backwards_even_when_the_clock_and_a_restart_do() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(UnixMillis(50_000)));
    let replica = start_with(config(folder.path()), clock.clone()).await.unwrap();
    replica.propose(vec![add(1)]).await.unwrap();
    clock.set(UnixMillis(10_000));
    replica.propose(vec![add(2)]).await.unwrap();
    assert_eq!(replica.local().state.at, UnixMillis(50_000));
    replica.trigger_snapshot().await.unwrap();
    replica.stop().await.unwrap();

    let clock = Arc::new(ManualClock::new(UnixMillis(1)));
    let replica = start_with(config(folder.path()), clock).await.unwrap();
    replica.propose(vec![add(3)]).await.unwrap();
    let state = replica.local().state;
    assert_eq!((state.at, state.ran_backwards), (UnixMillis(50_000), false));
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_fires_once_when_the_clock_reaches_it() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(UnixMillis(1_000)));
    let replica = start_with(config(folder.path()), clock.clone()).await.unwrap();
    let deadline = Command::Deadline { at: 2_000, stuck: false };
    let set = replica.propose(vec![deadline]).await.unwrap();
    clock.set(UnixMillis(1_999));
    // A proposal orders this test after whatever a premature tick would have done.
    let before = replica.propose(vec![add(1)]).await.unwrap();
    assert_eq!(before.index, LogIndex(set.index.0 + 1));
    assert_eq!(replica.local().state.fired, 0);

    let mut applied = replica.applied();
    clock.set(UnixMillis(2_000));
    let tick = applied.wait_for(|index| *index > before.index);
    timeout(PATIENCE, tick).await.unwrap().unwrap();
    let state = replica.local().state;
    assert_eq!((state.fired, state.at), (1, UnixMillis(2_000)));
    clock.advance(60_000);
    let after = replica.propose(vec![add(2)]).await.unwrap();
    assert_eq!(after.index, LogIndex(before.index.0 + 2));
    assert_eq!(replica.local().state.fired, 1);
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_stays_in_the_past_ticks_at_a_bounded_rate() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.tick_interval_min_ms = 200;
    let clock = Arc::new(ManualClock::new(UnixMillis(1_000)));
    let replica = start_with(config, clock).await.unwrap();
    let began = std::time::Instant::now();
    let deadline = Command::Deadline { at: 1, stuck: true };
    replica.propose(vec![deadline]).await.unwrap();
    let mut applied = replica.applied();
    let three = timeout(PATIENCE, async {
        while replica.local().state.fired < 3 {
            applied.changed().await.unwrap();
        }
    });
    three.await.unwrap();
    // Three ticks have two pauses between them, however slow the machine is.
    assert!(began.elapsed() >= Duration::from_millis(400));
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_replica_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    replica.propose(vec![add(1)]).await.unwrap();
    let before = replica.status();
    for _ in 0..50 {
        replica.read().await.unwrap();
    }
    // Longer than two signs of life.
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    let after = replica.status();
    assert_eq!((before.last_log, before.term), (after.last_log, after.term));
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_do_not_fit_into_an_entry_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    let padding = vec![0; 9 * 1024 * 1024];
    let large = Command::Add { id: 1, amount: 1, padding };
    replica.propose(vec![large.clone()]).await.unwrap();
    let refused = replica.propose(vec![large.clone(), large]).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })));
    assert_eq!(replica.local().state.total, 1);
    replica.stop().await.unwrap();
    // Also an entry that long comes back.
    let replica = start(folder.path()).await;
    assert_eq!(replica.local().state.total, 1);
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once_and_what_was_refused_never_happens() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.queue_commands_max = 4;
    config.entries_in_flight_max = 1;
    let replica = start_with(config, Arc::new(SystemClock)).await.unwrap();
    let calls = (0..200).map(|id| {
        let replica = replica.clone();
        tokio::spawn(async move { (id, replica.propose(vec![add(id)]).await) })
    });
    let mut taken = Vec::new();
    let mut refused = 0;
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            (id, Ok(_)) => taken.push(id),
            (_, Err(ProposeError::Overloaded { .. })) => refused += 1,
            (_, Err(other)) => panic!("{other}"),
        }
    }
    assert!(refused > 0, "200 calls at once fit into a queue for 4");
    let state = replica.read().await.unwrap().state;
    assert_eq!(state.seen.keys().copied().collect::<Vec<_>>(), taken);
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_replica_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    replica.stop().await.unwrap();
    replica.stop().await.unwrap();
    let refused = replica.propose(vec![add(1)]).await;
    assert_eq!(refused.unwrap_err(), ProposeError::Stopped(StopReason::Requested));
    let refused = replica.read().await;
    assert_eq!(refused.unwrap_err(), ReadError::Stopped(StopReason::Requested));
    assert_eq!(replica.status().stopped, Some(StopReason::Requested));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_state_machine_stops_the_replica_and_is_told() {
    for broken in [Command::Panic, Command::Unreadable] {
        let folder = tempfile::tempdir().unwrap();
        let replica = start(folder.path()).await;
        replica.propose(vec![add(1)]).await.unwrap();
        let mut stopped = replica.stopped();
        let outcome = replica.propose(vec![broken.clone()]).await;
        assert_eq!(outcome.unwrap_err(), ProposeError::OutcomeUnknown);
        let reason = timeout(PATIENCE, stopped.wait_for(Option::is_some));
        let reason = reason.await.unwrap().unwrap().clone().unwrap();
        assert!(matches!(reason, StopReason::Failed(_)), "{reason}");
        let refused = replica.propose(vec![add(2)]).await;
        assert_eq!(refused.unwrap_err(), ProposeError::Stopped(reason));
        replica.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_another_replica_and_a_folder_in_use_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(folder.path()).await;
    let in_use = start_with(config(folder.path()), Arc::new(SystemClock)).await;
    assert!(matches!(in_use.unwrap_err(), StartError::Storage { .. }));
    replica.stop().await.unwrap();
    let foreign = Config::new(folder.path(), ReplicaId(2));
    let foreign = start_with(foreign, Arc::new(SystemClock)).await;
    assert!(matches!(
        foreign.unwrap_err(),
        StartError::ForeignFolder { found: ReplicaId(1), configured: ReplicaId(2), .. }
    ));
}
