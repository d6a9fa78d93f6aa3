//! What the end-to-end tests share: the real binary as broker and agent, a
//! client of the API, and an agent of the tests' own that can misbehave.
//!
//! Whatever a test starts ends with the value that holds it, also when the
//! test fails.

#![allow(clippy::unwrap_used, clippy::print_stderr, dead_code, missing_docs, unreachable_pub)]

pub mod agent;
pub mod api;
pub mod broker;
pub mod peer;
pub mod process;
pub mod replicas;

use std::time::{Duration, Instant};

/// Long enough for a busy machine; reached only by a test that fails.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// Between two looks at something that tells no one when it changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Looks until there is something to see.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < end, "not reached within {} s: {what}", DEADLINE.as_secs());
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// A free port below those that the system gives to connections, so that none
/// takes it while a process restarts. None is given twice in a process.
pub fn free_port() -> u16 {
    static GIVEN: std::sync::Mutex<std::collections::BTreeSet<u16>> =
        std::sync::Mutex::new(std::collections::BTreeSet::new());
    for _ in 0..1000 {
        let port = rand::random_range(20_000..32_000);
        if GIVEN.lock().unwrap().insert(port)
            && std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            return port;
        }
    }
    panic!("no free port from 20000 to 31999");
}

/// The user who runs the tests.
pub fn own_user() -> String {
    let output = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
