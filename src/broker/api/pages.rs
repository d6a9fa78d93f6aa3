//! Pages of a listing: limits, and the token that leads to the next page.
//!
//! A token holds the last id of the page, so that a listing goes on right
//! after it, whatever came or went meanwhile and however large the next page
//! is to be. It also holds a digest of the query: a token of another query
//! would silently skip results, so it is refused.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::error::Error;
use super::limits::{ITEMS_MAX, RESULTS_MAX};

const VERSION: u8 = 1;
const DIGEST_BYTES: usize = 16;

/// What identifies a query, without the size of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; DIGEST_BYTES]);

impl Fingerprint {
    /// Of a listing by name and the parts of its query. The order of the parts
    /// counts; the caller brings it into one.
    pub(super) fn new<'a>(listing: &'a str, parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in std::iter::once(listing).chain(parts) {
            // The length keeps ("ab", "c") and ("a", "bc") apart.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut short = [0; DIGEST_BYTES];
        for (to, from) in short.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        Self(short)
    }

    /// Token that leads on after `last`.
    pub(super) fn token(self, last: &str) -> String {
        let mut bytes = Vec::with_capacity(1 + DIGEST_BYTES + last.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.0);
        bytes.extend_from_slice(last.as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The id after which a token leads on.
    pub(super) fn resume(self, token: &str) -> Result<String, Error> {
        let bad = |text: &str| Error::BadRequest(format!("NextToken {text}"));
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| bad("is not a token of this broker"))?;
        let (version, rest) = bytes.split_first().ok_or_else(|| bad("is not a token of this broker"))?;
        if *version != VERSION {
            return Err(bad("is of another version of the broker; begin again without it"));
        }
        let (digest, last) = rest.split_at_checked(DIGEST_BYTES).ok_or_else(|| bad("is not a token of this broker"))?;
        if digest != self.0 {
            return Err(bad("belongs to another query; repeat the query that it came with"));
        }
        String::from_utf8(last.to_vec()).map_err(|_| bad("is not a token of this broker"))
    }
}

/// Size of a page, out of the field `MaxResults`.
pub(super) fn size(max_results: Option<i64>) -> Result<usize, Error> {
    let Some(wanted) = max_results else { return Ok(RESULTS_MAX) };
    usize::try_from(wanted)
        .ok()
        .filter(|size| (1..=RESULTS_MAX).contains(size))
        .ok_or_else(|| Error::BadRequest(format!("MaxResults must be between 1 and {RESULTS_MAX}")))
}

/// The ids that a query names, in order and each once; `None` when it names none.
pub(super) fn wanted_ids(field: &str, ids: Option<Vec<String>>) -> Result<Option<Vec<String>>, Error> {
    let mut ids = ids.unwrap_or_default();
    if ids.len() > ITEMS_MAX {
        return Err(Error::BadRequest(format!("{field} has {} entries; at most {ITEMS_MAX} are allowed", ids.len())));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok((!ids.is_empty()).then_some(ids))
}

/// Takes a page out of what is left, and tells the last one's id if more follows.
pub(super) fn cut<T>(items: impl Iterator<Item = T>, size: usize, id: impl Fn(&T) -> &str) -> (Vec<T>, Option<String>) {
    let mut page: Vec<T> = items.take(size + 1).collect();
    if page.len() <= size {
        return (page, None);
    }
    page.truncate(size);
    let last = page.last().map(|item| id(item).to_owned());
    (page, last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn message(error: &Error) -> String {
        error.to_string()
    }

    #[test]
    fn a_token_leads_on_where_it_says() {
        let query = Fingerprint::new("sessions", ["a", "b"]);
        assert_eq!(query.resume(&query.token("müller/7")).unwrap(), "müller/7");
    }

    #[test]
    fn a_token_of_another_query_is_refused() {
        let token = Fingerprint::new("sessions", ["ab", "c"]).token("x");
        for other in [
            Fingerprint::new("sessions", ["a", "bc"]),
            Fingerprint::new("servers", ["ab", "c"]),
            Fingerprint::new("sessions", []),
        ] {
            assert!(message(&other.resume(&token).unwrap_err()).contains("belongs to another query"));
        }
    }

    #[test]
    fn a_page_has_between_1_and_1000_results() {
        assert_eq!(size(None).unwrap(), 1000);
        assert_eq!((size(Some(1)).unwrap(), size(Some(1000)).unwrap()), (1, 1000));
        for wrong in [0, -1, 1001, i64::MIN] {
            assert_eq!(message(&size(Some(wrong)).unwrap_err()), "MaxResults must be between 1 and 1000");
        }
    }

    #[test]
    fn the_last_page_has_no_successor() {
        let items = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let page = |size| cut(items.iter(), size, |item| item).1;
        assert_eq!((page(2), page(3), page(4)), (Some("b".to_owned()), None, None));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_token_panic(token in ".{0,80}") {
            let _ = Fingerprint::new("sessions", []).resume(&token);
        }

        #[test]
        fn no_bytes_make_a_token_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Fingerprint::new("sessions", []).resume(&BASE64_URL_SAFE_NO_PAD.encode(bytes));
        }
    }
}
