//! Snapshots: written from an immutable view beside the running state, read back on start, and
//! received from a leader.
//!
//! A full disk is waited for, here as everywhere: an error given to the library would stop the
//! replica for good. What was received is read before it becomes current, so that a file this build
//! cannot read never takes the place of one that it can.

use crate::codec::{self, chain};
use crate::ids::UnixMillis;
use crate::machine::StateMachine;
use crate::runtime;
use crate::types::{SnapshotMeta, Types};
use berth_storage::{Snapshot, SnapshotWriter, Snapshots};
use openraft::storage::RaftSnapshotBuilder;
use std::io::{self, BufReader, BufWriter, Read, Write};
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

/// Writes a snapshot of one moment while the state goes on.
pub(crate) struct SnapshotBuilder<M> {
    view: M,
    meta: SnapshotMeta,
    at: UnixMillis,
    snapshots: Snapshots,
    stop: CancellationToken,
}

impl<M: StateMachine> SnapshotBuilder<M> {
    pub(crate) fn new(
        view: M,
        meta: SnapshotMeta,
        at: UnixMillis,
        snapshots: Snapshots,
        stop: CancellationToken,
    ) -> Self {
        Self { view, meta, at, snapshots, stop }
    }

    async fn write(&self) -> io::Result<Snapshot> {
        let view = self.view.clone();
        let snapshots = self.snapshots.clone();
        let header = codec::encode_snapshot_meta(&self.meta, self.at);
        let index = self.meta.last_log_id.map_or(0, |last| last.index);
        let stop = self.stop.clone();
        blocking("write a snapshot", move || {
            let writer = snapshots.begin().map_err(|error| storage_error(&error))?;
            let noting = NotesFullDisk { writer, full: false, stop };
            let mut out = BufWriter::with_capacity(BUFFER_BYTES, noting);
            if let Err(error) = view.write_snapshot(&mut out) {
                let full = out.get_ref().full;
                let kind = if full { io::ErrorKind::StorageFull } else { error.kind() };
                return Err(io::Error::new(kind, error));
            }
            let mut noting = out.into_inner().map_err(io::IntoInnerError::into_error)?;
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
        let (meta, _) = codec::decode_snapshot_meta(stored.meta())?;
        tracing::info!(index = stored.index(), bytes = stored.length(), "snapshot written");
        Ok(openraft::Snapshot { meta, snapshot: SnapshotData::Stored(stored) })
    }
}

/// A state that came out of a snapshot.
#[derive(Debug)]
pub(crate) struct Installed<M> {
    pub(crate) state: M,
    pub(crate) meta: SnapshotMeta,
    pub(crate) at: UnixMillis,
}

/// Reads the state out of `data` and makes it the current snapshot, if it is not. Waits while the
/// disk is full. Should a newer snapshot be current, then it is that one which is read.
pub(crate) async fn install<M: StateMachine>(
    snapshots: &Snapshots,
    mut data: SnapshotData,
    stop: CancellationToken,
) -> io::Result<Installed<M>> {
    let mut room = WaitsForRoom::new(stop);
    loop {
        let snapshots = snapshots.clone();
        let attempt = blocking("install a snapshot", move || {
            let installed = try_install(&snapshots, &mut data);
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
fn try_install<M: StateMachine>(snapshots: &Snapshots, data: &mut SnapshotData) -> io::Result<Installed<M>> {
    let (read, current) = match data {
        SnapshotData::Stored(stored) => (read_state(stored)?, adopt(snapshots, stored)?),
        SnapshotData::Received { writer, meta, index } => {
            let sealed = writer.seal(&meta, *index).map_err(|error| storage_error(&error))?;
            let read = read_state(&sealed)?;
            (read, writer.finish(meta, *index).map_err(|error| storage_error(&error))?)
        }
    };
    let newest = read.meta.last_log_id.map_or(0, |last| last.index);
    if current.index() > newest {
        return read_state(&current);
    }
    Ok(read)
}

/// The state in a snapshot, which has to be all that it holds.
fn read_state<M: StateMachine>(stored: &Snapshot) -> io::Result<Installed<M>> {
    let (meta, at) = codec::decode_snapshot_meta(stored.meta())?;
    let mut input = BufReader::with_capacity(BUFFER_BYTES, stored.open());
    let state = M::read_snapshot(&mut input).map_err(|error| {
        let text = format!("cannot read the snapshot at entry {}: ", stored.index());
        io::Error::new(io::ErrorKind::InvalidData, text + &chain(error.as_ref()))
    })?;
    let mut rest = [0; 1];
    if input.read(&mut rest)? != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the snapshot at entry {} holds more than its state", stored.index()),
        ));
    }
    Ok(Installed { state, meta, at })
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
