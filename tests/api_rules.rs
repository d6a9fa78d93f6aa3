//! The sixteen rules that existing clients rely on, in their order.

#![allow(clippy::unwrap_used)]

mod api_common;

use api_common::{CLIENT, SECRET, World, full_facts, host_session, picture};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth::broker::api::description_yaml;
use berth::domain::Millis;
use serde_json::{Value, json};

/// Checks JSON against a schema of the description: no field outside it, and
/// every value of its type.
fn conforms(document: &Value, value: &Value, schema: &Value, place: &str) {
    if let Some(target) = schema.get("$ref") {
        let pointer = target.as_str().unwrap().trim_start_matches('#');
        return conforms(document, value, document.pointer(pointer).unwrap(), place);
    }
    if let Some(properties) = schema.get("properties") {
        for (name, member) in value.as_object().unwrap_or_else(|| panic!("{place} is no object: {value}")) {
            let described = properties.get(name).unwrap_or_else(|| panic!("{place}.{name} is not in the description"));
            assert!(!member.is_null(), "{place}.{name} is null");
            conforms(document, member, described, &format!("{place}.{name}"));
        }
        return;
    }
    let is_right = match schema["type"].as_str().unwrap() {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "array" => {
            for item in value.as_array().unwrap_or_else(|| panic!("{place} is no array: {value}")) {
                conforms(document, item, &schema["items"], &format!("{place}[]"));
            }
            true
        }
        other => panic!("{place} has the unforeseen type {other}"),
    };
    assert!(is_right, "{place} is not {}: {value}", schema["type"]);
    if schema.get("format").is_some_and(|format| format == "date-time") {
        assert_time(value);
    }
}

fn assert_time(value: &Value) {
    let text = value.as_str().unwrap();
    assert!(text.parse::<jiff::Timestamp>().is_ok(), "{text}");
    assert!(text.len() == "2020-10-06T10:15:31.633Z".len() && text.ends_with('Z'), "{text}");
}

/// A world in which every field of every answer has something to say.
fn full_world() -> std::sync::Arc<World> {
    let world = World::new();
    world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    let mut closed = full_facts();
    closed.limits.virtual_sessions_max = Some(0);
    closed.limits.console_sessions = false;
    world.connect("desk-8", closed, Vec::new());
    world.reply("desk-7", Ok(picture()));
    world
}

fn wanted(owner: &str) -> Value {
    json!({
        "Name": "drawing", "Owner": owner, "Type": "VIRTUAL", "DcvGlEnabled": true, "MaxConcurrentClients": 5,
        "InitFile": "init.sh", "InitFilePath": "old.sh", "AutorunFile": "run.sh", "AutorunFileArguments": ["a"],
        "PermissionsFile": BASE64_STANDARD.encode("[permissions]\n"), "Requirements": "tag:color = 'pink'",
        "EnqueueRequest": true, "DisableRetryOnFailure": true, "StorageRoot": "%home%",
    })
}

fn names_all(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "{name} is missing in {value}");
    }
}

