//! What operators and installers do on the command line: clients and their
//! secrets, keys, statements, authorization servers, names of servers, and the
//! audit, with our commands and with those of the original.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::api::{Api, Credentials, http_client};
use common::broker::Broker;
use common::until;
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What installers of the original do, word by word: they wait for the text
/// without a token, register, and read the two lines.
const INSTALLER: &str = r#"
set -eu
until curl -s --cacert "$CA" "$URL/sessionConnectionData/aSession/aOwner" | grep -q '{"error":"No authorization header"}'
do
  sleep 0.2
done
printed=$("$BERTH" register-api-client -cn installer --data-folder "$DATA")
client_id=$(echo "$printed" | sed -n 's/^client-id: //p')
client_password=$(echo "$printed" | sed -n 's/^client-password: //p')
test "$(echo "$printed" | wc -l)" = 2
"$BERTH" describe-api-clients --data-folder "$DATA" > "$OUT"
head -n 1 "$OUT" | grep -qx 'Api clients'
tail -n +2 "$OUT" | python3 -c "
import json, sys
[client] = json.load(sys.stdin)
assert client == {'name': 'installer', 'id': '$client_id', 'active': True}, client
"
token=$(curl -s --cacert "$CA" -u "$client_id:$client_password" -X POST -H 'Content-Type: application/x-www-form-urlencoded' \
  "$URL/oauth2/token?grant_type=client_credentials" | python3 -c 'import json, sys; print(json.load(sys.stdin)["access_token"])')
curl -s --fail --cacert "$CA" -H "Authorization: Bearer $token" -X POST "$URL/describeSessions" | grep -q '"Sessions":\[\]'
echo installed
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_installer_of_the_original_works_word_by_word() {
    let broker = Broker::start().await;
    let out = broker.folder.path().join("clients.txt");
    let ran = Command::new("sh")
        .args(["-c", INSTALLER])
        .env("BERTH", env!("CARGO_BIN_EXE_berth"))
        .env("URL", broker.url())
        .env("CA", broker.ca_path())
        .env("DATA", broker.data_folder())
        .env("OUT", out)
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && stdout.trim() == "installed", "{stdout}{stderr}");
}

async fn token_status(broker: &Broker, credentials: &Credentials) -> StatusCode {
    let client = http_client(&broker.ca_path()).build().unwrap();
    let url = format!("{}/oauth2/token?grant_type=client_credentials", broker.url());
    client.post(url).basic_auth(&credentials.id, Some(&credentials.secret)).send().await.unwrap().status()
}

