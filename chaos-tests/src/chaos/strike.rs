//! How each fault is done, and what is left to do when it is over. What lasts is
//! mended by [`World::mend`].

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::io::Errno;
use serde_json::json;

use super::fault::{Fault, Kind};
use super::plug::{self, SNAPSHOT_AFTER_ENTRIES};
use super::swarm::{self, Swarm};
use super::world::{SESSIONS_PER_SERVER_MAX, SWARM_HOST, WHOLE_LIMIT, World};
use crate::client;
use crate::desktops::Desktops;
use crate::faultfs::control::{Class, Control, Extent};
use crate::faultfs::damage;
use crate::faultfs::power::Kept;
use crate::history::Event;
use crate::lab::cut::Cut;
use crate::lab::weather::{Climate, Weather};
use crate::process::{Agent, Process};
use crate::random::Random;

/// How long an operator tries before something else is done.
const OPERATOR_LIMIT: Duration = Duration::from_secs(10);
/// How long a disk that fails may go unnoticed under load.
const FAILURE_LIMIT: Duration = Duration::from_secs(30);
/// How long a swarm may take to be connected, for the first time and again.
const SWARM_LIMIT: Duration = Duration::from_mins(2);
/// Times that an agent that flaps loses its network.
const FLAPS: u32 = 3;
const MINUTE_MS: i64 = 60_000;

/// What came of a strike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It took place; what there is to tell of it.
    Done(String),
    /// It could not be done now.
    Refused(String),
}

impl Effect {
    const fn done() -> Self {
        Self::Done(String::new())
    }
}

/// Faults of a round that are under way, and what is needed to end them.
#[derive(Debug, Default)]
pub struct Struck {
    clone: Option<(Agent, Process)>,
}

/// Thousands of agents, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwarmSize(pub usize);

