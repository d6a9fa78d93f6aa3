//! `GET /dcv-session-manager-api.yaml`: the description of the API, made from
//! the types and handlers themselves.
//!
//! utoipa writes OpenAPI 3.1, which the generators that existing clients use
//! do not read. The differences that matter here are few, so the document is
//! brought down to 3.0.0: `null` as a type becomes `nullable`, and nothing is
//! `required`, because items are judged one by one. The order of properties is
//! kept: generators make constructors with arguments in that order.

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use yaml_serde::{Mapping, Value};

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
        openapi.components.get_or_insert_default().add_security_scheme("bearerAuth", SecurityScheme::Http(bearer));
    }
}

/// The description as OpenAPI 3.0.0 in YAML. An error is a fault of the build,
/// which its tests would show.
pub fn yaml() -> Result<String, yaml_serde::Error> {
    let mut document = yaml_serde::to_value(Description::openapi())?;
    to_version_3_0(&mut document);
    if let Value::Mapping(members) = &mut document {
        members.insert("openapi".into(), OPENAPI_VERSION.into());
    }
    if let Some(Value::Mapping(info)) = document.get_mut("info") {
        info.retain(|name, _| name == "title" || name == "description");
        info.insert("version".into(), API_VERSION.into());
    }
    for path in ["/describeSessions", "/describeServers"] {
        let body = document
            .get_mut("paths")
            .and_then(|paths| paths.get_mut(path)?.get_mut("post")?.get_mut("requestBody")?.as_mapping_mut());
        if let Some(body) = body {
            body.insert("required".into(), false.into());
        }
    }
    yaml_serde::to_string(&document)
}

/// Serves the description; it is made once.
pub(super) async fn serve() -> Response {
    static YAML: LazyLock<Result<String, yaml_serde::Error>> = LazyLock::new(yaml);
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
        Value::Sequence(items) => items.iter_mut().for_each(to_version_3_0),
        Value::Mapping(members) => {
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
fn lower_nullable(schema: &mut Mapping) {
    let Some(Value::Sequence(types)) = schema.get("type") else { return };
    let (nulls, mut others): (Vec<Value>, Vec<Value>) = types.iter().cloned().partition(|kind| kind == "null");
    if let (Some(kind), true) = (others.pop(), others.is_empty()) {
        schema.insert("type".into(), kind);
        if !nulls.is_empty() {
            schema.insert("nullable".into(), true.into());
        }
    }
}
