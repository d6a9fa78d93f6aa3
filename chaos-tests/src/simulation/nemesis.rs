//! What breaks, and when it is whole again.

use std::sync::Arc;
use std::time::Duration;

use berth_raft::{Clock, ReplicaId};
use berth_storage::memory::{Damage, Operation};
use tokio::time::{Instant, sleep};

use super::agents::Mishap;
use super::network::Weather;
use super::nodes::{self, Node};
use super::operators;
use super::world::World;

/// What may befall a world. Each world has some kinds of it, drawn by its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The process of one replica is killed.
    Kill,
    /// Those of the majority, or of all.
    KillMany,
    /// One machine loses its power.
    PowerCut,
    /// The majority, or all of them.
    PowerCutMany,
    /// A replica is restarted in good order.
    Restart,
    /// A process stands still for a while.
    Pause,
    /// One replica is cut off.
    Isolate,
    /// The cluster falls in two.
    Halves,
    /// Each replica reaches only its neighbours.
    Ring,
    /// One is heard by nobody, or hears nobody.
    OneWay,
    /// Messages get lost, doubled, late and out of order.
    Storm,
    /// A clock is set.
    ClockJump,
    /// Syncs take 10 s.
    SlowDisk,
    /// A disk is full for a while.
    FullDisk,
    /// A disk fails once.
    BrokenDisk,
    /// What a disk keeps is damaged while its machine is off.
    DamagedDisk,
    /// The leader hands over.
    HandOver,
    /// A snapshot is made.
    Snapshot,
    /// Something happens to a desktop host or its agent.
    Agents,
    /// All agents lose their connections.
    AgentsReturn,
    /// A replica joins.
    Addition,
    /// One is removed; if there are few, another one takes its place.
    Removal,
    /// One dies, and another one takes its place.
    Replacement,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 23] = [
        Self::Kill,
        Self::KillMany,
        Self::PowerCut,
        Self::PowerCutMany,
        Self::Restart,
        Self::Pause,
        Self::Isolate,
        Self::Halves,
        Self::Ring,
        Self::OneWay,
        Self::Storm,
        Self::ClockJump,
        Self::SlowDisk,
        Self::FullDisk,
        Self::BrokenDisk,
        Self::DamagedDisk,
        Self::HandOver,
        Self::Snapshot,
        Self::Agents,
        Self::AgentsReturn,
        Self::Addition,
        Self::Removal,
        Self::Replacement,
    ];
}

/// Makes faults until it is time to heal.
pub async fn rage(world: Arc<World>, until: Instant) {
    while Instant::now() < until && !world.judge.has_found() {
        sleep(Duration::from_millis(100 + world.dice.below(world.shape.fault_interval_ms))).await;
        let Some(place) = world.dice.index(world.shape.faults.len()) else { continue };
        let fault = world.shape.faults[place];
        world.trace.note(&format!("fault: {fault:?}"));
        strike(&world, fault).await;
    }
}

/// The latest time that the log or any clock shows.
pub fn latest(world: &World) -> u64 {
    let shown = world.machines().into_iter().map(|node| {
        let at = node.running().map_or(0, |station| station.replica.status().applied_at.0);
        at.max(node.clock.now().0)
    });
    shown.max().unwrap_or_default()
}

/// Ends all faults. The clocks then show at least what the log does: while they
/// show less, its time stands still, as it should, and nothing ends by time.
pub fn heal(world: &World) {
    let latest = latest(world);
    let machines = world.machines();
    for node in &machines {
        node.clock.set(latest);
    }
    world.network.mend();
    world.network.set_weather(Weather::FAIR);
    for node in &machines {
        node.set_paused(false);
        node.heal_disk();
    }
    for agent in &world.agents {
        // One that has gone needs no help.
        for mishap in [Mishap::Slow(false), Mishap::Repeats(false), Mishap::Lies(false)] {
            agent.send(mishap).ok();
        }
    }
}

