//! Damage to files of a process that does not run.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::ensure;

use crate::random::Random;

/// Flips one bit somewhere in a part of a file; tells in which byte.
pub fn flip_bit(path: &Path, within: std::ops::Range<u64>, random: &mut Random) -> anyhow::Result<u64> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let end = within.end.min(file.metadata()?.len());
    ensure!(within.start < end, "{} has no byte in {within:?}", path.display());
    let place = within.start + random.below(end - within.start);
    let mut byte = [0];
    file.read_exact_at(&mut byte, place)?;
    byte[0] ^= 1 << random.below(8);
    file.write_all_at(&byte, place)?;
    Ok(place)
}

/// All files below a folder whose names match, the largest first.
pub fn files(folder: &Path, is_meant: impl Fn(&Path) -> bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if is_meant(&entry.path()) {
                found.push((entry.metadata()?.len(), entry.path()));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().rev().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn one_bit_is_flipped_where_it_is_meant() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        std::fs::write(&path, [0; 100]).unwrap();
        let at = flip_bit(&path, 90..1000, &mut Random::new(1)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!((90..100).contains(&at));
        assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        assert!(flip_bit(&path, 100..200, &mut Random::new(1)).is_err());
        assert_eq!(files(place.path(), |path| path.ends_with("file")).unwrap(), [path]);
    }
}
