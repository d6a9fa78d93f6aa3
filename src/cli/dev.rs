//! `berth dev`: broker, agent and a first desktop on this machine.
//!
//! Everything it does it does as anybody would: the session is created,
//! described and photographed through the API, by a registered client with an
//! access token over TLS. All state is in one folder, and a second start finds
//! it again, the desktop included.

mod packages;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::http::{Api, Credentials};
use crate::agent::desktops::xvnc;
use crate::agent::{self};
use crate::broker::identity::Identity;
use crate::broker::{self, Running, config::Config};
use crate::domain::client::Grant;
use crate::domain::{ClientId, SessionId};
use crate::files;
use crate::secret::Secret;

/// How long the server, the session and its desktop may take to come up.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a desktop may take to show something.
const PICTURE_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Options of `berth dev`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of everything: log, keys, the desktop's files. By default
    /// `berth-dev` in the user's data folder.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Port for API clients.
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Port for agents.
    #[arg(long, default_value_t = 8445)]
    agent_port: u16,
    /// Install the Debian packages that are missing, with apt-get (and sudo
    /// when needed), instead of only naming them.
    #[arg(long)]
    install: bool,
    /// Print the same as JSON, once, when the desktop is there.
    #[arg(long)]
    json: bool,
}

/// What a second start must know.
#[derive(Serialize, Deserialize)]
struct Saved {
    client_id: String,
    client_secret: String,
    session: Option<String>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    packages::ensure(args.install).await?;
    let folder = match args.folder.clone() {
        Some(folder) => std::path::absolute(folder)?,
        None => default_folder()?,
    };
    files::make_folder(&folder, 0o700)?;

    let running = broker::start(broker_config(&folder, &args)).await?;
    let url = format!("https://localhost:{}", running.client_address.port());
    let ca_path = running.ca_path.clone();
    let saved_path = folder.join("client.json");
    let mut saved = client(&running, &saved_path).await?;

    let shutdown = CancellationToken::new();
    // Its agent enrols as any other does.
    let statement = folder.join("software-statement");
    running.identity.active_statement().await?.write(&statement)?;
    let agent_config = agent_config(&folder, &statement, &running);
    let mut agent = tokio::spawn(agent::run(agent_config, shutdown.clone()));
    let stop = shutdown.clone();
    let mut broker = tokio::spawn(running.run_until(async move { stop.cancelled().await }));

    let interrupted = super::interrupted();
    tokio::pin!(interrupted);
    let show = show(&args, &folder, &url, &ca_path, &mut saved, &saved_path);
    let result = tokio::select! {
        shown = show => match shown {
            Ok(()) => tokio::select! {
                () = &mut interrupted => Ok(()),
                ended = &mut agent => Err(ended_early("agent", &ended)),
                ended = &mut broker => Err(ended_early("broker", &ended)),
            },
            Err(error) => Err(error),
        },
        () = &mut interrupted => Ok(()),
        ended = &mut agent => Err(ended_early("agent", &ended)),
        ended = &mut broker => Err(ended_early("broker", &ended)),
    };
    shutdown.cancel();
    if !agent.is_finished() {
        agent.await??;
    }
    if !broker.is_finished() {
        broker.await??;
    }
    result
}

fn ended_early<T: std::fmt::Debug>(what: &str, ended: &T) -> anyhow::Error {
    anyhow::anyhow!("the {what} ended by itself: {ended:?}")
}

fn default_folder() -> anyhow::Result<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    Ok(data.or_else(home).context("there is no HOME; name a folder with --folder")?.join("berth-dev"))
}

fn broker_config(folder: &Path, args: &Args) -> Config {
    let mut config = Config { data_folder: folder.join("broker"), ..Config::default() };
    config.clients.listen = (std::net::Ipv4Addr::LOCALHOST, args.port).into();
    config.agents.listen = (std::net::Ipv4Addr::LOCALHOST, args.agent_port).into();
    config
}

fn agent_config(folder: &Path, statement: &Path, running: &Running) -> agent::Config {
    let mut config = agent::Config::new("localhost", statement, &folder.join("agent"));
    config.broker_port = running.agent_address.port();
    config.xvnc.allow_root = true; // whoever starts this gets a desktop of their own
    config.ca_file = Some(running.ca_path.clone());
    config.tags_folder = folder.join("agent/tags");
    // One person tries things out: let them make as many desktops as they like.
    config.max_concurrent_sessions_per_user = None;
    config.broker_update_interval = Duration::from_secs(5);
    config
}

