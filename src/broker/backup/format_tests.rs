#![allow(clippy::unwrap_used)]
use super::*;
use crate::broker::backup::make;
use crate::broker::cluster::authority::Authorities;
use crate::domain::{Command, fleet::Stamp};
use crate::secret::Secret;

fn header() -> Header {
    // The same secret is the same cluster.
    let secret = Secret::new("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned());
    Header {
        cluster: Authorities::new(&secret).unwrap().cluster().clone(),
        replica: ReplicaId(2),
        index: LogIndex(1_000),
        at: Timestamp(1_700_000_000_000),
        is_stale: false,
        log_format: 2,
        image_version: crate::domain::fleet::IMAGE_VERSION,
        last_replica: ReplicaId(3),
        content_bytes: 0,
    }
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::default();
    let stamp = Stamp { index: LogIndex(7), at: Timestamp(9) };
    fleet.apply(stamp, Command::RotateAuthority { to: 1 });
    fleet
}

/// A file as it is made for operators.
fn made(fleet: &Fleet) -> Vec<u8> {
    let mut bytes = Vec::new();
    make::write(fleet, header(), &mut bytes).unwrap();
    bytes
}

fn checked(bytes: &[u8]) -> Result<Fleet, BackupError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    std::fs::write(&path, bytes).unwrap();
    check(&path)?.fleet()
}

#[test]
fn a_backup_comes_back() {
    let fleet = fleet();
    assert_eq!(checked(&made(&fleet)).unwrap(), fleet);
}

/// Files of this version are read for ever.
#[test]
fn the_bytes_before_the_content_are_what_they_always_were() {
    let mut expected = b"BERTHBAK\x01\x00\x40\x00\x00\x00".to_vec();
    expected.push(36);
    expected.extend_from_slice(header().cluster.as_str().as_bytes());
    expected.push(2);
    expected.extend_from_slice(&[251, 0xe8, 0x03]);
    expected.extend_from_slice(&[253, 0x00, 0x68, 0xe5, 0xcf, 0x8b, 0x01, 0x00, 0x00]);
    expected.extend_from_slice(&[0, 2, 1, 3, 0]);
    expected[10] = u8::try_from(expected.len() - 14).unwrap();
    assert_eq!(header().encode(), expected);
    assert_eq!(header().encode().len(), 14 + 55);
}

#[test]
fn each_byte_that_is_changed_is_found() {
    let good = made(&fleet());
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        let error = checked(&bad).expect_err("changed");
        assert!(!matches!(error, BackupError::Io { .. } | BackupError::Content { .. }), "{place}: {error}");
    }
}

#[test]
fn each_end_that_is_missing_is_found_and_so_is_one_that_is_too_long() {
    let good = made(&fleet());
    for length in 0..good.len() {
        let error = checked(&good[..length]).expect_err("cut off");
        let expected = match length {
            0..8 => matches!(error, BackupError::Foreign { .. }),
            8..69 => matches!(error, BackupError::Damaged { .. }),
            _ => matches!(error, BackupError::Length { .. }),
        };
        assert!(expected, "{length}: {error}");
    }
    assert!(matches!(checked(&[&good[..], b"x"].concat()), Err(BackupError::Length { .. })));
}

#[test]
fn other_files_and_newer_ones_are_told_apart() {
    assert!(matches!(checked(b"PK\x03\x04 something else"), Err(BackupError::Foreign { .. })));
    let mut newer = made(&fleet());
    newer[8] = 2;
    let error = checked(&newer).expect_err("newer").to_string();
    assert!(error.contains("use a newer build"), "{error}");
    let error = check(Path::new("/nonexistent/backup")).expect_err("missing");
    assert!(matches!(error, BackupError::Io { .. }), "{error}");
    assert!(matches!(check(Path::new("/")), Err(BackupError::Foreign { .. } | BackupError::Io { .. })));
}
