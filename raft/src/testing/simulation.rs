//! Replicas, clients and whatever else belongs to a world, in one thread, in simulated time, in an
//! order that a seed decides.
//!
//! [`run`] runs a world. Its tasks run on an executor of their own, within tokio's: of those that
//! are ready at a time, which come first is drawn from the seed, and not from the order in which
//! they were woken: tokio wakes some of them in random order. Time is tokio's, paused: it moves on
//! when nobody is ready.
//!
//! A [`Host`] is a machine. The tasks that belong to it can be stopped for a while, all of them, or
//! killed; what they start belongs to it as well. A replica that is started on it has its data
//! folder on the host's simulated disk.

use berth_storage::memory::Disk;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use tokio::sync::oneshot;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// The simulation that this thread is in, and the host of the task that is running.
#[derive(Clone)]
struct Here {
    world: Arc<World>,
    host: Option<Host>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What panics is a simulated task, outside of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn here() -> Option<Here> {
    HERE.with_borrow(Clone::clone)
}

/// Whether this thread is in a simulation.
pub fn is_here() -> bool {
    HERE.with_borrow(Option::is_some)
}

/// A random number of the simulation.
pub fn random() -> Option<u64> {
    HERE.with_borrow(|here| here.as_ref().map(|here| here.world.random()))
}

/// The host of the task that is running.
pub fn host() -> Option<Host> {
    here()?.host
}

tokio::task_local! {
    static DISK: Disk;
}

/// Starts replicas outside of a world of this module, in whatever runtime the caller is, with their
/// data folders on a simulated disk. It has to be the task itself that starts them.
pub async fn with_disk<T>(disk: Disk, starting: impl Future<Output = T>) -> T {
    DISK.scope(disk, starting).await
}

/// The disk of a replica that is started now, unless it is a real one.
pub(crate) fn disk() -> Option<Disk> {
    let of_host = host().map(|host| host.disk().clone());
    of_host.or_else(|| DISK.try_with(Clone::clone).ok())
}

/// Starts a task; it belongs to the host of the one that starts it.
///
/// # Panics
/// Outside of a simulation.
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    let Here { world, host } = here().expect("callers are in a simulation");
    world.start(Box::pin(future), host);
}

/// Runs a world until `main` has ended, and says what that gave and with what words tasks have
/// panicked. The rest is dropped. `runtime` has to be one of a single thread, new, with its time
/// paused.
///
/// # Panics
/// When `main` panics.
pub fn run<T: Send + 'static>(
    runtime: &tokio::runtime::Runtime,
    seed: u64,
    main: impl Future<Output = T> + Send + 'static,
) -> (T, Vec<String>) {
    let world = Arc::new(World {
        tasks: Mutex::default(),
        ready: Arc::default(),
        last_task: AtomicU64::new(0),
        chance: AtomicU64::new(seed),
        panics: Mutex::default(),
    });
    let _reset = Reset(HERE.replace(Some(Here { world: Arc::clone(&world), host: None })));
    let (done, mut result) = oneshot::channel();
    let main = world.start(Box::pin(async move { drop(done.send(main.await)) }), None);
    let turns = std::future::poll_fn(|cx| {
        world.ready.told_by(cx.waker());
        while !lock(&world.tasks).contains_key(&main) || world.turn() {
            if !lock(&world.tasks).contains_key(&main) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    });
    runtime.block_on(tokio::task::unconstrained(turns));
    let left = std::mem::take(&mut *lock(&world.tasks));
    drop_all(left.into_values());
    let panics = std::mem::take(&mut *lock(&world.panics));
    let result = result.try_recv().unwrap_or_else(|error| panic!("the world ended ({error}): {panics:?}"));
    (result, panics)
}

struct Reset(Option<Here>);

impl Drop for Reset {
    fn drop(&mut self) {
        HERE.set(self.0.take());
    }
}

/// Of tasks, their future may do anything when dropped.
fn drop_all(tasks: impl IntoIterator<Item = Task>) {
    for task in tasks {
        // It was cut off in the middle; that it does not like that is of no interest.
        drop(catch_unwind(AssertUnwindSafe(|| drop(task))));
    }
}

struct Task {
    work: Work,
    host: Option<Host>,
    waker: Waker,
}

struct World {
    tasks: Mutex<BTreeMap<u64, Task>>,
    ready: Arc<Ready>,
    last_task: AtomicU64,
    chance: AtomicU64,
    panics: Mutex<Vec<String>>,
}

/// Tasks that are to run.
#[derive(Default)]
struct Ready {
    tasks: Mutex<BTreeSet<u64>>,
    told: Mutex<Option<Waker>>,
}

impl Ready {
    fn told_by(&self, waker: &Waker) {
        *lock(&self.told) = Some(waker.clone());
    }

    fn add(&self, task: u64) {
        lock(&self.tasks).insert(task);
        let told = lock(&self.told).clone();
        if let Some(waker) = told {
            waker.wake();
        }
    }
}

struct WakesTask {
    task: u64,
    ready: Arc<Ready>,
}

impl Wake for WakesTask {
    fn wake(self: Arc<Self>) {
        self.ready.add(self.task);
    }
}

impl World {
    /// SplitMix64.
    fn random(&self) -> u64 {
        let state = self.chance.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn start(&self, work: Work, host: Option<Host>) -> u64 {
        let id = self.last_task.fetch_add(1, Ordering::Relaxed) + 1;
        if host.as_ref().is_some_and(Host::is_dead) {
            // What a dying task starts.
            return id;
        }
        let waker = Waker::from(Arc::new(WakesTask { task: id, ready: Arc::clone(&self.ready) }));
        lock(&self.tasks).insert(id, Task { work, host, waker });
        self.ready.add(id);
        id
    }

    /// Runs all that are ready, in random order. False if there were none.
    fn turn(self: &Arc<Self>) -> bool {
        let mut ready: Vec<u64> = std::mem::take(&mut *lock(&self.ready.tasks)).into_iter().collect();
        if ready.is_empty() {
            return false;
        }
        for place in (1..ready.len()).rev() {
            let other = usize::try_from(self.random() % (place as u64 + 1)).unwrap_or_default();
            ready.swap(place, other);
        }
        for id in ready {
            let task = lock(&self.tasks).remove(&id);
            let Some(mut task) = task else { continue };
            if task.host.as_ref().is_some_and(|host| host.stalls(id)) {
                lock(&self.tasks).insert(id, task);
                continue;
            }
            if self.poll(&mut task).is_pending() && !task.host.as_ref().is_some_and(Host::is_dead) {
                lock(&self.tasks).insert(id, task);
            } else {
                drop_all([task]);
            }
        }
        true
    }

    fn poll(self: &Arc<Self>, task: &mut Task) -> Poll<()> {
        let waker = task.waker.clone();
        let mut context = Context::from_waker(&waker);
        let _reset = Reset(HERE.replace(Some(Here { world: Arc::clone(self), host: task.host.clone() })));
        let polled = catch_unwind(AssertUnwindSafe(|| task.work.as_mut().poll(&mut context)));
        polled.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            lock(&self.panics).push(text.unwrap_or_else(|| "no text".to_owned()));
            Poll::Ready(())
        })
    }
}

