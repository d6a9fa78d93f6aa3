//! Backups of running replicas, and new clusters of them.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth::broker::cluster::authority::Authorities;
use berth::broker::cluster::dial;
use berth::broker::cluster::frame::{Service, Speaker};
use berth::broker::cluster::runs::Run;
use berth::domain::ReplicaId;
use berth::domain::ids::FolderId;
use berth::secret::Secret;
use common::agent::Agent;
use common::api::Api;
use common::process::{Process, berth};
use common::replicas::{Replica, Replicas, voters};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The value behind a key in what a command printed; the last one when there
/// are several.
fn value(printed: &str, key: &str) -> String {
    let line = printed.lines().rev().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {key} in {printed}")).to_owned()
}

/// A command that needs neither a broker nor a configuration.
async fn command(arguments: &[&str]) -> Result<String, String> {
    let mut command = berth();
    command.args(arguments);
    let mut process = Process::start(command);
    if process.ended().await.success() { Ok(process.stdout()) } else { Err(process.stderr()) }
}

async fn verify(file: &Path) -> Result<String, String> {
    command(&["backup", "verify", text(file)]).await
}

/// A replica with an address for others, in an empty folder.
fn fresh() -> Replica {
    let replica = Replica::new(1, "");
    replica.configure(&format!("cluster.address = '{}'\n", replica.peers));
    replica
}

/// Creates sessions until told to stop; those that were acknowledged.
async fn load(api: Api, server: String, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut sessions = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        sessions.push(api.create_on(&server, &format!("u{}", sessions.len())).await);
    }
    sessions
}

