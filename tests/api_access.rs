//! Who may call what: every route of the table with every kind of caller. A
//! route that is added without an entry here fails the first test.

#![allow(clippy::unwrap_used)]

mod api_common;

use std::sync::Arc;
use std::time::Duration;

use api_common::{Answer, Api, World, full_facts, host_session, picture};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use berth::broker::api::{Route, routes};
use berth::domain::audit::AuditRecord;
use berth::domain::client::{Grant, Scope, Scopes, SecretHash};
use berth::domain::{ClientId, Command, Event, Owner};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// A request that a caller who may do so gets an answer to, for each route:
/// about ann's session `ann-1` and the server `desk-7`.
fn request(route: &Route) -> (String, Option<Value>) {
    let body = match (route.method.as_str(), route.path) {
        ("POST", "/describeSessions" | "/describeServers") => json!({}),
        ("POST", "/createSessions") => json!([{ "Name": "new", "Owner": "ann", "Type": "VIRTUAL" }]),
        ("POST", "/deleteSessions") => json!([{ "SessionId": "ann-1", "Owner": "ann" }]),
        ("PUT", "/sessionPermissions") => {
            json!([{ "SessionId": "ann-1", "Owner": "ann", "PermissionsFile": "W3Blcm1pc3Npb25zXQ==" }])
        }
        ("GET", "/sessionConnectionData/{sessionId}/{user}") => {
            return ("/sessionConnectionData/ann-1/ann".to_owned(), None);
        }
        ("POST", "/getSessionScreenshots") => json!([{ "SessionId": "ann-1" }]),
        ("POST", "/openServers") => json!([{ "ServerId": "desk-7" }]),
        ("POST", "/closeServers") => json!([{ "ServerId": "desk-7", "Force": true }]),
        ("POST", "/v1/placement:explain") => json!({ "Name": "new", "Owner": "ann", "Type": "VIRTUAL" }),
        ("POST", "/v1/servers:drain") => json!([{ "ServerId": "desk-7", "WithinSeconds": 60 }]),
        ("GET", "/v1/events" | "/v1/queue" | "/v1/servers" | "/v1/sessions") => {
            return (route.path.to_owned(), None);
        }
        (method, path) => panic!("{method} {path} has no entry in the matrix of who may call it"),
    };
    (route.path.to_owned(), Some(body))
}

fn world() -> Arc<World> {
    let world = World::new();
    world.connect("desk-7", full_facts(), vec![host_session("ann-1", "ann"), host_session("bob-1", "bob")]);
    world.reply("desk-7", Ok(picture()));
    for scope in Scope::ALL {
        register(&world, scope.as_str(), Scopes::NONE.with(scope), None);
    }
    register(&world, "usual", Scopes::USUAL, None);
    register(&world, "everything", Scope::ALL.into_iter().collect(), None);
    register(&world, "of-ann", Scope::ALL.into_iter().collect(), Some("ann"));
    world
}

fn register(world: &World, id: &str, scopes: Scopes, owner: Option<&str>) {
    let owner = owner.map(|owner| Owner::new(owner).unwrap());
    world.apply(Command::RegisterClient {
        id: ClientId::new(id).unwrap(),
        name: id.to_owned(),
        secret: SecretHash(String::new()),
        grant: Grant { scopes, owner },
    });
}

async fn call(api: &Api, client: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
    send(api, Some(&format!("Bearer good:{client}")), method, path, body).await
}

async fn send(api: &Api, authorization: Option<&str>, method: &str, path: &str, body: Option<Value>) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    api.send(request.body(body).unwrap()).await
}

