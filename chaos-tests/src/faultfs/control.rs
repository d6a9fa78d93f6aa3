//! The control file: words of 64 bits that the library in the process has
//! mapped, and that are written here like any file. A word is written at once,
//! so the process sees the old value or the new one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

const MAGIC: u64 = 0x314c_5455_4146;
const BYTES: u64 = 4096;
const FILTER_BYTES: usize = 256;
const NANOSECONDS_PER_SECOND: i64 = 1_000_000_000;

/// Places of words; `preload/faults.c` has the same.
mod word {
    pub(super) const MAGIC: u64 = 0;
    pub(super) const CLASSES: u64 = 8;
    pub(super) const CLASS_WORDS: u64 = 4;
    pub(super) const SHORT_LEFT: u64 = 24;
    pub(super) const SHORT_HITS: u64 = 25;
    pub(super) const SYNC_DELAY_MS: u64 = 26;
    pub(super) const SYNC_DELAYS: u64 = 27;
    pub(super) const CLOCK_OFFSET_NS: u64 = 28;
    pub(super) const CLOCK_DRIFT_PPM: u64 = 29;
    pub(super) const CLOCK_DRIFT_SINCE_NS: u64 = 30;
    pub(super) const CLOCK_READS: u64 = 31;
    pub(super) const REFUSED: u64 = 32;
    pub(super) const BROKEN: u64 = 33;
    pub(super) const LYING_SYNCS: u64 = 34;
    pub(super) const LIES: u64 = 35;
    pub(super) const FILTER: u64 = 64;
}

/// Calls that fail alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Reading from files.
    Reads,
    /// Writing to files, changing their lengths.
    Writes,
    /// Syncing files and folders.
    Syncs,
    /// Making, renaming and removing files and folders.
    Names,
}

/// How many calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// So many, then no more.
    Next(u64),
    /// All from now on.
    All,
}

impl Extent {
    const fn number(self) -> u64 {
        match self {
            Self::Next(count) => count,
            Self::All => u64::MAX,
        }
    }
}

/// What is to fail in one process.
#[derive(Debug)]
pub struct Control(File);

