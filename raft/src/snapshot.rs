//! Snapshots: written from an immutable view beside the running state, read back on start, and
//! received from a leader.
//!
//! A full disk is waited for, here as everywhere: an error given to the library would stop the
//! replica for good. What was received is read before it becomes current, so that a file this build
//! cannot read never takes the place of one that it can.
//!
//! The content is what the state machine writes; from format 2 on the calls that are remembered
//! stand before it, and the header holds a hash of it all.

use crate::calls::Calls;
use crate::codec::{SnapshotHeader, chain};
use crate::formats::Formats;
use crate::ids::UnixMillis;
use crate::machine::StateMachine;
use crate::replicated::Replicated;
use crate::runtime;
use crate::trail::ContentHash;
use crate::types::{SnapshotMeta, Types};
use berth_storage::{Snapshot, SnapshotWriter, Snapshots};
use openraft::storage::RaftSnapshotBuilder;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const BUFFER_BYTES: usize = 256 * 1024;

/// How long a snapshot that found no room waits before it is tried again, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A snapshot on its way through the consensus library.
pub(crate) enum SnapshotData {
    /// A finished file of ours.
    Stored(Snapshot),
    /// Received from the leader and complete, but not current yet: that is decided by the library.
    Received { writer: Box<SnapshotWriter>, meta: Vec<u8>, index: u64 },
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match runtime::blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(format!("cannot {what}: {error}"))),
    }
}

fn storage_error(error: &berth_storage::Error) -> io::Error {
    let kind = match error {
        berth_storage::Error::Full { .. } => io::ErrorKind::StorageFull,
        berth_storage::Error::Io { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, chain(error))
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Remembers that the disk was full: a state machine may wrap the error into one of its own. Ends
/// the writing when the replica stops.
struct NotesFullDisk<W> {
    writer: W,
    full: bool,
    stop: CancellationToken,
}

impl<W: Write> Write for NotesFullDisk<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the replica stops while a snapshot is written"));
        }
        let written = self.writer.write(bytes);
        self.full |= written.as_ref().is_err_and(is_disk_full);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The pauses between attempts that find a full disk.
struct WaitsForRoom {
    pause: Duration,
    stop: CancellationToken,
}

impl WaitsForRoom {
    fn new(stop: CancellationToken) -> Self {
        Self { pause: RETRY_FIRST, stop }
    }

    /// Waits if `error` is a full disk; it comes back if it is another one or the replica stops.
    async fn wait_after(&mut self, error: io::Error) -> io::Result<()> {
        if !is_disk_full(&error) {
            return Err(error);
        }
        let retry_after_ms = self.pause.as_millis();
        tracing::warn!(%error, retry_after_ms, "no room for a snapshot, trying again later");
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(error),
            () = tokio::time::sleep(self.pause) => {}
        }
        self.pause = (self.pause * 2).min(RETRY_MAX);
        Ok(())
    }
}

/// Hashes what passes through.
struct Hashed<T> {
    inner: T,
    hash: ContentHash,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: ContentHash::default() }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// The state of one moment, of the machine and of this crate.
#[derive(Clone)]
pub(crate) struct Moment<M> {
    pub(crate) state: M,
    pub(crate) replicated: Replicated,
}

impl<M: StateMachine> Moment<M> {
    /// Writes the content of its snapshot.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.replicated.has_calls() {
            self.replicated.calls.write(out)?;
        }
        self.state.write_snapshot(out)
    }
}

/// Writes a snapshot of one moment while the state goes on.
pub(crate) struct SnapshotBuilder<M> {
    moment: Moment<M>,
    meta: SnapshotMeta,
    at: UnixMillis,
    snapshots: Snapshots,
    stop: CancellationToken,
}

impl<M: StateMachine> SnapshotBuilder<M> {
    pub(crate) fn new(
        moment: Moment<M>,
        meta: SnapshotMeta,
        at: UnixMillis,
        snapshots: Snapshots,
        stop: CancellationToken,
    ) -> Self {
        Self { moment, meta, at, snapshots, stop }
    }

    /// Writes it once; a full disk is an error.
    pub(crate) async fn write(&self) -> io::Result<Snapshot> {
        let moment = self.moment.clone();
        let snapshots = self.snapshots.clone();
        let (meta, at) = (self.meta.clone(), self.at);
        let stop = self.stop.clone();
        blocking("write a snapshot", move || {
            let writer = snapshots.begin().map_err(|error| storage_error(&error))?;
            let noting = NotesFullDisk { writer, full: false, stop };
            let mut out = BufWriter::with_capacity(BUFFER_BYTES, Hashed::new(noting));
            if let Err(error) = moment.write(&mut out) {
                let full = out.get_ref().inner.full;
                let kind = if full { io::ErrorKind::StorageFull } else { error.kind() };
                return Err(io::Error::new(kind, error));
            }
            let Hashed { inner: mut noting, hash } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            let index = meta.last_log_id.map_or(0, |last| last.index);
            let extra = moment.replicated.snapshot_extra(hash.finish());
            let header = SnapshotHeader { meta, at, extra }.encode();
            noting.writer.finish(header, index).map_err(|error| storage_error(&error))
        })
        .await
    }
}

