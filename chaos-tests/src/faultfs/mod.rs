//! Faults of one process's disk and clock, by a library that is loaded into it
//! before everything else (`preload/faults.c`): errors, short writes, a full
//! disk, slow or lying syncs, a clock that jumps or drifts, and a loss of power
//! that takes away what was not synced, whole or in part.
//!
//! The process needs nothing for it but to be linked to libc dynamically. What
//! it does past libc, by system calls of its own, is not seen: locks on files
//! are, for one.
//!
//! - [`control`]: what is to fail, while the process runs.
//! - [`power`]: the loss of power, after it was killed.
//! - [`damage`]: flipped bits and missing files, after it was stopped.

pub mod control;
pub mod damage;
mod journal;
pub mod power;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

use crate::preload;
use crate::random::Random;
use control::Control;
use power::{Kept, Loss};

/// The library, built.
#[derive(Debug, Clone)]
pub struct Library(PathBuf);

impl Library {
    /// Builds it into a folder; needs a C compiler.
    pub fn build(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self(preload::build("faults", folder)?))
    }
}

/// The disk and the clock of one process.
#[derive(Debug)]
pub struct Faults {
    library: Library,
    folder: PathBuf,
    control: Control,
    control_path: PathBuf,
    journal: PathBuf,
}

impl Faults {
    /// Faults for what lies in `folder`. `place` is a folder beside it, on the
    /// same disk, for what is needed here; it is made if need be.
    pub fn new(library: &Library, folder: &Path, place: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        // Whole, and without links: paths are compared by their text.
        let folder = folder.canonicalize()?;
        std::fs::create_dir_all(place)?;
        let place = place.canonicalize()?;
        ensure!(!place.starts_with(&folder), "{} is inside of {}", place.display(), folder.display());
        let journal = place.join("journal");
        std::fs::create_dir_all(&journal)?;
        let control_path = place.join("control");
        let control = Control::create(&control_path)?;
        Ok(Self { library: library.clone(), folder, control, control_path, journal })
    }

    /// Puts a process that is about to be started under them.
    pub fn attach(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library.0)
            .env("FAULTS_CONTROL", &self.control_path)
            .env("FAULTS_FOLDER", &self.folder)
            .env("FAULTS_JOURNAL", &self.journal);
    }

    /// What is to fail.
    pub const fn control(&self) -> &Control {
        &self.control
    }

    /// The folder whose files are meant.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a loss of power at the moment of the process's death leaves. The
    /// process must be dead. What is left is on the disk afterwards.
    pub fn lose_power(&self, kept: Kept, random: &mut Random) -> anyhow::Result<Loss> {
        self.control.check()?;
        power::lose(&self.folder, &self.journal, kept, random)
    }

    /// Everything in the folder counts as synced: it is another disk, as it were.
    /// The process must be dead.
    pub fn forget(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(&self.journal)? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Throws away what the journal needs no longer. The process must be dead.
    pub fn tidy(&self) -> anyhow::Result<()> {
        self.control.check()?;
        journal::tidy_names(&self.journal)
    }
}
