//! `berth config`: what a replica would be told.

use anyhow::bail;

use super::serve;
use crate::broker::config::{Notice, Problem};

/// Verbs of `berth config`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the configuration as it would be in effect, with where each value
    /// is from, and everything that is wrong with it. Run it as the user whom
    /// the broker runs as: it looks at files, too.
    Check {
        #[command(flatten)]
        replica: serve::Args,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: Command) -> anyhow::Result<()> {
    let Command::Check { replica, json } = command;
    let mut loaded = replica.sources().load();
    for error in loaded.config.file_problems() {
        let origin = error.key().map(|key| loaded.origin(key).clone());
        loaded.problems.push(Problem { error, origin });
    }
    if json {
        say!("{:#}", loaded.as_json());
        if !loaded.problems.is_empty() {
            bail!("the configuration cannot be used");
        }
        return Ok(());
    }
    if loaded.problems.is_empty() {
        say!("{}", loaded.as_toml());
    }
    for notice in &loaded.notices {
        match notice {
            Notice::Ignored(text) => say!("# {text}"),
            Notice::Warning(text) => say!("# warning: {text}"),
        }
    }
    loaded.into_config()?;
    Ok(())
}
