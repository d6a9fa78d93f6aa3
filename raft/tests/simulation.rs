//! Replicas in simulated time, on simulated machines.
#![allow(clippy::unwrap_used)]

use berth_raft::testing::simulation::{self, Host};
use berth_raft::testing::{Command, Ledger, LocalNetwork};
use berth_raft::{
    Config, Formation, ManualClock, Member, Observer, ProposeError, Replica, ReplicaId, StopReason, UnixMillis,
};
use berth_storage::memory::{Disk, Operation, Pace, Step, Work};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

fn run<T: Send + 'static>(seed: u64, main: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (result, panics) = simulation::run(&runtime, seed, main);
    assert!(panics.is_empty(), "{panics:?}");
    result
}

fn add(id: u64) -> Command {
    Command::Add { id, amount: 1, padding: Vec::new() }
}

/// A machine, and the replica on it once it has started.
async fn start(network: &LocalNetwork, id: u64, disk: Disk) -> (Host, Replica<Ledger>) {
    let host = Host::new(disk);
    let peers = network.peers_of(ReplicaId(id));
    let started = host.spawn(async move {
        let clock = Arc::new(ManualClock::new(UnixMillis(1)));
        let observer: Observer<Ledger> = Arc::new(|_, _| {});
        let mut config = Config::new(format!("/data/{id}"), ReplicaId(id));
        config.keep_entries = 2;
        let members = Formation::Members((1..=3).map(|id| (ReplicaId(id), Member::default())).collect());
        Replica::start_with_peers(config, clock, Ledger::default(), observer, peers, members).await
    });
    let replica = started.await.unwrap().unwrap();
    network.connect(&replica);
    (host, replica)
}

async fn three(network: &LocalNetwork) -> Vec<(Host, Replica<Ledger>)> {
    let mut running = Vec::new();
    for id in 1..=3 {
        running.push(start(network, id, Disk::new()).await);
    }
    running
}

/// Three that have written 0, and the place of the leader among them.
async fn three_led(network: &LocalNetwork) -> (Vec<(Host, Replica<Ledger>)>, usize) {
    let running = three(network).await;
    write_at_last(&running[0].0, &running[0].1, 0).await;
    let leader = running[0].1.status().leader.unwrap();
    (running, usize::try_from(leader.0).unwrap() - 1)
}

async fn write(host: &Host, replica: &Replica<Ledger>, id: u64) -> Result<(), ProposeError> {
    let replica = replica.clone();
    host.spawn(async move { replica.propose(vec![add(id)]).await }).await.unwrap().map(drop)
}

/// Writes as soon as there is a leader.
async fn write_at_last(host: &Host, replica: &Replica<Ledger>, id: u64) {
    let written = async {
        while write(host, replica, id).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_mins(1), written).await.unwrap();
}

