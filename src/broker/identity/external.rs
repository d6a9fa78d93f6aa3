//! Access tokens of other authorization servers.
//!
//! Their keys are fetched, kept in memory and in the data folder, and fetched
//! again now and then, and when a token names one that is not known. Nobody can
//! make the broker fetch more often than is said here, and a server that is
//! away changes nothing: the keys that were had last are good.

mod keys;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::digest::{SHA256, digest};
use jsonwebtoken::Validation;
use jsonwebtoken::errors::ErrorKind;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

pub use self::keys::KeysError;
use self::keys::{Heading, Keys};
use super::checked::Said;
use super::tokens::TOKEN_BYTES_MAX;
use crate::broker::api::door::{Caller, VerifyError};
use crate::broker::core::Broker;
use crate::domain::auth_server::AuthServer;
use crate::domain::client::Grant;
use crate::domain::ids::ID_BYTES_MAX;
use crate::domain::{ClientId, Fleet};
use crate::files;

/// How long a server may take to tell its keys.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const KEYS_BYTES_MAX: usize = 512 * 1024;
/// Keys are fetched no more often than this, whoever asks for what.
const FETCH_INTERVAL_MIN: Duration = Duration::from_secs(20);
/// Keys are fetched again when they are as old.
const FETCH_INTERVAL: Duration = Duration::from_mins(10);
/// Between two looks at which servers there are.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How far clocks of others may be off, in seconds.
const LEEWAY_SECONDS: u64 = 60;
/// Folder of the keys that were had last.
const FOLDER: &str = "auth-servers";

/// The authorization servers that are registered.
pub(super) struct External {
    broker: Arc<Broker>,
    folder: PathBuf,
    servers: ArcSwap<BTreeMap<String, Arc<Server>>>,
    /// Held by the one who changes `servers`, so that nobody asks a server for
    /// keys that another one of the same settings has the place of.
    changing: Mutex<()>,
}

/// One of them.
struct Server {
    settings: Arc<AuthServer>,
    /// Whose tokens: the host of its URL.
    host: String,
    keys: ArcSwapOption<Keys>,
    client: Option<reqwest::Client>,
    file: PathBuf,
    /// When keys were asked for last.
    asked_at: Mutex<Option<Instant>>,
    asking: tokio::sync::Mutex<()>,
}

