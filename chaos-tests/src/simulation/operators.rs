//! Operators: they add replicas, remove some, and replace those that are dead,
//! one after the other, while everything else breaks. What they have begun they
//! bring to its end, also when nothing breaks any more.
//!
//! They do what `berth cluster add`, `join` and `remove` do: an invitation and an
//! admission in the log, which gives the number; the leader brings in whoever was
//! let in. That, and how a member is removed, is the product's own code.
//!
//! Never is a disk lost before the last change of members was agreed on, and never
//! are fewer than three replicas to be left.

use std::sync::Arc;
use std::time::Duration;

use berth::broker::cluster::members::{self, NotRemoved};
use berth::broker::cluster::node::INVITATION_LIFETIME;
use berth::domain::ids::{FolderId, InvitationId};
use berth::domain::request::Fingerprint;
use berth::domain::{Command, Outcome};
use berth_raft::testing::simulation;
use berth_raft::{Configuration, ReplicaId};
use tokio::time::{sleep, timeout};

use super::broken::Broken;
use super::nemesis::Fault;
use super::network::Station;
use super::nodes::{self, Node, Origin};
use super::world::World;

/// Numbers that are given in a world, at most.
const NUMBERS_MAX: u64 = 7;
/// Members that are left, at least.
const MEMBERS_MIN: usize = 3;
/// How long an operator waits for an answer of the log.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same, for the leader to remove a replica.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(15);

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Add,
    Remove(ReplicaId),
    /// Another one takes the place of one that is dead, or that lives.
    Replace {
        whom: ReplicaId,
        is_dead: bool,
    },
}

/// Begins what a fault stands for, unless something is being done already or the
/// cluster would be too small for it.
pub fn begin(world: &Arc<World>, fault: Fault) {
    if world.plan.broken == Some(Broken::HastyMember) && fault == Fault::Replacement {
        return come_back_empty(world);
    }
    if world.operation().is_some() {
        return;
    }
    let members = world.members();
    let Some(victim) = world.dice.index(members.len()).map(|place| members[place].id) else { return };
    let leader = world.leader().filter(|leader| members.iter().any(|node| node.id == *leader));
    let victim = leader.filter(|_| world.dice.in_thousand(300)).unwrap_or(victim);
    let may_add = world.last_number() < NUMBERS_MAX;
    let work = match fault {
        Fault::Removal if members.len() > MEMBERS_MIN => Work::Remove(victim),
        Fault::Addition if may_add => Work::Add,
        Fault::Removal if may_add => Work::Replace { whom: victim, is_dead: false },
        Fault::Replacement if may_add => Work::Replace { whom: victim, is_dead: true },
        _ => return,
    };
    world.set_operation(Some(format!("{work:?}")));
    world.trace.note(&format!("operator: {work:?}"));
    let world = Arc::clone(world);
    simulation::spawn(async move {
        carry_out(&world, work).await;
        world.trace.note(&format!("operator: {work:?} is done"));
        world.set_operation(None);
    });
}

async fn carry_out(world: &Arc<World>, work: Work) {
    match work {
        Work::Remove(id) => {
            leader_may_die(world);
            if remove(world, id).await.is_some() {
                world.count("replica removed", 1);
            }
        }
        Work::Replace { whom, is_dead } => {
            let node = world.node(whom);
            if is_dead && world.dice.in_thousand(700) {
                world.trace.note(&format!("replica {whom} is lost with its disk"));
                node.scrap(world);
            } else if is_dead {
                // It is taken for dead, and comes back one day.
                node.cut_power(world, Duration::from_millis(2_000 + world.dice.below(12_000)));
            }
            leader_may_die(world);
            world.set_leaving(whom);
            if join(world, Some(whom)).await.is_some() {
                world.count(if is_dead { "dead replica replaced" } else { "living replica replaced" }, 1);
            }
        }
        Work::Add => {
            leader_may_die(world);
            if join(world, None).await.is_some() {
                world.count("replica added", 1);
            }
        }
    }
}

/// Has a new replica join, and waits until it votes. `None` if it came to nothing,
/// and nothing is left of it.
async fn join(world: &Arc<World>, replaces: Option<ReplicaId>) -> Option<()> {
    let node = let_in(world, replaces).await?;
    simulation::spawn(nodes::care(Arc::clone(world), Arc::clone(&node)));
    let chance = world.dice.below(1_000);
    if chance < 250 {
        // While it learns, or when it votes already.
        sleep(Duration::from_millis(world.dice.below(1_000))).await;
        world.count("new replica lost its power", u64::from(node.running().is_some()));
        node.cut_power(world, Duration::from_millis(world.dice.below(3_000)));
    } else if chance < 350 && replaces.is_none() {
        sleep(Duration::from_millis(world.dice.below(1_000))).await;
        world.trace.note(&format!("replica {} is lost while it joins", node.id));
        node.scrap(world);
        remove(world, node.id).await?;
        world.count("addition given up: the new replica is lost", 1);
        return None;
    }
    let is_done = |agreed: &Configuration| {
        let votes = agreed.voters.len() == 1 && agreed.voters[0].contains(&node.id);
        votes && replaces.is_none_or(|replaced| !agreed.members.contains(&replaced))
    };
    while !world.agreed().is_some_and(|(agreed, _)| is_done(&agreed)) {
        if node.has_lost_its_log() {
            // Its disk failed before anything on it lasted. As its refusal says, it has to join
            // anew, which is another replica.
            world.trace.note(&format!("replica {} is given up: it lost its log while it joined", node.id));
            node.scrap(world);
            remove(world, node.id).await?;
            world.count("joining replica that lost its log given up", 1);
            replaces?;
            return Box::pin(join(world, replaces)).await;
        }
        pause(world).await?;
    }
    if let Some(replaced) = replaces {
        has_left(world, replaced);
    }
    Some(())
}

