//! Clients of the API: each asks for one thing at a time, through any replica,
//! and keeps book of what it was answered.

use std::sync::Arc;
use std::time::Duration;

use berth::domain::client::{Grant, SecretHash};
use berth::domain::ids::IdempotencyKey;
use berth::domain::request::Fingerprint;
use berth::domain::{
    ClientId, Command, Millis, Outcome, Owner, Refusal, ServerId, SessionId, SessionKind, SessionSpec,
};
use berth_raft::{ProposeError, ReadError, View};
use tokio::time::{sleep, timeout};

use super::accounts::Told;
use super::broken::Broken;
use super::history::{Input, Moment, Operation, Output, Value};
use super::machine::Replicated;
use super::stories;
use super::world::World;
use crate::history::{self, Event, Outcome as Asked};
use crate::linearizability::server;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a client asks again for what it has given a key.
const REPEATS_MAX: u32 = 8;
/// Sessions that are wanted at a time; more are not asked for.
const SESSIONS_MAX: usize = 14;

/// What became of a write.
enum Written {
    /// The outcome, and the entry that did it.
    Done(Outcome, u64),
    /// It surely did not happen.
    NotDone(String),
    Unknown,
}

/// A client.
pub struct Client {
    world: Arc<World>,
    number: u32,
    written: u32,
}

impl Client {
    /// One of several.
    pub fn new(world: Arc<World>, number: u32) -> Self {
        Self { world, number, written: 0 }
    }

    /// Asks for this and that until the world comes to rest.
    pub async fn live(mut self) {
        while !self.world.is_resting() {
            sleep(Duration::from_millis(5 + self.world.dice.below(self.world.shape.think_ms))).await;
            match self.world.dice.below(100) {
                0..18 => self.create().await,
                18..32 => self.create_once().await,
                32..40 => self.delete().await,
                40..58 => self.set_permissions().await,
                58..62 => self.register().await,
                62..70 => self.operate().await,
                _ => self.read().await,
            }
        }
    }

    /// A name that nobody else uses.
    fn next_name(&mut self, what: &str) -> String {
        self.written += 1;
        format!("{what}-{}-{}", self.number, self.written)
    }

    async fn travel(&self) {
        let ms = self.world.dice.below(4);
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
    }

    /// Proposes something through some replica.
    async fn write(&self, what: &str, command: Command) -> Written {
        let world = &self.world;
        let before = world.judge.seen();
        world.count_call();
        self.travel().await;
        let Some(station) = self.world.any_station() else {
            return Written::NotDone("no replica runs".to_owned());
        };
        let replica = station.replica.clone();
        let via = replica.status().replica;
        let answered = station.host.spawn(async move { replica.propose(vec![command]).await });
        drop(station);
        let written = match timeout(PATIENCE, answered).await {
            Ok(Ok(Ok(mut proposed))) => match proposed.outcomes.pop() {
                Some(outcome) => Written::Done(outcome, proposed.index.0),
                None => Written::Unknown,
            },
            Ok(Ok(Err(ProposeError::OutcomeUnknown)) | Err(_)) | Err(_) => Written::Unknown,
            Ok(Ok(Err(error))) => Written::NotDone(error.to_string()),
        };
        self.travel().await;
        // The connection to the client may break, too.
        let is_lost = matches!(written, Written::Done(..)) && world.dice.in_thousand(world.shape.client_loss);
        let written = if is_lost { Written::Unknown } else { written };
        match &written {
            Written::Done(outcome, index) => {
                world.trace.note(&format!("client {} via {via}: {what}: {outcome:?} at {index}", self.number));
                world.judge.answered(what, *index, before, true);
                world.count_success();
            }
            Written::NotDone(why) => {
                world.trace.note(&format!("client {} via {via}: {what}: not done: {why}", self.number));
            }
            Written::Unknown => {
                world.trace.note(&format!("client {} via {via}: {what}: unknown", self.number));
                world.count_unknown();
            }
        }
        written
    }

    fn spec(&self, name: &str) -> SessionSpec {
        let owner = Owner::new(["ann", "bob", "cem"][self.world.dice.index(3).unwrap_or_default()]).expect("a name");
        let enqueue = self.world.dice.in_thousand(500);
        SessionSpec { enqueue, ..SessionSpec::plain(name.to_owned(), owner, SessionKind::Virtual) }
    }

    fn id(&self) -> ClientId {
        ClientId::new(&format!("portal-{}", self.number)).expect("a short text")
    }

    /// One request, one session; or none, or nobody knows.
    async fn create(&mut self) {
        if self.world.session_count() >= SESSIONS_MAX {
            return self.read().await;
        }
        let name = self.next_name("s");
        let id = SessionId::new(&name).expect("a short text");
        let spec = self.spec(&name);
        let owner = spec.owner.clone();
        let command = Command::CreateSession { id: id.clone(), spec, client: self.id() };
        let sent = self.world.calls.now();
        let told = match self.write(&format!("create {name}"), command).await {
            Written::Done(Outcome::Created { id, .. }, _) => Told::Done(id),
            Written::Done(other, _) => Told::NotDone(format!("{other:?}")),
            Written::NotDone(why) => Told::NotDone(why),
            Written::Unknown => Told::Nothing,
        };
        if !matches!(told, Told::NotDone(_)) {
            self.world.add_session(id, owner.clone());
        }
        self.made(sent, name, &owner, told);
    }

