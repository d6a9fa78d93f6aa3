#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::broker::config::{Loaded, Sources};
use crate::protocol::ImageFormat;

/// Names of the keys that the original's guide and its installed file know.
const NAMES: &str = include_str!("tests/keys.txt");
/// A file as an operator has it: the installed one with a few changes.
const USUAL: &str = include_str!("tests/usual.properties");
/// A file for a cluster behind balancers, with everything that is kept elsewhere.
const CLUSTER: &str = include_str!("tests/cluster.properties");

/// What a file with this text and mode gives.
fn with_mode(bytes: &[u8], mode: u32) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session-manager-broker.properties");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    Sources { properties: Some(path), ..Sources::default() }.load()
}

fn load(text: &str) -> Loaded {
    with_mode(text.as_bytes(), 0o640)
}

fn config(text: &str) -> Config {
    load(text).into_config().unwrap()
}

/// The only thing that is wrong.
fn problem(text: &str) -> String {
    let problems = load(text).problems;
    assert_eq!(problems.len(), 1, "{text}: {problems:?}");
    problems[0].to_string()
}

fn warnings(loaded: &Loaded) -> Vec<&str> {
    loaded.notices.iter().filter(|notice| matches!(notice, Notice::Warning(_))).map(Notice::text).collect()
}

/// A value that the original takes for a key.
fn usual_value(original: &OriginalKey) -> &'static str {
    match original.fate {
        Fate::Ignored => "something",
        Fate::Becomes { by, .. } => match by {
            Conversion::Number | Conversion::Hours if original.name.contains("retries") => "7",
            Conversion::Number | Conversion::Hours => "77",
            Conversion::Truth if original.name.contains("forwarded") || original.name == "enable-gateway" => "true",
            Conversion::Truth => "false",
            Conversion::Word => "jpeg",
            Conversion::Path => "/somewhere",
            Conversion::Port => "7777",
            Conversion::Host => "127.0.0.7",
            Conversion::Password => "hunter2",
        },
    }
}

#[test]
fn the_table_holds_the_keys_of_the_original_and_no_others() {
    let names: Vec<&str> = NAMES.lines().filter(|line| !line.is_empty()).collect();
    let table: BTreeSet<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(table.len(), KEYS.len(), "one is there twice");
    assert_eq!(table, names.iter().copied().collect());
    for key in KEYS {
        match key.fate {
            Fate::Becomes { key: ours, .. } => assert!(keys::find(ours).is_some(), "{ours}"),
            Fate::Ignored => assert!(!key.note.is_empty(), "{} does not say why", key.name),
        }
    }
}

#[test]
fn every_key_of_the_original_has_an_effect_or_says_why_it_has_none() {
    for name in NAMES.lines().filter(|line| !line.is_empty()) {
        let original = KEYS.iter().find(|key| key.name == name).unwrap();
        // A password needs its store.
        let store = name.strip_suffix("-pass").map(|store| format!("{store}-file = /store\n"));
        let store = store.filter(|_| original.fate != Fate::Ignored).unwrap_or_default();
        let without = config(&store);
        let loaded = load(&format!("{store}{name} = {}\n", usual_value(original)));
        let ignored = loaded.notices.iter().filter(|notice| matches!(notice, Notice::Ignored(_))).count();
        match original.fate {
            Fate::Becomes { .. } => assert_eq!(ignored, 0, "{name}"),
            Fate::Ignored => {
                assert_eq!(ignored, 1, "{name}");
                assert!(loaded.notices[0].text().contains(original.note), "{name}");
            }
        }
        let has_effect = loaded.into_config().unwrap() != without;
        assert_eq!(has_effect, original.fate != Fate::Ignored, "{name}");
    }
}

#[test]
fn the_usual_file_is_read_as_it_is() {
    let loaded = load(USUAL);
    assert!(warnings(&loaded).is_empty(), "{:?}", warnings(&loaded));
    let ignored: Vec<&str> = loaded.notices.iter().map(Notice::text).collect();
    assert_eq!(ignored.len(), 13, "{ignored:#?}");
    let config = loaded.into_config().unwrap();
    let mut expected = Config { data_folder: PathBuf::from("/var/lib/dcvsmbroker"), ..Config::default() };
    expected.tokens.connection_minutes = 1440;
    expected.sessions.deleted_retention_seconds = 0;
    expected.sessions.lost_server_retention_seconds = 60;
    expected.gateway.enabled = true;
    expected.gateway.listen.set_port(8446);
    expected.gateway.require_client_certificate = true;
    assert_eq!(config, expected);
}

