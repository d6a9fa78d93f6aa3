//! Tags: what the operator says of a host in `*.toml` files, and what the
//! agent says by itself.
//!
//! The files are read in alphabetical order, a later one overrides an earlier
//! one. They are read again for each report, so that a change needs no restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::domain::host::{Limits, OsFamily};
use crate::domain::placement::WEIGHT_TAG;

use crate::files;

/// Largest file of tags in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Most files that are read.
const FILES_MAX: usize = 256;
/// Most tags of the operator; more would make every report heavy.
const TAGS_MAX: usize = 256;
/// Longest key or value in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Tags with this prefix are the agent's own.
const BUILT_IN_PREFIX: &str = "dcv:";

/// The operator's tags, and what is wrong with the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Operator {
    /// Tags by key.
    pub(crate) tags: BTreeMap<String, String>,
    /// Sentences for the log. A problem never hides the other tags.
    pub(crate) warnings: BTreeSet<String>,
}

/// Reads the operator's tags. A folder that does not exist has none.
pub(crate) fn read(folder: &Path) -> Operator {
    let mut found = Operator::default();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return found,
        Err(error) => {
            found.warn(format!("cannot read the tags folder {}: {error}", folder.display()));
            return found;
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    paths.sort();
    if paths.len() > FILES_MAX {
        found.warn(format!("only the first {FILES_MAX} files of {} are read", folder.display()));
        paths.truncate(FILES_MAX);
    }
    for path in paths {
        found.read_file(&path);
    }
    found
}

impl Operator {
    fn warn(&mut self, sentence: String) {
        self.warnings.insert(sentence);
    }

    fn read_file(&mut self, path: &Path) {
        let shown = path.display();
        let table = match files::read_text(path, FILE_BYTES_MAX).map(|text| text.parse::<toml::Table>()) {
            Ok(Ok(table)) => table,
            Ok(Err(error)) => {
                return self.warn(format!("{shown} is ignored, it is not valid TOML: {}", error.message()));
            }
            Err(error) => return self.warn(format!("{shown} cannot be read: {error}")),
        };
        for (key, value) in table {
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Float(number) => number.to_string(),
                toml::Value::Boolean(truth) => truth.to_string(),
                toml::Value::Datetime(moment) => moment.to_string(),
                toml::Value::Array(_) | toml::Value::Table(_) => {
                    self.warn(format!("{shown}: tag {key} is ignored, its value must be a text"));
                    continue;
                }
            };
            self.add(path, key, text);
        }
    }

    fn add(&mut self, path: &Path, key: String, text: String) {
        let shown = path.display();
        if key.starts_with(BUILT_IN_PREFIX) {
            self.warn(format!("{shown}: tag {key} is ignored, the prefix {BUILT_IN_PREFIX} is the agent's own"));
        } else if key.len() > TEXT_BYTES_MAX || text.len() > TEXT_BYTES_MAX {
            self.warn(format!("{shown}: a tag is ignored, key and value have at most {TEXT_BYTES_MAX} bytes"));
        } else if self.tags.len() >= TAGS_MAX && !self.tags.contains_key(&key) {
            self.warn(format!("{shown}: tag {key} is ignored, there are {TAGS_MAX} already"));
        } else {
            if !is_identifier(&key) && key != WEIGHT_TAG {
                self.warn(format!(
                    "{shown}: tag {key} is reported, but requirements cannot name it: keys are letters, \
                     digits and _, not starting with a digit"
                ));
            }
            self.tags.insert(key, text);
        }
    }
}

/// Whether requirements expressions can name the key.
fn is_identifier(key: &str) -> bool {
    let mut bytes = key.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The operator's tags together with the agent's own.
pub(crate) fn with_built_in(
    mut tags: BTreeMap<String, String>,
    family: OsFamily,
    limits: Limits,
) -> BTreeMap<String, String> {
    let number = |limit: Option<u32>| limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string());
    tags.insert("dcv:os-family".to_owned(), family.as_str().to_owned());
    tags.insert("dcv:max-virtual-sessions".to_owned(), number(limits.virtual_sessions_max));
    tags.insert("dcv:max-concurrent-sessions-per-user".to_owned(), number(limits.sessions_per_owner_max));
    tags
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_later_file_overrides_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("20.toml"), "pool = 'late'\nweight = 3").unwrap();
        fs::write(folder.path().join("10.toml"), "pool = 'early'\nspot = true\nratio = 0.5").unwrap();
        fs::write(folder.path().join("30.txt"), "pool = 'never'").unwrap();
        let found = read(folder.path());
        let expected = [("pool", "late"), ("ratio", "0.5"), ("spot", "true"), ("weight", "3")];
        assert_eq!(found.tags, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert!(found.warnings.is_empty(), "{:?}", found.warnings);
    }

    #[test]
    fn a_broken_file_is_named_and_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.toml"), "pool = ").unwrap();
        fs::write(folder.path().join("b.toml"), "pool = 'b'\nlist = [1]\n9lives = 'odd'").unwrap();
        let found = read(folder.path());
        assert_eq!(found.tags.keys().collect::<Vec<_>>(), ["9lives", "pool"]);
        let warnings: Vec<_> = found.warnings.iter().collect();
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].contains("a.toml"), "{warnings:?}");
        assert!(read(&folder.path().join("missing")).tags.is_empty());
    }

    #[test]
    fn the_operator_cannot_override_the_built_in_tags() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.toml"), "'dcv:os-family' = 'windows'").unwrap();
        let found = read(folder.path());
        assert_eq!(found.warnings.len(), 1);
        let limits = Limits { virtual_sessions_max: Some(10), sessions_per_owner_max: None, console_sessions: false };
        let tags = with_built_in(found.tags, OsFamily::Linux, limits);
        assert_eq!(tags["dcv:os-family"], "linux");
        assert_eq!(tags["dcv:max-virtual-sessions"], "10");
        assert_eq!(tags["dcv:max-concurrent-sessions-per-user"], "-1");
    }
}
