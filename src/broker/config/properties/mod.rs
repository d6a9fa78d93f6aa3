//! The original's `session-manager-broker.properties`, read as it is: keys
//! that mean something here become ours, the others are told with the reason
//! why they have no effect, and keys that the original has not are refused.

pub(super) mod original;
mod syntax;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use toml::Value;
use zeroize::Zeroizing;

use self::original::{Conversion, Fate, KEYS, OriginalKey};
use self::syntax::{Property, decode, parse};
use super::Config;
use super::error::ConfigError;
use super::keys::{self, shortened};
use super::sources::{Layer, Notice, Origin};
use super::toml_file::FILE_BYTES_MAX;
use crate::secret::Secret;

/// Reads a file. It holds passwords: one that others may read or change is
/// refused.
pub(super) fn layer(path: &Path) -> Layer {
    match read(path) {
        Ok(bytes) => layer_of(path, &bytes),
        Err(error) => Layer { problems: vec![error.into()], ..Layer::default() },
    }
}

/// What a file with these bytes says.
pub(super) fn layer_of(path: &Path, bytes: &[u8]) -> Layer {
    let mut layer = Layer::default();
    Reading { path, layer: &mut layer, listeners: BTreeMap::new() }.take_all(bytes);
    layer
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let wrong = |reason: &str| failed(io::Error::new(io::ErrorKind::InvalidData, reason));
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(wrong("it is no regular file"));
    }
    // The original allows its group to read it, and checks no more than this.
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(ConfigError::Exposed { path: path.to_owned(), mode });
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(wrong("it is longer than 1 MiB"));
    }
    // No growth, which would leave copies of passwords in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(FILE_BYTES_MAX).unwrap_or_default() + 1));
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Address and port of a listener, as far as they were written.
#[derive(Default)]
struct Written {
    host: Option<IpAddr>,
    port: Option<u16>,
    origin: Option<Origin>,
}

struct Reading<'a> {
    path: &'a Path,
    layer: &'a mut Layer,
    listeners: BTreeMap<&'static str, Written>,
}

