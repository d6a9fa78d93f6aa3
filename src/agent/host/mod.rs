//! Facts of the host, read from its files.
//!
//! Everything is read below a root folder, `/` in earnest and a fixture in
//! tests. What cannot be read is left out: a strange host still has an agent.

mod addresses;
mod aws;
mod cpu;
mod gpu;
mod load;
mod os;
mod users;

use std::path::{Path, PathBuf};

use crate::domain::host::{Aws, Cpu, Gpu, HostLoad, Os};

use crate::files;

pub(crate) use addresses::Names;

/// Largest file of the system that is read in bytes; `/proc/cpuinfo` of a
/// host with 1,000 processors has about 1.5 MB, `pci.ids` about the same.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Reads facts below a root folder.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    root: PathBuf,
}

/// What seldom changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// Names of the host.
    pub(crate) names: Names,
    /// Operating system.
    pub(crate) os: Os,
    /// Processors.
    pub(crate) cpu: Cpu,
    /// Graphics processors.
    pub(crate) gpus: Vec<Gpu>,
    /// Cloud instance.
    pub(crate) aws: Option<Aws>,
}

impl Host {
    /// The host whose files are below `root`.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Reads what seldom changes. Blocks for some milliseconds.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            names: addresses::read(self),
            os: os::read(self),
            cpu: cpu::read(self),
            gpus: gpu::read(self),
            aws: aws::read(self),
        }
    }

    /// Reads what changes all the time. Blocks for less than a millisecond.
    pub(crate) fn load(&self, with_users: bool) -> HostLoad {
        let (memory, swap) = load::memory(self);
        HostLoad {
            memory,
            swap,
            load_average: load::average(self),
            logged_in_users: if with_users { users::read(self) } else { Vec::new() },
        }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A file's text; empty when it cannot be read.
    fn text(&self, relative: &str) -> String {
        files::read_text(&self.path(relative), FILE_BYTES_MAX).unwrap_or_default()
    }

    /// A file's text without white space around it, when there is any.
    fn line(&self, relative: &str) -> Option<String> {
        let text = self.text(relative);
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

#[cfg(test)]
pub(super) mod fixture {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A host made of the given files.
    pub(in crate::agent) fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let host = Host::at(folder.path());
        (folder, host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_any_file_has_empty_facts() {
        let (_folder, host) = fixture::host(&[]);
        let facts = host.facts();
        assert!(facts.gpus.is_empty());
        assert_eq!(facts.aws, None);
        assert_eq!(host.load(true), HostLoad::default());
    }

    #[test]
    fn this_machine_tells_its_facts() {
        let host = Host::at(Path::new("/"));
        let facts = host.facts();
        assert!(!facts.names.hostname.is_empty());
        assert!(!facts.os.name.is_empty());
        assert!(facts.os.kernel_version.is_some());
        assert!(facts.cpu.logical_count >= 1);
        let load = host.load(true);
        assert!(load.memory.total_bytes >= load.memory.used_bytes);
        assert!(load.memory.total_bytes > 0);
    }
}
