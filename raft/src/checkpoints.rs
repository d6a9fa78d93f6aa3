//! Compares what replicas came to, every few thousand entries.
//!
//! Each replica notes its trail at the same entries, and now and then the hash of its whole state,
//! and tells the others. At an entry where a majority of the voters came to the same, whoever came
//! to something else is wrong and stops for good, the leader as well. Where there is no majority
//! (two replicas that differ) nobody can tell who is right: it is told loudly, and nobody stops.
//!
//! Best effort: what was not heard this time is told again with the next checkpoint. Only what can
//! be compared is: trails that began at the same entry, made by builds that hash alike.

use crate::codec::{self, Error};
use crate::core::Core;
use crate::error::StopReason;
use crate::ids::{LogIndex, ReplicaId};
use crate::machine::StateMachine;
use crate::peers::Lane;
use crate::snapshot::{Moment, blocking};
use crate::trail::{ContentHash, Trail};
use crate::wire::{Answer, Request};
use bincode::{Decode, Encode};
use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// How many checkpoints are kept to be compared with those of replicas that are behind.
pub(crate) const CHECKPOINTS_KEPT: usize = 64;

/// At each so manyth checkpoint the whole state is hashed, and the trail begins anew.
pub(crate) const STATE_EACH: u64 = 16;

/// How many checkpoints may wait to be looked at; more are left out.
const WAITING_MAX: usize = 64;

/// How much of a state is hashed at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// What a replica came to at one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) index: LogIndex,
    pub(crate) trail: Trail,
    /// The hash of the whole state, where it was made.
    pub(crate) state_hash: Option<u64>,
}

/// A checkpoint as the applier makes it.
pub(crate) struct Taken<M> {
    pub(crate) checkpoint: Checkpoint,
    /// Where the whole state is to be hashed.
    pub(crate) moment: Option<Moment<M>>,
}

/// Where the applier leaves its checkpoints.
pub(crate) type Sink<M> = mpsc::Sender<Taken<M>>;

pub(crate) fn sink<M>() -> (Sink<M>, mpsc::Receiver<Taken<M>>) {
    mpsc::channel(WAITING_MAX)
}

/// A checkpoint on its way to another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RawCheckpoint {
    index: u64,
    since: u64,
    version: u32,
    hash: u64,
    state_hash: Option<u64>,
}

impl From<&Checkpoint> for RawCheckpoint {
    fn from(checkpoint: &Checkpoint) -> Self {
        let Checkpoint { index, trail, state_hash } = checkpoint;
        Self { index: index.0, since: trail.since.0, version: trail.version, hash: trail.hash, state_hash: *state_hash }
    }
}

impl From<RawCheckpoint> for Checkpoint {
    fn from(raw: RawCheckpoint) -> Self {
        let trail = Trail { since: LogIndex(raw.since), version: raw.version, hash: raw.hash };
        Self { index: LogIndex(raw.index), trail, state_hash: raw.state_hash }
    }
}

impl Checkpoint {
    /// Whether two checkpoints at one entry say the same; `None` if they cannot be compared.
    fn agrees_with(&self, other: &Self) -> Option<bool> {
        if self.index != other.index || self.trail.version != other.trail.version {
            return None;
        }
        let trails = (self.trail.since == other.trail.since).then_some(self.trail.hash == other.trail.hash);
        let states = self.state_hash.zip(other.state_hash).map(|(mine, theirs)| mine == theirs);
        match (trails, states) {
            (None, None) => None,
            (trails, states) => Some(trails != Some(false) && states != Some(false)),
        }
    }
}

/// How a replica compares with the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointStatus {
    /// The last entry at which this replica noted what it came to; `None` when it has not yet.
    pub last: Option<LogIndex>,
    /// The hash of what the entries up to there brought.
    pub hash: u64,
    /// The last entry at which it hashed its whole state.
    pub last_state: Option<LogIndex>,
    /// The hash of its whole state there.
    pub state_hash: u64,
    /// The voters that came to the same, each with the last entry at which that was found.
    pub same: BTreeMap<ReplicaId, LogIndex>,
    /// The voters that came to something else, each with the last entry at which that was found.
    /// Anything in here is a defect: of a disk, of memory, or of the program.
    pub different: BTreeMap<ReplicaId, LogIndex>,
}

