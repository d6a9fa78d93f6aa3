//! Kinds of desktop that an agent can give.
//!
//! - [`xvnc`]: TigerVNC's Xvnc, a real desktop for each session.
//! - [`simulated`]: none, in truth; for load and tests.
//! - A driver for Amazon DCV servers would be a module `dcv` beside them.
//!
//! A kind keeps its own account of its sessions and shows it as a [`State`]
//! that can be watched; the engine turns what changed into reports. The engine
//! never runs two operations of one session at a time.

pub mod picture;
pub mod simulated;
pub mod xvnc;

use std::collections::{BTreeMap, VecDeque};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::domain::host::Health;
use crate::domain::report::ReportedSession;
use crate::domain::{InstructionId, SessionId, SessionSpec};
use crate::protocol::{Image, ImageFormat};

/// How many ended sessions keep the reason of their end.
const ENDED_MAX: usize = 1024;

/// Why something could not be done, in words for the person who asked for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

impl Failure {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Sessions of a host and whether it can give more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Sessions that exist. One that is being made is not among them.
    pub sessions: BTreeMap<SessionId, ReportedSession>,
    /// Why the latest sessions that ended by themselves did; the newest last.
    pub ended: VecDeque<(SessionId, String)>,
    /// Whether desktops can be given at all.
    pub health: Health,
}

impl State {
    /// Takes a session out and remembers why it ended.
    pub(crate) fn end(&mut self, session: &SessionId, reason: &str) {
        self.sessions.remove(session);
        self.ended.push_back((session.clone(), reason.to_owned()));
        while self.ended.len() > ENDED_MAX {
            self.ended.pop_front();
        }
    }

    /// Why a session ended, when it did so by itself.
    pub fn reason_of_end(&self, session: &SessionId) -> Option<&str> {
        self.ended.iter().rev().find(|(ended, _)| ended == session).map(|(_, reason)| reason.as_str())
    }
}

/// What a picture of a screen is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shot {
    /// Largest width in pixels.
    pub width_max: u32,
    /// Largest height in pixels.
    pub height_max: u32,
    /// Format.
    pub format: ImageFormat,
}

/// A kind of desktop. All operations may take seconds and have a bound of
/// their own; dropping one of their futures half-way is not allowed.
pub trait Desktops: Send + Sync + 'static {
    /// Name and version of the software that gives the desktops.
    fn version(&self) -> String;

    /// Whether it can give the host's own screen.
    fn console_sessions(&self) -> bool;

    /// The sessions and the health, now and as they change.
    fn watch(&self) -> watch::Receiver<State>;

    /// Makes a session; it exists when this is done. On failure nothing is left.
    fn create(
        &self,
        session: SessionId,
        spec: SessionSpec,
        created_by: Option<InstructionId>,
    ) -> BoxFuture<'_, Result<(), Failure>>;

    /// Ends a session with everything that runs in it. One that does not exist
    /// is ended.
    fn close(&self, session: SessionId) -> BoxFuture<'_, Result<(), Failure>>;

    /// Replaces the permissions of a session.
    fn set_permissions(&self, session: SessionId, permissions: String) -> BoxFuture<'_, Result<(), Failure>>;

    /// Pictures of the screens of a session.
    fn screenshot(&self, session: SessionId, shot: Shot) -> BoxFuture<'_, Result<Vec<Image>, Failure>>;
}

/// The text for a session that is not here.
pub(crate) fn unknown(session: &SessionId) -> Failure {
    Failure(format!("session {session} does not exist on this host"))
}
