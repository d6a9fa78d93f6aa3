#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// Keys and values.
fn pairs(text: &str) -> Vec<(String, String)> {
    parse(text).into_iter().map(|property| property.unwrap()).map(|it| (it.key, it.value.to_string())).collect()
}

/// The only key and its value.
fn pair(text: &str) -> (String, String) {
    let pairs = pairs(text);
    assert_eq!(pairs.len(), 1, "{pairs:?}");
    pairs.into_iter().next().unwrap()
}

fn is(text: &str, key: &str, value: &str) {
    assert_eq!(pair(text), (key.to_owned(), value.to_owned()), "{text:?}");
}

#[test]
fn between_key_and_value_are_blanks_and_at_most_one_sign() {
    for text in ["a=b", "a:b", "a b", "a = b", "  a\t:\tb", "a\x0cb", "a=  b"] {
        is(text, "a", "b");
    }
    is("a==b", "a", "=b");
    is("a = : b", "a", ": b");
    is("a:=b", "a", "=b");
    is("a", "a", "");
    is("a=", "a", "");
    is("=b", "", "b");
    is("jdbc-connection-url = jdbc:mysql://h:1/db?x=y", "jdbc-connection-url", "jdbc:mysql://h:1/db?x=y");
}

#[test]
fn blanks_behind_a_value_belong_to_it() {
    is("a = b c \t", "a", "b c \t");
    is("a = \u{a0}b", "a", "\u{a0}b");
}

#[test]
fn comments_begin_a_line_and_do_not_go_on() {
    assert_eq!(pairs("# a=b\n  ! c=d\n\n \t\n#e\\\nf=g"), [("f".to_owned(), "g".to_owned())]);
    is("a = b # c ! d", "a", "b # c ! d");
    // What is in a comment cannot be wrong.
    is("# C:\\users\na=b", "a", "b");
}

#[test]
fn a_line_that_ends_with_a_backslash_goes_on() {
    is("a = b,\\\n    c,\\\r\n\td", "a", "b,c,d");
    is("a\\\n  b=c", "ab", "c");
    is("a = b\\\n# c", "a", "b# c");
    assert_eq!(pairs("a = b\\\n\nc")[1], ("c".to_owned(), String::new()));
    is("a = b\\\\", "a", "b\\");
    is("a = b\\\\\\\nc", "a", "b\\c");
    // Even when nothing follows.
    is("a = b\\", "a", "b");
    is("\\\na=b", "a", "b");
    assert_eq!(pairs("\\"), []);
}

#[test]
fn lines_end_with_lf_cr_or_both_and_are_counted() {
    let lines: Vec<usize> = parse("a=1\rb=2\r\nc=\\\n3\n\nd=4").into_iter().map(|it| it.unwrap().line).collect();
    assert_eq!(lines, [1, 2, 3, 6]);
}

#[test]
fn escapes_are_those_of_java() {
    is("a\\ b\\=c\\:d = e", "a b=c:d", "e");
    is("a = \\t\\n\\r\\f\\\\\\q\\\"\\b", "a", "\t\n\r\x0c\\q\"b");
    is("a = \\u00e4\\u20AC", "a", "ä€");
    is("a = \\uD83D\\uDE00", "a", "😀");
    is("a = \\ b", "a", " b");
    is("\\u0061 = b", "a", "b");
    is("a\\u003Db = c", "a=b", "c");
    is("\\#a = b", "#a", "b");
}

#[test]
fn a_broken_escape_is_told_by_its_line_and_the_others_are_read() {
    for broken in ["\\u12", "\\u12g4", "\\u+123", "\\u", "\\uD83D", "\\uDE00\\uD83D"] {
        let read = parse(&format!("a=1\nb = {broken}\nc=3"));
        assert_eq!(read.iter().filter(|property| property.is_ok()).count(), 2, "{broken}");
        assert_eq!(read[1].as_ref().unwrap_err().line, 2, "{broken}");
    }
}

#[test]
fn what_is_no_utf_8_is_latin_1() {
    assert_eq!(*decode("ä€".as_bytes()), "ä€");
    assert_eq!(*decode(b"a=\xe4\x80"), "a=ä\u{80}");
    assert_eq!(*decode(b"\xef\xbb\xbfa=b"), "a=b");
    assert_eq!(*decode(b""), "");
}

/// A text as `java.util.Properties.store` would write it, more or less.
fn escaped(text: &str) -> String {
    let units: Vec<String> = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    units.concat()
}

proptest! {
    #[test]
    fn nothing_makes_it_fail(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let text = decode(&bytes);
        for property in parse(&text).into_iter().flatten() {
            prop_assert!(property.key.len() + property.value.len() <= 3 * text.len());
        }
    }

    #[test]
    fn nothing_that_looks_like_the_syntax_makes_it_fail(text in "[a=: #!\\\\u0d8\t\r\n\x0c]{0,60}") {
        parse(&text);
    }

    #[test]
    fn what_is_escaped_is_read_as_it_was(key in ".{1,20}", value in ".{0,40}") {
        is(&format!("{} = {}", escaped(&key), escaped(&value)), &key, &value);
    }
}
