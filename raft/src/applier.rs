//! Applies committed entries to the state machine, in one place and in order.
//!
//! Invariants: an entry is applied once, after all before it; stamps never run backwards; a state
//! is published before anybody, observer or caller, is told that its entries were applied; a call
//! with an id is applied once, however many entries hold it; a panic of the state machine stops the
//! replica instead of leaving it half applied.

use crate::calls::Admission;
use crate::checkpoints::{self, Checkpoint, Taken};
use crate::codec::{self, SnapshotHeader, chain};
use crate::formats::Formats;
use crate::ids::{LogIndex, ReplicaId, Stamp, UnixMillis};
use crate::machine::{Observer, StateMachine};
use crate::published::{Applied, Published};
use crate::replicated::Replicated;
use crate::snapshot::{self, Installed, Moment, SnapshotBuilder, SnapshotData};
use crate::trail::{self, Trail};
use crate::types::{Answer, Batch, Call, CallAnswer, CallId, LogId, SnapshotMeta, StoredMembership, Types, Work};
use berth_storage::Snapshots;
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The most entries that are applied before the state is published and their callers are answered.
const ENTRIES_PER_PUBLISH_MAX: usize = 256;

/// How much memory for what an entry brought is kept for the next one.
const BROUGHT_BYTES_KEPT: usize = 256 * 1024;

/// When to ask for a snapshot.
#[derive(Clone)]
pub(crate) struct SnapshotPolicy {
    pub(crate) after_entries: u64,
    pub(crate) after_bytes: u64,
    /// Notified when a snapshot is due.
    pub(crate) due: Arc<Notify>,
    /// Whether it has been due for so long that it must not be put off any more.
    pub(crate) overdue: Arc<AtomicBool>,
}

/// How many times as many entries, or bytes, as a snapshot is made after make it overdue.
const OVERDUE: u64 = 4;

/// What the applier works with.
pub(crate) struct Surroundings<M> {
    pub(crate) published: Arc<Published<M>>,
    pub(crate) snapshots: Snapshots,
    pub(crate) policy: SnapshotPolicy,
    pub(crate) formats: Arc<Formats>,
    /// After how many entries a checkpoint is taken, and where it is left.
    pub(crate) checkpoint_each: u64,
    pub(crate) checkpoints: checkpoints::Sink<M>,
    pub(crate) stop: CancellationToken,
}

/// The state machine as the consensus library sees it.
pub(crate) struct Applier<M: StateMachine> {
    state: M,
    last: Option<LogId>,
    at: UnixMillis,
    membership: StoredMembership,
    replicated: Replicated,
    /// What the current entry brought, encoded to be hashed.
    brought: Vec<u8>,
    observer: Observer<M>,
    /// What the entries applied since the last publication brought.
    effects: Vec<M::Effect>,
    entries_since_snapshot: u64,
    bytes_since_snapshot: u64,
    surroundings: Surroundings<M>,
}

impl<M: StateMachine> Applier<M> {
    pub(crate) fn new(initial: M, observer: Observer<M>, surroundings: Surroundings<M>) -> Self {
        observer(&initial, &[]);
        Self {
            state: initial,
            last: None,
            at: UnixMillis(0),
            membership: StoredMembership::default(),
            replicated: Replicated::new(trail::version::<M>()),
            brought: Vec::new(),
            observer,
            effects: Vec::new(),
            entries_since_snapshot: 0,
            bytes_since_snapshot: 0,
            surroundings,
        }
    }

    fn publish(&self) {
        let applied = Applied {
            state: Arc::new(self.state.clone()),
            index: self.last.map(|last| LogIndex(last.index)),
            at: self.at,
        };
        self.surroundings.published.publish(applied, self.state.next_deadline());
    }

    /// Makes what was applied visible, then tells the observer what it brought.
    fn publish_applied(&mut self) -> io::Result<()> {
        self.publish();
        let effects = std::mem::take(&mut self.effects);
        if effects.is_empty() {
            return Ok(());
        }
        self.observe(&effects)
    }

    /// Tells the observer of the state that was just published.
    fn observe(&self, effects: &[M::Effect]) -> io::Result<()> {
        let observed = catch_unwind(AssertUnwindSafe(|| (self.observer)(&self.state, effects)));
        observed.map_err(|panic| {
            let text = panic_text(panic.as_ref());
            io::Error::other(format!("the observer of applied entries panicked: {text}"))
        })
    }

    /// Applies one batch; there is one answer for each of its calls, in order.
    fn apply_batch(&mut self, index: LogIndex, batch: Batch) -> io::Result<Answer> {
        self.at = self.at.max(batch.at);
        let stamp = Stamp { index, at: self.at };
        self.brought.extend_from_slice(&stamp.at.0.to_le_bytes());
        match batch.work {
            Work::Calls(calls) => Ok(Answer::calls(self.apply_calls(stamp, &calls)?)),
            Work::RaiseFormat(to) => {
                self.raise_format(index, to)?;
                Ok(Answer::none())
            }
        }
    }

