//! The receiving side: what other replicas ask, handed to the consensus library.

use crate::codec::{RawLogId, RawVote, SnapshotHeader, chain};
use crate::ids::ReplicaId;
use crate::snapshot::{SnapshotData, blocking};
use crate::types::Types;
use crate::wire::{Answer, AppendAnswer, Ballot, Refusal, SnapshotEnd, TransferAnswer};
use berth_storage::{SnapshotWriter, Snapshots};
use openraft::Raft;
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteResponse,
};
use openraft::storage::RaftStateMachine;
use std::io::{self, Write};
use tokio::sync::Mutex;

/// A snapshot that is coming in. One at a time: a leader begins a new one when it is disturbed.
struct Transfer {
    from: ReplicaId,
    number: u64,
    next_offset: u64,
    writer: Box<SnapshotWriter>,
}

/// Puts the parts of a snapshot together.
pub(crate) struct SnapshotReceiver {
    snapshots: Snapshots,
    current: Mutex<Option<Transfer>>,
}

impl SnapshotReceiver {
    pub(crate) fn new(snapshots: Snapshots) -> Self {
        Self { snapshots, current: Mutex::new(None) }
    }

    /// Takes one part. With the last one the snapshot is complete, and comes back.
    pub(crate) async fn take(
        &self,
        from: ReplicaId,
        number: u64,
        offset: u64,
        bytes: Vec<u8>,
        end: Option<&SnapshotEnd>,
    ) -> Result<Option<SnapshotData>, Refusal> {
        let mut current = self.current.lock().await;
        if offset == 0 {
            // Dropping an unfinished one removes its file.
            *current = None;
            let snapshots = self.snapshots.clone();
            let begun = blocking("begin a snapshot", move || {
                snapshots.begin().map_err(|error| io::Error::other(chain(&error)))
            });
            let writer = begun.await.map_err(|error| Refusal::SnapshotNotStored(error.to_string()))?;
            *current = Some(Transfer { from, number, next_offset: 0, writer: Box::new(writer) });
        }
        // Taken out while it is written to: an error leaves nothing half done behind.
        let Some(mut transfer) = current.take() else {
            return Err(Refusal::SnapshotOutOfOrder);
        };
        if (transfer.from, transfer.number, transfer.next_offset) != (from, number, offset) {
            return Err(Refusal::SnapshotOutOfOrder);
        }
        transfer.next_offset += bytes.len() as u64;
        let written = blocking("write a received snapshot", move || {
            transfer.writer.write_all(&bytes)?;
            Ok(transfer)
        });
        let transfer = written.await.map_err(|error| Refusal::SnapshotNotStored(error.to_string()))?;
        let Some(end) = end else {
            *current = Some(transfer);
            return Ok(None);
        };
        let meta = SnapshotHeader::decode(&end.meta).map_err(|error| Refusal::Garbage(chain(&error)))?.meta;
        Ok(Some(SnapshotData::Received {
            writer: transfer.writer,
            meta: end.meta.clone(),
            index: meta.last_log_id.map_or(0, |last| last.index),
        }))
    }
}

fn stopped<E: std::fmt::Display>(error: &E) -> Answer {
    Answer::Refused(Refusal::Stopped(error.to_string()))
}

fn vote_answer(result: Result<VoteResponse<Types>, RaftError<Types>>) -> Answer {
    match result {
        Ok(response) => Answer::Vote {
            vote: RawVote::from(&response.vote),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(RawLogId::from),
        },
        Err(error) => stopped(&error),
    }
}

pub(crate) async fn append<SM: RaftStateMachine<Types>>(
    raft: &Raft<Types, SM>,
    request: AppendEntriesRequest<Types>,
) -> Answer {
    match raft.append_entries(request).await {
        Ok(AppendEntriesResponse::Success) => Answer::Append(AppendAnswer::Success),
        Ok(AppendEntriesResponse::PartialSuccess(last)) => {
            Answer::Append(AppendAnswer::PartialSuccess(last.as_ref().map(RawLogId::from)))
        }
        Ok(AppendEntriesResponse::Conflict) => Answer::Append(AppendAnswer::Conflict),
        Ok(AppendEntriesResponse::HigherVote(vote)) => Answer::Append(AppendAnswer::HigherVote(RawVote::from(&vote))),
        Err(error) => stopped(&error),
    }
}

pub(crate) async fn vote<SM: RaftStateMachine<Types>>(raft: &Raft<Types, SM>, ballot: Ballot) -> Answer {
    vote_answer(raft.vote(ballot.into()).await)
}

pub(crate) async fn pre_vote<SM: RaftStateMachine<Types>>(raft: &Raft<Types, SM>, ballot: Ballot) -> Answer {
    vote_answer(raft.pre_vote(ballot.into()).await)
}

pub(crate) async fn transfer_leader<SM: RaftStateMachine<Types>>(
    raft: &Raft<Types, SM>,
    vote: RawVote,
    to: u64,
    last: Option<RawLogId>,
) -> Answer {
    let request = TransferLeaderRequest::new(vote.into(), to, last.map(Into::into));
    match raft.handle_transfer_leader(request).await {
        Ok(Ok(())) => Answer::TransferLeader(TransferAnswer::Accepted),
        Ok(Err(TransferLeaderError::VoteChanged { expected, actual })) => {
            Answer::TransferLeader(TransferAnswer::VoteChanged {
                expected: RawVote::from(&expected),
                actual: RawVote::from(&actual),
            })
        }
        Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual })) => {
            Answer::TransferLeader(TransferAnswer::LogNotFlushed {
                expected: expected.as_ref().map(RawLogId::from),
                actual: actual.as_ref().map(RawLogId::from),
            })
        }
        Err(error) => stopped(&error),
    }
}

/// Gives a complete snapshot to the library, which installs it or not.
pub(crate) async fn install<SM: RaftStateMachine<Types, SnapshotData = SnapshotData>>(
    raft: &Raft<Types, SM>,
    end: &SnapshotEnd,
    data: SnapshotData,
) -> Answer {
    let meta = match SnapshotHeader::decode(&end.meta) {
        Ok(header) => header.meta,
        Err(error) => return Answer::Refused(Refusal::Garbage(chain(&error))),
    };
    let snapshot = openraft::Snapshot { meta, snapshot: data };
    let installed: Result<_, Fatal<Types>> = raft.install_full_snapshot(end.vote.into(), snapshot).await;
    match installed {
        Ok(response) => Answer::Snapshot { vote: RawVote::from(&response.vote) },
        Err(error) => stopped(&error),
    }
}