async fn strike(world: &Arc<World>, fault: Fault) {
    let short = Duration::from_millis(100 + world.dice.below(3_000));
    match fault {
        Fault::Kill => {
            let node = any_node(world);
            world.count("replica killed", u64::from(node.running().is_some()));
            node.kill(world, short);
        }
        Fault::PowerCut => {
            let node = any_node(world);
            world.count("power cut", u64::from(node.running().is_some()));
            node.cut_power(world, short);
        }
        Fault::KillMany | Fault::PowerCutMany => {
            let all = some_nodes(world, usize::MAX);
            let count = if world.dice.in_thousand(500) { all.len() } else { all.len() / 2 + 1 };
            for node in all.iter().take(count) {
                if fault == Fault::KillMany { node.kill(world, short) } else { node.cut_power(world, short) }
            }
            let what = if fault == Fault::KillMany { "majority killed" } else { "power cut of the majority" };
            world.count(what, 1);
        }
        Fault::Restart => {
            let node = any_node(world);
            world.count("replica restarted in order", u64::from(node.running().is_some()));
            nodes::restart(world, &node).await;
        }
        Fault::Pause => {
            let node = any_node(world);
            world.count("process stopped and continued", u64::from(node.running().is_some()));
            node.set_paused(true);
            let length = Duration::from_millis(100 + world.dice.below(6_000));
            world.after(length, move |_| node.set_paused(false));
        }
        Fault::Isolate | Fault::Halves | Fault::Ring | Fault::OneWay => {
            partition(world, fault);
            let length = Duration::from_millis(300 + world.dice.below(6_000));
            world.after(length, |world| world.network.mend());
        }
        Fault::Storm => {
            let rate = |most| world.dice.below(most);
            let weather = Weather {
                loss: rate(150),
                answer_loss: rate(150),
                doubled: rate(200),
                slow: rate(400),
                slow_ms: 10 + rate(900),
                usual_ms: 1 + rate(30),
            };
            world.count("storm on the network", 1);
            world.network.set_weather(weather);
            let length = Duration::from_millis(500 + world.dice.below(6_000));
            world.after(length, |world| world.network.set_weather(Weather::FAIR));
        }
        Fault::ClockJump => {
            let node = any_node(world);
            let span = 1 + world.dice.below(240_000);
            let span = i64::try_from(span).unwrap_or_default();
            let by_ms = if world.dice.in_thousand(500) { span } else { -span };
            world.count("clock set by up to minutes", 1);
            node.clock.jump(by_ms);
        }
        Fault::SlowDisk => {
            let node = any_node(world);
            world.trace.note(&format!("the disk of replica {} is slow", node.id));
            world.count("sync of 10 s", 1);
            node.pace.set_slow(Some(10_000));
            world.after(Duration::from_secs(2) + short, move |_| node.pace.set_slow(None));
        }
        Fault::FullDisk => {
            let node = any_node(world);
            world.count("full disk", 1);
            node.disk().set_free_bytes(0);
            world.after(short, move |_| node.disk().set_free_bytes(1 << 40));
        }
        Fault::BrokenDisk => {
            let node = any_node(world);
            let operation =
                [Operation::Write, Operation::Sync, Operation::Read][world.dice.index(3).unwrap_or_default()];
            node.disk().fail(operation, 1);
        }
        Fault::DamagedDisk => {
            let kinds = [Damage::Entry, Damage::Vote, Damage::Snapshot, Damage::LogLost];
            let damage = kinds[world.dice.index(kinds.len()).unwrap_or_default()];
            any_node(world).suffer(world, damage).await;
        }
        Fault::HandOver => hand_over(world),
        Fault::Snapshot => {
            if let Some(station) = any_node(world).running() {
                world.count("snapshot asked for", 1);
                let replica = station.replica.clone();
                // Whether it comes about shows later.
                drop(station.host.spawn(async move { drop(replica.trigger_snapshot().await) }));
            }
        }
        Fault::Agents => mishap(world),
        Fault::AgentsReturn => {
            world.count("all agents came again at once", 1);
            for agent in &world.agents {
                agent.send(Mishap::Flap).ok();
            }
        }
        Fault::Addition | Fault::Removal | Fault::Replacement => operators::begin(world, fault),
    }
}

