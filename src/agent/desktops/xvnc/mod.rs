//! Desktops by TigerVNC's Xvnc: an X server for each session, run as the
//! session's owner.
//!
//! Sessions outlive the agent: each has a record on disk, and is found again by
//! the numbers and start times of its processes. Every process of a session
//! carries the session's mark in its environment, so that closing finds all.
//! A session ends by itself when its X server or the program that makes its
//! desktop ends; the rest is then cleared away.

mod client;
mod display;
mod owner;
mod process;
mod record;
mod rests;
mod screen;
mod start;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, OwnedMutexGuard, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{Desktops, Failure, Shot, State, picture, unknown};
use crate::agent::clock;
use crate::agent::config;
use crate::domain::host::Health;
use crate::domain::{InstructionId, SessionId, SessionSpec};
use crate::files::{self, FileError};
use crate::protocol::Image;

use display::Displays;
use process::Process;
use record::{Folder, Record, Running, VERSION};
use screen::Room;
use start::Plan;

/// Time between two looks at the sessions, when nothing calls for one.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often, and after which time each, an X server is looked at whose desktop has ended.
const LAST_MOMENTS: u32 = 10;
/// See [`LAST_MOMENTS`].
const LAST_MOMENT: Duration = Duration::from_millis(50);

/// Where an agent keeps its Xvnc desktops, and what it makes them of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Records of the sessions; made when it is missing.
    pub folder: PathBuf,
    /// Init files.
    pub init_folder: PathBuf,
    /// Autorun files.
    pub autorun_folder: PathBuf,
    /// Screen and window manager.
    pub settings: config::Xvnc,
}

/// Xvnc desktops of one host.
#[derive(Debug)]
pub struct Xvnc {
    inner: Arc<Inner>,
    version: String,
}

#[derive(Debug)]
struct Inner {
    setup: Setup,
    state: watch::Sender<State>,
    /// Sessions that are up.
    live: Mutex<BTreeMap<SessionId, Record>>,
    displays: Displays,
    room: Room,
    /// Held while something is done to a session.
    turns: Mutex<HashMap<SessionId, Arc<tokio::sync::Mutex<()>>>>,
    /// Calls for a look at the sessions: a process ended.
    look: Notify,
}

/// Why an agent's Xvnc desktops cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The record of a session cannot be understood, so that nobody would
    /// report the session or could end it.
    #[error(
        "the record of a session cannot be used: {problem}; put it right, or end the processes that have \
         BERTH_SESSION_ID={session} in their environment and remove {}",
        folder.display()
    )]
    Record {
        /// Name of the session's folder: its id, escaped.
        session: String,
        /// The session's folder.
        folder: PathBuf,
        /// What is wrong with the record.
        problem: String,
    },
}

/// How a person on the host looks at a desktop with a VNC viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Viewing {
    /// Port on the loopback address.
    pub port: u16,
    /// Password file for the viewer; its owner and root may read it.
    pub password_file: PathBuf,
}

/// Where a session in an agent's sessions folder can be looked at; `None` when
/// it does not run there.
pub fn viewing(sessions: &Path, id: &SessionId) -> Option<Viewing> {
    let folder = Folder::of(sessions, id).ok()?;
    let record = folder.read().ok()??;
    record.running?;
    Some(Viewing { port: display::port_of(record.screen?.display), password_file: folder.password() })
}

impl Xvnc {
    /// Finds the sessions of an earlier agent again, clears away what is left
    /// of those that ended meanwhile, and watches over all.
    pub async fn open(setup: Setup) -> Result<Self, Error> {
        files::make_folder(&setup.folder, 0o711)?;
        if let Err(problem) = display::prepare_socket_folder() {
            error!(%problem, "no session can be made until this is put right");
        }
        let inner = Arc::new(Inner {
            setup,
            state: watch::Sender::new(State { health: health(), ..State::default() }),
            live: Mutex::default(),
            displays: Displays::default(),
            room: Room::default(),
            turns: Mutex::default(),
            look: Notify::new(),
        });
        inner.find_again().await?;
        inner.look_at_all().await;
        tokio::spawn(watch_over(Arc::downgrade(&inner)));
        Ok(Self { inner, version: version().await })
    }
}

impl Desktops for Xvnc {
    fn version(&self) -> String {
        self.version.clone()
    }

