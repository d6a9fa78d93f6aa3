//! What operators do, and that the audit tells of it, with the one who did it:
//! also what is done outside of the log, and what is carried out elsewhere.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use berth::broker::deeds::actions;
use common::broker::Broker;
use common::replicas::{Replica, Replicas};
use common::until;
use rustix::process::Signal;
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Where operators of these tests are.
fn here() -> String {
    format!("local uid {}", rustix::process::getuid().as_raw())
}

/// Records as they were exported. Each action is a known one.
fn records(export: &str) -> Vec<Value> {
    let records: Vec<Value> = export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let known = actions();
    for record in &records {
        assert!(known.contains(record["action"].as_str().unwrap()), "{record} is told by no page");
    }
    records
}

/// The records of an action: from where, with what and with which result.
fn told(records: &[Value], action: &str) -> Vec<(String, String, String)> {
    let field = |record: &Value, name: &str| record[name].as_str().unwrap().to_owned();
    let of_action = records.iter().filter(|record| record["action"] == action && record["actor"] == "operator");
    of_action.map(|record| (field(record, "from"), field(record, "target"), field(record, "result"))).collect()
}

/// Waits until an action is recorded so often; its records.
async fn recorded(replica: &Replica, action: &str, times: usize) -> Vec<(String, String, String)> {
    until(&format!("{action} in the audit"), || async move {
        let found = told(&records(&replica.operator(&["audit", "export"]).await.unwrap()), action);
        (found.len() >= times).then_some(found)
    })
    .await
}

