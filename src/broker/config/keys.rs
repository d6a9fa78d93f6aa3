//! The keys of `berth.toml`, and how they are written outside of it.

use toml::Value;

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its name, with its section.
    pub name: &'static str,
    /// What its values look like.
    pub kind: Kind,
}

/// What the values of a key look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text: also a path, an address, or one of a few words.
    Text,
    /// A number from 0.
    Number,
    /// `true` or `false`.
    Truth,
    /// Several texts; outside of TOML with commas between them.
    Texts,
    /// Replicas; outside of TOML as `1=b1:47100,2=b2:47100`.
    Members,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind }
}

/// Every key, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    key("data_folder", Kind::Text),
    key("replica", Kind::Number),
    key("names", Kind::Texts),
    key("enable_api_yaml", Kind::Truth),
    key("cluster.listen", Kind::Text),
    key("cluster.address", Kind::Text),
    key("cluster.members", Kind::Members),
    key("cluster.secret_file", Kind::Text),
    key("cluster.election_timeout_ms", Kind::Number),
    key("cluster.heartbeat_ms", Kind::Number),
    key("cluster.snapshot_after_entries", Kind::Number),
    key("cluster.request_timeout_seconds", Kind::Number),
    key("cluster.format_max", Kind::Number),
    key("clients.listen", Kind::Text),
    key("clients.certificate_file", Kind::Text),
    key("clients.key_file", Kind::Text),
    key("clients.key_store_file", Kind::Text),
    key("clients.key_store_password_file", Kind::Text),
    key("clients.connections_max", Kind::Number),
    key("agents.listen", Kind::Text),
    key("agents.certificate_file", Kind::Text),
    key("agents.key_file", Kind::Text),
    key("agents.key_store_file", Kind::Text),
    key("agents.key_store_password_file", Kind::Text),
    key("agents.connections_max", Kind::Number),
    key("agents.authorization", Kind::Truth),
    key("gateway.enabled", Kind::Truth),
    key("gateway.listen", Kind::Text),
    key("gateway.certificate_file", Kind::Text),
    key("gateway.key_file", Kind::Text),
    key("gateway.key_store_file", Kind::Text),
    key("gateway.key_store_password_file", Kind::Text),
    key("gateway.require_client_certificate", Kind::Truth),
    key("gateway.trust_file", Kind::Text),
    key("gateway.trust_store_file", Kind::Text),
    key("gateway.trust_store_password_file", Kind::Text),
    key("gateway.connections_max", Kind::Number),
    key("authorization.enabled", Kind::Truth),
    key("authorization.server", Kind::Truth),
    key("tokens.algorithm", Kind::Text),
    key("tokens.access_seconds", Kind::Number),
    key("tokens.connection_minutes", Kind::Number),
    key("tokens.connection_single_use", Kind::Truth),
    key("limits.requests_per_second", Kind::Number),
    key("limits.forwarded_for", Kind::Truth),
    key("limits.trusted_proxies", Kind::Texts),
    key("sessions.deleted_retention_seconds", Kind::Number),
    key("sessions.prepare_timeout_seconds", Kind::Number),
    key("sessions.delete_timeout_seconds", Kind::Number),
    key("sessions.queue_max", Kind::Number),
    key("sessions.queue_timeout_seconds", Kind::Number),
    key("sessions.reports_missed_max", Kind::Number),
    key("sessions.lost_server_retention_seconds", Kind::Number),
    key("sessions.lost_session_retention_seconds", Kind::Number),
    key("sessions.create_retries_max", Kind::Number),
    key("sessions.avoid_failed_server_seconds", Kind::Number),
    key("sessions.placement", Kind::Text),
    key("sessions.autorun_arguments_max", Kind::Number),
    key("sessions.autorun_argument_length_max", Kind::Number),
    key("journal.records_max", Kind::Number),
    key("journal.bytes_max", Kind::Number),
    key("journal.retention_seconds", Kind::Number),
    key("idempotency.retention_seconds", Kind::Number),
    key("idempotency.keys_max_per_client", Kind::Number),
    key("screenshots.width_max", Kind::Number),
    key("screenshots.height_max", Kind::Number),
    key("screenshots.format", Kind::Text),
];

/// The key of a name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether a name is that of a section.
pub(super) fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

/// The sections; those of several keys come several times.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|key| key.name.split_once('.')).map(|(section, _)| section)
}

/// The variable of the environment for a key: `clients.listen` is
/// `BERTH_CLIENTS_LISTEN`.
pub fn variable(key: &str) -> String {
    format!("BERTH_{}", key.replace('.', "_").to_uppercase())
}

/// The name that is written most like another one, if any is much like it.
pub(super) fn closest(name: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    // A third of the letters may differ; more is another word. Long ones are
    // no names, and take long to compare.
    let name: String = name.chars().take(100).collect();
    let distance_max = (name.chars().count() / 3).max(1);
    names
        .map(|other| (strsim::damerau_levenshtein(&name, other), other))
        .filter(|(distance, _)| *distance <= distance_max)
        .min()
        .map(|(_, other)| other)
}

impl Key {
    /// A value that was written outside of TOML. White space around it does
    /// not count.
    pub(super) fn value_of(&self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("it has no value".to_owned());
        }
        match self.kind {
            Kind::Text => Ok(Value::String(text.to_owned())),
            Kind::Number => number(text),
            Kind::Truth => truth(text),
            Kind::Texts | Kind::Members if text.starts_with('[') => list(text),
            Kind::Texts => Ok(Value::Array(parts(text).map(|part| Value::String(part.to_owned())).collect())),
            Kind::Members => parts(text).map(member).collect::<Result<_, _>>().map(Value::Array),
        }
    }
}

/// A number from 0.
pub(super) fn number(text: &str) -> Result<Value, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = is_number.then(|| text.parse::<i64>().ok()).flatten();
    number.map(Value::Integer).ok_or_else(|| format!("`{}` is no number from 0 to {}", shortened(text), i64::MAX))
}

/// `true` or `false`, in letters of either case.
pub(super) fn truth(text: &str) -> Result<Value, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(Value::Boolean(true)),
        "false" => Ok(Value::Boolean(false)),
        _ => Err(format!("`{}` is neither true nor false", shortened(text))),
    }
}

/// The beginning of a text, for an error.
pub(super) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 100;
    let mut short: String = text.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// A list as TOML writes it.
fn list(text: &str) -> Result<Value, String> {
    let table = format!("list = {text}").parse::<toml::Table>().map_err(|error| error.message().to_owned())?;
    // A text with further lines could bring further keys along.
    match table.into_iter().next() {
        Some((_, value)) if !text.contains('\n') => Ok(value),
        _ => Err("it is no list".to_owned()),
    }
}

/// `1=b1:47100`.
fn member(text: &str) -> Result<Value, String> {
    let (replica, address) =
        text.split_once('=').ok_or_else(|| format!("`{}` is not of the form 1=host:port", shortened(text)))?;
    let mut member = toml::Table::new();
    member.insert("replica".to_owned(), number(replica.trim())?);
    member.insert("address".to_owned(), Value::String(address.trim().to_owned()));
    Ok(Value::Table(member))
}
