//! What was asked and what was answered, in an order that everybody agrees on.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::linearizability::server;

/// A moment of the test. Of two moments, the smaller one was earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Moment(pub u64);

/// From when to when something took place: its effect is somewhere between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Before it was sent.
    pub sent: Moment,
    /// After its answer, or after it was given up.
    pub answered: Moment,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Outcome<T> {
    /// It was acknowledged.
    Acknowledged(T),
    /// It was considered and refused: no effect, ever.
    Refused(String),
    /// It was not even considered, or never sent: no effect, ever.
    NotTaken(String),
    /// No answer, or one that does not say: an effect or none.
    Unknown(String),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Event {
    /// A session was asked for; acknowledged with its id.
    Create {
        /// When.
        span: Span,
        /// Its name, which no other request has.
        name: String,
        /// Its owner.
        owner: String,
        /// What became of it.
        outcome: Outcome<String>,
    },
    /// The end of a session was asked for.
    Delete {
        /// When.
        span: Span,
        /// Id of the session.
        session: String,
        /// What became of it.
        outcome: Outcome<()>,
    },
    /// A session was looked at.
    Look {
        /// When.
        span: Span,
        /// Id of the session.
        session: String,
        /// Its state, if it was found.
        found: Option<String>,
    },
    /// A server was to be opened, closed or drained.
    Door {
        /// When.
        span: Span,
        /// Id of the server.
        server: String,
        /// What was wished.
        wish: server::Input,
        /// What became of it.
        outcome: Outcome<()>,
    },
    /// A server was looked at.
    DoorSeen {
        /// When.
        span: Span,
        /// Id of the server.
        server: String,
        /// Whether it counted as closed.
        closed: bool,
    },
    /// The queue was looked at.
    QueueSeen {
        /// When.
        span: Span,
        /// Only those of this owner were asked for, who has no other sessions.
        owner: String,
        /// Name and id of the session of each who waits, the first one first.
        waiting: Vec<(String, String)>,
    },
    /// Something else was broken, or mended.
    Fault {
        /// From when to when that was done.
        span: Span,
        /// What.
        what: String,
    },
    /// The broker was killed.
    BrokerKilled {
        /// When.
        span: Span,
    },
    /// An agent was killed, and its simulated desktops with it.
    AgentKilled {
        /// When.
        span: Span,
        /// Id of the server that it spoke for.
        server: String,
    },
}

/// Takes down what happens. Shared by all who make it happen.
#[derive(Debug, Default)]
pub struct History {
    moments: AtomicU64,
    events: Mutex<Vec<Event>>,
}

impl History {
    /// This moment.
    pub fn now(&self) -> Moment {
        Moment(self.moments.fetch_add(1, Ordering::SeqCst))
    }

    /// From `sent` until now.
    pub fn since(&self, sent: Moment) -> Span {
        Span { sent, answered: self.now() }
    }

    /// Adds what happened.
    pub fn add(&self, events: impl IntoIterator<Item = Event>) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
    }

    /// Everything so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes everything so far into a file, one JSON object a line.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for event in self.events() {
            serde_json::to_writer(&mut file, &event)?;
            file.write_all(b"\n")?;
        }
        Ok(file.flush()?)
    }
}
