//! A snapshot on its way in: put together part by part, also over lost connections.
//!
//! The sender first offers a snapshot; what is here of the same one (same header, which holds the
//! hash of its content, and same length) need not be sent again, whoever sends it. An unfinished
//! one is dropped when another is offered, and after a time in which nothing came.
//!
//! Earlier builds send without offering: their parts are numbered, and begin again after every
//! disturbance.

use crate::codec::{SnapshotHeader, chain};
use crate::core::Core;
use crate::formats::Formats;
use crate::ids::ReplicaId;
use crate::machine::StateMachine;
use crate::snapshot::{SnapshotData, blocking};
use crate::wire::{Refusal, SnapshotEnd};
use berth_storage::{Snapshot, SnapshotWriter, Snapshots};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// How long an unfinished snapshot is kept when nothing comes.
const KEPT_WITHOUT_NEWS: Duration = Duration::from_mins(10);

/// Which snapshot the parts belong to.
#[derive(Clone, PartialEq, Eq)]
enum Identity {
    /// The one that was offered with this header.
    Offered { header: Vec<u8>, length: u64 },
    /// The so manyth of this sender.
    Numbered { from: ReplicaId, number: u64 },
}

/// The number that parts of an offered snapshot carry instead of its header.
pub(crate) fn number_of(header: &[u8]) -> u64 {
    xxh3_64(header)
}

/// An unfinished snapshot.
struct Transfer {
    identity: Identity,
    next_offset: u64,
    writer: Box<SnapshotWriter>,
    last_news: Instant,
}

/// One part, as it comes.
pub(crate) struct Part {
    pub(crate) snapshot: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_last: bool,
}

/// A complete snapshot, for the library to install or not.
pub(crate) struct Complete {
    pub(crate) data: SnapshotData,
    pub(crate) header: Vec<u8>,
    /// While this is held, the same one is not taken again.
    pub(crate) installing: Installing,
}

/// The mark that a snapshot is being installed.
pub(crate) struct Installing(Arc<Mutex<Option<Vec<u8>>>>);

impl Drop for Installing {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Puts the parts of a snapshot together, one snapshot at a time.
pub(crate) struct SnapshotReceiver {
    snapshots: Snapshots,
    formats: Arc<Formats>,
    current: AsyncMutex<Option<Transfer>>,
    /// The header of the one that is complete and being installed.
    installing: Arc<Mutex<Option<Vec<u8>>>>,
}

impl SnapshotReceiver {
    pub(crate) fn new(snapshots: Snapshots, formats: Arc<Formats>) -> Self {
        Self { snapshots, formats, current: AsyncMutex::new(None), installing: Arc::default() }
    }

    /// How much of the offered snapshot is here.
    pub(crate) async fn offered(&self, header: Vec<u8>, length: u64) -> Result<u64, Refusal> {
        let read = SnapshotHeader::decode(&header).map_err(|error| Refusal::Garbage(chain(&error)))?;
        self.formats.require(read.format()).map_err(|error| Refusal::SnapshotNotStored(error.to_string()))?;
        let mut current = self.current.lock().await;
        if self.is_installing(&header) {
            return Err(Refusal::SnapshotBusy);
        }
        if self.has(number_of(&header))?.is_some() {
            // Of an unfinished one no more will come: its rest must not be taken for what is asked
            // for next.
            *current = None;
            return Ok(length);
        }
        let identity = Identity::Offered { header, length };
        if let Some(transfer) = current.as_mut().filter(|transfer| transfer.identity == identity) {
            transfer.last_news = Instant::now();
            return Ok(transfer.next_offset);
        }
        *current = Some(self.begin(identity, current.take()).await?);
        Ok(0)
    }

    /// Takes one part of the snapshot that was offered last. With the last one it is complete, and
    /// comes back.
    pub(crate) async fn take(&self, part: Part) -> Result<Option<Complete>, Refusal> {
        let mut current = self.current.lock().await;
        // Taken out while it is written to; put back unless it is complete or damaged.
        let Some(mut transfer) = current.take() else {
            let stored = self.has(part.snapshot)?.filter(|stored| part.is_last && part.offset == stored.length());
            let Some(stored) = stored else { return Err(Refusal::SnapshotOutOfOrder) };
            let header = stored.meta().to_vec();
            return Ok(Some(self.complete(SnapshotData::Stored(stored), header)));
        };
        let (number, length) = match &transfer.identity {
            Identity::Offered { header, length } => (number_of(header), Some(*length)),
            Identity::Numbered { number, .. } => (*number, None),
        };
        let end = part.offset + part.bytes.len() as u64;
        let fits = (number, transfer.next_offset) == (part.snapshot, part.offset)
            && length.is_some_and(|length| if part.is_last { end == length } else { end <= length });
        if !fits {
            *current = Some(transfer);
            return Err(Refusal::SnapshotOutOfOrder);
        }
        let written;
        (transfer, written) = write(transfer, part.bytes).await?;
        if let Err(error) = written {
            // What was taken stays taken: it goes on from there, for instance when there is room.
            *current = Some(transfer);
            return Err(Refusal::SnapshotNotStored(error.to_string()));
        }
        if !part.is_last {
            *current = Some(transfer);
            return Ok(None);
        }
        let Transfer { identity: Identity::Offered { header, .. }, writer, .. } = transfer else {
            return Err(Refusal::SnapshotOutOfOrder);
        };
        let data = received(writer, &header)?;
        Ok(Some(self.complete(data, header)))
    }

