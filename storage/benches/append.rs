//! Durable appends per second: the store against a file that the same payload is
//! appended to, with one fdatasync per batch, in the same run on the same disk.
//!
//! `cargo bench -p berth-storage`; `BERTH_BENCH_FOLDER` chooses the disk,
//! `BERTH_BENCH_SECONDS` how long each figure is measured (default 3).

#![allow(missing_docs, clippy::print_stdout)]

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use berth_storage::{Entry, Options, Store};

const ENTRY_BYTES: usize = 1 << 10;
/// Entries kept; older ones are purged while measuring.
const ENTRIES_KEPT: u64 = 20_000;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Entries per second, and the 50th and 99th percentile of a batch.
struct Figure {
    entries_per_second: f64,
    p50: Duration,
    p99: Duration,
}

fn main() -> Outcome<()> {
    let seconds = std::env::var("BERTH_BENCH_SECONDS").ok();
    let limit = Duration::from_secs(seconds.map_or(Ok(3), |text| text.parse())?);
    let folder = std::env::var_os("BERTH_BENCH_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    println!("durable appends of {ENTRY_BYTES} bytes in {}, {limit:?} each", folder.display());
    println!("batch   file/s  p50 us  p99 us   store/s  p50 us  p99 us  store/file");
    for batch in [1, 16, 128] {
        let place = tempfile::tempdir_in(&folder)?;
        let file = measure_file(place.path(), batch, limit)?;
        let store = measure_store(place.path(), batch, limit)?;
        println!(
            "{batch:5} {:8.0} {:7} {:7}  {:8.0} {:7} {:7}  {:10.2}",
            file.entries_per_second,
            file.p50.as_micros(),
            file.p99.as_micros(),
            store.entries_per_second,
            store.p50.as_micros(),
            store.p99.as_micros(),
            store.entries_per_second / file.entries_per_second,
        );
    }
    Ok(())
}

fn measure_file(folder: &Path, batch: u64, limit: Duration) -> Outcome<Figure> {
    let mut file = File::create(folder.join("file"))?;
    let payload = vec![7; ENTRY_BYTES * usize::try_from(batch)?];
    repeat(batch, limit, || {
        file.write_all(&payload)?;
        file.sync_data()?;
        Ok(())
    })
}

fn measure_store(folder: &Path, batch: u64, limit: Duration) -> Outcome<Figure> {
    let store = Store::open(&folder.join("store"), Options::default())?;
    let log = store.log();
    let (sender, durable) = mpsc::channel();
    let mut next = 0;
    let figure = repeat(batch, limit, || {
        let entries =
            (next..next + batch).map(|index| Entry { index, term: 1, payload: vec![7; ENTRY_BYTES] }).collect();
        next += batch;
        let sender = sender.clone();
        log.append(entries, Box::new(move |result| drop(sender.send(result))))?;
        durable.recv()??;
        if log.entries_since_purge() > 2 * ENTRIES_KEPT {
            log.purge_through(next - ENTRIES_KEPT, Vec::new(), Box::new(drop));
        }
        Ok(())
    })?;
    store.close()?;
    Ok(figure)
}

fn repeat(batch: u64, limit: Duration, mut append: impl FnMut() -> Outcome<()>) -> Outcome<Figure> {
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < limit {
        let start = Instant::now();
        append()?;
        times.push(start.elapsed());
    }
    let elapsed = begin.elapsed();
    let batches = u32::try_from(times.len())?;
    times.sort_unstable();
    Ok(Figure {
        entries_per_second: f64::from(batches) * f64::from(u32::try_from(batch)?) / elapsed.as_secs_f64(),
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
    })
}
