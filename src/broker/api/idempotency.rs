//! The header `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header):
//! a client that does not know what became of a call repeats it with the same
//! key, and it is carried out once.
//!
//! Here a request gets its key and its fingerprint, and waits in vain while
//! the same key is at work on this replica. What is kept under a key stands in
//! the log, so it holds through every replica and after a restart.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};

use super::error::Error;
use super::limits::IDEMPOTENCY_KEY_BYTES_MAX;
use super::policy::PLACEMENT_HEADER;
use crate::domain::ids::IdempotencyKey;
use crate::domain::request::Fingerprint;
use crate::domain::{ClientId, Owner};

/// Header of requests: what the client calls the request by.
const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Header of answers that were given before: `true`.
pub(super) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// A request that can be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repeatable {
    pub(super) key: IdempotencyKey,
    pub(super) fingerprint: Fingerprint,
}

/// A request with a key whose body was not read yet.
pub(super) struct Headed {
    key: IdempotencyKey,
    context: digest::Context,
}

impl Headed {
    /// Of a request by its head, and the one whose sessions its caller may see
    /// and change, if not everybody's; `None` when it has no key.
    ///
    /// A caller who was bound to an owner meanwhile, or to another one, sends
    /// another request: the answer to the first one tells of sessions that are
    /// nothing to it any more.
    pub(super) fn new(head: &Parts, owner: Option<&Owner>) -> Result<Option<Self>, Error> {
        let Some(key) = key(&head.headers)? else { return Ok(None) };
        let mut context = digest::Context::new(&digest::SHA256);
        let mut update = |part: &[u8]| {
            // The length keeps ("ab", "c") and ("a", "bc") apart.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        };
        update(head.method.as_str().as_bytes());
        update(head.uri.path().as_bytes());
        update(head.uri.query().unwrap_or_default().as_bytes());
        let placements: Vec<_> = head.headers.get_all(PLACEMENT_HEADER).iter().collect();
        update(&(placements.len() as u64).to_be_bytes());
        for value in placements {
            update(value.as_bytes());
        }
        update(&[u8::from(owner.is_some())]);
        update(owner.map_or("", Owner::as_str).as_bytes());
        Ok(Some(Self { key, context }))
    }

    /// The whole request.
    pub(super) fn with_body(mut self, body: &[u8]) -> Repeatable {
        self.context.update(body);
        let mut fingerprint = [0; digest::SHA256_OUTPUT_LEN];
        fingerprint.copy_from_slice(self.context.finish().as_ref());
        Repeatable { key: self.key, fingerprint: Fingerprint(fingerprint) }
    }
}

/// The key out of the header: a string in quotes as the draft wants it, or the
/// bare text that most clients send.
fn key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Error> {
    let mut values = headers.get_all(KEY_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::BadRequest("Idempotency-Key is given more than once".to_owned()));
    }
    let text = value.to_str().ok().and_then(|text| unquoted(text.trim_matches([' ', '\t'])));
    let is_fit = |text: &String| (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len());
    text.filter(is_fit).and_then(|text| IdempotencyKey::new(&text).ok()).map(Some).ok_or_else(|| {
        Error::BadRequest(format!(
            "Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters, in double quotes; \
             the quotes may be left out if there are no blanks, quotes, commas, semicolons and backslashes in it"
        ))
    })
}

/// What a header's value says: the content of a string of RFC 9651, or a bare
/// text without the characters that mean something in such a field.
fn unquoted(value: &str) -> Option<String> {
    let Some(quoted) = value.strip_prefix('"') else {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !br#"",;\"#.contains(&byte);
        return value.bytes().all(is_plain).then(|| value.to_owned());
    };
    let mut text = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            // Nothing may follow; parameters are not defined for this field.
            '"' => return characters.as_str().is_empty().then_some(text),
            '\\' => match characters.next() {
                Some(escaped @ ('"' | '\\')) => text.push(escaped),
                _ => return None,
            },
            ' '..='~' => text.push(character),
            _ => return None,
        }
    }
    None
}

/// The keys that are at work on this replica. Another replica may be at work
/// on one as well; the log decides which of them is the first.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<BTreeSet<(ClientId, IdempotencyKey)>>);

impl Running {
    /// Begins with a key, unless it is at work already.
    pub(super) fn begin(self: &Arc<Self>, client: &ClientId, key: &IdempotencyKey) -> Result<Turn, Error> {
        let who = (client.clone(), key.clone());
        if !self.keys().insert(who.clone()) {
            return Err(Error::KeyInUse);
        }
        Ok(Turn { running: Arc::clone(self), who })
    }