    /// The same for a sender that does not offer.
    pub(crate) async fn take_numbered(
        &self,
        from: ReplicaId,
        number: u64,
        offset: u64,
        bytes: Vec<u8>,
        end: Option<&SnapshotEnd>,
    ) -> Result<Option<Complete>, Refusal> {
        let mut current = self.current.lock().await;
        let identity = Identity::Numbered { from, number };
        if offset == 0 {
            *current = Some(self.begin(identity.clone(), current.take()).await?);
        }
        let fits = |transfer: &Transfer| transfer.identity == identity && transfer.next_offset == offset;
        let Some(transfer) = current.take().filter(fits) else {
            return Err(Refusal::SnapshotOutOfOrder);
        };
        let (transfer, written) = write(transfer, bytes).await?;
        written.map_err(|error| Refusal::SnapshotNotStored(error.to_string()))?;
        let Some(end) = end else {
            *current = Some(transfer);
            return Ok(None);
        };
        let data = received(transfer.writer, &end.meta)?;
        Ok(Some(self.complete(data, end.meta.clone())))
    }

    /// Drops what has had no news for `silent`.
    async fn drop_stale(&self, silent: Duration) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|transfer| transfer.last_news.elapsed() >= silent) {
            tracing::info!("an unfinished snapshot is dropped: no more of it has come for long");
            *current = None;
        }
    }

    fn complete(&self, data: SnapshotData, header: Vec<u8>) -> Complete {
        *self.installing.lock().unwrap_or_else(PoisonError::into_inner) = Some(header.clone());
        Complete { data, header, installing: Installing(Arc::clone(&self.installing)) }
    }

    fn is_installing(&self, header: &[u8]) -> bool {
        self.installing.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(header)
    }

    /// The current snapshot, if it is the one with this number.
    fn has(&self, number: u64) -> Result<Option<Snapshot>, Refusal> {
        let current = self.snapshots.current().map_err(|error| Refusal::SnapshotNotStored(chain(&error)))?;
        Ok(current.filter(|current| number_of(current.meta()) == number))
    }

    /// A new transfer in place of the one before, whose file goes.
    async fn begin(&self, identity: Identity, before: Option<Transfer>) -> Result<Transfer, Refusal> {
        let snapshots = self.snapshots.clone();
        let begun = blocking("begin a snapshot", move || {
            drop(before);
            snapshots.begin().map_err(|error| io::Error::other(chain(&error)))
        });
        let writer = begun.await.map_err(|error| Refusal::SnapshotNotStored(error.to_string()))?;
        Ok(Transfer { identity, next_offset: 0, writer: Box::new(writer), last_news: Instant::now() })
    }
}

/// Writes where it may block. The transfer knows afterwards how much of it was taken.
async fn write(mut transfer: Transfer, bytes: Vec<u8>) -> Result<(Transfer, io::Result<()>), Refusal> {
    let written = blocking("write a received snapshot", move || {
        let mut rest = bytes.as_slice();
        let mut written = Ok(());
        while !rest.is_empty() && written.is_ok() {
            match transfer.writer.write(rest) {
                Ok(taken) => {
                    transfer.next_offset += taken as u64;
                    rest = &rest[taken..];
                }
                Err(error) => written = Err(error),
            }
        }
        transfer.last_news = Instant::now();
        Ok((transfer, written))
    });
    written.await.map_err(|error| Refusal::SnapshotNotStored(error.to_string()))
}

fn received(writer: Box<SnapshotWriter>, header: &[u8]) -> Result<SnapshotData, Refusal> {
    let meta = SnapshotHeader::decode(header).map_err(|error| Refusal::Garbage(chain(&error)))?.meta;
    let index = meta.last_log_id.map_or(0, |last| last.index);
    Ok(SnapshotData::Received { writer, meta: header.to_vec(), index })
}

/// Drops unfinished snapshots in time. Runs until the replica stops.
pub(crate) async fn sweep<M: StateMachine>(core: Arc<Core<M>>) {
    loop {
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(KEPT_WITHOUT_NEWS / 10) => core.incoming.drop_stale(KEPT_WITHOUT_NEWS).await,
        }
    }
}

#[cfg(test)]
#[path = "incoming_tests.rs"]
mod tests;