/// The registered client: that of an earlier start, if the broker still knows it.
async fn client(running: &Running, path: &Path) -> anyhow::Result<Saved> {
    if path.exists() {
        let text = Secret::read(path)?;
        let saved: Saved = serde_json::from_str(text.expose())
            .with_context(|| format!("{} cannot be read; remove it to register a new client", path.display()))?;
        if knows(&running.broker, &saved.client_id) {
            return Ok(saved);
        }
    }
    let saved = register(&running.identity).await?;
    save(path, &saved)?;
    Ok(saved)
}

fn knows(broker: &broker::core::Broker, client_id: &str) -> bool {
    ClientId::new(client_id).is_ok_and(|id| broker.fleet().client(&id).is_some_and(|client| client.active))
}

async fn register(identity: &Identity) -> anyhow::Result<Saved> {
    let client = identity.register("berth dev", Grant::default()).await?;
    Ok(Saved {
        client_id: client.id.as_str().to_owned(),
        client_secret: client.secret.expose().to_owned(),
        session: None,
    })
}

fn save(path: &Path, saved: &Saved) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(saved)?;
    Ok(files::replace(path, text.as_bytes(), 0o600)?)
}

/// Brings up the session, photographs it and says how to go on.
async fn show(
    args: &Args,
    folder: &Path,
    url: &str,
    ca_path: &Path,
    saved: &mut Saved,
    saved_path: &Path,
) -> anyhow::Result<()> {
    let credentials = Credentials { id: saved.client_id.clone(), secret: Secret::new(saved.client_secret.clone()) };
    let api = Api::connect(url, ca_path, &credentials).await?;
    let id = session(&api, saved, saved_path, !args.json).await?;
    let picture = folder.join("screenshot.png");
    photograph(&api, &id, &picture).await?;
    let viewing = SessionId::new(&id).ok().and_then(|id| xvnc::viewing(&folder.join("agent/sessions"), &id));
    let summary = Summary { url, ca_path, saved, session: &id, picture: &picture, viewing };
    summary.print(args.json);
    Ok(())
}

/// The session of an earlier start when it is still there, else a new one.
async fn session(api: &Api, saved: &mut Saved, saved_path: &Path, tell: bool) -> anyhow::Result<String> {
    wait_for_server(api).await?;
    let mut watch = Watch { tell, shown: None };
    if let Some(id) = saved.session.clone() {
        match watch.until_settled(api, &id).await? {
            Settled::Ready => return Ok(id),
            Settled::Gone(reason) => {
                tracing::info!(session = id, reason, "the desktop of the last start is gone; a new one is made");
            }
        }
    }
    let owner = current_user().await?;
    let body = json!([{ "Name": "first desktop", "Owner": owner, "Type": "VIRTUAL" }]);
    let answer = api.call("createSessions", &body).await?;
    let Some(id) = answer["SuccessfulList"][0]["Id"].as_str().map(str::to_owned) else {
        bail!("the session was refused: {}", answer["UnsuccessfulList"][0]["FailureReason"]);
    };
    saved.session = Some(id.clone());
    save(saved_path, saved)?;
    match watch.until_settled(api, &id).await? {
        Settled::Ready => Ok(id),
        Settled::Gone(reason) => bail!("the session could not be created: {reason}"),
    }
}

