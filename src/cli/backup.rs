//! `berth backup`: the state of a cluster in one file.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::socket::Socket;
use crate::broker::backup::format::{BackupError, Checked, check, show_checksum};
use crate::domain::{Fleet, Timestamp};

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// Options of `berth backup`.
#[derive(Debug, clap::Args)]
#[command(subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    broker: Socket,
    /// The file to write; mode 600. It appears when it is whole.
    #[arg(long, value_name = "FILE", required = true)]
    output: Option<PathBuf>,
    /// Of what this replica knows, also when no majority of the replicas can
    /// be reached. What was acknowledged last may be missing.
    #[arg(long)]
    stale: bool,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
}

/// Verbs of `berth backup`.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check a backup, byte by byte, and show what is in it. No broker is
    /// needed.
    Verify {
        /// The backup.
        file: PathBuf,
    },
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Some(Command::Verify { file }) => verify(&file),
        None => {
            let output = args.output.context("say where to with --output FILE")?;
            // A file that was begun is removed by what is dropped here.
            tokio::select! {
                made = make(&args.broker, &output, args.stale, args.force) => made,
                () = super::interrupted() => bail!("interrupted; no backup was made"),
            }
        }
    }
}

fn verify(file: &Path) -> anyhow::Result<()> {
    let backup = check(file)?;
    let fleet = backup.fleet()?;
    show(&backup);
    show_fleet(&fleet);
    say!("{} is good.", file.display());
    Ok(())
}

async fn make(broker: &Socket, output: &Path, stale: bool, force: bool) -> anyhow::Result<()> {
    if !force && output.symlink_metadata().is_ok() {
        bail!("{} exists already; name another file, or replace it with --force", output.display());
    }
    let beside = Unfinished::create(output)?;
    let path = if stale { "/backup?stale=true" } else { "/backup" };
    let failed = || format!("cannot write {}", beside.path.display());
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, &beside.file);
    broker.fetch(path, |piece| out.write_all(piece)).await?;
    out.flush().with_context(failed)?;
    drop(out);
    beside.file.sync_all().with_context(failed)?;
    let backup = match check(&beside.path) {
        Ok(backup) => backup,
        Err(BackupError::Length { .. } | BackupError::Foreign { .. }) => {
            bail!("the broker broke the backup off; its log says why")
        }
        Err(error) => return Err(error.into()),
    };
    beside.finish(output, force)?;
    show(&backup);
    Ok(())
}

/// What a backup says about itself.
pub(super) fn show(backup: &Checked) {
    let header = &backup.header;
    say!("cluster: {}", header.cluster);
    say!("replica: {}", header.replica);
    say!("index: {}", header.index);
    say!("time: {}", show_time(header.at));
    say!("bytes: {}", backup.bytes);
    say!("checksum: {}", show_checksum(&backup.checksum));
    if header.is_stale {
        say!("stale: made without asking the other replicas; what was acknowledged last may be missing");
    }
}

fn show_fleet(fleet: &Fleet) {
    say!("servers: {}", fleet.server_count());
    say!("sessions: {}", fleet.session_count());
    say!("waiting sessions: {}", fleet.waiting_count());
    say!("clients: {}", fleet.clients().count());
    say!("keys: {}", fleet.keys().count());
    say!("kept requests: {}", fleet.kept_requests().count());
    say!("journal records: {}", fleet.journal().after(None).count());
}

fn show_time(at: Timestamp) -> String {
    let time = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    time.map_or_else(|| format!("{} ms after the Unix epoch", at.0), |time| time.to_string())
}

/// A file that is removed unless it is finished.
struct Unfinished {
    path: PathBuf,
    file: File,
    is_finished: bool,
}

impl Unfinished {
    /// A new file beside `output`, for its owner alone.
    fn create(output: &Path) -> anyhow::Result<Self> {
        let mut name = output.file_name().with_context(|| format!("{} names no file", output.display()))?.to_owned();
        name.push(format!(".{:016x}.new", rand::random::<u64>()));
        let path = output.with_file_name(name);
        let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = created.with_context(|| format!("cannot create {}", path.display()))?;
        let unfinished = Self { path, file, is_finished: false };
        // Whatever the mask of the process says.
        unfinished
            .file
            .set_permissions(fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot set the mode of {}", unfinished.path.display()))?;
        Ok(unfinished)
    }

    /// Gives it its name, durably. Another file of that name is replaced only
    /// when that is asked for.
    fn finish(mut self, output: &Path, replace: bool) -> anyhow::Result<()> {
        let renamed = if replace {
            fs::rename(&self.path, output)
        } else {
            match renameat_with(CWD, &self.path, CWD, output, RenameFlags::NOREPLACE) {
                // Not every file system knows how.
                Err(Errno::INVAL | Errno::NOSYS) if !output.exists() => fs::rename(&self.path, output),
                renamed => renamed.map_err(Into::into),
            }
        };
        renamed.with_context(|| format!("cannot rename the backup to {}", output.display()))?;
        self.is_finished = true;
        let folder = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.with_context(|| format!("cannot sync the folder {}", folder.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            // It is of no use to anybody; a failure leaves a name that says so.
            let _ = fs::remove_file(&self.path);
        }
    }
}
