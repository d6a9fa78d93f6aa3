//! What operators do with API clients, keys, software statements, agents,
//! authorization servers and names of servers.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::error;
use crate::broker::core::Broker;
use crate::broker::identity::{ClientError, Identity, external};
use crate::domain::auth_server::{AuthServer, DEMAND_BYTES_MAX, PEM_BYTES_MAX, SignatureAlgorithm, URL_BYTES_MAX};
use crate::domain::client::{AgentClient, ApiClient, Grant, Scope, Scopes};
use crate::domain::dns::{DNS_MAPPINGS_PER_COMMAND_MAX, DnsMapping, DnsNames, NAME_BYTES_MAX, ServerName};
use crate::domain::{ClientId, Command, Millis, Owner, Refusal};

/// What the URL of an authorization server's keys must end with.
const KEYS_PATH: &str = ".well-known/jwks.json";
/// The longest list of names of servers, in bytes.
const NAMES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest time that a replaced secret or key may be good: a month.
const KEEP_OLD_SECONDS_MAX: u64 = 31 * 24 * 3600;

/// A registered client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientEntry {
    /// Name.
    pub name: String,
    /// Id.
    pub id: String,
    /// Whether it may obtain tokens.
    pub active: bool,
    /// What it may do, with blanks between.
    pub scopes: String,
    /// The one whose sessions it may see and change, if not everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Until when the secret before is good, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_secret_until: Option<u64>,
}

/// What a client may do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// Names of scopes; the usual ones when absent.
    pub scopes: Option<Vec<String>>,
    /// The one whose sessions it may see and change.
    pub owner: Option<String>,
    /// Those of everybody, where it was bound to an owner.
    #[serde(default)]
    pub any_owner: bool,
}

impl GrantRequest {
    /// What it may do: as `before` where nothing is said.
    fn grant(self, before: Grant) -> Result<Grant, String> {
        let parse = |name: &String| {
            let known = || Scope::ALL.map(Scope::as_str).join(", ");
            Scope::parse(name).ok_or_else(|| format!("there is no scope {name:?}; there are {}", known()))
        };
        let scopes = match &self.scopes {
            None => before.scopes,
            Some(names) => names.iter().map(parse).collect::<Result<Scopes, _>>()?,
        };
        if scopes.is_empty() {
            return Err("a client needs a scope; to take all from it, unregister it".to_owned());
        }
        let owner = match self.owner {
            Some(owner) => Some(Owner::new(&owner).map_err(|error| error.to_string())?),
            None if self.any_owner => None,
            None => before.owner,
        };
        Ok(Grant { scopes, owner })
    }
}

/// Asks for a client to be registered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Its name.
    pub name: String,
    /// What it may do.
    #[serde(default)]
    pub grant: GrantRequest,
}

/// A client that was registered, or got another secret; it is shown this once.
#[derive(Clone, Serialize, Deserialize)]
pub struct RegisterAnswer {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

/// Asks for another secret or key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// How long the present one is good, in seconds; as long as access tokens
    /// are when absent.
    pub keep_old_seconds: Option<u64>,
}

impl RenewRequest {
    fn old_for(&self, usual: Millis) -> Result<Millis, String> {
        match self.keep_old_seconds {
            None => Ok(usual),
            Some(seconds) if seconds > KEEP_OLD_SECONDS_MAX => {
                Err(format!("the present one can be kept for at most {KEEP_OLD_SECONDS_MAX} seconds"))
            }
            Some(seconds) => Ok(Millis::from_secs(seconds)),
        }
    }
}

/// A software statement.
#[derive(Clone, Serialize, Deserialize)]
pub struct StatementEntry {
    /// What agents show.
    pub statement: String,
    /// When it was issued, in milliseconds since 1970.
    pub issued_at: u64,
    /// Whether agents can enrol with it.
    pub active: bool,
}

/// The text of a statement.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatementText {
    /// The text.
    pub statement: String,
}

