//! Libraries in C that are loaded into a process before everything else
//! (`preload/`). The process must be linked to libc dynamically.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// Builds the one of this name into a folder; needs a C compiler.
pub fn build(name: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("preload").join(name).with_extension("c");
    let path = folder.join(name).with_extension("so");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&path, &source])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run cc; {} needs a C compiler", source.display()))?;
    ensure!(
        output.status.success(),
        "{} does not build: {}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(path)
}
