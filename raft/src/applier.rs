//! Applies committed entries to the state machine, in one place and in order.
//!
//! Invariants: an entry is applied once, after all before it; stamps never run backwards; a state
//! is published before anybody, observer or caller, is told that its entries were applied; a panic
//! of the state machine stops the replica instead of leaving it half applied.

use crate::codec::{self, chain};
use crate::ids::{LogIndex, Stamp, UnixMillis};
use crate::machine::{Observer, StateMachine};
use crate::published::{Applied, Published};
use crate::snapshot::{self, Installed, SnapshotBuilder, SnapshotData};
use crate::types::{Answer, Batch, LogId, SnapshotMeta, StoredMembership, Types};
use berth_storage::Snapshots;
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The most entries that are applied before the state is published and their callers are answered.
const ENTRIES_PER_PUBLISH_MAX: usize = 256;

/// When to ask for a snapshot.
#[derive(Clone)]
pub(crate) struct SnapshotPolicy {
    pub(crate) after_entries: u64,
    pub(crate) after_bytes: u64,
    /// Notified when a snapshot is due.
    pub(crate) due: Arc<Notify>,
}

/// The state machine as the consensus library sees it.
pub(crate) struct Applier<M: StateMachine> {
    state: M,
    last: Option<LogId>,
    at: UnixMillis,
    membership: StoredMembership,
    published: Arc<Published<M>>,
    observer: Observer<M>,
    /// What the entries applied since the last publication brought.
    effects: Vec<M::Effect>,
    snapshots: Snapshots,
    policy: SnapshotPolicy,
    entries_since_snapshot: u64,
    bytes_since_snapshot: u64,
    stop: CancellationToken,
}

impl<M: StateMachine> Applier<M> {
    pub(crate) fn new(
        initial: M,
        published: Arc<Published<M>>,
        observer: Observer<M>,
        snapshots: Snapshots,
        policy: SnapshotPolicy,
        stop: CancellationToken,
    ) -> Self {
        observer(&initial, &[]);
        Self {
            state: initial,
            last: None,
            at: UnixMillis(0),
            membership: StoredMembership::default(),
            published,
            observer,
            effects: Vec::new(),
            snapshots,
            policy,
            entries_since_snapshot: 0,
            bytes_since_snapshot: 0,
            stop,
        }
    }

    fn publish(&self) {
        let applied = Applied {
            state: Arc::new(self.state.clone()),
            index: self.last.map(|last| LogIndex(last.index)),
            at: self.at,
        };
        self.published.publish(applied, self.state.next_deadline());
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

    /// Applies one batch; the outcomes are those of its commands, in order.
    fn apply_batch(&mut self, index: LogIndex, batch: &Batch) -> io::Result<Vec<M::Outcome>> {
        let decoded = batch.commands.iter().enumerate().map(|(position, bytes)| {
            M::decode_command(bytes).map_err(|error| {
                let reason = chain(error.as_ref());
                let text = format!("cannot decode command {position} of entry {index}: {reason}");
                io::Error::new(io::ErrorKind::InvalidData, text)
            })
        });
        // All are decoded before any is applied: an entry happens as a whole or not at all.
        let commands: Vec<M::Command> = decoded.collect::<io::Result<_>>()?;
        self.at = self.at.max(batch.at);
        let stamp = Stamp { index, at: self.at };
        let applied = catch_unwind(AssertUnwindSafe(|| {
            let Self { state, effects, .. } = self;
            state.advance(stamp, effects);
            commands.into_iter().map(|command| state.apply(stamp, command, effects)).collect()
        }));
        applied.map_err(|panic| {
            let text = panic_text(panic.as_ref());
            io::Error::other(format!("the state machine panicked at entry {index}: {text}"))
        })
    }

    fn ask_for_snapshot_when_due(&mut self, bytes: u64) {
        self.entries_since_snapshot += 1;
        self.bytes_since_snapshot = self.bytes_since_snapshot.saturating_add(bytes);
        if self.entries_since_snapshot >= self.policy.after_entries
            || self.bytes_since_snapshot >= self.policy.after_bytes
        {
            self.policy.due.notify_one();
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
            let answer = match entry.payload {
                EntryPayload::Blank => Answer::none(),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Answer::none()
                }
                EntryPayload::Normal(batch) => {
                    bytes = batch.commands.iter().map(|bytes| bytes.len() as u64).sum();
                    Answer::outcomes(self.apply_batch(LogIndex(entry.log_id.index), &batch)?)
                }
            };
            self.last = Some(entry.log_id);
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
        let meta = SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() };
        SnapshotBuilder::new(self.state.clone(), meta, self.at, self.snapshots.clone(), self.stop.clone())
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, data: SnapshotData) -> Result<(), io::Error> {
        // What counts is what the file says that is current now.
        let Installed { state, meta, at } = snapshot::install(&self.snapshots, data, self.stop.clone()).await?;
        self.state = state;
        self.at = self.at.max(at);
        self.last = meta.last_log_id;
        self.membership = meta.last_membership;
        self.entries_since_snapshot = 0;
        self.bytes_since_snapshot = 0;
        self.publish();
        self.observe(&[])
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<openraft::alias::SnapshotOf<Types, SnapshotData>>, io::Error> {
        let Some(stored) = self.snapshots.current().map_err(|error| io::Error::other(chain(&error)))? else {
            return Ok(None);
        };
        let (meta, _) = codec::decode_snapshot_meta(stored.meta())?;
        Ok(Some(openraft::Snapshot { meta, snapshot: SnapshotData::Stored(stored) }))
    }
}