/// Lets a new replica in: the log gives it a number, and it gets a machine.
async fn let_in(world: &Arc<World>, replaces: Option<ReplicaId>) -> Option<Arc<Node>> {
    loop {
        let text = format!("invitation-{}", world.dice.below(1 << 40));
        let invitation = InvitationId::new(&text).expect("a short text");
        let folder = FolderId::new(&format!("folder-of-{text}")).expect("a short text");
        let invite = |station: &Station| Command::InviteReplica {
            id: invitation.clone(),
            within: INVITATION_LIFETIME,
            replaces: replaces.map(domain_id),
            by: domain_id(station.replica.status().replica),
        };
        while propose(world, invite).await != Some(Outcome::Done) {
            pause(world).await?;
        }
        // It asks again, with what it has in its folder, until it has an answer.
        let admit = |station: &Station| {
            let own = station.replica.status().replica;
            let above = station.replica.members().into_keys().next_back().map_or(own, |last| last.max(own));
            Command::AdmitReplica {
                invitation: invitation.clone(),
                folder: folder.clone(),
                address: "simulated:1".to_owned(),
                proof: Fingerprint([7; 32]),
                above: domain_id(above),
            }
        };
        loop {
            match propose(world, admit).await {
                Some(Outcome::Admitted { replica }) => return world.add_machine(ReplicaId(replica.0), Origin::Joined),
                // The clock of the log may have leapt.
                Some(_) => break,
                None => pause(world).await?,
            }
        }
    }
}

/// Removes a replica; asks for it again until it is done.
async fn remove(world: &Arc<World>, id: ReplicaId) -> Option<()> {
    world.set_leaving(id);
    loop {
        if let Some(station) = world.leader().and_then(|leader| world.node(leader).running()) {
            let replica = station.replica.clone();
            let asked = station.host.spawn(async move {
                let state = replica.local().state;
                let retire = vec![Command::RetireReplica { replica: domain_id(id) }];
                let retire = async { replica.propose(retire).await.map(drop) };
                members::remove(&replica, state.fleet().cluster(), domain_id(id), retire).await
            });
            match timeout(REMOVAL_PATIENCE, asked).await {
                Ok(Ok(Ok(()))) => {
                    has_left(world, id);
                    return Some(());
                }
                Ok(Ok(Err(NotRemoved::HandedOver))) => world.count("leader handed over to be removed", 1),
                Ok(Ok(Err(error))) => world.trace.note(&format!("replica {id} is not removed: {error:?}")),
                Ok(Err(_)) | Err(_) => world.trace.note(&format!("replica {id} is not removed: no answer")),
            }
        }
        pause(world).await?;
    }
}

/// A replica is no member any more, as those left have agreed.
fn has_left(world: &World, id: ReplicaId) {
    world.trace.note(&format!("replica {id} is no member any more"));
    let known_in = world.agreed().map_or(u64::MAX, |(_, term)| term);
    world.judge.removed(id, known_in);
    world.network.remove(id);
    world.node(id).leave();
}

/// Proposes something through some replica, as a process there does; `None` if
/// it is not known what became of it.
async fn propose(world: &World, command: impl Fn(&Station) -> Command) -> Option<Outcome> {
    let station = world.any_station()?;
    let (replica, command) = (station.replica.clone(), command(&station));
    let answered = station.host.spawn(async move { replica.propose(vec![command]).await });
    drop(station);
    match timeout(PATIENCE, answered).await {
        Ok(Ok(Ok(mut proposed))) => proposed.outcomes.pop(),
        _ => None,
    }
}

/// Between two attempts; `None` when there is no use in another one.
async fn pause(world: &World) -> Option<()> {
    sleep(Duration::from_millis(100 + world.dice.below(300))).await;
    (!world.judge.has_found()).then_some(())
}

/// The leader may die soon, in the midst of what is being done.
fn leader_may_die(world: &Arc<World>) {
    if !world.dice.in_thousand(350) {
        return;
    }
    world.after(Duration::from_millis(world.dice.below(1_500)), |world| {
        let Some(leader) = world.leader().filter(|_| world.operation().is_some()) else { return };
        let down = Duration::from_millis(100 + world.dice.below(3_000));
        world.count("leader died while members changed", 1);
        if world.dice.in_thousand(500) {
            world.node(leader).kill(world, down);
        } else {
            world.node(leader).cut_power(world, down);
        }
    });
}

/// What must not be done: a replica loses its disk and comes back as if it had
/// never been away, maybe while who led does not look.
fn come_back_empty(world: &Arc<World>) {
    let members = world.members();
    let Some(place) = world.dice.index(members.len()) else { return };
    let node = &members[place];
    world.trace.note(&format!("replica {} lost its disk and comes back all the same", node.id));
    world.count("replica without its disk came back under its number", 1);
    node.forget_all(world, Duration::from_millis(world.dice.below(500)));
    if let Some(leader) = world.leader().filter(|leader| *leader != node.id) {
        world.node(leader).kill(world, Duration::from_millis(1_000 + world.dice.below(3_000)));
    }
}

const fn domain_id(id: ReplicaId) -> berth::domain::ReplicaId {
    berth::domain::ReplicaId(id.0)
}
