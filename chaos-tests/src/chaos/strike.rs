//! How each fault is done, what is left to do when it is over, and how often it
//! struck: something was hit that worked until then, and it is counted where it
//! was hit. What lasts is mended by [`World::mend`].

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::io::Errno;
use serde_json::json;

use super::fault::{Fault, Kind};
use super::odd::Manner;
use super::run::Hiccup;
use super::swarm::{self, Swarm};
use super::world::{DUPE, Replica, SESSIONS_PER_SERVER_MAX, SWARM_HOST, World};
use super::{harm, members};
use crate::client::Answer;
use crate::desktops::Desktops;
use crate::faultfs::control::{Class, Control, Extent};
use crate::faultfs::power::Kept;
use crate::history::Event;
use crate::lab::cut::Cut;
use crate::lab::weather::{Climate, Weather};
use crate::process::{Agent, Process};
use crate::random::Random;

/// How long a disk that fails may go unnoticed under load.
const FAILURE_LIMIT: Duration = Duration::from_secs(30);
/// How long a swarm may take to be connected, for the first time and again.
const SWARM_LIMIT: Duration = Duration::from_mins(2);
/// How long an odd agent may take to have behaved so, while it gets sessions.
const ODD_LIMIT: Duration = Duration::from_secs(15);
/// Reports of a liar that are to be in the log before it stops.
const LIES_MIN: u64 = 10;
/// Times that an agent that flaps loses its network, the first time for so long
/// that its connection is given up.
const FLAPS: u32 = 3;
const LONG_FLAP: Duration = Duration::from_millis(3_500);
const MINUTE_MS: i64 = 60_000;
/// The slowest sync.
const SYNC_MS_MAX: u64 = 10_000;
/// What an agent says that is refused because another one has its id.
const COPY_REFUSED: &str = "this server id is in use by another agent";
/// What an agent says when it is connected.
const LINKED: &str = "linked to the broker";

/// Thousands of agents, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwarmSize(pub usize);

/// A fault that has begun, and what is needed to end it.
#[derive(Debug)]
pub struct Begun {
    fault: Fault,
    /// Who led when it began is among its victims.
    leads: bool,
    told: String,
    /// What was hit so far and is not counted by itself.
    hits: u64,
    /// What counts by itself, when it began.
    counted: u64,
    copy: Option<(Agent, Process)>,
    spare: Option<Replica>,
}

impl std::fmt::Display for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.fault.fmt(f)
    }
}

/// A fault that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Struck {
    /// Its kind.
    pub kind: Kind,
    /// What there is to tell of it.
    pub told: String,
    /// What it hit, in the [`unit`](Kind::unit) of its kind; 0: it did not strike.
    pub hits: u64,
}

/// Begins a fault.
pub async fn begin(world: &mut World, fault: &Fault, swarm: SwarmSize) -> anyhow::Result<Begun> {
    let mut random = Random::new(fault.seed);
    let leader = if fault.victims.is_empty() { None } else { world.leader() };
    let fault = &fault.clone().aimed(leader);
    let counted = counted(world, fault).context(Hiccup)?;
    let (mut copy, mut spare) = (None, None);
    let (told, hits) = match fault.kind {
        Kind::AgentClone => {
            // A host that was lost long enough is anybody's: its copy would rightly
            // take its place.
            let are_connected = world.agents_come(ODD_LIMIT).await;
            if are_connected {
                copy = Some(clone(world, &mut random)?);
            }
            (if are_connected { String::new() } else { "agents are away".to_owned() }, 0)
        }
        Kind::Addition => {
            let added = world.add_spare(&format!("spare-{:x}", random.next())).await?;
            let number = added.number;
            spare = Some(added);
            (format!("number {number}"), 0)
        }
        Kind::SwarmReturns => swarm_returns(world, swarm).await?,
        _ => strike(world, fault, &mut random).await?,
    };
    let leads = leader.is_some_and(|leader| fault.victims.contains(&leader));
    Ok(Begun { fault: fault.clone(), leads, told, hits, counted, copy, spare })
}

