//! Log files that begin anew each day or hour, named as the original's:
//! `agent.log.2025-01-31`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::config::{Log, Rotation};
use crate::files::{self, FileError};

/// Log files that are kept; older ones are removed when a new one begins.
const FILES_KEPT: usize = 30;

/// Writes log lines into the file of the day. Give it to `tracing-subscriber`
/// as its writer.
#[derive(Debug)]
pub struct LogFile {
    log: Log,
    open: Mutex<Option<(PathBuf, File)>>,
}

impl LogFile {
    /// Opens the current file, making the folder when it is missing.
    pub fn open(log: &Log) -> Result<Self, FileError> {
        files::make_folder(&log.directory, 0o750)?;
        let file = Self { log: log.clone(), open: Mutex::default() };
        file.write_line(b"", jiff::Timestamp::now()).map_err(FileError::of("write", &log.directory))?;
        Ok(file)
    }

    fn path_at(&self, now: jiff::Timestamp) -> PathBuf {
        let now = now.to_zoned(jiff::tz::TimeZone::UTC);
        self.log.directory.join(match self.log.rotation {
            Rotation::Daily => format!("agent.log.{}", now.strftime("%Y-%m-%d")),
            Rotation::Hourly => format!("agent.log.{}", now.strftime("%Y-%m-%d-%H")),
            Rotation::Never => "agent.log".to_owned(),
        })
    }

    fn write_line(&self, line: &[u8], now: jiff::Timestamp) -> io::Result<()> {
        let path = self.path_at(now);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match open.take() {
            Some((current, file)) if current == path => file,
            _ => {
                let file = OpenOptions::new().create(true).append(true).mode(0o640).open(&path)?;
                self.remove_old();
                file
            }
        };
        let (_, file) = open.insert((path, file));
        file.write_all(line)
    }

    /// A log that cannot be removed is no reason not to log.
    fn remove_old(&self) {
        let Ok(entries) = fs::read_dir(&self.log.directory) else { return };
        let named = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("agent.log."))
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).filter(named).collect();
        paths.sort();
        for path in paths.iter().rev().skip(FILES_KEPT) {
            let _ = fs::remove_file(path);
        }
    }
}

impl Write for &LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_line(line, jiff::Timestamp::now()).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_day_has_its_file_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log { directory: folder.path().to_path_buf(), ..Log::default() };
        let file = LogFile { log, open: Mutex::default() };
        let start: jiff::Timestamp = "2025-01-31T23:59:59Z".parse().unwrap();
        file.write_line(b"one\n", start).unwrap();
        file.write_line(b"two\n", start).unwrap();
        let first = folder.path().join("agent.log.2025-01-31");
        assert_eq!(fs::read(&first).unwrap(), b"one\ntwo\n");
        for day in 1..=40 {
            file.write_line(b"x\n", start + jiff::SignedDuration::from_hours(24 * day)).unwrap();
        }
        assert!(!first.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), FILES_KEPT);
    }

    #[test]
    fn a_log_that_never_rotates_has_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log { directory: folder.path().join("log"), rotation: Rotation::Never, ..Log::default() };
        let file = LogFile::open(&log).unwrap();
        (&file).write_all(b"line\n").unwrap();
        assert_eq!(fs::read(log.directory.join("agent.log")).unwrap(), b"line\n");
    }
}
