use super::*;

#[test]
fn what_is_shown_gives_the_same_configuration_again() {
    let places = Places::new()
        .properties("session-manager-working-path = /srv/berth\nbroker-to-broker-port = 5000\n")
        .file("names = ['a\\n\"b']\n[cluster]\nmembers = [{ replica = 1, address = 'b1:1' }]\n[limits]\ntrusted_proxies = ['10.0.0.0/8']\n[tokens]\nalgorithm = 'RS256'\n")
        .variable("BERTH_SCREENSHOTS_FORMAT", "jpeg");
    let loaded = places.load();
    let shown = loaded.as_toml();
    let again = Places::new().file(&shown);
    assert_eq!(again.config(), loaded.config, "{shown}");
    let line = |begin: &str| shown.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{shown}"));
    assert!(line("data_folder").ends_with("session-manager-broker.properties:1, session-manager-working-path"));
    assert!(line("algorithm = \"RS256\" # ").ends_with("berth.toml:7"), "{shown}");
    assert_eq!(line("format = "), "format = \"jpeg\" # environment, BERTH_SCREENSHOTS_FORMAT");
    assert_eq!(line("replica = "), "replica = 1 # default");
}

#[test]
fn a_password_does_not_show() {
    let places = Places::new().properties(
        "gateway-to-broker-connector-trust-store-file = /t.jks\ngateway-to-broker-connector-trust-store-pass = hunter2\nbroker-to-broker-connection-pass = hunter3\n",
    );
    let loaded = places.load();
    let (toml, json) = (loaded.as_toml(), loaded.as_json());
    assert!(toml.contains("\n# trust_store_password = \"[secret]\" # "), "{toml}");
    assert_eq!(json["configuration"]["gateway"]["trust_store_password"], "[secret]");
    for shown in [toml, json.to_string(), format!("{loaded:?}")] {
        assert!(!shown.contains("hunter"), "{shown}");
    }
}

#[test]
fn as_json_it_says_what_is_wrong_or_what_is_in_effect() {
    let good = Places::new().flag("replica", "2").load().as_json();
    assert_eq!(good["configuration"]["replica"], 2);
    assert_eq!(good["configuration"]["clients"]["listen"], "0.0.0.0:8443");
    assert_eq!(good["sources"]["replica"], "flag --set");
    assert_eq!(good["errors"].as_array().unwrap().len(), 0);
    let bad = Places::new().flag("replica", "0").load().as_json();
    assert!(bad["configuration"].is_null());
    assert_eq!(bad["errors"][0], "`replica` is 0, but must be at least 1 (flag --set)");
}
