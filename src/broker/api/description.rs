//! `GET /dcv-session-manager-api.yaml`: the description of the API, made from
//! the types and handlers themselves.
//!
//! utoipa writes OpenAPI 3.1, which the generators that existing clients use
//! do not read. The differences that matter here are few, so the document is
//! brought down to 3.0.0: `null` as a type becomes `nullable`, and nothing is
//! `required`, because items are judged one by one.

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::error::Error;
use super::{connection, permissions, screenshots, servers, sessions, wire};

/// Versions of the description that this API keeps to.
const API_VERSION: &str = "2023.0";
const OPENAPI_VERSION: &str = "3.0.0";

#[derive(OpenApi)]
#[openapi(
    info(title = "DCV Session Manager", description = "Sessions and servers of a fleet of remote desktops"),
    paths(
        sessions::describe,
        servers::describe,
        sessions::create,
        sessions::delete,
        permissions::update,
        connection::get,
        screenshots::take,
        servers::open,
        servers::close,
    ),
    components(schemas(
        wire::KeyValuePair, wire::Server, wire::Endpoint, wire::Host, wire::Os, wire::Memory, wire::Swap,
        wire::CpuInfo, wire::CpuLoadAverage, wire::Gpu, wire::LoggedInUser, wire::Aws, wire::Session,
    )),
    tags(
        (name = "sessions", description = "Sessions"),
        (name = "sessionPermissions", description = "Permissions of sessions"),
        (name = "servers", description = "Servers"),
        (name = "GetSessionConnectionData", description = "Connecting to a session")
    ),
    security(("bearerAuth" = [])),
    modifiers(&BearerAuth)
)]
struct Description;

/// How clients prove who they are.
struct BearerAuth;

impl Modify for BearerAuth {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("bearerAuth", SecurityScheme::Http(bearer));
    }
}

/// The description as OpenAPI 3.0.0 in YAML.
pub fn yaml() -> Result<String, DescriptionError> {
    let mut document = serde_json::to_value(Description::openapi())?;
    to_version_3_0(&mut document);
    if let Value::Object(members) = &mut document {
        members.insert("openapi".to_owned(), Value::from(OPENAPI_VERSION));
    }
    if let Some(Value::Object(info)) = document.get_mut("info") {
        info.retain(|name, _| name == "title" || name == "description");
        info.insert("version".to_owned(), Value::from(API_VERSION));
    }
    for path in ["/describeSessions", "/describeServers"] {
        if let Some(Value::Object(body)) = document.pointer_mut(&format!("/paths/{}/post/requestBody", path.replace('/', "~1"))) {
            body.insert("required".to_owned(), Value::from(false));
        }
    }
    Ok(yaml_serde::to_string(&document)?)
}

/// Why there is no description: a fault of the build that its tests would show.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// The generated document is no JSON.
    #[error("the API description cannot be made")]
    Json(#[from] serde_json::Error),
    /// It cannot be written as YAML.
    #[error("the API description cannot be written as YAML")]
    Yaml(#[from] yaml_serde::Error),
}

/// Serves the description; it is made once.
pub(super) async fn serve() -> Response {
    static YAML: LazyLock<Result<String, DescriptionError>> = LazyLock::new(yaml);
    match &*YAML {
        Ok(text) => {
            ([(header::CONTENT_TYPE, HeaderValue::from_static("application/yaml"))], text.as_str()).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the API description cannot be served");
            Error::Internal.into_response()
        }
    }
}

/// Brings a document of OpenAPI 3.1 down to 3.0, as far as this one differs.
fn to_version_3_0(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(to_version_3_0),
        Value::Object(members) => {
            members.values_mut().for_each(to_version_3_0);
            let is_schema = members.contains_key("properties") || members.contains_key("type");
            if is_schema {
                members.remove("required");
            }
            lower_nullable(members);
        }
        _ => {}
    }
}

/// `type: [integer, "null"]` becomes `type: integer` with `nullable: true`.
fn lower_nullable(schema: &mut Map<String, Value>) {
    let Some(Value::Array(types)) = schema.get("type") else { return };
    let is_null = |kind: &Value| kind == "null";
    let (nulls, mut others): (Vec<Value>, Vec<Value>) = types.iter().cloned().partition(is_null);
    if let (Some(kind), true) = (others.pop(), others.is_empty()) {
        schema.insert("type".to_owned(), kind);
        if !nulls.is_empty() {
            schema.insert("nullable".to_owned(), Value::from(true));
        }
    }
}
