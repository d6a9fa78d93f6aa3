//! Bodies of requests: JSON within limits, with errors that name the field.
//!
//! Two spellings of some fields are in use, because the original's guide and
//! its description differ; both are understood. `null` counts as absent.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Error;
use super::limits::{BODY_BYTES_MAX, BODY_TIMEOUT, ITEMS_MAX};

/// Other spellings of fields, and the field that is meant.
const ALIASES: [(&str, &str); 4] = [
    ("MaxConcurrents", "MaxConcurrentClients"),
    ("MaxConcurrentsClients", "MaxConcurrentClients"),
    ("DcvGLEnabled", "DcvGlEnabled"),
    ("PermissionFile", "PermissionsFile"),
];

/// A JSON array of items, at most [`ITEMS_MAX`].
#[derive(Debug)]
pub(super) struct Items<T>(pub(super) Vec<T>);

/// A JSON object; an empty body counts as an empty object.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Items<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let body = read(request, state).await?;
        items(&body).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for Query<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let body = read(request, state).await?;
        query(&body).map(Self)
    }
}

/// One JSON object, or an array with one: what a part of it means is found
/// out by the handler.
#[derive(Debug)]
pub(super) struct One(pub(super) Value);

impl<S: Send + Sync> FromRequest<S> for One {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let body = read(request, state).await?;
        let one = match parse(&body)? {
            Value::Array(mut items) if items.len() == 1 => items.pop().unwrap_or_default(),
            other => other,
        };
        if one.is_object() {
            Ok(Self(one))
        } else {
            Err(Error::BadRequest("the body must be one JSON object".to_owned()))
        }
    }
}

/// Reads a JSON body as bytes.
pub(super) async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    let is_json = has_json_type(request.headers());
    let body = read_bytes(request, state).await?;
    if !is_json && !body.is_empty() {
        return Err(Error::UnsupportedMediaType);
    }
    Ok(body)
}

/// Reads a body of any kind. The router limits its length to [`BODY_BYTES_MAX`].
pub(super) async fn read_bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    let reading = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state));
    let Ok(read) = reading.await else {
        return Err(Error::BodyTimeout { seconds: BODY_TIMEOUT.as_secs() });
    };
    read.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::BodyTooLarge { limit: BODY_BYTES_MAX },
        _ => Error::BadRequest("the body could not be read".to_owned()),
    })
}

/// Whether the body is JSON by its type, or has none.
fn has_json_type(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let Ok(value) = value.to_str() else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.is_empty()
        || essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Decodes an array of items.
pub(super) fn items<T: DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, Error> {
    if is_blank(body) {
        return Err(Error::BadRequest("the body is empty; it must be a JSON array".to_owned()));
    }
    let value = parse(body)?;
    if let Value::Array(items) = &value
        && items.len() > ITEMS_MAX
    {
        return Err(Error::BadRequest(format!(
            "the body has {} items; at most {ITEMS_MAX} are allowed in one call",
            items.len()
        )));
    }
    typed(value)
}

/// Decodes an object.
fn query<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Error> {
    if is_blank(body) {
        return Ok(T::default());
    }
    match parse(body)? {
        Value::Null => Ok(T::default()),
        // Structs can be decoded from arrays too; a list of values is no query.
        Value::Array(_) => Err(Error::BadRequest("the body must be a JSON object, not an array".to_owned())),
        value => typed(value),
    }
}

fn is_blank(body: &[u8]) -> bool {
    body.iter().all(u8::is_ascii_whitespace)
}

fn parse(body: &[u8]) -> Result<Value, Error> {
    let mut value: Value = serde_json::from_slice(body).map_err(|error| {
        // The category, not serde_json's text: that would repeat what was sent.
        let what = if error.is_eof() { "ends too early" } else { "is not valid" };
        Error::BadRequest(format!("the body is no JSON: it {what} at line {} column {}", error.line(), error.column()))
    })?;
    match &mut value {
        Value::Array(items) => items.iter_mut().for_each(normalise),
        other => normalise(other),
    }
    Ok(value)
}

/// Drops members that are `null` and renames those with another spelling.
fn normalise(value: &mut Value) {
    let Value::Object(members) = value else { return };
    members.retain(|_, member| !member.is_null());
    for (alias, name) in ALIASES {
        if let Some(member) = members.remove(alias)
            && !members.contains_key(name)
        {
            members.insert(name.to_owned(), member);
        }
    }
    // Filters are objects inside an object.
    if let Some(Value::Array(filters)) = members.get_mut("Filters") {
        for filter in filters {
            if let Value::Object(pair) = filter {
                pair.retain(|_, member| !member.is_null());
            }
        }
    }
}

/// Decodes what is JSON already; an error names the field.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    if let Value::Array(items) = &value
        && let Some(place) = items.iter().position(|item| !item.is_object())
    {
        return Err(Error::BadRequest(format!("item [{place}] must be a JSON object")));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let place = match error.path().to_string() {
            path if path == "." => "the body".to_owned(),
            path => path,
        };
        let text = error.inner().to_string();
        Error::BadRequest(format!("{place} has the wrong type: it must be {}", expected(&text)))
    })
}

/// What serde wanted, out of its text, without the value that it found.
fn expected(text: &str) -> &'static str {
    let wanted = text.rsplit_once("expected ").map_or("", |(_, wanted)| wanted);
    match wanted {
        "a string" => "text",
        "a boolean" => "true or false",
        "i64" => "a whole number",
        "a sequence" => "an array",
        _ if wanted.starts_with("struct") || wanted == "a map" => "an object",
        _ => "as the API description says",
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
