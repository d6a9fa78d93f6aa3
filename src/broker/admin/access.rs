//! What operators do with API clients, keys, software statements, agents,
//! authorization servers and names of servers.

mod entries;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};

pub use self::entries::{
    AgentEntry, AuthServerEntry, AuthServerRequest, AuthServerUrl, ClientEntry, GrantRequest, MapRequest, MappingEntry,
    NamesEntry, RegisterAnswer, RegisterRequest, RenewRequest, StatementEntry, StatementText,
};
use super::error;
use crate::broker::core::Broker;
use crate::broker::identity::{ClientError, Identity, external};
use crate::domain::auth_server::{AuthServer, DEMAND_BYTES_MAX, PEM_BYTES_MAX, SignatureAlgorithm, URL_BYTES_MAX};
use crate::domain::client::{AgentClient, ApiClient, Grant};
use crate::domain::dns::{DNS_MAPPINGS_PER_COMMAND_MAX, DnsMapping, DnsNames, NAME_BYTES_MAX, ServerName};
use crate::domain::{ClientId, Command, Refusal};

/// What the URL of an authorization server's keys must end with.
const KEYS_PATH: &str = ".well-known/jwks.json";
/// The longest list of names of servers, in bytes.
const NAMES_BYTES_MAX: usize = 64 * 1024 * 1024;

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