fn any_node(world: &World) -> Arc<Node> {
    some_nodes(world, 1).remove(0)
}

/// Some of the machines, in random order; the leader's is often first.
fn some_nodes(world: &World, count: usize) -> Vec<Arc<Node>> {
    let mut nodes = world.machines();
    for place in (1..nodes.len()).rev() {
        nodes.swap(place, world.dice.index(place + 1).unwrap_or_default());
    }
    if world.dice.in_thousand(400)
        && let Some(leader) = world.leader()
        && let Some(place) = nodes.iter().position(|node| node.id == leader)
    {
        nodes.swap(0, place);
    }
    nodes.truncate(count);
    nodes
}

fn partition(world: &World, fault: Fault) {
    let nodes = some_nodes(world, usize::MAX);
    let ids: Vec<ReplicaId> = nodes.iter().map(|node| node.id).collect();
    let both = |left: ReplicaId, right: ReplicaId| {
        world.network.cut(left, right);
        world.network.cut(right, left);
    };
    match fault {
        Fault::Isolate => {
            world.count("partition: one off", 1);
            for other in &ids[1..] {
                both(ids[0], *other);
            }
        }
        Fault::Halves => {
            world.count("partition: halves", 1);
            let (left, right) = ids.split_at(ids.len() / 2);
            for (left, right) in left.iter().flat_map(|left| right.iter().map(move |right| (left, right))) {
                both(*left, *right);
            }
        }
        Fault::Ring => {
            // Of three, everybody has two neighbours: one connection is missing.
            world.count("partition: ring", 1);
            let count = ids.len();
            for (place, left) in ids.iter().enumerate() {
                for (other, right) in ids.iter().enumerate().skip(place + 1) {
                    let apart = (other - place).min(place + count - other);
                    if apart > 1 || (count == 3 && (place, other) == (0, 2)) {
                        both(*left, *right);
                    }
                }
            }
        }
        _ => {
            world.count("partition: one way", 1);
            let hears = world.dice.in_thousand(500);
            for other in &ids[1..] {
                let (from, to) = if hears { (ids[0], *other) } else { (*other, ids[0]) };
                world.network.cut(from, to);
            }
        }
    }
}

fn hand_over(world: &World) {
    let Some(leader) = world.leader() else { return };
    if let Some(station) = world.node(leader).running() {
        let replica = station.replica.clone();
        let heirs: Vec<ReplicaId> = replica.status().voters.into_iter().filter(|id| *id != leader).collect();
        let Some(place) = world.dice.index(heirs.len()) else { return };
        let heir = heirs[place];
        world.count("leader handed over", 1);
        // It may be no leader any more.
        drop(station.host.spawn(async move { drop(replica.hand_over_to(heir).await) }));
    }
}

fn mishap(world: &World) {
    let Some(place) = world.dice.index(world.agents.len()) else { return };
    let (name, mishap) = match world.dice.below(8) {
        0 => ("agent flapped", Mishap::Flap),
        1 => ("agent crashed", Mishap::Crash { loses_desktops: false }),
        2 => ("host lost its power", Mishap::Crash { loses_desktops: true }),
        3 => ("agent out of reach", Mishap::Silence { for_ms: 500 + world.dice.below(9_000) }),
        4 => ("agent answers late", Mishap::Slow(world.dice.in_thousand(700))),
        5 => ("agent repeats itself", Mishap::Repeats(world.dice.in_thousand(700))),
        6 => ("agent lies", Mishap::Lies(world.dice.in_thousand(500))),
        _ => ("session made or ended by hand", Mishap::Stir),
    };
    world.count(name, 1);
    world.agents[place].send(mishap).ok();
}
