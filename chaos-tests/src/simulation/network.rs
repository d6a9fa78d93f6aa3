//! How replicas reach each other: late, not at all, twice, or with the answer
//! lost.
//!
//! As a transport over TLS does it: what is lost comes to light as a broken
//! connection after a while, and bytes are never changed. What is sent twice are
//! requests that a transport may send again because they can do no harm. A replica
//! that was removed is told so by whoever it speaks to and knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth::broker::cluster::members;
use berth_raft::testing::{self, simulation};
use berth_raft::{Lane, Member, PeerError, Peers, Replica, ReplicaId};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::judge::Judge;
use super::machine::Replicated;
use super::trace::Trace;
use super::world::Dice;

/// How the network is now. Rates are in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// Requests that get lost.
    pub loss: u64,
    /// Answers that get lost, after their effect.
    pub answer_loss: u64,
    /// Requests that arrive twice.
    pub doubled: u64,
    /// Messages that take up to `slow_ms`.
    pub slow: u64,
    /// How long slow messages take at most.
    pub slow_ms: u64,
    /// How long the others take at most.
    pub usual_ms: u64,
}

impl Weather {
    /// Nothing is lost, little is slow.
    pub const FAIR: Self = Self { loss: 0, answer_loss: 0, doubled: 0, slow: 5, slow_ms: 20, usual_ms: 2 };
}

/// Who can be reached: a replica and the machine that it is on.
#[derive(Clone)]
pub struct Station {
    /// The machine.
    pub host: simulation::Host,
    /// The replica.
    pub replica: Replica<Replicated>,
}

struct State {
    weather: Weather,
    stations: BTreeMap<ReplicaId, Station>,
    /// From whom to whom nothing gets through.
    cut: BTreeSet<(ReplicaId, ReplicaId)>,
    lost: u64,
    answers_lost: u64,
    doubled: u64,
    cut_off: u64,
    /// Replicas that were removed.
    removed: BTreeSet<ReplicaId>,
    /// Those who were told that they were.
    dismissed: BTreeSet<ReplicaId>,
    /// When somebody last spoke to a replica that was removed, who, and to which.
    stray: Option<(Instant, ReplicaId, ReplicaId)>,
}

/// The network. Clones are the same.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
    dice: Arc<Dice>,
    trace: Arc<Trace>,
    judge: Arc<Judge>,
}

