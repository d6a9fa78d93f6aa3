//! Where a configuration comes from, put together. Each place is read into a
//! [`Layer`] of values by keys; a later layer's value goes before an earlier
//! one's. A value that is refused is told and left out, so that everything
//! else can be looked at too.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::{ConfigError, Problem, Problems};
use super::keys::{self, KEYS, Key};
use super::{Config, environment, properties, toml_file};
use crate::secret::Secret;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In the original's file.
    Properties {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The original's name of the key.
        key: String,
    },
    /// In `berth.toml`.
    File {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// In a variable of the environment.
    Variable(String),
    /// On the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Properties { path, line, key } => write!(f, "{}:{line}, {key}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment, {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// What somebody should know about a configuration that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A key of the original has no effect, and why.
    Ignored(String),
    /// Something is not as it seems, or not safe.
    Warning(String),
}

impl Notice {
    /// The text.
    pub fn text(&self) -> &str {
        match self {
            Self::Ignored(text) | Self::Warning(text) => text,
        }
    }
}

/// A value on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag.
    pub name: &'static str,
    /// The key.
    pub key: String,
    /// The value, as it was written.
    pub value: OsString,
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The original's file.
    pub properties: Option<PathBuf>,
    /// `berth.toml`.
    pub file: Option<PathBuf>,
    /// Variables of the environment; those of others are passed over.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line; a later one goes before an earlier one.
    pub flags: Vec<Flag>,
}

/// What one place says.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) values: Vec<(&'static Key, Value, Origin)>,
    /// Passwords, which no other place has.
    pub(super) secrets: Vec<(&'static str, Secret, Origin)>,
    pub(super) notices: Vec<Notice>,
    pub(super) problems: Vec<Problem>,
}

impl Layer {
    /// Takes note of a refusal.
    pub(super) fn refuse(&mut self, error: ConfigError, origin: Origin) {
        self.problems.push(Problem { error, origin: Some(origin) });
    }

    /// Takes a value that was written outside of TOML.
    pub(super) fn take(&mut self, key: &'static Key, text: &str, origin: Origin) {
        match key.value_of(text) {
            Ok(value) => self.values.push((key, value, origin)),
            Err(reason) => self.refuse(ConfigError::Value { key: key.name.to_owned(), reason }, origin),
        }
    }
}

/// A configuration, with where each value is from. It may have problems.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration, without what was refused.
    pub config: Config,
    /// Where its values are from; those that are not here are defaults.
    pub origins: BTreeMap<&'static str, Origin>,
    /// What somebody should know.
    pub notices: Vec<Notice>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl Sources {
    /// `berth.toml` alone.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { file: Some(path.into()), ..Self::default() }
    }

    /// Reads all of them.
    pub fn load(&self) -> Loaded {
        let layers = [
            self.properties.as_deref().map(properties::layer),
            self.file.as_deref().map(toml_file::layer),
            Some(environment::layer(&self.environment)),
            Some(self.flags()),
        ];
        let mut merged = Merged::default();
        layers.into_iter().flatten().for_each(|layer| merged.add(layer));
        merged.into_loaded()
    }

    fn flags(&self) -> Layer {
        let mut layer = Layer::default();
        for Flag { name, key, value } in &self.flags {
            let origin = Origin::Flag((*name).to_owned());
            let Some(key) = keys::find(key) else {
                let closest = keys::closest(key, KEYS.iter().map(|key| key.name));
                layer.refuse(ConfigError::Unknown { key: keys::shortened(key), closest }, origin);
                continue;
            };
            match value.to_str() {
                Some(text) => layer.take(key, text, origin),
                None => layer.refuse(not_text(key), origin),
            }
        }
        layer
    }
}

/// A value that no file of ours could hold.
pub(super) fn not_text(key: &Key) -> ConfigError {
    ConfigError::Value { key: key.name.to_owned(), reason: "it is no text in UTF-8".to_owned() }
}

/// The layers so far.
#[derive(Default)]
struct Merged {
    values: Table,
    secrets: BTreeMap<&'static str, Secret>,
    origins: BTreeMap<&'static str, Origin>,
    notices: Vec<Notice>,
    problems: Vec<Problem>,
}

impl Merged {
    fn add(&mut self, layer: Layer) {
        self.notices.extend(layer.notices);
        self.problems.extend(layer.problems);
        for (key, value, origin) in layer.values {
            let mut alone = Table::new();
            insert(&mut alone, key.name, value.clone());
            match alone.try_into::<Config>() {
                Ok(_) => {
                    insert(&mut self.values, key.name, value);
                    self.origins.insert(key.name, origin);
                }
                Err(error) => {
                    let error = ConfigError::Value { key: key.name.to_owned(), reason: error.message().to_owned() };
                    self.problems.push(Problem { error, origin: Some(origin) });
                }
            }
        }
        for (key, secret, origin) in layer.secrets {
            self.secrets.insert(key, secret);
            self.origins.insert(key, origin);
        }
    }

    fn into_loaded(self) -> Loaded {
        let Self { values, mut secrets, mut origins, mut notices, mut problems } = self;
        let mut config = match values.try_into::<Config>() {
            Ok(config) => config,
            // Each value was taken by itself, so this says nothing new; but it must not pass.
            Err(error) => {
                let error = ConfigError::Value { key: String::new(), reason: error.message().to_owned() };
                problems.push(error.into());
                Config::default()
            }
        };
        for (key, place, has_file) in passwords(&mut config) {
            let secret = secrets.remove(key);
            if has_file && secret.is_some() {
                // A file is only named in what goes before the original's.
                origins.remove(key);
            } else {
                *place = secret;
            }
        }
        let of_values = config.problems().into_iter().map(|error| {
            let origin = error.key().map(|key| origins.get(key).cloned().unwrap_or(Origin::Default));
            Problem { error, origin }
        });
        problems.extend(of_values);
        notices.extend(config.warnings().into_iter().map(Notice::Warning));
        Loaded { config, origins, notices, problems }
    }
}

/// Passwords that stand in the original's file themselves, and whether a file
/// is named for them.
fn passwords(config: &mut Config) -> [(&'static str, &mut Option<Secret>, bool); 4] {
    let Config { clients, agents, gateway, .. } = config;
    [
        ("clients.key_store_password", &mut clients.key_store_password, clients.key_store_password_file.is_some()),
        ("agents.key_store_password", &mut agents.key_store_password, agents.key_store_password_file.is_some()),
        ("gateway.key_store_password", &mut gateway.key_store_password, gateway.key_store_password_file.is_some()),
        (
            "gateway.trust_store_password",
            &mut gateway.trust_store_password,
            gateway.trust_store_password_file.is_some(),
        ),
    ]
}

fn insert(table: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        None => {
            table.insert(name.to_owned(), value);
        }
        Some((section, rest)) => {
            let section = table.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(rest.to_owned(), value);
            }
        }
    }
}

impl Loaded {
    /// What the original's file gives by itself, by its bytes.
    pub fn of_properties(bytes: &[u8]) -> Self {
        let mut merged = Merged::default();
        merged.add(properties::layer_of(Path::new("properties"), bytes));
        merged.into_loaded()
    }

    /// The configuration, if nothing is wrong with it.
    pub fn into_config(self) -> Result<Config, Problems> {
        if self.problems.is_empty() { Ok(self.config) } else { Err(Problems(self.problems)) }
    }

    /// Where a key's value is from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}
