//! Gathers proposals into log entries.
//!
//! One task drains whatever waits, makes one entry of it and goes on while that entry is on its
//! way: up to a bound several entries are in flight, so that their syncs are grouped below. While
//! the pipe is full the queue fills, and the next entry is larger: latency when idle, throughput
//! under load.
//!
//! Invariants: the commands of one call stand in one entry, in order; a proposal that was made
//! part of an entry is answered with its outcome or as unknown, never silently dropped or retried.

use crate::config::{COMMAND_OVERHEAD_BYTES, Config, ENTRY_BYTES_MAX, ENTRY_OVERHEAD_BYTES};
use crate::core::Core;
use crate::error::ProposeError;
use crate::ids::{LogIndex, UnixMillis};
use crate::machine::StateMachine;
use crate::replica::Proposed;
use crate::types::{Batch, Types};
use berth_storage::Condition;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// The most bytes in flight, unless one entry is longer.
const IN_FLIGHT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Why a proposal brought nothing on this replica.
#[derive(Debug)]
pub(crate) enum Unproposed {
    /// This replica does not lead. Did not happen.
    NotLeader,
    Failed(ProposeError),
}

impl From<ProposeError> for Unproposed {
    fn from(error: ProposeError) -> Self {
        Self::Failed(error)
    }
}

type Reply<O> = oneshot::Sender<Result<Proposed<O>, Unproposed>>;

/// One call that waits for its place in an entry.
pub(crate) struct Waiting<O> {
    commands: Vec<Vec<u8>>,
    bytes: usize,
    reply: Reply<O>,
    /// Its share of the queue, given back when it leaves the queue.
    _room: [OwnedSemaphorePermit; 2],
}

/// The queue's entrance.
pub(crate) struct Proposals<O> {
    queue: mpsc::UnboundedSender<Waiting<O>>,
    commands_max: usize,
    bytes_max: usize,
    commands_room: Arc<Semaphore>,
    bytes_room: Arc<Semaphore>,
}

/// The queue's exit.
pub(crate) type WaitingProposals<O> = mpsc::UnboundedReceiver<Waiting<O>>;

/// A queue with the bounds of `config`.
pub(crate) fn queue<O>(config: &Config) -> (Proposals<O>, WaitingProposals<O>) {
    // What limits the channel are the permits that every item in it holds.
    let (queue, waiting) = mpsc::unbounded_channel();
    let commands_max = config.queue_commands_max.min(u32::MAX as usize);
    let bytes_max = config.queue_bytes_max.min(u32::MAX as usize);
    let proposals = Proposals {
        queue,
        commands_max,
        bytes_max,
        commands_room: Arc::new(Semaphore::new(commands_max)),
        bytes_room: Arc::new(Semaphore::new(bytes_max)),
    };
    (proposals, waiting)
}

impl<O> Proposals<O> {
    /// Puts the commands of one call into the queue, or says at once why not.
    pub(crate) fn submit(
        &self,
        commands: Vec<Vec<u8>>,
    ) -> Result<oneshot::Receiver<Result<Proposed<O>, Unproposed>>, ProposeError> {
        let bytes = commands.iter().map(|command| command.len() + COMMAND_OVERHEAD_BYTES).sum();
        let bytes_max = ENTRY_BYTES_MAX - ENTRY_OVERHEAD_BYTES;
        if bytes > bytes_max {
            return Err(ProposeError::TooLarge { bytes, bytes_max });
        }
        // A call larger than the whole queue gets in when the queue is empty.
        let room = [
            (&self.commands_room, commands.len().max(1), self.commands_max),
            (&self.bytes_room, bytes, self.bytes_max),
        ]
        .map(|(room, wanted, most)| {
            let share = u32::try_from(wanted.min(most)).unwrap_or(u32::MAX);
            Arc::clone(room).try_acquire_many_owned(share)
        });
        let [Ok(commands_share), Ok(bytes_share)] = room else {
            return Err(ProposeError::Overloaded {
                waiting_commands: self.commands_max - self.commands_room.available_permits(),
            });
        };
        let (reply, answer) = oneshot::channel();
        // A closed queue drops the item and with it the reply: the caller learns that way.
        drop(self.queue.send(Waiting { commands, bytes, reply, _room: [commands_share, bytes_share] }));
        Ok(answer)
    }
}

/// A call whose commands are in an entry: how many they are, and who waits.
struct Part<O> {
    commands: usize,
    reply: Reply<O>,
}

struct InFlight<O> {
    parts: Vec<Part<O>>,
    bytes: usize,
    result: Result<ClientWriteResult<Types>, ()>,
}

