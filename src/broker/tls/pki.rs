//! All certificates of the broker's ports, kept up to date while it runs.
//!
//! Every few seconds the files are looked at, every few minutes what the host
//! is called. Times are the system's: a clock that jumps makes a renewal early
//! or late by one look.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::authority::Authority;
use super::error::TlsError;
use super::expiry::{Expiry, Told};
use super::host::{self, HostCertificate};
use super::listener::{ClientAuth, Tls};
use super::names::{self, Names, ThisHost};
use super::port::{Common, Port, View, Wanted, in_one_line};
use super::source::Source;

/// Between two looks at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at what this host is called.
const NAMES_INTERVAL: Duration = Duration::from_mins(2);

/// The authority, the host's certificate and the ports.
pub struct Pki {
    authority: Arc<Authority>,
    /// Where the host's certificate is written to.
    host_file: PathBuf,
    /// Names of the configuration.
    further_names: Vec<String>,
    host_names: Box<dyn Names>,
    validity: Duration,
    state: Mutex<State>,
    /// What is in use, for whoever asks: a look holds the state for as long as
    /// files and their passwords take.
    views: ArcSwap<Vec<View>>,
}

struct State {
    host: HostCertificate,
    names_looked_at: Instant,
    /// A certificate for the host could not be made, and operators know.
    is_told: bool,
    authority_told: Told,
    ports: Vec<Port>,
}

impl Pki {
    /// Makes a server certificate for this host and for `names`, signed by the
    /// authority in a folder, which is made when there is none. Waits for the
    /// system's resolver, for a limited time.
    pub fn open(folder: &Path, names: &[String]) -> Result<Self, TlsError> {
        Self::with(folder, names, Box::new(ThisHost::default()), host::VALIDITY, SystemTime::now())
    }

    fn with(
        folder: &Path,
        names: &[String],
        host_names: Box<dyn Names>,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        if let Some(name) = names.iter().find(|name| !names::can_be_certified(name)) {
            return Err(TlsError::Name { name: name.clone() });
        }
        let authority = Arc::new(Authority::open(folder)?);
        let host_file = folder.join("server.pem");
        let all = all_names(host_names.as_ref(), names);
        let host = HostCertificate::make(&authority, all, &host_file, now, validity)?;
        let state = State {
            host,
            names_looked_at: Instant::now(),
            is_told: false,
            authority_told: Told::default(),
            ports: Vec::new(),
        };
        Ok(Self {
            authority,
            host_file,
            further_names: names.to_vec(),
            host_names,
            validity,
            state: Mutex::new(state),
            views: ArcSwap::default(),
        })
    }

    /// The authority.
    pub const fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The authority's certificate, for clients and agents.
    pub fn ca_path(&self) -> &Path {
        self.authority.path()
    }

    /// TLS for a port, which is kept up to date from then on. `name` is what
    /// operators call the port.
    pub fn server_config(
        &self,
        name: &str,
        source: Source,
        alpn: &[&[u8]],
        client_auth: ClientAuth,
    ) -> Result<Tls, TlsError> {
        let alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let wanted = Wanted { name: name.to_owned(), source, client_auth, alpn };
        let mut state = self.state();
        let port = Port::open(wanted, &self.common(&state.host), SystemTime::now())?;
        let tls = port.tls();
        state.ports.push(port);
        self.publish(&state);
        Ok(tls)
    }

    /// Keeps everything up to date until `shutdown`.
    pub async fn keep(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            if let Err(error) = Arc::clone(&self).look_aside(false).await {
                tracing::error!(%error, "certificates cannot be looked at");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Looks at everything now, the host's names included, and says what is
    /// used then.
    pub async fn reload(self: Arc<Self>) -> Result<Vec<Expiry>, TlsError> {
        Arc::clone(&self).look_aside(true).await?;
        Ok(self.expiries())
    }

    /// Files, a resolver and key derivations take their time.
    async fn look_aside(self: Arc<Self>, at_names: bool) -> Result<(), TlsError> {
        let looking = tokio::task::spawn_blocking(move || {
            let is_time = at_names || self.state().names_looked_at.elapsed() >= NAMES_INTERVAL;
            let names = is_time.then(|| all_names(self.host_names.as_ref(), &self.further_names));
            self.look(names, SystemTime::now());
        });
        Ok(looking.await?)
    }

    /// Looks once: at the host's certificate, for `names` if they were asked
    /// for, and at the files of each port.
    fn look(&self, names: Option<BTreeSet<String>>, now: SystemTime) {
        let mut state = self.state();
        if names.is_some() {
            state.names_looked_at = Instant::now();
        }
        self.renew_host(&mut state, names, now);
        let State { host, ports, authority_told, .. } = &mut *state;
        for port in ports {
            port.refresh(&self.common(host), now);
        }
        let authority = self.authority_view();
        if authority_told.is_due(authority.facts.not_after, now) {
            let Expiry { file, not_after, days_left, .. } = authority.expiry(now);
            tracing::warn!(
                file,
                not_after,
                days_left,
                "the certificate authority expires; clients, agents and gateways need a new one"
            );
        }
        self.publish(&state);
    }

    fn renew_host(&self, state: &mut State, names: Option<BTreeSet<String>>, now: SystemTime) {
        let names = names.unwrap_or_else(|| state.host.names().clone());
        let is_for = state.host.is_for(&names);
        if is_for && !state.host.is_due(now) {
            return;
        }
        match HostCertificate::make(&self.authority, names, &self.host_file, now, self.validity) {
            Ok(host) => {
                let reason = if is_for { "its time came" } else { "the host is called something else" };
                tracing::info!(reason, names = ?host.names(), "the server certificate was renewed");
                state.host = host;
                state.is_told = false;
            }
            Err(error) if !std::mem::replace(&mut state.is_told, true) => {
                let error = in_one_line(&error);
                tracing::warn!(error, "the server certificate cannot be renewed; the one in use stays");
            }
            Err(_) => {}
        }
    }

    /// Every certificate in use and its end: those of the ports, and the
    /// authority.
    pub fn expiries(&self) -> Vec<Expiry> {
        let now = SystemTime::now();
        self.views.load().iter().chain([&self.authority_view()]).map(|view| view.expiry(now)).collect()
    }

    fn publish(&self, state: &State) {
        let common = self.common(&state.host);
        self.views.store(Arc::new(state.ports.iter().map(|port| port.view(&common)).collect()));
    }

    fn authority_view(&self) -> View {
        View {
            listener: "authority".to_owned(),
            facts: self.authority.facts().clone(),
            file: self.ca_path().display().to_string(),
            is_renewed: false,
            names: BTreeSet::new(),
            problem: None,
        }
    }

    fn common<'a>(&'a self, host: &'a HostCertificate) -> Common<'a> {
        Common {
            authority: &self.authority,
            host: &host.certified,
            host_names: host.names(),
            host_file: &self.host_file,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is in it is replaced as a whole, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all_names(host: &dyn Names, further: &[String]) -> BTreeSet<String> {
    host.names().into_iter().chain(further.iter().cloned()).collect()
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
