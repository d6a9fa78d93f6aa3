//! Requests become domain types here, at once. What is wrong with an item is
//! told by the name of its field; the other items of the call go on.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::limits::{CLIENTS_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, PERMISSIONS_BYTES_MAX};
use super::{Autorun, wire};
use crate::domain::ids::IdError;
use crate::domain::requirements::{self, Expression};
use crate::domain::{Owner, ServerId, SessionId, SessionKind, SessionSpec};

/// What is wrong with an item. The texts are for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error("{field} must not be blank")]
    Blank { field: &'static str },
    #[error("{field} must have at most {max} bytes, this one has {len}")]
    TooLong { field: &'static str, max: usize, len: usize },
    #[error("{field} must not hold control characters")]
    Control { field: &'static str },
    #[error("Type must be VIRTUAL or CONSOLE")]
    UnknownType,
    #[error("{field} must be between {min} and {max}")]
    OutOfRange { field: &'static str, min: u32, max: u32 },
    #[error("{field} must be text in base64")]
    NotBase64 { field: &'static str },
    #[error("{field} must be UTF-8 text once decoded")]
    NotText { field: &'static str },
    #[error("{field} must be a relative path without ..")]
    NotRelative { field: &'static str },
    #[error("AutorunFileArguments must have at most {max} entries, there are {count}")]
    TooManyArguments { max: usize, count: usize },
    #[error("AutorunFileArguments[{place}] must have at most {chars_max} characters and no control characters")]
    BadArgument { place: usize, chars_max: usize },
    #[error("AutorunFileArguments needs AutorunFile")]
    ArgumentsWithoutFile,
    #[error("{field} is not supported with Type CONSOLE")]
    NotWithConsole { field: &'static str },
    // Clients look for a text that begins with "Property".
    #[error("Property in Requirements not known: {0}")]
    UnknownProperty(requirements::Error),
    #[error("Requirements not understood: {0}")]
    Requirements(requirements::Error),
}

impl Invalid {
    fn of_id(field: &'static str, error: &IdError) -> Self {
        match *error {
            IdError::Empty { .. } => Self::Blank { field },
            IdError::TooLong { max, len, .. } => Self::TooLong { field, max, len },
            IdError::Control { .. } => Self::Control { field },
        }
    }
}

/// What a client asks for with an item of createSessions.
pub(super) fn session_spec(item: &wire::CreateSessionRequestData, autorun: &Autorun) -> Result<SessionSpec, Invalid> {
    let name = name(item.name.as_deref())?;
    let owner = owner(item.owner.as_deref())?;
    let kind = kind(item.kind.as_deref())?;
    let gl = item.dcv_gl_enabled.unwrap_or(false);
    let init_file = match filled(item.init_file.as_deref()) {
        Some(path) => Some(("InitFile", path)),
        None => filled(item.init_file_path.as_deref()).map(|path| ("InitFilePath", path)),
    };
    if kind == SessionKind::Console {
        let field = if gl {
            Some("DcvGlEnabled")
        } else if let Some((field, _)) = init_file {
            Some(field)
        } else if item.autorun_file_arguments.as_ref().is_some_and(|arguments| !arguments.is_empty()) {
            Some("AutorunFileArguments")
        } else {
            None
        };
        if let Some(field) = field {
            return Err(Invalid::NotWithConsole { field });
        }
    }
    let autorun_file = filled(item.autorun_file.as_deref());
    Ok(SessionSpec {
        name,
        owner,
        kind,
        gl,
        clients_max: item.max_concurrent_clients.map(clients_max).transpose()?,
        init_file: init_file.map(|(field, path)| relative_path(field, path)).transpose()?,
        autorun_file: autorun_file.map(|path| relative_path("AutorunFile", path)).transpose()?,
        autorun_arguments: autorun_arguments(item.autorun_file_arguments.as_deref(), autorun_file.is_some(), autorun)?,
        permissions: filled(item.permissions_file.as_deref()).map(permissions).transpose()?,
        requirements: requirements(item.requirements.as_deref())?,
        storage_root: filled(item.storage_root.as_deref()).map(storage_root).transpose()?,
        enqueue: item.enqueue_request.unwrap_or(false),
        placement: None,
        retry_disabled: item.disable_retry_on_failure.unwrap_or(false),
    })
}

/// The value of a field that is optional and may be sent empty.
fn filled(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.trim().is_empty())
}

/// The value of a field that must be there.
fn required<'a>(field: &'static str, text: Option<&'a str>) -> Result<&'a str, Invalid> {
    let text = text.ok_or(Invalid::Missing { field })?;
    if text.trim().is_empty() { Err(Invalid::Blank { field }) } else { Ok(text) }
}

fn printable(field: &'static str, text: &str, max: usize) -> Result<(), Invalid> {
    if text.len() > max {
        return Err(Invalid::TooLong { field, max, len: text.len() });
    }
    if text.chars().any(char::is_control) { Err(Invalid::Control { field }) } else { Ok(()) }
}

fn name(text: Option<&str>) -> Result<String, Invalid> {
    let text = required("Name", text)?;
    printable("Name", text, NAME_BYTES_MAX)?;
    Ok(text.to_owned())
}

/// The field `Owner`.
pub(super) fn owner(text: Option<&str>) -> Result<Owner, Invalid> {
    let text = required("Owner", text)?;
    Owner::new(text).map_err(|error| Invalid::of_id("Owner", &error))
}

/// A session id out of the field `SessionId`.
pub(super) fn session_id(text: Option<&str>) -> Result<SessionId, Invalid> {
    let text = required("SessionId", text)?;
    SessionId::new(text).map_err(|error| Invalid::of_id("SessionId", &error))
}

/// A server id out of the field `ServerId`.
pub(super) fn server_id(text: Option<&str>) -> Result<ServerId, Invalid> {
    let text = required("ServerId", text)?;
    ServerId::new(text).map_err(|error| Invalid::of_id("ServerId", &error))
}

/// The field `PermissionsFile` where it must be there.
pub(super) fn required_permissions(text: Option<&str>) -> Result<String, Invalid> {
    permissions(required("PermissionsFile", text)?)
}

/// A span of seconds, from 0.
pub(super) fn seconds(field: &'static str, seconds: Option<i64>, max: u32) -> Result<u64, Invalid> {
    let seconds = seconds.ok_or(Invalid::Missing { field })?;
    u64::try_from(seconds).ok().filter(|seconds| *seconds <= u64::from(max)).ok_or(Invalid::OutOfRange {
        field,
        min: 0,
        max,
    })
}

/// A largest side of a picture: greater than 0, or not given.
pub(super) fn side_max(field: &'static str, pixels: Option<i64>) -> Result<Option<u32>, Invalid> {
    let Some(pixels) = pixels else { return Ok(None) };
    if pixels < 1 {
        return Err(Invalid::OutOfRange { field, min: 1, max: u32::MAX });
    }
    Ok(Some(u32::try_from(pixels).unwrap_or(u32::MAX)))
}

fn kind(text: Option<&str>) -> Result<SessionKind, Invalid> {
    let text = required("Type", text)?.trim();
    if text.eq_ignore_ascii_case("VIRTUAL") {
        Ok(SessionKind::Virtual)
    } else if text.eq_ignore_ascii_case("CONSOLE") {
        Ok(SessionKind::Console)
    } else {
        Err(Invalid::UnknownType)
    }
}

fn clients_max(count: i64) -> Result<u32, Invalid> {
    u32::try_from(count).ok().filter(|count| (1..=CLIENTS_MAX).contains(count)).ok_or(Invalid::OutOfRange {
        field: "MaxConcurrentClients",
        min: 1,
        max: CLIENTS_MAX,
    })
}

/// A path below a folder of the host, which may be Linux or Windows.
fn relative_path(field: &'static str, path: &str) -> Result<String, Invalid> {
    printable(field, path, PATH_BYTES_MAX)?;
    let is_rooted = path.starts_with(['/', '\\']) || path.as_bytes().get(1) == Some(&b':');
    if is_rooted || path.split(['/', '\\']).any(|part| part == "..") {
        return Err(Invalid::NotRelative { field });
    }
    Ok(path.to_owned())
}

fn autorun_arguments(arguments: Option<&[String]>, has_file: bool, autorun: &Autorun) -> Result<Vec<String>, Invalid> {
    let &Autorun { arguments_max: max, argument_chars_max: chars_max } = autorun;
    let arguments = arguments.unwrap_or_default();
    if arguments.is_empty() {
        return Ok(Vec::new());
    }
    if !has_file {
        return Err(Invalid::ArgumentsWithoutFile);
    }
    if arguments.len() > max {
        return Err(Invalid::TooManyArguments { max, count: arguments.len() });
    }
    let is_bad = |argument: &String| argument.chars().count() > chars_max || argument.chars().any(char::is_control);
    match arguments.iter().position(is_bad) {
        Some(place) => Err(Invalid::BadArgument { place, chars_max }),
        None => Ok(arguments.to_vec()),
    }
}

/// With or without padding, and with the line breaks that base64 tools make.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn permissions(encoded: &str) -> Result<String, Invalid> {
    let field = "PermissionsFile";
    let packed: Vec<u8> = encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let decoded = BASE64.decode(packed).map_err(|_| Invalid::NotBase64 { field })?;
    if decoded.len() > PERMISSIONS_BYTES_MAX {
        return Err(Invalid::TooLong { field, max: PERMISSIONS_BYTES_MAX, len: decoded.len() });
    }
    String::from_utf8(decoded).map_err(|_| Invalid::NotText { field })
}

fn requirements(text: Option<&str>) -> Result<Option<Arc<Expression>>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    match Expression::parse(text) {
        Ok(expression) => Ok(expression.map(Arc::new)),
        Err(error @ requirements::Error::UnknownProperty { .. }) => Err(Invalid::UnknownProperty(error)),
        Err(error) => Err(Invalid::Requirements(error)),
    }
}

fn storage_root(path: &str) -> Result<String, Invalid> {
    printable("StorageRoot", path, PATH_BYTES_MAX)?;
    Ok(path.to_owned())
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
