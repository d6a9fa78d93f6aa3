//! `berth dev`
#[derive(Debug, clap::Args)] pub(super) struct Args {}
pub(super) async fn run(_args: Args) -> anyhow::Result<()> { Ok(()) }