/// Runs until the replica stops, and then until nothing is in flight.
pub(crate) async fn run<M: StateMachine>(core: Arc<Core<M>>, mut waiting: WaitingProposals<M::Outcome>) {
    let mut in_flight = FuturesUnordered::new();
    let mut in_flight_bytes = 0;
    let mut left_over: Option<Waiting<M::Outcome>> = None;
    let mut last_at = UnixMillis(0);
    let mut stopping = false;
    loop {
        let room = in_flight.is_empty()
            || (in_flight.len() < core.config.entries_in_flight_max && in_flight_bytes < IN_FLIGHT_BYTES_MAX);
        let first = tokio::select! {
            biased;
            Some(settled) = in_flight.next(), if !in_flight.is_empty() => {
                let settled: InFlight<M::Outcome> = settled;
                in_flight_bytes -= settled.bytes;
                settle(settled);
                None
            }
            first = next(&mut left_over, &mut waiting), if room && !stopping => {
                stopping |= first.is_none();
                first
            }
            () = core.stop.cancelled(), if !stopping => {
                stopping = true;
                None
            }
            else => return,
        };
        let Some(first) = first else { continue };
        let (commands, parts, bytes) = gather(first, &mut left_over, &mut waiting, &core.config);
        if parts.is_empty() {
            // Everybody gave up waiting.
            continue;
        }
        if let Condition::Full { free_bytes, needed_bytes } = core.log.condition() {
            let error = ProposeError::StorageFull { free_bytes, needed_bytes };
            refuse(parts, || Unproposed::Failed(error.clone()));
            continue;
        }
        last_at = last_at.max(core.clock.now()).max(core.published.latest().at);
        let batch = Batch { at: last_at, commands };
        let (responder, answer) = ProgressResponder::complete_only();
        if core.raft.client_write_ff(batch, Some(responder)).await.is_err() {
            // The message was not taken: the consensus core has ended.
            let reason = core.reason_or_requested();
            refuse(parts, || Unproposed::Failed(ProposeError::Stopped(reason.clone())));
            continue;
        }
        in_flight_bytes += bytes;
        in_flight.push(async move { InFlight { parts, bytes, result: answer.await.map_err(drop) } });
    }
}

async fn next<O>(left_over: &mut Option<Waiting<O>>, waiting: &mut WaitingProposals<O>) -> Option<Waiting<O>> {
    match left_over.take() {
        Some(first) => Some(first),
        None => waiting.recv().await,
    }
}

/// Everything that waits, as far as one entry goes.
fn gather<O>(
    first: Waiting<O>,
    left_over: &mut Option<Waiting<O>>,
    waiting: &mut WaitingProposals<O>,
    config: &Config,
) -> (Vec<Vec<u8>>, Vec<Part<O>>, usize) {
    let mut commands = Vec::new();
    let mut parts = Vec::new();
    let mut bytes = 0;
    let mut following = Some(first);
    while let Some(call) = following {
        let fits = parts.is_empty()
            || (commands.len() + call.commands.len() <= config.batch_commands_max
                && bytes + call.bytes <= config.batch_bytes_max);
        if !fits {
            *left_over = Some(call);
            break;
        }
        // Whoever gave up waiting before the entry was made is spared the effect.
        if !call.reply.is_closed() {
            bytes += call.bytes;
            parts.push(Part { commands: call.commands.len(), reply: call.reply });
            commands.extend(call.commands);
        }
        following = waiting.try_recv().ok();
    }
    (commands, parts, bytes)
}

fn refuse<O>(parts: Vec<Part<O>>, error: impl Fn() -> Unproposed) {
    for part in parts {
        // Whoever stopped waiting does not need to know.
        drop(part.reply.send(Err(error())));
    }
}

/// Hands the outcome of an entry to those whose commands are in it.
fn settle<O: Send + Sync + 'static>(settled: InFlight<O>) {
    let unknown = || Unproposed::Failed(ProposeError::OutcomeUnknown);
    let response = match settled.result {
        Ok(Ok(response)) => response,
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => {
            return refuse(settled.parts, || Unproposed::NotLeader);
        }
        // Discarded by a change of leader, or the core ended with the entry on its way.
        Ok(Err(_)) | Err(()) => return refuse(settled.parts, unknown),
    };
    let index = LogIndex(response.log_id.index);
    let expected: usize = settled.parts.iter().map(|part| part.commands).sum();
    let outcomes = response.data.into_outcomes::<O>();
    let Some(outcomes) = outcomes.filter(|outcomes| outcomes.len() == expected) else {
        tracing::error!(%index, expected, "an entry came back without its outcomes");
        return refuse(settled.parts, unknown);
    };
    let mut outcomes = outcomes.into_iter();
    for part in settled.parts {
        let outcomes = outcomes.by_ref().take(part.commands).collect();
        drop(part.reply.send(Ok(Proposed { index, outcomes })));
    }
}
