//! Processes of a session: known by number and start time, found by a mark in
//! their environment, ended all together.
//!
//! A process number alone proves nothing, since numbers are used again; with
//! the start time it names one process. A signal goes to a handle (pidfd) that
//! was checked after it was opened, so that it cannot hit another process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::files;

/// Variable in the environment of every process of a session.
pub(super) const MARK: &str = "BERTH_SESSION";

/// How much of a process's environment is looked through, in bytes.
const ENVIRONMENT_BYTES_MAX: u64 = 1024 * 1024;

/// Time for the programs of a session to end when asked, and then for its X server.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// Time for processes to be gone once they are killed.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// Pause between two looks at the processes that are to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One process, also after its number was used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Process {
    /// Number.
    pub(super) pid: u32,
    /// Start, in clock ticks since the host's.
    pub(super) started: u64,
}

/// What `/proc/PID/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    process: Process,
    parent: u32,
    session: u32,
    /// Ended, and only waits for its parent to notice.
    ended: bool,
}

impl Process {
    /// The process that has this number now.
    pub(super) fn of(pid: u32) -> Option<Self> {
        Some(stat(pid)?.process)
    }

    /// Whether it still runs.
    pub(super) fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.process == self && !stat.ended)
    }

    /// Sends a signal; to a process that is gone it is none.
    fn signal(self, signal: Signal) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        if self.is_alive()
            && let Err(errno) = pidfd_send_signal(&handle, signal)
            && errno != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.pid, %errno, "a process of a session cannot be signalled");
        }
    }
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(pid, &files::read_text(Path::new(&format!("/proc/{pid}/stat")), 4096).ok()?)
}

/// The name in parentheses may hold anything, so fields count from the last one.
fn parse_stat(pid: u32, text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(Stat {
        ended: matches!(*fields.first()?, "Z" | "X" | "x"),
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        process: Process { pid, started: fields.get(19)?.parse().ok()? },
    })
}

/// All processes of a session that run: those with its mark, those in the
/// kernel sessions that its `leaders` lead, and all their descendants.
pub(super) fn find(mark: &str, leaders: &[Process]) -> BTreeSet<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let running: BTreeMap<u32, Stat> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .filter(|(_, stat)| !stat.ended)
        .collect();
    // The number of a kernel session is its leader's. It cannot be another
    // session's as long as that leader lives.
    let led: BTreeSet<u32> = leaders.iter().filter(|leader| leader.is_alive()).map(|leader| leader.pid).collect();
    let own = std::process::id();
    let mut found: BTreeSet<u32> = running
        .values()
        .filter(|stat| led.contains(&stat.session) || is_marked(stat.process.pid, mark))
        .map(|stat| stat.process.pid)
        .filter(|pid| *pid != own && *pid != 1)
        .collect();
    loop {
        let children: Vec<u32> = running
            .values()
            .filter(|stat| found.contains(&stat.parent) && !found.contains(&stat.process.pid))
            .map(|stat| stat.process.pid)
            .collect();
        if children.is_empty() {
            break;
        }
        found.extend(children);
    }
    found.iter().filter_map(|pid| running.get(pid)).map(|stat| stat.process).collect()
}

fn is_marked(pid: u32, mark: &str) -> bool {
    // Unreadable for processes of others, unless the agent is root.
    let Ok(text) = files::read_text(Path::new(&format!("/proc/{pid}/environ")), ENVIRONMENT_BYTES_MAX) else {
        return false;
    };
    text.split('\0').any(|variable| variable.strip_prefix(MARK).and_then(|rest| rest.strip_prefix('=')) == Some(mark))
}

/// Ends a session's processes: asks its programs first, so that they can save
/// their work while they still have a screen, then its X server, then kills
/// what is left. Returns what withstood even that.
pub(super) async fn end_all(mark: &str, server: Option<Process>, leaders: &[Process]) -> BTreeSet<Process> {
    // Leaders end before their followers, so they are remembered by being
    // looked for from the first moment on.
    let look = || {
        let (mark, leaders) = (mark.to_owned(), leaders.to_vec());
        async move { tokio::task::spawn_blocking(move || find(&mark, &leaders)).await.unwrap_or_default() }
    };
    let mut known = look().await;
    for (signal, spare, grace) in
        [(Signal::TERM, server, TERM_GRACE), (Signal::TERM, None, TERM_GRACE), (Signal::KILL, None, KILL_GRACE)]
    {
        let deadline = Instant::now() + grace;
        let mut asked = BTreeSet::new();
        loop {
            known.extend(look().await);
            known.retain(|process| process.is_alive());
            let ending: Vec<Process> = known.iter().copied().filter(|process| Some(*process) != spare).collect();
            if ending.is_empty() || Instant::now() >= deadline {
                break;
            }
            for process in ending {
                if signal == Signal::KILL || asked.insert(process) {
                    process.signal(signal);
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }
    known
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_is_no_obstacle() {
        let text = "42 (a) b) (c) S 7 42 40 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        let stat = parse_stat(42, text).unwrap();
        assert_eq!((stat.parent, stat.session, stat.process.started, stat.ended), (7, 40, 98765, false));
        assert_eq!(parse_stat(42, "42 (x"), None);
    }

    #[test]
    fn a_used_again_number_is_another_process() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
    }

    #[tokio::test]
    async fn marked_processes_and_their_descendants_end() {
        let mark = uuid::Uuid::new_v4().to_string();
        // The inner shell ignores the request to end and has shed the mark.
        let script = "env -i /bin/sh -c 'trap \"\" TERM; sleep 60 & wait; sleep 60' & wait";
        let mut child = tokio::process::Command::new("/bin/sh").args(["-c", script]).env(MARK, &mark).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while find(&mark, &[]).len() < 3 {
            assert!(Instant::now() < deadline, "the processes did not start");
            sleep(LOOK_EVERY).await;
        }
        let reaped = tokio::spawn(async move { child.wait().await });
        let all = find(&mark, &[]);
        assert_eq!(end_all(&mark, None, &[]).await, BTreeSet::new());
        assert!(all.iter().all(|process| !process.is_alive()), "{all:?}");
        reaped.await.unwrap().unwrap();
    }
}
