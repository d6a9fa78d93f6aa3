//! `src/domain` is pure: nothing in it does I/O, reads a clock, draws random
//! numbers or waits, and it imports nothing of the rest of the project.

use std::fs;
use std::path::{Path, PathBuf};

/// Crates that the domain may use. Each is free of I/O, clocks and randomness
/// as the domain uses it.
const CRATES_ALLOWED: [&str; 8] = ["std", "serde", "thiserror", "imbl", "bincode", "sha2", "super", "self"];

/// What of the standard library is not pure, or is not ordered.
const FORBIDDEN: [&str; 20] = [
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::time",
    "std::os",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "SystemTime",
    "Instant",
    "HashMap",
    "HashSet",
    "RandomState",
    "println!",
    "eprintln!",
    "async ",
    ".await",
    "static mut",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the source folder is there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() {
            if name != "tests" {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|end| end == "rs") && !name.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The code of a file: without comments, and without its unit tests, which
/// stand at its end.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let without_comment = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    text[..end].lines().map(without_comment).collect::<Vec<_>>().join("\n")
}

/// What is wrong with a piece of code.
fn faults(code: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for line in code.lines() {
        let line = line.trim();
        if let Some(path) = line.strip_prefix("use ").or_else(|| line.strip_prefix("pub use ")) {
            let root = path.split([':', ';', ' ', '{']).next().unwrap_or_default();
            let own = path.starts_with("crate::domain");
            let sibling = root.chars().next().is_some_and(char::is_lowercase) && !path.contains("::")
                || ["command", "event", "fleet", "ids", "instruction", "server", "session", "settings", "time"]
                    .contains(&root)
                || ["apply", "image", "error", "expression", "number", "property"].contains(&root);
            if !own && !sibling && !CRATES_ALLOWED.contains(&root) {
                faults.push(format!("imports {root}: {line}"));
            }
        }
        for forbidden in FORBIDDEN {
            if line.contains(forbidden) {
                faults.push(format!("holds {forbidden}: {line}"));
            }
        }
        for path in [
            "crate::agent",
            "crate::broker",
            "crate::cli",
            "crate::protocol",
            "crate::secret",
            "uuid::",
            "rand::",
            "jiff::",
            "tokio::",
            "tracing::",
        ] {
            if line.contains(path) {
                faults.push(format!("uses {path}: {line}"));
            }
        }
    }
    faults
}

#[test]
fn the_domain_is_pure() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain"), &mut files);
    assert!(files.len() > 20, "the domain has more files than {}", files.len());
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        all.extend(faults(&code(&text)).into_iter().map(|fault| format!("{}: {fault}", file.display())));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn impure_code_is_found() {
    for impure in [
        "use tokio::sync::mpsc;",
        "use crate::broker::core::Broker;",
        "    let now = std::time::SystemTime::now();",
        "let id = uuid::Uuid::new_v4();",
        "use std::collections::HashMap;",
        "pub use rand::random;",
        "async fn wait() {}",
    ] {
        assert!(!faults(&code(impure)).is_empty(), "not found: {impure}");
    }
    assert_eq!(
        faults(&code("use std::sync::Arc; // not tokio::sync\nuse super::ids::ServerId;")),
        Vec::<String>::new()
    );
}
