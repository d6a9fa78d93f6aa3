//! Which simulated desktops really exist: read from what their agents trace,
//! without asking the broker or the agents.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail};

/// The desktops of one server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desktops {
    /// Id of the server.
    pub server: String,
    /// Sessions that have a desktop.
    pub live: BTreeSet<String>,
    /// Sessions whose desktop was made more than once in one life of the agent.
    pub made_again: BTreeSet<String>,
}

impl Desktops {
    /// Reads a trace; `server` is whose it is.
    pub fn read(server: &str, trace: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(trace).with_context(|| format!("no trace {}", trace.display()))?;
        Self::parse(server, &text)
    }

    fn parse(server: &str, trace: &str) -> anyhow::Result<Self> {
        let mut desktops = Self { server: server.to_owned(), ..Self::default() };
        let mut made = BTreeSet::new();
        for line in trace.lines() {
            match line.split_once(' ') {
                None if line == "started" => {
                    desktops.live.clear();
                    made.clear();
                }
                Some(("made", session)) => {
                    desktops.live.insert(session.to_owned());
                    if !made.insert(session.to_owned()) {
                        desktops.made_again.insert(session.to_owned());
                    }
                }
                Some(("ended", session)) => {
                    desktops.live.remove(session);
                }
                _ => bail!("`{line}` is no line of a trace"),
            }
        }
        Ok(desktops)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn set(sessions: &[&str]) -> BTreeSet<String> {
        sessions.iter().map(|session| (*session).to_owned()).collect()
    }

    #[test]
    fn desktops_end_one_by_one_and_with_their_agent() {
        let desktops = Desktops::parse("s", "started\nmade a\nmade b\nended a\nmade c\n").unwrap();
        assert_eq!((desktops.live, desktops.made_again), (set(&["b", "c"]), set(&[])));
        let desktops = Desktops::parse("s", "started\nmade a\nstarted\nmade b\n").unwrap();
        assert_eq!((desktops.live, desktops.made_again), (set(&["b"]), set(&[])));
    }

    #[test]
    fn a_desktop_that_is_made_again_is_told() {
        let desktops = Desktops::parse("s", "started\nmade a\nended a\nmade a\n").unwrap();
        assert_eq!(desktops.made_again, set(&["a"]));
        let desktops = Desktops::parse("s", "started\nmade a\nstarted\nmade a\n").unwrap();
        assert_eq!(desktops.made_again, set(&[]), "the agent's death had ended the first one");
    }
}