#[tokio::test]
async fn rule_01_every_field_of_every_answer_is_in_the_description() {
    let document: Value = yaml_serde::from_str(&description_yaml().unwrap()).unwrap();
    let world = full_world();
    let api = world.api();
    let mut impossible = wanted("barbara");
    impossible["Requirements"] = json!("tag:color = 'green'");
    impossible["EnqueueRequest"] = json!(false);
    impossible["Unknown"] = json!("dropped");

    let calls = [
        ("POST", "/createSessions", Some(json!([wanted("barbara"), impossible]))),
        ("POST", "/describeSessions", Some(json!({"MaxResults": 1}))),
        ("POST", "/describeServers", Some(json!({"MaxResults": 1}))),
        ("POST", "/describeServers", Some(json!({"ServerIds": ["desk-8"]}))),
        ("GET", "/sessionConnectionData/mine/anna", None),
        (
            "POST",
            "/getSessionScreenshots",
            Some(json!([{"SessionId": "mine", "MaxWidth": 10}, {"SessionId": "x", "MaxWidth": 7, "MaxHeight": 8}])),
        ),
        (
            "PUT",
            "/sessionPermissions",
            Some(json!([
                {"SessionId": "mine", "Owner": "barbara", "PermissionsFile": "W10="}, {"SessionId": "x", "Owner": "o", "PermissionsFile": "W10="}
            ])),
        ),
        (
            "POST",
            "/deleteSessions",
            Some(json!([{"SessionId": "mine", "Owner": "barbara"}, {"SessionId": "x", "Owner": "o"}])),
        ),
        ("POST", "/closeServers", Some(json!([{"ServerId": "desk-8"}, {"ServerId": "x", "Force": true}]))),
        ("POST", "/openServers", Some(json!([{"ServerId": "desk-8"}, {"ServerId": "x"}]))),
    ];
    for (method, path, body) in calls {
        let answer = api.call(method, path, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&answer.body));
        let described =
            if path.starts_with("/sessionConnectionData") { "/sessionConnectionData/{sessionId}/{user}" } else { path };
        let operation = &document["paths"][described][method.to_ascii_lowercase()];
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        let json = answer.json();
        conforms(&document, &json, schema, path);
        // Full data: what could be in the answer is in it.
        match path {
            "/describeSessions" => {
                names_all(&json, &["RequestId", "NextToken"]);
                names_all(
                    &json["Sessions"][0],
                    &[
                        "Id",
                        "Name",
                        "Owner",
                        "Server",
                        "Type",
                        "State",
                        "Substate",
                        "CreationTime",
                        "NumOfConnections",
                        "StorageRoot",
                        "MaxConcurrentClients",
                    ],
                );
            }
            "/describeServers" => names_all(
                &json["Servers"][0],
                &[
                    "Id",
                    "Ip",
                    "Hostname",
                    "DefaultDnsName",
                    "Port",
                    "Endpoints",
                    "WebUrlPath",
                    "Version",
                    "SessionManagerAgentVersion",
                    "Availability",
                    "ConsoleSessionCount",
                    "VirtualSessionCount",
                    "Host",
                    "Tags",
                ],
            ),
            "/createSessions" => names_all(
                &json["UnsuccessfulList"][0]["CreateSessionRequestData"],
                &[
                    "Name",
                    "Owner",
                    "Type",
                    "DcvGlEnabled",
                    "MaxConcurrentClients",
                    "InitFile",
                    "InitFilePath",
                    "AutorunFile",
                    "AutorunFileArguments",
                    "PermissionsFile",
                    "Requirements",
                    "EnqueueRequest",
                    "DisableRetryOnFailure",
                    "StorageRoot",
                ],
            ),
            "/sessionConnectionData/mine/anna" => names_all(&json["Session"], &["LastDisconnectionTime"]),
            "/closeServers" | "/openServers" => {
                names_all(&json["UnsuccessfulList"][0], &["FailureCode", "FailureReason"]);
            }
            _ => {}
        }
        if let (Some(done), Some(failed)) = (json.get("SuccessfulList"), json.get("UnsuccessfulList")) {
            assert_eq!((done.as_array().unwrap().len(), failed.as_array().unwrap().len()), (1, 1), "{path}: {json}");
        }
    }
}

#[tokio::test]
async fn rule_02_the_types_are_exact() {
    let world = full_world();
    let servers = world.api().post("/describeServers", json!({"ServerIds": ["desk-7"]})).await;
    let server = &servers["Servers"][0];
    assert_eq!(server["Port"], json!("8443"));
    assert_eq!(server["Endpoints"][0], json!({"IpAddress": "10.0.0.7", "Port": 8443, "Protocol": "QUIC"}));
    assert_eq!(
        server["Host"]["CpuLoadAverage"],
        json!({"OneMinute": 2.24, "FiveMinutes": 0.97, "FifteenMinutes": 1.0})
    );
    assert_eq!(server["Host"]["Memory"], json!({"TotalBytes": 16_000_000_000_u64, "UsedBytes": 4_000_000_000_u64}));
    assert_eq!((&server["VirtualSessionCount"], &server["ConsoleSessionCount"]), (&json!(1), &json!(0)));
    assert!(server.get("Gpus").is_none() && server["Host"]["Gpus"].is_array());
    assert_eq!(server["Host"]["Aws"]["EC2InstanceId"], json!("i-1"));
}

