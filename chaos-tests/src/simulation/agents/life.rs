//! What an agent does all day: connects to some replica, reports, carries out
//! what it is told, and goes elsewhere when that ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth::domain::{InstructionId, SessionId, Timestamp};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep, sleep_until};

use super::host::Host;
use super::pipe::{Receiver, Sender, pipe};
use super::{FromAgent, Mishap, ToAgent, link};
use crate::simulation::broken::Broken;
use crate::simulation::world::World;

/// A broker that was silent for longer is gone.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long messages between agents and replicas take, at most.
const DELAY_MS: u64 = 10;

/// An agent.
pub struct Agent {
    world: Arc<World>,
    host: Host,
    mishaps: mpsc::UnboundedReceiver<Mishap>,
    /// Instructions that are being carried out, and until when.
    under_way: BTreeMap<InstructionId, Instant>,
    silent_until: Option<Instant>,
    is_slow: bool,
    repeats: bool,
}

/// Why a conversation ended.
enum Ended {
    /// The other side, or the connection.
    Broken,
    /// The agent itself.
    Crashed,
}

impl Agent {
    /// The agent of a host, to which `mishaps` befall.
    pub fn new(world: Arc<World>, mut host: Host, mishaps: mpsc::UnboundedReceiver<Mishap>) -> Self {
        host.is_forgetful = world.plan.broken == Some(Broken::DoubledInstruction);
        Self { world, host, mishaps, under_way: BTreeMap::new(), silent_until: None, is_slow: false, repeats: false }
    }

    /// Lives as long as the world, or, a copy, until the faults are over.
    pub async fn live(mut self) {
        let mut sticks_to = None;
        loop {
            if self.host.is_copy && self.world.is_healed() {
                return;
            }
            if let Some(until) = self.silent_until.take() {
                sleep_until(until).await;
            }
            let stations: Vec<_> =
                self.world.machines().into_iter().filter_map(|node| node.running().map(|it| (node, it))).collect();
            let choice = self.world.dice.index(stations.len());
            let kept = sticks_to.take().and_then(|id| stations.iter().position(|(node, _)| node.id == id));
            if let Some((node, station)) = kept.or(choice).and_then(|place| stations.get(place)) {
                let (to_broker, from_agent) = pipe(Arc::clone(&self.world.dice), DELAY_MS);
                let (to_agent, from_broker) = pipe(Arc::clone(&self.world.dice), DELAY_MS);
                let (replica, applied) = (station.replica.clone(), node.applied.subscribe());
                drop(station.host.spawn(link::serve(replica, from_agent, to_agent, applied)));
                if let Ended::Broken = self.converse(&to_broker, from_broker).await
                    && self.world.dice.in_thousand(300)
                {
                    sticks_to = Some(node.id);
                }
            }
            drop(stations);
            self.mishaps_meanwhile();
            sleep(Duration::from_millis(100 + self.world.dice.below(600))).await;
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.world.trace.now_ms())
    }

    /// What happens to it while it is not connected.
    fn mishaps_meanwhile(&mut self) {
        while let Ok(mishap) = self.mishaps.try_recv() {
            self.befall(mishap);
        }
    }

    /// Whether the connection survives it.
    fn befall(&mut self, mishap: Mishap) -> Option<Ended> {
        match mishap {
            Mishap::Flap => return Some(Ended::Broken),
            Mishap::Crash { loses_desktops } => {
                self.host.crash(loses_desktops);
                self.under_way.clear();
                for id in self.host.left_over() {
                    self.begin(id);
                }
                return Some(Ended::Crashed);
            }
            Mishap::Silence { for_ms } => {
                self.silent_until = Some(Instant::now() + Duration::from_millis(for_ms));
                return Some(Ended::Broken);
            }
            Mishap::Slow(is_slow) => self.is_slow = is_slow,
            Mishap::Repeats(repeats) => self.repeats = repeats,
            Mishap::Lies(lies) => {
                self.host.set_lying(lies);
                // Who stops lying says everything anew.
                if !lies {
                    return Some(Ended::Broken);
                }
            }
            Mishap::Stir => {
                let (choice, now) = (self.world.dice.below(4), self.now());
                self.host.stir(choice, now);
            }
        }
        None
    }