impl Control {
    /// A file with which nothing fails.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(BYTES)?;
        let control = Self(file);
        control.set(word::MAGIC, MAGIC)?;
        Ok(control)
    }

    /// Calls of a class fail with an error.
    pub fn fail(&self, class: Class, extent: Extent, error: Errno) -> anyhow::Result<()> {
        let first = Self::first(class);
        self.set(first + 1, u64::from(error.raw_os_error().unsigned_abs()))?;
        self.set(first, extent.number())
    }

    /// Writes of more than one byte take half of what they are given.
    pub fn shorten_writes(&self, extent: Extent) -> anyhow::Result<()> {
        self.set(word::SHORT_LEFT, extent.number())
    }

    /// Every sync takes so much longer.
    pub fn slow_syncs(&self, delay: Duration) -> anyhow::Result<()> {
        self.set(word::SYNC_DELAY_MS, u64::try_from(delay.as_millis())?)
    }

    /// Syncs say that they have synced, and have not: a broken disk, or a
    /// program that forgot to sync.
    pub fn lie_about_syncs(&self, lies: bool) -> anyhow::Result<()> {
        self.set(word::LYING_SYNCS, u64::from(lies))
    }

    /// Faults only hit files whose path holds this text; with an empty one, all.
    pub fn only(&self, text: &str) -> anyhow::Result<()> {
        ensure!(text.len() < FILTER_BYTES, "a filter has less than {FILTER_BYTES} bytes");
        let mut bytes = [0; FILTER_BYTES];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(self.0.write_all_at(&bytes, word::FILTER * 8)?)
    }

    /// The disk fails no more. The clock stays as it is.
    pub fn mend_disk(&self) -> anyhow::Result<()> {
        for class in [Class::Reads, Class::Writes, Class::Syncs, Class::Names] {
            self.set(Self::first(class), 0)?;
        }
        for place in [word::SHORT_LEFT, word::SYNC_DELAY_MS, word::LYING_SYNCS] {
            self.set(place, 0)?;
        }
        self.only("")
    }

    /// Moves the clock of the day: forward, or back below zero.
    pub fn shift_clock(&self, milliseconds: i64) -> anyhow::Result<()> {
        let offset = self.clock_error_ns()?.saturating_add(milliseconds.saturating_mul(1_000_000));
        self.set_clock(offset, self.signed(word::CLOCK_DRIFT_PPM)?)
    }

    /// Lets the clock of the day run too fast by so many parts of a million, or
    /// too slowly.
    pub fn let_clock_drift(&self, parts_per_million: i64) -> anyhow::Result<()> {
        self.set_clock(self.clock_error_ns()?, parts_per_million)
    }

    /// The clock of the day is right again; that, too, is a jump.
    pub fn mend_clock(&self) -> anyhow::Result<()> {
        self.set_clock(0, 0)
    }

    /// By how much the clock is wrong now, in nanoseconds.
    pub fn clock_error_ns(&self) -> anyhow::Result<i64> {
        let since = monotonic_ns() - self.signed(word::CLOCK_DRIFT_SINCE_NS)?;
        let drifted = i128::from(since) * i128::from(self.signed(word::CLOCK_DRIFT_PPM)?) / 1_000_000;
        Ok(self.signed(word::CLOCK_OFFSET_NS)?.saturating_add(i64::try_from(drifted)?))
    }

    fn set_clock(&self, offset_ns: i64, parts_per_million: i64) -> anyhow::Result<()> {
        // Without drift in between, so that no reader multiplies the old drift
        // by the new time.
        self.set(word::CLOCK_DRIFT_PPM, 0)?;
        self.set_signed(word::CLOCK_OFFSET_NS, offset_ns)?;
        self.set_signed(word::CLOCK_DRIFT_SINCE_NS, monotonic_ns())?;
        self.set_signed(word::CLOCK_DRIFT_PPM, parts_per_million)
    }

    /// How many calls of a class have failed so far.
    pub fn hits(&self, class: Class) -> anyhow::Result<u64> {
        self.get(Self::first(class) + 2)
    }

    /// How many calls of a class there were so far, on files of the folder.
    pub fn seen(&self, class: Class) -> anyhow::Result<u64> {
        self.get(Self::first(class) + 3)
    }

    /// How many writes were shortened so far.
    pub fn shortened(&self) -> anyhow::Result<u64> {
        self.get(word::SHORT_HITS)
    }

    /// How many syncs were slow so far.
    pub fn slowed(&self) -> anyhow::Result<u64> {
        self.get(word::SYNC_DELAYS)
    }

    /// How many syncs have lied so far.
    pub fn lies(&self) -> anyhow::Result<u64> {
        self.get(word::LIES)
    }

    /// How often the clock of the day was read so far.
    pub fn clock_reads(&self) -> anyhow::Result<u64> {
        self.get(word::CLOCK_READS)
    }

    /// How many calls were refused because the journal could not follow them.
    pub fn refused(&self) -> anyhow::Result<u64> {
        self.get(word::REFUSED)
    }

    /// An error when the journal has holes.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let broken = self.get(word::BROKEN)?;
        ensure!(broken == 0, "the journal of the faults missed {broken} changes; is its disk full?");
        Ok(())
    }

    const fn first(class: Class) -> u64 {
        word::CLASSES + word::CLASS_WORDS * class as u64
    }

    fn set(&self, place: u64, value: u64) -> anyhow::Result<()> {
        Ok(self.0.write_all_at(&value.to_ne_bytes(), place * 8)?)
    }

    fn get(&self, place: u64) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, place * 8)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn set_signed(&self, place: u64, value: i64) -> anyhow::Result<()> {
        self.set(place, u64::from_ne_bytes(value.to_ne_bytes()))
    }

    fn signed(&self, place: u64) -> anyhow::Result<i64> {
        Ok(i64::from_ne_bytes(self.get(place)?.to_ne_bytes()))
    }
}

/// The clock that the library measures drift by.
fn monotonic_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * NANOSECONDS_PER_SECOND + now.tv_nsec
}