#[test]
fn the_file_of_a_cluster_is_read_as_it_is() {
    let loaded = load(CLUSTER);
    let warned = warnings(&loaded).join("\n");
    for text in
        ["discovery-addresses has no effect", "delete-session-duration-hours has no effect", "line 12 has it again"]
    {
        assert!(warned.contains(text), "{text} is not in {warned}");
    }
    assert!(warned.contains("limits.trusted_proxies empty"), "{warned}");
    let config = loaded.into_config().unwrap();
    assert_eq!(config.clients.listen, "10.0.0.5:443".parse().unwrap());
    assert_eq!(config.clients.key_store_file, Some(PathBuf::from("/etc/pki/broker.jks")));
    assert!(config.clients.key_store_password.unwrap().matches("p=ss:w#rd é"));
    assert_eq!(config.agents.listen, "[::]:8445".parse().unwrap());
    assert!(!config.agents.authorization);
    assert_eq!(config.gateway.listen, "127.0.0.1:8447".parse().unwrap());
    assert!(config.gateway.trust_store_password.unwrap().matches("dcvsm1"));
    assert!(!config.gateway.require_client_certificate);
    assert_eq!(config.cluster.listen.port(), 47_101);
    assert_eq!(config.sessions.deleted_retention_seconds, 900);
    assert_eq!(config.sessions.queue_max, 20);
    assert_eq!(config.sessions.lost_session_retention_seconds, 7200);
    assert_eq!(config.screenshots.format, ImageFormat::Jpeg);
    assert_eq!(config.limits.requests_per_second, 250);
    assert!(!config.authorization.server);
}

#[test]
fn hours_become_seconds_and_seconds_go_before_them() {
    let seconds = |text: &str| config(text).sessions.deleted_retention_seconds;
    assert_eq!(seconds("delete-session-duration-hours = 2"), 7200);
    assert_eq!(seconds("delete-session-duration-hours = 2\ndelete-session-duration-seconds = 5"), 5);
    assert_eq!(seconds("delete-session-duration-seconds = 5\ndelete-session-duration-hours = 2"), 5);
    assert_eq!(seconds("delete-session-duration-hours = 2\ndelete-session-duration-seconds ="), 7200);
    let huge = problem("delete-session-duration-hours = 9223372036854775807");
    assert!(huge.contains("must be at most a year"), "{huge}");
}

#[test]
fn port_and_address_of_a_listener_are_one_key() {
    let listen = |text: &str| config(text).clients.listen.to_string();
    assert_eq!(listen("client-to-broker-connector-https-port = 1"), "0.0.0.0:1");
    assert_eq!(listen("client-to-broker-connector-bind-host = localhost"), "127.0.0.1:8443");
    assert_eq!(
        listen("client-to-broker-connector-bind-host: [::1]\nclient-to-broker-connector-https-port: 2"),
        "[::1]:2"
    );
    for port in ["0", "65536", "-1", "8443x"] {
        let told = problem(&format!("client-to-broker-connector-https-port = {port}"));
        assert!(
            told.contains("is no port from 1 to 65535") && told.contains("properties:1, client-to-broker"),
            "{told}"
        );
    }
    let told = problem("client-to-broker-connector-bind-host = broker.example");
    assert!(told.contains("must be an address of this host"), "{told}");
}

#[test]
fn what_cannot_be_honoured_is_refused_with_what_to_do() {
    let told = problem("\nseconds-before-deleting-unreachable-dcv-server = 59");
    assert!(told.contains("is 59, but must be 60 seconds to a year"), "{told}");
    assert!(told.ends_with("properties:2, seconds-before-deleting-unreachable-dcv-server)"), "{told}");
    assert!(problem("session-screenshot-format = gif").contains("gif"));
    assert!(problem("enable-gateway = yes").contains("neither true nor false"));
    assert!(problem("create-sessions-queue-max-size = 1e3").contains("no number"));
    let told = problem("client-to-broker-connector-key-store-file = test_security/KeyStore.jks");
    assert!(told.contains("must be a whole path"), "{told}");
    assert!(problem("agent-to-broker-connector-key-store-pass = x").contains("no key_store_file"));
    assert!(problem("session-manager-working-path = /a\nb\\u12 = c").contains("four hexadecimal digits"));
}

