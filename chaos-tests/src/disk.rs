//! A disk of its own for a test: ext4 in a file, on a loop device. It can be
//! cut from power and filled up. Needs root; whatever is missing is an error
//! that says so, never a test that is skipped.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// How long a mount point may stay busy after its last user was killed.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(30);

/// `_IOR('X', 125, __u32)` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: from now on
/// nothing reaches the disk, not even what the journal holds in memory. Called
/// through Python, because an ioctl is unsafe code here.
const SHUTDOWN: &str = "
import fcntl, os, struct, sys
mount = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(mount, 0x8004587d, struct.pack('I', 2))
";

/// A mounted disk. Unmounted and removed when dropped.
#[derive(Debug)]
pub struct Disk {
    place: TempDir,
}

impl Disk {
    /// Makes and mounts an empty disk of `megabytes` MiB.
    pub fn new(megabytes: u64) -> anyhow::Result<Self> {
        let place = tempfile::tempdir().context("no temporary folder")?;
        let image = std::fs::File::create(place.path().join("image"))?;
        image.set_len(megabytes << 20)?;
        std::fs::create_dir(place.path().join("mount"))?;
        let disk = Self { place };
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(disk.image()))?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.place.path().join("mount")
    }

    /// Cuts the power: what was not synced by now is lost.
    pub fn cut_power(&self) -> anyhow::Result<()> {
        run(Command::new("python3").args(["-c", SHUTDOWN]).arg(self.path())).map(drop)
    }

    /// Unmounts the disk and mounts it again, as after a restart of the machine.
    /// Whoever used it must be gone.
    pub fn restart(&self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> anyhow::Result<u64> {
        let state = rustix::fs::statvfs(self.path())?;
        Ok(state.f_bavail * state.f_frsize)
    }

    /// Takes up room until only `left_bytes` are free; with 0, to the last byte.
    pub fn fill(&self, left_bytes: u64) -> anyhow::Result<Ballast> {
        let path = self.path().join("ballast");
        let mut file = File::create(&path)?;
        for block_bytes in [1 << 20, 4 << 10, 1] {
            let block = vec![0x5a; block_bytes];
            while self.free_bytes()? > left_bytes + block_bytes as u64 || left_bytes == 0 {
                if file.write_all(&block).is_err() {
                    break;
                }
            }
        }
        // On a full disk there may be no room for the last of it.
        file.sync_all().ok();
        Ok(Ballast(path))
    }

    fn image(&self) -> PathBuf {
        self.place.path().join("image")
    }

    fn mount(&self) -> anyhow::Result<()> {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).args([self.image(), self.path()]))
            .map(drop)
            .context("this test needs root and a loop device")
    }

    fn unmount(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + UNMOUNT_LIMIT;
        loop {
            match run(Command::new("umount").arg(self.path())) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// A file that takes up room.
#[derive(Debug)]
#[must_use]
pub struct Ballast(PathBuf);

impl Ballast {
    /// Makes room again.
    pub fn remove(self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.0)?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a failing test may still have files open.
        let path: &Path = &self.path();
        let unmounted = Command::new("umount").arg("-l").arg(path).output();
        drop(unmounted);
    }
}

fn run(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", command.get_program().display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}
