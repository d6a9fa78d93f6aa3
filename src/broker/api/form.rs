//! `application/x-www-form-urlencoded`: what the token end point takes, and
//! how queries of URLs are written.

/// Decodes one component: `+` is a blank, `%XX` a byte. `None` when an escape
/// is broken or the bytes are no UTF-8.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = hex_digit(bytes.next()?)?;
                let low = hex_digit(bytes.next()?)?;
                high * 16 + low
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Decodes all pairs of a query or a body, in their order.
pub(in crate::broker) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let components = text.trim().split('&').filter(|pair| !pair.is_empty());
    components
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key)?, decode(value)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_are_decoded() {
        assert_eq!(decode("a%2Bb+c%C3%BC").as_deref(), Some("a+b cü"));
        for broken in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }

    #[test]
    fn pairs_come_in_their_order() {
        let expected = vec![("a".to_owned(), "1 2".to_owned()), ("b".to_owned(), String::new())];
        assert_eq!(pairs("a=1+2&&b\r\n").unwrap(), expected);
        assert_eq!(pairs("").unwrap(), Vec::new());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_decoder_panic(text in ".{0,60}") {
            let _ = pairs(&text);
        }
    }
}