#[test]
fn a_key_that_the_original_has_not_is_refused_with_the_one_that_may_be_meant() {
    let told = problem("enable-gatewy = true");
    assert!(told.contains("no key `enable-gatewy`; did you mean `enable-gateway`?"), "{told}");
    let told = problem("colour = hunter2");
    assert!(told.contains("no key `colour`; delete the line"), "{told}");
    assert!(!told.contains("hunter2"));
}

#[test]
fn a_key_without_a_value_counts_as_absent() {
    let loaded = load(
        "broker-java-home =\nsession-manager-working-path=\nclient-to-broker-connector-https-port\njdbc-user = \n",
    );
    assert!(loaded.notices.is_empty());
    assert_eq!(loaded.into_config().unwrap(), Config::default());
}

#[test]
fn of_a_key_that_is_there_twice_the_last_counts_with_a_warning() {
    let loaded = load("enable-gateway = true\n# x\nenable-gateway = false\n");
    let warned = warnings(&loaded);
    assert_eq!(warned.len(), 1);
    assert!(warned[0].ends_with(":1: enable-gateway has no effect: line 3 has it again"), "{warned:?}");
    assert!(!loaded.into_config().unwrap().gateway.enabled);
}

#[test]
fn one_that_everybody_may_read_or_change_is_refused() {
    for mode in [0o644, 0o642, 0o601] {
        let problems = with_mode(b"enable-gateway = true\n", mode).problems;
        let told = problems[0].to_string();
        assert!(told.contains(&format!("mode {mode:04o}")) && told.contains("chmod o-rwx"), "{told}");
    }
    for mode in [0o640, 0o600, 0o660, 0o400] {
        assert!(with_mode(b"enable-gateway = true\n", mode).config.gateway.enabled, "{mode:o}");
    }
}

#[test]
fn what_is_no_ordinary_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert!(layer(folder.path()).problems[0].to_string().contains("no regular file"));
    assert!(layer(&folder.path().join("none")).problems[0].to_string().contains("No such file"));
    let long = vec![b'#'; usize::try_from(FILE_BYTES_MAX).unwrap() + 1];
    assert!(with_mode(&long, 0o600).problems[0].to_string().contains("longer than"));
}

#[test]
fn the_file_may_be_in_latin_1() {
    let loaded = with_mode(
        b"client-to-broker-connector-key-store-file = /k\nclient-to-broker-connector-key-store-pass = gr\xfcn",
        0o600,
    );
    assert!(loaded.config.clients.key_store_password.unwrap().matches("grün"));
}

#[test]
fn no_value_of_a_password_shows_in_what_is_told() {
    let lines: Vec<String> = NAMES
        .lines()
        .filter(|name| name.ends_with("-pass") || name.contains("password") || name.ends_with("-login"))
        .map(|name| format!("{name} = hunter2\n"))
        .collect();
    let loaded = load(&lines.concat());
    assert!(loaded.notices.len() + loaded.problems.len() >= 8);
    let problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    assert!(!format!("{loaded:?}{problems:?}").contains("hunter2"));
}

proptest! {
    #[test]
    fn whatever_is_taken_gives_a_configuration_that_can_be_kept(
        lines in prop::collection::vec((0..KEYS.len(), "-?[0-9]{1,6}|true|FALSE|/[a-z\\\\/ ]{0,9}|(?s).{0,12}"), 0..12),
        before in "[# \\\\\n=]{0,4}"
    ) {
        let lines: Vec<String> =
            lines.into_iter().map(|(key, value)| format!("{before}{} = {value}\n", KEYS[key].name)).collect();
        let loaded = Loaded::of_properties(lines.concat().as_bytes());
        for told in loaded.problems.iter().map(ToString::to_string) {
            prop_assert!(!told.is_empty() && told.len() < 1000);
        }
        if loaded.problems.is_empty() {
            let mut kept: Config = toml::from_str(&loaded.as_toml()).unwrap();
            // Passwords are not shown.
            kept.clients.key_store_password.clone_from(&loaded.config.clients.key_store_password);
            kept.agents.key_store_password.clone_from(&loaded.config.agents.key_store_password);
            kept.gateway.key_store_password.clone_from(&loaded.config.gateway.key_store_password);
            kept.gateway.trust_store_password.clone_from(&loaded.config.gateway.trust_store_password);
            prop_assert_eq!(kept, loaded.config);
        }
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        Loaded::of_properties(&bytes).as_json();
    }
}