#[tokio::test]
async fn each_route_lets_those_in_who_may_and_nobody_else() {
    for route in routes() {
        let (path, body) = request(&route);
        let method = route.method.as_str();
        let shown = format!("{method} {}", route.path);

        let world = world();
        let api = world.api();
        for (authorization, text) in [
            (None, "No authorization header"),
            (Some("Bearer nonsense"), "the access token is not valid"),
            (Some("Bearer expired"), "the access token has expired"),
            (Some("Basic Z29vZDp1c3VhbA=="), "the authorization header must be: Bearer, a blank, the access token"),
        ] {
            let answer = send(&api, authorization, method, &path, body.clone()).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{shown} {authorization:?}");
            assert_eq!(answer.error(), text, "{shown} {authorization:?}");
        }
        world.tokens_are_refused.store(true, std::sync::atomic::Ordering::Relaxed);
        let answer = call(&api, "usual", method, &path, body.clone()).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{shown}, unregistered");
        world.tokens_are_refused.store(false, std::sync::atomic::Ordering::Relaxed);

        for scope in Scope::ALL.into_iter().filter(|scope| *scope != route.demand.scope) {
            let answer = call(&api, scope.as_str(), method, &path, body.clone()).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{shown} with {}", scope.as_str());
            let wanted = route.demand.scope.as_str();
            assert_eq!(answer.error(), format!("the client may not do this: it lacks the scope {wanted}"));
            let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{wanted}\"");
            assert_eq!(answer.header("www-authenticate"), Some(challenge.as_str()));
        }
        let before = world.fleet();
        let changed = |world: &World| world.fleet().applied() != before.applied();
        assert!(!changed(&world), "{shown}: nothing was done for those who may not");

        let bound = call(&api, "of-ann", method, &path, body.clone()).await;
        if route.demand.owners {
            assert_eq!(bound.status, StatusCode::OK, "{shown} of the one's own session");
        } else {
            assert_eq!(bound.status, StatusCode::FORBIDDEN, "{shown} for one who is bound to an owner");
            assert!(bound.error().ends_with("it may see and change the sessions of one owner only"));
        }
        // In a world where nothing was done yet.
        for client in [route.demand.scope.as_str(), "everything"] {
            let world = self::world();
            let answer = call(&world.api(), client, method, &path, body.clone()).await;
            assert_eq!(answer.status, StatusCode::OK, "{shown} for {client}");
        }
        let world = self::world();
        let usual = call(&world.api(), "usual", method, &path, body).await;
        assert_eq!(usual.status, StatusCode::OK, "{shown}: what the original's clients may do");
    }
}

#[tokio::test]
async fn who_is_bound_to_an_owner_sees_and_changes_nothing_of_others() {
    let world = world();
    let api = world.api();
    let ids = |answer: &Answer| -> Vec<String> {
        let id = |session: &Value| session["Id"].as_str().unwrap().to_owned();
        answer.json()["Sessions"].as_array().unwrap().iter().map(id).collect()
    };
    let all = call(&api, "usual", "POST", "/describeSessions", Some(json!({}))).await;
    assert_eq!(ids(&all), ["ann-1", "bob-1"]);

    let questions = [
        json!({}),
        json!({ "SessionIds": ["ann-1", "bob-1"] }),
        json!({ "Filters": [{ "Key": "owner", "Value": "ann" }, { "Key": "owner", "Value": "bob" }] }),
        json!({ "Filters": [{ "Key": "tag:color", "Value": "pink" }] }),
    ];
    for question in questions {
        let answer = call(&api, "of-ann", "POST", "/describeSessions", Some(question.clone())).await;
        assert_eq!(ids(&answer), ["ann-1"], "{question}");
    }
    for question in [json!({ "SessionIds": ["bob-1"] }), json!({ "Filters": [{ "Key": "owner", "Value": "bob" }] })] {
        let answer = call(&api, "of-ann", "POST", "/describeSessions", Some(question.clone())).await;
        assert_eq!(ids(&answer), Vec::<String>::new(), "{question}");
    }
    for query in ["", "?Owner=bob&Owner=ann", "?SessionId=bob-1&SessionId=ann-1", "?Sort=-Name", "?ServerId=desk-7"] {
        let answer = call(&api, "of-ann", "GET", &format!("/v1/sessions{query}"), None).await;
        assert_eq!(ids(&answer), ["ann-1"], "{query}");
    }
    let answer = call(&api, "of-ann", "GET", "/v1/sessions?Owner=bob", None).await;
    assert_eq!(ids(&answer), Vec::<String>::new());

    let reason = |answer: &Answer| answer.json()["UnsuccessfulList"][0]["FailureReason"].as_str().unwrap().to_owned();
    let missing = "The requested dcvSession does not exist";
    let create = json!([{ "Name": "new", "Owner": "bob", "Type": "VIRTUAL" }]);
    let answer = call(&api, "of-ann", "POST", "/createSessions", Some(create)).await;
    assert_eq!(reason(&answer), "the client may create sessions of ann only");
    for (method, path, mut item) in [
        ("POST", "/deleteSessions", json!({ "SessionId": "bob-1", "Owner": "bob", "Force": true })),
        ("PUT", "/sessionPermissions", json!({ "SessionId": "bob-1", "Owner": "bob", "PermissionsFile": "YQ==" })),
    ] {
        let answer = call(&api, "of-ann", method, path, Some(json!([item]))).await;
        assert_eq!(reason(&answer), missing, "{path}");
        // Others learn that it is another owner's.
        item["Owner"] = json!("ann");
        let answer = call(&api, "usual", method, path, Some(json!([item]))).await;
        assert_eq!(reason(&answer), "the session belongs to another owner", "{path}");
        let answer = call(&api, "of-ann", method, path, Some(json!([item]))).await;
        assert_eq!(reason(&answer), missing, "{path}");
    }
    let answer = call(&api, "of-ann", "POST", "/getSessionScreenshots", Some(json!([{ "SessionId": "bob-1" }]))).await;
    assert_eq!(reason(&answer), "Dcv session not found.");
    let answer = call(&api, "of-ann", "GET", "/sessionConnectionData/bob-1/ann", None).await;
    assert_eq!((answer.status, answer.error()), (StatusCode::NOT_FOUND, missing.to_owned()));
    let answer = call(&api, "of-ann", "GET", "/sessionConnectionData/ann-1/bob", None).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "nobody connects as somebody else");
    assert!(world.fleet().sessions_from(None).all(|session| session.phase.occupies().is_some()), "all are as before");
}