/// An agent that enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEntry {
    /// Name of its host.
    pub name: String,
    /// Id.
    pub id: String,
    /// Whether it may connect.
    pub active: bool,
    /// The server that it is.
    pub server: String,
}

/// An authorization server; what is absent is not demanded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthServerEntry {
    /// Where its keys are.
    pub url: String,
    /// Algorithms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<String>,
    /// `iss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// `aud`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// `typ`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_type: Option<String>,
    /// A scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Public keys in PEM, instead of those at the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_pem: Option<String>,
    /// Authorities of the URL's certificate in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
}

/// Asks for an authorization server to be registered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthServerRequest {
    /// Which.
    pub server: AuthServerEntry,
    /// Whether it may take the place of one with other demands.
    #[serde(default)]
    pub replace: bool,
}

/// Names an authorization server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthServerUrl {
    /// Where its keys are.
    pub url: String,
}

/// A server and its names, as in the mapping files of the original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct MappingEntry {
    /// `Ip`, `Id` or `Host.Aws.Ec2InstanceId`.
    pub server_id_type: String,
    /// What the server is named by.
    pub server_id: String,
    /// Its names.
    pub dns_names: NamesEntry,
}

/// Names of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct NamesEntry {
    /// Where gateways reach it.
    pub internal_dns_name: String,
    /// Where clients reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_dns_name: Option<String>,
}

/// Asks for names to be taken over.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapRequest {
    /// The names.
    pub mappings: Vec<MappingEntry>,
    /// Whether all others are dropped.
    #[serde(default)]
    pub replace: bool,
}

#[derive(Clone)]
struct Access {
    broker: Arc<Broker>,
    identity: Arc<Identity>,
}

/// The routes.
pub(super) fn routes(broker: Arc<Broker>, identity: Arc<Identity>) -> Router {
    Router::new()
        .route("/clients", get(list_clients).post(register_client))
        .route("/clients/{id}", delete(deactivate_client))
        .route("/clients/{id}/secret", post(rotate_secret))
        .route("/clients/{id}/grant", put(grant_client))
        .route("/keys/access", post(renew_access_key))
        .route("/keys/connection", post(renew_connection_key))
        .route("/statements", get(list_statements).post(issue_statement))
        .route("/statements/deactivate", post(deactivate_statement))
        .route("/agents", get(list_agents))
        .route("/agents/{id}", delete(unregister_agent))
        .route("/auth-servers", get(list_auth_servers).post(register_auth_server))
        .route("/auth-servers/unregister", post(unregister_auth_server))
        .route("/server-names", get(list_names).post(map_servers).layer(DefaultBodyLimit::max(NAMES_BYTES_MAX)))
        .with_state(Access { broker, identity })
}

async fn register_client(State(access): State<Access>, Json(request): Json<RegisterRequest>) -> Response {
    let grant = match request.grant.grant(Grant::default()) {
        Ok(grant) => grant,
        Err(text) => return error(StatusCode::BAD_REQUEST, &text),
    };
    match access.identity.register(&request.name, grant).await {
        Ok(client) => {
            tracing::info!(client = %client.id, name = request.name, "api client registered");
            let answer =
                RegisterAnswer { id: client.id.as_str().to_owned(), secret: client.secret.expose().to_owned() };
            Json(answer).into_response()
        }
        Err(error) => failed(&error),
    }
}

async fn rotate_secret(
    State(access): State<Access>,
    UrlPath(id): UrlPath<String>,
    Json(request): Json<RenewRequest>,
) -> Response {
    let Ok(id) = ClientId::new(&id) else { return no_client_id() };
    let old_for = match request.old_for(access.identity.access_lifetime()) {
        Ok(old_for) => old_for,
        Err(text) => return error(StatusCode::BAD_REQUEST, &text),
    };
    match access.identity.rotate_secret(&id, old_for).await {
        Ok(rotated) => {
            tracing::info!(client = %id, "api client has another secret");
            Json(RegisterAnswer { id: id.into(), secret: rotated.secret.expose().to_owned() }).into_response()
        }
        Err(error) => failed(&error),
    }
}

