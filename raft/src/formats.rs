//! The format of entries and snapshots, which the replicas have agreed on.
//!
//! - Format 1: entries hold commands. Nothing tells a repeated call from another.
//! - Format 2: entries hold calls with their ids; their outcomes are kept until they are answered,
//!   and go with snapshots; what entries bring is hashed. Replicas also send each other requests
//!   that earlier builds do not know.
//!
//! A cluster begins with format 1. An entry raises the format, and only after every member has
//! said that it reads the higher one: until then each can be replaced by an earlier build at any
//! time, and afterwards by none. What was written stays readable for ever.

use crate::core::Core;
use crate::error::{RaiseError, ReadError, StopReason};
use crate::halt::Halt;
use crate::ids::{ReplicaId, UnixMillis};
use crate::machine::StateMachine;
use crate::peers::Lane;
use crate::types::{Batch, Work};
use crate::wire::{Answer, Request};
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// The format that every cluster begins with.
pub(crate) const FIRST: u16 = 1;

/// From this format on calls are remembered, entries are hashed, and peers know the requests of
/// wire version 2.
pub(crate) const CALLS: u16 = 2;

/// The newest format that this build knows.
pub(crate) const NEWEST: u16 = CALLS;

/// How often the members of a new cluster are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What this replica reads, and what was agreed on.
pub(crate) struct Formats {
    reads: RangeInclusive<u16>,
    agreed: AtomicU16,
    halt: Halt,
}

impl Formats {
    pub(crate) fn new(reads: RangeInclusive<u16>, halt: Halt) -> Self {
        Self { reads, agreed: AtomicU16::new(FIRST), halt }
    }

    pub(crate) fn reads(&self) -> RangeInclusive<u16> {
        self.reads.clone()
    }

    /// What entries and snapshots are written in, as far as this replica has applied.
    pub(crate) fn agreed(&self) -> u16 {
        self.agreed.load(Ordering::Acquire)
    }

    pub(crate) fn calls_are_remembered(&self) -> bool {
        self.agreed() >= CALLS
    }

    /// Fails, and stops the replica, unless it reads `format`.
    pub(crate) fn require(&self, format: u16) -> io::Result<()> {
        if self.reads.contains(&format) {
            return Ok(());
        }
        let (from, to) = (*self.reads.start(), *self.reads.end());
        let reason = StopReason::FormatNotRead { format, from, to };
        let error = io::Error::new(io::ErrorKind::InvalidData, reason.to_string());
        self.halt.because(reason);
        Err(error)
    }

    /// Takes note of what was agreed on.
    pub(crate) fn agree(&self, format: u16) -> io::Result<()> {
        self.require(format)?;
        self.agreed.store(format, Ordering::Release);
        Ok(())
    }
}

/// What one member reads, by its own account, now.
async fn reads_of<M: StateMachine>(core: &Core<M>, member: ReplicaId) -> Result<RangeInclusive<u16>, RaiseError> {
    if member == core.config.replica {
        return Ok(core.formats.reads());
    }
    let silent = |reason: String| RaiseError::MemberSilent { member, reason };
    let call = core.peers.call(member, Lane::Heartbeat, Request::Formats.encode());
    let answer = match tokio::time::timeout(core.answer_timeout(), call).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(silent(error.to_string())),
        Err(_) => return Err(silent("the time was up".to_owned())),
    };
    match Answer::decode(&answer) {
        Ok(Answer::Formats { from, to }) => Ok(from..=to),
        // It does not know the question: an earlier build.
        Ok(Answer::Refused(crate::wire::Refusal::Garbage(_))) => Ok(FIRST..=FIRST),
        Ok(other) => Err(silent(format!("it answered {other:?}"))),
        Err(error) => Err(silent(crate::codec::chain(&error))),
    }
}

/// Raises the format, on the leader, if every member reads it.
pub(crate) async fn raise<M: StateMachine>(core: &Core<M>, to: u16) -> Result<(), RaiseError> {
    if let Some(reason) = core.stop_reason() {
        return Err(RaiseError::Stopped(reason));
    }
    let agreed = core.formats.agreed();
    if to <= agreed {
        return if to == agreed { Ok(()) } else { Err(RaiseError::Lower { agreed, to }) };
    }
    // Nobody becomes a member between the question and the entry.
    let _one_at_a_time = core.changing.try_lock().map_err(|_| RaiseError::MembersChange)?;
    if !core.leads() {
        return Err(RaiseError::NotLeader { leader: core.leader() });
    }
    for member in members(core) {
        let reads = reads_of(core, member).await?;
        if !reads.contains(&to) {
            return Err(RaiseError::NotRead { member, from: *reads.start(), to: *reads.end(), wanted: to });
        }
    }
    let at = core.time.now(core.published.latest().at);
    let batch = Batch { at, work: Work::RaiseFormat(to) };
    let written = tokio::time::timeout(core.config.request_timeout(), core.raft.client_write(batch));
    match written.await {
        Ok(Ok(_)) => {
            tracing::info!(format = to, "the replicas write a newer format from now on");
            Ok(())
        }
        Ok(Err(error)) => match error.forward_to_leader() {
            Some(_) => Err(RaiseError::NotLeader { leader: core.leader() }),
            None => Err(RaiseError::Stopped(core.reason_or_requested())),
        },
        Err(_) => Err(RaiseError::TimedOut { waited: core.config.request_timeout() }),
    }
}

fn members<M: StateMachine>(core: &Core<M>) -> BTreeSet<ReplicaId> {
    let metrics = core.raft.server_metrics();
    let membership = &metrics.borrow_watched().membership_config;
    membership.nodes().map(|member| ReplicaId(*member.0)).collect()
}

/// Raises the format of a cluster that is new, as soon as all members have answered: `forms` says
/// that this replica took part in forming it, and where nothing was ever written it makes no
/// difference. An answer that speaks against it ends this: from then on it is the operator's choice.
pub(crate) async fn raise_when_new<M: StateMachine>(core: Arc<Core<M>>, forms: bool) {
    let newest = *core.formats.reads().end();
    while core.formats.agreed() < newest {
        if core.leads() {
            match raise_if_new(&core, forms, newest).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error @ RaiseError::NotRead { .. }) => {
                    tracing::warn!(%error, "the cluster stays with an earlier format until it is raised");
                    return;
                }
                Err(error) => tracing::debug!(%error, "the format is not raised yet"),
            }
        }
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
    }
}

/// Whether there is a reason to go on.
async fn raise_if_new<M: StateMachine>(core: &Core<M>, forms: bool, to: u16) -> Result<bool, RaiseError> {
    if !forms {
        let stopped = || ReadError::Stopped(core.reason_or_requested());
        let current = core.reads.confirmed(core.config.request_timeout(), stopped).await;
        // Every entry with commands moves the time.
        let written = core.published.latest().at > UnixMillis(0);
        if current.is_ok() && written {
            return Ok(false);
        }
        if current.is_err() {
            return Ok(true);
        }
    }
    raise(core, to).await.map(|()| false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::sync::CancellationToken;

    #[test]
    fn a_format_that_is_not_read_stops_the_replica_with_what_to_do() {
        let halt = Halt::new(CancellationToken::new());
        let formats = Formats::new(1..=1, halt.clone());
        assert!(formats.agree(2).is_err());
        assert_eq!((formats.agreed(), halt.stop.is_cancelled()), (1, true));
        assert_eq!(halt.reason(), Some(StopReason::FormatNotRead { format: 2, from: 1, to: 1 }));
    }
}