/// Nothing to tell but a number.
const fn done(hits: u64) -> members::Tried {
    (String::new(), hits)
}

/// Does it. Tells what there is to tell, and what was hit that is not counted by itself.
async fn strike(world: &mut World, fault: &Fault, random: &mut Random) -> anyhow::Result<members::Tried> {
    let victims = &fault.victims;
    match fault.kind {
        Kind::Kill | Kind::KillMajority | Kind::KillAll => return Ok(done(kill(world, victims)?)),
        Kind::Pause | Kind::PauseMajority | Kind::PauseAll => {
            for &place in victims {
                world.replicas[place].pause(true)?;
            }
        }
        Kind::Restart | Kind::RestartAll => {
            for &place in victims {
                world.replicas[place].tell_to_end()?;
            }
            let mut ended = 0;
            for &place in victims {
                ended += u64::from(world.replicas[place].ends().await?);
            }
            return Ok(done(ended));
        }
        Kind::RollingRestart => {
            let mut ended = 0;
            for &place in victims {
                world.replicas[place].tell_to_end()?;
                ended += u64::from(world.replicas[place].ends().await?);
                world.replicas[place].start()?;
                world.whole().await.context("while one after the other is restarted")?;
            }
            return Ok(done(ended));
        }
        Kind::PowerLoss | Kind::PowerLossOfAll => return lose_power(world, victims, random),
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
            let weather = weather(fault.kind, random);
            world.lab.switch()?.set(Climate::same(weather));
            return Ok((format!("{weather:?}"), 0));
        }
        Kind::ClockJump => {
            let minutes = 1 + i64::try_from(random.below(10))?;
            let jump_ms = if random.below(2) == 0 { minutes } else { -minutes } * MINUTE_MS;
            control(world, victims[0])?.shift_clock(jump_ms).context(Hiccup)?;
            return Ok((format!("by {jump_ms} ms"), 0));
        }
        Kind::ClockDrift => {
            let ppm = 1000 + i64::try_from(random.below(100_000))?;
            let ppm = if random.below(2) == 0 { ppm } else { -ppm };
            control(world, victims[0])?.let_clock_drift(ppm).context(Hiccup)?;
            return Ok((format!("by {ppm} of a million"), 0));
        }
        Kind::SyncError | Kind::WriteError => {
            world.replicas[victims[0]].may_end = true;
            let class = if fault.kind == Kind::SyncError { Class::Syncs } else { Class::Writes };
            control(world, victims[0])?.fail(class, Extent::All, Errno::IO).context(Hiccup)?;
        }
        Kind::ReadError => {
            world.replicas[victims[0]].may_end = true;
            let extent = Extent::Next(1 + random.below(3));
            control(world, victims[0])?.fail(Class::Reads, extent, Errno::IO).context(Hiccup)?;
        }
        Kind::ShortWrites => control(world, victims[0])?.shorten_writes(Extent::All).context(Hiccup)?,
        Kind::FullDisk => {
            control(world, victims[0])?.fail(Class::Writes, Extent::All, Errno::NOSPC).context(Hiccup)?;
        }
        Kind::SlowSync => {
            let delay_ms = if random.below(2) == 0 { SYNC_MS_MAX } else { 1000 + random.below(SYNC_MS_MAX - 1000) };
            control(world, victims[0])?.slow_syncs(Duration::from_millis(delay_ms)).context(Hiccup)?;
            return Ok((format!("{delay_ms} ms each"), 0));
        }
        Kind::FlippedLog | Kind::FlippedVote | Kind::FlippedSnapshot | Kind::MissingFile => {
            kill(world, victims)?;
            return harm::until_refused(world, victims[0], fault.kind, random).await;
        }
        Kind::HandOver => return members::hand_over(world, random).await,
        Kind::Replacement => {
            world.replace(victims[0], false).await?;
            return Ok(done(1));
        }
        Kind::Removal => return members::remove(world, victims[0]).await,
        Kind::Rotation => return members::rotate(world).await,
        Kind::LongAbsence => {
            kill(world, victims)?;
            return Ok((members::go_on_without(world, victims[0]).await?.0, 0));
        }
        Kind::AgentDeath => {
            let count = world.agents_count();
            let everybody = random.below(3) == 0;
            let one = usize::try_from(random.below(count as u64))?;
            let mut killed = 0;
            for number in (0..count).filter(|&number| everybody || number == one) {
                killed += u64::from(world.kill_agent(number)?);
            }
            return Ok(done(killed));
        }
        Kind::AgentFlaps => return flap(world, random).await,
        Kind::AgentLate => world.odd.behave(Manner::Late),
        Kind::AgentRepeats => world.odd.behave(Manner::Repeats),
        Kind::AgentLies => return lie(world).await,
        // Begun by themselves.
        Kind::AgentClone | Kind::Addition | Kind::SwarmReturns => {}
    }
    Ok(done(0))
}