/// Begins a fault.
pub async fn begin(world: &mut World, fault: &Fault, swarm: SwarmSize, struck: &mut Struck) -> anyhow::Result<Effect> {
    let mut random = Random::new(fault.seed);
    let victims = &fault.victims;
    match fault.kind {
        Kind::Kill | Kind::KillMajority | Kind::KillAll => kill(world, victims)?,
        Kind::Pause | Kind::PauseMajority => {
            for &place in victims {
                world.replicas[place].pause(true)?;
            }
        }
        Kind::Restart | Kind::RestartAll => {
            for &place in victims {
                world.replicas[place].tell_to_end()?;
            }
            for &place in victims {
                world.replicas[place].ends(true).await?;
            }
        }
        Kind::RollingRestart => {
            for &place in victims {
                world.replicas[place].tell_to_end()?;
                world.replicas[place].ends(true).await?;
                world.replicas[place].start()?;
                world.whole().await.context("while one after the other is restarted")?;
            }
        }
        Kind::PowerLoss | Kind::PowerLossOfAll => return lose_power(world, victims, &mut random),
        Kind::OneOff => {
            let cut = Cut::one_off(world.replicas[victims[0]].host()?, &world.all_hosts());
            cut_more(world, &cut)?;
        }
        Kind::Halves => {
            let hosts = world.replica_hosts()?;
            let (left, right): (Vec<_>, Vec<_>) = (0..hosts.len()).partition(|place| victims.contains(place));
            let hosts_of = |places: Vec<usize>| places.into_iter().map(|place| hosts[place]).collect::<Vec<_>>();
            cut_more(world, &Cut::halves(&hosts_of(left), &hosts_of(right)))?;
        }
        Kind::Ring => {
            let hosts = world.replica_hosts()?;
            let ring: Vec<_> = victims.iter().map(|&place| hosts[place]).collect();
            cut_more(world, &Cut::ring(&ring))?;
        }
        Kind::OneWay => {
            let hosts = world.replica_hosts()?;
            cut_more(world, &Cut::one_way(hosts[victims[0]], hosts[victims[1]]))?;
        }
        Kind::Delay | Kind::Loss | Kind::Doubling | Kind::Reordering => {
            let weather = weather(fault.kind, &mut random);
            world.lab.switch()?.set(Climate::same(weather));
            return Ok(Effect::Done(format!("{weather:?}")));
        }
        Kind::ClockJump => {
            let minutes = 1 + i64::try_from(random.below(10))?;
            let jump_ms = if random.below(2) == 0 { minutes } else { -minutes } * MINUTE_MS;
            control(world, victims[0])?.shift_clock(jump_ms)?;
            return Ok(Effect::Done(format!("by {jump_ms} ms")));
        }
        Kind::ClockDrift => {
            let ppm = 1000 + i64::try_from(random.below(100_000))?;
            let ppm = if random.below(2) == 0 { ppm } else { -ppm };
            control(world, victims[0])?.let_clock_drift(ppm)?;
            return Ok(Effect::Done(format!("by {ppm} of a million")));
        }
        Kind::SyncError | Kind::WriteError => {
            world.replicas[victims[0]].may_end = true;
            let class = if fault.kind == Kind::SyncError { Class::Syncs } else { Class::Writes };
            control(world, victims[0])?.fail(class, Extent::All, Errno::IO)?;
        }
        Kind::ReadError => {
            world.replicas[victims[0]].may_end = true;
            control(world, victims[0])?.fail(Class::Reads, Extent::Next(1 + random.below(3)), Errno::IO)?;
        }
        Kind::ShortWrites => control(world, victims[0])?.shorten_writes(Extent::All)?,
        Kind::FullDisk => control(world, victims[0])?.fail(Class::Writes, Extent::All, Errno::NOSPC)?,
        Kind::SlowSync => {
            let delay = Duration::from_millis(1000 + random.below(9000));
            control(world, victims[0])?.slow_syncs(delay)?;
            return Ok(Effect::Done(format!("{delay:?} each")));
        }
        Kind::FlippedBit | Kind::MissingFile => return harm(world, fault, &mut random).await,
        Kind::HandOver => return hand_over(world, &mut random).await,
        Kind::Replacement => world.replace(victims[0]).await?,
        Kind::Rotation => {
            return Ok(match world.operate(None, OPERATOR_LIMIT, plug::rotate).await {
                Ok(()) => Effect::done(),
                Err(error) => Effect::Refused(format!("{error:#}")),
            });
        }
        Kind::LongAbsence => return be_away(world, victims[0]).await,
        Kind::AgentDeath => {
            let count = world.agents_count();
            let everybody = random.below(3) == 0;
            let one = usize::try_from(random.below(count as u64))?;
            for number in (0..count).filter(|&number| everybody || number == one) {
                world.kill_agent(number)?;
            }
        }
        Kind::AgentFlaps => flap(world, &mut random).await?,
        Kind::AgentClone => struck.clone = Some(clone(world, &mut random)?),
        Kind::SwarmReturns => return swarm_returns(world, swarm).await,
    }
    Ok(Effect::done())
}

/// Ends a fault, as far as that is more than mending; before everything is mended.
pub async fn end(world: &mut World, fault: &Fault, struck: &mut Struck) -> anyhow::Result<()> {
    let mut random = Random::new(fault.seed ^ 1);
    match fault.kind {
        Kind::SyncError | Kind::WriteError => {
            let place = fault.victims[0];
            fails(world, place).await?;
            // Whoever meets such a disk does not trust the machine's memory of it either.
            let loss = world.replicas[place].faults()?.lose_power(Kept::Some, &mut random)?;
            world.note(format!("the power of replica {} was lost as well: {loss:?}", place + 1));
        }
        // What is damaged and was not noticed must not lie there any longer.
        Kind::FlippedBit | Kind::MissingFile => world.replace(fault.victims[0]).await?,
        Kind::AgentClone => {
            if let Some((agent, mut process)) = struck.clone.take() {
                process.lives().context("the copied agent")?;
                process.kill()?;
                let desktops = Desktops::read("copy", &agent.trace()).unwrap_or_default();
                ensure!(desktops.live.is_empty(), "the agent of a copied host made desktops: {desktops:?}");
            }
        }
        _ => {}
    }
    Ok(())
}

fn control(world: &World, place: usize) -> anyhow::Result<&Control> {
    Ok(world.replicas[place].faults()?.control())
}

fn kill(world: &mut World, places: &[usize]) -> anyhow::Result<()> {
    for &place in places {
        let sent = world.history.now();
        world.replicas[place].kill()?;
        let span = world.history.since(sent);
        world.history.add([Event::BrokerKilled { span }]);
    }
    Ok(())
}

