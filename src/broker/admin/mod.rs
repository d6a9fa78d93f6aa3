//! The operators' door: HTTP on a Unix socket in the data folder.
//!
//! Who may open the socket may administer the broker, so the folder and the
//! socket belong to its user alone. It is not reachable from the network.
//!
//! - `access.rs`: clients, keys, agents and authorization servers,
//! - `audit.rs`: the audit.

pub mod access;
pub mod audit;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::cluster::node::Node;
use super::core::Broker;
use super::deeds::{self, Deeds};
use super::identity::Identity;
use super::listen::DRAIN_TIMEOUT;
use super::notes::Notes;
use super::tls::Pki;
use super::tls::expiry::Expiry;

/// Name of the socket in the data folder.
pub const SOCKET: &str = "admin.sock";

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}", path.display())]
pub struct AdminError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// How the replica fares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusAnswer {
    /// Its number.
    pub replica: u64,
    /// The leader's number, when there is one.
    pub leader: Option<u64>,
    /// The current term.
    pub term: u64,
    /// The last entry of the log.
    pub last_log: Option<u64>,
    /// The last entry that was applied.
    pub applied: Option<u64>,
    /// The last entry that the newest snapshot holds.
    pub snapshot: Option<u64>,
    /// How the disk fares.
    pub storage: String,
    /// Agents that are connected here.
    pub agents: usize,
    /// Servers in the fleet.
    pub servers: usize,
    /// Sessions in the fleet, deleted ones included while they are kept.
    pub sessions: usize,
    /// The certificates in use, and when they end.
    pub certificates: Vec<Expiry>,
}

/// What operators look at and change through the socket.
pub struct Doors {
    /// The log.
    pub broker: Arc<Broker>,
    /// Clients and tokens.
    pub identity: Arc<Identity>,
    /// The other replicas.
    pub node: Arc<Node>,
    /// Certificates.
    pub pki: Arc<Pki>,
    /// What is recorded soon.
    pub notes: Notes,
}

/// What tells how the replica fares.
type Seen = (Arc<Broker>, Arc<Pki>);

/// A bound socket that does not serve yet.
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Binds the socket. The data folder is locked by the store at that time,
    /// so a socket that is there was left behind by a replica that was killed.
    pub fn bind(folder: &Path) -> Result<Self, AdminError> {
        let path = folder.join(SOCKET);
        let failed = |source| AdminError { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path })
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, doors: Doors, shutdown: CancellationToken) {
        let Doors { broker, identity, node, pki, notes } = doors;
        let deeds = Deeds::new(Arc::clone(&broker), notes);
        let router = Router::new()
            .route("/status", get(status))
            .with_state((Arc::clone(&broker), Arc::clone(&pki)))
            .merge(access::routes(Arc::clone(&broker), identity))
            .merge(audit::routes(Arc::clone(&broker)))
            .merge(super::tls::admin::routes(pki, deeds.clone()))
            .merge(super::backup::routes(Arc::clone(&node), Arc::clone(&broker), deeds.clone(), shutdown.clone()))
            .merge(super::cluster::admin::routes(node, broker, deeds))
            // Whatever these do says who did it.
            .layer(middleware::from_fn(deeds::attend))
            .into_make_service_with_connect_info::<deeds::Peer>();
        let served = axum::serve(self.listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
        // An operator's command that stands still must not keep the replica from its end.
        let late = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN_TIMEOUT).await;
        };
        tokio::select! {
            served = served.into_future() => if let Err(error) = served {
                tracing::error!(%error, "the operators' socket failed");
            },
            () = late => tracing::warn!("an operator's command is not waited for any longer"),
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn status(State((broker, pki)): State<Seen>) -> Json<StatusAnswer> {
    let status = broker.status();
    let fleet = broker.fleet();
    Json(StatusAnswer {
        replica: status.replica.0,
        leader: status.leader.map(|leader| leader.0),
        term: status.term,
        last_log: status.last_log.map(|index| index.0),
        applied: status.applied.map(|index| index.0),
        snapshot: status.snapshot.map(|index| index.0),
        storage: format!("{:?}", status.storage),
        agents: broker.links().count(),
        servers: fleet.server_count(),
        sessions: fleet.session_count(),
        certificates: pki.expiries(),
    })
}

pub(super) fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(serde_json::json!({ "error": text }))).into_response()
}
