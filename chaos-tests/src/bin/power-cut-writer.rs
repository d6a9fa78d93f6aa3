//! Puts load on a store and reports each acknowledged step as a line on its
//! standard output. Arguments: folder, seed, number of the first step. Runs
//! until it is killed or the disk fails.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use berth_chaos_tests::power_cut;
use berth_storage::Store;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, seed, first_step] = arguments.as_slice() else {
        anyhow::bail!("arguments: folder, seed, number of the first step");
    };
    let store = Store::open(Path::new(folder), power_cut::options())?;
    let report = |number: u64| {
        // Nobody reads any more: this process is about to be killed.
        let line = format!("{number}\n");
        let written = std::io::stdout().lock().write_all(line.as_bytes());
        drop(written);
    };
    power_cut::put_load(
        &store,
        seed.parse().context("the seed")?,
        first_step.parse().context("the first step")?,
        report,
    )
}