fn lose_power(world: &mut World, places: &[usize], random: &mut Random) -> anyhow::Result<Effect> {
    kill(world, places)?;
    let mut told = Vec::new();
    for &place in places {
        let kept = if random.below(2) == 0 { Kept::Nothing } else { Kept::Some };
        told.push(format!("{kept:?} kept: {:?}", world.replicas[place].faults()?.lose_power(kept, random)?));
    }
    Ok(Effect::Done(told.join("; ")))
}

fn cut_more(world: &mut World, cut: &Cut) -> anyhow::Result<()> {
    world.cut = std::mem::take(&mut world.cut).and(cut);
    world.lab.cut(&world.cut)
}

fn weather(kind: Kind, random: &mut Random) -> Weather {
    let fair = Weather::fair();
    let mut permille = |least: u64, most: u64| u32::try_from(least + random.below(most - least)).unwrap_or_default();
    match kind {
        Kind::Delay => {
            let delay = Duration::from_millis(u64::from(permille(5, 100)));
            Weather { delay, jitter: delay, ..fair }
        }
        Kind::Loss => Weather { lost_permille: permille(20, 200), ..fair },
        Kind::Doubling => Weather { doubled_permille: permille(50, 500), ..fair },
        _ => Weather { overtaken_permille: permille(50, 500), ..fair },
    }
}