/// A simulated machine. Clones are the same.
#[derive(Clone)]
pub struct Host {
    world: Arc<World>,
    disk: Disk,
    state: Arc<Mutex<HostState>>,
}

#[derive(Default)]
struct HostState {
    is_paused: bool,
    is_dead: bool,
    /// Tasks that are to run when it goes on.
    stalled: BTreeSet<u64>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

impl Host {
    /// A machine with this disk, which outlives it.
    ///
    /// # Panics
    /// Outside of a simulation.
    pub fn new(disk: Disk) -> Self {
        let Here { world, .. } = here().expect("callers are in a simulation");
        Self { world, disk, state: Arc::default() }
    }

    /// Its disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Starts a task on it. The answer is an error when the host is killed before it has ended, or
    /// the task panics.
    pub fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> oneshot::Receiver<T> {
        let (done, result) = oneshot::channel();
        // Nobody may wait for it.
        self.world.start(Box::pin(async move { drop(done.send(future.await)) }), Some(self.clone()));
        result
    }

    /// Stops everything on it, or lets it go on; timers run out meanwhile.
    pub fn set_paused(&self, is_paused: bool) {
        let mut state = lock(&self.state);
        state.is_paused = is_paused;
        if !is_paused {
            let stalled = std::mem::take(&mut state.stalled);
            drop(state);
            for task in stalled {
                self.world.ready.add(task);
            }
        }
    }

    /// Ends everything on it at this instant, and for good. Its disk keeps what was written. Not
    /// to be called from one of its own tasks.
    pub fn kill(&self) {
        self.disk.kill();
        lock(&self.state).is_dead = true;
        let mut tasks = lock(&self.world.tasks);
        let is_its = |task: &Task| task.host.as_ref().is_some_and(|host| Arc::ptr_eq(&host.state, &self.state));
        let its: Vec<u64> = tasks.iter().filter(|(_, task)| is_its(task)).map(|(id, _)| *id).collect();
        let killed: Vec<Task> = its.iter().filter_map(|id| tasks.remove(id)).collect();
        drop(tasks);
        drop_all(killed);
    }

    /// Whether it was killed.
    pub fn is_dead(&self) -> bool {
        lock(&self.state).is_dead
    }

    /// Whether `task` has to wait.
    fn stalls(&self, task: u64) -> bool {
        let mut state = lock(&self.state);
        if state.is_paused {
            state.stalled.insert(task);
        }
        state.is_paused
    }
}
