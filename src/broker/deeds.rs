//! What operators do, on its way to the audit: who is at their socket, what
//! each deed is called, and how it is recorded.
//!
//! What a deed changes in the log is recorded in the same step with it
//! ([`Broker::propose_audited`]). What is done elsewhere is recorded here.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use super::api::door::Unavailable;
use super::api::routes;
use super::core::Broker;
use super::notes::Notes;
use crate::domain::audit::{Actor, Deed};
use crate::domain::{Command, Outcome, Refusal, ReplicaId, Settings};

/// A certificate is signed for a gateway.
pub const GATEWAY_CERTIFICATE: &str = "gateway-certificate";
/// A gateway is let in no more with a certificate.
pub const REVOKE_GATEWAY: &str = "revoke-gateway";
/// A backup is made.
pub const BACKUP: &str = "backup";
/// A new cluster is made of a backup.
pub const RESTORE: &str = "restore";
/// A replica states other settings than those that held.
pub const CONFIGURE: &str = "configure";
/// A join token is given out.
pub const CLUSTER_ADD: &str = "cluster-add";
/// A join token is taken back.
pub const CLUSTER_REVOKE: &str = "cluster-revoke";
/// A replica is let in with a token.
pub const CLUSTER_JOIN: &str = "cluster-join";
/// A replica is removed.
pub const CLUSTER_REMOVE: &str = "cluster-remove";
/// Another replica is to lead.
pub const CLUSTER_TRANSFER_LEADER: &str = "cluster-transfer-leader";
/// Replicas show certificates of another authority.
pub const CLUSTER_ROTATE_CERTIFICATES: &str = "cluster-rotate-certificates";
/// The log is written in a newer format.
pub const CLUSTER_RAISE_FORMAT: &str = "cluster-raise-format";

/// Every action that is recorded, besides calls of the API's [`routes`], which
/// are recorded by their path.
pub const ACTIONS: [&str; 29] = [
    "register-api-client",
    "rotate-api-client",
    "grant-api-client",
    "unregister-api-client",
    "renew-auth-server-api-key",
    "generate-software-statement",
    "deactivate-software-statement",
    "unregister-agent-client",
    "register-auth-server",
    "unregister-auth-server",
    "register-server-dns-mappings",
    GATEWAY_CERTIFICATE,
    REVOKE_GATEWAY,
    BACKUP,
    RESTORE,
    CONFIGURE,
    CLUSTER_ADD,
    CLUSTER_REVOKE,
    CLUSTER_JOIN,
    CLUSTER_REMOVE,
    CLUSTER_TRANSFER_LEADER,
    CLUSTER_ROTATE_CERTIFICATES,
    CLUSTER_RAISE_FORMAT,
    "oauth2/token",
    "agent/link",
    "agent/enrol",
    "agent/validate-authentication-token",
    "resolveSession",
    super::notes::OTHERS,
];

/// Every action that is recorded.
pub fn actions() -> BTreeSet<String> {
    let called = routes().into_iter().map(|route| route.path.trim_start_matches('/').to_owned());
    ACTIONS.iter().map(|action| (*action).to_owned()).chain(called).collect()
}

/// Where what a replica does by itself is done from.
const LOCAL: &str = "local";

tokio::task_local! {
    /// From where the deed under way is done, while a request at the
    /// operators' socket is served.
    static FROM: String;
}

/// Who opened a connection to the operators' socket, as the kernel tells.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    user: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred();
        if let Err(error) = &credentials {
            tracing::warn!(%error, "it is not known who is at the operators' socket");
        }
        Self { user: credentials.ok().map(|credentials| credentials.uid()) }
    }
}

/// Serves a request of an operator: whatever is recorded of it says which one.
pub async fn attend(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let from = peer.user.map_or_else(|| format!("{LOCAL} uid unknown"), of_user);
    FROM.scope(from, next.run(request)).await
}

/// From where the deed under way is done.
pub fn from() -> String {
    FROM.try_with(Clone::clone).unwrap_or_else(|_| LOCAL.to_owned())
}

/// From where a user of this host does something.
pub fn of_user(uid: u32) -> String {
    format!("{LOCAL} uid {uid}")
}

/// Settings, as a replica states them at its start. Recorded when they differ
/// from those that held.
pub fn configured(replica: ReplicaId, settings: Settings) -> Command {
    let deed = Deed {
        actor: Actor::Operator,
        from: LOCAL.to_owned(),
        action: CONFIGURE.to_owned(),
        target: format!("replica {replica}"),
        request_id: String::new(),
        via: replica,
    };
    Command::Audited { deed, result: None, commands: vec![Command::Configure(settings)], refused_before: 0 }
}

