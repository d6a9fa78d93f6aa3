//! Tokens of other servers against those who make their own.
#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::super::keyring::TokenAlgorithm;
use super::*;
use crate::domain::auth_server::SignatureAlgorithm;

/// A server with one key.
struct Issuer {
    private: Vec<u8>,
    jwk: Value,
}

impl Issuer {
    fn new(kid: &str) -> Self {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
        let private = TokenAlgorithm::Es256.generate().unwrap().to_vec();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &private).unwrap();
        let point = pair.public_key().as_ref();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "kid": kid, "x": text(&point[1..33]), "y": text(&point[33..]),
        });
        Self { private, jwk }
    }

    fn token(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &EncodingKey::from_ec_der(&self.private)).unwrap()
    }
}

fn header(kid: Option<&str>) -> Header {
    Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::ES256) }
}

fn claims() -> Value {
    let exp = jsonwebtoken::get_current_timestamp() + 300;
    json!({ "exp": exp, "client_id": "portal", "iss": "https://auth.example", "aud": "desks", "scope": "a b" })
}

fn settings() -> AuthServer {
    AuthServer {
        url: "https://auth.example/.well-known/jwks.json".to_owned(),
        algorithms: Vec::new(),
        issuer: None,
        audience: None,
        token_type: None,
        scope: None,
        keys_pem: None,
        ca_pem: None,
    }
}

fn server(settings: AuthServer, jwks: &[&Value]) -> Server {
    // The first one in the process counts; they are all the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(Arc::new(settings), folder.path());
    let set = json!({ "keys": jwks }).to_string();
    if let Ok(keys) = Keys::of_json(set.as_bytes(), &server.settings.algorithms) {
        server.keys.store(Some(Arc::new(keys)));
    }
    server
}

/// The name of a client of the server.
fn who(client: &str) -> String {
    format!("{client}@{}", server(settings(), &[]).name)
}

fn verify(server: &Server, token: &str) -> Result<String, Refusal> {
    let heading = Heading::of(token).ok_or(Refusal::Malformed)?;
    server.verify(&heading, token, jsonwebtoken::get_current_timestamp()).map(|said| said.client_id.to_string())
}

#[test]
fn nothing_is_demanded_that_nobody_asked_for() {
    let issuer = Issuer::new("k");
    let server = server(settings(), &[&issuer.jwk]);
    for header in [header(Some("k")), header(None), Header { typ: Some("at+jwt".to_owned()), ..header(Some("k")) }] {
        let token = issuer.token(&header, &claims());
        assert_eq!(verify(&server, &token).as_deref(), Ok(who("portal").as_str()));
        assert_eq!(verify(&server, &token).as_deref(), Ok(who("portal").as_str()), "found good before");
    }
    for (name, value) in [("azp", "p"), ("appid", "p"), ("cid", "p")] {
        let exp = jsonwebtoken::get_current_timestamp() + 300;
        let token = issuer.token(&header(Some("k")), &json!({ "exp": exp, name: value }));
        assert_eq!(verify(&server, &token).as_deref(), Ok(who("p").as_str()), "{name}");
    }
    let exp = jsonwebtoken::get_current_timestamp() + 300;
    let token = issuer
        .token(&header(Some("k")), &serde_json::from_str(&format!("{{\"exp\": {exp}.5, \"sub\": \"p\"}}")).unwrap());
    assert_eq!(verify(&server, &token).as_deref(), Ok(who("sub:p").as_str()), "a user's name is no client's");
    for (name, value) in [("token_use", json!("id")), ("nonce", json!("n")), ("at_hash", json!("h"))] {
        let token = issuer.token(&header(Some("k")), &json!({ "exp": exp, "client_id": "p", name: value }));
        assert_eq!(verify(&server, &token), Err(Refusal::Malformed), "{name}: who logged in may call nothing by that");
    }
}

#[test]
fn what_is_demanded_must_be_there() {
    let issuer = Issuer::new("k");
    let demands: [(AuthServer, &str, Value); 4] = [
        (AuthServer { issuer: Some("https://auth.example".to_owned()), ..settings() }, "iss", json!("https://evil")),
        (AuthServer { audience: Some("desks".to_owned()), ..settings() }, "aud", json!("others")),
        (AuthServer { scope: Some("b".to_owned()), ..settings() }, "scope", json!("a")),
        (AuthServer { scope: Some("b".to_owned()), ..settings() }, "scope", json!("ab bb")),
    ];
    for (demanding, name, other) in demands {
        let server = server(demanding, &[&issuer.jwk]);
        let token = |claims: &Value| issuer.token(&header(Some("k")), claims);
        assert!(verify(&server, &token(&claims())).is_ok(), "{name}");
        let mut wrong = claims();
        wrong[name] = other;
        assert_eq!(verify(&server, &token(&wrong)), Err(Refusal::Malformed), "{name}");
        wrong.as_object_mut().unwrap().remove(name);
        assert_eq!(verify(&server, &token(&wrong)), Err(Refusal::Malformed), "without {name}");
    }
    let scoped = server(AuthServer { scope: Some("b".to_owned()), ..settings() }, &[&issuer.jwk]);
    let mut list = claims();
    list.as_object_mut().unwrap().remove("scope");
    list["scp"] = json!(["x", "b"]);
    assert!(verify(&scoped, &issuer.token(&header(Some("k")), &list)).is_ok());
    let typed = server(AuthServer { token_type: Some("at+jwt".to_owned()), ..settings() }, &[&issuer.jwk]);
    let typ = |typ: Option<&str>| Header { typ: typ.map(str::to_owned), ..header(Some("k")) };
    assert!(verify(&typed, &issuer.token(&typ(Some("at+jwt")), &claims())).is_ok());
    assert_eq!(verify(&typed, &issuer.token(&typ(Some("JWT")), &claims())), Err(Refusal::Malformed));
    assert_eq!(verify(&typed, &issuer.token(&typ(None), &claims())), Err(Refusal::Malformed));
}

