#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use super::*;

const MINIMAL: &str = "version = '0.1'\n[agent]\nbroker_host = 'broker'\nca_file = 'ca.pem'\n";

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(text, Path::new("/etc/berth/agent.conf"))
}

#[test]
fn a_file_of_the_original_is_understood() {
    let config = parse(
        "version = '0.1'
        [agent]
        broker_host = 'broker.internal.example'
        broker_port = 8445
        tls_strict = false
        tags_folder = '/etc/dcv-session-manager-agent/tags/'
        broker_update_interval = 15
        max_virtual_sessions = -1
        software_statement_path = '/etc/statement'
        dcv_root = '/opt/dcv'
        [log]
        level = 'debug'
        rotation = 'daily'",
    )
    .unwrap();
    assert_eq!(config.broker_update_interval, Duration::from_secs(15));
    assert_eq!(config.max_virtual_sessions, None);
    assert_eq!(config.max_concurrent_sessions_per_user, Some(1));
    assert_eq!(config.desktops, DesktopKind::Xvnc);
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.software_statement_path.as_deref(), Some(Path::new("/etc/statement")));
    assert_eq!(config.warnings.len(), 1, "dcv_root is of no use here");
}

#[test]
fn relative_paths_start_at_the_folder_of_the_file() {
    assert_eq!(parse(MINIMAL).unwrap().ca_file.unwrap(), Path::new("/etc/berth/ca.pem"));
}

#[test]
fn a_key_that_does_not_exist_is_named() {
    for text in [
        format!("{MINIMAL}broker_hots = 'x'"),
        format!("{MINIMAL}[log]\nbroker_hots = 'x'"),
        format!("broker_hots = 'x'\n{MINIMAL}"),
        format!("{MINIMAL}[simulated]\nbroker_hots = 1"),
    ] {
        assert!(parse(&text).unwrap_err().to_string().contains("broker_hots"), "{text}");
    }
}

#[test]
fn a_missing_version_is_named() {
    let error = parse("[agent]\nbroker_host = 'broker'").unwrap_err().to_string();
    assert!(error.contains("missing field `version`"), "{error}");
    let error = parse("version = '0.2'").unwrap_err().to_string();
    assert!(error.contains("version must be '0.1'"), "{error}");
}

#[test]
fn values_out_of_range_are_refused_with_their_key() {
    for (line, key) in [
        ("broker_host = ''", "broker_host"),
        ("max_virtual_sessions = -2", "max_virtual_sessions"),
        ("broker_update_interval = 0", "broker_update_interval"),
        ("broker_update_interval = 601", "broker_update_interval"),
        ("broker_port = 0", "broker_port"),
        ("[xvnc]\ngeometry = '20x20'", "geometry"),
        ("[xvnc]\nwindow_manager = 'openbox'", "window_manager"),
        ("[simulated]\nfailures_per_thousand = 1001", "failures_per_thousand"),
    ] {
        let text = if line.starts_with("broker_host") {
            format!("version = '0.1'\n[agent]\n{line}")
        } else {
            format!("{MINIMAL}{line}")
        };
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(key), "{line}: {error}");
    }
    let error = parse("version = '0.1'\n[agent]\nbroker_host = 'b'").unwrap_err().to_string();
    assert!(error.contains("ca_file"), "{error}");
}

#[test]
fn a_statement_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statement");
    let read = || read_statement(&path);
    assert!(matches!(read(), Err(Error::StatementRead { .. })));
    std::fs::write(&path, "0123456789abcdef\n").unwrap();
    for (mode, refused) in [(0o644, true), (0o660, true), (0o604, true), (0o640, false), (0o600, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(matches!(read(), Err(Error::StatementExposed { .. })), refused, "{mode:o}");
    }
    assert_eq!(read().unwrap().as_str(), "0123456789abcdef");
    std::fs::write(&path, "software-statement: 0123456789abcdef\n").unwrap();
    assert_eq!(read().unwrap().as_str(), "0123456789abcdef", "as it was printed");
    for content in ["short", "0123456789abcdef\nsecond line"] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(read(), Err(Error::StatementContent { .. })), "{content}");
    }
}

/// The parser's complaint about an unknown key lists all that exist.
fn keys_of(section: &str) -> BTreeSet<String> {
    let complaint =
        toml::from_str::<File>(&format!("version = '0.1'\n[{section}]\nno_such_key = 1")).err().unwrap().to_string();
    let (_, expected) = complaint.split_once("expected").unwrap();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_documentation_lists_every_key_and_no_other() {
    let page = include_str!("../../docs/agent.md");
    for section in ["agent", "log", "xvnc", "simulated"] {
        let heading = format!("### `[{section}]`");
        let (_, after) = page.split_once(&heading).unwrap_or_else(|| panic!("no heading {heading}"));
        let documented: BTreeSet<String> = after
            .lines()
            .skip(1)
            .take_while(|line| !line.starts_with('#'))
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split('`').next())
            .map(str::to_owned)
            .collect();
        assert_eq!(documented, keys_of(section), "[{section}]");
    }
}
