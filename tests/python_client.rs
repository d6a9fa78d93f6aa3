//! A Python client that openapi-generator made from the served description
//! works. Needs Java (Debian's default-jre-headless), and Python 3 with pip and
//! venv; the generator itself is installed from PyPI once.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::agent::Agent;
use common::api::http_client;
use common::broker::Broker;
use serde_json::json;

const REQUIREMENTS: &str = include_str!("python/requirements.txt");
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/client.py");

/// Runs a command that must succeed; what it printed.
fn run(command: &mut Command, otherwise: &str) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{otherwise}\n{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{otherwise}\n{command:?}: {}\n{said}\n{failed}", output.status);
    said
}

/// A virtual environment with the requirements, kept between runs until they
/// or Python change.
fn environment() -> PathBuf {
    let missing = "Python 3 is missing: install the Debian packages python3, python3-pip and python3-venv";
    let python = run(Command::new("python3").args(["-c", "import sys; print(sys.version, sys.executable)"]), missing);
    let mut hasher = DefaultHasher::new();
    (REQUIREMENTS, python).hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let environment = folder.join(format!("python-{:016x}", hasher.finish()));
    let complete = environment.join("complete");
    // Another run of the tests may be about to make the same.
    let lock = File::create(folder.join("python.lock")).unwrap();
    lock.lock().unwrap();
    if !complete.exists() {
        let _ = std::fs::remove_dir_all(&environment);
        let missing = "no virtual environment: install the Debian package python3-venv";
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment), missing);
        let requirements = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/requirements.txt");
        run(
            Command::new(environment.join("bin/pip")).args(["install", "--quiet", "--requirement", requirements]),
            "pip cannot install what the client needs; is PyPI within reach?",
        );
        std::fs::write(&complete, "").unwrap();
    }
    environment
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_python_client_does_everything() {
    run(Command::new("java").arg("-version"), "Java is missing: install the Debian package default-jre-headless");
    let broker = Broker::start().await;
    let mut agent = Agent::simulated(&broker, "");
    let credentials = broker.register("python").await;
    let environment = tokio::task::spawn_blocking(environment).await.unwrap();

    // No token is needed for the description.
    let client = http_client(&broker.ca_path()).build().unwrap();
    let served = client.get(format!("{}/dcv-session-manager-api.yaml", broker.url())).send().await.unwrap();
    let description = broker.folder.path().join("api.yaml");
    std::fs::write(&description, served.error_for_status().unwrap().bytes().await.unwrap()).unwrap();
    let generated = broker.folder.path().join("client");
    let mut generate = Command::new(environment.join("bin/openapi-generator-cli"));
    generate.args(["generate", "--generator-name", "python", "--package-name", "berth_client", "--input-spec"]);
    generate.arg(&description).arg("--output").arg(&generated);

    agent.linked().await;
    let settings = json!({
        "url": broker.url(),
        "ca": broker.ca_path(),
        "client_id": credentials.id,
        "client_secret": credentials.secret,
    });
    let mut use_it = Command::new(environment.join("bin/python"));
    use_it.arg(CLIENT).arg(&generated).arg(settings.to_string());
    let said = tokio::task::spawn_blocking(move || {
        run(&mut generate, "openapi-generator does not accept the description");
        run(&mut use_it, "the generated client failed")
    });
    assert_eq!(said.await.unwrap().trim(), "all calls succeeded");
}
