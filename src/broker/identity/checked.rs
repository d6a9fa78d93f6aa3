//! Access tokens whose signatures were checked already: the check costs more
//! than the rest of most requests.
//!
//! Kept by a hash of the whole token, for one signing key. What can change is
//! not kept: whether the token has expired and whether its client is active is
//! looked at each time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

/// Tokens that are kept; each is about 150 bytes.
const TOKENS_MAX: usize = 10_000;

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// Whose it is.
    pub(super) client_id: Arc<str>,
    /// When it expires, in seconds since 1970.
    pub(super) exp: u64,
}

/// The tokens of one key that were found good.
#[derive(Default)]
pub(super) struct Checked(Mutex<HashMap<Vec<u8>, Said>>);

impl Checked {
    /// What a token says that was found good before.
    pub(super) fn get(&self, token: &str) -> Option<Said> {
        self.tokens().get(digest(&SHA256, token.as_bytes()).as_ref()).cloned()
    }

    /// Keeps what a good token says. When there are too many, those that have
    /// expired go, or else all.
    pub(super) fn keep(&self, token: &str, said: Said, now: u64) {
        let mut tokens = self.tokens();
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, said| said.exp >= now);
        }
        if tokens.len() >= TOKENS_MAX {
            tokens.clear();
        }
        tokens.insert(digest(&SHA256, token.as_bytes()).as_ref().to_vec(), said);
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.tokens().is_empty()
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, Said>> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_all_of_it_and_their_number_is_bounded() {
        let checked = Checked::default();
        let said = |exp| Said { client_id: "ann".into(), exp };
        checked.keep("a.b.c", said(10), 5);
        assert_eq!(checked.get("a.b.c"), Some(said(10)));
        assert_eq!(checked.get("a.b.d"), None);
        for number in 0..TOKENS_MAX {
            checked.keep(&format!("t{number}"), said(20), 15);
        }
        assert_eq!(checked.get("a.b.c"), None, "it had expired when room was needed");
        assert_eq!(checked.get("t0"), Some(said(20)));
        checked.keep("one more", said(20), 15);
        assert_eq!(checked.tokens().len(), 1);
    }
}