#[tokio::test]
async fn rule_03_times_are_text_with_an_offset() {
    let world = full_world();
    let sessions = world.api().post("/describeSessions", json!({})).await;
    let session = &sessions["Sessions"][0];
    assert_eq!(session["CreationTime"], json!("2020-10-06T10:15:31.633Z"));
    assert_eq!(session["LastDisconnectionTime"], json!("2020-10-06T10:15:31.633Z"));
}

#[tokio::test]
async fn rule_04_enumerations_hold_known_values_and_are_absent_otherwise() {
    let world = full_world();
    let api = world.api();
    let servers = api.post("/describeServers", json!({})).await;
    assert_eq!(servers["Servers"][0]["Availability"], json!("AVAILABLE"));
    assert!(servers["Servers"][0].get("UnavailabilityReason").is_none());
    assert_eq!(servers["Servers"][1]["Availability"], json!("UNAVAILABLE"));
    assert_eq!(servers["Servers"][1]["UnavailabilityReason"], json!("SERVER_FULL"));
    api.post("/closeServers", json!([{"ServerId": "desk-8"}])).await;
    let closed = api.post("/describeServers", json!({"ServerIds": ["desk-8"]})).await;
    assert_eq!(closed["Servers"][0]["UnavailabilityReason"], json!("SERVER_CLOSED"));

    let state =
        async || api.post("/describeSessions", json!({"SessionIds": ["mine"]})).await["Sessions"][0]["State"].clone();
    assert_eq!(state().await, json!("READY"));
    world.wait(Millis::from_secs(600));
    let lost = api.post("/describeServers", json!({"ServerIds": ["desk-7"]})).await;
    assert_eq!(lost["Servers"][0]["UnavailabilityReason"], json!("UNREACHABLE_AGENT"));
    assert_eq!(state().await, json!("UNKNOWN"));
}

#[tokio::test]
async fn rule_05_lists_are_arrays_also_when_they_are_empty() {
    let api = World::new().api();
    for path in ["/createSessions", "/deleteSessions", "/getSessionScreenshots", "/openServers", "/closeServers"] {
        let json = api.post(path, json!([])).await;
        assert_eq!((&json["SuccessfulList"], &json["UnsuccessfulList"]), (&json!([]), &json!([])), "{path}");
    }
    let permissions = api.call("PUT", "/sessionPermissions", Some(json!([]))).await.json();
    assert_eq!((&permissions["SuccessfulList"], &permissions["UnsuccessfulList"]), (&json!([]), &json!([])));
    assert_eq!(api.post("/describeSessions", json!({})).await["Sessions"], json!([]));
    assert_eq!(api.post("/describeServers", json!({})).await["Servers"], json!([]));

    let world = World::new();
    let mut plain = full_facts();
    plain.tags.clear();
    world.connect("plain", plain, Vec::new());
    assert_eq!(world.api().post("/describeServers", json!({})).await["Servers"][0]["Tags"], json!([]));
}

#[tokio::test]
async fn rule_06_the_number_of_connections_is_always_there() {
    let world = full_world();
    let api = world.api();
    let created = api.post("/createSessions", json!([wanted("barbara")])).await;
    assert_eq!(created["SuccessfulList"][0]["NumOfConnections"], json!(0));
    let sessions = api.post("/describeSessions", json!({})).await;
    let counts: Vec<_> =
        sessions["Sessions"].as_array().unwrap().iter().map(|session| &session["NumOfConnections"]).collect();
    assert_eq!(counts, [&json!(0), &json!(2)]);
}