/// Once it took all of the processor's time until a leader was there; here time stands still while
/// somebody does something.
#[test]
fn whoever_looks_for_a_leader_waits() {
    run(1, async {
        let network = LocalNetwork::new();
        let (host, replica) = start(&network, 1, Disk::new()).await;
        let began = Instant::now();
        let refused = write(&host, &replica, 1).await.unwrap_err();
        assert!(matches!(refused, ProposeError::NoLeader { .. }), "{refused}");
        assert!(began.elapsed() >= Duration::from_millis(450));
    });
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_of_all() {
    run(2, async {
        let network = LocalNetwork::new();
        let disks: Vec<Disk> = (0..3).map(|_| Disk::new()).collect();
        for round in 0..3 {
            let mut running = Vec::new();
            for (id, disk) in (1..).zip(&disks) {
                running.push(start(&network, id, disk.clone()).await);
            }
            for (number, (host, replica)) in (0..).zip(&running) {
                write_at_last(host, replica, round * 3 + number).await;
            }
            let (host, replica) = &running[0];
            let reading = replica.clone();
            let state = host.spawn(async move { reading.read().await }).await.unwrap().unwrap().state;
            assert_eq!(state.seen.len() as u64, (round + 1) * 3);
            for (id, (host, _)) in (1..).zip(&running) {
                network.disconnect(ReplicaId(id));
                host.kill();
                disks[usize::try_from(id).unwrap() - 1].cut_power(&mut |_| 0);
            }
        }
    });
}

/// A disk that never gets anything synced.
struct Stuck;

impl Pace for Stuck {
    fn arrange(&self, step: Step, work: Work) {
        if step == Step::Write {
            work.run();
        }
    }
}

/// A disk that does at once what is urgent, and the rest half a second later.
struct Lazy;

impl Pace for Lazy {
    fn arrange(&self, step: Step, work: Work) {
        if step != Step::Tidy {
            return work.run();
        }
        simulation::spawn(async move {
            sleep(Duration::from_millis(500)).await;
            work.run();
        });
    }
}

/// A disk that takes its time for each sync.
struct Slow(Duration);

impl Pace for Slow {
    fn arrange(&self, step: Step, work: Work) {
        if step != Step::Sync {
            return work.run();
        }
        let time = self.0;
        simulation::spawn(async move {
            sleep(time).await;
            work.run();
        });
    }
}

#[test]
fn what_comes_behind_an_entry_is_gathered_and_follows_before_a_slow_disk_is_done() {
    const SYNC: Duration = Duration::from_millis(400);
    run(7, async {
        let network = LocalNetwork::new();
        let (running, leader) = three_led(&network).await;
        write(&running[leader].0, &running[leader].1, 1).await.unwrap();
        for (host, _) in &running {
            host.disk().set_pace(Some(Arc::new(Slow(SYNC))));
        }
        let (host, replica) = &running[leader];
        let before = replica.status().last_log.unwrap().0;
        let began = Instant::now();
        let mut writing = Vec::new();
        for id in 2..=21 {
            let replica = replica.clone();
            writing.push(host.spawn(async move { replica.propose(vec![add(id)]).await.unwrap().index.0 }));
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(replica.status().last_log.unwrap().0, before + 1, "the others wait for company");
        while replica.status().last_log.unwrap().0 == before + 1 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(began.elapsed() < SYNC, "but not until the first is durable");
        let mut indexes = Vec::new();
        for written in writing {
            indexes.push(written.await.unwrap());
        }
        assert_eq!(indexes, [vec![before + 1], vec![before + 2; 19]].concat());
    });
}

/// Once a leader went by a snapshot for what a follower has, when that had the same in its log and
/// did not need the snapshot, but had yet to make the log durable. After a power cut the leader
/// took the follower for further than it was, and never sent what it lacked.
#[test]
fn a_snapshot_that_a_follower_does_not_need_says_nothing_before_its_log_is_durable() {
    run(6, async {
        let network = LocalNetwork::new();
        let (mut running, leader) = three_led(&network).await;
        let slow = usize::from(leader == 0);
        let disk = running[slow].0.disk().clone();
        disk.set_pace(Some(Arc::new(Stuck)));
        for id in 1..=20 {
            write(&running[leader].0, &running[leader].1, id).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        // Until the follower has all of it, in memory.
        sleep(Duration::from_secs(2)).await;
        let building = running[leader].1.clone();
        running[leader].0.spawn(async move { building.trigger_snapshot().await }).await.unwrap().unwrap();
        for id in 21..=40 {
            write(&running[leader].0, &running[leader].1, id).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        assert!(running[leader].1.status().purged.is_some(), "the follower needs a snapshot, if it has not the log");
        let id = slow as u64 + 1;
        network.disconnect(ReplicaId(id));
        running[slow].0.kill();
        disk.cut_power(&mut |_| 0);
        disk.set_pace(None);
        running[slow] = start(&network, id, disk).await;
        write_at_last(&running[slow].0, &running[slow].1, 41).await;
        let state = running[slow].1.local().state;
        assert!((0..=41).all(|id| state.seen.contains(id)), "{:?}", state.seen);
    });
}

/// Once such a leader went on to lead, and nothing could be written any more, anywhere: the
/// consensus core is only told of writes that it waits for.
#[test]
fn a_leader_whose_disk_fails_while_nothing_waits_for_it_makes_way() {
    run(5, async {
        let network = LocalNetwork::new();
        let mut running = Vec::new();
        for id in 1..=3 {
            let disk = Disk::new();
            disk.set_pace(Some(Arc::new(Lazy)));
            running.push(start(&network, id, disk).await);
        }
        write_at_last(&running[0].0, &running[0].1, 0).await;
        let leader = running[0].1.status().leader.unwrap();
        let place = usize::try_from(leader.0).unwrap() - 1;
        let other = usize::from(place == 0);
        running[place].0.disk().fail(Operation::Write, 1);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(running[place].0.disk().failures(), 1, "what was committed is noted later");
        write_at_last(&running[other].0, &running[other].1, 1).await;
        let stopped = running[place].1.status().stopped;
        assert!(matches!(&stopped, Some(StopReason::Failed(text)) if text.contains("cannot write")), "{stopped:?}");
    });
}

/// Once a leader that was restarted went on to lead in its old term, although its followers had
/// more of its log on their disks than it had itself: other entries came in the place of
/// acknowledged ones.
#[test]
fn a_leader_that_comes_back_without_the_end_of_its_log_does_not_go_on_to_lead() {
    run(4, async {
        let network = LocalNetwork::new();
        let (mut running, place) = three_led(&network).await;
        let leader = place as u64 + 1;
        let (host, replica) = &running[place];
        let disk = host.disk().clone();
        disk.set_pace(Some(Arc::new(Stuck)));
        for id in 1..=5 {
            write(host, replica, id).await.unwrap();
        }
        network.disconnect(ReplicaId(leader));
        host.kill();
        disk.cut_power(&mut |_| 0);
        disk.set_pace(None);
        running[place] = start(&network, leader, disk).await;
        for (number, (host, replica)) in (6..).zip(&running) {
            write_at_last(host, replica, number).await;
        }
        for (host, replica) in &running {
            let reading = replica.clone();
            let state = host.spawn(async move { reading.read().await }).await.unwrap().unwrap().state;
            assert!((0..=8).all(|id| state.seen.contains(id)), "{:?}", state.seen);
        }
    });
}

#[test]
fn a_machine_that_stands_still_does_nothing_and_goes_on() {
    run(3, async {
        let network = LocalNetwork::new();
        let running = three(&network).await;
        let (host, replica) = &running[0];
        write_at_last(host, replica, 1).await;
        host.set_paused(true);
        let mut writing = Box::pin(write(host, replica, 2));
        assert!(timeout(Duration::from_secs(20), &mut writing).await.is_err());
        let (other_host, other) = &running[1];
        write_at_last(other_host, other, 3).await;
        assert!(!replica.local().state.seen.contains(3));
        host.set_paused(false);
        // Its time was up meanwhile, or not.
        drop(writing.await);
        write_at_last(host, replica, 4).await;
        assert!(replica.local().state.seen.contains(3));
    });
}

#[test]
fn the_same_seed_leads_to_the_same_again() {
    let life = |seed| {
        run(seed, async {
            let network = LocalNetwork::new();
            let running = three(&network).await;
            let mut trace = Vec::new();
            for number in 0..20_usize {
                let (host, replica) = &running[number % 3];
                let began = Instant::now();
                write_at_last(host, replica, number as u64).await;
                let status = replica.status();
                trace.push((began.elapsed(), status.leader, status.term, status.last_log, simulation::random()));
            }
            trace
        })
    };
    for seed in 0..5 {
        assert_eq!(life(seed), life(seed), "seed {seed}");
    }
    assert_ne!(life(1), life(2));
}
