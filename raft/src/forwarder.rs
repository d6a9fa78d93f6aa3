//! Passes calls on to the leader, those that wait at the same time together.
//!
//! Used once the replicas have agreed on a format with call ids. Bounds are those of an entry, and
//! a few requests may be on their way at once. A call whose request brought no answer is lost, not
//! refused: it is tried again with the same id by whoever waits for it.

use crate::codec;
use crate::core::Core;
use crate::error::ProposeError;
use crate::ids::{LogIndex, ReplicaId};
use crate::machine::StateMachine;
use crate::peers::{Lane, PeerError};
use crate::queue::{self, Gathered, Memory, Outlook, Part, Unproposed, Waiting, WaitingProposals, refuse};
use crate::replica::Proposed;
use crate::taken::{self, Settling, Turn};
use crate::types::Call;
use crate::wire::{Answer, CallReply, Refusal, Request};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::time::Instant;

/// How many requests may be on their way.
const REQUESTS_MAX: usize = 4;

/// Runs until the replica stops.
pub(crate) async fn run<M: StateMachine>(core: Arc<Core<M>>, mut waiting: WaitingProposals<M::Outcome>) {
    let mut under_way = FuturesUnordered::new();
    let mut left_over: Option<Waiting<M::Outcome>> = None;
    loop {
        let first = tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            Some(()) = under_way.next(), if !under_way.is_empty() => None,
            first = queue::next(&mut left_over, &mut waiting), if under_way.len() < REQUESTS_MAX => {
                if first.is_none() {
                    return;
                }
                first
            }
        };
        let Some(first) = first else { continue };
        let Gathered { calls, parts, .. } = queue::gather(first, &mut left_over, &mut waiting, &core.config, true);
        match core.leader().filter(|leader| *leader != core.config.replica) {
            Some(leader) => under_way.push(pass_on(Arc::clone(&core), leader, calls, parts)),
            None => refuse(parts, |_| Unproposed::NotLeader),
        }
    }
}

/// Sends one request and tells everybody what came of it.
async fn pass_on<M: StateMachine>(
    core: Arc<Core<M>>,
    leader: ReplicaId,
    calls: Vec<Call>,
    parts: Vec<Part<M::Outcome>>,
) {
    let lost = |part: &Part<M::Outcome>| {
        if part.has_id { Unproposed::Lost } else { Unproposed::Failed(ProposeError::OutcomeUnknown) }
    };
    let may_be_left = parts.iter().all(|part| part.has_id);
    let request = Request::Calls { calls: calls.into_iter().map(Into::into).collect() };
    let call = core.peers.call(leader, Lane::Replication, request.encode());
    // What is remembered is asked again elsewhere, once there is another leader or this one takes
    // longer than to find one. What is not has one chance.
    let within = if may_be_left { core.leader_wait() } else { core.config.request_timeout() };
    let answer = tokio::select! {
        biased;
        answer = tokio::time::timeout(within, call) => answer,
        () = core.leader_is_not(leader), if may_be_left => return refuse(parts, lost),
    };
    let bytes = match answer {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(PeerError::Unreachable { .. })) => return refuse(parts, |_| Unproposed::NotLeader),
        Ok(Err(PeerError::NoAnswer { .. })) | Err(_) => return refuse(parts, lost),
    };
    match Answer::decode(&bytes) {
        Ok(Answer::Calls { replies }) if replies.len() == parts.len() => {
            for (part, reply) in parts.into_iter().zip(replies) {
                let (commands, has_id) = (part.commands, part.has_id);
                part.answer(reply_to(leader, reply, commands, has_id));
            }
        }
        Ok(Answer::Refused(refusal)) => refuse(parts, |part| unproposed(&refusal, part.has_id)),
        Ok(other) => {
            tracing::error!(%leader, ?other, "the leader answered something else than what was asked");
            refuse(parts, lost);
        }
        Err(error) => {
            tracing::error!(%leader, error = %codec::chain(&error), "answer not understood");
            refuse(parts, lost);
        }
    }
}

/// What the leader says of one call.
fn reply_to<O: DeserializeOwned>(
    leader: ReplicaId,
    reply: CallReply,
    commands: usize,
    has_id: bool,
) -> Result<Proposed<O>, Unproposed> {
    match reply {
        CallReply::Proposed { index, outcomes } => understood(leader, index, &outcomes, commands),
        CallReply::Refused(refusal) => Err(unproposed(&refusal, has_id)),
    }
}

/// What `commands` commands came to, if the leader's words make sense.
pub(crate) fn understood<O: DeserializeOwned>(
    leader: ReplicaId,
    index: u64,
    outcomes: &[Vec<u8>],
    commands: usize,
) -> Result<Proposed<O>, Unproposed> {
    let decoded = outcomes.iter().map(|bytes| codec::decode_outcome(bytes)).collect::<Result<Vec<O>, _>>();
    let Some(outcomes) = decoded.ok().filter(|outcomes| outcomes.len() == commands) else {
        tracing::error!(%leader, "outcomes of a forwarded proposal make no sense");
        return Err(ProposeError::OutcomeUnknown.into());
    };
    Ok(Proposed { index: LogIndex(index), outcomes })
}