/// What this replica came to, and what the others say they did.
#[derive(Default)]
pub(crate) struct Checkpoints {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    mine: VecDeque<Checkpoint>,
    others: BTreeMap<ReplicaId, Vec<Checkpoint>>,
    /// What was told loudly.
    told: BTreeSet<(LogIndex, ReplicaId)>,
    status: CheckpointStatus,
}

/// What comes of a comparison.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// A majority of the voters came to something else than this replica.
    Wrong {
        at: LogIndex,
    },
}

impl Known {
    fn keep(&mut self, checkpoint: Checkpoint) {
        let status = &mut self.status;
        (status.last, status.hash) = (Some(checkpoint.index), checkpoint.trail.hash);
        if let Some(hash) = checkpoint.state_hash {
            (status.last_state, status.state_hash) = (Some(checkpoint.index), hash);
        }
        if self.mine.len() == CHECKPOINTS_KEPT {
            self.mine.pop_front();
        }
        self.mine.push_back(checkpoint);
    }

    fn status_among(&mut self, voters: &[ReplicaId]) -> CheckpointStatus {
        self.status.same.retain(|replica, _| voters.contains(replica));
        self.status.different.retain(|replica, _| voters.contains(replica));
        self.status.clone()
    }

    /// Compares all that is known.
    fn judge(&mut self, voters: &BTreeSet<ReplicaId>) -> Verdict {
        // Who is no voter any more has no voice, and is not kept.
        self.others.retain(|replica, _| voters.contains(replica));
        let Known { mine, others, told, status } = self;
        for mine in mine.iter() {
            let theirs = others.iter().filter_map(|(replica, checkpoints)| {
                let at = checkpoints.iter().find(|theirs| theirs.index == mine.index)?;
                Some((*replica, at, mine.agrees_with(at)?))
            });
            let theirs: Vec<_> = theirs.collect();
            for (replica, _, same) in &theirs {
                let (found, not) = if *same {
                    (&mut status.same, &mut status.different)
                } else {
                    (&mut status.different, &mut status.same)
                };
                if not.get(replica) <= Some(&mine.index) {
                    not.remove(replica);
                }
                let at = found.entry(*replica).or_insert(mine.index);
                *at = mine.index.max(*at);
                if !same && told.insert((mine.index, *replica)) {
                    tracing::error!(index = %mine.index, %replica, "another replica came to a different state");
                }
            }
            // A majority of those who differ from this one, and agree with each other.
            let against = theirs.iter().filter(|(_, _, same)| !same);
            let united = against.clone().map(|(_, checkpoint, _)| {
                against.clone().filter(|(_, other, _)| checkpoint.agrees_with(other) == Some(true)).count()
            });
            if united.max().unwrap_or(0) > voters.len() / 2 {
                return Verdict::Wrong { at: mine.index };
            }
        }
        let oldest = mine.front().map(|oldest| oldest.index);
        told.retain(|(index, _)| Some(*index) >= oldest);
        Verdict::Fine
    }
}

impl Checkpoints {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the voters; what was known of others is forgotten.
    pub(crate) fn status(&self, voters: &[ReplicaId]) -> CheckpointStatus {
        self.known().status_among(voters)
    }

    pub(crate) fn mine(&self) -> Vec<RawCheckpoint> {
        self.known().mine.iter().map(RawCheckpoint::from).collect()
    }
}

/// Takes note of what another replica says, and stops this one if it is wrong.
pub(crate) fn hear<M: StateMachine>(core: &Core<M>, from: ReplicaId, theirs: Vec<RawCheckpoint>) {
    let voters = voters(core);
    let verdict = {
        let mut known = core.checkpoints.known();
        let theirs = theirs.into_iter().take(CHECKPOINTS_KEPT).map(Checkpoint::from);
        known.others.insert(from, theirs.collect());
        known.judge(&voters)
    };
    if let Verdict::Wrong { at: index } = verdict {
        if core.stop_reason().is_none()
            && let Err(error) = mark_diverged(&core.config.folder, index)
        {
            tracing::error!(%error, "cannot mark the data folder as wrong");
        }
        core.halt.because(StopReason::Diverged { index });
    }
}

