//! Tokens against those who make their own: what RFC 8725 asks for, rule by
//! rule.
#![allow(clippy::unwrap_used)]

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::super::keyring::TokenAlgorithm;
use super::*;
use crate::broker::cluster::shared::context;
use crate::domain::fleet::Stamp;
use crate::domain::key::KeyPurpose;
use crate::domain::{Command, KeyId, LogIndex, Millis, Owner, SessionKind, SessionSpec};
use crate::secret::Secret;

/// A log with keys, and the keys themselves, as only their owner has them.
struct World {
    fleet: Fleet,
    cluster_key: ClusterKey,
    access: Keyring,
    connection: Keyring,
    private: Vec<Vec<u8>>,
    at: u64,
}

fn key(number: usize) -> KeyId {
    KeyId::new(&format!("key-{number}")).unwrap()
}

impl World {
    fn new(algorithm: TokenAlgorithm) -> Self {
        let mut world = Self {
            fleet: Fleet::default(),
            cluster_key: ClusterKey::new(&Secret::random()).unwrap(),
            access: Keyring::new(KeyPurpose::AccessToken),
            connection: Keyring::new(KeyPurpose::ConnectionToken),
            private: Vec::new(),
            at: jsonwebtoken::get_current_timestamp() * 1000,
        };
        for (purpose, algorithm) in
            [(KeyPurpose::AccessToken, algorithm), (KeyPurpose::ConnectionToken, TokenAlgorithm::Es256)]
        {
            let (id, sealed) = world.make(purpose, algorithm);
            world.apply(Command::InstallKey { id, purpose, sealed });
        }
        world
    }

    fn make(&mut self, purpose: KeyPurpose, algorithm: TokenAlgorithm) -> (KeyId, Vec<u8>) {
        let private = algorithm.generate().unwrap();
        let id = key(self.private.len());
        let sealed = self.cluster_key.seal(&context(&id, purpose), &private).unwrap();
        self.private.push(private.to_vec());
        (id, sealed)
    }

    fn apply(&mut self, command: Command) {
        self.at += 1;
        let stamp = Stamp { index: LogIndex(self.at), at: Timestamp(self.at) };
        self.fleet.advance(stamp);
        self.fleet.apply(stamp, command);
    }

    fn rotate(&mut self, algorithm: TokenAlgorithm, old_for: Millis) {
        let replaces = self.fleet.key(KeyPurpose::AccessToken).unwrap().id.clone();
        let (id, sealed) = self.make(KeyPurpose::AccessToken, algorithm);
        self.apply(Command::RotateKey { id, purpose: KeyPurpose::AccessToken, sealed, old_for, replaces });
    }

    fn token(&self) -> String {
        let client = ClientId::new("portal").unwrap();
        let (now, scopes) = (Timestamp(self.at), Scopes::USUAL);
        access_token(&self.access, &self.fleet, &self.cluster_key, &client, scopes, now, 60).unwrap()
    }

    fn verify(&self, token: &str) -> Result<Said, TokenRefusal> {
        verify_access_token(&self.access, &self.fleet, &self.cluster_key, token).map_err(refusal)
    }

    fn connection_token(&self, lifetime_seconds: u64) -> String {
        let session = crate::domain::Session {
            id: crate::domain::SessionId::new("s1").unwrap(),
            spec: SessionSpec::plain("work".to_owned(), Owner::new("ann").unwrap(), SessionKind::Virtual),
            requested_by: None,
            created_at: Timestamp(0),
            arrival: 0,
            changed_at: Timestamp(0),
            phase: crate::domain::Phase::Placing { deadline: Timestamp(0) },
            failed_on: Vec::new(),
            state_reason: None,
            connections: 0,
            last_disconnected_at: None,
        };
        let now = Timestamp(self.at);
        connection_token(&self.connection, &self.fleet, &self.cluster_key, &session, "bob", now, lifetime_seconds)
            .unwrap()
    }

    fn verify_connection(&self, token: &str) -> Result<ConnectionClaims, TokenRefusal> {
        verify_connection_token(&self.connection, &self.fleet, &self.cluster_key, token).map_err(refusal)
    }

    /// Signs whatever somebody wants with the access key, which nobody but the
    /// broker has: all but one thing about it is right.
    fn forged(&self, header: &Value, claims: &Value) -> String {
        let signing = EncodingKey::from_ec_der(&self.private[0]);
        forged(&signing, Algorithm::ES256, header, claims)
    }
}

fn forged(signing: &EncodingKey, algorithm: Algorithm, header: &Value, claims: &Value) -> String {
    let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", text(header), text(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), signing, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn refusal(fault: TokenFault) -> TokenRefusal {
    match fault {
        TokenFault::Refused(refusal) => refusal,
        TokenFault::Key(error) => panic!("{error}"),
    }
}

fn header() -> Value {
    json!({ "typ": "at+jwt", "alg": "ES256", "kid": "key-0" })
}