/// Why keys were not had. The texts are for operators.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("it did not answer within {} s", FETCH_TIMEOUT.as_secs())]
    Timeout,
    #[error("it cannot be reached")]
    Http(#[from] reqwest::Error),
    #[error("it answered {0}")]
    Status(reqwest::StatusCode),
    #[error("its answer has more than {KEYS_BYTES_MAX} bytes")]
    TooLong,
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// Whether an operator's words about a server can be used.
pub fn check(server: &AuthServer) -> Result<(), String> {
    if let Some(pem) = &server.keys_pem {
        Keys::of_pem(pem, &server.algorithms).map_err(|error| error.to_string())?;
    }
    if let Some(pem) = &server.ca_pem {
        certificates(pem)?;
    }
    Ok(())
}

fn certificates(pem: &str) -> Result<Vec<reqwest::Certificate>, String> {
    let found = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(|error| error.to_string())?;
    if found.is_empty() {
        return Err("the authorities hold no certificate in PEM".to_owned());
    }
    Ok(found)
}

impl Server {
    fn new(settings: Arc<AuthServer>, folder: &Path) -> Self {
        let host = settings.url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
        let name = digest(&SHA256, settings.url.as_bytes()).as_ref()[..16]
            .iter()
            .fold(String::new(), |name, byte| name + &format!("{byte:02x}"));
        let file = folder.join(name).with_extension("json");
        let given = settings.keys_pem.as_deref().map(|pem| Keys::of_pem(pem, &settings.algorithms));
        let client = if given.is_some() { None } else { Self::client(&settings) };
        let known = given.or_else(|| fs::read(&file).ok().map(|bytes| Keys::of_json(&bytes, &settings.algorithms)));
        let keys = match known {
            Some(Ok(keys)) => Some(Arc::new(keys)),
            Some(Err(error)) => {
                tracing::warn!(url = settings.url, %error, "keys of an authorization server cannot be used");
                None
            }
            None => None,
        };
        Self {
            host: host.to_owned(),
            keys: ArcSwapOption::new(keys),
            client,
            file,
            asked_at: Mutex::new(None),
            asking: tokio::sync::Mutex::new(()),
            settings,
        }
    }

    fn client(settings: &AuthServer) -> Option<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")));
        match settings.ca_pem.as_deref().map(certificates) {
            Some(Ok(authorities)) => builder = builder.tls_certs_merge(authorities),
            Some(Err(error)) => {
                tracing::error!(url = settings.url, error, "keys of an authorization server cannot be fetched");
                return None;
            }
            None => {}
        }
        builder.build().inspect_err(|error| tracing::error!(%error, "cannot make an HTTP client")).ok()
    }

    /// Whether keys may be asked for now, for a reason or because of their age.
    fn is_due(&self, interval: Duration) -> bool {
        let asked_at = *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.client.is_some() && asked_at.is_none_or(|at| at.elapsed() >= interval)
    }

    /// Whether a key that is not known may be had by waiting for
    /// [`refresh`](Self::refresh): keys may be asked for now, or are being
    /// asked for already.
    fn may_learn(&self) -> bool {
        let is_asking = || self.client.is_some() && self.asking.try_lock().is_err();
        self.is_due(FETCH_INTERVAL_MIN) || is_asking()
    }

    /// Asks for keys, unless somebody did so a moment ago.
    async fn refresh(&self, interval: Duration) {
        let _one_at_a_time = self.asking.lock().await;
        let Some(client) = self.client.as_ref().filter(|_| self.is_due(interval)) else { return };
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let fetched = timeout(FETCH_TIMEOUT, self.fetch(client)).await.unwrap_or(Err(FetchError::Timeout));
        match fetched {
            Ok((bytes, keys)) => {
                tracing::debug!(url = self.settings.url, keys = keys.len(), "keys of an authorization server");
                self.keep(&bytes);
                // What was found good stays so while its key is there.
                if self.keys.load().as_ref().is_none_or(|known| **known != keys) {
                    self.keys.store(Some(Arc::new(keys)));
                }
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let has_keys = self.keys.load().is_some();
                tracing::warn!(url = self.settings.url, %error, cause, has_keys,
                    "an authorization server did not tell its keys; those that are known stay good");
            }
        }
    }

    async fn fetch(&self, client: &reqwest::Client) -> Result<(Vec<u8>, Keys), FetchError> {
        let mut answer = client.get(&self.settings.url).send().await?;
        if !answer.status().is_success() {
            return Err(FetchError::Status(answer.status()));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            if bytes.len() + piece.len() > KEYS_BYTES_MAX {
                return Err(FetchError::TooLong);
            }
            bytes.extend_from_slice(&piece);
        }
        let keys = Keys::of_json(&bytes, &self.settings.algorithms)?;
        Ok((bytes, keys))
    }

    /// For a start while the server is away.
    fn keep(&self, bytes: &[u8]) {
        if fs::read(&self.file).is_ok_and(|kept| kept == bytes) {
            return;
        }
        let folder = self.file.parent().unwrap_or(Path::new("."));
        let kept = files::make_folder(folder, 0o700).and_then(|()| files::replace(&self.file, bytes, 0o600));
        if let Err(error) = kept {
            tracing::warn!(%error, "the keys of an authorization server are not kept for the next start");
        }
    }

    /// What a token of this server says.
    fn verify(&self, heading: &Heading, token: &str, now: u64) -> Result<Said, Refusal> {
        let keys = self.keys.load_full().ok_or(Refusal::UnknownKey)?;
        if let Some(said) = keys.checked.get(token) {
            return if said.exp + LEEWAY_SECONDS < now { Err(Refusal::Expired) } else { Ok(said) };
        }
        if let Some(wanted) = &self.settings.token_type
            && !heading.typ.as_ref().is_some_and(|found| found.eq_ignore_ascii_case(wanted))
        {
            return Err(Refusal::Malformed);
        }
        let mut refusal = Refusal::UnknownKey;
        for key in keys.find(heading) {
            let mut validation = Validation::new(heading.alg);
            validation.leeway = LEEWAY_SECONDS;
            validation.validate_nbf = true;
            validation.set_required_spec_claims(&["exp"]);
            validation.validate_aud = false;
            if let Some(audience) = &self.settings.audience {
                validation.validate_aud = true;
                validation.set_audience(&[audience]);
                validation.required_spec_claims.insert("aud".to_owned());
            }
            if let Some(issuer) = &self.settings.issuer {
                validation.set_issuer(&[issuer]);
                validation.required_spec_claims.insert("iss".to_owned());
            }
            match jsonwebtoken::decode::<Claims>(token, key, &validation) {
                Ok(data) => {
                    let said = self.said(&data.claims).ok_or(Refusal::Malformed)?;
                    keys.checked.keep(token, said.clone(), now);
                    return Ok(said);
                }
                Err(error) if *error.kind() == ErrorKind::ExpiredSignature => return Err(Refusal::Expired),
                Err(_) => refusal = Refusal::Malformed,
            }
        }
        Err(refusal)
    }

    /// Whose token it is, if it has the scope that is demanded.
    fn said(&self, claims: &Claims) -> Option<Said> {
        if let Some(wanted) = &self.settings.scope
            && !claims.scopes().any(|scope| scope == wanted)
        {
            return None;
        }
        let client = [&claims.client_id, &claims.azp, &claims.appid, &claims.cid, &claims.sub]
            .into_iter()
            .flatten()
            .find(|client| !client.is_empty())?;
        let client_id = format!("{client}@{}", self.host);
        (client_id.len() <= ID_BYTES_MAX).then(|| Said { client_id: client_id.into(), exp: claims.exp })
    }
}

