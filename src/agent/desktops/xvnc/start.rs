//! How a session comes up: X server, window manager or init file, autorun file.
//!
//! A session counts as up when its X server answers and the program that makes
//! the desktop lives. The record is on disk before anything starts, so that an
//! agent that is killed half-way finds and clears what it had begun.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::Inner;
use super::display::{authority_file, port_of};
use super::owner::{User, find_program, is_executable};
use super::process::{MARK, Process};
use super::record::{Cookie, Folder, Record, Running, Screen};
use crate::agent::config::Geometry;
use crate::agent::desktops::Failure;
use crate::domain::{SessionKind, SessionSpec};
use crate::files;

/// What a host without Xvnc is told.
pub(super) const XVNC_MISSING: &str =
    "Xvnc is not installed on this host: install the Debian package tigervnc-standalone-server";
const VNCPASSWD_MISSING: &str = "vncpasswd is not installed on this host: install the Debian package tigervnc-tools";
const DESKTOP_MISSING: &str =
    "no window manager is installed on this host: install the Debian packages openbox and xterm, or name an init file";

/// Time for an X server to answer.
const SERVER_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for a window manager to say that it manages the screen; one that says
/// nothing counts as started when it still lives then.
const MANAGER_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two looks at what is to come up.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// Displays that are tried when others take them at the same moment.
const DISPLAYS_TRIED: u32 = 20;

/// Limits on the autorun file's arguments: the most that a broker can be set to.
const ARGUMENTS_MAX: usize = 1000;
const ARGUMENT_CHARS_MAX: usize = 4096;

/// Window managers in the order in which they are looked for, with whether
/// they need a terminal beside them to be of use.
const MANAGERS: [(&str, bool); 4] =
    [("openbox", true), ("x-session-manager", false), ("x-window-manager", true), ("twm", true)];
const TERMINALS: [&str; 2] = ["xterm", "x-terminal-emulator"];

/// Everything that a session is started from, checked before anything starts.
pub(super) struct Plan {
    user: User,
    xvnc: PathBuf,
    vncpasswd: PathBuf,
    desktop: PathBuf,
    terminal: Option<PathBuf>,
    autorun: Option<PathBuf>,
}

impl Plan {
    /// Checks what was asked for against what this host has.
    pub(super) async fn make(inner: &Inner, spec: &SessionSpec) -> Result<Self, Failure> {
        if spec.kind != SessionKind::Virtual {
            return Err(Failure::new("this host gives virtual sessions only, no console sessions"));
        }
        let setup = &inner.setup;
        let user = User::look_up(&spec.owner, setup.settings.allow_root).await?;
        let (desktop, terminal) = match (&spec.init_file, &setup.settings.window_manager) {
            (Some(file), _) => (below(&setup.init_folder, file, "init file")?, None),
            (None, Some(manager)) if is_executable(manager) => (manager.clone(), None),
            (None, Some(manager)) => {
                return Err(Failure(format!("the window manager {} is no executable file", manager.display())));
            }
            (None, None) => installed_manager().ok_or_else(|| Failure::new(DESKTOP_MISSING))?,
        };
        let autorun =
            spec.autorun_file.as_ref().map(|file| below(&setup.autorun_folder, file, "autorun file")).transpose()?;
        if autorun.is_none() && !spec.autorun_arguments.is_empty() {
            return Err(Failure::new("arguments of an autorun file were given, but no autorun file"));
        }
        if spec.autorun_arguments.len() > ARGUMENTS_MAX {
            return Err(Failure(format!("an autorun file takes at most {ARGUMENTS_MAX} arguments")));
        }
        let fits = |argument: &String| argument.chars().count() <= ARGUMENT_CHARS_MAX && !argument.contains('\0');
        if !spec.autorun_arguments.iter().all(fits) {
            return Err(Failure(format!(
                "an argument of an autorun file has at most {ARGUMENT_CHARS_MAX} characters and no zero byte"
            )));
        }
        Ok(Self {
            user,
            xvnc: find_program("Xvnc").ok_or_else(|| Failure::new(XVNC_MISSING))?,
            vncpasswd: ["tigervncpasswd", "vncpasswd"]
                .into_iter()
                .find_map(find_program)
                .ok_or_else(|| Failure::new(VNCPASSWD_MISSING))?,
            desktop,
            terminal,
            autorun,
        })
    }

