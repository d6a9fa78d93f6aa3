//! A simulation repeats what it did only if nothing is left to chance that it does not decide.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// tokio polls the branches of a `select!` in random order, and draws that from nothing that can
/// be set from outside, unless it is told to take them as they stand.
#[test]
fn every_select_takes_its_branches_in_the_order_in_which_they_stand() {
    let mut found = 0;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in std::fs::read_dir(sources).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for part in text.split("tokio::select! {").skip(1) {
            found += 1;
            assert!(part.trim_start().starts_with("biased;"), "{}: a select! that is not biased", path.display());
        }
    }
    assert!(found > 10, "only {found} were found");
}

/// Tasks that start by themselves, or threads, are beyond the reach of a simulation.
#[test]
fn tasks_are_started_in_one_place() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in std::fs::read_dir(sources).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        let is_source = is_rust && !name.ends_with("_tests.rs") && name != "runtime.rs";
        if !is_source {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for call in ["tokio::spawn(", "spawn_blocking(", "thread::spawn(", "running.spawn("] {
            assert!(!text.contains(call), "{name}: {call} instead of what is in runtime.rs");
        }
    }
}