    /// Takes down what became of a request for a session.
    fn made(&self, sent: history::Moment, name: String, owner: &Owner, told: Told) {
        let outcome = match &told {
            Told::Done(id) => Asked::Acknowledged(id.as_str().to_owned()),
            Told::NotDone(why) => Asked::NotTaken(why.clone()),
            Told::Nothing => Asked::Unknown(String::new()),
        };
        let (span, owner) = (self.world.calls.since(sent), owner.as_str().to_owned());
        self.world.calls.add([Event::Create { span, name: name.clone(), owner, outcome }]);
        self.world.accounts().creates.insert(name, told);
    }

    /// One request that is repeated until there is an answer, each time with
    /// another id for the session, as another replica draws it.
    async fn create_once(&mut self) {
        if self.world.session_count() >= SESSIONS_MAX {
            return self.read().await;
        }
        let name = self.next_name("k");
        let spec = self.spec(&name);
        let owner = spec.owner.clone();
        let mut told = Told::Nothing;
        let mut may_have_happened = false;
        let sent = self.world.calls.now();
        for attempt in 0..REPEATS_MAX {
            let id = SessionId::new(&format!("{name}-{attempt}")).expect("a short text");
            let command = Command::Once {
                client: self.id(),
                key: IdempotencyKey::new(&name).expect("a short text"),
                fingerprint: Fingerprint([u8::try_from(self.number).unwrap_or_default(); 32]),
                request_id: format!("{name}-{attempt}"),
                commands: vec![Command::CreateSession { id, spec: spec.clone(), client: self.id() }],
            };
            let outcomes = match self.write(&format!("create {name} once, attempt {attempt}"), command).await {
                Written::Done(Outcome::Once(outcomes) | Outcome::Repeated { outcomes, .. }, _) => outcomes,
                Written::Done(other, _) => {
                    self.world.judge.violation(format!("{name} came to {other:?}"));
                    return;
                }
                Written::NotDone(why) => {
                    if !may_have_happened {
                        told = Told::NotDone(why);
                    }
                    sleep(Duration::from_millis(300)).await;
                    continue;
                }
                Written::Unknown => {
                    may_have_happened = true;
                    told = Told::Nothing;
                    continue;
                }
            };
            told = match outcomes.first() {
                Some(Outcome::Created { id, .. }) => {
                    self.world.add_session(id.clone(), owner.clone());
                    Told::Done(id.clone())
                }
                other => Told::NotDone(format!("{other:?}")),
            };
            break;
        }
        self.made(sent, name, &owner, told);
    }

    async fn delete(&mut self) {
        let Some((id, owner)) = self.world.any_session() else { return };
        let force = self.world.dice.in_thousand(200);
        let command = Command::DeleteSession { id: id.clone(), owner, force, client: self.id() };
        let sent = self.world.calls.now();
        let outcome = match self.write(&format!("delete {id}"), command).await {
            Written::Done(Outcome::Deleting(_), _) => {
                self.world.accounts().deleted.insert(id.clone());
                self.world.drop_session(&id);
                Asked::Acknowledged(())
            }
            Written::Done(Outcome::Refused(Refusal::UnknownSession), _) => Asked::Refused("no such session".to_owned()),
            Written::Done(other, _) => Asked::NotTaken(format!("{other:?}")),
            Written::NotDone(why) => Asked::NotTaken(why),
            Written::Unknown => Asked::Unknown(String::new()),
        };
        let span = self.world.calls.since(sent);
        self.world.calls.add([Event::Delete { span, session: id.as_str().to_owned(), outcome }]);
    }

    async fn set_permissions(&mut self) {
        let Some((id, owner)) = self.world.any_session() else { return };
        let permissions = self.next_name("p");
        let command =
            Command::UpdatePermissions { id: id.clone(), owner, permissions: permissions.clone(), client: self.id() };
        let called = self.world.history.now();
        let written = self.write(&format!("permissions of {id}: {permissions}"), command).await;
        self.keep(format!("permissions of {id}"), Some(permissions), called, &written);
    }

    /// Keeps a write in the history, unless it surely did not happen.
    fn keep(&self, key: String, value: Value, called: Moment, written: &Written) {
        let returned = self.world.history.now();
        let (output, returned, index) = match written {
            Written::Done(Outcome::Done | Outcome::Draining { .. }, index) => (Output::Written, returned, Some(*index)),
            Written::Done(..) | Written::NotDone(_) => return,
            Written::Unknown => (Output::Unknown, Moment::EVER, None),
        };
        let input = Input::Write(value);
        self.world.history.add(Operation { client: self.number, key, input, output, called, returned, index });
    }