fn claims() -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({
        "iss": "berth", "aud": "berth-api", "sub": "portal", "client_id": "portal", "iat": now, "exp": now + 60,
        "jti": "j", "scope": "read",
    })
}

/// A value with one field changed, or taken away.
fn with(mut value: Value, name: &str, field: Value) -> Value {
    let fields = value.as_object_mut().unwrap();
    match field {
        Value::Null => drop(fields.remove(name)),
        field => drop(fields.insert(name.to_owned(), field)),
    }
    value
}

#[test]
fn a_good_token_is_good_with_each_algorithm_and_found_again() {
    for algorithm in [TokenAlgorithm::Es256, TokenAlgorithm::EdDsa, TokenAlgorithm::Rs256] {
        let world = World::new(algorithm);
        let token = world.token();
        let said = world.verify(&token).unwrap();
        assert_eq!(&*said.client_id, "portal");
        assert_eq!(world.verify(&token), Ok(said));
    }
    let world = World::new(TokenAlgorithm::Es256);
    assert!(world.verify(&world.forged(&header(), &claims())).is_ok(), "what the forgeries begin with is good");
}

#[test]
fn no_algorithm_but_that_of_the_key_is_taken() {
    let world = World::new(TokenAlgorithm::Es256);
    let (plain, claims) = (header(), claims());
    let unsigned = |alg: &str| {
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", text(&with(plain.clone(), "alg", json!(alg))), text(&claims))
    };
    for alg in ["none", "None", "nOnE", "NONE", "", "ES256", "HS256", "RS256"] {
        assert_eq!(world.verify(&unsigned(alg)), Err(TokenRefusal::Malformed), "{alg}");
    }
    // Confusion of keys: the public key of ours as a secret that is shared.
    let public = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        &world.private[0],
    )
    .unwrap();
    let public = aws_lc_rs::signature::KeyPair::public_key(&public).as_ref().to_vec();
    for secret in [public.as_slice(), b"", b"secret"] {
        let signing = EncodingKey::from_secret(secret);
        for alg in ["HS256", "ES256"] {
            let header = with(plain.clone(), "alg", json!(alg));
            assert_eq!(
                world.verify(&forged(&signing, Algorithm::HS256, &header, &claims)),
                Err(TokenRefusal::Malformed),
                "{alg}"
            );
        }
    }
    // A key of somebody else, under the id of ours.
    let stranger = EncodingKey::from_ec_der(&TokenAlgorithm::Es256.generate().unwrap());
    let token = forged(&stranger, Algorithm::ES256, &plain, &claims);
    assert_eq!(world.verify(&token), Err(TokenRefusal::Malformed));
    // An algorithm that is good in itself, but not that of the key.
    let edwards = EncodingKey::from_ed_der(&TokenAlgorithm::EdDsa.generate().unwrap());
    let token = forged(&edwards, Algorithm::EdDSA, &with(plain, "alg", json!("EdDSA")), &claims);
    assert_eq!(world.verify(&token), Err(TokenRefusal::Malformed));
}

