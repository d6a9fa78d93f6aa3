//! What all hosts of a world share: chance, what happened, what is wrong, what
//! really runs on the desktop hosts, and traps that cut the network at a moment.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth::agent::desktops::simulated::Simulated;
use berth::domain::SessionId;

use super::net::Cut;
use super::site::Site;
use super::{Moment, Shape};
use crate::simulation::world::Dice;

/// Lines that are kept for a failure.
const LINES_MAX: usize = 200;

/// What only the one who runs the simulation can do to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Its processes die, as by SIGKILL: their connections are closed.
    Kill(String),
    /// It loses its power: nobody is told.
    CutPower(String),
    /// It starts again.
    Start(String),
}

/// A cut that waits for its moment.
#[derive(Debug)]
struct Trap {
    host: String,
    moment: Moment,
    cut: Cut,
}

#[derive(Default)]
struct State {
    hasher: DefaultHasher,
    lines: VecDeque<String>,
    violations: Vec<String>,
    orders: Vec<Order>,
    traps: Vec<Trap>,
    /// Hosts that are cut off.
    cut: BTreeSet<String>,
    /// When agents last opened a connection.
    connected_at: BTreeMap<String, Duration>,
    /// When they last let go of one.
    parted_at: BTreeMap<String, Duration>,
    /// Bytes that the broker sent to an address.
    sent: BTreeMap<IpAddr, usize>,
    /// Desktops that run, and where.
    live: BTreeMap<SessionId, String>,
    /// Those made in the present life of a host.
    made: BTreeMap<String, Vec<SessionId>>,
    hosts: BTreeMap<String, Arc<Simulated>>,
    sessions: u64,
    /// The index of the last event that is to be heard of.
    target: Option<u64>,
    elapsed: Duration,
}