impl Reading<'_> {
    fn take_all(mut self, bytes: &[u8]) {
        let mut properties: BTreeMap<String, Property> = BTreeMap::new();
        for property in parse(&decode(bytes)) {
            match property {
                Ok(property) => {
                    let Property { key, line, .. } = &property;
                    let (key, line) = (key.clone(), *line);
                    if let Some(earlier) = properties.insert(key.clone(), property) {
                        self.warn(
                            earlier.line,
                            &format!("{} has no effect: line {line} has it again", shortened(&key)),
                        );
                    }
                }
                Err(malformed) => {
                    let (line, reason) = (malformed.line, malformed.reason.to_owned());
                    let error = ConfigError::Syntax { path: self.path.to_owned(), line, reason };
                    self.layer.problems.push(error.into());
                }
            }
        }
        if let (Some(hours), Some(seconds)) =
            (properties.get("delete-session-duration-hours"), properties.get("delete-session-duration-seconds"))
            && !seconds.value.trim().is_empty()
        {
            let line = hours.line;
            properties.remove("delete-session-duration-hours");
            self.warn(
                line,
                "delete-session-duration-hours has no effect: delete-session-duration-seconds goes before it",
            );
        }
        let mut properties: Vec<Property> = properties.into_values().collect();
        properties.sort_by_key(|property| property.line);
        for property in properties {
            self.take(&property);
        }
        self.take_listeners();
    }

    fn take(&mut self, property: &Property) {
        let Some(original) = KEYS.iter().find(|key| key.name == property.key) else {
            let closest = keys::closest(&property.key, KEYS.iter().map(|key| key.name));
            let error = ConfigError::UnknownOriginal { key: shortened(&property.key), closest };
            return self.layer.refuse(error, self.origin(property));
        };
        // A key without a value is one that nobody filled in.
        if property.value.trim().is_empty() {
            return;
        }
        match original.fate {
            Fate::Ignored => self.ignore(original, property),
            Fate::Becomes { key, by } => {
                if let Err(reason) = self.convert(key, by, property) {
                    let error = ConfigError::Value { key: property.key.clone(), reason };
                    self.layer.refuse(error, self.origin(property));
                }
            }
        }
    }

    fn ignore(&mut self, original: &OriginalKey, property: &Property) {
        let text = format!("{} has no effect: {}", original.name, original.note);
        // Whoever named several brokers has a cluster, and would have none here.
        if original.name == "broker-to-broker-discovery-addresses" && property.value.contains(',') {
            return self.warn(property.line, &text);
        }
        self.layer.notices.push(Notice::Ignored(format!("{}:{}: {text}", self.path.display(), property.line)));
    }

    fn warn(&mut self, line: usize, text: &str) {
        self.layer.notices.push(Notice::Warning(format!("{}:{line}: {text}", self.path.display())));
    }

    fn origin(&self, property: &Property) -> Origin {
        Origin::Properties { path: self.path.to_owned(), line: property.line, key: shortened(&property.key) }
    }

    /// Takes a value as one of ours.
    fn convert(&mut self, key: &'static str, by: Conversion, property: &Property) -> Result<(), String> {
        let text = property.value.trim();
        let origin = self.origin(property);
        let value = match by {
            Conversion::Number => keys::number(text)?,
            Conversion::Hours => {
                let hours = keys::number(text)?.as_integer().unwrap_or_default();
                Value::Integer(hours.saturating_mul(3600))
            }
            Conversion::Truth => keys::truth(text)?,
            Conversion::Word => Value::String(text.to_lowercase()),
            Conversion::Path if text.starts_with('/') => Value::String(text.to_owned()),
            Conversion::Path => return Err(format!("`{}` must be a whole path, from /", shortened(text))),
            Conversion::Password => {
                // Blanks behind it belong to it.
                let secret = Secret::new(property.value.to_string());
                self.layer.secrets.push((password_of(key), secret, origin));
                return Ok(());
            }
            Conversion::Port => {
                let port = text.parse().ok().filter(|port| *port != 0);
                let port = port.ok_or_else(|| format!("`{}` is no port from 1 to 65535", shortened(text)))?;
                let written = self.listeners.entry(key).or_default();
                (written.port, written.origin) = (Some(port), Some(origin));
                return Ok(());
            }
            Conversion::Host => {
                let host = host(text)?;
                let written = self.listeners.entry(key).or_default();
                written.host = Some(host);
                written.origin.get_or_insert(origin);
                return Ok(());
            }
        };
        let key = keys::find(key).ok_or_else(|| format!("there is no key {key}"))?;
        self.layer.values.push((key, value, origin));
        Ok(())
    }

    fn take_listeners(&mut self) {
        let defaults = Config::default();
        let defaults = [
            ("cluster.listen", defaults.cluster.listen),
            ("clients.listen", defaults.clients.listen),
            ("agents.listen", defaults.agents.listen),
            ("gateway.listen", defaults.gateway.listen),
        ];
        for (name, default) in defaults {
            let Some(Written { host, port, origin: Some(origin) }) = self.listeners.remove(name) else { continue };
            let Some(key) = keys::find(name) else { continue };
            let address = SocketAddr::new(host.unwrap_or(default.ip()), port.unwrap_or(default.port()));
            self.layer.values.push((key, Value::String(address.to_string()), origin));
        }
    }
}

/// The key under which the password itself is kept, instead of a file with it.
fn password_of(file_key: &'static str) -> &'static str {
    file_key.strip_suffix("_file").unwrap_or(file_key)
}

/// An address to listen at.
fn host(text: &str) -> Result<IpAddr, String> {
    if text.eq_ignore_ascii_case("localhost") {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let plain = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    plain.parse().map_err(|_| format!("`{}` must be an address of this host, or 0.0.0.0 for all", shortened(text)))
}

#[cfg(test)]
mod tests;