    fn apply_calls(&mut self, stamp: Stamp, calls: &[Call]) -> io::Result<Vec<CallAnswer<M::Outcome>>> {
        let index = stamp.index;
        let mut position = 0;
        let mut decode = |bytes: &Vec<u8>| {
            let command = M::decode_command(bytes).map_err(|error| {
                let reason = chain(error.as_ref());
                let text = format!("cannot decode command {position} of entry {index}: {reason}");
                io::Error::new(io::ErrorKind::InvalidData, text)
            });
            position += 1;
            command
        };
        // All are decoded before any is applied: an entry happens as a whole or not at all.
        let commands = calls.iter().flat_map(|call| &call.commands).map(&mut decode);
        let mut commands = commands.collect::<io::Result<Vec<_>>>()?.into_iter();
        let effects_before = self.effects.len();
        let applied = catch_unwind(AssertUnwindSafe(|| {
            self.state.advance(stamp, &mut self.effects);
            let mut apply = |call: &Call| {
                let mut commands = commands.by_ref().take(call.commands.len());
                let answer = self.apply_call(stamp, call.id, &mut commands);
                // Those of a call that was not applied are passed over.
                commands.for_each(drop);
                answer
            };
            calls.iter().map(&mut apply).collect()
        }));
        let answers = applied.unwrap_or_else(|panic| {
            let text = panic_text(panic.as_ref());
            Err(io::Error::other(format!("the state machine panicked at entry {index}: {text}")))
        })?;
        if self.replicated.has_calls() {
            for effect in &self.effects[effects_before..] {
                codec::append(&mut self.brought, effect)?;
            }
        }
        Ok(answers)
    }

