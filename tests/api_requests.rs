//! What the API does with good and with bad requests, beyond the sixteen rules.

#![allow(clippy::unwrap_used)]

mod api_common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use api_common::{Answer, Api, CLIENT, SECRET, World, full_facts, host_session, picture, server_id};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth::broker::api::door::AskError;
use berth::broker::api::{ApiSettings, Screenshots, limits};
use berth::domain::SessionSpec;
use berth::protocol::{ImageFormat, Question, Reply};
use proptest::prelude::*;
use serde_json::{Value, json};

fn item(name: &str) -> Value {
    json!({"Name": name, "Owner": "barbara", "Type": "virtual"})
}

async fn raw(api: &Api, path: &str, kind: Option<&str>, body: impl Into<Body>) -> Answer {
    let mut request =
        Request::builder().method("POST").uri(path).header(header::AUTHORIZATION, format!("Bearer good:{CLIENT}"));
    if let Some(kind) = kind {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    api.send(request.body(body.into()).unwrap()).await
}

fn ids(listing: &Value, name: &str) -> Vec<String> {
    listing[name].as_array().unwrap().iter().map(|item| item["Id"].as_str().unwrap().to_owned()).collect()
}

// ---- authorisation ----

#[tokio::test]
async fn a_bad_token_is_challenged() {
    let api = World::new().api();
    for (value, text) in [
        ("Bearer nonsense", "the access token is not valid"),
        ("Bearer expired", "the access token has expired"),
        ("Basic abc", "the authorization header must be: Bearer, a blank, the access token"),
    ] {
        let request = Request::builder().method("POST").uri("/describeSessions").header(header::AUTHORIZATION, value);
        let answer = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!((answer.status, answer.error().as_str()), (StatusCode::UNAUTHORIZED, text));
        assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
    }
}

async fn token(api: &Api, uri: &str, basic: Option<&str>, form: &str) -> Answer {
    let mut request = Request::builder().method("POST").uri(uri);
    if let Some(credentials) = basic {
        request = request.header(header::AUTHORIZATION, format!("basic {}", BASE64_STANDARD.encode(credentials)));
    }
    if !form.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    api.send(request.body(Body::from(form.to_owned())).unwrap()).await
}

const GRANT: &str = "/oauth2/token?grant_type=client_credentials";

#[tokio::test]
async fn a_wrong_client_or_secret_is_an_invalid_client() {
    let api = World::new().api();
    for credentials in [Some("portal:wrong"), Some("other:s3cret"), Some("no colon"), Some(":"), None] {
        let answer = token(&api, GRANT, credentials, "").await;
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (StatusCode::UNAUTHORIZED, br#"{"error":"invalid_client"}"#.as_slice())
        );
        assert!(answer.header("www-authenticate").unwrap().starts_with("Basic"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn credentials_may_be_form_encoded_or_raw_or_in_the_form() {
    let api = World::new().api();
    let encoded = "portal:s3cret%3Awith%2Bodd%2520signs";
    assert_eq!(token(&api, GRANT, Some(encoded), "").await.status, StatusCode::OK);
    assert_eq!(token(&api, GRANT, Some(&format!("{CLIENT}:{SECRET}")), "").await.status, StatusCode::OK);
    let form = "grant_type=client_credentials&client_id=portal&client_secret=s3cret%3Awith%2Bodd%2520signs";
    assert_eq!(token(&api, "/oauth2/token", None, form).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_grant_that_is_missing_or_another_one_is_refused() {
    let api = World::new().api();
    let basic = format!("{CLIENT}:{SECRET}");
    let missing = token(&api, "/oauth2/token", Some(&basic), "").await;
    assert_eq!((missing.status, &missing.json()["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")));
    let other = token(&api, "/oauth2/token?grant_type=password", Some(&basic), "").await;
    assert_eq!((other.status, other.error().as_str()), (StatusCode::BAD_REQUEST, "unsupported_grant_type"));
    let both = token(&api, GRANT, Some(&basic), "grant_type=password").await;
    assert_eq!(both.json()["error"], json!("invalid_request"));
    let leaked = token(&api, &format!("{GRANT}&client_id=portal&client_secret=x"), None, "").await;
    assert_eq!(leaked.json()["error"], json!("invalid_request"));
    let long = token(&api, GRANT, Some(&basic), &format!("scope={}", "x".repeat(limits::FORM_BYTES_MAX))).await;
    assert_eq!(long.status, StatusCode::PAYLOAD_TOO_LARGE);
}

// ---- paths, methods, bodies ----

#[tokio::test]
async fn every_refusal_is_an_error_in_json() {
    let api = World::new().api();
    let nowhere = api.call("GET", "/nowhere", None).await;
    assert_eq!((nowhere.status, nowhere.error().as_str()), (StatusCode::NOT_FOUND, "there is nothing at this path"));
    let method = api.call("GET", "/createSessions", None).await;
    assert_eq!(
        (method.status, method.error().as_str()),
        (StatusCode::METHOD_NOT_ALLOWED, "this method is not allowed here")
    );
    assert_eq!(method.header("allow"), Some("POST"));
    let kind = raw(&api, "/createSessions", Some("text/plain"), "[]").await;
    assert_eq!(kind.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(kind.error().contains("application/json"));
    let path = api.call("GET", "/sessionConnectionData/%ff/x", None).await;
    assert_eq!(
        (path.status, path.error().as_str()),
        (StatusCode::BAD_REQUEST, "the path is not percent-encoded UTF-8")
    );
}

#[tokio::test]
async fn a_body_over_a_mebibyte_is_too_large() {
    let api = World::new().api();
    let body = |length: usize| format!("[{}]", " ".repeat(length - 2));
    let fits = raw(&api, "/createSessions", Some("application/json"), body(limits::BODY_BYTES_MAX)).await;
    assert_eq!(fits.status, StatusCode::OK);
    let over = raw(&api, "/createSessions", Some("application/json"), body(limits::BODY_BYTES_MAX + 1)).await;
    assert_eq!(
        (over.status, over.error().as_str()),
        (StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 1048576 bytes")
    );
}

#[tokio::test]
async fn a_body_that_is_not_understood_is_told_where() {
    let world = World::new();
    let api = world.api();
    for (path, body, text) in [
        ("/createSessions", "[{\"Name\": 1}]", "[0].Name has the wrong type: it must be text"),
        ("/createSessions", "{}", "the body has the wrong type: it must be an array"),
        ("/createSessions", "", "the body is empty; it must be a JSON array"),
        ("/deleteSessions", "[{\"Force\": \"yes\"}]", "[0].Force has the wrong type: it must be true or false"),
        ("/describeSessions", "{\"MaxResults\": \"1\"}", "MaxResults has the wrong type: it must be a whole number"),
        ("/describeSessions", "{\"MaxResults\": 0}", "MaxResults must be between 1 and 1000"),
        ("/describeServers", "{\"MaxResults\": 1001}", "MaxResults must be between 1 and 1000"),
        ("/describeServers", "{\"ServerIds\": [1]}", "ServerIds[0] has the wrong type: it must be text"),
        (
            "/describeSessions",
            "{\"Filters\": [{\"Key\": \"colour\", \"Value\": \"x\"}]}",
            "Filters[0].Key \"colour\" is not supported; supported are owner and tag:KEY",
        ),
        ("/describeSessions", "{\"Filters\": [{\"Key\": \"owner\"}]}", "Filters[0].Value is missing"),
        ("/describeSessions", "{\"NextToken\": \"???\"}", "NextToken is not a token of this broker"),
    ] {
        let answer = raw(&api, path, Some("application/json"), body).await;
        assert_eq!((answer.status, answer.error().as_str()), (StatusCode::BAD_REQUEST, text));
    }
    let many = json!(vec![item("a"); 1001]);
    let refused = api.call("POST", "/createSessions", Some(many)).await;
    assert_eq!((refused.status, refused.error().contains("at most 1000")), (StatusCode::BAD_REQUEST, true));
    assert_eq!(world.proposals.load(Ordering::Relaxed), 0);
}

// ---- what surrounds a request ----

#[tokio::test]
async fn every_answer_has_a_request_id_and_it_is_the_one_in_the_body() {
    let world = World::new();
    let api = world.api();
    let made = api.call("POST", "/describeSessions", Some(json!({}))).await;
    assert_eq!(made.header("x-request-id"), made.json()["RequestId"].as_str());
    let request = Request::builder()
        .method("POST")
        .uri("/createSessions")
        .header("authorization", "Bearer good:portal")
        .header("x-request-id", "from-the-client")
        .body(Body::from("[]"))
        .unwrap();
    let kept = api.send(request).await;
    assert_eq!(
        (kept.header("x-request-id"), &kept.json()["RequestId"]),
        (Some("from-the-client"), &json!("from-the-client"))
    );
    for path in ["/nowhere", "/health", "/createSessions", "/dcv-session-manager-api.yaml"] {
        let answer = api.send(Request::builder().uri(path).body(Body::empty()).unwrap()).await;
        assert!(answer.header("x-request-id").is_some(), "{path}");
    }
}

#[tokio::test]
async fn a_panic_becomes_an_answer_that_tells_nothing() {
    let world = World::new();
    world.is_panicking.store(true, Ordering::Relaxed);
    let answer = world.api().call("POST", "/createSessions", Some(json!([item("a")]))).await;
    assert_eq!((answer.status, answer.error().as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "internal error"));
    assert!(answer.header("x-request-id").is_some());
}

#[tokio::test]
async fn without_a_quorum_writes_wait_and_reads_are_marked_stale() {
    let world = World::new();
    world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    let api = world.api();
    let fresh = api.call("POST", "/describeSessions", Some(json!({}))).await;
    assert_eq!((fresh.header("berth-stale"), fresh.header("berth-index")), (None, Some("1")));

    world.has_no_quorum.store(true, Ordering::Relaxed);
    for (path, name) in [("/describeSessions", "Sessions"), ("/describeServers", "Servers")] {
        let stale = api.call("POST", path, Some(json!({}))).await;
        assert_eq!((stale.status, stale.header("berth-stale")), (StatusCode::OK, Some("true")));
        assert_eq!(stale.json()[name].as_array().unwrap().len(), 1);
    }
    let deletion = json!([{"SessionId": "mine", "Owner": "barbara"}]);
    let calls = [
        ("POST", "/createSessions", Some(json!([item("a")]))),
        ("POST", "/deleteSessions", Some(deletion)),
        ("POST", "/closeServers", Some(json!([{"ServerId": "desk-7"}]))),
        ("GET", "/sessionConnectionData/mine/barbara", None),
        ("POST", "/getSessionScreenshots", Some(json!([{"SessionId": "mine"}]))),
    ];
    for (method, path, body) in calls {
        let answer = api.call(method, path, body).await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (StatusCode::SERVICE_UNAVAILABLE, Some("2")),
            "{path}"
        );
        assert!(answer.error().contains("no majority"), "{}", answer.error());
    }
}

#[tokio::test]
async fn the_description_is_served_without_a_token_unless_switched_off() {
    let world = World::new();
    let request = || Request::builder().uri("/dcv-session-manager-api.yaml").body(Body::empty()).unwrap();
    let served = world.api().send(request()).await;
    assert_eq!((served.status, served.header("content-type")), (StatusCode::OK, Some("application/yaml")));
    assert!(String::from_utf8(served.body).unwrap().contains("openapi: 3.0.0"));
    let off = world.api_with(ApiSettings { description_served: false, ..ApiSettings::default() }).send(request()).await;
    assert_eq!(off.status, StatusCode::NOT_FOUND);
}

// ---- sessions ----

#[tokio::test]
async fn a_bad_item_fails_by_its_field_and_the_others_go_on_in_one_proposal() {
    let world = World::new();
    world.connect("desk-7", full_facts(), Vec::new());
    let body = json!([
        item("first"),
        {"Owner": "barbara", "Type": "VIRTUAL"},
        {"Name": "x", "Type": "VIRTUAL"},
        {"Name": "x", "Owner": "barbara"},
        {"Name": "x", "Owner": "barbara", "Type": "SHARED", "Requirements": "", "MaxConcurrents": 3},
        item("last"),
    ]);
    let json = world.api().post("/createSessions", body).await;
    let names: Vec<_> =
        json["SuccessfulList"].as_array().unwrap().iter().map(|session| session["Name"].as_str().unwrap()).collect();
    assert_eq!(names, ["first", "last"]);
    let reasons: Vec<_> = json["UnsuccessfulList"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failed| failed["FailureReason"].as_str().unwrap())
        .collect();
    assert_eq!(reasons, ["Name is missing", "Owner is missing", "Type is missing", "Type must be VIRTUAL or CONSOLE"]);
    let echoed = &json["UnsuccessfulList"][3]["CreateSessionRequestData"];
    assert_eq!(
        echoed,
        &json!({"Name": "x", "Owner": "barbara", "Type": "SHARED", "Requirements": "", "MaxConcurrentClients": 3})
    );
    assert_eq!(world.proposals.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_is_asked_for_arrives_in_the_log() {
    let world = World::new();
    world.connect("desk-7", full_facts(), Vec::new());
    let body = json!([{
        "Name": "n", "Owner": "CORP\\anna", "Type": "Virtual", "DcvGLEnabled": true, "MaxConcurrents": 7,
        "InitFilePath": "old.sh", "AutorunFile": "run.sh", "AutorunFileArguments": ["a", "b"],
        "PermissionFile": BASE64_STANDARD.encode("%owner% allow builtin"), "Requirements": "tag:color = 'pink'",
        "EnqueueRequest": true, "DisableRetryOnFailure": true, "StorageRoot": "%home%/s",
    }]);
    let json = world.api().post("/createSessions", body).await;
    let id = json["SuccessfulList"][0]["Id"].as_str().unwrap();
    let fleet = world.fleet();
    let session = fleet.sessions_from(None).find(|session| session.id.as_str() == id).unwrap();
    assert_eq!(session.requested_by.as_ref().unwrap().as_str(), CLIENT);
    let SessionSpec {
        name,
        owner,
        gl,
        clients_max,
        init_file,
        autorun_file,
        autorun_arguments,
        permissions,
        requirements,
        storage_root,
        enqueue,
        retry_disabled,
        ..
    } = &session.spec;
    assert_eq!((name.as_str(), owner.as_str(), *gl, *clients_max), ("n", "CORP\\anna", true, Some(7)));
    assert_eq!((init_file.as_deref(), autorun_file.as_deref()), (Some("old.sh"), Some("run.sh")));
    assert_eq!(autorun_arguments, &["a", "b"]);
    assert_eq!(permissions.as_deref(), Some("%owner% allow builtin"));
    assert_eq!(
        (requirements.as_ref().map(ToString::to_string).as_deref(), storage_root.as_deref()),
        (Some("tag:color = 'pink'"), Some("%home%/s"))
    );
    assert!(*enqueue && *retry_disabled);
}

#[tokio::test]
async fn a_session_that_no_server_can_take_is_refused_with_the_known_words() {
    let json = World::new().api().post("/createSessions", json!([item("a")])).await;
    let reason = json["UnsuccessfulList"][0]["FailureReason"].as_str().unwrap();
    assert!(reason.contains("no dcv server found for placement"), "{reason}");
}

#[tokio::test]
async fn a_session_is_deleted_only_for_its_owner() {
    let world = World::new();
    world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    let body = json!([{"SessionId": "mine", "Owner": "eve"}, {"Owner": "barbara"}, {"SessionId": "mine"}, {"SessionId": "mine", "Owner": "barbara"}]);
    let json = world.api().post("/deleteSessions", body).await;
    assert_eq!(json["SuccessfulList"], json!([{"SessionId": "mine", "State": "DELETING"}]));
    let reasons: Vec<_> = json["UnsuccessfulList"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failed| failed["FailureReason"].as_str().unwrap())
        .collect();
    assert!(reasons[0].contains("another owner"), "{reasons:?}");
    assert_eq!(reasons[1..], ["SessionId is missing", "Owner is missing"]);
}

#[tokio::test]
async fn permissions_are_checked_and_then_sent_to_the_host() {
    let world = World::new();
    world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    let body = json!([
        {"SessionId": "mine", "Owner": "barbara", "PermissionFile": "W3Blcm1pc3Npb25zXQ=="},
        {"SessionId": "mine", "Owner": "barbara", "PermissionsFile": null},
        {"SessionId": "mine", "Owner": "barbara", "PermissionsFile": "~"},
        {"SessionId": "none", "Owner": "barbara", "PermissionsFile": "W10="},
    ]);
    let answer = world.api().call("PUT", "/sessionPermissions", Some(body)).await;
    let json = answer.json();
    assert_eq!(json["SuccessfulList"], json!([{"SessionId": "mine"}]));
    let reasons: Vec<_> = json["UnsuccessfulList"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failed| failed["FailureReason"].as_str().unwrap())
        .collect();
    assert_eq!(
        reasons,
        [
            "PermissionsFile is missing",
            "PermissionsFile must be text in base64",
            "The requested dcvSession does not exist"
        ]
    );
    let fleet = world.fleet();
    assert_eq!(fleet.outbox(&server_id("desk-7")).count(), 1);
}

// ---- describing ----

fn listed_world() -> std::sync::Arc<World> {
    let world = World::new();
    let mut blue = full_facts();
    blue.tags.insert("color".to_owned(), "blue".to_owned());
    blue.tags.insert("City".to_owned(), "London".to_owned());
    world.connect("desk-1", full_facts(), vec![host_session("a", "anna"), host_session("d", "dora")]);
    world.connect("desk-2", blue, vec![host_session("b", "barbara"), host_session("c", "anna")]);
    world
}

#[tokio::test]
async fn filters_of_one_key_are_alternatives_and_of_several_keys_all_hold() {
    let api = listed_world().api();
    let filter = |pairs: &[(&str, &str)]| json!({"Filters": pairs.iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect::<Vec<_>>()});
    for (pairs, expected) in [
        (&[("owner", "anna")][..], &["a", "c"][..]),
        (&[("owner", "dora"), ("owner", "barbara")], &["b", "d"]),
        (&[("owner", "nobody")], &[]),
        (&[("owner", "")], &[]),
        (&[("tag:color", "blue")], &["b", "c"]),
        (&[("tag:City", "london")], &[]),
        (&[("tag:color", "blue"), ("tag:color", "pink")], &["a", "b", "c", "d"]),
        (&[("tag:color", "blue"), ("owner", "anna")], &["c"]),
        (&[("tag:missing", "x")], &[]),
    ] {
        assert_eq!(ids(&api.post("/describeSessions", filter(pairs)).await, "Sessions"), expected, "{pairs:?}");
    }
}

#[tokio::test]
async fn ids_that_are_unknown_are_just_absent() {
    let api = listed_world().api();
    let body = json!({"SessionIds": ["c", "nothing", "a", "a", ""], "Filters": [{"Key": "owner", "Value": "anna"}]});
    assert_eq!(ids(&api.post("/describeSessions", body).await, "Sessions"), ["a", "c"]);
    let none = api.post("/describeSessions", json!({"SessionIds": ["\n"]})).await;
    assert_eq!(none["Sessions"], json!([]));
    assert_eq!(ids(&api.post("/describeServers", json!({"ServerIds": ["desk-2", "x"]})).await, "Servers"), ["desk-2"]);
}

#[tokio::test]
async fn a_token_is_bound_to_its_query() {
    let api = listed_world().api();
    let first = api.post("/describeSessions", json!({"MaxResults": 1})).await;
    let token = first["NextToken"].clone();
    let other = json!({"NextToken": token, "Filters": [{"Key": "owner", "Value": "anna"}]});
    let refused = api.call("POST", "/describeSessions", Some(other)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.error().starts_with("NextToken belongs to another query"));
    let servers = api.call("POST", "/describeServers", Some(json!({"NextToken": token}))).await;
    assert_eq!(servers.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_session_shows_the_short_form_of_its_server() {
    let world = World::new();
    world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    let json = world.api().post("/describeSessions", json!({})).await;
    let mut names: Vec<_> = json["Sessions"][0]["Server"].as_object().unwrap().keys().cloned().collect();
    names.sort_unstable();
    assert_eq!(names, ["DefaultDnsName", "Endpoints", "Hostname", "Id", "Ip", "Port", "Tags", "WebUrlPath"]);
    assert_eq!((&json["Sessions"][0]["Type"], &json["Sessions"][0]["Name"]), (&json!("VIRTUAL"), &json!("")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Pages of any sizes show each matching item exactly once and in order,
    /// while others come and go.
    #[test]
    fn walking_pages_shows_everything_once(
        owners in prop::collection::vec(0_u8..4, 1..40), wanted in prop::collection::vec(0_u8..5, 0..4),
        sizes in prop::collection::vec(1_usize..9, 1..6),
    ) {
        let world = World::new();
        let sessions: Vec<_> = owners.iter().enumerate()
            .map(|(number, owner)| host_session(&format!("s{number:02}"), &format!("owner-{owner}")))
            .collect();
        world.connect("desk-7", full_facts(), sessions);
        let api = world.api();
        let expected: Vec<String> = owners.iter().enumerate()
            .filter(|(_, owner)| wanted.is_empty() || wanted.contains(owner))
            .map(|(number, _)| format!("s{number:02}"))
            .collect();
        let filters: Vec<_> = wanted.iter().map(|owner| json!({"Key": "owner", "Value": format!("owner-{owner}")})).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(async {
            let mut seen = Vec::new();
            let mut token = Value::Null;
            for size in sizes.iter().cycle() {
                let page = api.post("/describeSessions", json!({"MaxResults": size, "Filters": filters, "NextToken": token})).await;
                let found = ids(&page, "Sessions");
                assert!(found.len() <= *size);
                seen.extend(found);
                match page.get("NextToken") {
                    Some(next) => token = next.clone(),
                    None => break,
                }
            }
            seen
        });
        prop_assert_eq!(seen, expected);
    }
}

// ---- servers ----

#[tokio::test]
async fn a_server_closes_without_force_only_when_it_is_empty() {
    let world = World::new();
    world.connect("busy", full_facts(), vec![host_session("mine", "barbara")]);
    world.connect("idle", full_facts(), Vec::new());
    let api = world.api();
    let body = json!([{"ServerId": "busy"}, {"ServerId": "idle"}, {"ServerId": "none"}, {}]);
    let json = api.post("/closeServers", body).await;
    assert_eq!(json["SuccessfulList"], json!([{"ServerId": "idle"}]));
    let failed = json["UnsuccessfulList"].as_array().unwrap();
    assert_eq!(failed[0]["FailureCode"], json!("DCV_SERVER_HAS_SESSIONS"));
    assert_eq!(failed[0]["CloseServerRequestData"], json!({"ServerId": "busy"}));
    assert_eq!(
        failed[1],
        json!({"CloseServerRequestData": {"ServerId": "none"}, "FailureCode": "DCV_SERVER_NOT_FOUND", "FailureReason": "Dcv server not found."})
    );
    assert_eq!(
        (&failed[2]["FailureCode"], &failed[2]["FailureReason"]),
        (&json!("INVALID_PARAMETER"), &json!("ServerId is missing"))
    );

    let forced = api.post("/closeServers", json!([{"ServerId": "busy", "Force": true}])).await;
    assert_eq!(forced["SuccessfulList"], json!([{"ServerId": "busy"}]));
    let opened = api.post("/openServers", json!([{"ServerId": "busy"}, {"ServerId": "none"}])).await;
    assert_eq!(opened["SuccessfulList"], json!([{"ServerId": "busy"}]));
    assert_eq!(opened["UnsuccessfulList"][0]["OpenServerRequestData"], json!({"ServerId": "none"}));
}

// ---- pictures ----

/// An API that does not wait for agents as long as usual.
fn hasty(world: &std::sync::Arc<World>, agent_timeout: Duration, request_timeout: Duration) -> Api {
    let screenshots = Screenshots { agent_timeout, request_timeout, ..Screenshots::default() };
    world.api_with(ApiSettings { screenshots, ..ApiSettings::default() })
}

#[tokio::test]
async fn pictures_fail_one_by_one_with_their_reasons() {
    let world = World::new();
    for (server, session) in [("good", "s-good"), ("away", "s-away"), ("silent", "s-silent"), ("unable", "s-unable")] {
        world.connect(server, full_facts(), vec![host_session(session, "barbara")]);
    }
    world.reply("good", Ok(picture()));
    world.reply("away", Err(AskError::Unreachable));
    world.reply("unable", Ok(Reply::Failed { reason: "no display".to_owned() }));
    let body = json!([
        {"SessionId": "s-good"}, {"SessionId": "none"}, {"SessionId": "s-away"}, {"SessionId": "s-silent"},
        {"SessionId": "s-unable"}, {"SessionId": "s-good", "MaxWidth": 0}, {"SessionId": "s-good", "MaxHeight": -5}, {},
    ]);
    let json = hasty(&world, Duration::from_millis(500), limits::SCREENSHOTS_TIMEOUT)
        .post("/getSessionScreenshots", body)
        .await;
    let expected = json!([{"SessionScreenshot": {"SessionId": "s-good", "Images": [
        {"Format": "png", "Data": "iVBORw0KGgo=", "CreationTime": "2025-01-31T09:00:00.123Z", "Primary": true}
    ]}}]);
    assert_eq!(json["SuccessfulList"], expected);
    let failed: Vec<_> = json["UnsuccessfulList"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failed| {
            (
                failed["GetSessionScreenshotRequestData"]["SessionId"].as_str().unwrap_or(""),
                failed["FailureReason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        failed,
        [
            ("none", "Dcv session not found."),
            ("s-away", "the agent of its server cannot be reached"),
            ("s-silent", "the agent of its server did not answer in time"),
            ("s-unable", "the host could not take it: no display"),
            ("s-good", "MaxWidth must be between 1 and 4294967295"),
            ("s-good", "MaxHeight must be between 1 and 4294967295"),
            ("", "SessionId is missing"),
        ]
    );
}

#[tokio::test]
async fn pictures_have_the_asked_size_or_the_configured_one() {
    let world = World::new();
    world.connect("good", full_facts(), vec![host_session("mine", "barbara")]);
    world.reply("good", Ok(picture()));
    let body = json!([{"SessionId": "mine", "MaxWidth": null}, {"SessionId": "mine", "MaxWidth": 640, "MaxHeight": 480}, {"SessionId": "mine", "MaxHeight": i64::MAX}]);
    world.api().post("/getSessionScreenshots", body).await;
    let sizes: Vec<_> = world
        .questions
        .lock()
        .unwrap()
        .iter()
        .map(|(_, Question::Screenshot { width_max, height_max, format, .. })| (*width_max, *height_max, *format))
        .collect();
    let png = ImageFormat::Png;
    assert_eq!(sizes, [(160, 100, png), (640, 480, png), (160, limits::SCREENSHOT_SIDE_MAX, png)]);
}

#[tokio::test]
async fn a_request_asks_few_agents_at_a_time_and_ends_in_time() {
    let world = World::new();
    let sessions = (0..100).map(|number| host_session(&format!("s{number}"), "barbara")).collect();
    world.connect("silent", full_facts(), sessions);
    let items: Vec<_> = (0..100).map(|number| json!({"SessionId": format!("s{number}")})).collect();
    let json = hasty(&world, Duration::from_millis(20), Duration::from_millis(200))
        .post("/getSessionScreenshots", json!(items))
        .await;
    assert_eq!(json["UnsuccessfulList"].as_array().unwrap().len(), 100);
    assert_eq!(world.asking_max.load(Ordering::Relaxed), limits::AGENTS_ASKED_MAX);
    // Thirteen rounds of at least 20 ms do not fit into 200 ms.
    assert!(json["UnsuccessfulList"][99]["FailureReason"].as_str().unwrap().contains("no time left"));
}

#[tokio::test]
async fn one_answer_holds_only_so_many_bytes_of_pictures() {
    let world = World::new();
    let sessions = ["s1", "s2"].map(|id| host_session(id, "barbara")).to_vec();
    world.connect("good", full_facts(), sessions);
    let Reply::Screenshot(mut images) = picture() else { panic!("a picture") };
    images[0].data = "A".repeat(limits::SCREENSHOTS_BYTES_MAX / 2 + 4);
    world.reply("good", Ok(Reply::Screenshot(images)));
    let json = world.api().post("/getSessionScreenshots", json!([{"SessionId": "s1"}, {"SessionId": "s2"}])).await;
    // Whichever came first has its picture.
    let shown = &json["SuccessfulList"][0]["SessionScreenshot"]["SessionId"];
    let failed = &json["UnsuccessfulList"][0];
    assert_ne!(&failed["GetSessionScreenshotRequestData"]["SessionId"], shown);
    assert!(failed["FailureReason"].as_str().unwrap().contains("ask for fewer or smaller ones"));
}