/// Why something that an operator wants was not done.
#[derive(Debug, thiserror::Error)]
pub enum NotDone {
    /// The log does not take it now, or nobody knows.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It cannot be done.
    #[error("{0}")]
    Refused(Refusal),
}

/// What the operator does whose request is served, through this broker.
pub fn of_operator(broker: &Broker, action: &str, target: String) -> Deed {
    Deed {
        actor: Actor::Operator,
        from: from(),
        action: action.to_owned(),
        target,
        request_id: uuid::Uuid::now_v7().to_string(),
        via: broker.id(),
    }
}

/// Has the log do what an operator wants, and records it in the same step.
pub async fn carry_out(broker: &Broker, deed: Deed, command: Command) -> Result<(), NotDone> {
    match broker.propose_audited(deed, vec![command]).await?.pop() {
        Some(Outcome::Refused(refusal)) => Err(NotDone::Refused(refusal)),
        _ => Ok(()),
    }
}

/// Has operators' deeds recorded.
#[derive(Clone)]
pub struct Deeds {
    broker: Arc<Broker>,
    notes: Notes,
}

impl Deeds {
    /// Through this broker.
    pub const fn new(broker: Arc<Broker>, notes: Notes) -> Self {
        Self { broker, notes }
    }

    /// What the operator does whose request is served.
    pub fn deed(&self, action: &str, target: String) -> Deed {
        of_operator(&self.broker, action, target)
    }

    /// The replica that they are recorded through.
    pub const fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// Has something recorded soon, also when the log takes nothing now.
    pub fn note(&self, deed: Deed, result: &str) {
        self.notes.take(deed, result);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn where_a_deed_is_done_from_is_known_while_its_request_is_served() {
        assert_eq!(from(), "local");
        let (one, other) =
            tokio::join!(FROM.scope(of_user(0), async { from() }), FROM.scope(of_user(1000), async { from() }));
        assert_eq!((one.as_str(), other.as_str()), ("local uid 0", "local uid 1000"));
    }

    /// What the page tells of: the first cells of the table of actions.
    fn told() -> BTreeSet<String> {
        let page = include_str!("../../docs/operations.md");
        let table = page.split("\n| Action | Recorded are |\n").nth(1).expect("the page has the table");
        let rows = table.lines().take_while(|line| line.starts_with('|')).skip(1);
        let names = rows.flat_map(|row| row.split('|').nth(1).expect("a cell").split(", "));
        let names: Vec<String> = names.map(|name| name.trim().trim_matches('`').to_owned()).collect();
        let told: BTreeSet<String> = names.iter().cloned().collect();
        assert_eq!(told.len(), names.len(), "one is told twice: {names:?}");
        told
    }

    #[test]
    fn the_page_tells_of_every_action_and_of_no_other() {
        assert_eq!(told(), actions());
    }

    /// The sources below a folder, without their tests.
    fn sources(folder: &Path, found: &mut String) {
        for entry in std::fs::read_dir(folder).expect("the sources are there") {
            let path = entry.expect("readable").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && name != "tests" {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !name.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).expect("readable");
                found.push_str(text.split("#[cfg(test)]").next().unwrap_or_default());
            }
        }
    }

    /// What stands in quotes right behind a text, wherever that is.
    fn quoted_after(text: &str, mark: &str) -> BTreeSet<String> {
        let behind = text.split(mark).skip(1).filter_map(|behind| behind.trim_start().strip_prefix('"'));
        behind.filter_map(|behind| Some(behind.split_once('"')?.0.to_owned())).collect()
    }

    #[test]
    fn every_name_that_is_recorded_is_in_the_table() {
        let mut text = String::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/broker"), &mut text);
        let mut named = quoted_after(&text, "carry_out(");
        assert!(named.contains("register-api-client"), "{named:?}");
        named.extend(quoted_after(&text, "action: "));
        let own = text.split("pub const ").filter_map(|rest| rest.split_once(": &str =")).map(|(name, _)| name);
        let own: BTreeSet<&str> = own.filter(|name| text.contains(&format!("deeds::{name}"))).collect();
        assert!(own.contains("BACKUP") && own.len() > 8, "{own:?}");
        for name in own {
            named.extend(quoted_after(&text, &format!("pub const {name}: &str =")));
        }
        let table = ACTIONS.iter().map(|action| (*action).to_owned()).collect();
        let unknown: Vec<_> = named.difference(&table).collect();
        assert!(unknown.is_empty(), "not in ACTIONS, and not in docs/operations.md: {unknown:?}");
    }

    #[test]
    fn each_action_has_a_name_of_its_own() {
        assert_eq!(actions().len(), ACTIONS.len() + routes().len());
    }
}
