//! A process and what it prints.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{DEADLINE, until};

/// A process that ends with this value.
pub struct Process {
    child: Child,
    stdout: watch::Receiver<Vec<String>>,
    stderr: watch::Receiver<Vec<String>>,
}

/// The binary under test, without what the caller's environment would tell it.
pub fn berth() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
        command.env_remove(name);
    }
    command
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdout = lines(child.stdout.take().expect("piped above"));
        let stderr = lines(child.stderr.take().expect("piped above"));
        Self { child, stdout, stderr }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The first line on standard error that something is found in.
    pub async fn stderr_line<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        line(&mut self.stderr, what, find).await
    }

    /// The first line on standard output that something is found in.
    pub async fn stdout_line<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        line(&mut self.stdout, what, find).await
    }

    /// The first record of a JSON log on standard error with this message.
    pub async fn log_record(&mut self, message: &str) -> Value {
        let find = |line: &str| Some(record(line)?).filter(|record| record["fields"]["message"] == message);
        self.stderr_line(message, find).await
    }

    /// All records so far of a JSON log on standard error with this message.
    pub fn log_records(&self, message: &str) -> Vec<Value> {
        let records = self.stderr.borrow();
        records.iter().filter_map(|line| record(line)).filter(|record| record["fields"]["message"] == message).collect()
    }

    pub fn stderr(&self) -> String {
        self.stderr.borrow().join("\n")
    }

    pub fn stdout(&self) -> String {
        self.stdout.borrow().join("\n")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end and for the last of what it printed.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let status = until("the process ends", || std::future::ready(child.try_wait().unwrap())).await;
        for lines in [&mut self.stdout, &mut self.stderr] {
            // A child of its own may hold the pipe; what was printed until now is enough then.
            let _ = timeout(std::time::Duration::from_secs(1), lines.wait_for(|_| false)).await;
        }
        status
    }

    pub async fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.ended().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let stderr = self.stderr.borrow();
            let told = stderr.iter().filter(|line| !line.contains("openraft"));
            let last: Vec<&String> = told.rev().take(60).collect();
            eprintln!("--- process {} said last:", self.child.id());
            for line in last.into_iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

fn lines(pipe: impl Read + Send + 'static) -> watch::Receiver<Vec<String>> {
    let (sender, receiver) = watch::channel(Vec::new());
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { return };
            sender.send_modify(|lines: &mut Vec<String>| lines.push(String::from_utf8_lossy(&line).into_owned()));
        }
    });
    receiver
}

async fn line<T>(lines: &mut watch::Receiver<Vec<String>>, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
    let found = |lines: &[String]| lines.iter().find_map(|line| find(line));
    let waited = timeout(DEADLINE, lines.wait_for(|lines| found(lines).is_some())).await;
    match waited {
        Ok(Ok(seen)) => found(&seen).expect("waited for it"),
        Ok(Err(_)) => panic!("the process ended without saying: {what}"),
        Err(elapsed) => panic!("the process did not say: {what} ({elapsed})"),
    }
}

fn record(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}