fn credentials(printed: &str) -> Credentials {
    let value = |key: &str| printed.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
    Credentials { id: value("client-id: "), secret: value("client-password: ") }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_secrets_are_good_while_one_is_replaced_and_none_after_the_end() {
    let broker = Broker::start().await;
    let first = broker.register("portal").await;
    let api = Api::connect(&broker.url(), &broker.ca_path(), &first).await;
    let rotate = |keep: &'static str| {
        let (broker, id) = (&broker, first.id.clone());
        async move {
            let arguments = ["rotate", "--client-id", &id, "--keep-old-seconds", keep];
            credentials(&broker.clients_command(&arguments).await.unwrap())
        }
    };
    let second = rotate("3600").await;
    assert_eq!(second.id, first.id);
    assert_ne!(second.secret, first.secret);
    for credentials in [&first, &second] {
        assert_eq!(token_status(&broker, credentials).await, StatusCode::OK);
    }
    let third = rotate("0").await;
    for (credentials, status) in
        [(&first, StatusCode::UNAUTHORIZED), (&second, StatusCode::UNAUTHORIZED), (&third, StatusCode::OK)]
    {
        assert_eq!(token_status(&broker, credentials).await, status);
    }
    let (status, _) = api.send(Method::POST, "/describeSessions", &json!({})).await;
    assert_eq!(status, StatusCode::OK, "tokens outlive the secret that they were asked for with");

    let printed = broker.operate(&["unregister-api-client", "--client-id", &first.id]).await.unwrap();
    assert_eq!(printed.trim(), format!("Client {} unregistered.", first.id));
    assert_eq!(token_status(&broker, &third).await, StatusCode::UNAUTHORIZED);
    let (status, answer) = api.send(Method::POST, "/describeSessions", &json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{answer}");
    let unknown = broker.clients_command(&["rotate", "--client-id", "7c5b6f10-0000-4000-8000-000000000000"]).await;
    assert!(unknown.unwrap_err().contains("there is no client 7c5b6f10"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_the_scopes_that_it_was_given() {
    let broker = Broker::start().await;
    let register = |arguments: &'static [&'static str]| {
        let broker = &broker;
        async move {
            let arguments = [&["register", "--client-name", "narrow"], arguments].concat();
            broker.clients_command(&arguments).await.map(|printed| credentials(&printed))
        }
    };
    let reader = register(&["--scopes", "read"]).await.unwrap();
    let api = Api::connect(&broker.url(), &broker.ca_path(), &reader).await;
    let create = json!([{ "Name": "a", "Owner": "ann", "Type": "VIRTUAL" }]);
    assert_eq!(api.send(Method::POST, "/describeSessions", &json!({})).await.0, StatusCode::OK);
    let (status, answer) = api.send(Method::POST, "/createSessions", &create).await;
    assert_eq!(
        (status, answer["error"].as_str().unwrap()),
        (StatusCode::FORBIDDEN, "the client may not do this: it lacks the scope sessions")
    );
    let grant = ["grant", "--client-id", &reader.id, "--scopes", "read,sessions", "--owner", "ann"];
    broker.clients_command(&grant).await.unwrap();
    assert_eq!(api.send(Method::POST, "/createSessions", &create).await.0, StatusCode::OK, "with the same token");
    let listed: Value = serde_json::from_str(&broker.clients_command(&["list", "--json"]).await.unwrap()).unwrap();
    assert_eq!((&listed[0]["scopes"], &listed[0]["owner"]), (&json!("read sessions"), &json!("ann")));

    let refused = register(&["--scopes", "read,everything"]).await.unwrap_err();
    assert!(
        refused.contains("there is no scope \"everything\"; there are read, sessions, servers, admin"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_outlive_a_key_as_long_as_is_said_and_a_restart() {
    let mut broker = Broker::start_to_be_restarted().await;
    let credentials = broker.register("portal").await;
    let connect = async |broker: &Broker| Api::connect(&broker.url(), &broker.ca_path(), &credentials).await;
    let ask = |api: Api| async move { api.send(Method::POST, "/describeSessions", &json!({})).await.0 };
    let old = connect(&broker).await;
    assert_eq!(broker.operate(&["keys", "renew"]).await.unwrap().trim(), "Keys renewed.");
    let new = connect(&broker).await;
    assert_ne!(kid(&old.token), kid(&new.token));
    for api in [&old, &new] {
        assert_eq!(ask(api.clone()).await, StatusCode::OK);
    }
    broker.restart(Signal::KILL).await;
    for api in [&old, &new] {
        assert_eq!(ask(api.clone()).await, StatusCode::OK, "after a restart");
    }
    // As in the original, that ends all tokens before.
    let printed = broker.operate(&["renew-auth-server-api-key"]).await.unwrap();
    assert_eq!(printed.trim(), "Keys renewed.");
    for api in [old, new] {
        assert_eq!(ask(api).await, StatusCode::UNAUTHORIZED);
    }
}

fn kid(token: &str) -> String {
    use base64::Engine as _;
    let header = token.split('.').next().unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).unwrap();
    serde_json::from_slice::<Value>(&header).unwrap()["kid"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_servers_and_names_are_listed_as_in_the_original() {
    let broker = Broker::start().await;
    let operate = async |arguments: &[&str]| broker.operate(arguments).await.unwrap();

    assert_eq!(operate(&["describe-software-statements"]).await, "Software Statements\n[]", "none is good by default");
    let printed = operate(&["generate-software-statement"]).await;
    let statement = printed.trim().strip_prefix("software-statement: ").unwrap().to_owned();
    let list = operate(&["describe-software-statements"]).await;
    let listed: Value = serde_json::from_str(list.strip_prefix("Software Statements\n").unwrap()).unwrap();
    assert_eq!((&listed[0]["software-statement"], &listed[0]["is-active"]), (&json!(statement), &json!("true")));
    let issued_at = listed[0]["issued-at"].as_str().unwrap();
    assert!(issued_at.len() == "2026.11.21 10:15:31 +0000".len() && issued_at.ends_with(" +0000"), "{issued_at}");
    operate(&["deactivate-software-statement", "--software-statement", &statement]).await;
    let list = operate(&["describe-software-statements"]).await;
    assert!(list.contains("\"is-active\": \"false\""), "{list}");
    let other = broker.operate(&["deactivate-software-statement", "--software-statement", "bm9uZQ=="]).await;
    assert!(other.unwrap_err().contains("no software statement of this cluster"));
    assert_eq!(operate(&["describe-agent-clients"]).await, "Session manager agent clients\n[]");

    let url = "https://auth.example/pool/.well-known/jwks.json";
    for _ in 0..2 {
        assert_eq!(operate(&["register-auth-server", "--url", url]).await, "Jwk url registered.");
    }
    assert_eq!(operate(&["list-auth-servers"]).await, format!("Urls: [ \"{url}\" ]"));
    for wrong in ["http://auth.example/.well-known/jwks.json", "https://auth.example/keys"] {
        let refused = broker.operate(&["register-auth-server", "--url", wrong]).await.unwrap_err();
        assert!(refused.contains("the URL must"), "{refused}");
    }
    assert_eq!(operate(&["unregister-auth-server", "--url", url]).await, format!("Jwk url{url} unregistered"));
    assert_eq!(operate(&["list-auth-servers"]).await, "Urls: [  ]");

    let file = broker.folder.path().join("mappings.json");
    let mappings = json!([
        { "ServerIdType": "Ip", "ServerId": "10.0.0.7", "DnsNames": { "InternalDnsName": "vdi7.example" } },
        {
            "ServerIdType": "Host.Aws.Ec2InstanceId", "ServerId": "i-1",
            "DnsNames": { "InternalDnsName": "vdi9.example", "ExternalDnsName": "x.example" },
        },
    ]);
    std::fs::write(&file, mappings.to_string()).unwrap();
    operate(&["register-server-dns-mappings", "--file-path", file.to_str().unwrap()]).await;
    let listed: Value = serde_json::from_str(&operate(&["describe-server-dns-mappings"]).await).unwrap();
    let expected = json!([
        { "serverIdType": "Ip", "serverId": "10.0.0.7", "dnsNames": { "internalDnsName": "vdi7.example" } },
        {
            "serverIdType": "Host.Aws.Ec2InstanceId", "serverId": "i-1",
            "dnsNames": { "internalDnsName": "vdi9.example", "externalDnsName": "x.example" },
        },
    ]);
    assert_eq!(listed, expected);
    std::fs::write(&file, mappings.to_string().replace("\"Ip\"", "\"Name\"")).unwrap();
    let refused = broker.operate(&["server-names", "register", "--file-path", file.to_str().unwrap()]).await;
    assert!(refused.unwrap_err().contains("mapping 0 has the ServerIdType \"Name\"; there are Ip, Id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_tells_what_was_done_and_that_nothing_of_it_was_changed() {
    let broker = Broker::start().await;
    let credentials = broker.register("portal").await;
    let wrong = Credentials { secret: "wrong".to_owned(), ..credentials.clone() };
    assert_eq!(token_status(&broker, &wrong).await, StatusCode::UNAUTHORIZED);
    let api = Api::connect(&broker.url(), &broker.ca_path(), &credentials).await;
    api.send(Method::POST, "/createSessions", &json!([{ "Name": "a", "Owner": "ann", "Type": "VIRTUAL" }])).await;

    let file = broker.folder.path().join("audit.jsonl");
    let export = ["audit", "export", "--file", file.to_str().unwrap()];
    let records = until("the deeds in the audit", || async {
        broker.operate(&export).await.unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // What changes nothing is recorded a little later.
        records.iter().any(|record| record["result"] == "an access token was issued").then_some(records)
    })
    .await;
    let find = |action: &str, result: &str| {
        let is = |record: &&Value| {
            record["action"] == action && record["result"].as_str().is_some_and(|found| found.starts_with(result))
        };
        records.iter().find(is).unwrap_or_else(|| panic!("no {action}, {result} in {records:#?}"))
    };
    let registered = find("register-api-client", "done");
    assert_eq!(
        (&registered["actor"], &registered["from"]),
        (&json!("operator"), &json!(format!("local uid {}", rustix::process::getuid().as_raw())))
    );
    assert!(registered["target"].as_str().unwrap().starts_with(&credentials.id));
    assert_eq!(find("oauth2/token", "refused: unknown client or wrong secret")["actor"], "unknown");
    let who = json!(format!("client {}", credentials.id));
    assert_eq!(find("oauth2/token", "an access token was issued")["actor"], who);
    assert_eq!(find("createSessions", "refused: NO_SERVER")["actor"], who);

    let verified = broker.operate(&["audit", "verify"]).await.unwrap();
    assert!(verified.contains("are as they were written"), "{verified}");
    let verify = ["audit", "verify", file.to_str().unwrap()];
    assert!(broker.operate(&verify).await.unwrap().starts_with(&format!("{} records, 1 to", records.len())));
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"operator\"", "\"unknown\"", 1)).unwrap();
    assert!(broker.operate(&verify).await.unwrap_err().contains("was changed"));
    let without: Vec<&str> = text.lines().enumerate().filter(|(place, _)| *place != 1).map(|(_, line)| line).collect();
    std::fs::write(&file, without.join("\n")).unwrap();
    assert!(broker.operate(&verify).await.unwrap_err().contains("record 3 does not follow record 1"));
}