async fn grant_client(
    State(access): State<Access>,
    UrlPath(id): UrlPath<String>,
    Json(request): Json<GrantRequest>,
) -> Response {
    let Ok(id) = ClientId::new(&id) else { return no_client_id() };
    let Some(before) = access.broker.fleet().client(&id).map(|client| client.grant.clone()) else {
        return failed(&ClientError::Unknown(id));
    };
    match request.grant(before) {
        Ok(grant) => done(access.identity.grant(&id, grant).await),
        Err(text) => error(StatusCode::BAD_REQUEST, &text),
    }
}

async fn deactivate_client(State(access): State<Access>, UrlPath(id): UrlPath<String>) -> Response {
    let Ok(id) = ClientId::new(&id) else { return no_client_id() };
    let deactivated = access.identity.deactivate(&id).await;
    if deactivated.is_ok() {
        tracing::info!(client = %id, "api client unregistered");
    }
    done(deactivated)
}

async fn list_clients(State(access): State<Access>) -> Json<Vec<ClientEntry>> {
    let fleet = access.broker.fleet();
    let now = access.broker.now();
    let entry = |client: &Arc<ApiClient>| ClientEntry {
        name: client.name.clone(),
        id: client.id.as_str().to_owned(),
        active: client.active,
        scopes: client.grant.scopes.to_string(),
        owner: client.grant.owner.as_ref().map(|owner| owner.as_str().to_owned()),
        old_secret_until: client.old_secret.as_ref().map(|old| old.until).filter(|until| *until > now).map(|at| at.0),
    };
    Json(fleet.clients().map(entry).collect())
}

async fn renew_access_key(State(access): State<Access>, Json(request): Json<RenewRequest>) -> Response {
    match request.old_for(access.identity.access_lifetime()) {
        Ok(old_for) => done(access.identity.renew_access_key(old_for).await.map(drop)),
        Err(text) => error(StatusCode::BAD_REQUEST, &text),
    }
}

async fn renew_connection_key(State(access): State<Access>, Json(request): Json<RenewRequest>) -> Response {
    match request.old_for(access.identity.connection_lifetime()) {
        Ok(old_for) => done(access.identity.renew_connection_key(old_for).await.map(drop)),
        Err(text) => error(StatusCode::BAD_REQUEST, &text),
    }
}

async fn issue_statement(State(access): State<Access>) -> Response {
    match access.identity.issue_statement().await {
        Ok(statement) => Json(StatementText { statement: statement.expose().to_owned() }).into_response(),
        Err(error) => failed(&error),
    }
}

async fn list_statements(State(access): State<Access>) -> Json<Vec<StatementEntry>> {
    let statements = access.identity.statements().into_iter().map(|(statement, text)| StatementEntry {
        statement: text.expose().to_owned(),
        issued_at: statement.issued_at.0,
        active: statement.active,
    });
    Json(statements.collect())
}

async fn deactivate_statement(State(access): State<Access>, Json(request): Json<StatementText>) -> Response {
    done(access.identity.deactivate_statement(&request.statement).await)
}

async fn list_agents(State(access): State<Access>) -> Json<Vec<AgentEntry>> {
    let fleet = access.broker.fleet();
    let entry = |agent: &Arc<AgentClient>| AgentEntry {
        name: agent.name.clone(),
        id: agent.id.as_str().to_owned(),
        active: agent.active,
        server: agent.server.as_str().to_owned(),
    };
    Json(fleet.agent_clients().map(entry).collect())
}

async fn unregister_agent(State(access): State<Access>, UrlPath(id): UrlPath<String>) -> Response {
    let Ok(id) = ClientId::new(&id) else { return no_client_id() };
    done(access.identity.unregister_agent(&id).await)
}

