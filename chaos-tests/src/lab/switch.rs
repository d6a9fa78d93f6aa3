//! The switch of a lab, in user space: every packet between two hosts passes
//! through here, whole, and can be delayed, lost, doubled or overtaken. So TCP,
//! with its own repetitions and its own order, is as it is on a bad network; a
//! proxy of byte streams could do none of this but delay.
//!
//! One thread does everything: it waits for packets and for the moments at which
//! those that were held go on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{PipeWriter, pipe};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::cut::HostId;
use super::weather::{Climate, Weather};
use crate::random::Random;

/// Longest packet, more than the cards' MTU.
const PACKET_BYTES_MAX: usize = 4096;
/// Packets that are held at a time; further ones are lost.
const HELD_MAX: usize = 100_000;
/// Packets that one host may send before the others have their turn.
const TURN_PACKETS_MAX: usize = 64;

/// What was done to packets so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Went on, copies included.
    pub passed: u64,
    /// Lost on purpose, or because too many were held.
    pub lost: u64,
    /// Went on twice.
    pub doubled: u64,
    /// Held back to be overtaken.
    pub overtaken: u64,
    /// Went on later than they came.
    pub delayed: u64,
    /// For no host of the lab.
    pub stray: u64,
}

impl Counts {
    /// Both together.
    #[must_use]
    pub const fn and(&self, other: &Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            overtaken: self.overtaken + other.overtaken,
            delayed: self.delayed + other.delayed,
            stray: self.stray + other.stray,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    passed: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    overtaken: AtomicU64,
    delayed: AtomicU64,
    stray: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    climate: Mutex<Arc<Climate>>,
    counters: Counters,
}

/// The running switch; stops when dropped.
#[derive(Debug)]
pub struct Switch {
    shared: Arc<Shared>,
    /// Closing it tells the thread to end.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Connects the cards; host `n` has the `n`th of them and of the addresses.
    pub(super) fn start(cards: Vec<(Ipv4Addr, OwnedFd)>, random: Random) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (ended, stop) = pipe()?;
        let addresses = cards.iter().enumerate().map(|(number, (address, _))| (*address, HostId(number))).collect();
        let mut work = Work {
            shared: Arc::clone(&shared),
            cards: cards.into_iter().map(|(_, card)| card).collect(),
            addresses,
            random,
            held: BinaryHeap::new(),
            arrivals: 0,
            last_due: BTreeMap::new(),
        };
        let thread =
            std::thread::Builder::new().name("switch".to_owned()).spawn(move || work.run(&OwnedFd::from(ended)))?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Changes the weather. Packets that are held go on as was decided.
    pub fn set(&self, climate: Climate) {
        *self.shared.climate.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(climate);
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            passed: read(&counters.passed),
            lost: read(&counters.lost),
            doubled: read(&counters.doubled),
            overtaken: read(&counters.overtaken),
            delayed: read(&counters.delayed),
            stray: read(&counters.stray),
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, that was printed.
            let _ = thread.join();
        }
    }
}

/// A packet that is to go on later. The earliest is the greatest.
type Held = Reverse<(Instant, u64, HostId, Vec<u8>)>;

struct Work {
    shared: Arc<Shared>,
    cards: Vec<OwnedFd>,
    addresses: BTreeMap<Ipv4Addr, HostId>,
    random: Random,
    held: BinaryHeap<Held>,
    /// Numbers packets, so that those due at the same moment keep their order.
    arrivals: u64,
    /// When the last packet of each path goes on that keeps its turn.
    last_due: BTreeMap<(HostId, HostId), Instant>,
}

impl Work {
    fn run(&mut self, ended: &OwnedFd) {
        let mut buffer = [0; PACKET_BYTES_MAX];
        loop {
            let ready = {
                let mut files: Vec<PollFd<'_>> =
                    self.cards.iter().map(|card| PollFd::new(card, PollFlags::IN)).collect();
                files.push(PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN));
                let timeout = self.held.peek().map(|Reverse((due, ..))| until(*due));
                match poll(&mut files, timeout.as_ref()) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => panic!("the switch cannot wait for packets: {error}"),
                }
                files.iter().map(|file| !file.revents().is_empty()).collect::<Vec<_>>()
            };
            if ready.last() == Some(&true) {
                return;
            }
            self.release(Instant::now());
            for number in (0..self.cards.len()).filter(|&number| ready[number]) {
                self.take_from(HostId(number), &mut buffer);
            }
        }
    }

    fn take_from(&mut self, from: HostId, buffer: &mut [u8]) {
        for _ in 0..TURN_PACKETS_MAX {
            match rustix::io::read(&self.cards[from.0], &mut *buffer) {
                Ok(length) => {
                    // After the packet: weather holds for all that is sent after it was set.
                    let climate = Arc::clone(&self.shared.climate.lock().unwrap_or_else(PoisonError::into_inner));
                    self.direct(from, &buffer[..length], &climate);
                }
                // Nothing more, or the card is still down.
                Err(_) => return,
            }
        }
    }

    fn direct(&mut self, from: HostId, packet: &[u8], climate: &Climate) {
        let counters = &self.shared.counters;
        let Some(&to) = destination(packet).and_then(|address| self.addresses.get(&address)) else {
            count(&counters.stray);
            return;
        };
        let weather = climate.on(from, to);
        let path = (from, to);
        if weather == Weather::fair() && !self.last_due.contains_key(&path) {
            self.pass(to, packet);
            return;
        }
        let fate = weather.fate(&mut self.random);
        if fate.lost || self.held.len() >= HELD_MAX {
            count(&counters.lost);
            return;
        }
        let now = Instant::now();
        let turn = (now + fate.delay).max(self.last_due.get(&path).copied().unwrap_or(now));
        let due = if let Some(longer) = fate.held_back {
            count(&counters.overtaken);
            turn + longer
        } else {
            self.last_due.insert(path, turn);
            turn
        };
        if due > now {
            count(&counters.delayed);
        }
        if fate.doubled {
            count(&counters.doubled);
        }
        for _ in 0..=usize::from(fate.doubled) {
            self.arrivals += 1;
            self.held.push(Reverse((due, self.arrivals, to, packet.to_vec())));
        }
        self.release(now);
    }

    /// Lets go on what is due.
    fn release(&mut self, now: Instant) {
        while self.held.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let Some(Reverse((_, _, to, packet))) = self.held.pop() {
                self.pass(to, &packet);
            }
        }
        self.last_due.retain(|_, due| *due > now);
    }

    fn pass(&self, to: HostId, packet: &[u8]) {
        // A card that is down loses it, as cards do.
        match rustix::io::write(&self.cards[to.0], packet) {
            Ok(_) => count(&self.shared.counters.passed),
            Err(_) => count(&self.shared.counters.lost),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Where an IPv4 packet wants to go.
fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let is_ipv4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    is_ipv4.then(|| Ipv4Addr::from(address))
}

/// From now until then, as `poll` wants it.
fn until(due: Instant) -> Timespec {
    let left = due.saturating_duration_since(Instant::now()).min(Duration::from_hours(1));
    Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(3600), tv_nsec: i64::from(left.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ipv4_packets_have_a_destination() {
        let mut packet = [0; 20];
        packet[0] = 0x45;
        packet[16..].copy_from_slice(&[10, 47, 0, 3]);
        assert_eq!(destination(&packet), Some(Ipv4Addr::new(10, 47, 0, 3)));
        packet[0] = 0x60;
        assert_eq!(destination(&packet), None);
        assert_eq!(destination(&packet[..10]), None);
    }
}
