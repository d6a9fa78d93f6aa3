//! Real desktops through the real API: `berth dev` as a newcomer runs it, and
//! agents on hosts where something is missing. Needs the Debian packages
//! tigervnc-standalone-server, tigervnc-tools, openbox and xterm.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::agent::{Agent, end_desktops, processes_of, records};
use common::api::{Api, Credentials};
use common::broker::Broker;
use common::process::{Process, berth};
use common::{free_port, own_user, until};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

/// `berth dev` in a folder of its own.
struct Dev {
    // Fields go in this order: the process ends before its folder does.
    process: Process,
    folder: tempfile::TempDir,
    summary: Value,
}

impl Dev {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(Self::command(folder.path(), free_port(), free_port()));
        let mut dev = Self { folder, process, summary: Value::Null };
        dev.is_ready().await;
        dev
    }

    fn command(folder: &Path, port: u16, agent_port: u16) -> std::process::Command {
        let mut command = berth();
        command.args(["dev", "--json", "--port", &port.to_string(), "--agent-port", &agent_port.to_string()]);
        command.arg("--folder").arg(folder);
        command
    }

    async fn is_ready(&mut self) {
        let summary = |line: &str| serde_json::from_str(line).ok();
        self.summary = self.process.stdout_line("the summary", summary).await;
    }

    async fn start_again(&mut self) {
        self.process = Process::start(Self::command(self.folder.path(), free_port(), free_port()));
        self.is_ready().await;
    }

    fn text(&self, key: &str) -> String {
        self.summary[key].as_str().unwrap_or_else(|| panic!("no {key} in {}", self.summary)).to_owned()
    }

    async fn api(&self) -> Api {
        let credentials = Credentials { id: self.text("client_id"), secret: self.text("client_secret") };
        Api::connect(&self.text("url"), Path::new(&self.text("ca")), &credentials).await
    }

    fn sessions_folder(&self) -> PathBuf {
        self.folder.path().join("agent/sessions")
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.process.pid(), Signal::KILL);
        end_desktops(&self.sessions_folder());
    }
}

/// Width, height and number of colours.
fn look_at(file: &[u8], format: image::ImageFormat) -> (u32, u32, usize) {
    let picture = image::load_from_memory_with_format(file, format).unwrap().into_rgb8();
    let colours: std::collections::HashSet<_> = picture.pixels().collect();
    (picture.width(), picture.height(), colours.len())
}

/// A picture of a session through the API.
async fn picture(api: &Api, id: &str, limits: Value) -> (String, Vec<u8>) {
    let mut item = json!({ "SessionId": id });
    item.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
    let answer = api.call("getSessionScreenshots", json!([item])).await;
    let image = &answer["SuccessfulList"][0]["SessionScreenshot"]["Images"][0];
    let data = image["Data"].as_str().unwrap_or_else(|| panic!("no picture: {answer}"));
    assert_eq!(image["Primary"], true);
    (image["Format"].as_str().unwrap().to_owned(), STANDARD.decode(data).unwrap())
}