    fn apply_call(
        &mut self,
        stamp: Stamp,
        id: Option<CallId>,
        commands: impl Iterator<Item = M::Command>,
    ) -> io::Result<CallAnswer<M::Outcome>> {
        let Some(id) = id else {
            let outcomes = self.apply_commands(stamp, commands);
            if self.replicated.has_calls() {
                codec::append(&mut self.brought, &outcomes)?;
            }
            return Ok(CallAnswer::Applied(outcomes));
        };
        if !self.replicated.has_calls() {
            let text = format!("entry {} holds a call with an id, but the format is not raised", stamp.index);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let admission =
            if self.is_member(id.replica) { self.replicated.calls.admit(&id) } else { Admission::Forgotten };
        let (tag, answer) = match admission {
            Admission::Apply => {
                let outcomes = self.apply_commands(stamp, commands);
                let from = self.brought.len();
                codec::append(&mut self.brought, &outcomes)?;
                self.replicated.calls.keep(&id, stamp.index, &self.brought[from..]);
                (0, CallAnswer::Applied(outcomes))
            }
            Admission::Repeated(kept) => {
                let outcomes = codec::decode_outcome(&kept.outcomes)?;
                (1, CallAnswer::AppliedBefore { index: kept.index, outcomes })
            }
            Admission::Forgotten => (2, CallAnswer::Forgotten),
            Admission::TooMany => (3, CallAnswer::TooMany),
        };
        self.brought.push(tag);
        Ok(answer)
    }

    fn apply_commands(&mut self, stamp: Stamp, commands: impl Iterator<Item = M::Command>) -> Vec<M::Outcome> {
        let Self { state, effects, .. } = self;
        commands.map(|command| state.apply(stamp, command, effects)).collect()
    }

    fn is_member(&self, replica: ReplicaId) -> bool {
        self.membership.membership().get_node(&replica.0).is_some()
    }

    fn raise_format(&mut self, index: LogIndex, to: u16) -> io::Result<()> {
        if to <= self.replicated.format {
            // Asked for twice.
            return Ok(());
        }
        self.surroundings.formats.agree(to)?;
        self.replicated.format = to;
        self.replicated.trail = Trail::begin(index, trail::version::<M>());
        Ok(())
    }

    /// Goes on with the trail, once the entry at `index` was applied.
    fn extend_trail(&mut self, index: LogIndex) {
        if !self.replicated.has_calls() {
            return;
        }
        self.replicated.trail.extend(&self.brought);
        self.brought.shrink_to(BROUGHT_BYTES_KEPT);
        if index.0.is_multiple_of(self.surroundings.checkpoint_each) {
            self.take_checkpoint(index);
        }
    }

    fn take_checkpoint(&mut self, index: LogIndex) {
        let checkpoint = Checkpoint { index, trail: self.replicated.trail, state_hash: None };
        let number = index.0 / self.surroundings.checkpoint_each;
        let whole = number.is_multiple_of(checkpoints::STATE_EACH);
        let moment = whole.then(|| Moment { state: self.state.clone(), replicated: self.replicated.clone() });
        if whole {
            self.replicated.trail = Trail::begin(index, trail::version::<M>());
        }
        if self.surroundings.checkpoints.try_send(Taken { checkpoint, moment }).is_err() {
            tracing::debug!(%index, "a checkpoint is left out: the ones before are still being looked at");
        }
    }

    fn ask_for_snapshot_when_due(&mut self, bytes: u64) {
        self.entries_since_snapshot += 1;
        self.bytes_since_snapshot = self.bytes_since_snapshot.saturating_add(bytes);
        let policy = &self.surroundings.policy;
        let (entries, bytes) = (self.entries_since_snapshot, self.bytes_since_snapshot);
        if entries >= policy.after_entries || bytes >= policy.after_bytes {
            policy.due.notify_one();
        }
        if entries / OVERDUE >= policy.after_entries || bytes / OVERDUE >= policy.after_bytes {
            policy.overdue.store(true, Ordering::Relaxed);
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no text"
    }
}

impl<M: StateMachine> RaftStateMachine<Types> for Applier<M> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        let mut unpublished = 0;
        while let Some((entry, responder)) = entries.try_next().await? {
            // That none is left out is the log store's part: it refuses to leave gaps.
            let follows = self.last.is_none_or(|last| entry.log_id.index > last.index);
            if !follows {
                return Err(io::Error::other(format!(
                    "entry {} was given to apply after {}",
                    entry.log_id,
                    self.last.map_or_else(|| "none".to_owned(), |last| last.to_string())
                )));
            }
            let mut bytes = 0;
            self.brought.clear();
            self.brought.extend_from_slice(&entry.log_id.index.to_le_bytes());
            let answer = match entry.payload {
                EntryPayload::Blank => Answer::none(),
                EntryPayload::Membership(membership) => {
                    let is_member = |replica: ReplicaId| membership.get_node(&replica.0).is_some();
                    self.replicated.calls.retain_members(is_member);
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Answer::none()
                }
                EntryPayload::Normal(batch) => {
                    bytes = batch.command_bytes();
                    self.apply_batch(LogIndex(entry.log_id.index), batch)?
                }
            };
            self.last = Some(entry.log_id);
            self.extend_trail(LogIndex(entry.log_id.index));
            self.ask_for_snapshot_when_due(bytes);
            if let Some(responder) = responder {
                answers.push((responder, answer));
            }
            unpublished += 1;
            if unpublished == ENTRIES_PER_PUBLISH_MAX {
                unpublished = 0;
                self.publish_applied()?;
                answers.drain(..).for_each(|(to, answer)| to.send(answer));
                tokio::task::yield_now().await;
            }
        }
        self.publish_applied()?;
        answers.drain(..).for_each(|(to, answer)| to.send(answer));
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder<M>> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder<M> {
        self.entries_since_snapshot = 0;
        self.bytes_since_snapshot = 0;
        self.surroundings.policy.overdue.store(false, Ordering::Relaxed);
        let meta = SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() };
        let moment = Moment { state: self.state.clone(), replicated: self.replicated.clone() };
        SnapshotBuilder::new(moment, meta, self.at, self.surroundings.snapshots.clone(), self.surroundings.stop.clone())
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, data: SnapshotData) -> Result<(), io::Error> {
        // What counts is what the file says that is current now.
        let installed = snapshot::install(
            &self.surroundings.snapshots,
            data,
            &self.surroundings.formats,
            self.surroundings.stop.clone(),
        )
        .await?;
        let Installed { state, header, calls } = installed;
        self.replicated = Replicated::from_snapshot(&header, calls, trail::version::<M>());
        self.surroundings.formats.agree(self.replicated.format)?;
        self.state = state;
        self.at = self.at.max(header.at);
        self.last = header.meta.last_log_id;
        self.membership = header.meta.last_membership;
        self.entries_since_snapshot = 0;
        self.bytes_since_snapshot = 0;
        self.surroundings.policy.overdue.store(false, Ordering::Relaxed);
        self.publish();
        self.observe(&[])
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<openraft::alias::SnapshotOf<Types, SnapshotData>>, io::Error> {
        let Some(stored) = self.surroundings.snapshots.current().map_err(|error| io::Error::other(chain(&error)))?
        else {
            return Ok(None);
        };
        let SnapshotHeader { meta, .. } = SnapshotHeader::decode(stored.meta())?;
        Ok(Some(openraft::Snapshot { meta, snapshot: SnapshotData::Stored(stored) }))
    }
}