/// Looks at the checkpoints of this replica as they come and tells the others. Runs until the
/// replica stops.
pub(crate) async fn run<M: StateMachine>(core: Arc<Core<M>>, mut taken: mpsc::Receiver<Taken<M>>) {
    loop {
        let next = tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            next = taken.recv() => next,
        };
        let Some(Taken { mut checkpoint, moment }) = next else { return };
        let others = other_voters(&core);
        // With nobody to compare it with, the state is not hashed: that takes as long as a snapshot.
        if let Some(moment) = moment.filter(|_| !others.is_empty()) {
            let hashed = tokio::select! {
                biased;
                () = core.stop.cancelled() => return,
                hashed = blocking("hash the state", move || hash_of(&moment)) => hashed,
            };
            match hashed {
                Ok(hash) => checkpoint.state_hash = Some(hash),
                Err(error) => tracing::error!(%error, index = %checkpoint.index, "the state was not hashed"),
            }
        }
        core.checkpoints.known().keep(checkpoint);
        if taken.is_empty() {
            // The others take as long as they do to answer, and may be gone; the next checkpoint
            // does not wait for them.
            tokio::select! {
                biased;
                () = core.stop.cancelled() => return,
                () = exchange(&core, others) => {}
            }
        }
    }
}

fn hash_of<M: StateMachine>(moment: &Moment<M>) -> std::io::Result<u64> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, ContentHash::default());
    moment.write(&mut out)?;
    out.flush()?;
    Ok(out.get_ref().finish())
}

fn voters<M: StateMachine>(core: &Core<M>) -> BTreeSet<ReplicaId> {
    let metrics = core.raft.server_metrics();
    let membership = &metrics.borrow_watched().membership_config;
    membership.voter_ids().map(ReplicaId).collect()
}

fn other_voters<M: StateMachine>(core: &Core<M>) -> BTreeSet<ReplicaId> {
    let mut voters = voters(core);
    voters.remove(&core.config.replica);
    voters
}

/// Tells all other voters, and hears what they have.
async fn exchange<M: StateMachine>(core: &Core<M>, others: BTreeSet<ReplicaId>) {
    let request = Request::Checkpoints { mine: core.checkpoints.mine() }.encode();
    let asked = others.into_iter().map(|other| {
        let request = request.clone();
        async move {
            let call = core.peers.call(other, Lane::Heartbeat, request);
            let answer = tokio::time::timeout(core.answer_timeout(), call).await;
            if let Ok(Ok(bytes)) = answer
                && let Ok(Answer::Checkpoints { mine }) = Answer::decode(&bytes)
            {
                hear(core, other, mine);
            }
        }
    });
    join_all(asked).await;
}

const DIVERGED: &str = "diverged";

fn marker(folder: &Path) -> PathBuf {
    folder.join(DIVERGED)
}

/// Makes sure that what is in the folder is never used again.
fn mark_diverged(folder: &Path, index: LogIndex) -> std::io::Result<()> {
    let path = marker(folder);
    std::fs::write(&path, codec::encode_versioned(codec::STORED_VERSION, &index.0))?;
    std::fs::File::open(&path)?.sync_all()?;
    std::fs::File::open(folder)?.sync_all()
}

