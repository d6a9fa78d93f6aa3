//! Gathers proposals into log entries.
//!
//! One task drains whatever waits and makes one entry of it. While that entry is on its way, what
//! comes is gathered for the next one: an entry costs the replicas as much as a dozen commands in
//! it. But it is gathered for [`GATHERING_MAX`] only. Where a commit takes longer, because syncs
//! are slow or the others are out of reach, the next entry follows before, up to a bound: syncs
//! are grouped below, and what would be refused is refused soon.
//!
//! Invariants: the commands of one call stand in one entry, in order; a proposal that was made
//! part of an entry is answered with its outcome, as unknown or as lost, never silently dropped or
//! put into another entry from here.

use crate::core::Core;
use crate::error::ProposeError;
use crate::ids::LogIndex;
use crate::machine::StateMachine;
use crate::queue::{self, Gathered, Part, Unproposed, Waiting, WaitingProposals, refuse};
use crate::replica::Proposed;
use crate::sequences;
use crate::types::{Batch, Call, CallAnswer, Types, Work};
use berth_storage::Condition;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The most bytes in flight, unless one entry is longer.
const IN_FLIGHT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long calls wait for the entry before theirs. Longer than a commit takes under load on a
/// disk that is not slow: what goes on its way beside another makes both slower.
const GATHERING_MAX: Duration = Duration::from_millis(50);

struct InFlight<O> {
    parts: Vec<Part<O>>,
    bytes: usize,
    remembered: bool,
    result: Result<ClientWriteResult<Types>, ()>,
}

/// Runs until the replica stops, and then until nothing is in flight.
pub(crate) async fn run<M: StateMachine>(core: Arc<Core<M>>, mut waiting: WaitingProposals<M::Outcome>) {
    let mut in_flight = FuturesUnordered::new();
    let mut in_flight_bytes = 0;
    let mut left_over: Option<Waiting<M::Outcome>> = None;
    // Whether what waits is still gathered behind the entry that was made last, and until when.
    let mut gathering = false;
    let mut gathering_ends = pin!(tokio::time::sleep(GATHERING_MAX));
    let (mut stopping, mut core_ended) = (false, false);
    let mut leadership = core.raft.server_metrics();
    let mut holding = core.holding.watch();
    // Cancelled when this replica ceases to lead: what it put into the log may be settled by its
    // successor, and callers whose calls are remembered ask there.
    let mut deposed = CancellationToken::new();
    loop {
        let room = in_flight.is_empty()
            || (!gathering
                && in_flight.len() < core.config.entries_in_flight_max
                && in_flight_bytes < IN_FLIGHT_BYTES_MAX);
        let held = *holding.borrow_and_update() > 0;
        let first = tokio::select! {
            biased;
            Some(settled) = in_flight.next(), if !in_flight.is_empty() => {
                let settled: InFlight<M::Outcome> = settled;
                in_flight_bytes -= settled.bytes;
                settle(settled);
                None
            }
            first = queue::next(&mut left_over, &mut waiting), if room && !held && !stopping => {
                stopping |= first.is_none();
                first
            }
            () = &mut gathering_ends, if gathering && !in_flight.is_empty() => {
                gathering = false;
                None
            }
            changed = leadership.changed(), if !core_ended && !in_flight.is_empty() => {
                core_ended = changed.is_err();
                if core.another_leads() {
                    std::mem::take(&mut deposed).cancel();
                }
                None
            }
            // What is held back goes on, or more is.
            Ok(()) = holding.changed(), if !stopping => None,
            () = core.stop.cancelled(), if !stopping => {
                stopping = true;
                None
            }
            else => return,
        };
        let Some(first) = first else { continue };
        let remembered = core.formats.calls_are_remembered();
        let Gathered { calls, parts, bytes } =
            queue::gather(first, &mut left_over, &mut waiting, &core.config, remembered);
        if parts.is_empty() {
            // Everybody gave up waiting.
            continue;
        }
        if let Condition::Full { free_bytes, needed_bytes } = core.log.condition() {
            let error = ProposeError::StorageFull { free_bytes, needed_bytes };
            refuse(parts, |_| Unproposed::Failed(error.clone()));
            continue;
        }
        let at = core.time.now(core.published.latest().at);
        let calls = if remembered { calls } else { vec![without_ids(calls)] };
        let batch = Batch { at, work: Work::Calls(calls) };
        let (responder, answer) = ProgressResponder::complete_only();
        if core.raft.client_write_ff(batch, Some(responder)).await.is_err() {
            // The message was not taken: the consensus core has ended.
            let reason = core.reason_or_requested();
            refuse(parts, |_| Unproposed::Failed(ProposeError::Stopped(reason.clone())));
            continue;
        }
        in_flight_bytes += bytes;
        // What did not fit fills an entry of its own.
        gathering = left_over.is_none();
        gathering_ends.as_mut().reset(Instant::now() + GATHERING_MAX);
        let may_be_left = remembered && parts.iter().all(|part| part.has_id);
        let deposed = deposed.clone();
        in_flight.push(async move {
            let result = tokio::select! {
                biased;
                answer = answer => answer.map_err(drop),
                () = deposed.cancelled(), if may_be_left => Err(()),
            };
            InFlight { parts, bytes, remembered, result }
        });
    }
}

