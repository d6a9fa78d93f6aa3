//! What a desktop needs of the system, and how to get it.

use anyhow::{Context, bail};
use tokio::process::Command;

/// Programs, and the Debian and Ubuntu packages that hold them. One program of
/// each line is enough.
const NEEDED: [(&[&str], &str); 4] = [
    (&["Xvnc"], "tigervnc-standalone-server"),
    (&["tigervncpasswd", "vncpasswd"], "tigervnc-tools"),
    (&["openbox", "x-session-manager", "x-window-manager", "twm"], "openbox"),
    (&["xterm", "x-terminal-emulator"], "xterm"),
];

/// Makes sure that the programs are there; installs the missing ones when
/// asked to, and names them otherwise.
pub(super) async fn ensure(install: bool) -> anyhow::Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if !install {
        bail!(
            "these packages are missing: {packages}\n  run: sudo apt-get install -y {packages}\n  \
             or start again with --install"
        );
    }
    if find("apt-get").is_none() {
        bail!("these packages are missing, and there is no apt-get to install them: {packages}");
    }
    apt(&["update", "-q"]).await?;
    let mut install = vec!["install", "-q", "-y", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install).await?;
    match self::missing().as_slice() {
        [] => Ok(()),
        still => bail!("these packages were installed, but their programs are not found: {}", still.join(" ")),
    }
}

fn missing() -> Vec<&'static str> {
    let lacks = |programs: &[&str]| programs.iter().all(|program| find(program).is_none());
    NEEDED.iter().filter(|(programs, _)| lacks(programs)).map(|(_, package)| *package).collect()
}

/// A program in the search path.
fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

async fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    let mut command = if is_root {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    };
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    // Standard output is for what the command itself has to say.
    command.stdout(std::process::Stdio::from(std::io::stderr()));
    tracing::info!(command = ?command.as_std(), "installing");
    let status = command.status().await.context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed: {status}", arguments.first().copied().unwrap_or_default());
    }
    Ok(())
}