/// The entry at which the replica of this folder was found to be wrong, if it was.
pub(crate) fn diverged(folder: &Path) -> std::io::Result<Option<LogIndex>> {
    let bytes = match std::fs::read(marker(folder)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // A marker that was cut off by a crash still marks.
    let index: Result<u64, Error> = codec::decode_versioned(codec::STORED_VERSION, "the mark of a wrong state", &bytes);
    Ok(Some(LogIndex(index.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn at(index: u64, hash: u64) -> Checkpoint {
        let trail = Trail { since: LogIndex(0), version: 1, hash };
        Checkpoint { index: LogIndex(index), trail, state_hash: None }
    }

    fn voters(count: u64) -> BTreeSet<ReplicaId> {
        (1..=count).map(ReplicaId).collect()
    }

    /// The verdict of replica 1, which came to `mine`, when it hears `others`.
    fn judged(count: u64, mine: Checkpoint, others: &[(u64, Checkpoint)]) -> (Verdict, CheckpointStatus) {
        let mut known = Known::default();
        known.keep(mine);
        known.others = others.iter().map(|(replica, theirs)| (ReplicaId(*replica), vec![*theirs])).collect();
        let verdict = known.judge(&voters(count));
        (verdict, known.status)
    }

    #[test]
    fn who_differs_from_a_majority_is_wrong() {
        let (verdict, status) = judged(3, at(10, 1), &[(2, at(10, 2)), (3, at(10, 2))]);
        assert_eq!(verdict, Verdict::Wrong { at: LogIndex(10) });
        assert_eq!(status.different.len(), 2);
    }

    #[test]
    fn who_is_with_the_majority_goes_on_and_says_who_is_not() {
        let (verdict, status) = judged(3, at(10, 1), &[(2, at(10, 2)), (3, at(10, 1))]);
        assert_eq!(verdict, Verdict::Fine);
        assert_eq!(status.different, BTreeMap::from([(ReplicaId(2), LogIndex(10))]));
        assert_eq!(status.same, BTreeMap::from([(ReplicaId(3), LogIndex(10))]));
    }

    #[test]
    fn without_a_majority_nobody_is_wrong() {
        for (count, others) in [
            (2, vec![(2, at(10, 2))]),
            (3, vec![(2, at(10, 2)), (3, at(10, 3))]),
            (5, vec![(2, at(10, 2)), (3, at(10, 2))]),
        ] {
            let (verdict, status) = judged(count, at(10, 1), &others);
            assert_eq!(verdict, Verdict::Fine);
            assert_eq!(status.different.len(), others.len());
        }
    }

    #[test]
    fn a_replica_that_does_not_vote_has_no_voice_but_hears_that_it_is_wrong() {
        let (verdict, _) = judged(3, at(10, 1), &[(4, at(10, 2)), (5, at(10, 2))]);
        assert_eq!(verdict, Verdict::Fine);
        let mut known = Known::default();
        known.keep(at(10, 1));
        known.others = [2, 3].map(|replica| (ReplicaId(replica), vec![at(10, 2)])).into();
        assert_eq!(known.judge(&BTreeSet::from([2, 3, 4].map(ReplicaId))), Verdict::Wrong { at: LogIndex(10) });
    }

    #[test]
    fn nothing_is_said_of_a_replica_that_was_removed() {
        let mut known = Known::default();
        known.keep(at(10, 1));
        known.others = [(2, 1), (3, 2)].map(|(replica, hash)| (ReplicaId(replica), vec![at(10, hash)])).into();
        known.judge(&voters(3));
        let status = known.status_among(&[1, 2, 3].map(ReplicaId));
        assert_eq!((status.same.len(), status.different.len()), (1, 1));
        let status = known.status_among(&[ReplicaId(1)]);
        assert_eq!((status.same.len(), status.different.len()), (0, 0));
    }

    #[test]
    fn what_cannot_be_compared_is_not() {
        let other_begin = Checkpoint { trail: Trail { since: LogIndex(5), ..at(10, 2).trail }, ..at(10, 2) };
        let other_build = Checkpoint { trail: Trail { version: 2, ..at(10, 2).trail }, ..at(10, 2) };
        for theirs in [at(11, 2), other_begin, other_build] {
            let (verdict, status) = judged(3, at(10, 1), &[(2, theirs), (3, theirs)]);
            assert_eq!((verdict, status.different.len(), status.same.len()), (Verdict::Fine, 0, 0));
        }
        // The whole state is compared wherever the trails began.
        let mine = Checkpoint { state_hash: Some(1), ..at(10, 1) };
        let theirs = Checkpoint { state_hash: Some(2), ..other_begin };
        let (verdict, _) = judged(3, mine, &[(2, theirs), (3, theirs)]);
        assert_eq!(verdict, Verdict::Wrong { at: LogIndex(10) });
    }

    #[test]
    fn a_state_that_differs_counts_though_the_trails_are_the_same() {
        let mine = Checkpoint { state_hash: Some(1), ..at(10, 1) };
        let theirs = Checkpoint { state_hash: Some(2), ..at(10, 1) };
        assert_eq!(judged(3, mine, &[(2, theirs), (3, theirs)]).0, Verdict::Wrong { at: LogIndex(10) });
    }

    #[test]
    fn only_the_last_checkpoints_are_kept() {
        let mut known = Known::default();
        for index in 0..100 {
            known.keep(at(index, index));
        }
        assert_eq!((known.mine.len(), known.mine[0].index), (CHECKPOINTS_KEPT, LogIndex(36)));
        assert_eq!(known.status.last, Some(LogIndex(99)));
    }

    #[test]
    fn a_folder_that_was_marked_stays_marked() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(diverged(folder.path()).unwrap(), None);
        mark_diverged(folder.path(), LogIndex(7)).unwrap();
        assert_eq!(diverged(folder.path()).unwrap(), Some(LogIndex(7)));
        std::fs::write(marker(folder.path()), b"").unwrap();
        assert_eq!(diverged(folder.path()).unwrap(), Some(LogIndex(0)));
    }
}
