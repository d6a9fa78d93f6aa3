//! sled, with what it takes to rely on it.
//!
//! - `flush` alone does not survive a power cut (it ends in `sync_file_range`):
//!   [`Tree::sync`] follows it with an fdatasync of sled's file, through a
//!   descriptor of our own.
//! - sled's log is cut in segments. What survives a power cut without having
//!   been synced is the beginning of what was written only while that lies in
//!   two segments: from the third on sled takes the first for safely stored, so
//!   that later batches may survive earlier ones, and it may write over pages
//!   whose new place is not on disk yet. Segments are therefore large, batches
//!   small, and [`Tree::apply`] syncs long before a segment is full.
//! - Files in `blobs/` are never synced by sled. Values are kept so small that
//!   there are none; should there be one after all, it is synced here.
//! - sled may panic on damaged files and after I/O errors: every call is
//!   guarded, and panics become errors.
//! - After an I/O error sled refuses to work until it is opened again.
//! - sled keeps an index of its log in files `snap.*`, written beside and
//!   renamed. It takes an unfinished one (`snap.*.generating`), which a kill or a
//!   full disk leaves, for the newest, and calls the database damaged: they are
//!   removed before it is opened.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::{Error, durable};

/// How long opening waits for sled to let go of a file that this process has
/// just closed: some of its last references are dropped by other threads.
const REOPEN_LIMIT: Duration = Duration::from_secs(10);

/// Length of sled's segments. Part of the format: sled refuses another one.
const SEGMENT_BYTES: usize = 8 << 20;

/// What sled may have written since the last sync before the next one is due.
/// Together with what one batch makes sled write (records, the leaves they
/// change, and a page moved out of an old segment for each of these) it must
/// stay below a segment.
const UNSYNCED_BYTES_MAX: i64 = 1 << 20;

/// The most records in one batch, and the most bytes. sled rewrites a leaf with
/// every tenth record and when it splits, and moves a page of up to 105 KiB each
/// time: less than 6 MiB for such a batch. Nor must sled have to read back,
/// within a batch, pages that this batch changed: it would wait for itself.
pub(crate) const BATCH_RECORDS_MAX: usize = 160;
/// See [`BATCH_RECORDS_MAX`].
pub(crate) const BATCH_BYTES_MAX: usize = 192 << 10;

/// An open tree.
#[derive(Debug)]
pub(crate) struct Tree {
    folder: PathBuf,
    db: sled::Db,
    /// Position in sled's log up to which everything is durable.
    synced: AtomicI64,
    /// sled's data file, for fdatasync.
    file: File,
}

impl Tree {
    /// Makes an empty database at `folder`, whole or not at all.
    pub(crate) fn create(folder: &Path, cache_bytes: u64) -> Result<(), Error> {
        let beside = folder.with_extension("new");
        if beside.exists() {
            tracing::info!(folder = %beside.display(), "removing an unfinished database");
            fs::remove_dir_all(&beside).map_err(|error| Error::io("remove the folder", &beside, error))?;
        }
        let database = Self::open(&beside, cache_bytes)?;
        database.flush()?;
        database.sync()?;
        drop(database);
        sync_tree(&beside)?;
        let handle = File::open(&beside).map_err(|error| Error::io("open the folder", &beside, error))?;
        durable::replace(&handle, &beside, folder)
    }

    /// Opens the database at `folder` and makes what recovery did durable.
    /// The caller holds the lock of the data folder.
    pub(crate) fn open(folder: &Path, cache_bytes: u64) -> Result<Self, Error> {
        remove_unfinished_index(folder)?;
        let config = sled::Config::new()
            .path(folder)
            .cache_capacity(cache_bytes)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None);
        let deadline = Instant::now() + REOPEN_LIMIT;
        let tree = loop {
            match guarded(folder, "open the database", || config.open()) {
                Err(error) if is_busy(&error) && Instant::now() < deadline => {
                    // Each call moves the garbage collection on in which sled's
                    // last references to the file wait to be dropped.
                    for _ in 0..512 {
                        let _ = config.global_error();
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                result => break result?,
            }
        };
        sync_tree(folder)?;
        let path = folder.join("db");
        let file =
            File::options().read(true).write(true).open(&path).map_err(|error| Error::io("open", &path, error))?;
        Ok(Self {
            folder: folder.to_owned(),
            synced: AtomicI64::new(tree.context.pagecache.log.stable_offset()),
            db: tree,
            file,
        })
    }

    /// Applies a batch, of at most [`BATCH_RECORDS_MAX`] and [`BATCH_BYTES_MAX`]:
    /// after a crash either all of it is there or nothing, and nothing of later
    /// batches without it.
    pub(crate) fn apply(&self, batch: sled::Batch) -> Result<(), Error> {
        guarded(&self.folder, "write to", || self.db.apply_batch(batch))?;
        self.flush()?;
        if self.written() - self.synced.load(Ordering::Relaxed) > UNSYNCED_BYTES_MAX {
            self.sync()?;
        }
        Ok(())
    }

    /// Position in sled's log up to which it was handed to the operating system.
    fn written(&self) -> i64 {
        self.db.context.pagecache.log.stable_offset()
    }

    /// Hands everything applied to the operating system: it survives the death
    /// of this process, not yet a power cut.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        guarded(&self.folder, "write to", || self.db.flush()).map(drop)
    }