    fn keys(&self) -> MutexGuard<'_, BTreeSet<(ClientId, IdempotencyKey)>> {
        // A set is whole whenever somebody panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key is at work as long as this lives: a caller that gives up, or a panic,
/// ends it too.
#[derive(Debug)]
pub(super) struct Turn {
    running: Arc<Running>,
    who: (ClientId, IdempotencyKey),
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.running.keys().remove(&self.who);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::{HeaderValue, Request};

    use super::*;

    fn with(values: &[&str]) -> Result<Option<String>, Error> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(KEY_HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Ok(key(&headers)?.map(String::from))
    }

    #[test]
    fn a_key_in_quotes_and_a_bare_one_are_the_same() {
        assert_eq!(with(&[]).unwrap(), None);
        let uuid = "8e03978e-40d5-43e8-bc93-6894a57f9324";
        for value in [uuid, &format!("\"{uuid}\""), &format!(" \"{uuid}\" ")] {
            assert_eq!(with(&[value]).unwrap().as_deref(), Some(uuid), "{value}");
        }
        assert_eq!(with(&[r#""a \"b\" \\ c, d;e""#]).unwrap().as_deref(), Some(r#"a "b" \ c, d;e"#));
        assert_eq!(with(&["ab+/=:~_.!"]).unwrap().as_deref(), Some("ab+/=:~_.!"));
        let longest = "k".repeat(IDEMPOTENCY_KEY_BYTES_MAX);
        assert_eq!(with(&[&longest]).unwrap(), Some(longest.clone()));
        assert_eq!(with(&[&format!("\"{longest}\"")]).unwrap(), Some(longest));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = "k".repeat(IDEMPOTENCY_KEY_BYTES_MAX + 1);
        let quoted = format!("\"{long}\"");
        for value in [
            "",
            " ",
            "\"\"",
            "\"",
            "\"a",
            "a\"",
            "a b",
            "a,b",
            "a;b",
            "a\\b",
            "\"a\";p=1",
            "\"a\", \"b\"",
            "\"a\\b\"",
            "\"a\\",
            "\"a\tb\"",
            "\"ä\"",
            "ä",
            &long,
            &quoted,
        ] {
            let error = with(&[value]).unwrap_err().to_string();
            assert!(
                error.starts_with("Idempotency-Key must be 1 to 255 printable ASCII characters"),
                "{value}: {error}"
            );
        }
        assert_eq!(with(&["a", "a"]).unwrap_err().to_string(), "Idempotency-Key is given more than once");
    }

    fn fingerprint(method: &str, uri: &str, placement: Option<&str>, owner: Option<&str>, body: &str) -> Fingerprint {
        let mut request = Request::builder().method(method).uri(uri).header(KEY_HEADER, "k").header("x-other", body);
        if let Some(placement) = placement {
            request = request.header(PLACEMENT_HEADER, placement);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let owner = owner.map(|owner| Owner::new(owner).unwrap());
        Headed::new(&head, owner.as_ref()).unwrap().unwrap().with_body(body.as_bytes()).fingerprint
    }

    #[test]
    fn everything_that_means_something_is_in_the_fingerprint() {
        let all = [
            fingerprint("POST", "/a", None, None, "[]"),
            fingerprint("PUT", "/a", None, None, "[]"),
            fingerprint("POST", "/b", None, None, "[]"),
            fingerprint("POST", "/a?b", None, None, "[]"),
            fingerprint("POST", "/a", Some("pack"), None, "[]"),
            fingerprint("POST", "/a", Some(""), None, "[]"),
            fingerprint("POST", "/a", None, Some("ann"), "[]"),
            fingerprint("POST", "/a", None, Some("bob"), "[]"),
            fingerprint("POST", "/a", None, None, "[ ]"),
            fingerprint("POST", "/a", None, None, ""),
        ];
        for (number, one) in all.iter().enumerate() {
            assert_eq!(all.iter().position(|other| other == one), Some(number));
        }
        assert_eq!(fingerprint("POST", "/a", None, None, "[]"), all[0]);
    }

    #[test]
    fn a_key_is_at_work_until_its_turn_ends() {
        let running = Arc::new(Running::default());
        let (client, other) = (ClientId::new("portal").unwrap(), ClientId::new("other").unwrap());
        let key = IdempotencyKey::new("k").unwrap();
        let turn = running.begin(&client, &key).unwrap();
        assert_eq!(running.begin(&client, &key).unwrap_err(), Error::KeyInUse);
        let _others = running.begin(&other, &key).unwrap();
        drop(turn);
        let caught = std::panic::catch_unwind({
            let running = Arc::clone(&running);
            let (client, key) = (client.clone(), key.clone());
            move || {
                let _turn = running.begin(&client, &key).unwrap();
                panic!("in the middle");
            }
        });
        assert!(caught.is_err());
        running.begin(&client, &key).unwrap();
    }
}
