//! Damage to what a replica keeps, while it is off: it must notice, say which
//! folder is meant, and not serve. What lies where nothing is read any more may be
//! damaged without harm; then another place is taken.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::fault::Kind;
use super::run::Hiccup;
use super::world::{Replica, WHOLE_LIMIT, World};
use crate::client;
use crate::faultfs::damage;
use crate::random::Random;

/// Places that are damaged until one is found that matters.
const ATTEMPTS_MAX: usize = 8;
/// Bytes of a vote's record that follow the end of its key.
const VOTE_BYTES: u64 = 24;
/// How a vote's key ends, however much of its beginning is left out.
const VOTE_KEY_END: &[u8] = b"vote";
/// Bytes that are looked at until one is found that is in use.
const LOOKS_MAX: usize = 10_000;

/// Damages the data of a replica that does not run, and starts it, until it
/// refuses. Tells what was damaged, and whether it was refused.
pub(super) async fn until_refused(
    world: &mut World,
    place: usize,
    kind: Kind,
    random: &mut Random,
) -> anyhow::Result<(String, u64)> {
    let replica = &mut world.replicas[place];
    let mut told = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        let damaged = harm(replica.broker.data_folder(), kind, random).context(Hiccup)?;
        let Some(damaged) = damaged else {
            told.push("there is nothing to damage yet".to_owned());
            break;
        };
        replica.may_end = true;
        replica.start()?;
        if is_refused(replica, &damaged).await? {
            told.push(format!("{damaged}: refused"));
            return Ok((told.join(", "), 1));
        }
        told.push(format!("{damaged}: without harm"));
        replica.kill()?;
    }
    Ok((told.join(", "), 0))
}

/// Does damage; tells where. None when there is no such thing.
fn harm(data: &Path, kind: Kind, random: &mut Random) -> anyhow::Result<Option<String>> {
    let folder = data.join("replica");
    let of_log =
        |path: &Path| path.starts_with(folder.join("log")) && path.file_name().is_some_and(|name| name == "db");
    let of_snapshot = |path: &Path| path.extension().is_some_and(|name| name == "snapshot");
    let any = |path: &Path| path.starts_with(&folder) && !path.ends_with("LOCK");
    let files = match kind {
        Kind::FlippedSnapshot => damage::files(&folder, of_snapshot)?,
        Kind::MissingFile => damage::files(&folder, any)?,
        _ => damage::files(&folder, of_log)?,
    };
    if files.is_empty() {
        return Ok(None);
    }
    let file = &files[usize::try_from(random.below(files.len() as u64))?];
    let shown = file.strip_prefix(data).unwrap_or(file).display().to_string();
    if kind == Kind::MissingFile {
        std::fs::remove_file(file)?;
        return Ok(Some(shown));
    }
    let bytes = std::fs::read(file)?;
    let range = match kind {
        Kind::FlippedVote => {
            let ends: Vec<usize> = places_of(VOTE_KEY_END, &bytes);
            if ends.is_empty() {
                return Ok(None);
            }
            let end = ends[usize::try_from(random.below(ends.len() as u64))?] as u64;
            end - VOTE_KEY_END.len() as u64..(end + VOTE_BYTES).min(bytes.len() as u64)
        }
        _ => match byte_in_use(&bytes, random) {
            Some(place) => place..place + 1,
            None => return Ok(None),
        },
    };
    let byte = damage::flip_bit(file, range, random)?;
    Ok(Some(format!("{shown} at {byte}")))
}

/// Where in `bytes` a text ends.
fn places_of(text: &[u8], bytes: &[u8]) -> Vec<usize> {
    let found = bytes.windows(text.len()).enumerate().filter(|(_, window)| *window == text);
    found.map(|(place, _)| place + text.len()).collect()
}

/// Files grow in large steps, with zeros where nothing was written yet.
fn byte_in_use(bytes: &[u8], random: &mut Random) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    let places = (0..LOOKS_MAX).map(|_| random.below(bytes.len() as u64));
    places.into_iter().find(|&place| usize::try_from(place).is_ok_and(|place| bytes[place] != 0))
}

/// Waits until a replica that was started refuses its data, or serves.
async fn is_refused(replica: &mut Replica, damaged: &str) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let data: PathBuf = replica.broker.data_folder().to_owned();
    loop {
        if !replica.is_running()? {
            let words = replica.broker.last_words()?;
            ensure!(words.contains(&data.display().to_string()), "{damaged} is damaged, and it says only: {words}");
            return Ok(true);
        }
        if client::unready(&replica.broker).await.is_none() {
            let view = replica.view()?;
            ensure!(view.different.is_empty(), "{damaged} is damaged, and it serves another state: {view:?}");
            return Ok(false);
        }
        ensure!(begun.elapsed() < WHOLE_LIMIT, "{damaged} is damaged, and it neither serves nor ends");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_matter_are_found() {
        assert_eq!(places_of(b"vote", b"mvote...vote"), [5, 12]);
        assert_eq!(places_of(b"vote", b"vot"), [0; 0]);
        let mut bytes = vec![0; 100];
        let mut random = Random::new(1);
        assert_eq!(byte_in_use(&bytes, &mut random), None);
        bytes[70] = 1;
        assert_eq!(byte_in_use(&bytes, &mut random), Some(70));
        assert_eq!(byte_in_use(&[], &mut random), None);
    }
}