    /// Makes what the session's owner needs, before any process of the owner
    /// could interfere.
    pub(super) async fn prepare(&self, folder: &Folder) -> Result<(), Failure> {
        let text = |error: files::FileError| Failure(error.to_string());
        self.user.check_way_to(&folder.password())?;
        files::make_new_folder(&folder.access(), 0o711, None).map_err(text)?;
        files::replace_for(&folder.password(), &self.obfuscated_password().await?, 0o400, self.user.to_give_to())
            .map_err(text)?;
        files::make_new_folder(&folder.runtime(), 0o700, self.user.to_give_to()).map_err(text)
    }

    /// A password file for VNC with a random password. The format is
    /// TigerVNC's own secret, so its own tool writes it.
    async fn obfuscated_password(&self) -> Result<Vec<u8>, Failure> {
        const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        // VNC passwords have at most 8 characters.
        let mut password: Vec<u8> = (0..8).map(|_| LETTERS[rand::random_range(0..LETTERS.len())]).collect();
        password.push(b'\n');
        let failed = |problem: String| Failure(format!("{} failed: {problem}", self.vncpasswd.display()));
        let work = async {
            let mut tool = Command::new(&self.vncpasswd)
                .arg("-f")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut input) = tool.stdin.take() {
                input.write_all(&password).await?;
            }
            tool.wait_with_output().await
        };
        let output = timeout(Duration::from_secs(5), work)
            .await
            .map_err(|_| failed("it did not end".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() || output.stdout.len() < 8 {
            return Err(failed(describe(output.status)));
        }
        Ok(output.stdout)
    }

    /// Starts everything and notes it in the record. On failure nothing runs
    /// any more.
    pub(super) async fn start(&self, inner: &Arc<Inner>, folder: &Folder, record: &mut Record) -> Result<(), Failure> {
        let server = self.start_server(inner, folder, record).await?;
        match self.start_programs(inner, folder, record, server).await {
            Ok(running) => {
                record.running = Some(running);
                Ok(())
            }
            Err(failure) => {
                inner.end_processes(record, Some(server), &[server]).await?;
                Err(failure)
            }
        }
    }

    async fn start_server(&self, inner: &Arc<Inner>, folder: &Folder, record: &mut Record) -> Result<Process, Failure> {
        let mut from = 0;
        for _ in 0..DISPLAYS_TRIED {
            let display = inner.displays.take(from, &record.mark).await?;
            let screen = Screen { display, owner: self.user.uid, cookie: Cookie(rand::random()) };
            record.screen = Some(screen.clone());
            let mut begun = None;
            match self.try_server(inner, folder, record, &screen, &mut begun).await {
                Ok(server) => return Ok(server),
                Err(failure) => {
                    inner.end_processes(record, begun, &[]).await?;
                    if !is_taken(&failure.0) {
                        return Err(failure);
                    }
                    from = display + 1;
                }
            }
        }
        Err(Failure(format!("{DISPLAYS_TRIED} X displays in a row were taken by others")))
    }

    /// `begun` tells the process also when it comes to nothing.
    async fn try_server(
        &self,
        inner: &Arc<Inner>,
        folder: &Folder,
        record: &Record,
        screen: &Screen,
        begun: &mut Option<Process>,
    ) -> Result<Process, Failure> {
        // An agent that is killed from here on finds the display to clear.
        folder.write(record)?;
        let content = authority_file(screen.display, &screen.cookie);
        files::replace_for(&folder.authority(), &content, 0o400, self.user.to_give_to())
            .map_err(|error| Failure(error.to_string()))?;
        let log = folder.open_log("xvnc")?;
        log.set_len(0).map_err(|error| Failure(format!("a log cannot be emptied: {error}")))?;
        let Geometry { width, height } = inner.setup.settings.geometry;
        let name = if record.spec.name.is_empty() { record.id.as_str() } else { record.spec.name.as_str() };
        let mut command = self.user.in_session(&self.xvnc, &self.environment(folder, record, screen));
        command.arg(format!(":{}", screen.display));
        command.arg("-auth").arg(folder.authority());
        command.args(["-nolisten", "tcp", "-noreset", "-depth", "24"]);
        command.args(["-geometry", &format!("{width}x{height}")]);
        command.args(["-rfbport", &port_of(screen.display).to_string(), "-localhost"]);
        command.args(["-SecurityTypes", "VncAuth", "-PasswordFile"]).arg(folder.password());
        command.args(["-desktop", &name.replace('\0', "")]);
        if record.spec.clients_max == Some(1) {
            command.args(["-NeverShared", "-DisconnectClients=0"]);
        }
        let mut child = spawn(command, log, "Xvnc")?;
        let server = process_of(&mut child, "Xvnc", folder, "xvnc")?;
        *begun = Some(server);
        let deadline = Instant::now() + SERVER_TIMEOUT;
        loop {
            if let Some(status) = ended(&mut child) {
                return Err(Failure(format!("Xvnc {}: {}", describe(status), folder.tail("xvnc"))));
            }
            match screen.answers().await {
                Ok(()) => break,
                Err(problem) if Instant::now() >= deadline => {
                    return Err(Failure(format!(
                        "Xvnc did not answer within {} s ({problem}): {}",
                        SERVER_TIMEOUT.as_secs(),
                        folder.tail("xvnc")
                    )));
                }
                Err(_) => sleep(LOOK_EVERY).await,
            }
        }
        // Another X server may have answered while ours was ending.
        if let Some(status) = ended(&mut child) {
            return Err(Failure(format!("Xvnc {}: {}", describe(status), folder.tail("xvnc"))));
        }
        inner.reap(child);
        Ok(server)
    }

    async fn start_programs(
        &self,
        inner: &Arc<Inner>,
        folder: &Folder,
        record: &Record,
        server: Process,
    ) -> Result<Running, Failure> {
        let screen = record.screen.as_ref().ok_or_else(|| Failure::new("the session has no display"))?;
        let variables = self.environment(folder, record, screen);
        let what = self.desktop.display().to_string();
        let log = folder.open_log("desktop")?;
        let mut child = spawn(self.user.in_session(&self.desktop, &variables), log, &what)?;
        let desktop = process_of(&mut child, &what, folder, "desktop")?;
        let deadline = Instant::now() + MANAGER_TIMEOUT;
        loop {
            if let Some(status) = ended(&mut child) {
                return Err(Failure(format!("{what} {} at once: {}", describe(status), folder.tail("desktop"))));
            }
            if !server.is_alive() {
                return Err(Failure(format!("Xvnc ended: {}", folder.tail("xvnc"))));
            }
            if screen.is_managed().await.unwrap_or(false) || Instant::now() >= deadline {
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        inner.reap(child);
        if let Some(terminal) = &self.terminal {
            let log = folder.open_log("desktop")?;
            inner.reap(spawn(self.user.in_session(terminal, &variables), log, &terminal.display().to_string())?);
        }
        let mut autorun = None;
        if let Some(file) = &self.autorun {
            let mut command = self.user.in_session(file, &variables);
            command.args(&record.spec.autorun_arguments);
            let child = spawn(command, folder.open_log("autorun")?, &file.display().to_string())?;
            autorun = child.id().and_then(Process::of);
            inner.reap(child);
        }
        Ok(Running { server, desktop, autorun })
    }

    fn environment(&self, folder: &Folder, record: &Record, screen: &Screen) -> Variables {
        let runtime = PathBuf::from(format!("/run/user/{}", self.user.uid));
        let runtime = if runtime.is_dir() { runtime } else { folder.runtime() };
        Variables(vec![
            (MARK, record.mark.clone().into()),
            ("BERTH_SESSION_ID", record.id.as_str().into()),
            ("DISPLAY", format!(":{}", screen.display).into()),
            ("XAUTHORITY", folder.authority().into()),
            ("XDG_RUNTIME_DIR", runtime.into()),
            ("XDG_SESSION_TYPE", "x11".into()),
        ])
    }
}

/// Environment of a session's programs.
struct Variables(Vec<(&'static str, std::ffi::OsString)>);

impl User {
    fn in_session(&self, program: &Path, variables: &Variables) -> Command {
        let borrowed: Vec<(&str, &OsStr)> =
            variables.0.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
        self.command(program, &borrowed)
    }
}

fn spawn(mut command: Command, log: std::fs::File, what: &str) -> Result<Child, Failure> {
    let failed = |error: std::io::Error| Failure(format!("{what} cannot be started: {error}"));
    let copy = log.try_clone().map_err(failed)?;
    command.stdout(log).stderr(copy).spawn().map_err(failed)
}

fn process_of(child: &mut Child, what: &str, folder: &Folder, log: &str) -> Result<Process, Failure> {
    child.id().and_then(Process::of).ok_or_else(|| Failure(format!("{what} ended at once: {}", folder.tail(log))))
}

/// How a child ended, if it did. A child that cannot be asked about is one
/// that was reaped already.
fn ended(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().unwrap_or(Some(ExitStatus::default()))
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Whether an X server ended because somebody else has its display or port.
fn is_taken(reason: &str) -> bool {
    ["already active", "already in use", "already running"].iter().any(|words| reason.contains(words))
}

fn installed_manager() -> Option<(PathBuf, Option<PathBuf>)> {
    let (manager, wants_terminal) =
        MANAGERS.iter().find_map(|(name, wants_terminal)| Some((find_program(name)?, *wants_terminal)))?;
    let terminal = if wants_terminal { TERMINALS.iter().find_map(|name| find_program(name)) } else { None };
    Some((manager, terminal))
}

/// A file below a folder: relative, without a way out (links included), regular
/// and executable.
fn below(folder: &Path, file: &str, what: &str) -> Result<PathBuf, Failure> {
    let refuse = |problem: &str| Err(Failure(format!("{what} '{file}' {problem}")));
    let relative = Path::new(file);
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
    if file.is_empty() || file.contains('\0') || !relative.components().all(plain) {
        return refuse("must be a path below the host's folder, without ..");
    }
    let Ok(folder) = folder.canonicalize() else {
        return refuse(&format!("cannot be found: the host has no folder {}", folder.display()));
    };
    let Ok(path) = folder.join(relative).canonicalize() else {
        return refuse(&format!("does not exist in {}", folder.display()));
    };
    if !path.starts_with(&folder) {
        return refuse(&format!("leads out of {}", folder.display()));
    }
    if !is_executable(&path) {
        return refuse("is no executable file");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn only_executables_below_the_folder_are_taken() {
        let outside = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let make = |path: &Path, mode| {
            std::fs::write(path, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        make(&outside.path().join("evil"), 0o755);
        make(&folder.path().join("good"), 0o755);
        make(&folder.path().join("text"), 0o644);
        symlink(outside.path().join("evil"), folder.path().join("link")).unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        make(&folder.path().join("sub/also"), 0o755);

        assert!(below(folder.path(), "good", "init file").is_ok());
        assert!(below(folder.path(), "sub/also", "init file").is_ok());
        let absolute = outside.path().join("evil").display().to_string();
        for bad in ["", "../evil", "sub/../../evil", &absolute, "link", "text", "sub", "missing"] {
            let failure = below(folder.path(), bad, "init file").unwrap_err();
            assert!(failure.0.starts_with("init file"), "{bad}: {failure}");
        }
    }
}