/// The `Berth-Index` of an answer, and the events that are kept.
async fn events(api: &Api) -> (u64, Vec<Value>) {
    let answer = api.request(Method::GET, "/v1/events?limit=1000").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let index = answer.headers()["berth-index"].to_str().unwrap().parse().unwrap();
    let answer: Value = answer.json().await.unwrap();
    let events = answer["Events"].as_array().unwrap();
    (index, events.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_made_under_load_by_any_replica_becomes_a_cluster_that_others_join() {
    let mut old = Replicas::started(3).await;
    let leader = old.leader().await;
    let credentials = old.all[0].register("portal").await;
    let api = old.all[0].api(&credentials).await;
    let mut agent = Agent::simulated_at(&old.all[1], "max_virtual_sessions = 10000\n");
    let server = agent.linked().await;
    api.server_available(&server).await;
    let before = api.create_on(&server, "ann").await;
    api.session_in_state(&before, "READY").await;

    let place = tempfile::tempdir().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(load(api.clone(), server.clone(), Arc::clone(&stop)));
    let mut files: Vec<PathBuf> = Vec::new();
    for (number, replica) in [leader, (leader + 1) % 3].into_iter().enumerate() {
        // What is acknowledged before the command is in it.
        let acknowledged = api.create_on(&server, &format!("before-{number}")).await;
        let file = place.path().join(format!("backup-{number}"));
        let printed = old.all[replica].operator(&["backup", "--output", text(&file)]).await.unwrap();
        assert_eq!(value(&printed, "replica"), old.all[replica].number.to_string());
        assert_eq!(value(&printed, "bytes"), std::fs::metadata(&file).unwrap().len().to_string());
        let shown = verify(&file).await.unwrap();
        assert_eq!(value(&shown, "checksum"), value(&printed, "checksum"));
        assert_eq!((value(&shown, "servers"), value(&shown, "clients")), ("1".to_owned(), "1".to_owned()));
        let bytes = std::fs::read(&file).unwrap();
        let holds = |what: &str| bytes.windows(what.len()).any(|window| window == what.as_bytes());
        assert!(holds(&acknowledged));
        for replica in &old.all {
            let statement = std::fs::read_to_string(replica.statement_path()).unwrap();
            assert!(!holds(statement.trim()), "what agents enrol with is not kept");
        }
        assert!(!holds(&credentials.secret) && !holds(old.secret().expose()) && !holds("PRIVATE KEY"));
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        files.push(file);
    }
    stop.store(true, Ordering::Relaxed);
    let written = writing.await.unwrap();
    assert!(!written.is_empty());
    let (old_index, old_events) = events(&api).await;
    let old_cluster = old.all[0].view().await["cluster"].clone();
    let file = &files[1];
    let kept = std::fs::read(file).unwrap();
    let again = old.all[0].operator(&["backup", "--output", text(file)]).await.unwrap_err();
    assert!(again.contains("--force"), "{again}");
    assert_eq!(std::fs::read(file).unwrap(), kept);
    for replica in &mut old.all {
        replica.stop(Signal::KILL).await;
    }

    let mut new = fresh();
    // The agent's way leads here from now on.
    new.agents = old.all[1].agents;
    new.configure(&format!("cluster.address = '{}'\n", new.peers));
    let secret = place.path().join("old-secret");
    old.secret().write(&secret).unwrap();
    let restored = new.prepare(&["restore", text(file), "--old-secret-file", text(&secret)]).await.unwrap();
    assert_ne!(value(&restored, "cluster"), old_cluster.as_str().unwrap());
    new.start();
    new.serves().await;
    assert_eq!(new.view().await["cluster"], value(&restored, "cluster"));
    // A token of the old cluster, under the authority of the old cluster.
    let moved = Api { url: new.url(), ..api.clone() };
    assert_eq!(moved.session(&before).await.unwrap()["Owner"], "ann");
    // Indexes go on far above all that the old cluster gave out, also after the backup.
    let (index, told) = events(&moved).await;
    assert!(index > old_index, "{index} > {old_index}");
    let shared = old_events.iter().filter(|event| told.contains(event)).count();
    assert!(shared > 0 && told[..shared] == old_events[..shared], "the journal is there up to one moment");

    // The agent comes, with the old secret; what it made after the backup is adopted.
    moved.server_available(&server).await;
    moved.session_in_state(&before, "READY").await;
    for id in &written {
        moved.session_in_state(id, "READY").await;
    }
    let after = moved.create_on(&server, "after").await;
    moved.session_in_state(&after, "READY").await;

    let joined = join(&new).await;
    assert!(joined.number > 3, "numbers are never given again: {}", joined.number);
    new.view_when("both vote", |view| voters(view).len() == 2).await;
    let there = Api { url: joined.url(), ..api };
    for id in [&before, &after] {
        assert!(there.session(id).await.is_some(), "through the one that joined");
    }
}

async fn join(member: &Replica) -> Replica {
    let token = member.operator(&["cluster", "add"]).await.unwrap();
    let mut replica = fresh();
    let path = replica.folder.path().join("token");
    std::fs::write(&path, token).unwrap();
    let printed = replica.prepare(&["cluster", "join", "--token-file", text(&path)]).await.unwrap();
    replica.number = value(&printed, "replica").parse().unwrap();
    replica.start();
    replica.serves().await;
    replica
}

/// A cluster of one with a client, and a backup of it.
async fn backed_up(place: &Path) -> (Replica, Api, PathBuf) {
    let mut replica = fresh();
    replica.prepare(&["cluster", "init"]).await.unwrap();
    replica.start();
    replica.serves().await;
    let credentials = replica.register("portal").await;
    let api = replica.api(&credentials).await;
    let file = place.join("backup");
    replica.operator(&["backup", "--output", text(&file)]).await.unwrap();
    (replica, api, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_old_secret_new_keys_are_made_and_the_clusters_do_not_know_each_other() {
    let place = tempfile::tempdir().unwrap();
    let (old, api, file) = backed_up(place.path()).await;
    let token = old.operator(&["cluster", "add"]).await.unwrap();
    let mut new = fresh();
    let restored = new.prepare(&["restore", text(&file)]).await.unwrap();
    assert!(restored.contains("a new software statement"), "{restored}");
    new.start();
    new.serves().await;
    let file_of = |replica: &Replica, name: &str| std::fs::read(replica.data_folder().join(name)).unwrap();
    for name in ["cluster.key", "tls/ca.pem"] {
        assert_ne!(file_of(&old, name), file_of(&new, name), "{name}");
    }
    let client = common::api::http_client(&new.ca_path()).build().unwrap();
    let ended = Api { client, url: new.url(), token: api.token.clone() };
    let (status, _) = ended.send(Method::POST, "/describeServers", &json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "tokens of the old cluster are not good");
    assert!(new.operator(&["clients", "list"]).await.unwrap().contains("portal"), "clients stay");

    // A token of the old cluster is of no use to the new one, which stays what it is.
    let path = place.path().join("token");
    std::fs::write(&path, token).unwrap();
    let refused = new.prepare(&["cluster", "join", "--token-file", text(&path)]).await.unwrap_err();
    assert!(refused.contains("belongs to replica 1"), "{refused}");
    // Neither talks to the other, whoever begins.
    for (from, to) in [(&new, &old), (&old, &new)] {
        let secret = Secret::read(&from.data_folder().join("cluster.key")).unwrap();
        let authorities = Authorities::new(&secret).unwrap();
        let folder = FolderId::new("f").unwrap();
        let tls = authorities.tls(0, ReplicaId(1), &folder).unwrap();
        for cluster in [authorities.cluster(), Authorities::new(&other_secret(to)).unwrap().cluster()] {
            let speaker = Speaker::Replica { id: ReplicaId(1), folder: folder.clone(), run: Run::random() };
            let address = to.peers.to_string();
            let within = Duration::from_secs(10);
            let asked =
                dial::ask_once(cluster, &tls, &address, speaker, Service::Cluster, bytes::Bytes::new(), within).await;
            assert!(asked.is_err(), "{cluster}");
        }
    }
}

fn other_secret(replica: &Replica) -> Secret {
    Secret::read(&replica.data_folder().join("cluster.key")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_backup_or_no_empty_folder_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let (old, _, file) = backed_up(place.path()).await;
    let good = std::fs::read(&file).unwrap();
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    let cases: [(&str, &[u8], &str); 4] = [
        ("damaged", &damaged, "does not match its checksum"),
        ("cut off", &good[..good.len() - 5], "where a whole one has"),
        ("foreign", b"#!/bin/sh\necho no backup at all\n", "is no backup"),
        ("empty", b"", "is no backup"),
    ];
    let new = fresh();
    for (what, bytes, says) in cases {
        let bad = place.path().join("bad");
        std::fs::write(&bad, bytes).unwrap();
        for refused in [verify(&bad).await.unwrap_err(), new.prepare(&["restore", text(&bad)]).await.unwrap_err()] {
            assert!(refused.contains(says), "{what}: {refused}");
        }
    }
    // The old cluster's own secret, or another one's where the old one is asked for.
    let (same, other) = (old.data_folder().join("cluster.key"), place.path().join("other"));
    Secret::random().write(&other).unwrap();
    let refused = new.prepare(&["restore", text(&file), "--old-secret-file", text(&other)]).await.unwrap_err();
    assert!(refused.contains("but the backup is of cluster"), "{refused}");
    new.configure(&format!("cluster.address = '{}'\ncluster.secret_file = '{}'\n", new.peers, same.display()));
    let refused = new.prepare(&["restore", text(&file)]).await.unwrap_err();
    assert!(refused.contains("--old-secret-file"), "{refused}");
    new.configure(&format!("cluster.address = '{}'\n", new.peers));
    // Somebody else is about to use the folder.
    std::fs::create_dir_all(new.data_folder()).unwrap();
    let lock = std::fs::File::create(new.data_folder().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let refused = new.prepare(&["restore", text(&file)]).await.unwrap_err();
    assert!(refused.contains("is locked by another process"), "{refused}");
    drop(lock);
    // Nothing of all that took the folder.
    new.prepare(&["restore", text(&file)]).await.unwrap();
    for replica in [&new, &old] {
        let refused = replica.prepare(&["restore", text(&file)]).await.unwrap_err();
        assert!(refused.contains("is not empty"), "{refused}");
    }
    let nobody = new.operator(&["backup", "--output", text(&place.path().join("x"))]).await.unwrap_err();
    assert!(nobody.contains("cannot reach a broker"), "{nobody}");
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| Path::new(name).extension().is_none_or(|extension| extension != "new")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_a_backup_is_refused_or_says_that_it_is_stale() {
    let mut replicas = Replicas::started(3).await;
    replicas.all[0].register("portal").await;
    for place in [1, 2] {
        replicas.all[place].stop(Signal::KILL).await;
    }
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("backup");
    let refused = replicas.all[0].operator(&["backup", "--output", text(&file)]).await.unwrap_err();
    assert!(refused.contains("--stale"), "{refused}");
    assert!(!file.exists());
    let printed = replicas.all[0].operator(&["backup", "--stale", "--output", text(&file)]).await.unwrap();
    assert!(printed.contains("may be missing"), "{printed}");
    assert!(verify(&file).await.unwrap().contains("may be missing"));
    // Replaced when that is asked for.
    let forced = ["backup", "--stale", "--force", "--output", text(&file)];
    replicas.all[0].operator(&forced).await.unwrap();
}