/// All commands as one call that is not remembered, as format 1 has it.
fn without_ids(calls: Vec<Call>) -> Call {
    Call { id: None, commands: calls.into_iter().flat_map(|call| call.commands).collect() }
}

/// Hands the outcome of an entry to those whose calls are in it.
fn settle<O: Send + Sync + 'static>(settled: InFlight<O>) {
    let InFlight { parts, remembered, result, .. } = settled;
    let unknown = |part: &Part<O>| {
        if remembered && part.has_id { Unproposed::Lost } else { Unproposed::Failed(ProposeError::OutcomeUnknown) }
    };
    let response = match result {
        Ok(Ok(response)) => response,
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => {
            return refuse(parts, |_| Unproposed::NotLeader);
        }
        // Discarded by a change of leader, or the core ended with the entry on its way. A
        // discarded entry may still be committed: another replica may have it and come to lead.
        Ok(Err(_)) | Err(()) => return refuse(parts, unknown),
    };
    let index = LogIndex(response.log_id.index);
    let mut answers = response.data.into_calls::<O>().unwrap_or_default();
    if !remembered && let [CallAnswer::Applied(outcomes)] = answers.as_mut_slice() {
        answers = split(std::mem::take(outcomes), &parts);
    }
    let expected = |(answer, part): (&CallAnswer<O>, &Part<O>)| match answer {
        CallAnswer::Applied(outcomes) | CallAnswer::AppliedBefore { outcomes, .. } => outcomes.len() == part.commands,
        CallAnswer::Forgotten | CallAnswer::TooMany => true,
    };
    if answers.len() != parts.len() || !answers.iter().zip(&parts).all(expected) {
        tracing::error!(%index, calls = parts.len(), "an entry came back without its outcomes");
        return refuse(parts, |_| Unproposed::Failed(ProposeError::OutcomeUnknown));
    }
    for (part, answer) in parts.into_iter().zip(answers) {
        part.answer(match answer {
            CallAnswer::Applied(outcomes) => Ok(Proposed { index, outcomes }),
            CallAnswer::AppliedBefore { index, outcomes } => Ok(Proposed { index, outcomes }),
            CallAnswer::Forgotten => Err(ProposeError::OutcomeUnknown.into()),
            CallAnswer::TooMany => Err(sequences::overloaded().into()),
        });
    }
}

/// The outcomes of an entry without ids, by the calls that its commands came from.
fn split<O>(outcomes: Vec<O>, parts: &[Part<O>]) -> Vec<CallAnswer<O>> {
    let mut outcomes = outcomes.into_iter();
    parts.iter().map(|part| CallAnswer::Applied(outcomes.by_ref().take(part.commands).collect())).collect()
}