async fn wait_for_server(api: &Api) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let answer = api.call("describeServers", &json!({})).await?;
        let available = |server: &Value| server["Availability"] == "AVAILABLE";
        if answer["Servers"].as_array().is_some_and(|servers| servers.iter().any(available)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the agent's server did not become available: {answer}");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

enum Settled {
    Ready,
    Gone(String),
}

/// Follows a session's state and prints each change.
struct Watch {
    tell: bool,
    shown: Option<String>,
}

impl Watch {
    async fn until_settled(&mut self, api: &Api, id: &str) -> anyhow::Result<Settled> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let Some(session) = api.session(id).await? else {
                return Ok(Settled::Gone("it is no longer listed".to_owned()));
            };
            self.show(id, &session);
            match session["State"].as_str() {
                Some("READY") => return Ok(Settled::Ready),
                Some("DELETED" | "DELETING") => {
                    let reason = session["StateReason"].as_str().unwrap_or("it was deleted");
                    return Ok(Settled::Gone(reason.to_owned()));
                }
                _ => {}
            }
            if Instant::now() > deadline {
                bail!("session {id} did not become READY within {} s: {session}", READY_TIMEOUT.as_secs());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn show(&mut self, id: &str, session: &Value) {
        let text = |key: &str| session[key].as_str().map(|text| format!(" {text}")).unwrap_or_default();
        let state = format!("session {id}:{}{}{}", text("State"), text("Substate"), text("StateReason"));
        if self.tell && self.shown.as_ref() != Some(&state) {
            say!("{state}");
            self.shown = Some(state);
        }
    }
}

async fn current_user() -> anyhow::Result<String> {
    let output = tokio::process::Command::new("id").arg("-un").output().await.context("cannot run id")?;
    let name = String::from_utf8(output.stdout)?.trim().to_owned();
    if name.is_empty() {
        bail!("this user has no name; desktops need one");
    }
    Ok(name)
}

/// Takes a screenshot through the API once the desktop shows something.
async fn photograph(api: &Api, id: &str, path: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + PICTURE_TIMEOUT;
    let body = json!([{ "SessionId": id, "MaxWidth": 1280, "MaxHeight": 800 }]);
    loop {
        let answer = api.call("getSessionScreenshots", &body).await?;
        let data = answer["SuccessfulList"][0]["SessionScreenshot"]["Images"][0]["Data"].as_str();
        let Some(data) = data else {
            bail!("no screenshot: {}", answer["UnsuccessfulList"][0]["FailureReason"]);
        };
        let png = STANDARD.decode(data).context("the screenshot is no base64")?;
        let late = Instant::now() > deadline;
        if shows_something(&png)? || late {
            files::replace(path, &png, 0o644)?;
            if late {
                tracing::warn!(path = %path.display(), "the desktop shows a single colour");
            }
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether a picture has more than one colour.
fn shows_something(png: &[u8]) -> anyhow::Result<bool> {
    let picture = image::load_from_memory(png).context("the screenshot is no picture")?.into_rgb8();
    let mut pixels = picture.pixels();
    let first = pixels.next();
    Ok(pixels.any(|pixel| Some(pixel) != first))
}

struct Summary<'a> {
    url: &'a str,
    ca_path: &'a Path,
    saved: &'a Saved,
    session: &'a str,
    picture: &'a Path,
    viewing: Option<xvnc::Viewing>,
}

impl Summary<'_> {
    fn print(&self, as_json: bool) {
        let Self { url, ca_path, saved, session, picture, viewing } = self;
        if as_json {
            let summary = json!({
                "url": url,
                "ca": ca_path,
                "client_id": saved.client_id,
                "client_secret": saved.client_secret,
                "session": session,
                "screenshot": picture,
            });
            say!("{summary}");
            return;
        }
        let ca = ca_path.display();
        say!("\nBerth runs. Its desktop is READY.\n");
        say!("  API            {url}");
        say!("  CA             {ca}");
        say!("  client id      {}", saved.client_id);
        say!("  client secret  {}", saved.client_secret);
        say!("  session        {session}");
        say!("  screenshot     {}", picture.display());
        if let Some(viewing) = viewing {
            let xvnc::Viewing { port, password_file } = viewing;
            say!("  look at it     vncviewer -passwd {} localhost::{port}", password_file.display());
        }
        say!("\nTalk to it:\n");
        say!(
            "  TOKEN=$(curl -s --cacert {ca} -u {}:{} -X POST '{url}/oauth2/token?grant_type=client_credentials' | sed 's/.*\"access_token\":\"\\([^\"]*\\).*/\\1/')",
            saved.client_id,
            saved.client_secret
        );
        say!(
            "  curl -s --cacert {ca} -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -d '{{}}' {url}/describeSessions"
        );
        say!("\nCtrl-C ends broker and agent. The desktop goes on; the next start finds it again.");
    }
}