    fn console_sessions(&self) -> bool {
        false
    }

    fn watch(&self) -> watch::Receiver<State> {
        self.inner.state.subscribe()
    }

    fn create(
        &self,
        session: SessionId,
        spec: SessionSpec,
        created_by: Option<InstructionId>,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            let turn = self.inner.turn(&session);
            let _turn = turn.lock().await;
            self.inner.create(session, spec, created_by).await
        }
        .boxed()
    }

    fn close(&self, session: SessionId) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            let turn = self.inner.turn(&session);
            let _turn = turn.lock().await;
            let Some(record) = self.inner.live().get(&session).cloned() else { return Ok(()) };
            self.inner.end(&record).await?;
            self.inner.live().remove(&session);
            self.inner.state.send_modify(|state| {
                state.sessions.remove(&session);
            });
            Ok(())
        }
        .boxed()
    }

    fn set_permissions(&self, session: SessionId, permissions: String) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            let turn = self.inner.turn(&session);
            let _turn = turn.lock().await;
            if !self.inner.live().contains_key(&session) {
                return Err(unknown(&session));
            }
            write_permissions(&self.inner.folder(&session)?, &permissions)
        }
        .boxed()
    }

    fn screenshot(&self, session: SessionId, shot: Shot) -> BoxFuture<'_, Result<Vec<Image>, Failure>> {
        async move {
            let record = self.inner.live().get(&session).cloned().ok_or_else(|| unknown(&session))?;
            let screen = record.screen.as_ref().ok_or_else(|| unknown(&session))?;
            let (pixels, room) = screen
                .picture(&self.inner.room)
                .await
                .map_err(|problem| Failure(format!("no picture of session {session} can be taken: {problem}")))?;
            let taken_at_ms = clock::now().0;
            let encoding = tokio::task::spawn_blocking(move || {
                let encoded = picture::encode(pixels, shot, taken_at_ms);
                drop(room);
                encoded
            });
            let encoded = encoding.await;
            let image = encoded.map_err(|error| Failure(format!("the picture failed: {error}")))??;
            Ok(vec![image])
        }
        .boxed()
    }
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, BTreeMap<SessionId, Record>> {
        // Each change of the map is one operation, so a panic leaves it whole.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, session: &SessionId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(session.clone()).or_default())
    }

    fn folder(&self, session: &SessionId) -> Result<Folder, Failure> {
        Folder::of(&self.setup.folder, session)
    }

    async fn create(
        self: &Arc<Self>,
        session: SessionId,
        mut spec: SessionSpec,
        created_by: Option<InstructionId>,
    ) -> Result<(), Failure> {
        if self.live().contains_key(&session) {
            return Err(Failure(format!("session {session} exists already on this host")));
        }
        let plan = Plan::make(self, &spec).await?;
        let folder = self.folder(&session)?;
        if folder.path().exists() {
            return Err(Failure(format!(
                "the folder {} of an earlier session {session} could not be cleared; see the agent's log",
                folder.path().display()
            )));
        }
        // Megabytes, perhaps, in a file of their own.
        let permissions = spec.permissions.take();
        let mut record = Record {
            version: VERSION,
            id: session,
            spec,
            created_by,
            created_at: clock::now(),
            mark: uuid::Uuid::new_v4().simple().to_string(),
            last_disconnected_at: None,
            screen: None,
            running: None,
        };
        match self.bring_up(&plan, &folder, &mut record, permissions).await {
            Ok(()) => Ok(()),
            Err(failure) => {
                if let Err(rest) = self.end(&record).await {
                    error!(session = %record.id, %rest, "a session that failed to start left something behind");
                }
                Err(failure)
            }
        }
    }

    async fn bring_up(
        self: &Arc<Self>,
        plan: &Plan,
        folder: &Folder,
        record: &mut Record,
        permissions: Option<String>,
    ) -> Result<(), Failure> {
        files::make_new_folder(folder.path(), 0o711, None).map_err(|error| Failure(error.to_string()))?;
        folder.write(record)?;
        if let Some(permissions) = permissions {
            write_permissions(folder, &permissions)?;
        }
        plan.prepare(folder).await?;
        plan.start(self, folder, record).await?;
        self.keep(folder, record.clone())
    }

    /// Writes a session that is up down and shows it.
    fn keep(&self, folder: &Folder, record: Record) -> Result<(), Failure> {
        folder.write(&record)?;
        let mut report = record.report(0);
        self.live().insert(record.id.clone(), record);
        self.state.send_modify(|state| {
            if let Some(known) = state.sessions.get(&report.id) {
                report.connections = known.connections;
            }
            state.sessions.insert(report.id.clone(), report);
        });
        Ok(())
    }

    /// Ends everything of a session and removes every trace.
    async fn end(&self, record: &Record) -> Result<(), Failure> {
        let server = record.running.as_ref().map(|running| running.server);
        let leaders = record.running.as_ref().map(Running::leaders).unwrap_or_default();
        self.end_processes(record, server, &leaders).await?;
        rests::remove(&self.setup.folder, self.folder(&record.id)?.path()).await
    }

    /// Ends the processes of a session and gives its display back.
    async fn end_processes(
        &self,
        record: &Record,
        server: Option<Process>,
        leaders: &[Process],
    ) -> Result<(), Failure> {
        let left = process::end_all(&record.mark, server, leaders).await;
        let display = record.screen.as_ref().map(|screen| screen.display);
        let cleaned = match display {
            Some(display) if left.is_empty() => tokio::task::spawn_blocking(move || display::clean_up(display))
                .await
                .map_err(|error| Failure(format!("clearing display {display} failed: {error}")))
                .flatten(),
            _ => Ok(()),
        };
        // Should its X server still run, the next look at the display shows it.
        if let Some(display) = display {
            self.displays.give_back(display, &record.mark);
        }
        if !left.is_empty() {
            let pids: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
            return Err(Failure(format!("processes of the session cannot be ended: {}", pids.join(", "))));
        }
        cleaned
    }

    /// Waits for a process in the background, so that it does not stay a
    /// zombie, and looks at the sessions when it ends.
    fn reap(self: &Arc<Self>, mut child: Child) {
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            // An error means that somebody else waited for it.
            let _ = child.wait().await;
            if let Some(inner) = inner.upgrade() {
                inner.look.notify_one();
            }
        });
    }

    async fn find_again(&self) -> Result<(), Error> {
        let sessions = &self.setup.folder;
        rests::empty_trash(sessions).await;
        let entries = std::fs::read_dir(sessions).map_err(FileError::of("list", sessions))?;
        for entry in entries {
            let path = entry.map_err(FileError::of("list", sessions))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            let name = name.as_deref();
            if !name.is_some_and(files::is_file_name) {
                if name != Some(rests::TRASH) {
                    warn!(path = %path.display(), "this is no folder of a session and stays as it is");
                }
                continue;
            }
            let folder = Folder::at(path);
            let record = match folder.read() {
                Ok(Some(record)) => record,
                Ok(None) => {
                    // The agent ended before it had started anything.
                    if let Err(failure) = rests::remove(sessions, folder.path()).await {
                        error!(%failure, "an empty session folder stays");
                    }
                    continue;
                }
                Err(problem) => {
                    let session = name.unwrap_or_default().to_owned();
                    return Err(Error::Record { session, folder: folder.path().to_path_buf(), problem });
                }
            };
            let up = record.running.as_ref().filter(|running| running.server.is_alive() && running.desktop.is_alive());
            if let (Some(_), Some(screen)) = (up, &record.screen) {
                info!(session = %record.id, display = screen.display, "found a session again");
                self.displays.keep(screen.display, &record.mark);
                let report = record.report(0);
                self.live().insert(record.id.clone(), record);
                self.state.send_modify(|state| {
                    state.sessions.insert(report.id.clone(), report);
                });
                continue;
            }
            info!(session = %record.id, "clearing away a session that ended while the agent was away");
            if let Err(failure) = self.end(&record).await {
                error!(session = %record.id, %failure, "a session that ended left something behind");
            }
            self.state.send_modify(|state| state.end(&record.id, "the session ended while the agent was away"));
        }
        Ok(())
    }

    /// Notices what ended and who is connected.
    async fn look_at_all(self: &Arc<Self>) {
        let health = health();
        self.state.send_if_modified(|state| {
            let changed = state.health != health;
            state.health = health;
            changed
        });
        let records: Vec<Record> = self.live().values().cloned().collect();
        if records.is_empty() {
            return;
        }
        let tables = tokio::task::spawn_blocking(display::connection_tables).await.unwrap_or_default();
        for record in records {
            let (Some(running), Some(screen)) = (&record.running, &record.screen) else { continue };
            if running.server.is_alive() && running.desktop.is_alive() {
                let port = display::port_of(screen.display);
                self.look_at(&record, display::connections_to(port, &tables));
            } else if let Ok(turn) = self.turn(&record.id).try_lock_owned() {
                // Takes seconds, in which others are looked at.
                let inner = Arc::clone(self);
                tokio::spawn(async move { inner.notice_end(&record.id, turn).await });
            }
        }
    }

    fn look_at(&self, record: &Record, connections: u32) {
        let Ok(folder) = self.folder(&record.id) else { return };
        folder.bound_logs();
        let before = self.state.borrow().sessions.get(&record.id).map_or(0, |session| session.connections);
        if before == connections {
            return;
        }
        // While something is done to the session the next look will do.
        let Ok(_turn) = self.turn(&record.id).try_lock_owned() else { return };
        let Some(mut record) = self.live().get(&record.id).cloned() else { return };
        if connections == 0 {
            record.last_disconnected_at = Some(clock::now());
            if let Err(failure) = folder.write(&record) {
                warn!(session = %record.id, %failure, "the last disconnection is not written down");
            }
            self.live().insert(record.id.clone(), record.clone());
        }
        self.state.send_modify(|state| {
            state.sessions.insert(record.id.clone(), record.report(connections));
        });
    }

    async fn notice_end(&self, session: &SessionId, _turn: OwnedMutexGuard<()>) {
        // Closed meanwhile, most likely by the close that ended its processes.
        let Some(record) = self.live().get(session).cloned() else { return };
        let Some(running) = &record.running else { return };
        if running.server.is_alive() && running.desktop.is_alive() {
            // Closed and made again meanwhile.
            return;
        }
        let folder = self.folder(session);
        let tail = |log| folder.as_ref().map_or_else(|_| String::new(), |folder| folder.tail(log));
        let reason = if outlives(&running.server).await {
            format!("the session's window manager or init file ended: {}", tail("desktop"))
        } else {
            format!("the session's X server ended: {}", tail("xvnc"))
        };
        info!(%session, %reason, "a session ended by itself");
        if let Err(failure) = self.end(&record).await {
            error!(%session, %failure, "a session that ended left something behind");
        }
        self.live().remove(session);
        self.state.send_modify(|state| state.end(session, &reason));
    }
}