#[tokio::test]
async fn rule_07_deleting_an_unknown_session_fails_with_the_exact_text() {
    let world = full_world();
    let too_long = "x".repeat(500);
    let body =
        json!([{"SessionId": "gone", "Owner": "barbara", "Force": true}, {"SessionId": too_long, "Owner": "barbara"}]);
    let json = world.api().post("/deleteSessions", body).await;
    let reason = "The requested dcvSession does not exist";
    assert_eq!(json["UnsuccessfulList"][0], json!({"SessionId": "gone", "FailureReason": reason}));
    assert_eq!(json["UnsuccessfulList"][1]["FailureReason"], json!(reason));
}

#[tokio::test]
async fn rule_08_a_call_without_authorization_gets_the_exact_text() {
    let api = World::new().api();
    let calls = [
        ("GET", "/sessionConnectionData/aSession/aOwner"),
        ("POST", "/describeSessions"),
        ("POST", "/describeServers"),
        ("POST", "/createSessions"),
        ("POST", "/deleteSessions"),
        ("PUT", "/sessionPermissions"),
        ("POST", "/getSessionScreenshots"),
        ("POST", "/openServers"),
        ("POST", "/closeServers"),
    ];
    for (method, path) in calls {
        let answer = api.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(answer.body, br#"{"error":"No authorization header"}"#, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
}

#[tokio::test]
async fn rule_09_the_token_end_point_takes_every_form_in_use() {
    let api = World::new().api();
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{CLIENT}:{SECRET}")));
    let in_query = "/oauth2/token?grant_type=client_credentials";
    let form = Some("application/x-www-form-urlencoded");
    let forms = [
        (in_query, None, ""),
        (in_query, form, ""),
        (in_query, Some("application/json"), ""),
        ("/oauth2/token", form, "grant_type=client_credentials&scope=dcv-session-manager%2Fsm_scope"),
        ("/oauth2/token?grant_type=client_credentials&scope=any", form, "scope=other"),
    ];
    for (uri, kind, body) in forms {
        let mut request = Request::builder().method("POST").uri(uri).header(header::AUTHORIZATION, &basic);
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let answer = api.send(request.body(Body::from(body)).unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK, "{uri} {body}");
        let expected = json!({"access_token": format!("good:{CLIENT}"), "token_type": "Bearer", "expires_in": 3600});
        assert_eq!(answer.json(), expected);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn rule_10_an_accepted_session_says_nothing_of_a_server() {
    let world = full_world();
    let created = world.api().post("/createSessions", json!([wanted("barbara")])).await;
    let session = &created["SuccessfulList"][0];
    assert!(session.get("Server").is_none(), "{session}");
    assert_eq!((&session["State"], &session["Substate"]), (&json!("CREATING"), &json!("SESSION_PLACING")));
    // The log knows the server all the same.
    let id = session["Id"].clone();
    let described = world.api().post("/describeSessions", json!({"SessionIds": [id]})).await;
    assert_eq!(described["Sessions"][0]["Server"]["Id"], json!("desk-7"));
    assert_eq!(described["Sessions"][0]["Substate"], json!("PENDING_PREPARATION"));
}

#[tokio::test]
async fn rule_11_empty_ids_and_filters_are_no_restriction() {
    let api = full_world().api();
    assert_eq!(api.post("/describeServers", json!({"ServerIds": []})).await["Servers"].as_array().unwrap().len(), 2);
    for body in [json!({"Filters": []}), json!({"SessionIds": [], "Filters": null}), json!(null)] {
        assert_eq!(api.post("/describeSessions", body).await["Sessions"].as_array().unwrap().len(), 1);
    }
    let bare = api.call("POST", "/describeSessions", None).await;
    assert_eq!((bare.status, bare.json()["Sessions"].as_array().unwrap().len()), (StatusCode::OK, 1));
}

#[tokio::test]
async fn rule_12_pages_may_change_their_size_on_the_way() {
    let world = World::new();
    let sessions = (0..25).map(|number| host_session(&format!("session-{number:02}"), "barbara")).collect();
    world.connect("desk-7", full_facts(), sessions);
    let api = world.api();
    let mut seen = Vec::new();
    let mut token: Option<Value> = None;
    for size in [1, 10, 3, 7, 1000] {
        let mut query = json!({"MaxResults": size, "Filters": [{"Key": "owner", "Value": "barbara"}]});
        if let Some(token) = token.take() {
            query["NextToken"] = token;
        }
        let page = api.post("/describeSessions", query).await;
        let ids = page["Sessions"].as_array().unwrap().iter().map(|session| session["Id"].as_str().unwrap().to_owned());
        let before = seen.len();
        seen.extend(ids);
        assert!(seen.len() - before <= size);
        token = page.get("NextToken").cloned();
    }
    assert_eq!(token, None, "the last page has no token");
    assert_eq!(seen, (0..25).map(|number| format!("session-{number:02}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn rule_13_connection_data_come_only_for_a_ready_session() {
    let world = full_world();
    let api = world.api();
    let created = api.post("/createSessions", json!([wanted("barbara")])).await;
    let id = created["SuccessfulList"][0]["Id"].as_str().unwrap().to_owned();
    let waiting = api.call("GET", &format!("/sessionConnectionData/{id}/barbara"), None).await;
    assert_eq!(waiting.status, StatusCode::BAD_REQUEST);
    assert!(waiting.error().contains("not in READY"), "{}", waiting.error());

    let unknown = api.call("GET", "/sessionConnectionData/nothing/barbara", None).await;
    assert_eq!(
        (unknown.status, unknown.error().as_str()),
        (StatusCode::NOT_FOUND, "The requested dcvSession does not exist")
    );

    let ready = api.call("GET", "/sessionConnectionData/mine/CORP%5Canna%20m%C3%BCller", None).await;
    assert_eq!(ready.status, StatusCode::OK);
    assert_eq!(ready.json()["ConnectionToken"], json!("opens mine for CORP\\anna müller"));
    assert_eq!(ready.header("cache-control"), Some("no-store"));

    world.wait(Millis::from_secs(600));
    let lost = api.call("GET", "/sessionConnectionData/mine/barbara", None).await;
    assert_eq!(lost.status, StatusCode::BAD_REQUEST);
    assert!(lost.error().contains("is UNKNOWN, not in READY"), "{}", lost.error());
}

#[tokio::test]
async fn rule_14_a_session_that_a_host_makes_shows_up_under_an_id_that_was_deleted() {
    let world = full_world();
    let api = world.api();
    let epoch = world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    let deleted = api.post("/deleteSessions", json!([{"SessionId": "mine", "Owner": "barbara", "Force": true}])).await;
    assert_eq!(deleted["SuccessfulList"][0]["State"], json!("DELETING"));
    world.obey("desk-7", epoch);
    let state = async || {
        let sessions = api.post("/describeSessions", json!({"SessionIds": ["mine"]})).await;
        assert_eq!(sessions["Sessions"].as_array().unwrap().len(), 1);
        sessions["Sessions"][0]["State"].clone()
    };
    assert_eq!(state().await, json!("DELETED"));
    world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    assert_eq!(state().await, json!("READY"));
}

#[tokio::test]
async fn rule_15_the_api_keeps_no_tokens_so_they_outlive_it() {
    let world = full_world();
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{CLIENT}:{SECRET}")));
    let request = Request::builder()
        .method("POST")
        .uri("/oauth2/token?grant_type=client_credentials")
        .header(header::AUTHORIZATION, basic)
        .body(Body::empty())
        .unwrap();
    let token = world.api().send(request).await.json()["access_token"].as_str().unwrap().to_owned();
    let next_life = world.api();
    let request = Request::builder()
        .method("POST")
        .uri("/describeSessions")
        .header(header::AUTHORIZATION, format!("bearer {token}"))
        .body(Body::empty())
        .unwrap();
    assert_eq!(next_life.send(request).await.status, StatusCode::OK);
}

#[tokio::test]
async fn rule_16_health_needs_no_credentials() {
    let api = World::new().api();
    let answer = api.send(Request::builder().uri("/health").body(Body::empty()).unwrap()).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"status": "ok"})));
}