/// See the module.
pub struct World {
    /// Chance.
    pub dice: Dice,
    /// What it is like.
    pub shape: Shape,
    /// The broker's host.
    pub site: Site,
    folder: PathBuf,
    verbose: bool,
    state: Mutex<State>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    /// A world whose files are in a folder.
    pub fn new(seed: u64, shape: Shape, folder: &Path, verbose: bool) -> anyhow::Result<Self> {
        let site = Site::prepare(folder)?;
        let dice = Dice::new(seed ^ 0xed6e);
        Ok(Self { dice, shape, site, folder: folder.to_owned(), verbose, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data, whole between steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a host has its files.
    pub fn folder_of(&self, host: &str) -> PathBuf {
        self.folder.join(host)
    }

    /// How long the world has existed.
    pub fn elapsed(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or_else(|| self.state().elapsed)
    }

    /// Between two steps nobody is there to tell the time.
    pub fn set_elapsed(&self, elapsed: Duration) {
        self.state().elapsed = elapsed;
    }

    /// Something happened.
    #[expect(clippy::print_stdout, reason = "asked for, to follow one world")]
    pub fn note(&self, text: &str) {
        let line = format!("{:>7} ms  {text}", self.elapsed().as_millis());
        if self.verbose {
            println!("{line}");
        }
        let mut state = self.state();
        line.hash(&mut state.hasher);
        if state.lines.len() == LINES_MAX {
            state.lines.pop_front();
        }
        state.lines.push_back(line);
    }

    /// Something is wrong.
    pub fn violation(&self, text: String) {
        self.note(&format!("WRONG: {text}"));
        self.state().violations.push(text);
    }

    /// What is wrong, a number over everything that happened, and the end of it.
    pub fn end(&self) -> (Vec<String>, u64, Vec<String>) {
        let mut state = self.state();
        let (violations, lines) = (std::mem::take(&mut state.violations), std::mem::take(&mut state.lines));
        (violations, state.hasher.finish(), lines.into())
    }

    /// Has something done to a host after this step.
    pub fn order(&self, order: Order) {
        self.note(&format!("{order:?}"));
        self.state().orders.push(order);
    }

    /// What is to be done to hosts.
    pub fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.state().orders)
    }

    /// Cuts a host off.
    pub fn cut(&self, host: &str, cut: Cut) {
        self.note(&format!("{host} and the broker: {cut:?}"));
        self.state().cut.insert(host.to_owned());
        cut.begin(host);
    }

    /// Ends all cuts between a host and the broker.
    pub fn mend(&self, host: &str) {
        self.note(&format!("{host} and the broker: whole"));
        self.state().cut.remove(host);
        Cut::end(host);
    }

    /// Whether nothing is cut between a host and the broker.
    pub fn is_mended(&self, host: &str) -> bool {
        !self.state().cut.contains(host)
    }

    /// Cuts a host off when something happens to it next.
    pub fn set_trap(&self, host: &str, moment: Moment, cut: Cut) {
        self.state().traps.push(Trap { host: host.to_owned(), moment, cut });
    }

    /// Whether a trap waits for a host.
    pub fn has_trap(&self, host: &str) -> bool {
        self.state().traps.iter().any(|trap| trap.host == host)
    }

    /// Something happens to a host, at this very moment.
    pub fn happens(&self, host: &str, moment: Moment) {
        let trap = {
            let traps = &mut self.state().traps;
            let springs = |trap: &Trap| trap.host == host && trap.moment.is(moment);
            traps.iter().position(springs).map(|place| traps.remove(place))
        };
        if let Some(Trap { host, cut, .. }) = trap {
            self.note(&format!("at {moment:?}"));
            self.cut(&host, cut);
        }
    }

    /// An agent opened a connection.
    pub fn connected(&self, host: &str) {
        self.note(&format!("{host} opens a connection"));
        let at = self.elapsed();
        self.state().connected_at.insert(host.to_owned(), at);
    }

    /// And let go of it.
    pub fn disconnected(&self, host: &str) {
        let at = self.elapsed();
        self.state().parted_at.insert(host.to_owned(), at);
        self.note(&format!("{host} lets go of a connection"));
    }

    /// Whether an agent let go of one since a moment.
    pub fn parted_after(&self, host: &str, moment: Duration) -> bool {
        self.state().parted_at.get(host).is_some_and(|at| *at > moment)
    }

    /// When an agent last opened a connection.
    pub fn last_connected(&self, host: &str) -> Option<Duration> {
        self.state().connected_at.get(host).copied()
    }

    /// The broker sent something to an address.
    pub fn sent(&self, to: IpAddr, bytes: usize) {
        *self.state().sent.entry(to).or_default() += bytes;
    }

    /// Bytes that it sent there so far.
    pub fn sent_to(&self, to: IpAddr) -> usize {
        self.state().sent.get(&to).copied().unwrap_or_default()
    }

    /// A host starts, without desktops.
    pub fn starts(&self, host: &str, desktops: &Arc<Simulated>) {
        self.note(&format!("{host} starts"));
        self.state().hosts.insert(host.to_owned(), Arc::clone(desktops));
    }

    /// The desktops of a host.
    pub fn desktops(&self, host: &str) -> Option<Arc<Simulated>> {
        self.state().hosts.get(host).cloned()
    }

    /// A desktop was made.
    pub fn made(&self, host: &str, session: &SessionId) {
        self.note(&format!("{host} made {session}"));
        let mut state = self.state();
        let elsewhere = state.live.insert(session.clone(), host.to_owned());
        let made = state.made.entry(host.to_owned()).or_default();
        let again = made.contains(session);
        made.push(session.clone());
        drop(state);
        if let Some(elsewhere) = elsewhere {
            self.violation(format!("{session} has a desktop on {elsewhere} already, and now one on {host}"));
        } else if again {
            self.violation(format!("{host} made {session} a second time"));
        }
    }

    /// A desktop ended.
    pub fn ended(&self, host: &str, session: &SessionId) {
        self.note(&format!("{host} ended {session}"));
        self.state().live.remove(session);
    }

    /// A host's processes died, and its desktops with them.
    pub fn died(&self, host: &str) {
        let mut state = self.state();
        state.live.retain(|_, on| on != host);
        state.made.remove(host);
    }

    /// The sessions that have a desktop, and where.
    pub fn live(&self) -> BTreeMap<SessionId, String> {
        self.state().live.clone()
    }

    /// A number for a new session.
    pub fn next_session(&self) -> u64 {
        let mut state = self.state();
        state.sessions += 1;
        state.sessions
    }

    /// The index of the last event that is to be heard of, once it is known.
    pub fn target(&self) -> Option<u64> {
        self.state().target
    }

    /// Nothing more happens after this one.
    pub fn set_target(&self, index: u64) {
        self.state().target = Some(index);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_desktop_that_is_made_again_or_elsewhere_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(1, Shape::default(), folder.path(), false).unwrap();
        let session = SessionId::new("s").unwrap();
        world.made("one", &session);
        world.ended("one", &session);
        world.died("one");
        world.made("one", &session);
        assert_eq!(world.end().0, Vec::<String>::new());
        world.made("two", &session);
        assert!(world.end().0[0].contains("on one already"));
        world.ended("two", &session);
        world.made("one", &session);
        assert!(world.end().0[0].contains("a second time"));
    }
}