    fn begin(&mut self, id: InstructionId) {
        let longest_ms = if self.is_slow { 9_000 } else { 300 };
        let length = Duration::from_millis(10 + self.world.dice.below(longest_ms));
        self.under_way.insert(id, Instant::now() + length);
    }

    async fn converse(&mut self, to_broker: &Sender<FromAgent>, mut from_broker: Receiver<ToAgent>) -> Ended {
        let (server, instance, report) = (self.host.server.clone(), self.host.instance(), self.host.full_report());
        let hello = FromAgent::Hello { server, instance, report };
        if !to_broker.send(hello) {
            return Ended::Broken;
        }
        let interval = Duration::from_millis(link::REPORT_INTERVAL.0);
        let mut reports = interval_at(Instant::now() + interval, interval);
        let mut heard_at = Instant::now();
        let mut is_welcome = false;
        loop {
            let next_done = self.next_done();
            tokio::select! {
                biased;
                message = from_broker.receive() => {
                    heard_at = Instant::now();
                    match message {
                        Some(ToAgent::Welcome { epoch, oldest }) => {
                            is_welcome = true;
                            if self.host.is_copy {
                                // The broker takes it for the original, which was lost to it: what that
                                // one still has may be made elsewhere.
                                self.world.judge.mistrusts_server(&self.host.server);
                            }
                            for id in self.host.welcomed(epoch, oldest) {
                                self.answer(to_broker, id);
                            }
                        }
                        Some(ToAgent::Instruction { epoch, instruction }) => {
                            match self.host.admit(epoch, &instruction) {
                                Some(true) => self.begin(instruction.id),
                                Some(false) => self.answer(to_broker, instruction.id),
                                None => {}
                            }
                        }
                        Some(ToAgent::Settled(id)) => {
                            self.host.settled(id);
                        }
                        Some(ToAgent::Alive) => {}
                        None => return Ended::Broken,
                    }
                }
                () = sleep_until(next_done.map_or_else(Instant::now, |(_, at)| at)), if next_done.is_some() => {
                    if let Some((id, _)) = next_done {
                        self.finish(to_broker, id, is_welcome);
                    }
                }
                Some(mishap) = self.mishaps.recv() => {
                    if let Some(ended) = self.befall(mishap) {
                        return ended;
                    }
                }
                _ = reports.tick() => {
                    if heard_at.elapsed() > SILENCE_MAX || (self.host.is_copy && self.world.is_healed()) {
                        return Ended::Broken;
                    }
                    if is_welcome {
                        self.say_how_it_is(to_broker);
                    }
                }
            }
        }
    }

    /// What is done next, and when.
    fn next_done(&self) -> Option<(InstructionId, Instant)> {
        let ready = self.under_way.iter().filter(|(id, _)| !self.host.has_to_wait(**id));
        ready.map(|(id, at)| (*id, *at)).min_by_key(|(id, at)| (*at, *id))
    }

    fn finish(&mut self, to_broker: &Sender<FromAgent>, id: InstructionId, is_welcome: bool) {
        self.under_way.remove(&id);
        let succeeds = !self.world.dice.in_thousand(60);
        self.host.carry_out(id, succeeds, self.now());
        self.world.trace.note(&format!("{} carried out instruction {id}", self.host.name));
        if is_welcome {
            self.answer(to_broker, id);
        }
    }

    fn answer(&mut self, to_broker: &Sender<FromAgent>, instruction: InstructionId) {
        let Some(answer) = self.host.answer(instruction) else { return };
        let message = FromAgent::Answer { instruction, answer };
        if self.repeats {
            to_broker.send(message.clone());
        }
        to_broker.send(message);
    }

    fn say_how_it_is(&mut self, to_broker: &Sender<FromAgent>) {
        if self.host.lies
            && self.world.dice.in_thousand(500)
            && let Some((id, owner)) = self.world.any_session()
        {
            let session = SessionId::clone(&id);
            to_broker.send(FromAgent::Report(Host::claim(session, owner, self.now())));
            return;
        }
        let report = self.host.report();
        if self.repeats {
            to_broker.send(FromAgent::Report(report.clone()));
        }
        to_broker.send(FromAgent::Report(report));
        self.world.tell_of_host(
            &self.host.name,
            self.host.server.clone(),
            self.host.is_copy,
            self.host.desktops(),
            self.host.open(),
        );
    }
}
