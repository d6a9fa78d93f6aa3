//! A folder that begins with a state goes on from there.
#![allow(clippy::unwrap_used)]

use berth_raft::testing::{Command, Ledger};
use berth_raft::{
    Beginning, Config, LogIndex, ManualClock, Member, Replica, ReplicaId, RestoreError, StartError, UnixMillis, restore,
};
use std::path::Path;
use std::sync::Arc;

const INDEX: u64 = 1_000_000_000_007;

fn add(id: u64) -> Command {
    Command::Add { id, amount: 1, padding: Vec::new() }
}

fn config(folder: &Path) -> Config {
    Config::new(folder, ReplicaId(4))
}

async fn start(config: Config) -> Result<Replica<Ledger>, StartError> {
    // A clock that is behind the state's time.
    Replica::start(config, Arc::new(ManualClock::new(UnixMillis(5))), Ledger::default(), Arc::new(|_, _| {})).await
}

/// The state of a replica that applied something.
async fn state() -> Ledger {
    let folder = tempfile::tempdir().unwrap();
    let replica = start(config(folder.path())).await.unwrap();
    replica.propose(vec![add(1), add(2)]).await.unwrap();
    let state = replica.local().state;
    replica.stop().await.unwrap();
    (*state).clone()
}

fn beginning(state: Ledger) -> Beginning<Ledger> {
    let member = Member { address: "b4:47100".to_owned(), folder: "f".to_owned() };
    Beginning { state, index: LogIndex(INDEX), at: UnixMillis(9_000), member }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_state_is_there_and_the_log_goes_on_after_it() {
    for format in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { formats: 1..=format, incarnation: 1, ..config(folder.path()) };
        restore(config.clone(), beginning(state().await)).await.unwrap();
        // The second time from what the first one wrote.
        for (run, total) in [(1, 2), (2, 3)] {
            let replica = start(Config { incarnation: run, ..config.clone() }).await.unwrap();
            let view = replica.read().await.unwrap();
            assert_eq!(view.state.total, total);
            assert!(view.index >= LogIndex(INDEX), "{}", view.index);
            let members = replica.members();
            assert_eq!(members.keys().collect::<Vec<_>>(), [&ReplicaId(4)]);
            assert_eq!(members[&ReplicaId(4)].member.address, "b4:47100");
            let proposed = replica.propose(vec![add(2 + run)]).await.unwrap();
            assert!(proposed.index > view.index && proposed.index > LogIndex(INDEX));
            assert_eq!(replica.status().format, format);
            assert_eq!(replica.status().applied_at, UnixMillis(9_000), "stamps do not run backwards");
            replica.stop().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_in_use_is_left_as_it_is_and_belongs_to_one_replica() {
    let folder = tempfile::tempdir().unwrap();
    restore(config(folder.path()), beginning(state().await)).await.unwrap();
    let again = restore(config(folder.path()), beginning(Ledger::default())).await.unwrap_err();
    assert!(matches!(again, RestoreError::InUse { .. }), "{again}");
    let other = Config { replica: ReplicaId(5), ..config(folder.path()) };
    let foreign = start(other).await.unwrap_err();
    assert!(matches!(foreign, StartError::ForeignFolder { .. }), "{foreign}");
    let replica = start(config(folder.path())).await.unwrap();
    assert_eq!(replica.local().state.total, 2);
    let running = restore(config(folder.path()), beginning(Ledger::default())).await.unwrap_err();
    assert!(matches!(running, RestoreError::Start(StartError::Storage { .. })), "{running}");
    replica.stop().await.unwrap();
}
