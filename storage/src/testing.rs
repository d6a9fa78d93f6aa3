//! Where the stores of tests are: in a folder of their own, or on a simulated
//! disk. One suite for both.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use tempfile::TempDir;

use crate::files::Files;
use crate::memory::Disk;
use crate::{Error, Options, Store};

/// See the module.
pub(crate) enum Ground {
    Folder(TempDir),
    Memory(Disk),
}

impl Ground {
    pub(crate) fn folder() -> Self {
        Self::Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn memory() -> Self {
        Self::Memory(Disk::new())
    }

    /// Another one of the kind, empty.
    pub(crate) fn afresh(&self) -> Self {
        match self {
            Self::Folder(_) => Self::folder(),
            Self::Memory(_) => Self::memory(),
        }
    }

    /// The files of a process that begins now; an earlier one has ended.
    pub(crate) fn restart(&self) -> Files {
        match self {
            Self::Folder(_) => Files::System,
            Self::Memory(disk) => {
                disk.kill();
                let files = Files::Memory(disk.mount().unwrap());
                files.create_folder(self.path()).unwrap();
                files
            }
        }
    }

    /// What is in a file.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        match self {
            Self::Folder(folder) => std::fs::read(folder.path().join(name)).unwrap(),
            Self::Memory(_) => self.restart().read(&self.path().join(name)).unwrap(),
        }
    }

    /// Puts a file there, in the place of another one.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        match self {
            Self::Folder(_) => std::fs::write(path, bytes).unwrap(),
            Self::Memory(_) => self.restart().create(&path).unwrap().write_all_at(bytes, 0).unwrap(),
        }
    }

    /// Changes a file where it is, under those who have it open.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path().join(name);
        match self {
            Self::Folder(_) => {
                let mut bytes = std::fs::read(&path).unwrap();
                change(&mut bytes);
                std::fs::write(path, bytes).unwrap();
            }
            Self::Memory(disk) => disk.change_file(&path, change),
        }
    }

    /// Removes a file behind the back of those who use it.
    pub(crate) fn remove(&self, name: &str) {
        let path = self.path().join(name);
        match self {
            Self::Folder(_) => std::fs::remove_file(path).unwrap(),
            Self::Memory(disk) => disk.remove_file(&path),
        }
    }

    /// The names in a folder of it.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let folder = self.path().join(folder);
        let paths = match self {
            Self::Folder(_) => Files::System.list(&folder).unwrap(),
            Self::Memory(disk) => disk.paths_in(&folder),
        };
        paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder.path(),
            Self::Memory(_) => Path::new("/simulated/data"),
        }
    }

    pub(crate) fn open(&self, options: Options) -> Result<Store, Error> {
        match self {
            Self::Folder(folder) => Store::open(folder.path(), options),
            Self::Memory(disk) => Store::in_memory(disk, self.path(), options),
        }
    }
}

/// Makes of each function two tests, one on each ground.
macro_rules! on_both {
    ($($(#[$attribute:meta])* fn $name:ident($ground:ident) $body:block)*) => {
        $($(#[$attribute])* fn $name($ground: $crate::testing::Ground) $body)*

        mod in_a_folder {
            $(#[test] fn $name() { super::$name($crate::testing::Ground::folder()); })*
        }

        mod in_memory {
            $(#[test] fn $name() { super::$name($crate::testing::Ground::memory()); })*
        }
    };
}
pub(crate) use on_both;