/// A replica whose disk fails ends by itself, and says why.
async fn fails(world: &mut World, place: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    // Whatever the load does: this reaches every replica's log.
    while world.replicas[place].is_running()? {
        for other in (0..world.replicas.len()).filter(|other| *other != place) {
            let _ = world.api(other).call("openServers", &json!([{ "ServerId": "nowhere" }])).await;
        }
        ensure!(begun.elapsed() < FAILURE_LIMIT, "replica {} goes on with a disk that fails", place + 1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let words = world.replicas[place].broker.last_words()?;
    ensure!(words.contains("Input/output error"), "it does not say why it ended: {words}");
    Ok(())
}

async fn harm(world: &mut World, fault: &Fault, random: &mut Random) -> anyhow::Result<Effect> {
    let place = fault.victims[0];
    kill(world, &[place])?;
    let replica = &mut world.replicas[place];
    replica.may_end = true;
    let data = replica.broker.data_folder().to_owned();
    let is_meant = |path: &Path| path.starts_with(data.join("replica")) && !path.ends_with("LOCK");
    let files = damage::files(&data, is_meant)?;
    ensure!(!files.is_empty(), "nothing to damage in {}", data.display());
    let file = &files[usize::try_from(random.below(files.len() as u64))?];
    let length = std::fs::metadata(file)?.len();
    if fault.kind == Kind::FlippedBit && length > 0 {
        damage::flip_bit(file, 0..length, random)?;
    } else {
        std::fs::remove_file(file)?;
    }
    replica.start()?;
    let shown = file.strip_prefix(&data).unwrap_or(file).display().to_string();
    let begun = Instant::now();
    loop {
        if !replica.is_running()? {
            let words = replica.broker.last_words()?;
            ensure!(words.contains(&data.display().to_string()), "{shown} is damaged, and it says only: {words}");
            return Ok(Effect::Done(format!("{shown}: refused")));
        }
        if client::unready(&replica.broker).await.is_none() {
            return Ok(Effect::Done(format!("{shown}: serves")));
        }
        ensure!(begun.elapsed() < WHOLE_LIMIT, "{shown} is damaged, and it neither serves nor ends");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn hand_over(world: &World, random: &mut Random) -> anyhow::Result<Effect> {
    let place = usize::try_from(random.below(world.replicas.len() as u64))?;
    let to = (random.below(3) > 0).then(|| world.replicas[place].number);
    Ok(match world.operate(None, OPERATOR_LIMIT, |broker| plug::hand_over(broker, to)).await {
        Ok(()) => Effect::Done(format!("to {to:?}")),
        Err(error) => Effect::Refused(format!("{error:#}")),
    })
}

/// Kills a replica until the others have made snapshots without it.
async fn be_away(world: &mut World, place: usize) -> anyhow::Result<Effect> {
    let applied = |world: &World| {
        let views = world.replicas.iter().filter(|replica| replica.is_up());
        views
            .filter_map(|replica| tokio::task::block_in_place(|| plug::view(&replica.broker)).ok())
            .map(|view| view.applied)
            .max()
    };
    kill(world, &[place])?;
    let start = applied(world).context("nobody is left")?;
    let goal = start + 3 * SNAPSHOT_AFTER_ENTRIES;
    let begun = Instant::now();
    loop {
        for _ in 0..50 {
            for other in (0..world.replicas.len()).filter(|other| *other != place) {
                let _ = world.api(other).call("openServers", &json!([{ "ServerId": "nowhere" }])).await;
            }
        }
        let now = applied(world).unwrap_or_default();
        if now >= goal {
            return Ok(Effect::Done(format!("{} entries", now - start)));
        }
        if begun.elapsed() > WHOLE_LIMIT {
            return Ok(Effect::Refused(format!("only {} entries came", now.saturating_sub(start))));
        }
    }
}

async fn flap(world: &World, random: &mut Random) -> anyhow::Result<()> {
    let number = usize::try_from(random.below(world.agents_count() as u64))?;
    let off = Cut::one_off(world.agent_host(number)?.id(), &world.all_hosts());
    for _ in 0..FLAPS {
        world.lab.cut(&world.cut.clone().and(&off))?;
        tokio::time::sleep(Duration::from_millis(random.below(4000))).await;
        world.lab.cut(&world.cut)?;
        tokio::time::sleep(Duration::from_millis(random.below(1000))).await;
    }
    Ok(())
}

/// Starts a copy of an agent on another host.
fn clone(world: &World, random: &mut Random) -> anyhow::Result<(Agent, Process)> {
    let number = usize::try_from(random.below(world.agents_count() as u64))?;
    let folder = world.place.join(format!("copy-{:x}", random.next()));
    let host = world.lab.named(SWARM_HOST)?.clone();
    let agent = Agent::placed(&world.program, &folder, &world.home, Some(host), SESSIONS_PER_SERVER_MAX)?;
    std::fs::create_dir_all(folder.join("data"))?;
    std::fs::copy(world.agent_folder(number).join("data/server-id"), folder.join("data/server-id"))?;
    let process = agent.start()?;
    Ok((agent, process))
}

/// Connects a swarm, takes its network away, and gives it back.
async fn swarm_returns(world: &World, SwarmSize(count): SwarmSize) -> anyhow::Result<Effect> {
    let host = world.lab.named(SWARM_HOST)?;
    let swarm = Swarm::start(host, &world.place.join("swarm"), &world.home, count)?;
    let came = connected(world, count).await.context("a swarm does not connect")?;
    let off = Cut::one_off(host.id(), &world.all_hosts());
    world.lab.cut(&world.cut.clone().and(&off))?;
    let begun = Instant::now();
    while swarm_connected(world).await? > 0 {
        ensure!(begun.elapsed() < SWARM_LIMIT, "agents without a network count as connected");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    world.lab.cut(&world.cut)?;
    let back = connected(world, count).await.context("a swarm does not return")?;
    tokio::task::block_in_place(|| swarm.stop())?;
    Ok(Effect::Done(format!("{count} agents came within {came:?}, and returned within {back:?}")))
}

/// Waits until so many agents of the swarm are connected; tells how long it took.
async fn connected(world: &World, count: usize) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        let now = swarm_connected(world).await?;
        if now == count {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > SWARM_LIMIT {
            bail!("{now} of {count} agents after {SWARM_LIMIT:?}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn swarm_connected(world: &World) -> anyhow::Result<usize> {
    let servers = world.api(0).servers().await?;
    let is_connected = |server: &&serde_json::Value| {
        let is_one = server["Hostname"].as_str().is_some_and(|name| name.starts_with(swarm::NAMES));
        // Nothing fits there, which is as good as it gets.
        is_one && !matches!(server["UnavailabilityReason"].as_str(), Some("UNREACHABLE_AGENT" | "UNKNOWN"))
    };
    Ok(servers.iter().filter(is_connected).count())
}
