//! A configuration as it is in effect, to look at: as a `berth.toml` that says
//! where each value is from, or as JSON. Passwords do not show.

use std::fmt::Write as _;

use serde_json::{Map, json};
use toml::{Table, Value};

use super::keys::KEYS;
use super::sources::{Loaded, Notice};

/// What stands for a secret.
const MASK: &str = "[secret]";

/// Passwords, which are no keys of a file.
const PASSWORDS: [&str; 4] = [
    "clients.key_store_password",
    "agents.key_store_password",
    "gateway.key_store_password",
    "gateway.trust_store_password",
];

impl Loaded {
    /// As a file that gives the same configuration, but for passwords.
    pub fn as_toml(&self) -> String {
        let values = self.values();
        let mut text = String::new();
        let mut section = "";
        for key in KEYS {
            let (of, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if of != section {
                section = of;
                // Writing to a String cannot fail.
                let _ = write!(text, "\n[{section}]\n");
            }
            // A key that is not set has no value.
            if let Some(value) = lookup(&values, key.name) {
                let _ = writeln!(text, "{name} = {value} # {}", one_line(&self.origin(key.name).to_string()));
            }
            let password = key.name.strip_suffix("_file").filter(|password| self.has_password(password));
            if let Some(password) = password {
                let name = password.rsplit('.').next().unwrap_or(password);
                let _ = writeln!(text, "# {name} = \"{MASK}\" # {}", one_line(&self.origin(password).to_string()));
            }
        }
        text
    }

    /// As JSON: `configuration` (null when something is wrong), `sources`
    /// (where values are from that are no defaults), `ignored`, `warnings` and
    /// `errors`.
    pub fn as_json(&self) -> serde_json::Value {
        let mut configuration = Map::new();
        for (name, value) in self.values() {
            configuration.insert(name, json!(value));
        }
        for password in PASSWORDS.into_iter().filter(|password| self.has_password(password)) {
            if let Some((section, name)) = password.split_once('.')
                && let Some(section) = configuration.get_mut(section).and_then(serde_json::Value::as_object_mut)
            {
                section.insert(name.to_owned(), MASK.into());
            }
        }
        let sources: Map<String, serde_json::Value> =
            self.origins.iter().map(|(key, origin)| ((*key).to_owned(), origin.to_string().into())).collect();
        let texts = |is_warning: bool| -> Vec<&str> {
            let notices = self.notices.iter();
            notices.filter(|notice| matches!(notice, Notice::Warning(_)) == is_warning).map(Notice::text).collect()
        };
        let errors: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        json!({
            "configuration": errors.is_empty().then_some(configuration),
            "sources": sources,
            "ignored": texts(false),
            "warnings": texts(true),
            "errors": errors,
        })
    }

    fn values(&self) -> Table {
        // Every value came out of TOML, or is a default that a test writes.
        Table::try_from(&self.config).unwrap_or_default()
    }

    fn has_password(&self, key: &str) -> bool {
        let gateway = &self.config.gateway;
        match key {
            "clients.key_store_password" => self.config.clients.key_store_password.is_some(),
            "agents.key_store_password" => self.config.agents.key_store_password.is_some(),
            "gateway.key_store_password" => gateway.key_store_password.is_some(),
            "gateway.trust_store_password" => gateway.trust_store_password.is_some(),
            _ => false,
        }
    }
}

fn lookup<'a>(values: &'a Table, name: &str) -> Option<&'a Value> {
    match name.split_once('.') {
        None => values.get(name),
        Some((section, name)) => values.get(section)?.get(name),
    }
}

/// A comment ends with its line.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}
