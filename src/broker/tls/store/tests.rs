//! Stores that keytool and openssl made; `tests/fixtures/tls/README.md` says how.

use std::path::Path;

use rustls::pki_types::pem::PemObject;

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn pem(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(&fixture(name)).expect(name)
}

fn changeit() -> Secret {
    Secret::new("changeit".to_owned())
}

fn own(name: &str) -> Result<OwnKey, StoreError> {
    own_key(&fixture(name), Some(&changeit()))
}

#[test]
fn the_key_of_each_kind_of_store_comes_with_its_chain() {
    let expected = PrivateKeyDer::from_pem_slice(&fixture("one.key")).expect("a key");
    for name in ["one.jks", "one.p12", "openssl.p12"] {
        let (chain, key) = own(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(chain, [pem("one.pem"), pem("ca.pem")], "{name}");
        let provider = aws_lc_rs::default_provider();
        CertifiedKey::from_der(chain, key.clone_key(), &provider).expect("they fit");
        // Tools write the attributes of PKCS #8 differently; the key within is the same.
        let private = |key: &PrivateKeyDer<'_>| key.secret_der()[36..68].to_vec();
        assert_eq!(private(&key), private(&expected), "{name}");
    }
    let (chain, key) = own("legacy.p12").expect("3DES and RC2 are read");
    assert_eq!(chain.len(), 2);
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).expect("they fit");
    let (chain, _) = own_key(&fixture("open.p12"), None).expect("it has no password");
    assert_eq!(chain, [pem("one.pem")]);
}

#[test]
fn a_wrong_password_is_told_from_none_and_from_another_one_of_the_key() {
    let wrong = Secret::new("changeit2".to_owned());
    for name in ["one.jks", "one.p12", "openssl.p12", "legacy.p12", "trust.jks", "trust.p12"] {
        let bytes = fixture(name);
        assert_eq!(own_key(&bytes, Some(&wrong)).expect_err("wrong"), StoreError::Password, "{name}");
        assert_eq!(trusted(&bytes, None).expect_err("none"), StoreError::NoPassword, "{name}");
    }
    assert_eq!(own("keypass.jks").expect_err("refused"), StoreError::KeyPassword { alias: "one".to_owned() });
}

#[test]
fn a_store_must_hold_one_key() {
    for name in ["several.jks", "several.p12"] {
        let StoreError::SeveralKeys { mut aliases } = own(name).expect_err("two") else { panic!("{name}") };
        aliases.sort();
        assert_eq!(aliases, ["one", "two"], "{name}");
    }
    for name in ["trust.jks", "trust.p12", "openssl-trust.p12"] {
        assert_eq!(own(name).expect_err("none"), StoreError::NoKey, "{name}");
    }
}

#[test]
fn trust_stores_give_their_authorities_and_key_stores_none() {
    for name in ["trust.jks", "trust.p12", "openssl-trust.p12"] {
        assert_eq!(trusted(&fixture(name), Some(&changeit())), Ok(vec![pem("ca.pem")]), "{name}");
    }
    assert_eq!(trusted(&fixture("one.jks"), Some(&changeit())), Err(StoreError::NothingTrusted));
}

#[test]
fn other_files_are_no_stores() {
    for (bytes, error) in [
        (&b"-----BEGIN CERTIFICATE-----"[..], StoreError::Unknown),
        (b"", StoreError::Unknown),
        (b"\x30", StoreError::Unknown),
        (&fixture("one.jceks"), StoreError::Jceks),
    ] {
        assert_eq!(own_key(bytes, Some(&changeit())).expect_err("no store"), error);
    }
    assert!(is_store(&fixture("one.jceks")) && is_store(&fixture("one.p12")) && !is_store(&fixture("ca.pem")));
    let certificate = pem("one.pem");
    assert!(matches!(own_key(&certificate, None), Err(StoreError::Damaged(_))));
}

/// Whatever is done to a store, it is refused or gives what it gave; it never
/// asks for memory or time that the file's length does not bound.
#[test]
fn a_damaged_store_is_refused() {
    for name in ["one.jks", "openssl-trust.p12"] {
        let whole = fixture(name);
        for length in 0..whole.len() {
            assert!(trusted(&whole[..length], Some(&changeit())).is_err(), "{name} cut at {length}");
        }
        let given = trusted(&whole, Some(&changeit()));
        // Each step derives keys; a part of the places is enough.
        for place in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x41;
            let opened = trusted(&damaged, Some(&changeit()));
            assert!(opened.is_err() || opened == given, "{name} with another byte at {place}");
        }
    }
}

/// The seal only keeps strangers out. What a store claims within is not
/// believed either.
#[test]
fn lengths_in_a_sealed_store_reserve_nothing() {
    let whole = fixture("one.jks");
    let body = &whole[..whole.len() - 20];
    // Entries, length of the key, certificates of the chain: the alias `one` has three bytes.
    for place in [8, 29] {
        let mut body = body.to_vec();
        body[place..place + 4].copy_from_slice(&[0xff; 4]);
        let sealed = jks::sealed(body, &changeit());
        assert!(matches!(own_key(&sealed, Some(&changeit())), Err(StoreError::Damaged(_))), "{place}");
    }
    let mut version = body.to_vec();
    version[7] = 1;
    let sealed = jks::sealed(version, &changeit());
    assert_eq!(own_key(&sealed, Some(&changeit())).expect_err("old"), StoreError::Damaged("it is not of version 2"));
    let more = jks::sealed([body, b"more"].concat(), &changeit());
    assert!(matches!(own_key(&more, Some(&changeit())), Err(StoreError::Damaged(_))));
}
