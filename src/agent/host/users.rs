//! Users that are logged in outside the broker's sessions.
//!
//! systemd's login manager is asked through its files when it runs: it knows
//! graphical logins as well, and newer distributions write no utmp any more.
//! Otherwise utmp is read.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;

use super::Host;

/// Most users that are reported.
const USERS_MAX: usize = 256;
/// Most bytes of utmp that are read.
const UTMP_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// glibc's `struct utmp`: 64-bit ports that never had 32-bit programs made its
/// time fields wider.
const UTMP_RECORD_BYTES: usize = if cfg!(target_arch = "aarch64") { 400 } else { 384 };
/// `ut_type` of a login.
const USER_PROCESS: i16 = 7;
/// Where `ut_user` lies: behind type, pid, line and id.
const UTMP_USER: std::ops::Range<usize> = 44..76;

pub(super) fn read(host: &Host) -> Vec<String> {
    let users = from_login_manager(host).unwrap_or_else(|| from_utmp(host));
    users.into_iter().take(USERS_MAX).collect()
}

fn from_login_manager(host: &Host) -> Option<BTreeSet<String>> {
    let sessions = fs::read_dir(host.path("run/systemd/sessions")).ok()?;
    let mut users = BTreeSet::new();
    for entry in sessions.filter_map(Result::ok) {
        let Ok(text) = super::files::read_text(&entry.path(), 64 * 1024) else { continue };
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        // Greeters, lock screens and the user manager itself are no logins.
        let is_login = matches!(value("CLASS"), Some("user" | "user-early" | "user-light"));
        let is_there = value("STATE").is_none_or(|state| state != "closing");
        if let (true, true, Some(user)) = (is_login, is_there, value("USER")) {
            users.insert(user.to_owned());
        }
    }
    Some(users)
}

fn from_utmp(host: &Host) -> BTreeSet<String> {
    let mut content = Vec::new();
    let read = ["run/utmp", "var/run/utmp"]
        .iter()
        .find_map(|path| File::open(host.path(path)).ok())
        .and_then(|file| file.take(UTMP_BYTES_MAX).read_to_end(&mut content).ok());
    if read.is_none() {
        return BTreeSet::new();
    }
    content
        .chunks_exact(UTMP_RECORD_BYTES)
        .filter(|record| i16::from_ne_bytes([record[0], record[1]]) == USER_PROCESS)
        .filter_map(|record| {
            let name = record[UTMP_USER].split(|byte| *byte == 0).next()?;
            (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fixture;
    use super::*;

    #[test]
    fn the_login_manager_tells_people_but_not_greeters() {
        let (_folder, host) = fixture::host(&[
            ("run/systemd/sessions/1", "USER=ann\nCLASS=user\nSTATE=active\n"),
            ("run/systemd/sessions/2", "USER=gdm\nCLASS=greeter\nSTATE=active\n"),
            ("run/systemd/sessions/3", "USER=bob\nCLASS=user\nSTATE=closing\n"),
            ("run/systemd/sessions/4", "USER=ann\nCLASS=user\nSTATE=online\n"),
        ]);
        assert_eq!(read(&host), ["ann"]);
    }

    #[test]
    fn utmp_is_read_where_there_is_no_login_manager() {
        let record = |kind: i16, user: &str| {
            let mut record = vec![0; UTMP_RECORD_BYTES];
            record[..2].copy_from_slice(&kind.to_ne_bytes());
            record[UTMP_USER.start..UTMP_USER.start + user.len()].copy_from_slice(user.as_bytes());
            record
        };
        let (folder, host) = fixture::host(&[]);
        let content = [record(2, "reboot"), record(USER_PROCESS, "carl"), record(8, "dead")].concat();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        std::fs::write(folder.path().join("run/utmp"), &content[..content.len() - 1]).unwrap();
        assert_eq!(read(&host), ["carl"]);
    }
}
