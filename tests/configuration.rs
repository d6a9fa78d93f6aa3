//! The configuration as an operator meets it: `berth config check`, and a
//! broker that is started with the original's file.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::process::{Process, berth};
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::Value;

/// Files of an operator.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

/// What `berth config check` came to.
struct Checked {
    is_good: bool,
    stdout: String,
    stderr: String,
}

async fn check(arguments: &[&str], variables: &[(&str, &str)]) -> Checked {
    let mut command = berth();
    command.args(["config", "check"]).args(arguments).envs(variables.iter().copied());
    let mut process = Process::start(command);
    let is_good = process.ended().await.success();
    Checked { is_good, stdout: process.stdout(), stderr: process.stderr() }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_effect_is_shown_with_its_origin_and_without_secrets() {
    let desk = Desk::new();
    let store = desk.path("one.jks");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls/one.jks"), &store).unwrap();
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o600)).unwrap();
    let properties = desk.write(
        "broker.properties",
        0o640,
        &format!(
            "session-manager-working-path = /srv/berth\ncreate-sessions-queue-max-size = 5\n\
             client-to-broker-connector-key-store-file = {}\n\
             client-to-broker-connector-key-store-pass = changeit\njdbc-password = hunter3\n",
            store.display()
        ),
    );
    let config = desk.write("berth.toml", 0o644, "[sessions]\nqueue_max = 6\n");
    let checked = check(
        &["--properties", text(&properties), "--set", "names=a,b", "--data-folder", "/srv/other"],
        &[("BERTH_CONFIG", text(&config)), ("BERTH_TOKENS_ALGORITHM", "EdDSA"), ("BERTH_CLIENT_LISTEN", "x")],
    )
    .await;
    assert!(checked.is_good, "{}", checked.stderr);
    let shown = &checked.stdout;
    for line in [
        "data_folder = \"/srv/other\" # flag --data-folder".to_owned(),
        "names = [\"a\", \"b\"] # flag --set".to_owned(),
        format!("queue_max = 6 # {}:2", config.display()),
        "algorithm = \"EdDSA\" # environment, BERTH_TOKENS_ALGORITHM".to_owned(),
        "listen = \"0.0.0.0:8443\" # default".to_owned(),
        format!(
            "# key_store_password = \"[secret]\" # {}:4, client-to-broker-connector-key-store-pass",
            properties.display()
        ),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in {shown}");
    }
    assert!(shown.contains(":5: jdbc-password has no effect: everything is kept in the replicated log"), "{shown}");
    assert!(shown.contains("# warning: the variable BERTH_CLIENT_LISTEN has no effect"), "{shown}");
    for secret in ["hunter", "changeit"] {
        assert!(!format!("{shown}{}", checked.stderr).contains(secret), "{shown}");
    }
    // It can be kept as a file, with the password in one of its own.
    let password = desk.write("password", 0o600, "changeit");
    let named = format!("key_store_password_file = \"{}\"\n# key_store_password =", password.display());
    let kept = desk.write("kept.toml", 0o644, &shown.replace("# key_store_password =", &named));
    let again = check(&["--config", text(&kept), "--json"], &[]).await;
    assert!(again.is_good, "{}", again.stderr);
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["configuration"]["tokens"]["algorithm"], "EdDSA");
    assert_eq!(again["configuration"]["clients"]["key_store_file"], text(&store));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_is_told_at_once() {
    let desk = Desk::new();
    let properties = desk.write("broker.properties", 0o640, "enable-gatewy = true\nenable-gateway = perhaps\n");
    let config =
        desk.write("berth.toml", 0o644, "sessions.create_retries_max = 11\nclients.certificate_file = '/none'\n");
    let secret = desk.write("secret", 0o644, "hunter2");
    let arguments = ["--properties", text(&properties), "--config", text(&config), "--set", "replicas=1", "--set"];
    let secret_flag = format!("cluster.secret_file={}", secret.display());
    let arguments = [&arguments[..], &[secret_flag.as_str()]].concat();
    let checked = check(&arguments, &[("BERTH_REPLICA", "none")]).await;
    assert!(!checked.is_good);
    let told = &checked.stderr;
    for part in [
        "no key `enable-gatewy`; did you mean `enable-gateway`?",
        "`enable-gateway`: `perhaps` is neither true nor false",
        "`sessions.create_retries_max` is 11, but must be at most 10",
        "`clients` needs certificate_file and key_file together",
        "`clients.certificate_file` names /none, which cannot be read",
        "no key `replicas`; did you mean `replica`?",
        "`replica`: `none` is no number",
        "run: chmod 600",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    assert!(!told.contains("hunter2"));
    let as_json = check(&[&arguments[..], &["--json"]].concat(), &[("BERTH_REPLICA", "none")]).await;
    assert!(!as_json.is_good);
    let as_json: Value = serde_json::from_str(&as_json.stdout).unwrap();
    assert!(as_json["configuration"].is_null());
    assert_eq!(as_json["errors"].as_array().unwrap().len(), 8, "{as_json:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_serves_with_the_file_of_the_original() {
    let desk = Desk::new();
    let folder = desk.path("data");
    let lines = [
        format!("session-manager-working-path = {}", folder.display()),
        format!("client-to-broker-connector-https-port = {}", common::free_port()),
        "client-to-broker-connector-bind-host = localhost".to_owned(),
        format!("agent-to-broker-connector-https-port = {}", common::free_port()),
        "agent-to-broker-connector-bind-host = 127.0.0.1".to_owned(),
        "autorun-file-arguments-max-size = 1".to_owned(),
        "enable-persistence = true".to_owned(),
        "enable-api-yaml = false".to_owned(),
    ];
    let properties = desk.write("broker.properties", 0o600, &lines.join("\n"));
    let mut command = berth();
    command.args(["--log-json", "serve"]).env("BERTH_PROPERTIES", &properties);
    let mut process = Process::start(command);
    let record = process.log_record("broker serves").await;
    let ignored = process.stderr();
    assert!(ignored.contains("enable-persistence has no effect"), "{ignored}");
    let url = format!("https://{}", record["fields"]["clients"].as_str().unwrap());

    // The operator's commands find it by the same file.
    let mut command = berth();
    command.args(["clients", "register", "--client-name", "tests"]).env("BERTH_PROPERTIES", &properties);
    let mut register = Process::start(command);
    assert!(register.ended().await.success(), "{}", register.stderr());
    let printed = register.stdout();
    let value = |key: &str| printed.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
    let credentials = common::api::Credentials { id: value("client-id: "), secret: value("client-password: ") };
    let api = common::api::Api::connect(&url, &folder.join("tls/ca.pem"), &credentials).await;

    let description = api.client.get(format!("{url}/dcv-session-manager-api.yaml")).send().await.unwrap();
    assert_eq!(description.status(), StatusCode::NOT_FOUND);
    let session = |arguments: &[&str]| {
        serde_json::json!([{
            "Name": "n", "Owner": "o", "Type": "VIRTUAL", "AutorunFile": "a.sh", "AutorunFileArguments": arguments
        }])
    };
    let reason = async |arguments: &[&str]| {
        let answer = api.call("createSessions", session(arguments)).await;
        answer["UnsuccessfulList"][0]["FailureReason"].as_str().unwrap().to_owned()
    };
    let told = reason(&["1", "2"]).await;
    assert_eq!(told, "AutorunFileArguments must have at most 1 entries, there are 2");
    assert!(reason(&["1"]).await.starts_with("no dcv server found"), "as many as allowed");
    process.stop(Signal::TERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_does_not_start_with_secrets_that_everybody_reads_and_names_every_mistake() {
    let desk = Desk::new();
    let properties = desk.write("broker.properties", 0o644, "enable-gateway = true\n");
    let mut command = berth();
    command.args(["serve", "--set", "replica=0", "--data-folder"]).arg(desk.path("data"));
    command.arg("--properties").arg(&properties);
    let mut process = Process::start(command);
    assert!(!process.ended().await.success());
    let told = process.stderr();
    assert!(told.contains("mode 0644") && told.contains("chmod o-rwx"), "{told}");
    assert!(told.contains("`replica` is 0, but must be at least 1 (flag --set)"), "{told}");
    assert!(!desk.path("data").exists(), "nothing was made");
}
