//! The receiving side: what other replicas ask, handed to the consensus library.

use crate::codec::{RawLogId, RawVote, SnapshotHeader, chain};
use crate::incoming::Complete;
use crate::snapshot::SnapshotData;
use crate::types::{Types, Vote};
use crate::wire::{Answer, AppendAnswer, Ballot, Refusal, TransferAnswer};
use openraft::Raft;
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteResponse,
};
use openraft::storage::RaftStateMachine;

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
///
/// With the answer the leader takes all that the snapshot covers for durable here. The library
/// answers at once when the log already holds that, which may have yet to become durable, so that
/// it is asked for as an append asks for what comes before its entries.
pub(crate) async fn install<SM: RaftStateMachine<Types, SnapshotData = SnapshotData>>(
    raft: &Raft<Types, SM>,
    vote: RawVote,
    complete: Complete,
) -> Answer {
    let Complete { data, header, installing } = complete;
    let meta = match SnapshotHeader::decode(&header) {
        Ok(header) => header.meta,
        Err(error) => return Answer::Refused(Refusal::Garbage(chain(&error))),
    };
    let leader = Vote::from(vote);
    let covered = meta.last_log_id;
    let snapshot = openraft::Snapshot { meta, snapshot: data };
    let installed: Result<_, Fatal<Types>> = raft.install_full_snapshot(leader, snapshot).await;
    let taken = match installed {
        Ok(response) if response.vote == leader => RawVote::from(&response.vote),
        Ok(response) => return Answer::Snapshot { vote: RawVote::from(&response.vote) },
        Err(error) => return stopped(&error),
    };
    let question =
        AppendEntriesRequest { vote: leader, prev_log_id: covered, entries: Vec::new(), leader_commit: None };
    let answer = match append(raft, question).await {
        Answer::Append(AppendAnswer::Success) => Answer::Snapshot { vote: taken },
        Answer::Append(AppendAnswer::HigherVote(vote)) => Answer::Snapshot { vote },
        Answer::Refused(refusal) => Answer::Refused(refusal),
        other => Answer::Refused(Refusal::SnapshotNotStored(format!("what it covers is not here: {other:?}"))),
    };
    drop(installing);
    answer
}