impl Network {
    /// A network in fair weather.
    pub fn new(dice: Arc<Dice>, trace: Arc<Trace>, judge: Arc<Judge>) -> Self {
        let state = State {
            weather: Weather::FAIR,
            stations: BTreeMap::new(),
            cut: BTreeSet::new(),
            lost: 0,
            answers_lost: 0,
            doubled: 0,
            cut_off: 0,
            removed: BTreeSet::new(),
            dismissed: BTreeSet::new(),
            stray: None,
        };
        Self { state: Arc::new(Mutex::new(state)), dice, trace, judge }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data, whole between steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The transport of a replica.
    pub fn peers_of(&self, from: ReplicaId) -> Arc<dyn Peers> {
        Arc::new(Wire { from, network: self.clone() })
    }

    /// A replica can be reached from now on.
    pub fn connect(&self, id: ReplicaId, station: Station) {
        self.state().stations.insert(id, station);
    }

    /// A replica cannot be reached any more.
    pub fn disconnect(&self, id: ReplicaId) {
        self.state().stations.remove(&id);
    }

    /// A replica was removed: nobody is to speak to it any more.
    pub fn remove(&self, id: ReplicaId) {
        self.state().removed.insert(id);
    }

    /// Whether a replica was told that it was removed.
    pub fn was_dismissed(&self, id: ReplicaId) -> bool {
        self.state().dismissed.contains(&id)
    }

    /// Who spoke to a replica that was removed, and to which, within this time.
    pub fn stray(&self, within: Duration) -> Option<(ReplicaId, ReplicaId)> {
        let (at, from, to) = self.state().stray?;
        (at.elapsed() < within).then_some((from, to))
    }

    fn note_stray(&self, from: ReplicaId, to: ReplicaId) {
        let mut state = self.state();
        if state.removed.contains(&to) && !state.removed.contains(&from) {
            state.stray = Some((Instant::now(), from, to));
        }
    }

    /// What the replicas have agreed on, as one of them knows it.
    fn look_at_members(&self, id: ReplicaId) {
        let station = self.state().stations.get(&id).cloned();
        if let Some(agreed) = station.and_then(|station| station.replica.agreed()) {
            self.judge.agreed(id, agreed);
        }
    }

    /// Sets the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Lets nothing through from one to another.
    pub fn cut(&self, from: ReplicaId, to: ReplicaId) {
        self.state().cut.insert((from, to));
    }

    /// Everybody reaches everybody again.
    pub fn mend(&self) {
        self.state().cut.clear();
    }

    /// What was lost on the way, by name.
    pub fn struck(&self) -> [(&'static str, u64); 4] {
        let state = self.state();
        [
            ("message lost", state.lost),
            ("answer lost after its effect", state.answers_lost),
            ("request doubled", state.doubled),
            ("message stopped by a partition", state.cut_off),
        ]
    }

    fn delay(&self) -> Duration {
        let weather = self.state().weather;
        let most = if self.dice.in_thousand(weather.slow) { weather.slow_ms } else { weather.usual_ms };
        // Half of them at once: what is ready at the same time is shuffled.
        let ms = if self.dice.in_thousand(500) { 0 } else { self.dice.below(most + 1) };
        Duration::from_millis(ms)
    }

    /// After this a connection that gives no answer is given up.
    fn patience(&self) -> Duration {
        Duration::from_millis(50 + self.dice.below(1_500))
    }

    fn is_cut(&self, from: ReplicaId, to: ReplicaId) -> bool {
        let mut state = self.state();
        let is_cut = state.cut.contains(&(from, to));
        state.cut_off += u64::from(is_cut);
        is_cut
    }

    fn strikes(&self, rate: impl Fn(&Weather) -> u64, count: impl Fn(&mut State) -> &mut u64) -> bool {
        let rate = rate(&self.state().weather);
        let strikes = rate > 0 && self.dice.in_thousand(rate);
        if strikes {
            *count(&mut self.state()) += 1;
        }
        strikes
    }

    async fn carry(&self, from: ReplicaId, to: ReplicaId, lane: Lane, request: Vec<u8>) -> Result<Vec<u8>, PeerError> {
        self.trace.mark((from.0, to.0, lane as u8, &request));
        self.note_stray(from, to);
        let no_answer = |reason: &str| PeerError::NoAnswer { to, reason: reason.to_owned() };
        pause(self.delay()).await;
        if self.is_cut(from, to) || self.strikes(|weather| weather.loss, |state| &mut state.lost) {
            pause(self.patience()).await;
            return Err(no_answer("the request was lost"));
        }
        let station = self.state().stations.get(&to).cloned();
        let Some(station) = station else {
            pause(self.delay()).await;
            return Err(PeerError::Unreachable { to, reason: "nobody listens".to_owned() });
        };
        let (id, cluster) = (berth::domain::ReplicaId(from.0), station.replica.local().state);
        if members::was_removed(&station.replica, cluster.fleet().cluster(), id) {
            self.state().dismissed.insert(from);
            return Err(PeerError::Unreachable { to, reason: "it says that this replica was removed".to_owned() });
        }
        let is_doubled =
            testing::may_be_repeated(&request) && self.strikes(|weather| weather.doubled, |state| &mut state.doubled);
        let twin = is_doubled.then(|| {
            let (again, request, delay) = (station.clone(), request.clone(), self.delay());
            async move {
                pause(delay).await;
                let replica = again.replica.clone();
                drop(again.host.spawn(async move { replica.answer_peer(from, &request).await }));
            }
        });
        // No transport brings a call again that was refused: whoever asked was told that it did not
        // happen.
        let (at_once, later) = if testing::is_calls(&request) { (None, twin) } else { (twin, None) };
        if let Some(twin) = at_once {
            simulation::spawn(twin);
        }
        let replica = station.replica.clone();
        let asked = request.clone();
        let answered = station.host.spawn(async move { replica.answer_peer(from, &asked).await });
        let Ok(answer) = answered.await else {
            pause(self.delay()).await;
            return Err(no_answer("the connection broke"));
        };
        if let Some(twin) = later.filter(|_| !testing::refuses(&answer)) {
            simulation::spawn(twin);
        }
        if let Some((term, candidate)) = testing::granted_vote(&request, &answer) {
            self.judge.voted(to, term, candidate);
        }
        pause(self.delay()).await;
        if self.is_cut(to, from) || self.strikes(|weather| weather.answer_loss, |state| &mut state.answers_lost) {
            pause(self.patience()).await;
            return Err(no_answer("the answer was lost"));
        }
        Ok(answer)
    }
}

async fn pause(length: Duration) {
    if !length.is_zero() {
        sleep(length).await;
    }
}

struct Wire {
    from: ReplicaId,
    network: Network,
}

impl Peers for Wire {
    fn call(&self, to: ReplicaId, lane: Lane, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        Box::pin(self.network.carry(self.from, to, lane, request))
    }

    fn learn(&self, _members: &BTreeMap<ReplicaId, Member>) {
        self.network.look_at_members(self.from);
    }
}
