//! What tests and benchmarks of several crates share: replicas in one process.

mod ledger;
mod network;
pub mod simulation;

use crate::types::Vote;
use crate::wire::{Answer, CallReply, Request};
pub use ledger::{Command, Effect, Ledger, Outcome, Skew};
pub use network::LocalNetwork;

/// Whether a transport may deliver a request twice: what it says is no news the second time. Not
/// so for proposals; and parts of a snapshot have their place.
pub fn may_be_repeated(request: &[u8]) -> bool {
    !matches!(Request::decode(request), Ok(Request::Propose { .. } | Request::SnapshotChunk { .. }))
}

/// Whether a request is calls that go into the log.
pub fn is_calls(request: &[u8]) -> bool {
    matches!(Request::decode(request), Ok(Request::Calls { .. }))
}

/// Whether an answer refuses anything that was asked.
pub fn refuses(answer: &[u8]) -> bool {
    match Answer::decode(answer) {
        Ok(Answer::Refused(_)) => true,
        Ok(Answer::Calls { replies }) => replies.iter().any(|reply| matches!(reply, CallReply::Refused(_))),
        _ => false,
    }
}

/// Term and candidate, if the answer to a request is a vote. A replica gives one in each term.
pub fn granted_vote(request: &[u8], answer: &[u8]) -> Option<(u64, u64)> {
    // An answer with a vote is short, and so is the question.
    if answer.len() > 128 || request.len() > 128 {
        return None;
    }
    let Ok(Request::Vote(ballot)) = Request::decode(request) else { return None };
    match Answer::decode(answer) {
        Ok(Answer::Vote { granted: true, .. }) => {
            let vote = Vote::from(ballot.vote);
            Some((vote.leader_id().term, vote.leader_id().voted_for))
        }
        _ => None,
    }
}