/// What counts by itself how often a fault of this kind strikes.
fn counted(world: &World, fault: &Fault) -> anyhow::Result<u64> {
    let control = || control(world, fault.victims[0]);
    let packets = || anyhow::Ok(world.lab.switch()?.counts());
    match fault.kind {
        Kind::OneOff | Kind::Halves | Kind::Ring | Kind::OneWay => world.lab.dropped(),
        Kind::Delay => Ok(packets()?.delayed),
        Kind::Loss => Ok(packets()?.lost),
        Kind::Doubling => Ok(packets()?.doubled),
        Kind::Reordering => Ok(packets()?.overtaken),
        Kind::ClockJump | Kind::ClockDrift => control()?.clock_reads(),
        Kind::SyncError => control()?.hits(Class::Syncs),
        Kind::WriteError | Kind::FullDisk => control()?.hits(Class::Writes),
        Kind::ReadError => control()?.hits(Class::Reads),
        Kind::ShortWrites => control()?.shortened(),
        Kind::SlowSync => control()?.slowed(),
        Kind::AgentLate => Ok(world.odd.counts().late()),
        Kind::AgentRepeats => Ok(world.odd.counts().repeated()),
        Kind::AgentLies => Ok(world.liar.counts().lies()),
        _ => Ok(0),
    }
}

/// Ends a fault, as far as that is more than mending; before everything is mended.
pub async fn end(world: &mut World, begun: Begun) -> anyhow::Result<Struck> {
    let Begun { fault, leads, told, mut hits, counted: before, copy, spare } = begun;
    let mut random = Random::new(fault.seed ^ 1);
    match fault.kind {
        Kind::SyncError | Kind::WriteError => {
            let place = fault.victims[0];
            fails(world, place).await?;
            // Whoever meets such a disk does not trust the machine's memory of it either.
            let loss = world.replicas[place].faults()?.lose_power(Kept::Some, &mut random).context(Hiccup)?;
            world.note(format!("the power of replica {} was lost as well: {loss:?}", place + 1));
        }
        Kind::ReadError => {
            let place = fault.victims[0];
            // What a replica needs it has in memory, until it is started.
            if counted(world, &fault)? == before {
                kill(world, &[place])?;
                control(world, place)?.fail(Class::Reads, Extent::All, Errno::IO).context(Hiccup)?;
                world.replicas[place].start()?;
                fails(world, place).await?;
            }
        }
        // What is damaged and was not noticed must not lie there any longer.
        Kind::FlippedLog | Kind::FlippedVote | Kind::FlippedSnapshot | Kind::MissingFile => {
            world.replace(fault.victims[0], false).await?;
        }
        Kind::Removal => world.replace(fault.victims[0], true).await?,
        Kind::Addition => {
            if let Some(spare) = spare {
                members::remove_spare(world, spare).await?;
                hits = 1;
            }
        }
        Kind::LongAbsence => hits = members::take_over_snapshot(world, fault.victims[0]).await?,
        Kind::Pause | Kind::PauseMajority | Kind::PauseAll => {
            for &place in &fault.victims {
                hits += u64::from(world.replicas[place].stands_still()?);
            }
        }
        Kind::AgentClone => {
            if let Some((agent, mut process)) = copy {
                process.lives().context("the copied agent")?;
                process.kill()?;
                hits = agent.said(COPY_REFUSED)?;
                let desktops = Desktops::read("copy", &agent.trace()).unwrap_or_default();
                ensure!(desktops.live.is_empty(), "the agent of a copied host made desktops: {desktops:?}");
            }
        }
        Kind::AgentLate => until_counted(|| world.odd.counts().late() > before).await,
        Kind::AgentRepeats => until_counted(|| world.odd.counts().repeated() > before).await,
        Kind::AgentLies => {
            until_counted(|| world.liar.counts().lies() >= before + LIES_MIN).await;
            let deleted = world.api(0).call("deleteSessions", &dupes(world).await).await;
            world.note(format!("the liar's own session is to end: {deleted:?}"));
        }
        _ => {}
    }
    hits += counted(world, &fault).context(Hiccup)? - before;
    match fault.kind {
        Kind::AgentLate | Kind::AgentRepeats => world.odd.behave(Manner::Proper),
        Kind::AgentLies => world.liar.behave(Manner::Proper),
        _ => {}
    }
    let victim = if leads { ", the leader hit" } else { "" };
    let told = if told.is_empty() { format!("{fault}{victim}") } else { format!("{fault}{victim} ({told})") };
    Ok(Struck { kind: fault.kind, told, hits })
}

