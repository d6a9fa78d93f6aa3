//! A call happens once, whatever becomes of its answers and of the leader.
#![allow(clippy::unwrap_used)]

mod support;

use berth_raft::testing::Ledger;
use berth_raft::{Config, ProposeError, ReplicaId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Cluster, Load, PATIENCE, add};
use tokio::time::{sleep, timeout};

fn assert_once(state: &Ledger, commands: u64) {
    assert_eq!(state.seen.len() as u64, commands);
    assert!(state.seen.values().all(|times| *times == 1));
    assert_eq!(state.total, commands);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_lost_are_asked_for_again_and_nothing_happens_twice() {
    let cluster = Cluster::of_three().await;
    cluster.traffic.lose_answer_each.store(4, Ordering::Relaxed);
    let load = Load::on(cluster.running.values().cloned(), 4, 0);
    load.more(300).await;
    let commands = load.end().await;
    assert!(cluster.traffic.lost.load(Ordering::Relaxed) > 20);
    assert_once(&cluster.common_state().await, commands);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_the_leader_under_load_lose_no_call_and_double_none() {
    let cluster = Cluster::of_three().await;
    let load = Load::on(cluster.running.values().cloned(), 3, 0);
    for round in 0..4 {
        load.more(50).await;
        let leader = cluster.leader(&cluster.all()).await;
        let others = cluster.others(leader);
        if round % 2 == 0 {
            // Cut off with calls on their way: its own callers have to find the next leader.
            cluster.network.isolate(leader);
            cluster.leader(&others).await;
            cluster.network.heal();
        } else {
            cluster.running[&leader].hand_over_to(others[0]).await.unwrap();
        }
    }
    load.more(50).await;
    let commands = load.end().await;
    assert_once(&cluster.common_state().await, commands);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_asked_under_load_takes_over_at_once() {
    let cluster = Cluster::of_three().await;
    let load = Load::on(cluster.running.values().cloned(), 16, 0);
    for _ in 0..12 {
        load.more(30).await;
        let leader = cluster.leader(&cluster.all()).await;
        let heir = cluster.others(leader)[0];
        assert!(cluster.running[&leader].hand_over_to(heir).await.unwrap(), "it gets the rest of the log");
        // An election that others begin by themselves would come later than this returns, or bring another one.
        assert_eq!(cluster.running[&leader].status().leader, Some(heir));
    }
    let commands = load.end().await;
    assert_once(&cluster.common_state().await, commands);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_leader_fails_no_call_of_the_others() {
    let mut cluster = Cluster::of_three().await;
    for _ in 0..2 {
        let leader = cluster.leader(&cluster.all()).await;
        let others = cluster.others(leader);
        let first = cluster.running[&leader].local().state.total;
        let load = Load::on(others.iter().map(|id| cluster.running[id].clone()), 3, first);
        load.more(50).await;
        let reader = {
            let (replica, go_on) = (cluster.running[&others[0]].clone(), Arc::clone(&load.go_on));
            tokio::spawn(async move {
                while go_on.load(Ordering::Relaxed) {
                    replica.read().await.unwrap();
                    sleep(Duration::from_millis(1)).await;
                }
            })
        };
        cluster.stop(leader).await;
        load.more(50).await;
        let commands = load.end().await;
        reader.await.unwrap();
        // It comes back, as another run of itself.
        cluster.start(leader, |_| {}).await.unwrap();
        cluster.leader(&cluster.all()).await;
        assert_once(&cluster.common_state().await, commands);
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_patience_learns_what_became_of_a_call_and_it_happens_once() {
    let mut cluster = Cluster::empty();
    for id in (1..=3).map(ReplicaId) {
        cluster.start(id, |config| config.request_timeout_ms = 1_500).await.unwrap();
    }
    let leader = cluster.leader(&cluster.all()).await;
    let follower = cluster.running[&cluster.others(leader)[0]].clone();
    let calls_are_remembered = async {
        while follower.status().format < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, calls_are_remembered).await.unwrap();
    follower.propose(vec![add(0)]).await.unwrap();
    cluster.traffic.lose_answer_each.store(1, Ordering::Relaxed);
    let patient = tokio::spawn({
        let follower = follower.clone();
        async move { follower.propose_within(vec![add(1)], PATIENCE).await }
    });
    // Who has as much time as is usual does not learn it.
    let given_up = follower.propose(vec![add(2)]).await.unwrap_err();
    assert_eq!(given_up, ProposeError::OutcomeUnknown);
    assert!(!patient.is_finished());
    cluster.traffic.lose_answer_each.store(0, Ordering::Relaxed);
    let proposed = timeout(PATIENCE, patient).await.unwrap().unwrap().unwrap();
    assert_eq!(proposed.outcomes[0].times, 1);
    assert!(cluster.common_state().await.seen.values().all(|times| *times == 1), "however often it was asked for");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_incarnation_a_lost_answer_is_told_as_unknown() {
    let mut cluster = Cluster::empty();
    let anonymous = |config: &mut Config| config.incarnation = 0;
    for id in (1..=3).map(ReplicaId) {
        cluster.start(id, anonymous).await.unwrap();
    }
    let leader = cluster.leader(&cluster.all()).await;
    let follower = cluster.others(leader)[0];
    cluster.running[&follower].propose(vec![add(0)]).await.unwrap();
    cluster.traffic.lose_answer_each.store(2, Ordering::Relaxed);
    let unknown = async {
        for id in 1.. {
            match cluster.running[&follower].propose(vec![add(id)]).await {
                Ok(proposed) => assert_eq!(proposed.outcomes[0].times, 1),
                Err(ProposeError::OutcomeUnknown) => return,
                Err(other) => panic!("{other}"),
            }
        }
    };
    timeout(PATIENCE, unknown).await.unwrap();
    cluster.stop_all().await;
}