    async fn register(&mut self) {
        let name = self.next_name("portal");
        let id = ClientId::new(&name).expect("a short text");
        let (secret, grant) = (SecretHash("hash".to_owned()), Grant::default());
        let command = Command::RegisterClient { id: id.clone(), name: name.clone(), secret, grant };
        let acknowledged = match self.write(&format!("register {name}"), command).await {
            Written::Done(Outcome::Done, _) => Some(true),
            Written::Done(..) | Written::NotDone(_) => Some(false),
            Written::Unknown => None,
        };
        self.world.accounts().clients.insert(id, acknowledged);
    }

    /// Opens, closes or drains a server.
    async fn operate(&mut self) {
        let id = self.any_server();
        let client = self.id();
        let (wish, command) = match self.world.dice.below(10) {
            0..6 => (server::Input::Open, Command::OpenServer { id: id.clone(), client }),
            6..8 => (server::Input::Close, Command::CloseServer { id: id.clone(), force: true, client }),
            _ => {
                let within = Millis(self.world.dice.below(5_000));
                (server::Input::Drain, Command::DrainServer { id: id.clone(), within, client })
            }
        };
        let closed = (wish != server::Input::Open).then(|| "closed".to_owned());
        let called = self.world.history.now();
        let sent = self.world.calls.now();
        let written = self.write(&format!("server {id}: {closed:?}"), command).await;
        let outcome = match &written {
            Written::Done(Outcome::Done | Outcome::Draining { .. }, _) => Asked::Acknowledged(()),
            Written::Done(other, _) => Asked::Refused(format!("{other:?}")),
            Written::NotDone(why) => Asked::NotTaken(why.clone()),
            Written::Unknown => Asked::Unknown(String::new()),
        };
        let span = self.world.calls.since(sent);
        self.world.calls.add([Event::Door { span, server: id.as_str().to_owned(), wish, outcome }]);
        self.keep(format!("state of {id}"), closed, called, &written);
    }

    /// A session to look at: of those that were ended as well, now and then.
    fn any_session_to_see(&self) -> Option<SessionId> {
        let world = &self.world;
        if world.dice.in_thousand(200) {
            let accounts = world.accounts();
            let place = world.dice.index(accounts.deleted.len())?;
            return accounts.deleted.iter().nth(place).cloned();
        }
        world.any_session().map(|(id, _)| id)
    }

    fn any_server(&self) -> ServerId {
        let servers = &self.world.servers;
        servers[self.world.dice.index(servers.len()).unwrap_or_default()].clone()
    }

    /// Reads a session or a server.
    async fn read(&mut self) {
        let world = Arc::clone(&self.world);
        let before = world.judge.seen();
        let called = world.history.now();
        let sent = world.calls.now();
        world.count_call();
        self.travel().await;
        let Some(station) = self.world.any_station() else { return };
        let replica = station.replica.clone();
        let via = replica.status().replica;
        let is_unconfirmed = world.plan.broken == Some(Broken::StaleRead);
        let answered =
            station.host.spawn(async move { if is_unconfirmed { Ok(replica.local()) } else { replica.read().await } });
        drop(station);
        let view: View<Replicated> = match timeout(PATIENCE, answered).await {
            Ok(Ok(Ok(view))) => view,
            Ok(Ok(Err(error))) => {
                // Whoever has stopped, or hears of no leader, says so.
                if let ReadError::Overloaded { .. } = error {
                    world.judge.violation(format!("replica {via} is overloaded by this: {error}"));
                }
                return;
            }
            Ok(Err(_)) | Err(_) => return,
        };
        self.travel().await;
        let fleet = view.state.fleet();
        let session = self.any_session_to_see().filter(|_| world.dice.in_thousand(700));
        let span = world.calls.since(sent);
        let (key, value) = if let Some(id) = session {
            let found = fleet.session(&id).map(|session| stories::word(fleet, session).to_owned());
            world.calls.add([Event::Look { span, session: id.as_str().to_owned(), found }]);
            // What is not there has no permissions; whether it has to be there is
            // another judge's.
            let permissions = fleet.session(&id).and_then(|session| session.spec.permissions.clone());
            (format!("permissions of {id}"), permissions)
        } else {
            let id = self.any_server();
            let closed = fleet.is_closed(&id);
            world.calls.add([Event::DoorSeen { span, server: id.as_str().to_owned(), closed }]);
            (format!("state of {id}"), closed.then(|| "closed".to_owned()))
        };
        let returned = world.history.now();
        world.trace.note(&format!("client {} via {via}: {key} is {value:?} as of {}", self.number, view.index));
        world.judge.answered(&format!("a read through replica {via}"), view.index.0, before, false);
        world.count_success();
        world.history.add(Operation {
            client: self.number,
            key,
            input: Input::Read,
            output: Output::Read(value),
            called,
            returned,
            index: Some(view.index.0),
        });
    }
}
