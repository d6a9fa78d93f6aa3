//! Where tasks run: on tokio, or in a simulation (`testing::simulation`).
//!
//! Everything of this crate that starts a task, draws a random number or may block comes by here,
//! so that a simulated replica does it in an order that a seed decides. What is left to chance
//! otherwise are `select!`s: those of this crate are all `biased`, which `tests/biased.rs` checks;
//! the consensus library's are by themselves.

use crate::testing::simulation;
use futures_util::FutureExt;
use openraft::async_runtime::AsyncRuntime;
use openraft::rt::deterministic_rng::DeterministicRng;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;

// The library marks its own default runtime as deprecated in favour of a crate of its own that
// holds the same type.
#[allow(deprecated)]
type Tokio = openraft::impls::TokioRuntime;
type Seeded = DeterministicRng<Tokio>;

/// The consensus library's runtime. See the module.
#[derive(Debug)]
pub(crate) struct Runtime(Tokio);

/// Starts a task.
pub(crate) fn spawn<T>(future: T) -> JoinHandle<T::Output>
where
    T: Future + Send + 'static,
    T::Output: Send + 'static,
{
    if !simulation::is_here() {
        return JoinHandle::Tokio(tokio::spawn(future));
    }
    let (done, result) = oneshot::channel();
    // Nobody may wait for it.
    simulation::spawn(async move { drop(done.send(future.await)) });
    JoinHandle::Simulated(result)
}

/// Runs `work` where it may block. In a simulation nothing blocks, and it runs at once.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    if simulation::is_here() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// The end of a task.
#[derive(Debug)]
pub(crate) enum JoinHandle<T> {
    Tokio(tokio::task::JoinHandle<T>),
    Simulated(oneshot::Receiver<T>),
}

/// Why a task brought nothing.
#[derive(Debug)]
pub(crate) enum JoinError {
    Tokio(tokio::task::JoinError),
    /// It panicked, or its host was killed.
    Simulated,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokio(error) => error.fmt(f),
            Self::Simulated => f.write_str("the simulated task has gone"),
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Tokio(handle) => handle.poll_unpin(cx).map_err(JoinError::Tokio),
            Self::Simulated(result) => result.poll_unpin(cx).map_err(|_| JoinError::Simulated),
        }
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = JoinError;
    type JoinHandle<T: Send + 'static> = JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + Send> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: Send + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(error: &JoinError) -> bool {
        match error {
            JoinError::Tokio(error) => error.is_panic(),
            JoinError::Simulated => true,
        }
    }

    /// A generator of its own for each call, seeded by the simulation or by the operating system.
    fn thread_rng() -> Self::ThreadLocalRng {
        let seed = simulation::random().unwrap_or_else(|| RandomState::new().hash_one(()));
        let made = Seeded::scope(seed, async { Seeded::thread_rng() });
        made.now_or_never().expect("nothing is waited for")
    }

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }

    async fn spawn_blocking<F, T>(work: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        blocking(work).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::Runtime;

    #[test]
    fn the_librarys_own_suite_for_runtimes_passes() {
        openraft::rt::testing::Suite::<Runtime>::test_all();
    }
}
