use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::domain::placement::Policy;

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    let error = toml::from_str::<Config>("[clients]\nlisten_on = '127.0.0.1:1'").expect_err("unknown");
    assert!(error.to_string().contains("listen_on"), "{error}");
}

#[test]
fn the_defaults_are_valid_and_a_value_out_of_bounds_is_named() {
    Config::default().check().unwrap();
    let mut config = Config::default();
    config.sessions.lost_server_retention_seconds = 59;
    let error = config.check().unwrap_err().to_string();
    assert_eq!(error, "`sessions.lost_server_retention_seconds` is 59, but must be 60 seconds to a year");
}

#[test]
fn the_settings_of_an_empty_file_are_the_default_ones() {
    let config = Places::new().file("").config();
    assert_eq!(config, Config::default());
    assert_eq!(config.settings(), Settings::default());
}

#[test]
fn each_place_goes_before_the_ones_below_it() {
    let all = Places::new()
        .properties("create-sessions-queue-max-size = 1\nsession-screenshot-max-width = 11\nenable-api-yaml = false\nmax-api-requests-per-second = 111\n")
        .file("sessions.queue_max = 2\n[screenshots]\nwidth_max = 22\n[limits]\nrequests_per_second = 222\n")
        .variable("BERTH_SESSIONS_QUEUE_MAX", "3")
        .variable("BERTH_SCREENSHOTS_WIDTH_MAX", "33")
        .flag("sessions.queue_max", "4");
    let loaded = all.load();
    let config = &loaded.config;
    assert_eq!(config.sessions.queue_max, 4);
    assert_eq!(config.screenshots.width_max, 33);
    assert_eq!(config.limits.requests_per_second, 222);
    assert!(!config.enable_api_yaml);
    assert_eq!(config.screenshots.height_max, 100);

    assert_eq!(loaded.origin("sessions.queue_max"), &Origin::Flag("--set".to_owned()));
    assert_eq!(loaded.origin("screenshots.width_max"), &Origin::Variable("BERTH_SCREENSHOTS_WIDTH_MAX".to_owned()));
    let path = all.sources.file.clone().unwrap();
    assert_eq!(loaded.origin("limits.requests_per_second"), &Origin::File { path, line: 5 });
    let path = all.sources.properties.clone().unwrap();
    let key = "enable-api-yaml".to_owned();
    assert_eq!(loaded.origin("enable_api_yaml"), &Origin::Properties { path, line: 3, key });
    assert_eq!(loaded.origin("screenshots.height_max"), &Origin::Default);
}

#[test]
fn of_two_flags_for_a_key_the_later_one_counts() {
    assert_eq!(Places::new().flag("replica", "2").flag("replica", "3").config().replica, 3);
}

#[test]
fn values_are_read_by_the_kind_of_their_key() {
    let config = Places::new()
        .variable("BERTH_DATA_FOLDER", "/srv/a b")
        .variable("BERTH_NAMES", "a.example, b.example,")
        .variable("BERTH_REPLICA", " 2 ")
        .variable("BERTH_ENABLE_API_YAML", "FALSE")
        .variable("BERTH_SESSIONS_PLACEMENT", "pack")
        .variable("BERTH_TOKENS_ALGORITHM", "EdDSA")
        .variable("BERTH_CLIENTS_LISTEN", "[::1]:9443")
        .variable("BERTH_LIMITS_TRUSTED_PROXIES", "['10.0.0.0/8', '192.0.2.1']")
        .variable("BERTH_CLUSTER_MEMBERS", "1=b1:47100,2=b2:47100")
        .flag("cluster.secret_file", "/safe/secret=1")
        .config();
    assert_eq!(config.data_folder, PathBuf::from("/srv/a b"));
    assert_eq!(config.names, ["a.example", "b.example"]);
    assert_eq!(config.replica, 2);
    assert!(!config.enable_api_yaml);
    assert_eq!(config.sessions.placement, Policy::Pack);
    assert_eq!(config.tokens.algorithm, TokenAlgorithm::EdDsa);
    assert_eq!(config.clients.listen, "[::1]:9443".parse::<SocketAddr>().unwrap());
    assert_eq!(config.limits.trusted_proxies, ["10.0.0.0/8".parse().unwrap(), "192.0.2.1".parse().unwrap()]);
    assert_eq!(config.cluster.members[1], ClusterMember { replica: 2, address: "b2:47100".to_owned() });
    assert_eq!(config.cluster.secret_file, Some(PathBuf::from("/safe/secret=1")));

    let members = "[{ replica = 1, address = 'b1:1' }]";
    assert_eq!(Places::new().flag("cluster.members", members).config().cluster.members.len(), 1);
}