/// What of a token's claims is looked at. Who the client is has several names
/// among widespread servers.
#[derive(Debug, Deserialize)]
struct Claims {
    exp: u64,
    client_id: Option<String>,
    azp: Option<String>,
    appid: Option<String>,
    cid: Option<String>,
    sub: Option<String>,
    scope: Option<Words>,
    scp: Option<Words>,
}

/// Words with blanks between, or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    Text(String),
    List(Vec<String>),
}

impl Claims {
    fn scopes(&self) -> impl Iterator<Item = &str> {
        [&self.scope, &self.scp].into_iter().flatten().flat_map(|words| -> Box<dyn Iterator<Item = &str>> {
            match words {
                Words::Text(text) => Box::new(text.split_whitespace()),
                Words::List(list) => Box::new(list.iter().map(String::as_str)),
            }
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Malformed,
    Expired,
    /// No key fits it: another one may have come.
    UnknownKey,
}

/// Whether these are the servers of a fleet.
fn is_same(known: &BTreeMap<String, Arc<Server>>, fleet: &Fleet) -> bool {
    known.len() == fleet.auth_servers().count()
        && fleet.auth_servers().zip(known.values()).all(|(now, server)| Arc::ptr_eq(now, &server.settings))
}

impl External {
    pub(super) fn new(broker: Arc<Broker>, data_folder: &Path) -> Self {
        Self { broker, folder: data_folder.join(FOLDER), servers: ArcSwap::default(), changing: Mutex::new(()) }
    }

    /// The servers as the log has them now.
    fn servers(&self, fleet: &Fleet) -> Arc<BTreeMap<String, Arc<Server>>> {
        let known = self.servers.load_full();
        if is_same(&known, fleet) {
            return known;
        }
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.servers.load_full();
        if is_same(&known, fleet) {
            return known;
        }
        let server = |settings: &Arc<AuthServer>| match known.get(&settings.url) {
            Some(server) if *server.settings == **settings && Arc::ptr_eq(settings, &server.settings) => {
                Arc::clone(server)
            }
            _ => Arc::new(Server::new(Arc::clone(settings), &self.folder)),
        };
        let servers: BTreeMap<_, _> =
            fleet.auth_servers().map(|settings| (settings.url.clone(), server(settings))).collect();
        let servers = Arc::new(servers);
        self.servers.store(Arc::clone(&servers));
        servers
    }

    /// Who calls with a token of one of the servers.
    pub(super) fn verify(&self, fleet: &Fleet, token: &str) -> Result<Caller, VerifyError> {
        let servers = self.servers(fleet);
        if servers.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(VerifyError::Invalid);
        }
        let heading = Heading::of(token).ok_or(VerifyError::Invalid)?;
        let now = jsonwebtoken::get_current_timestamp();
        let mut refusal = VerifyError::Invalid;
        for server in servers.values() {
            match server.verify(&heading, token, now) {
                Ok(said) => {
                    let client = ClientId::new(&said.client_id).map_err(|_| VerifyError::Invalid)?;
                    return Ok(Caller { client, grant: Grant::default() });
                }
                Err(Refusal::Expired) => return Err(VerifyError::Expired),
                Err(Refusal::UnknownKey) if server.may_learn() => refusal = VerifyError::KeysWanted,
                Err(Refusal::UnknownKey | Refusal::Malformed) => {}
            }
        }
        Err(refusal)
    }

    /// Fetches keys that may have come, from all servers that were not asked a
    /// moment ago.
    pub(super) async fn refresh(&self) {
        let servers = self.servers(&self.broker.fleet());
        let refreshing = servers.values().map(|server| server.refresh(FETCH_INTERVAL_MIN));
        futures_util::future::join_all(refreshing).await;
    }

    /// Keeps the keys of all servers fresh, until told to stop.
    pub(super) async fn keep(&self, shutdown: CancellationToken) {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let servers = self.servers(&self.broker.fleet());
            for server in servers.values() {
                let interval = if server.keys.load().is_some() { FETCH_INTERVAL } else { FETCH_INTERVAL_MIN };
                if server.is_due(interval) {
                    tokio::select! {
                        () = server.refresh(interval) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "external_tests.rs"]
mod tests;
