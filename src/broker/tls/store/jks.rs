//! JKS, the key store of Java up to version 8, as `sun.security.provider`
//! writes it: big-endian numbers; a magic number, a version and the entries;
//! at the end a SHA-1 over password, a fixed text and all before it.
//!
//! Keys are hidden by a key stream of SHA-1 over the password. That is weak, and
//! what the format has: the file needs the protection that a PEM key needs.
//!
//! Lengths in the file are only ever compared with what is there; nothing is
//! reserved because a file says so.

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{OwnKey, StoreError, only};
use crate::secret::Secret;

const VERSION: u32 = 2;
const PRIVATE_KEY: u32 = 1;
const TRUSTED_CERTIFICATE: u32 = 2;
/// What the password is mixed with before it seals the file.
const WHITENER: &[u8] = b"Mighty Aphrodite";
const SHA1_BYTES: usize = 20;
/// `AlgorithmIdentifier` of Sun's key protector: 1.3.6.1.4.1.42.2.17.1.1
/// without parameters.
const KEY_PROTECTOR: [u8; 12] = [0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x2a, 0x02, 0x11, 0x01, 0x01];
const DER_SEQUENCE: u8 = 0x30;
const DER_OCTET_STRING: u8 = 0x04;

/// A store whose seal was checked. Its keys are still hidden.
pub(super) struct Store<'a> {
    password: Zeroizing<Vec<u8>>,
    keys: Vec<(String, HiddenKey<'a>)>,
    trusted: Vec<CertificateDer<'static>>,
}

struct HiddenKey<'a> {
    hidden: &'a [u8],
    chain: Vec<CertificateDer<'static>>,
}

impl<'a> Store<'a> {
    /// Reads a store and checks its seal.
    pub(super) fn read(bytes: &'a [u8], password: Option<&Secret>) -> Result<Self, StoreError> {
        let password = utf16(password.ok_or(StoreError::NoPassword)?.expose());
        let body_length = bytes.len().checked_sub(SHA1_BYTES).ok_or(StoreError::Damaged("it is cut off"))?;
        let (body, seal) = bytes.split_at(body_length);
        if !bool::from(sha1(&[&password, WHITENER, body]).ct_eq(seal)) {
            return Err(StoreError::Password);
        }
        let mut rest = Rest(body);
        rest.number()?; // the magic number, by which it was known
        if rest.number()? != VERSION {
            return Err(StoreError::Damaged("it is not of version 2"));
        }
        let entries = rest.number()?;
        let mut store = Self { password, keys: Vec::new(), trusted: Vec::new() };
        for _ in 0..entries {
            let kind = rest.number()?;
            let alias = rest.text()?;
            rest.take(8)?; // when it was made
            match kind {
                PRIVATE_KEY => {
                    let hidden = rest.long()?;
                    let mut chain = Vec::new();
                    for _ in 0..rest.number()? {
                        chain.push(rest.certificate()?);
                    }
                    store.keys.push((alias, HiddenKey { hidden, chain }));
                }
                TRUSTED_CERTIFICATE => store.trusted.push(rest.certificate()?),
                _ => return Err(StoreError::Damaged("it holds an entry of an unknown kind")),
            }
        }
        if !rest.0.is_empty() {
            return Err(StoreError::Damaged("there is more in it than its entries"));
        }
        Ok(store)
    }

    /// The one private key with its chain.
    pub(super) fn own_key(self) -> Result<OwnKey, StoreError> {
        let (alias, HiddenKey { hidden, chain }) = only(self.keys)?;
        if chain.is_empty() {
            return Err(StoreError::NoCertificate { alias });
        }
        let key = reveal(hidden, &self.password)?.ok_or(StoreError::KeyPassword { alias })?;
        Ok((chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()))))
    }

    /// The certificates that it trusts.
    pub(super) fn trusted(self) -> Vec<CertificateDer<'static>> {
        self.trusted
    }
}

/// A key in PKCS #8; `None` when the password is not the key's.
fn reveal(hidden: &[u8], password: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    let damaged = StoreError::Damaged("a key in it is no EncryptedPrivateKeyInfo");
    let parts = (|| {
        let (info, rest) = der(DER_SEQUENCE, hidden)?;
        let (algorithm, info) = der(DER_SEQUENCE, info)?;
        let (sealed, info) = der(DER_OCTET_STRING, info)?;
        (rest.is_empty() && info.is_empty()).then_some((algorithm, sealed))
    })();
    let (algorithm, sealed) = parts.ok_or_else(|| damaged.clone())?;
    if !algorithm.starts_with(&KEY_PROTECTOR) {
        return Err(StoreError::Unsupported("not the key protector of JKS".to_owned()));
    }
    let length = sealed.len().checked_sub(2 * SHA1_BYTES).ok_or(damaged)?;
    let (salt, rest) = sealed.split_at(SHA1_BYTES);
    let (hidden, seal) = rest.split_at(length);
    let mut key = Zeroizing::new(hidden.to_vec());
    let mut stream = Zeroizing::new([0; SHA1_BYTES]);
    stream.copy_from_slice(salt);
    for block in key.chunks_mut(SHA1_BYTES) {
        *stream = sha1(&[password, &*stream]);
        block.iter_mut().zip(stream.iter()).for_each(|(byte, mask)| *byte ^= mask);
    }
    Ok(bool::from(sha1(&[password, &key]).ct_eq(seal)).then_some(key))
}

fn sha1(parts: &[&[u8]]) -> [u8; SHA1_BYTES] {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; SHA1_BYTES];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// A password as Java hashes it: UTF-16, the higher byte first.
fn utf16(text: &str) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * text.len()));
    text.encode_utf16().for_each(|unit| bytes.extend_from_slice(&unit.to_be_bytes()));
    bytes
}

/// The content of a DER element that must come next, and what follows it.
fn der(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |length, &byte| (length << 8) | usize::from(byte)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length))?
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], StoreError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(StoreError::Damaged("it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, StoreError> {
        Ok(self.take(4)?.iter().fold(0, |number, &byte| (number << 8) | u32::from(byte)))
    }

    /// Bytes behind their length, which has four bytes.
    fn long(&mut self) -> Result<&'a [u8], StoreError> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| StoreError::Damaged("it is cut off"))?)
    }

    /// A text behind its length, which has two bytes.
    fn text(&mut self) -> Result<String, StoreError> {
        let length = self.take(2)?.iter().fold(0, |length, &byte| (length << 8) | usize::from(byte));
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn certificate(&mut self) -> Result<CertificateDer<'static>, StoreError> {
        if self.text()? != "X.509" {
            return Err(StoreError::Damaged("it holds a certificate that is not X.509"));
        }
        Ok(CertificateDer::from(self.long()?.to_vec()))
    }
}

/// A store with a seal that fits, whatever is in it.
#[cfg(test)]
pub(super) fn sealed(mut body: Vec<u8>, password: &Secret) -> Vec<u8> {
    let seal = sha1(&[&utf16(password.expose()), WHITENER, &body]);
    body.extend_from_slice(&seal);
    body
}
