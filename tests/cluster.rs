//! Several replicas: forming, joining, leading, leaving.
#![allow(clippy::unwrap_used)]

mod common;

use common::agent::Agent;
use common::replicas::{Replica, Replicas, voters};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::json;

fn session(owner: &str) -> serde_json::Value {
    json!({ "Name": "test", "Owner": owner, "Type": "VIRTUAL" })
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_are_named_form_a_cluster_that_goes_on_without_its_leader() {
    let mut replicas = Replicas::started(3).await;
    let view = replicas.all[0].view_when("three voters", |view| voters(view) == [1, 2, 3]).await;
    for replica in &replicas.all {
        assert_eq!(replica.view().await["cluster"], view["cluster"], "one cluster");
        let ca = std::fs::read(replica.ca_path()).unwrap();
        assert_eq!(ca, std::fs::read(replicas.all[0].ca_path()).unwrap(), "one authority for clients and agents");
    }
    let credentials = replicas.all[0].register("portal").await;
    // A token of one is good on all; what one wrote the others read.
    let first = replicas.all[0].api(&credentials).await;
    let mut agent = Agent::simulated_at(&replicas.all[1], "");
    let server = agent.linked().await;
    first.server_available(&server).await;
    let id = first.create_on(&server, "ann").await;
    for replica in &replicas.all {
        let api = common::api::Api { url: replica.url(), ..first.clone() };
        assert!(api.session(&id).await.is_some(), "read through {}", replica.number);
        api.session_in_state(&id, "READY").await;
    }
    let leader = replicas.leader().await;
    replicas.all[leader].stop(Signal::KILL).await;
    let left: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    for place in &left {
        let api = common::api::Api { url: replicas.all[*place].url(), ..first.clone() };
        assert_eq!(api.session(&id).await.unwrap()["Owner"], "ann");
    }
    // It comes back and catches up.
    replicas.all[leader].start();
    replicas.all[leader].serves().await;
    let api = common::api::Api { url: replicas.all[leader].url(), ..first };
    assert!(api.session(&id).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_begun_others_join_with_a_token_each_and_one_takes_the_place_of_a_dead_one() {
    let mut first = Replica::new(1, "");
    let address = |replica: &Replica| format!("cluster.address = '{}'\n", replica.peers);
    first.configure(&address(&first));
    first.start();
    let status = first.process().ended().await;
    let said = first.process().stderr();
    assert!(!status.success() && said.contains("berth cluster init"), "nothing is begun unasked: {said}");
    first.prepare(&["cluster", "init"]).await.unwrap();
    let again = first.prepare(&["cluster", "init"]).await.unwrap_err();
    assert!(again.contains("belongs to replica 1"), "{again}");
    first.start();
    first.serves().await;
    let credentials = first.register("portal").await;

    let mut joined = Vec::new();
    for _ in 0..2 {
        joined.push(join(&first, &[]).await);
    }
    first.view_when("three voters", |view| voters(view).len() == 3).await;
    let api = joined[0].api(&credentials).await;
    assert!(api.call("describeServers", json!({})).await["Servers"].as_array().unwrap().is_empty());

    // The last one dies with its disk; two commands, and another one is in its place.
    let dead = joined.pop().unwrap().number;
    let replaced = dead.to_string();
    let joined_in_its_place = join(&first, &["--replace", &replaced]).await;
    let view = first
        .view_when("the new one votes and the dead one is gone", |view| {
            let voters = voters(view);
            voters.len() == 3 && voters.contains(&joined_in_its_place.number) && !voters.contains(&dead)
        })
        .await;
    assert_eq!(view["members"].as_array().unwrap().len(), 3, "{view}");
    assert!(joined_in_its_place.number > dead, "numbers are never given again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_listed_until_it_is_taken_back_and_then_lets_nobody_in() {
    let mut first = Replica::new(1, "");
    first.configure(&format!("cluster.address = '{}'\n", first.peers));
    first.prepare(&["cluster", "init"]).await.unwrap();
    first.start();
    first.serves().await;
    let token = first.operator(&["cluster", "add"]).await.unwrap();
    // The configuration tells where the replica is as well.
    let listed = first.prepare(&["cluster", "invitations", "--json"]).await.unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(
        (listed.as_array().unwrap().len(), &listed[0]["by"], &listed[0]["used_by"], &listed[0]["seems_expired"]),
        (1, &json!(1), &json!(null), &json!(false))
    );
    let id = listed[0]["id"].as_str().unwrap();
    first.operator(&["cluster", "revoke", id]).await.unwrap();
    let again = first.operator(&["cluster", "revoke", id]).await.unwrap_err();
    assert!(again.contains("no such invitation"), "{again}");
    assert_eq!(first.operator(&["cluster", "invitations", "--json"]).await.unwrap().trim(), "[]");

    let late = Replica::new(1, "");
    late.configure(&format!("cluster.address = '{}'\n", late.peers));
    let path = late.folder.path().join("token");
    std::fs::write(&path, token).unwrap();
    let refused = late.prepare(&["cluster", "join", "--token-file", path.to_str().unwrap()]).await.unwrap_err();
    assert!(refused.contains("unknown or has expired"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_replica_is_not_talked_to() {
    let mut replicas = Replicas::started(3).await;
    replicas.all[2].stop(Signal::TERM).await;
    let original = &replicas.all[2];
    let mut copy = Replica::new(3, "");
    let copied = std::process::Command::new("cp").arg("-a").args([original.data_folder(), copy.data_folder()]).status();
    assert!(copied.unwrap().success());
    let configuration = std::fs::read_to_string(original.config_path()).unwrap();
    let configuration = [
        (original.data_folder().display().to_string(), copy.data_folder().display().to_string()),
        (format!("clients.listen = '{}'", original.clients), format!("clients.listen = '{}'", copy.clients)),
        (format!("agents.listen = '{}'", original.agents), format!("agents.listen = '{}'", copy.agents)),
        (format!("cluster.listen = '{}'", original.peers), format!("cluster.listen = '{}'", copy.peers)),
    ]
    .iter()
    .fold(configuration, |text, (old, new)| text.replace(old, new));
    std::fs::write(copy.config_path(), configuration).unwrap();
    replicas.all[2].start();
    replicas.all[2].serves().await;

    copy.start();
    let told = common::until("it is told what it is", || async {
        let said = copy.process.as_ref().unwrap().stderr();
        said.lines().find(|line| line.contains("another process speaks as replica 3")).map(str::to_owned)
    });
    assert!(told.await.contains("data folder was copied"));
    copy.stop(Signal::KILL).await;
    replicas.all[0].view_when("three voters", |view| voters(view) == [1, 2, 3]).await;
}

/// A new replica that joined and serves.
async fn join(member: &Replica, how: &[&str]) -> Replica {
    let token = member.operator(&[&["cluster", "add"], how].concat()).await.unwrap();
    let mut replica = Replica::new(1, "");
    replica.configure(&format!("cluster.address = '{}'\n", replica.peers));
    let path = replica.folder.path().join("token");
    std::fs::write(&path, token).unwrap();
    let joining = ["cluster", "join", "--token-file", path.to_str().unwrap()];
    // One that could not read the log does not use the token up.
    let old = Replica::new(1, "");
    old.configure(&format!("cluster.address = '{}'\ncluster.format_max = 1\n", old.peers));
    let refused = old.prepare(&joining).await.unwrap_err();
    assert!(refused.contains("written in format 2"), "{refused}");
    let printed = replica.prepare(&joining).await.unwrap();
    let number = printed.lines().find_map(|line| line.strip_prefix("replica: ")).unwrap();
    replica.number = number.parse().unwrap();
    // The token is used up.
    let mut late = Replica::new(1, "");
    late.configure(&format!("cluster.address = '{}'\n", late.peers));
    let refused = late.prepare(&joining).await.unwrap_err();
    assert!(refused.contains("used by another replica"), "{refused}");
    late.number = 0;
    replica.start();
    replica.serves().await;
    replica
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lost_its_folder_does_not_come_back_under_its_number() {
    let mut replicas = Replicas::started(3).await;
    replicas.leader().await;
    // Any but the one that forms clusters, and then that one.
    for place in [1, 0] {
        let replica = &mut replicas.all[place];
        replica.stop(Signal::KILL).await;
        std::fs::remove_dir_all(replica.data_folder()).unwrap();
        replica.start();
        let status = replica.process().ended().await;
        let said = replica.process().stderr();
        assert!(!status.success(), "{said}");
        assert!(said.contains(&format!("--replace {}", replica.number)), "{said}");
        // Nor with an identity but no log.
        if place == 1 {
            replica.process = None;
            let _ = std::fs::remove_dir_all(replica.data_folder());
            // The others are a majority without it, and go on below.
            replicas.all[0].register("still-there").await;
            let number = replicas.all[1].number.to_string();
            let token = replicas.all[2].operator(&["cluster", "add", "--replace", &number]).await.unwrap();
            assert!(token.starts_with("berth-join-"), "{token}");
            let replica = &mut replicas.all[1];
            replica.configure(&format!("cluster.address = '{}'\n", replica.peers));
            let path = replica.folder.path().join("token");
            std::fs::write(&path, token).unwrap();
            let printed = replica.prepare(&["cluster", "join", "--token-file", path.to_str().unwrap()]).await.unwrap();
            assert!(printed.contains("replica: 4"), "{printed}");
            replica.number = 4;
            replica.start();
            replica.serves().await;
            replicas.all[2].view_when("it votes", |view| voters(view) == [1, 3, 4]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_ends_hands_the_leadership_over_and_none_is_removed_that_is_needed() {
    let mut replicas = Replicas::started(3).await;
    let leader = replicas.leader().await;
    replicas.all[leader].stop(Signal::TERM).await;
    let left: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    // Stopping is not leaving.
    let view = replicas.all[left[0]].view_when("another leads", |view| !view["leader"].is_null()).await;
    assert_eq!(voters(&view), [1, 2, 3]);
    let now = replicas.leader().await;
    let other = *left.iter().find(|place| **place != now).unwrap();
    let number = replicas.all[other].number.to_string();
    let refused = replicas.all[now].operator(&["cluster", "remove", &number]).await.unwrap_err();
    assert!(refused.contains("no majority"), "{refused}");
    // Operators' wishes reach the leader from anywhere.
    let to = replicas.all[other].number.to_string();
    let printed = replicas.all[other].operator(&["cluster", "transfer-leader", &to]).await.unwrap();
    assert!(printed.contains(&format!("Replica {to} leads")), "{printed}");
    let gone = replicas.all[leader].number.to_string();
    replicas.all[now].operator(&["cluster", "remove", &gone]).await.unwrap();
    let view = replicas.all[now].view_when("two are left", |view| voters(view).len() == 2).await;
    assert_eq!(view["leader"], replicas.all[other].number);
    // The one that was removed is told so.
    replicas.all[leader].start();
    let status = replicas.all[leader].process().ended().await;
    let said = replicas.all[leader].process().stderr();
    assert!(!status.success() && said.contains("was removed"), "{said}");
}

/// The leader of now is not known to one that led when it ended, and does not know where that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_comes_back_elsewhere_under_another_leader_is_found_again() {
    let mut replicas = Replicas::started(3).await;
    let moved = replicas.leader().await;
    replicas.all[moved].stop(Signal::KILL).await;
    let leader = replicas.leader().await;
    replicas.relocate(&[moved]);
    replicas.all[moved].start();
    replicas.all[moved].serves().await;
    let address = replicas.all[moved].peers.to_string();
    let number = replicas.all[moved].number;
    let is_known = |view: &serde_json::Value| {
        let members = view["members"].as_array().unwrap();
        members.iter().any(|member| member["replica"] == number && member["address"] == address)
    };
    replicas.all[leader].view_when("where it is", is_known).await;
    // All agree on one, the one that moved too.
    replicas.leader().await;
}

/// Nobody answers where they were, and nobody says that nobody is there.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_all_move_at_once_find_each_other_by_their_configuration() {
    let mut replicas = Replicas::started(3).await;
    let credentials = replicas.all[0].register("portal").await;
    for replica in &mut replicas.all {
        replica.stop(Signal::KILL).await;
    }
    let left = replicas.relocate(&[0, 1, 2]);
    let _silent: Vec<_> = left.into_iter().map(|address| std::net::TcpListener::bind(address).unwrap()).collect();
    replicas.start().await;
    let api = replicas.all[0].api(&credentials).await;
    let (status, answer) = api.send(Method::POST, "/createSessions", &json!([session("ann")])).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_authority_while_everything_goes_on() {
    let mut replicas = Replicas::started(3).await;
    let credentials = replicas.all[0].register("portal").await;
    // In the first format what a broken connection carried is not known afterwards.
    for replica in &replicas.all {
        replica.view_when("the second format", |view| view["format"] == 2).await;
    }
    for generation in 1..=2 {
        let rotated = replicas.all[0].operator(&["cluster", "rotate-certificates"]).await;
        rotated.unwrap_or_else(|error| panic!("{generation}: {error}"));
        for replica in &replicas.all {
            replica.view_when("the next authority", |view| view["authority"] == generation).await;
            let api = replica.api(&credentials).await;
            let (status, answer) = api.send(Method::POST, "/createSessions", &json!([session("ann")])).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
        }
    }
    // Not while one cannot follow.
    replicas.all[2].stop(Signal::KILL).await;
    let refused = replicas.all[0].operator(&["cluster", "rotate-certificates"]).await.unwrap_err();
    assert!(refused.contains("replica 3"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_writes_are_refused_and_nobody_leads() {
    let mut replicas = Replicas::started(3).await;
    let credentials = replicas.all[0].register("portal").await;
    let api = replicas.all[0].api(&credentials).await;
    for place in [1, 2] {
        replicas.all[place].stop(Signal::KILL).await;
    }
    replicas.all[0].view_when("nobody leads", |view| view["leader"].is_null()).await;
    let answer = api.request(Method::POST, "/createSessions").json(&json!([session("ann")])).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));
    // It starts without them, too, and goes on by itself when one is back.
    replicas.all[0].stop(Signal::KILL).await;
    replicas.all[0].start();
    replicas.all[0].serves().await;
    replicas.all[1].start();
    replicas.all[1].serves().await;
    replicas.leader().await;
    let answer = api.call("createSessions", json!([session("bob")])).await;
    assert!(answer["UnsuccessfulList"].as_array().is_some() || answer["SuccessfulList"].as_array().is_some());
}
