//! Calls that wait to be sent on together: into an entry, or to the leader.
//!
//! Invariants: the commands of one call stay together, in order; what waits is bounded by number
//! and by bytes; a call is answered once, or its caller sees that the queue is gone.

use crate::config::{CALL_OVERHEAD_BYTES, COMMAND_OVERHEAD_BYTES, Config, ENTRY_BYTES_MAX, ENTRY_OVERHEAD_BYTES};
use crate::error::ProposeError;
use crate::replica::Proposed;
use crate::types::Call;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Why one attempt at a call brought nothing.
#[derive(Debug)]
pub(crate) enum Unproposed {
    /// Whoever was asked does not lead. Did not happen.
    NotLeader,
    /// May have happened, or may still happen, once: it is remembered by its id and can be tried
    /// again with it.
    Lost,
    Failed(ProposeError),
}

impl From<ProposeError> for Unproposed {
    fn from(error: ProposeError) -> Self {
        Self::Failed(error)
    }
}

type Reply<O> = oneshot::Sender<Result<Proposed<O>, Unproposed>>;

/// What a waiting caller listens to.
pub(crate) type Outlook<O> = oneshot::Receiver<Result<Proposed<O>, Unproposed>>;

/// One call that waits for its turn.
pub(crate) struct Waiting<O> {
    call: Call,
    bytes: usize,
    memory: Memory,
    reply: Reply<O>,
    /// Its share of the queue, given back when it leaves the queue.
    _room: [OwnedSemaphorePermit; 2],
}

/// Whether a call may go where its id is not remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// It may: whoever waits knows that it cannot be tried again then.
    Wanted,
    /// Its replica will try it again with the same id, come what may.
    Required,
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
    /// Puts a call into the queue, or says at once why not.
    pub(crate) fn submit(&self, call: Call, memory: Memory) -> Result<Outlook<O>, ProposeError> {
        let commands = call.commands.iter().map(|command| command.len() + COMMAND_OVERHEAD_BYTES);
        let bytes = commands.sum::<usize>() + CALL_OVERHEAD_BYTES;
        let bytes_max = ENTRY_BYTES_MAX - ENTRY_OVERHEAD_BYTES;
        if bytes > bytes_max {
            return Err(ProposeError::TooLarge { bytes, bytes_max });
        }
        // A call larger than the whole queue gets in when the queue is empty.
        let room = [
            (&self.commands_room, call.commands.len().max(1), self.commands_max),
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
        drop(self.queue.send(Waiting { call, bytes, memory, reply, _room: [commands_share, bytes_share] }));
        Ok(answer)
    }
}

/// A call that was taken out of the queue: what it consists of, and who waits.
pub(crate) struct Part<O> {
    pub(crate) commands: usize,
    pub(crate) has_id: bool,
    reply: Reply<O>,
}

impl<O> Part<O> {
    pub(crate) fn answer(self, answer: Result<Proposed<O>, Unproposed>) {
        // Whoever stopped waiting does not need to know.
        drop(self.reply.send(answer));
    }
}

/// Calls that go on together.
pub(crate) struct Gathered<O> {
    pub(crate) calls: Vec<Call>,
    /// One for each call.
    pub(crate) parts: Vec<Part<O>>,
    pub(crate) bytes: usize,
}

/// The next call, if there will ever be one.
pub(crate) async fn next<O>(
    left_over: &mut Option<Waiting<O>>,
    waiting: &mut WaitingProposals<O>,
) -> Option<Waiting<O>> {
    match left_over.take() {
        Some(first) => Some(first),
        None => waiting.recv().await,
    }
}

/// Everything that waits, as far as one entry goes. Calls that need to be remembered are turned
/// away where ids are not (`remembered`).
pub(crate) fn gather<O>(
    first: Waiting<O>,
    left_over: &mut Option<Waiting<O>>,
    waiting: &mut WaitingProposals<O>,
    config: &Config,
    remembered: bool,
) -> Gathered<O> {
    let mut gathered = Gathered { calls: Vec::new(), parts: Vec::new(), bytes: 0 };
    let mut commands = 0;
    let mut following = Some(first);
    while let Some(next) = following {
        let fits = gathered.parts.is_empty()
            || (commands + next.call.commands.len() <= config.batch_commands_max
                && gathered.bytes + next.bytes <= config.batch_bytes_max);
        if !fits {
            *left_over = Some(next);
            break;
        }
        let Waiting { call, bytes, memory, reply, .. } = next;
        if !remembered && memory == Memory::Required {
            drop(reply.send(Err(Unproposed::NotLeader)));
        } else if !reply.is_closed() {
            // Whoever gave up waiting before is spared the effect.
            commands += call.commands.len();
            gathered.bytes += bytes;
            gathered.parts.push(Part { commands: call.commands.len(), has_id: call.id.is_some(), reply });
            gathered.calls.push(call);
        }
        following = waiting.try_recv().ok();
    }
    gathered
}

/// Tells everybody the same.
pub(crate) fn refuse<O>(parts: Vec<Part<O>>, error: impl Fn(&Part<O>) -> Unproposed) {
    for part in parts {
        let error = error(&part);
        part.answer(Err(error));
    }
}
