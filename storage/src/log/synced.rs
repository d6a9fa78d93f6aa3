//! The file `synced`: the number of the last group that is known to be durable.
//!
//! sled takes the first damaged byte of its log for the place where a crash cut
//! it off, and forgets what follows without a word. So the number of each group
//! is noted here after its sync: a database that ends before it has lost
//! acknowledged writes, and must not be opened. The notes themselves are not
//! synced: after a power cut the newest that is left may be older than the truth,
//! never newer.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::codec::{self, Kind};
use crate::files::{Files, Handle};

/// The first place is written at the start only, and synced: a power cut may tear
/// all that was not. The others take turns, so that the newest but one survives
/// where a write is torn.
const PLACES: u64 = 3;
const PLACE_BYTES: usize = 4 << 10;

/// Where a group is noted while the store is open.
const fn place_of(group: u64) -> u64 {
    1 + group % (PLACES - 1)
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Synced {
    path: PathBuf,
    file: Handle,
}

impl Synced {
    /// Makes the file, noting group 0.
    pub(crate) fn create(files: &Files, path: &Path) -> Result<(), Error> {
        let beside = path.with_extension("new");
        let file = files.create(&beside)?;
        let note = note(0);
        let mut place = vec![0; PLACE_BYTES];
        place[..note.len()].copy_from_slice(&note);
        let places = place.repeat(usize::try_from(PLACES).expect("a few fit"));
        file.write_all_at(&places, 0).map_err(|error| Error::io("write", &beside, error))?;
        files.replace(&file, &beside, path)
    }

    /// Opens the file. Answers also with the number noted.
    pub(crate) fn open(files: &Files, path: &Path) -> Result<(Self, u64), Error> {
        let file = files.open(path)?;
        let mut newest = None;
        let mut defect = None;
        for place in 0..PLACES {
            let mut bytes = vec![0; PLACE_BYTES];
            file.read_exact_at(&mut bytes, place * PLACE_BYTES as u64)
                .map_err(|error| Error::io("read", path, error))?;
            let group = codec::body_length(&bytes).and_then(|length| {
                let record = bytes.get(..codec::HEADER_BYTES + length).unwrap_or_default();
                codec::decode::<u64>(Kind::Synced, record)
            });
            match group {
                Ok(group) => newest = newest.max(Some(group)),
                Err(found) => defect = Some(found),
            }
        }
        match (newest, defect) {
            (Some(group), _) => {
                let synced = Self { path: path.to_owned(), file };
                synced.secure(group)?;
                Ok((synced, group))
            }
            (None, Some(defect)) => Err(defect.into_error(path, "the note of the last group")),
            (None, None) => Err(Error::damaged(path, "the note of the last group", "none")),
        }
    }

    /// Notes that `group` is durable.
    pub(crate) fn note(&self, group: u64) -> Result<(), Error> {
        self.write(place_of(group), group)
    }

    /// Puts what was found where no later write can tear it.
    fn secure(&self, group: u64) -> Result<(), Error> {
        // What was read may still be in memory only, left by a process that died.
        self.sync()?;
        match self.write(0, group) {
            // The older note there does as well.
            Err(error) if error.is_disk_full() => return Ok(()),
            written => written?,
        }
        self.sync()
    }

    fn write(&self, place: u64, group: u64) -> Result<(), Error> {
        let offset = place * PLACE_BYTES as u64;
        self.file.write_all_at(&note(group), offset).map_err(|error| Error::io("write", &self.path, error))
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(|error| Error::io("sync", &self.path, error))
    }
}

fn note(group: u64) -> Vec<u8> {
    codec::encode(Kind::Synced, &group, 9)
}
