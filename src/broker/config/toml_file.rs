//! `berth.toml`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::error::ConfigError;
use super::keys::{self, KEYS};
use super::sources::{Layer, Origin};

/// Longest configuration file, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads a file.
pub(super) fn layer(path: &Path) -> Layer {
    let mut layer = Layer::default();
    match File::open(path).and_then(read) {
        Ok(text) => layer.read_toml(path, &text),
        Err(source) => layer.problems.push(ConfigError::Read { path: path.to_owned(), source }.into()),
    }
    layer
}

fn read(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let reason = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(text)
}

impl Layer {
    fn read_toml(&mut self, path: &Path, text: &str) {
        let (parsed, errors) = DeTable::parse_recoverable(text);
        let line_at = |place: usize| text.bytes().take(place).filter(|byte| *byte == b'\n').count() + 1;
        let mut lines = BTreeMap::new();
        lines_of("", parsed.get_ref(), &line_at, &mut lines);
        let values = if errors.is_empty() { text.parse::<Table>().map_err(|error| vec![error]) } else { Err(errors) };
        match values {
            Ok(values) => {
                let origin =
                    |key: &str| Origin::File { path: path.to_owned(), line: lines.get(key).map_or(1, |line| *line) };
                self.take_table("", values, &origin);
            }
            Err(errors) => {
                for error in errors {
                    let line = error.span().map_or(1, |span| line_at(span.start));
                    let reason = error.message().to_owned();
                    self.problems.push(ConfigError::Syntax { path: path.to_owned(), line, reason }.into());
                }
            }
        }
    }

    fn take_table(&mut self, section: &str, values: Table, origin: &dyn Fn(&str) -> Origin) {
        for (name, value) in values {
            let name = joined(section, &name);
            let written = origin(&name);
            match (keys::find(&name), value) {
                (Some(key), value) => self.values.push((key, value, written)),
                (None, Value::Table(values)) if keys::is_section(&name) => self.take_table(&name, values, origin),
                (None, _) if keys::is_section(&name) => {
                    let reason = format!("it is a section: write [{name}] and its keys below");
                    self.refuse(ConfigError::Value { key: name, reason }, written);
                }
                // All at once: nobody needs a line for each key of a section that does not exist.
                (None, _) => {
                    let names = KEYS.iter().map(|key| key.name).chain(keys::sections());
                    let closest = keys::closest(&name, names);
                    self.refuse(ConfigError::Unknown { key: keys::shortened(&name), closest }, written);
                }
            }
        }
    }
}

fn joined(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// The lines of keys, and of sections.
fn lines_of(section: &str, table: &DeTable<'_>, line_at: &dyn Fn(usize) -> usize, lines: &mut BTreeMap<String, usize>) {
    for (name, value) in table {
        let key = joined(section, name.get_ref());
        lines.insert(key.clone(), line_at(name.span().start));
        if let (true, DeValue::Table(values)) = (section.is_empty(), value.get_ref()) {
            lines_of(&key, values, line_at, lines);
        }
    }
}
