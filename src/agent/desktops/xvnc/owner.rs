//! The user who owns a session, and programs started as that user.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::geteuid;
use tokio::process::Command;
use tokio::time::timeout;

use crate::agent::desktops::Failure;
use crate::domain::Owner as Name;

/// Longest time that the host's user directory may take; it may be remote.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Where programs of a session are looked for.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";

/// A user of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: PathBuf,
    pub(super) shell: String,
}

impl User {
    /// Looks a user up in the host's directory, whatever that is, and checks
    /// that the user may own a session.
    pub(super) async fn look_up(owner: &Name, allow_root: bool) -> Result<Self, Failure> {
        let missing = || Failure(format!("owner {owner} is no user of this host"));
        // A number would be looked up as a user id.
        if owner.as_str().starts_with('-') || owner.as_str().bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(missing());
        }
        let asked = Command::new("getent").arg("passwd").arg("--").arg(owner.as_str()).kill_on_drop(true).output();
        let output = timeout(LOOKUP_TIMEOUT, asked)
            .await
            .map_err(|_| Failure(format!("the host's user directory did not answer about owner {owner}")))?
            .map_err(|error| Failure(format!("owner {owner} cannot be looked up with getent: {error}")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let user = text.lines().next().and_then(parse).ok_or_else(missing)?;
        let own = geteuid().as_raw();
        if own != 0 && own != user.uid {
            return Err(Failure(format!(
                "the agent runs as user id {own} and makes sessions of that user only, not of {owner}; run it as root"
            )));
        }
        user.check_may_own(allow_root)?;
        Ok(user)
    }

    /// Refuses root, unless this host allows it, and accounts whose shell says
    /// that nobody logs in with them.
    fn check_may_own(&self, allow_root: bool) -> Result<(), Failure> {
        if self.uid == 0 && !allow_root {
            return Err(Failure(format!(
                "owner {} is root, who gets no session on this host; allow_root in the agent's configuration permits it",
                self.name
            )));
        }
        let shell = Path::new(&self.shell).file_name().and_then(OsStr::to_str);
        if matches!(shell, Some("nologin" | "false")) {
            return Err(Failure(format!(
                "owner {} is an account that nobody logs in with ({})",
                self.name, self.shell
            )));
        }
        Ok(())
    }

    /// Whether the agent has to become this user first.
    fn is_other(&self) -> bool {
        geteuid().as_raw() != self.uid
    }

    /// A program in a kernel session of its own, as this user, at home, with an
    /// environment that holds nothing of the agent's. The number of the process
    /// is the program's. It goes on when the agent ends.
    pub(super) fn command(&self, program: &Path, variables: &[(&str, &OsStr)]) -> Command {
        let mut command = Command::new("setsid");
        if self.is_other() {
            command.arg("setpriv");
            command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid));
            command.args(["--init-groups", "--"]);
        }
        // The user changes to the folder: root may not pass through a home on a
        // network. The shell becomes the program and keeps the number.
        command.args(["/bin/sh", "-c", r#"cd "$HOME" 2> /dev/null || cd /; exec "$0" "$@""#]);
        command.arg(program).env_clear();
        command.env("HOME", &self.home).env("USER", &self.name).env("LOGNAME", &self.name);
        command.env("SHELL", &self.shell).env("PATH", PATH);
        command.env("LANG", std::env::var_os("LANG").unwrap_or_else(|| "C.UTF-8".into()));
        command.envs(variables.iter().copied());
        command.current_dir("/").stdin(Stdio::null()).kill_on_drop(false);
        command
    }

    /// User and group to give files to; `None` when they are theirs already.
    pub(super) fn to_give_to(&self) -> Option<(u32, u32)> {
        self.is_other().then_some((self.uid, self.gid))
    }

    /// Fails with advice when this user cannot pass all folders above `path`.
    pub(super) fn check_way_to(&self, path: &Path) -> Result<(), Failure> {
        if !self.is_other() || self.uid == 0 {
            return Ok(());
        }
        for folder in path.ancestors().skip(1) {
            let Ok(metadata) = folder.metadata() else { continue };
            let mode = metadata.permissions().mode();
            let passes = mode & 0o001 != 0
                || (metadata.uid() == self.uid && mode & 0o100 != 0)
                || (metadata.gid() == self.gid && mode & 0o010 != 0);
            if !passes {
                return Err(Failure(format!(
                    "user {} cannot pass the folder {}; run chmod o+x on it, or set another data_folder",
                    self.name,
                    folder.display()
                )));
            }
        }
        Ok(())
    }
}

fn parse(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
    Some(User {
        name: (*name).to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: PathBuf::from(home),
        shell: if shell.is_empty() { "/bin/sh".to_owned() } else { (*shell).to_owned() },
    })
}

/// The first place in which a program is installed.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    PATH.split(':')
        .chain(["/opt/TigerVNC/bin"])
        .map(|folder| Path::new(folder).join(name))
        .find(|path| is_executable(path))
}

/// Whether a path is a regular file that somebody may run.
pub(super) fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_of_the_directory_is_a_user() {
        let user = parse("ann:x:1001:1002:Ann,,,:/home/ann:").unwrap();
        assert_eq!((user.uid, user.gid, user.shell.as_str()), (1001, 1002, "/bin/sh"));
        assert_eq!(parse("ann:x:1001"), None);
    }

    #[test]
    fn root_needs_permission_and_an_account_without_login_is_refused() {
        let may_own = |line: &str, allow_root| parse(line).unwrap().check_may_own(allow_root);
        assert_eq!(may_own("ann:x:1001:1002::/home/ann:/bin/bash", false), Ok(()));
        for name in ["root", "toor"] {
            let line = format!("{name}:x:0:0::/root:/bin/sh");
            let failure = may_own(&line, false).unwrap_err();
            assert!(failure.0.starts_with(&format!("owner {name} is root")), "{failure}");
            assert_eq!(may_own(&line, true), Ok(()));
        }
        for shell in ["/usr/sbin/nologin", "/sbin/nologin", "/bin/false"] {
            let failure = may_own(&format!("www:x:33:33::/srv:{shell}"), true).unwrap_err();
            assert!(failure.0.contains("nobody logs in"), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_program_runs_at_home_or_else_at_the_top_with_its_own_number() {
        let home = tempfile::tempdir().unwrap();
        let user = User {
            name: "self".to_owned(),
            uid: geteuid().as_raw(),
            gid: 0,
            home: home.path().canonicalize().unwrap(),
            shell: "/bin/sh".to_owned(),
        };
        let missing = User { home: home.path().join("missing"), ..user.clone() };
        for (user, folder) in [(&user, user.home.as_path()), (&missing, Path::new("/"))] {
            let mut command = user.command(Path::new("/bin/sh"), &[]);
            command.args(["-c", r#"pwd; echo "$1"; echo $$"#, "name", "two  words"]).stdout(Stdio::piped());
            let child = command.spawn().unwrap();
            let expected = format!("{}\ntwo  words\n{}\n", folder.display(), child.id().unwrap());
            assert_eq!(String::from_utf8(child.wait_with_output().await.unwrap().stdout).unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn an_owner_that_is_no_user_is_told_so() {
        for name in ["no-such-user-here", "-s", "12345678"] {
            let failure = User::look_up(&Name::new(name).unwrap(), true).await.unwrap_err();
            assert_eq!(failure.0, format!("owner {name} is no user of this host"));
        }
    }
}