async fn register_auth_server(State(access): State<Access>, Json(request): Json<AuthServerRequest>) -> Response {
    let AuthServerRequest { server: request, replace } = request;
    let server = match auth_server(request).and_then(|server| external::check(&server).map(|()| server)) {
        Ok(server) => server,
        Err(text) => return error(StatusCode::BAD_REQUEST, &text),
    };
    if server.audience.is_none() && server.scope.is_none() {
        tracing::warn!(
            url = server.url,
            "each access token of this authorization server lets its client in: neither audience nor scope is demanded"
        );
    }
    let target = format!("{} ({})", server.url, server.demands());
    let command = Command::RegisterAuthServer { server, replace };
    done(access.identity.carry_out("register-auth-server", target, command).await)
}

async fn unregister_auth_server(State(access): State<Access>, Json(request): Json<AuthServerUrl>) -> Response {
    let (target, url) = (request.url.clone(), request.url);
    done(access.identity.carry_out("unregister-auth-server", target, Command::UnregisterAuthServer { url }).await)
}

async fn list_auth_servers(State(access): State<Access>) -> Json<Vec<AuthServerEntry>> {
    let fleet = access.broker.fleet();
    let entry = |server: &Arc<AuthServer>| AuthServerEntry {
        url: server.url.clone(),
        algorithms: server.algorithms.iter().map(|algorithm| algorithm.as_str().to_owned()).collect(),
        issuer: server.issuer.clone(),
        audience: server.audience.clone(),
        token_type: server.token_type.clone(),
        scope: server.scope.clone(),
        keys_pem: server.keys_pem.clone(),
        ca_pem: server.ca_pem.clone(),
    };
    Json(fleet.auth_servers().map(entry).collect())
}

/// Checks what an operator said of an authorization server.
fn auth_server(entry: AuthServerEntry) -> Result<AuthServer, String> {
    let is_local = ["http://127.0.0.1", "http://[::1]", "http://localhost"]
        .iter()
        .any(|local| entry.url.strip_prefix(local).is_some_and(|rest| rest.starts_with(':') || rest.starts_with('/')));
    if !entry.url.starts_with("https://") && !is_local {
        return Err("the URL must begin with https://; without it anybody on the way could give keys".to_owned());
    }
    if !entry.url.ends_with(KEYS_PATH) || entry.url.len() > URL_BYTES_MAX || entry.url.contains(char::is_whitespace) {
        return Err(format!("the URL must end with {KEYS_PATH} and have at most {URL_BYTES_MAX} bytes, no blanks"));
    }
    let demands = [&entry.issuer, &entry.audience, &entry.token_type, &entry.scope];
    if demands.into_iter().flatten().any(|text| text.is_empty() || text.len() > DEMAND_BYTES_MAX) {
        return Err(format!("issuer, audience, type and scope must have 1 to {DEMAND_BYTES_MAX} bytes"));
    }
    if [&entry.keys_pem, &entry.ca_pem].into_iter().flatten().any(|pem| pem.len() > PEM_BYTES_MAX) {
        return Err(format!("keys and authorities must have at most {PEM_BYTES_MAX} bytes"));
    }
    let parse = |name: &String| {
        let known = || SignatureAlgorithm::ALL.map(SignatureAlgorithm::as_str).join(", ");
        SignatureAlgorithm::parse(name)
            .ok_or_else(|| format!("there is no algorithm {name:?} here; there are {}", known()))
    };
    Ok(AuthServer {
        algorithms: entry.algorithms.iter().map(parse).collect::<Result<_, _>>()?,
        url: entry.url,
        issuer: entry.issuer,
        audience: entry.audience,
        token_type: entry.token_type,
        scope: entry.scope,
        keys_pem: entry.keys_pem,
        ca_pem: entry.ca_pem,
    })
}