#[test]
fn a_header_holds_what_it_must_and_nothing_else() {
    let world = World::new(TokenAlgorithm::Es256);
    let changes = [
        ("typ", json!("JWT")),
        ("typ", json!("AT+JWT")),
        ("typ", Value::Null),
        ("typ", json!(["at+jwt"])),
        ("kid", json!("key-1")),
        ("kid", json!("../../key-0")),
        ("kid", json!("")),
        ("kid", Value::Null),
        ("alg", Value::Null),
        ("crit", json!(["exp"])),
        ("jku", json!("https://evil.example/jwks.json")),
        ("x5u", json!("https://evil.example/cert.pem")),
        ("jwk", json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" })),
        ("x5c", json!(["AAAA"])),
        ("zip", json!("DEF")),
        ("b64", json!(false)),
    ];
    for (name, field) in changes {
        let token = world.forged(&with(header(), name, field.clone()), &claims());
        assert_eq!(world.verify(&token), Err(TokenRefusal::Malformed), "{name} {field}");
    }
}

#[test]
fn claims_are_those_of_this_broker_for_this_api_and_of_this_time() {
    let world = World::new(TokenAlgorithm::Es256);
    let now = jsonwebtoken::get_current_timestamp();
    let malformed = [
        ("iss", json!("other")),
        ("iss", json!(["berth", "other"])),
        ("iss", Value::Null),
        ("aud", json!("berth-session")),
        ("aud", json!(["other"])),
        ("aud", Value::Null),
        ("sub", json!("somebody else")),
        ("sub", Value::Null),
        ("client_id", json!("somebody else")),
        ("client_id", json!(7)),
        ("iat", json!(now + 3_600)),
        ("iat", json!("now")),
        ("nbf", json!(now + 3_600)),
        ("exp", json!("never")),
        ("exp", json!(-1)),
        ("exp", Value::Null),
    ];
    for (name, field) in malformed {
        let token = world.forged(&header(), &with(claims(), name, field.clone()));
        let refused = world.verify(&token);
        assert_eq!(refused, Err(TokenRefusal::Malformed), "{name} {field}");
    }
    let expired = world.forged(&header(), &with(claims(), "exp", json!(now - 1)));
    assert_eq!(world.verify(&expired), Err(TokenRefusal::Expired));
}

#[test]
fn texts_that_are_no_tokens_are_refused() {
    let world = World::new(TokenAlgorithm::Es256);
    let token = world.token();
    let (head, rest) = token.split_once('.').unwrap();
    let texts = [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        head.to_owned(),
        format!("{head}."),
        format!("{head}.{rest}."),
        format!("{head}.{rest}.{rest}"),
        format!("{token}="),
        format!(" {token}"),
        format!("{head}\n.{rest}"),
        token.to_uppercase(),
        "\u{0}".repeat(10),
        "🦀.🦀.🦀".to_owned(),
        format!("{head}.{}", "A".repeat(TOKEN_BYTES_MAX)),
        "A".repeat(1 << 20),
    ];
    for text in texts {
        assert_eq!(world.verify(&text), Err(TokenRefusal::Malformed), "{text:.40}");
    }
    // Each bit of it counts.
    for at in (0..token.len()).step_by(7) {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(world.verify(&changed).is_err(), "{at}");
    }
}

#[test]
fn many_unknown_keys_cost_no_more_than_one_and_leave_nothing() {
    let world = World::new(TokenAlgorithm::Es256);
    for number in 0..5_000 {
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = with(header(), "kid", json!(format!("unknown-{number}")));
        let token = format!("{}.{}.AAAA", text(&header), text(&claims()));
        assert_eq!(world.verify(&token), Err(TokenRefusal::Malformed));
    }
    let ring = world.access.ring(&world.fleet, &world.cluster_key).unwrap();
    assert!(ring.good(Timestamp(0)).all(|key| key.checked.is_empty()), "what is refused is not kept");
}

#[test]
fn a_token_of_one_kind_is_none_of_the_other() {
    let world = World::new(TokenAlgorithm::Es256);
    let connection = world.connection_token(60);
    assert_eq!(world.verify_connection(&connection).unwrap().dcv_session_user, "bob");
    assert_eq!(world.verify(&connection), Err(TokenRefusal::Malformed));
    assert_eq!(world.verify_connection(&world.token()), Err(TokenRefusal::Malformed));
    // Not even with the key of the one kind under the name of the other.
    let token = world.forged(&json!({ "typ": "JWT", "alg": "ES256", "kid": "key-1" }), &claims());
    assert_eq!(world.verify_connection(&token), Err(TokenRefusal::Malformed));
}

#[test]
fn what_an_old_key_signed_is_good_for_a_while_and_not_a_moment_longer() {
    let mut world = World::new(TokenAlgorithm::Es256);
    let old = world.token();
    world.verify(&old).unwrap();
    world.rotate(TokenAlgorithm::EdDsa, Millis(3_600_000));
    let new = world.token();
    assert!(world.verify(&old).is_ok(), "found good before");
    assert!(world.verify(&new).is_ok());
    let fresh = Keyring::new(KeyPurpose::AccessToken);
    let elsewhere = std::mem::replace(&mut world.access, fresh);
    assert!(world.verify(&old).is_ok() && world.verify(&new).is_ok(), "on another replica, or after a restart");
    world.access = elsewhere;
    world.rotate(TokenAlgorithm::Rs256, Millis(0));
    assert!(world.verify(&old).is_ok(), "the key before is still good");
    assert_eq!(world.verify(&new), Err(TokenRefusal::Malformed), "this one ended at once");
    assert!(world.verify(&world.token()).is_ok());
    // The clock goes by the time of the log: a key that was good until yesterday.
    world.at -= 86_400_000;
    let mut past = World { at: world.at - 86_400_000, ..World::new(TokenAlgorithm::Es256) };
    let token = past.token();
    past.rotate(TokenAlgorithm::Es256, Millis(1_000));
    assert_eq!(past.verify(&token), Err(TokenRefusal::Malformed));
}

#[test]
fn a_header_names_an_algorithm_as_the_standard_does() {
    let world = World::new(TokenAlgorithm::Rs256);
    let header =
        Header { kid: Some("key-0".to_owned()), typ: Some("at+jwt".to_owned()), ..Header::new(Algorithm::RS384) };
    let signing = EncodingKey::from_secret(b"x");
    assert!(jsonwebtoken::encode(&header, &claims(), &signing).is_err(), "a key of one kind signs nothing of another");
    let token = world.token();
    let heading = Heading::of(&token).unwrap();
    assert_eq!((heading.alg.as_str(), heading.typ.as_str(), heading.kid.as_str()), ("RS256", "at+jwt", "key-0"));
}