impl<M: StateMachine> RaftSnapshotBuilder<Types> for SnapshotBuilder<M> {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<openraft::alias::SnapshotOf<Types, SnapshotData>, io::Error> {
        let mut room = WaitsForRoom::new(self.stop.clone());
        let stored = loop {
            match self.write().await {
                Ok(stored) => break stored,
                Err(error) => room.wait_after(error).await?,
            }
        };
        let SnapshotHeader { meta, .. } = SnapshotHeader::decode(stored.meta())?;
        tracing::info!(index = stored.index(), bytes = stored.length(), "snapshot written");
        Ok(openraft::Snapshot { meta, snapshot: SnapshotData::Stored(stored) })
    }
}

/// A state that came out of a snapshot.
#[derive(Debug)]
pub(crate) struct Installed<M> {
    pub(crate) state: M,
    pub(crate) header: SnapshotHeader,
    pub(crate) calls: Calls,
}

/// Reads the state out of `data` and makes it the current snapshot, if it is not. Waits while the
/// disk is full. Should a newer snapshot be current, then it is that one which is read. One in a
/// format that this replica does not read stops it.
pub(crate) async fn install<M: StateMachine>(
    snapshots: &Snapshots,
    mut data: SnapshotData,
    formats: &Arc<Formats>,
    stop: CancellationToken,
) -> io::Result<Installed<M>> {
    let mut room = WaitsForRoom::new(stop);
    loop {
        let (snapshots, formats) = (snapshots.clone(), Arc::clone(formats));
        let attempt = blocking("install a snapshot", move || {
            let installed = try_install(&snapshots, &mut data, &formats);
            Ok((data, installed))
        });
        let installed;
        (data, installed) = attempt.await?;
        match installed {
            Ok(installed) => return Ok(installed),
            Err(error) => room.wait_after(error).await?,
        }
    }
}

/// One attempt. On a full disk `data` stays as complete as it was.
fn try_install<M: StateMachine>(
    snapshots: &Snapshots,
    data: &mut SnapshotData,
    formats: &Formats,
) -> io::Result<Installed<M>> {
    let (read, current) = match data {
        SnapshotData::Stored(stored) => (read_state(stored, formats)?, adopt(snapshots, stored)?),
        SnapshotData::Received { writer, meta, index } => {
            let sealed = writer.seal(&meta, *index).map_err(|error| storage_error(&error))?;
            let read = read_state(&sealed, formats)?;
            let finished = writer.finish(meta, *index).map_err(|error| storage_error(&error))?;
            tracing::info!(
                index = finished.index(),
                bytes = finished.length(),
                "snapshot of another replica taken over"
            );
            (read, finished)
        }
    };
    let newest = read.header.meta.last_log_id.map_or(0, |last| last.index);
    if current.index() > newest {
        return read_state(&current, formats);
    }
    Ok(read)
}

/// The state in a snapshot, which has to be all that it holds.
fn read_state<M: StateMachine>(stored: &Snapshot, formats: &Formats) -> io::Result<Installed<M>> {
    let header = SnapshotHeader::decode(stored.meta())?;
    formats.require(header.format())?;
    let damaged = |reason: String| {
        let text = format!("cannot read the snapshot at entry {}: {reason}", stored.index());
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let mut input = BufReader::with_capacity(BUFFER_BYTES, Hashed::new(stored.open()));
    let calls = match header.extra {
        None => Calls::default(),
        Some(_) => Calls::read(&mut input).map_err(|error| damaged(chain(&error)))?,
    };
    let state = M::read_snapshot(&mut input).map_err(|error| damaged(chain(error.as_ref())))?;
    let mut rest = [0; 1];
    if input.read(&mut rest)? != 0 {
        return Err(damaged("it holds more than its state".to_owned()));
    }
    let found = input.get_ref().hash.finish();
    if header.extra.is_some_and(|extra| extra.content_hash != found) {
        return Err(damaged("its content is not what its header tells".to_owned()));
    }
    Ok(Installed { state, header, calls })
}

/// `stored` itself when it is the current snapshot here; a copy that is when it is not.
fn adopt(snapshots: &Snapshots, stored: &Snapshot) -> io::Result<Snapshot> {
    let current = snapshots.current().map_err(|error| storage_error(&error))?;
    if current.is_some_and(|current| current.meta() == stored.meta()) {
        return Ok(stored.clone());
    }
    let mut writer = snapshots.begin().map_err(|error| storage_error(&error))?;
    io::copy(&mut stored.open(), &mut writer)?;
    writer.finish(stored.meta(), stored.index()).map_err(|error| storage_error(&error))
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