#[test]
fn everything_that_is_wrong_is_told_with_its_place() {
    let mut places = Places::new()
        .file("replica = 'one'\nclient.listen = '0.0.0.0:1'\njournal = 5\n\n[clients]\nlisten = '0.0.0.0'\nkey_file = '/k'\nport = 7\n[sessions]\nqueue_max = -1\ncreate_retries_max = 11\n")
        .variable("BERTH_AGENTS_LISTEN", "here")
        .variable("BERTH_JOURNAL_RECORDS_MAX", "many")
        .variable("BERTH_AGENTS_AUTHORIZATION", "maybe")
        .flag("sessions.queue", "5")
        .flag("names", "");
    let odd = OsString::from_vec(vec![b'/', 0xff]);
    places.sources.flags.push(Flag { name: "--data-folder", key: "data_folder".to_owned(), value: odd });
    let problems = places.problems();
    let expected = [
        ("there is no key `client`; did you mean `clients`?", "(berth.toml:2)"),
        ("there is no key `clients.port`", "(berth.toml:8)"),
        ("`journal`: it is a section", "(berth.toml:3)"),
        ("`replica`: invalid type: string \"one\"", "(berth.toml:1)"),
        ("`clients.listen`: invalid socket address", "(berth.toml:6)"),
        ("`sessions.queue_max`: invalid value: integer `-1`", "(berth.toml:10)"),
        ("`journal.records_max`: `many` is no number", "(environment, BERTH_JOURNAL_RECORDS_MAX)"),
        ("`agents.authorization`: `maybe` is neither true nor false", "(environment, BERTH_AGENTS_AUTHORIZATION)"),
        ("`agents.listen`: invalid socket address", "(environment, BERTH_AGENTS_LISTEN)"),
        ("there is no key `sessions.queue`", "(flag --set)"),
        ("`names`: it has no value", "(flag --set)"),
        ("`data_folder`: it is no text in UTF-8", "(flag --data-folder)"),
        ("`sessions.create_retries_max` is 11, but must be at most 10", "(berth.toml:11)"),
        ("`clients` needs certificate_file and key_file together", ""),
    ];
    for (begin, end) in expected {
        let found = problems.iter().any(|problem| problem.starts_with(begin) && problem.ends_with(end));
        assert!(found, "{begin} … {end} is not among {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn what_is_no_toml_is_told_by_its_line_and_not_quoted() {
    let problems = Places::new().file("replica = 1\nnames = hunter2 hunter3\n").problems();
    assert!(problems.iter().any(|problem| problem.starts_with("berth.toml:2: ")), "{problems:?}");
    assert!(!problems.iter().any(|problem| problem.contains("hunter3")), "{problems:?}");
    let problems = Places::new().file("replica = 1\nreplica = 2\n").problems();
    assert!(problems[0].starts_with("berth.toml:2: "), "{problems:?}");
}

#[test]
fn a_file_that_is_missing_is_told() {
    let places = Places::new();
    let sources = Sources::file(places.folder.path().join("none"));
    let error = sources.load().into_config().unwrap_err().to_string();
    assert!(error.contains("none: No such file"), "{error}");
}

#[test]
fn a_password_is_no_key_of_a_file() {
    for key in ["clients.key_store_password", "gateway.trust_store_password"] {
        let problems = Places::new().file(&format!("{key} = 'hunter2'\n")).problems();
        assert!(problems[0].starts_with(&format!("there is no key `{key}`")), "{problems:?}");
        assert!(!problems[0].contains("hunter2"));
        assert!(!Places::new().flag(key, "hunter2").problems().is_empty());
    }
}

#[test]
fn a_file_with_a_password_goes_before_the_password_itself() {
    let places = Places::new().properties(
        "client-to-broker-connector-key-store-file = /k.jks\nclient-to-broker-connector-key-store-pass = hunter2 \n",
    );
    let config = places.config();
    // Blanks behind a value belong to it.
    assert!(config.clients.key_store_password.unwrap().matches("hunter2 "));
    let places = places.file("clients.key_store_password_file = '/p'\n");
    let config = places.config();
    assert_eq!(config.clients.key_store_password, None);
    assert_eq!(config.clients.key_store_password_file, Some(PathBuf::from("/p")));
}

#[test]
fn certificates_come_from_one_place() {
    let problems = |text: &str| Places::new().file(text).problems();
    let pem = "certificate_file = '/c'\nkey_file = '/k'\n";
    for section in ["clients", "agents", "gateway"] {
        let both = problems(&format!("[{section}]\n{pem}key_store_file = '/s'\n"));
        assert_eq!(
            both,
            [format!("`{section}` has key_store_file beside certificate_file and key_file; keep one or the other")]
        );
        let alone = problems(&format!("[{section}]\nkey_store_password_file = '/p'\n"));
        assert_eq!(alone, [format!("`{section}` has a password for key_store_file, but no key_store_file")]);
        assert!(problems(&format!("[{section}]\n{pem}")).is_empty());
        assert!(problems(&format!("[{section}]\nkey_store_file = '/s'\nkey_store_password_file = '/p'\n")).is_empty());
    }
    let trusts = problems("[gateway]\ntrust_file = '/t'\ntrust_store_file = '/s'\n");
    assert_eq!(trusts, ["`gateway` has trust_file beside trust_store_file; keep one or the other"]);
}

#[test]
fn the_new_keys_have_bounds() {
    for (key, good, bad) in [
        ("tokens.access_seconds", &["60", "86400"], &["59", "86401"]),
        ("tokens.connection_minutes", &["1", "10080"], &["0", "10081"]),
        ("limits.requests_per_second", &["0", "1000000"], &["1000001", "-1"]),
        ("gateway.connections_max", &["1", "1000000"], &["0", "1000001"]),
        ("sessions.autorun_arguments_max", &["0", "1000"], &["1001", "x"]),
        ("sessions.autorun_argument_length_max", &["1", "4096"], &["0", "4097"]),
        ("tokens.algorithm", &["ES256", "RS256"], &["HS256", "none"]),
        ("limits.trusted_proxies", &["10.0.0.0/8", "::1"], &["10.0.0.0/33", "proxy"]),
    ] {
        for value in good {
            assert!(Places::new().flag(key, value).problems().is_empty(), "{key} = {value}");
        }
        for value in bad {
            assert_eq!(Places::new().flag(key, value).problems().len(), 1, "{key} = {value}");
        }
    }
}

#[test]
fn listeners_need_ports_of_their_own() {
    let problems = |text: &str| Places::new().file(text).problems();
    let same = problems("clients.listen = '127.0.0.1:8445'\n");
    assert_eq!(same, ["`agents.listen` and `clients.listen` are the same port: 0.0.0.0:8445"]);
    assert_eq!(problems("clients.listen = '0.0.0.0:7'\nagents.listen = '0.0.0.0:7'\n").len(), 1);
    for good in [
        "clients.listen = '127.0.0.1:0'\nagents.listen = '127.0.0.1:0'\n",
        "clients.listen = '127.0.0.1:7'\nagents.listen = '127.0.0.2:7'\n",
        "clients.listen = '[::1]:8445'\n",
        "clients.listen = '0.0.0.0:8447'\n",
        "clients.listen = '0.0.0.0:47100'\n",
    ] {
        assert!(problems(good).is_empty(), "{good}");
    }
    assert_eq!(problems("clients.listen = '0.0.0.0:8447'\ngateway.enabled = true\n").len(), 1);
    assert_eq!(problems("clients.listen = '0.0.0.0:47100'\ncluster.address = 'b1:47100'\n").len(), 1);
}

#[test]
fn what_is_not_safe_is_warned_of() {
    let warnings = |text: &str| Places::new().file(text).load().notices.len();
    assert_eq!(warnings(""), 0);
    assert_eq!(warnings("authorization.enabled = false\n"), 1);
    assert_eq!(warnings("agents.authorization = false\n"), 1);
    assert_eq!(warnings("limits.forwarded_for = true\n"), 1);
    assert_eq!(warnings("limits.forwarded_for = true\nlimits.trusted_proxies = ['10.0.0.1']\n"), 0);
    assert_eq!(warnings("gateway.require_client_certificate = false\n"), 0);
    assert_eq!(warnings("gateway.require_client_certificate = false\ngateway.enabled = true\n"), 1);
}