async fn map_servers(State(access): State<Access>, Json(request): Json<MapRequest>) -> Response {
    let MapRequest { mappings, replace } = request;
    let mappings = match mappings.into_iter().enumerate().map(mapping).collect::<Result<Vec<_>, _>>() {
        Ok(mappings) => mappings,
        Err(text) => return error(StatusCode::BAD_REQUEST, &text),
    };
    // A long file becomes several commands, each of which stands by itself.
    let mut replace = replace;
    let chunks: Vec<Vec<DnsMapping>> = if mappings.is_empty() {
        vec![Vec::new()]
    } else {
        mappings.chunks(DNS_MAPPINGS_PER_COMMAND_MAX).map(<[_]>::to_vec).collect()
    };
    for mappings in chunks {
        let target = format!("{} servers", mappings.len());
        let command = Command::MapServers { mappings, replace: std::mem::take(&mut replace) };
        if let Err(error) = access.identity.carry_out("register-server-dns-mappings", target, command).await {
            return failed(&error);
        }
    }
    StatusCode::NO_CONTENT.into_response()
}

fn mapping((place, entry): (usize, MappingEntry)) -> Result<DnsMapping, String> {
    let names =
        [Some(&entry.server_id), Some(&entry.dns_names.internal_dns_name), entry.dns_names.external_dns_name.as_ref()];
    let is_good = |text: &String| !text.is_empty() && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    if !names.into_iter().flatten().all(is_good) {
        return Err(format!("mapping {place} has an empty name, or one with blanks"));
    }
    if [Some(&entry.dns_names.internal_dns_name), entry.dns_names.external_dns_name.as_ref()]
        .into_iter()
        .flatten()
        .any(|name| name.len() > NAME_BYTES_MAX)
    {
        return Err(format!("mapping {place} has a name of more than {NAME_BYTES_MAX} bytes"));
    }
    let id = entry.server_id;
    let server = match entry.server_id_type.as_str() {
        "Ip" => ServerName::Ip(id),
        "Id" => ServerName::Id(id),
        "Host.Aws.Ec2InstanceId" => ServerName::Ec2InstanceId(id),
        other => {
            return Err(format!(
                "mapping {place} has the ServerIdType {other:?}; there are Ip, Id and Host.Aws.Ec2InstanceId"
            ));
        }
    };
    let names = DnsNames { internal: entry.dns_names.internal_dns_name, external: entry.dns_names.external_dns_name };
    Ok(DnsMapping { server, names })
}

async fn list_names(State(access): State<Access>) -> Json<Vec<MappingEntry>> {
    let fleet = access.broker.fleet();
    let entry = |(server, names): (&ServerName, &DnsNames)| MappingEntry {
        server_id_type: server.kind().to_owned(),
        server_id: server.value().to_owned(),
        dns_names: NamesEntry { internal_dns_name: names.internal.clone(), external_dns_name: names.external.clone() },
    };
    Json(fleet.server_names().map(entry).collect())
}

fn done(result: Result<(), ClientError>) -> Response {
    match result {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failed(&error),
    }
}

fn no_client_id() -> Response {
    error(StatusCode::BAD_REQUEST, "this cannot be a client id")
}

fn failed(cause: &ClientError) -> Response {
    let status = match cause {
        ClientError::Name | ClientError::Statement => StatusCode::BAD_REQUEST,
        ClientError::Unknown(_)
        | ClientError::Refused(
            Refusal::UnknownClient | Refusal::UnknownStatement | Refusal::UnknownAuthServer | Refusal::UnknownAgent,
        ) => StatusCode::NOT_FOUND,
        ClientError::Refused(_) => StatusCode::CONFLICT,
        ClientError::Unavailable(_) | ClientError::Shared(_) => StatusCode::SERVICE_UNAVAILABLE,
        ClientError::Keys(_) | ClientError::Thread(_) | ClientError::Seal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, &cause.to_string())
}