#[test]
fn a_signature_is_of_the_key_that_it_names_and_of_its_algorithm() {
    let (issuer, stranger) = (Issuer::new("k"), Issuer::new("k"));
    let server_of = |settings| server(settings, &[&issuer.jwk]);
    let ours = server_of(settings());
    let forged = stranger.token(&header(Some("k")), &claims());
    assert_eq!(verify(&ours, &forged), Err(Refusal::UnknownKey), "another key may have come under that name");
    let unknown = issuer.token(&header(Some("another")), &claims());
    assert_eq!(verify(&ours, &unknown), Err(Refusal::UnknownKey));
    for alg in ["none", "HS256", "HS512", "ES512", "es256", ""] {
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let token = format!("{}.{}.", text(&json!({ "alg": alg, "kid": "k" })), text(&claims()));
        assert_eq!(verify(&ours, &token), Err(Refusal::Malformed), "{alg}");
    }
    let critical = |name: &str| {
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.AA", text(&json!({ "alg": "ES256", "kid": "k", "crit": [name] })), text(&claims()))
    };
    assert_eq!(verify(&ours, &critical("exp")), Err(Refusal::Malformed));
    let narrow = server_of(AuthServer { algorithms: vec![SignatureAlgorithm::RS256], ..settings() });
    let good = issuer.token(&header(Some("k")), &claims());
    assert_eq!(verify(&narrow, &good), Err(Refusal::UnknownKey), "the operator allows another algorithm only");
    assert_eq!(verify(&server(settings(), &[]), &good), Err(Refusal::UnknownKey), "no keys yet");
}

#[tokio::test]
async fn who_comes_while_keys_are_fetched_may_wait_for_them() {
    let server = server(settings(), &[]);
    assert!(server.may_learn(), "nobody asked yet");
    *server.asked_at.lock().unwrap() = Some(Instant::now());
    assert!(!server.may_learn(), "somebody asked a moment ago");
    let asking = server.asking.lock().await;
    assert!(server.may_learn(), "somebody is asking");
    drop(asking);
    let issuer = Issuer::new("k");
    let given = AuthServer { keys_pem: Some("keys that are given".to_owned()), ..settings() };
    let given = self::server(given, &[&issuer.jwk]);
    let _asking = given.asking.lock().await;
    assert!(!given.may_learn(), "keys that are given are never fetched");
}

#[test]
fn only_public_keys_for_signatures_count() {
    let issuer = Issuer::new("k");
    let with = |name: &str, value: Value| {
        let mut jwk = issuer.jwk.clone();
        jwk[name] = value;
        jwk
    };
    let set =
        |jwks: &[Value]| Keys::of_json(json!({ "keys": jwks }).to_string().as_bytes(), &[]).map(|keys| keys.len());
    assert_eq!(set(&[with("use", json!("enc"))]), Ok(0));
    assert_eq!(set(&[with("alg", json!("ES384"))]), Ok(0));
    assert_eq!(set(&[with("crv", json!("P-521"))]), Ok(0));
    assert_eq!(set(&[json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "s" })]), Ok(0));
    assert_eq!(set(&[json!({ "kty": "new", "kid": "s" }), json!(7), issuer.jwk.clone()]), Ok(1));
    assert!(matches!(Keys::of_json(b"[]", &[]), Err(KeysError::Json(_))));
    assert!(matches!(Keys::of_json(b"{}", &[]), Err(KeysError::Json(_))));
    assert!(matches!(Keys::of_pem("nonsense", &[]), Err(KeysError::Pem)));
}

#[test]
fn times_are_looked_at_with_a_leeway() {
    let issuer = Issuer::new("k");
    let server = server(settings(), &[&issuer.jwk]);
    let now = jsonwebtoken::get_current_timestamp();
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        issuer.token(&header(Some("k")), &claims)
    };
    assert!(verify(&server, &with("exp", json!(now - 30))).is_ok());
    assert_eq!(verify(&server, &with("exp", json!(now - 90))), Err(Refusal::Expired));
    assert_eq!(verify(&server, &with("nbf", json!(now + 90))), Err(Refusal::Malformed));
    let mut forever = claims();
    forever.as_object_mut().unwrap().remove("exp");
    assert_eq!(verify(&server, &issuer.token(&header(Some("k")), &forever)), Err(Refusal::Malformed));
}