/// Waits a little for what depends on clients and agents.
async fn until_counted(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() && begun.elapsed() < ODD_LIMIT {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn control(world: &World, place: usize) -> anyhow::Result<&Control> {
    Ok(world.replicas[place].faults()?.control())
}

/// Kills replicas; tells how many ran.
fn kill(world: &mut World, places: &[usize]) -> anyhow::Result<u64> {
    let mut killed = 0;
    for &place in places {
        let sent = world.history.now();
        killed += u64::from(world.replicas[place].kill()?);
        let span = world.history.since(sent);
        world.history.add([Event::BrokerKilled { span }]);
    }
    Ok(killed)
}

fn lose_power(world: &mut World, places: &[usize], random: &mut Random) -> anyhow::Result<members::Tried> {
    kill(world, places)?;
    let (mut told, mut hits) = (Vec::new(), 0);
    for &place in places {
        let kept = if random.below(2) == 0 { Kept::Nothing } else { Kept::Some };
        let loss = world.replicas[place].faults()?.lose_power(kept, random).context(Hiccup)?;
        hits += loss.changes - loss.kept + loss.names - loss.names_kept;
        told.push(format!("{kept:?} kept: {loss:?}"));
    }
    Ok((told.join("; "), hits))
}

fn cut_more(world: &mut World, cut: &Cut) -> anyhow::Result<()> {
    world.cut = std::mem::take(&mut world.cut).and(cut);
    world.lab.cut(&world.cut).context(Hiccup)
}

fn weather(kind: Kind, random: &mut Random) -> Weather {
    let fair = Weather::fair();
    let mut permille = |least: u64, most: u64| u32::try_from(least + random.below(most - least)).unwrap_or_default();
    match kind {
        Kind::Delay => {
            // There and back it must be less than half the election timeout of the replicas, 225 ms:
            // `docs/operations.md` asks for as much.
            let delay = Duration::from_millis(u64::from(permille(5, 45)));
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

/// Has an agent lose its network again and again; tells how often it connected.
async fn flap(world: &World, random: &mut Random) -> anyhow::Result<members::Tried> {
    let number = usize::try_from(random.below(world.agents_count() as u64))?;
    let before = world.agent(number).said(LINKED)?;
    let off = Cut::one_off(world.agent_host(number)?.id(), &world.all_hosts());
    for flap in 0..FLAPS {
        world.lab.cut(&world.cut.clone().and(&off)).context(Hiccup)?;
        let short = Duration::from_millis(random.below(1000));
        tokio::time::sleep(if flap == 0 { LONG_FLAP } else { short }).await;
        world.lab.cut(&world.cut).context(Hiccup)?;
        tokio::time::sleep(Duration::from_millis(random.below(1000))).await;
    }
    until_counted(|| world.agent(number).said(LINKED).is_ok_and(|now| now > before)).await;
    Ok(done(world.agent(number).said(LINKED)? - before))
}

/// Gives the liar a session that it says it has made, and sessions to claim.
async fn lie(world: &World) -> anyhow::Result<members::Tried> {
    let own = json!([{ "Name": DUPE, "Owner": DUPE, "Type": "CONSOLE" }]);
    let own = match world.api(0).call("createSessions", &own).await {
        Answer::Done(answer) => {
            format!("{} session of its own", answer["SuccessfulList"].as_array().map_or(0, Vec::len))
        }
        other => format!("no session of its own: {other:?}"),
    };
    let Ok(mut others) = world.api(0).sessions(&[]).await else {
        return Ok(("nothing to claim could be seen".to_owned(), 0));
    };
    others.retain(|session| session.state == "READY" && session.owner != DUPE);
    let told = format!("{own}, {} of others", others.len());
    if !others.is_empty() {
        world.liar.behave(Manner::Lies(others.into()));
    }
    Ok((told, 0))
}

/// The sessions that the liar was given, to be deleted.
async fn dupes(world: &World) -> serde_json::Value {
    let seen = world.api(0).sessions(&[]).await.unwrap_or_default();
    let own = seen.iter().filter(|session| session.owner == DUPE && session.state != "DELETED");
    own.map(|session| json!({ "SessionId": session.id, "Owner": DUPE, "Force": true })).collect()
}

/// Starts a copy of an agent on another host.
fn clone(world: &World, random: &mut Random) -> anyhow::Result<(Agent, Process)> {
    let number = usize::try_from(random.below(world.agents_count() as u64))?;
    let folder = world.place.join(format!("copy-{:x}", random.next()));
    let host = world.lab.named(SWARM_HOST)?.clone();
    let agent = Agent::placed(&world.program, &folder, &world.home, Some(host), SESSIONS_PER_SERVER_MAX)?;
    std::fs::create_dir_all(folder.join("data"))?;
    // What makes it the same agent; without its key it would be a stranger.
    for file in ["server-id", "agent.key", "agent.pem"] {
        std::fs::copy(world.agent_folder(number).join("data").join(file), folder.join("data").join(file))?;
    }
    let process = agent.start()?;
    Ok((agent, process))
}

/// Connects a swarm, takes its network away, and gives it back.
async fn swarm_returns(world: &World, SwarmSize(count): SwarmSize) -> anyhow::Result<members::Tried> {
    let host = world.lab.named(SWARM_HOST)?;
    let swarm = Swarm::start(host, &world.place.join("swarm"), &world.home, count)?;
    let came = connected(world, count).await.context("a swarm does not connect")?;
    let off = Cut::one_off(host.id(), &world.all_hosts());
    world.lab.cut(&world.cut.clone().and(&off)).context(Hiccup)?;
    let begun = Instant::now();
    while !matches!(swarm_connected(world).await, Ok(0)) {
        ensure!(begun.elapsed() < SWARM_LIMIT, "agents without a network count as connected");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    world.lab.cut(&world.cut).context(Hiccup)?;
    let back = connected(world, count).await.context("a swarm does not return")?;
    tokio::task::block_in_place(|| swarm.stop())?;
    Ok((format!("{count} agents came within {came:?}, and returned within {back:?}"), count as u64))
}

/// Waits until so many agents of the swarm are connected; tells how long it took.
async fn connected(world: &World, count: usize) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        // An answer may be old, or not come, while so many arrive at once.
        let now = swarm_connected(world).await;
        if now.as_ref().is_ok_and(|now| *now == count) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > SWARM_LIMIT {
            bail!("{now:?} of {count} agents after {SWARM_LIMIT:?}");
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