async fn verifies(replica: &Replica) {
    let verified = replica.operator(&["audit", "verify"]).await.unwrap();
    assert!(verified.contains("are as they were written"), "{verified}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_backups_and_settings_are_recorded_with_who_did_it() {
    let mut broker = Broker::start_to_be_restarted().await;
    let place = tempfile::tempdir().unwrap();
    let (gateway, backup) = (place.path().join("gateway"), place.path().join("backup"));
    let certificate = ["tls", "gateway-certificate", "--name", "gate-1", "--out-folder", text(&gateway)];
    broker.operate(&certificate).await.unwrap();
    broker.operate(&["backup", "--output", text(&backup)]).await.unwrap();
    broker.register("portal").await;

    // The certificate is in the audit before anybody has it.
    let found = records(&broker.operate(&["audit", "export"]).await.unwrap());
    let [(from, target, result)] = &told(&found, "gateway-certificate")[..] else { panic!("{found:#?}") };
    assert_eq!((from, result.as_str()), (&here(), "done"));
    assert!(target.starts_with("gate-1 until 2") && target.contains(", SHA-256 "), "{target}");
    assert_eq!(told(&found, "register-api-client")[0].0, here());
    assert_eq!(told(&found, "configure"), [], "nothing differs from what holds by default");

    // At its end at the latest a replica brings all to the log.
    let start_with = async |broker: &mut Broker, configuration: &str| {
        std::fs::write(broker.folder.path().join("berth.toml"), configuration).unwrap();
        broker.restart(Signal::TERM).await;
        records(&broker.operate(&["audit", "export"]).await.unwrap())
    };
    let changed = ("local".to_owned(), "replica 1".to_owned(), "changed queue_max, placement".to_owned());
    for _ in 0..2 {
        let found = start_with(&mut broker, "[sessions]\nqueue_max = 7\nplacement = 'pack'\n").await;
        assert_eq!(told(&found, "configure"), std::slice::from_ref(&changed), "once, however often it is started");
        let [(from, target, result)] = &told(&found, "backup")[..] else { panic!("{found:#?}") };
        assert_eq!((from, result.as_str()), (&here(), "begun"));
        assert!(target.starts_with("entry ") && !target.contains("what this replica knows"), "{target}");
    }
    let verified = broker.operate(&["audit", "verify"]).await.unwrap();
    assert!(verified.contains("are as they were written"), "{verified}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_do_with_the_cluster_is_recorded_whoever_carries_it_out() {
    let replicas = Replicas::started(3).await;
    let leader = replicas.leader().await;
    let [first, second] = [1, 2].map(|step| (leader + step) % 3);
    let asked = &replicas.all[first];

    asked.operator(&["cluster", "add", "--replace", &replicas.all[second].number.to_string()]).await.unwrap();
    let added = &recorded(asked, "cluster-add", 1).await[0];
    let replaced = format!(", in the place of replica {}", replicas.all[second].number);
    let invitation = added.1.strip_prefix("invitation ").and_then(|rest| rest.strip_suffix(&replaced)).unwrap();
    asked.operator(&["cluster", "revoke", invitation]).await.unwrap();
    asked.operator(&["cluster", "revoke", invitation]).await.unwrap_err();
    let revoked = |result: &str| (here(), format!("invitation {invitation}"), result.to_owned());
    assert_eq!(
        recorded(asked, "cluster-revoke", 2).await,
        [revoked("done"), revoked("refused: UNKNOWN_INVITATION")],
        "in one step with what they change"
    );
    let joining = Replica::new(9, "");
    joining.configure(&format!("cluster.address = '{}'\n", joining.peers));
    let token = joining.folder.path().join("token");
    std::fs::write(&token, asked.operator(&["cluster", "add"]).await.unwrap()).unwrap();
    let printed = joining.prepare(&["cluster", "join", "--token-file", text(&token)]).await.unwrap();
    let (from, target, result) = recorded(asked, "cluster-join", 1).await.remove(0);
    assert_eq!((from, result.as_str()), (joining.peers.to_string(), "done"), "before it gets the secret");
    let invitation = recorded(asked, "cluster-add", 2).await[1].1.clone();
    assert!(target.starts_with(&format!("{invitation}, folder ")), "{target}");
    // It never comes.
    let number = printed.lines().find_map(|line| line.strip_prefix("replica: ")).unwrap();
    asked.operator(&["cluster", "remove", number]).await.unwrap();
    let found = recorded(asked, "cluster-remove", 1).await;
    assert_eq!(found, [(here(), format!("replica {number}"), "done".to_owned())]);

    asked.operator(&["cluster", "rotate-certificates"]).await.unwrap();
    let rotated = (here(), String::new(), "done".to_owned());
    assert_eq!(recorded(asked, "cluster-rotate-certificates", 1).await, [rotated]);
    asked.operator(&["cluster", "raise-format", "99"]).await.unwrap_err();
    let refused = &recorded(asked, "cluster-raise-format", 1).await[0];
    assert!(refused.1 == "format 99" && refused.2.starts_with("refused: "), "{refused:?}");

    let number = asked.number.to_string();
    asked.operator(&["cluster", "transfer-leader", &number]).await.unwrap();
    let handed_over = (here(), format!("replica {number}"), "done".to_owned());
    assert_eq!(recorded(asked, "cluster-transfer-leader", 1).await, [handed_over]);
    // One that is removed cannot say so any more: whoever leads does.
    let removed = &replicas.all[second];
    let number = removed.number.to_string();
    removed.operator(&["cluster", "remove", &number]).await.unwrap();
    let found = recorded(asked, "cluster-remove", 2).await;
    assert_eq!(found[1..], [(here(), format!("replica {number}"), "done".to_owned())]);
    verifies(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_no_certificate_is_given_out_and_a_backup_is_told_of_later() {
    let mut replicas = Replicas::started(3).await;
    let place = tempfile::tempdir().unwrap();
    for replica in [1, 2] {
        replicas.all[replica].stop(Signal::KILL).await;
    }
    let left = &replicas.all[0];
    let (gateway, backup) = (place.path().join("gateway"), place.path().join("backup"));
    let certificate = ["tls", "gateway-certificate", "--name", "gate-1", "--out-folder", text(&gateway)];
    let refused = left.operator(&certificate).await.unwrap_err();
    assert!(refused.contains("no certificate is given out that the cluster does not know"), "{refused}");
    assert!(!gateway.join("dcv_gateway_cert.pem").exists());
    left.operator(&["backup", "--stale", "--output", text(&backup)]).await.unwrap();
    for replica in [1, 2] {
        replicas.all[replica].start();
    }
    let left = &replicas.all[0];
    let found = recorded(left, "backup", 1).await;
    assert_eq!((found.len(), found[0].2.as_str()), (1, "begun"), "{found:?}");
    assert!(found[0].1.ends_with(", of what this replica knows"), "{found:?}");
    verifies(left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_says_so_first_and_who_is_let_in_again() {
    let place = tempfile::tempdir().unwrap();
    let mut old = Replica::new(1, "");
    old.prepare(&["cluster", "init"]).await.unwrap_err();
    old.configure(&format!("cluster.address = '{}'\n", old.peers));
    old.prepare(&["cluster", "init"]).await.unwrap();
    old.start();
    old.serves().await;
    let [gone, kept] = [old.register("gone").await, old.register("kept").await];
    old.operator(&["clients", "unregister", "--client-id", &gone.id]).await.unwrap();
    let file = place.path().join("backup");
    old.operator(&["backup", "--output", text(&file)]).await.unwrap();
    old.operator(&["clients", "unregister", "--client-id", &kept.id]).await.unwrap();
    let before = records(&old.operator(&["audit", "export"]).await.unwrap());
    let unregistered = told(&before, "unregister-api-client").len();
    assert_eq!(unregistered, 2);
    let cluster = old.view().await["cluster"].as_str().unwrap().to_owned();
    old.stop(Signal::TERM).await;

    let mut new = Replica::new(1, "");
    let printed = new.prepare(&["restore", text(&file)]).await.unwrap();
    assert!(printed.contains("also who was unregistered since"), "{printed}");
    assert!(
        printed.contains("- 1 API clients (`berth clients list`"),
        "one of them was unregistered before: {printed}"
    );
    assert!(printed.contains("- 0 agents (`berth agents list`"), "{printed}");
    new.start();
    new.serves().await;
    let clients = new.operator(&["clients", "list", "--json"]).await.unwrap();
    let clients: Vec<Value> = serde_json::from_str(&clients).unwrap();
    let active = clients.iter().filter(|client| client["active"] == true).map(|client| &client["id"]);
    assert_eq!(active.collect::<Vec<_>>(), [&kept.id], "as in the backup");

    let found = records(&new.operator(&["audit", "export"]).await.unwrap());
    let first_new = found.iter().position(|record| record["action"] == "restore").unwrap();
    assert_eq!(found[..first_new], before[..first_new], "the chain goes on from the records in the backup");
    assert!(before[first_new..].iter().any(|record| record["action"] == "unregister-api-client"));
    let [(from, target, result)] = &told(&found, "restore")[..] else { panic!("{found:#?}") };
    assert_eq!(from, &here());
    assert!(target.starts_with(&format!("cluster {cluster}, entry ")) && target.ends_with(text(&file)), "{target}");
    let id = new.view().await["cluster"].as_str().unwrap().to_owned();
    assert!(result.starts_with(&format!("cluster {id} begins with it; by the clock of the host it is 2")), "{result}");
    new.operator(&["clients", "unregister", "--client-id", &kept.id]).await.unwrap();
    verifies(&new).await;
}