    /// Makes everything flushed durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.sync_blobs()?;
        let written = self.written();
        let path = self.folder.join("db");
        // A failed fdatasync leaves unknown what is on disk, whatever its
        // reason: it must never be taken for a full disk that can be waited for.
        self.file.sync_data().map_err(|error| {
            let error = std::io::Error::other(error);
            Error::io("sync", &path, error)
        })?;
        self.synced.store(written, Ordering::Relaxed);
        Ok(())
    }

    fn sync_blobs(&self) -> Result<(), Error> {
        let folder = self.folder.join("blobs");
        let list = |error| Error::io("list", &folder, error);
        let mut found = false;
        for file in fs::read_dir(&folder).map_err(list)? {
            let path = file.map_err(list)?.path();
            match durable::sync_file(&path) {
                // sled removes them as it likes.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                result => result?,
            }
            found = true;
        }
        if found {
            durable::sync_folder(&folder)?;
        }
        Ok(())
    }

    /// Calls `each` with the records from `from` up to `until`, in key order,
    /// until it answers false.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        until: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut records = self.db.range(from..until);
        while let Some((key, value)) = guarded(&self.folder, "read from", || records.next().transpose())? {
            if !each(&key, &value)? {
                break;
            }
        }
        Ok(())
    }

    /// Up to `limit` keys from `from` up to `until`: the first ones in key order.
    pub(crate) fn first_keys(&self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<sled::IVec>, Error> {
        guarded(&self.folder, "read from", || self.db.range(from..until).keys().take(limit).collect())
    }

    /// Up to `limit` keys from `from` up to `until`: the last ones, backwards.
    pub(crate) fn last_keys(&self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<sled::IVec>, Error> {
        guarded(&self.folder, "read from", || self.db.range(from..until).keys().rev().take(limit).collect())
    }

    /// Lets a test change it by hand.
    #[cfg(test)]
    pub(crate) fn change(&self, change: impl FnOnce(&sled::Db)) {
        change(&self.db);
    }

    /// Closes the database. sled writes when it is dropped, and may panic.
    pub(crate) fn close(self) -> Result<(), Error> {
        let Self { folder, db, file, .. } = self;
        drop(file);
        guarded(&folder, "close", || {
            drop(db);
            Ok(())
        })
    }
}

/// Calls sled and turns its panics and errors into ours.
fn guarded<T>(folder: &Path, attempt: &'static str, call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(convert(folder, attempt, error)),
        Err(panic) => {
            Err(Error::damaged(folder, "the database", format!("sled panicked: {}", panic_text(panic.as_ref()))))
        }
    }
}

fn convert(folder: &Path, attempt: &'static str, error: sled::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    match error {
        sled::Error::Io(error) if !matches!(error.kind(), InvalidData | NotFound | UnexpectedEof) => {
            Error::io(attempt, folder, error)
        }
        error => Error::damaged(folder, "the database", error.to_string()),
    }
}

/// Whether sled's own lock on its file stands in the way.
fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.to_string().contains("could not acquire lock"))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no reason given")
}

/// Removes what sled did not finish writing; what it was to replace is there.
fn remove_unfinished_index(folder: &Path) -> Result<(), Error> {
    let list = |error| Error::io("list", folder, error);
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(list(error)),
    };
    for file in files {
        let path = file.map_err(list)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(file = %path.display(), "removing an unfinished index of the database");
            fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
    }
    Ok(())
}

/// Syncs the database's files, `blobs/` and the folder.
fn sync_tree(folder: &Path) -> Result<(), Error> {
    let list = |error| Error::io("list", folder, error);
    for file in fs::read_dir(folder).map_err(list)? {
        let path = file.map_err(list)?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            durable::sync_file(&path)?;
        }
    }
    durable::sync_folder(folder)
}
