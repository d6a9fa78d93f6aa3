#![allow(clippy::unwrap_used)]

mod files;
mod shown;
mod sources;

use super::*;

/// The places that a configuration comes from, and a folder for its files.
struct Places {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Places {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), sources: Sources::default() }
    }

    fn file(mut self, text: &str) -> Self {
        let path = self.folder.path().join("berth.toml");
        std::fs::write(&path, text).unwrap();
        self.sources.file = Some(path);
        self
    }

    fn properties(mut self, text: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join("session-manager-broker.properties");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        self.sources.properties = Some(path);
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.sources.flags.push(Flag { name: "--set", key: key.to_owned(), value: value.into() });
        self
    }

    fn load(&self) -> Loaded {
        self.sources.load()
    }

    fn config(&self) -> Config {
        self.load().into_config().unwrap()
    }

    /// What is wrong, without the folder's name.
    fn problems(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        self.load().problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }
}