#[tokio::test]
async fn what_a_client_may_do_changes_with_its_grant_and_not_with_its_token() {
    let world = world();
    let api = world.api();
    let close = || call(&api, "usual", "POST", "/closeServers", Some(json!([{ "ServerId": "nothing" }])));
    assert_eq!(close().await.status, StatusCode::OK);
    let id = ClientId::new("usual").unwrap();
    world.apply(Command::GrantClient { id, grant: Grant { scopes: Scopes::NONE.with(Scope::Read), owner: None } });
    assert_eq!(close().await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_audit_says_who_did_what_and_only_to_those_who_may_know() {
    let world = world();
    let api = world.api();
    let create = json!([{ "Name": "new", "Owner": "ann", "Type": "VIRTUAL" }, { "Name": "", "Owner": "ann" }]);
    call(&api, "usual", "POST", "/createSessions", Some(create)).await;
    call(&api, "usual", "POST", "/closeServers", Some(json!([{ "ServerId": "nothing" }]))).await;
    call(&api, "usual", "GET", "/sessionConnectionData/ann-1/bob", None).await;

    let fleet = world.fleet();
    let records: Vec<_> = fleet
        .journal()
        .after(None)
        .filter_map(|record| match &record.event {
            Event::Audited(record) => Some(record),
            _ => None,
        })
        .collect();
    let told: Vec<_> = records
        .iter()
        .map(|record| (record.deed.actor.to_string(), record.deed.action.as_str(), record.result.as_str()))
        .collect();
    let who = || "client usual".to_owned();
    assert_eq!(
        told,
        [
            (who(), "createSessions", "1 done, 1 refused"),
            (who(), "closeServers", "refused: UNKNOWN_SERVER"),
            (who(), "sessionConnectionData/{sessionId}/{user}", "a connection token was issued"),
        ]
    );
    assert_eq!(records[1].deed.target, "nothing");
    assert_eq!(records[2].deed.target, "ann-1 bob");

    let audited = |answer: Answer| {
        let events = answer.json()["Events"].as_array().unwrap().clone();
        events.iter().filter(|event| event["Kind"] == "Audited").count()
    };
    assert_eq!(audited(call(&api, "usual", "GET", "/v1/events", None).await), 0);
    assert_eq!(audited(call(&api, "everything", "GET", "/v1/events", None).await), 3);
    let asked = call(&api, "usual", "GET", "/v1/events?kind=Audited", None).await;
    assert_eq!(audited(asked), 0);
}

#[tokio::test]
async fn that_one_asks_for_what_is_of_another_owner_is_recorded() {
    let world = world();
    let (api, scribe) = world.api_noting();
    let delete = json!([
        { "SessionId": "bob-1", "Owner": "bob" }, { "SessionId": "bob-1", "Owner": "ann" },
        { "SessionId": "ann-1", "Owner": "ann" }, { "SessionId": "nothing", "Owner": "ann" },
    ]);
    let permissions = json!([{ "SessionId": "bob-1", "Owner": "bob", "PermissionsFile": "YQ==" }]);
    let create = json!([{ "Name": "new", "Owner": "bob", "Type": "VIRTUAL" }]);
    let pictures = json!([{ "SessionId": "ann-1" }, { "SessionId": "bob-1" }, { "SessionId": "nothing" }]);
    for (method, path, body) in [
        ("POST", "/getSessionScreenshots", Some(pictures)),
        ("PUT", "/sessionPermissions", Some(permissions.clone())),
        ("PUT", "/sessionPermissions", Some(permissions)),
        ("POST", "/createSessions", Some(create)),
        ("GET", "/sessionConnectionData/bob-1/ann", None),
        ("GET", "/sessionConnectionData/ann-1/bob", None),
        ("POST", "/deleteSessions", Some(delete)),
    ] {
        call(&api, "of-ann", method, path, body).await;
    }
    // Who may see all of them is told, and nothing is made of it.
    let others = json!([{ "SessionId": "bob-1", "Owner": "ann" }]);
    call(&api, "usual", "POST", "/deleteSessions", Some(others)).await;
    world.write_down(scribe).await;

    let told = |record: &AuditRecord| {
        let deed = &record.deed;
        format!("{}, {}, {}: {}", deed.actor, deed.action, deed.target, record.result)
    };
    let mut told: Vec<String> = world.audit().iter().map(told).collect();
    told.sort();
    let connection = "sessionConnectionData/{sessionId}/{user}";
    let mut expected = [
        "client of-ann, getSessionScreenshots, bob-1: refused: of another owner".to_owned(),
        "client of-ann, getSessionScreenshots, ann-1 bob-1 nothing: pictures were asked for".to_owned(),
        "client of-ann, sessionPermissions, bob-1: refused: of another owner (2 times)".to_owned(),
        "client of-ann, sessionPermissions, : 0 done, 1 refused (2 times)".to_owned(),
        "client of-ann, createSessions, (new, of bob): refused: of another owner".to_owned(),
        "client of-ann, createSessions, : 0 done, 1 refused".to_owned(),
        format!("client of-ann, {connection}, bob-1 ann: refused: of another owner"),
        format!(
            "client of-ann, {connection}, ann-1 bob: refused: the client may not do this: it may see and change the \
             sessions of one owner only"
        ),
        "client of-ann, deleteSessions, bob-1: refused: of another owner (2 times)".to_owned(),
        "client of-ann, deleteSessions, bob-1 ann-1 nothing: 1 done, 3 refused".to_owned(),
        "client usual, deleteSessions, bob-1: refused: OTHER_OWNER".to_owned(),
    ];
    expected.sort();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn what_is_noted_is_recorded_once_also_when_its_outcome_takes_long() {
    let world = world();
    world.loses_outcomes.store(true, std::sync::atomic::Ordering::Relaxed);
    let (api, scribe) = world.api_noting();
    let ended = CancellationToken::new();
    let writing = tokio::spawn(scribe.write(Arc::clone(&world), ended.clone()));
    for user in ["first", "second"] {
        call(&api, "of-ann", "GET", &format!("/sessionConnectionData/bob-1/{user}"), None).await;
        let target = format!("bob-1 {user}");
        let is_recorded = || world.audit().iter().any(|record| record.deed.target == target);
        tokio::time::timeout(Duration::from_mins(1), async {
            while !is_recorded() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }
    ended.cancel();
    writing.await.unwrap();
    assert_eq!(world.audit().len(), 2);
}