/// Whether an X server goes on although its desktop has ended. One that is killed takes its
/// clients along, and these may be gone a moment before it is.
async fn outlives(server: &Process) -> bool {
    for _ in 0..LAST_MOMENTS {
        if !server.is_alive() {
            return false;
        }
        tokio::time::sleep(LAST_MOMENT).await;
    }
    server.is_alive()
}

/// Looks at the sessions now and again, until the desktops are dropped.
async fn watch_over(inner: Weak<Inner>) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        // A time-out is the ordinary case: nothing called.
        let _ = timeout(LOOK_EVERY, strong.look.notified()).await;
        strong.look_at_all().await;
    }
}

fn write_permissions(folder: &Folder, permissions: &str) -> Result<(), Failure> {
    files::replace(&folder.permissions(), permissions.as_bytes(), 0o600).map_err(|error| Failure(error.to_string()))
}

fn health() -> Health {
    match owner::find_program("Xvnc") {
        Some(_) => Health::Healthy,
        None => Health::Unhealthy(start::XVNC_MISSING.to_owned()),
    }
}

/// Name and version of the X server, as it says itself.
async fn version() -> String {
    const UNKNOWN: &str = "Xvnc";
    let Some(program) = owner::find_program("Xvnc") else { return UNKNOWN.to_owned() };
    let asked = Command::new(program).arg("-version").kill_on_drop(true).output();
    let Ok(Ok(output)) = timeout(Duration::from_secs(5), asked).await else { return UNKNOWN.to_owned() };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let named = text.lines().find_map(|line| line.trim().strip_prefix("Xvnc ")?.split(" - ").next());
    named.unwrap_or(UNKNOWN).trim().to_owned()
}