/// No process, no lock, no socket, no file of a session is left.
async fn nothing_is_left(record: &Value) {
    until("every process of the session ends", || async { processes_of(record).is_empty().then_some(()) }).await;
    let display = record["screen"]["display"].as_u64().unwrap();
    let lock = std::fs::read_to_string(format!("/tmp/.X{display}-lock")).unwrap_or_default();
    // Another session may have taken the display since: then the lock is its.
    assert_ne!(lock.trim(), record["running"]["server"]["pid"].to_string(), "the lock is left");
    if lock.is_empty() {
        assert!(!Path::new(&format!("/tmp/.X11-unix/X{display}")).exists(), "the socket is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_ends_with_a_desktop_that_is_found_again_and_can_be_deleted() {
    let mut dev = Dev::start().await;
    let file = std::fs::read(dev.text("screenshot")).unwrap();
    let (width, height, colours) = look_at(&file, image::ImageFormat::Png);
    assert!(width > 100 && height > 100 && colours > 1, "{width}x{height} with {colours} colours");
    let session = dev.text("session");
    let api = dev.api().await;
    let found = api.session(&session).await.unwrap();
    assert_eq!((&found["State"], &found["Owner"]), (&json!("READY"), &json!(own_user())));
    assert_eq!(records(&dev.sessions_folder()).len(), 1);
    let record = records(&dev.sessions_folder()).remove(0);
    assert!(!processes_of(&record).is_empty());

    // Ctrl-C: broker and agent end, the desktop stays.
    let status = dev.process.stop(Signal::INT).await;
    assert!(status.success(), "{status}");
    assert!(!processes_of(&record).is_empty(), "the desktop ended with the agent");

    let before = dev.summary.clone();
    dev.start_again().await;
    for key in ["session", "client_id", "client_secret", "ca"] {
        assert_eq!(dev.summary[key], before[key], "{key}");
    }
    let api = dev.api().await;
    assert_eq!(api.session(&session).await.unwrap()["State"], "READY");
    assert_eq!(records(&dev.sessions_folder()).len(), 1, "a second desktop was made");

    let answer = api.delete(&session, &own_user()).await;
    assert_eq!(answer["SuccessfulList"][0]["SessionId"], session.as_str(), "{answer}");
    api.session_in_state(&session, "DELETED").await;
    nothing_is_left(&record).await;
    assert_eq!(records(&dev.sessions_folder()), Vec::<Value>::new());

    // Killed this time, and with nothing to be found: a new desktop is made.
    dev.process.stop(Signal::KILL).await;
    dev.start_again().await;
    assert_ne!(dev.text("session"), session);
    assert_eq!(dev.api().await.session(&session).await.unwrap()["State"], "DELETED");
    let record = records(&dev.sessions_folder()).remove(0);
    let api = dev.api().await;
    api.delete(&dev.text("session"), &own_user()).await;
    api.session_in_state(&dev.text("session"), "DELETED").await;
    nothing_is_left(&record).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_is_made_as_the_request_says_and_ends_with_its_programs() {
    let broker = Broker::start_with("[screenshots]\nformat = 'jpeg'\nwidth_max = 320\nheight_max = 200").await;
    let api = broker.api().await;
    let mut agent = Agent::xvnc(&broker, "");
    let marks = agent.folder.path().join("marks");
    std::fs::create_dir(&marks).unwrap();
    std::fs::set_permissions(&marks, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let marks = marks.display();
    agent.script("init/desk.sh", &format!("#!/bin/sh\necho $BERTH_SESSION_ID >{marks}/init\nexec xterm\n"));
    agent.script(
        "autorun/begin.sh",
        &format!("#!/bin/sh\nprintf '%s|' \"$@\" >{marks}/new\nmv {marks}/new {marks}/autorun\n"),
    );
    let server = agent.linked().await;
    api.server_available(&server).await;
    let id = api
        .create(json!({
            "Name": "made to order", "Owner": own_user(), "Type": "Virtual",
            "InitFile": "desk.sh", "AutorunFile": "begin.sh", "AutorunFileArguments": ["one", "two words", "$HOME"]
        }))
        .await;
    api.session_in_state(&id, "READY").await;
    let read = |name: &str| std::fs::read_to_string(format!("{marks}/{name}")).ok();
    assert_eq!(until("the init file ran", || async { read("init") }).await.trim(), id);
    assert_eq!(until("the autorun file ran", || async { read("autorun") }).await, "one|two words|$HOME|");

    // The broker's format and limits, and those of a request.
    let (format, file) = picture(&api, &id, json!({})).await;
    let (width, height, _) = look_at(&file, image::ImageFormat::Jpeg);
    assert!(format == "jpeg" && width <= 320 && height <= 200 && width.max(height) >= 200, "{width}x{height}");
    let (_, file) = picture(&api, &id, json!({ "MaxWidth": 100, "MaxHeight": 1000 })).await;
    let (width, height, _) = look_at(&file, image::ImageFormat::Jpeg);
    assert!(width == 100 && height < 100, "{width}x{height}: scaled in its proportions");

    // The session outlives its agent, killed or not.
    for by in [Signal::TERM, Signal::KILL] {
        agent.restart(by).await;
        assert_eq!(agent.linked().await, server);
        api.server_available(&server).await;
        assert_eq!(api.session(&id).await.unwrap()["State"], "READY");
    }
    picture(&api, &id, json!({})).await;

    // It ends with the program that made it.
    let record = records(&agent.folder.path().join("data/sessions")).remove(0);
    let desktop = record["running"]["desktop"]["pid"].as_i64().unwrap();
    let desktop = rustix::process::Pid::from_raw(desktop.try_into().unwrap()).unwrap();
    rustix::process::kill_process(desktop, Signal::KILL).unwrap();
    let ended = api.session_in_state(&id, "DELETED").await;
    assert!(!ended["StateReason"].as_str().unwrap().is_empty());
    nothing_is_left(&record).await;
}

/// Folders of sessions; what is being removed lies in one that is hidden.
fn left_in(sessions: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(sessions).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_that_cannot_be_made_ends_with_the_reason_and_the_agent_lives() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut agent = Agent::xvnc(&broker, "");
    agent.script("init/ends.sh", "#!/bin/sh\nexit 3\n");
    let server = agent.linked().await;
    api.server_available(&server).await;
    let owner = own_user();
    // What is asked for, and a word of the reason.
    let requests = [
        (json!({ "Owner": "nobody-of-this-name" }), "nobody-of-this-name"),
        (json!({ "Owner": owner, "InitFile": "missing.sh" }), "missing.sh"),
        (json!({ "Owner": owner, "InitFile": "ends.sh" }), "ended with code 3"),
        (json!({ "Owner": owner, "AutorunFile": "missing.sh" }), "missing.sh"),
    ];
    for (request, word) in requests {
        let mut item = json!({ "Name": "doomed", "Type": "VIRTUAL" });
        item.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
        let id = api.create(item).await;
        let session = api.session_in_state(&id, "DELETED").await;
        let reason = session["StateReason"].as_str().unwrap_or_default();
        assert!(reason.contains(word), "{request}: {session}");
    }
    assert_eq!(left_in(&agent.folder.path().join("data/sessions")), Vec::<String>::new());
    // The next one is made.
    let id = api.create_on(&server, &owner).await;
    api.session_in_state(&id, "READY").await;
    api.delete(&id, &owner).await;
    api.session_in_state(&id, "DELETED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_xvnc_says_so_and_takes_no_sessions() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut agent = Agent::without_xvnc(&broker);
    let server = agent.linked().await;
    let unhealthy = |server: &Value| server["UnavailabilityReason"] == "UNHEALTHY_DCV_SERVER";
    api.server_when(&server, "UNHEALTHY_DCV_SERVER", unhealthy).await;
    let item = json!({ "Name": "s", "Owner": own_user(), "Type": "VIRTUAL" });
    let answer = api.call("createSessions", json!([item])).await;
    let reason = answer["UnsuccessfulList"][0]["FailureReason"].as_str().unwrap();
    assert!(reason.contains("no dcv server found for placement"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_words_of_the_api_reach_a_real_desktop() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut agent = Agent::xvnc(&broker, "");
    let server = agent.linked().await;
    api.server_available(&server).await;
    let owner = own_user();
    let id = api.create_on(&server, &owner).await;
    api.session_in_state(&id, "READY").await;
    let path = format!("/sessionConnectionData/{id}/{owner}");
    let (status, data) = api.send(Method::GET, &path, &Value::Null).await;
    assert_eq!(status, 200, "{data}");
    assert!(!data["ConnectionToken"].as_str().unwrap().is_empty());
    assert_eq!(data["Session"]["Id"], id.as_str());

    let permissions = STANDARD.encode("[permissions]\n%owner% allow builtin\n");
    let item = json!([{ "SessionId": id, "Owner": owner, "PermissionsFile": permissions }]);
    let (status, answer) = api.send(Method::PUT, "/sessionPermissions", &item).await;
    assert_eq!((status.as_u16(), &answer["SuccessfulList"][0]["SessionId"]), (200, &json!(id)), "{answer}");
    let folder = agent.folder.path().join("data/sessions").join(&id);
    let written = || async { std::fs::read_to_string(folder.join("permissions")).ok() };
    assert!(until("the host has the permissions", written).await.contains("%owner% allow builtin"));

    let record = records(&agent.folder.path().join("data/sessions")).remove(0);
    let answer = api.call("closeServers", json!([{ "ServerId": server }])).await;
    assert_eq!(answer["UnsuccessfulList"][0]["FailureCode"], "DCV_SERVER_HAS_SESSIONS", "{answer}");
    let answer = api.call("closeServers", json!([{ "ServerId": server, "Force": true }])).await;
    assert_eq!(answer["SuccessfulList"][0]["ServerId"], server.as_str(), "{answer}");
    api.delete(&id, &owner).await;
    api.session_in_state(&id, "DELETED").await;
    nothing_is_left(&record).await;
}