/// What a refusal of the leader means for whoever waits.
pub(crate) fn unproposed(refusal: &Refusal, has_id: bool) -> Unproposed {
    let size = |number: &u64| usize::try_from(*number).unwrap_or(usize::MAX);
    match refusal {
        Refusal::NoLeader | Refusal::Stopped(_) => Unproposed::NotLeader,
        Refusal::StorageFull { free_bytes, needed_bytes } => {
            let (free_bytes, needed_bytes) = (*free_bytes, *needed_bytes);
            Unproposed::Failed(ProposeError::StorageFull { free_bytes, needed_bytes })
        }
        Refusal::Overloaded { waiting_commands } => {
            Unproposed::Failed(ProposeError::Overloaded { waiting_commands: size(waiting_commands) })
        }
        Refusal::TooLarge { bytes, bytes_max } => {
            Unproposed::Failed(ProposeError::TooLarge { bytes: size(bytes), bytes_max: size(bytes_max) })
        }
        Refusal::Unknown if has_id => Unproposed::Lost,
        Refusal::Unknown => ProposeError::OutcomeUnknown.into(),
        other => {
            tracing::warn!(refusal = ?other, "the leader refused a proposal");
            ProposeError::OutcomeUnknown.into()
        }
    }
}

/// The same on the leader's side, on the way out.
pub(crate) fn refusal(unproposed: Unproposed) -> Refusal {
    let error = match unproposed {
        Unproposed::NotLeader => return Refusal::NoLeader,
        Unproposed::Lost => return Refusal::Unknown,
        Unproposed::Failed(error) => error,
    };
    match error {
        ProposeError::NoLeader { .. } => Refusal::NoLeader,
        ProposeError::StorageFull { free_bytes, needed_bytes } => Refusal::StorageFull { free_bytes, needed_bytes },
        ProposeError::Overloaded { waiting_commands } => {
            Refusal::Overloaded { waiting_commands: waiting_commands as u64 }
        }
        ProposeError::TooLarge { bytes, bytes_max } => {
            Refusal::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 }
        }
        ProposeError::OutcomeUnknown => Refusal::Unknown,
        ProposeError::Stopped(reason) => Refusal::Stopped(reason.to_string()),
    }
}

/// The outcomes of a proposal on their way to who asked.
pub(crate) fn encode_outcomes<O: serde::Serialize>(outcomes: &[O]) -> Result<Vec<Vec<u8>>, Refusal> {
    let encoded = outcomes.iter().map(codec::encode_outcome).collect::<Result<Vec<_>, _>>();
    encoded.map_err(|error| {
        // It did happen; what came of it cannot be told.
        tracing::error!(error = %codec::chain(&error), "an outcome cannot be encoded");
        Refusal::Unknown
    })
}

/// A call that was passed on, on the leader.
enum Taking<O> {
    Queued(Result<Outlook<O>, Unproposed>, Option<Settling>),
    Joined(taken::Reply),
}

/// Takes the calls that `from` passes on, and answers when all of them are settled. One that is
/// under way already is not queued again.
pub(crate) async fn take<M: StateMachine>(core: &Core<M>, from: ReplicaId, calls: Vec<Call>) -> Answer {
    if calls.iter().any(|call| call.id.is_some_and(|id| id.replica != from)) {
        let text = format!("replica {from} passes on calls of another replica");
        tracing::error!(%from, "{text}");
        return Answer::Refused(Refusal::Garbage(text));
    }
    if !core.leads() {
        return Answer::Refused(Refusal::NoLeader);
    }
    let deadline = Instant::now() + core.config.request_timeout();
    // All are in the queue before the first is waited for: they travel on together.
    let submitted = calls.into_iter().map(|call| match call.id.map(|id| core.taken.enter(&id)) {
        Some(Turn::Again(reply)) => Taking::Joined(reply),
        Some(Turn::First(settling)) => Taking::Queued(core.submit(call, Memory::Required), Some(settling)),
        None => Taking::Queued(core.submit(call, Memory::Wanted), None),
    });
    let submitted: Vec<_> = submitted.collect();
    let settled = submitted.into_iter().map(|taking| async move {
        let (submitted, settling) = match taking {
            Taking::Queued(submitted, settling) => (submitted, settling),
            Taking::Joined(reply) => return taken::joined(reply).await,
        };
        let proposed = match submitted {
            Ok(answer) => core.settled(answer, deadline).await,
            Err(error) => Err(error),
        };
        let reply = match proposed {
            Ok(Proposed { index, outcomes }) => match encode_outcomes(&outcomes) {
                Ok(outcomes) => CallReply::Proposed { index: index.0, outcomes },
                Err(refusal) => CallReply::Refused(refusal),
            },
            Err(unproposed) => CallReply::Refused(refusal(unproposed)),
        };
        if let Some(settling) = settling {
            settling.settle(&reply);
        }
        reply
    });
    Answer::Calls { replies: join_all(settled).await }
}
