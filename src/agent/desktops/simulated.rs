//! Desktops that do not exist: for load and tests, never chosen by themselves.
//!
//! Sessions live in memory and end with the agent. What a host may do by
//! itself (end a session, make one, gain a connection) tests do through the
//! methods of [`Simulated`].

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use image::RgbImage;
use serde::Deserialize;
use tokio::sync::watch;

use super::{Desktops, Failure, Shot, State, picture, unknown};
use crate::agent::clock;
use crate::domain::host::Health;
use crate::domain::report::ReportedSession;
use crate::domain::{InstructionId, SessionId, SessionSpec};
use crate::protocol::Image;

/// Longest delay that can be set, in milliseconds.
const DELAY_MS_MAX: u64 = 600_000;

/// Most sessions of one simulated host: a full report of more would not fit
/// into a message.
const SESSIONS_MAX: usize = 10_000;

/// How simulated desktops behave.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Time that making a session takes, in milliseconds.
    pub create_delay_ms: u64,
    /// Time that ending a session takes, in milliseconds.
    pub close_delay_ms: u64,
    /// How many of 1,000 creations fail, at random.
    pub failures_per_thousand: u32,
    /// A session whose name holds this text cannot be made.
    pub fail_name: Option<String>,
    /// Host name to report instead of this host's.
    pub hostname: Option<String>,
    /// File that is told what really happened: a line for each start of the
    /// agent and for each session that was made or ended.
    pub trace_file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            create_delay_ms: 20,
            close_delay_ms: 20,
            failures_per_thousand: 0,
            fail_name: None,
            hostname: None,
            trace_file: None,
        }
    }
}

impl Settings {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.failures_per_thousand > 1000 {
            return Err("failures_per_thousand must be from 0 to 1000".to_owned());
        }
        if self.create_delay_ms.max(self.close_delay_ms) > DELAY_MS_MAX {
            return Err(format!("create_delay_ms and close_delay_ms must be at most {DELAY_MS_MAX}"));
        }
        Ok(())
    }
}

/// Simulated desktops of one host.
#[derive(Debug)]
pub struct Simulated {
    settings: Settings,
    state: watch::Sender<State>,
}

impl Simulated {
    /// A host without sessions.
    pub fn new(settings: Settings) -> Self {
        let simulated = Self { settings, state: watch::Sender::new(State::default()) };
        simulated.trace("started");
        simulated
    }

    /// Appends a line to the trace, whole: the agent may be killed at any time.
    fn trace(&self, line: &str) {
        let Some(path) = &self.settings.trace_file else { return };
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            tracing::error!(%error, path = %path.display(), "the trace of simulated desktops cannot be written");
        }
    }

    /// Ends a session the way a user's log-out does.
    pub fn end_by_itself(&self, session: &SessionId, reason: &str) {
        self.state.send_modify(|state| state.end(session, reason));
        self.trace(&format!("ended {session}"));
    }

    /// Makes, or changes, a session that nobody asked the agent for.
    pub fn put(&self, session: ReportedSession) {
        if !self.state.borrow().sessions.contains_key(&session.id) {
            self.trace(&format!("made {}", session.id));
        }
        self.state.send_modify(|state| {
            state.sessions.insert(session.id.clone(), session);
        });
    }

    /// Sets the number of clients connected to a session.
    pub fn connect(&self, session: &SessionId, connections: u32) {
        self.state.send_modify(|state| {
            if let Some(session) = state.sessions.get_mut(session) {
                if connections == 0 && session.connections > 0 {
                    session.last_disconnected_at = Some(clock::now());
                }
                session.connections = connections;
            }
        });
    }

    /// Sets the health of the host.
    pub fn set_health(&self, health: Health) {
        self.state.send_modify(|state| state.health = health);
    }

    fn failure_for(&self, session: &SessionId, spec: &SessionSpec) -> Option<Failure> {
        let state = self.state.borrow();
        if state.sessions.contains_key(session) {
            return Some(Failure(format!("session {session} exists already on this host")));
        }
        if state.sessions.len() >= SESSIONS_MAX {
            return Some(Failure(format!("a simulated host has at most {SESSIONS_MAX} sessions")));
        }
        if self.settings.fail_name.as_ref().is_some_and(|text| spec.name.contains(text.as_str())) {
            return Some(Failure::new("simulated failure: the name asks for it"));
        }
        let unlucky = rand::random_range(0..1000) < self.settings.failures_per_thousand;
        unlucky.then(|| Failure::new("simulated failure: bad luck"))
    }
}

impl Desktops for Simulated {
    fn version(&self) -> String {
        format!("simulated {}", env!("CARGO_PKG_VERSION"))
    }

    fn console_sessions(&self) -> bool {
        true
    }

    fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    fn create(
        &self,
        session: SessionId,
        spec: SessionSpec,
        created_by: Option<InstructionId>,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            tokio::time::sleep(Duration::from_millis(self.settings.create_delay_ms)).await;
            if let Some(failure) = self.failure_for(&session, &spec) {
                return Err(failure);
            }
            self.put(ReportedSession {
                id: session,
                name: spec.name,
                owner: spec.owner,
                kind: spec.kind,
                usable: true,
                connections: 0,
                clients_max: spec.clients_max,
                created_at: clock::now(),
                last_disconnected_at: None,
                storage_root: spec.storage_root,
                created_by,
            });
            Ok(())
        }
        .boxed()
    }

    fn close(&self, session: SessionId) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            tokio::time::sleep(Duration::from_millis(self.settings.close_delay_ms)).await;
            if self.state.send_if_modified(|state| state.sessions.remove(&session).is_some()) {
                self.trace(&format!("ended {session}"));
            }
            Ok(())
        }
        .boxed()
    }

    fn set_permissions(&self, session: SessionId, _permissions: String) -> BoxFuture<'_, Result<(), Failure>> {
        let known = self.state.borrow().sessions.contains_key(&session);
        async move { if known { Ok(()) } else { Err(unknown(&session)) } }.boxed()
    }

    fn screenshot(&self, session: SessionId, shot: Shot) -> BoxFuture<'_, Result<Vec<Image>, Failure>> {
        let known = self.state.borrow().sessions.contains_key(&session);
        async move {
            if !known {
                return Err(unknown(&session));
            }
            let picture = tokio::task::spawn_blocking(move || {
                // Two colours that differ between sessions.
                let tint = session.as_str().bytes().fold(7_u8, |tint, byte| tint.wrapping_mul(31).wrapping_add(byte));
                let screen = RgbImage::from_fn(320, 200, |x, y| {
                    if (x / 20 + y / 20) % 2 == 0 { image::Rgb([tint, 90, 160]) } else { image::Rgb([240, 240, tint]) }
                });
                picture::encode(screen, shot, clock::now().0)
            });
            let image = picture.await.map_err(|error| Failure(format!("the picture failed: {error}")))??;
            Ok(vec![image])
        }
        .boxed()
    }
}
