//! The canonical text and the stored form.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::expression;
use crate::domain::requirements::{CANONICAL_BYTES_MAX, Expression, TEXT_BYTES_MAX};

#[test]
fn blank_text_is_no_requirement() {
    for blank in ["", " ", "\t\r\n ", "\u{a0}\u{2003}"] {
        assert_eq!(Expression::parse(blank), Ok(None), "{blank:?}");
    }
}

#[test]
fn the_canonical_text_is_plain_and_drops_parentheses_that_say_nothing() {
    for (written, canonical) in [
        ("tag:a='1'ANDtag:b>=2", "tag:a = '1' and tag:b >= 2"),
        ("((tag:a=1 and(tag:b=2)))and tag:c=3", "tag:a = 1 and tag:b = 2 and tag:c = 3"),
        ("(tag:a=1 and tag:b=2) or (tag:c=3)", "tag:a = 1 and tag:b = 2 or tag:c = 3"),
        ("tag:a=1 or (tag:b=2 or tag:c=3)", "tag:a = 1 or tag:b = 2 or tag:c = 3"),
        ("(tag:a=1 or tag:b=2) and tag:c=3", "(tag:a = 1 or tag:b = 2) and tag:c = 3"),
        ("NOT(tag:a=1)", "not tag:a = 1"),
        ("not(not tag:a=1)", "not (not tag:a = 1)"),
        ("not(tag:a=1 and tag:b=2)", "not (tag:a = 1 and tag:b = 2)"),
        ("tag:who:='o''neil'", "tag:who := 'o''neil'"),
        ("server:Id:=+1.50", "server:Id := '+1.50'"),
    ] {
        assert_eq!(expression(written).to_string(), canonical);
    }
}

#[test]
fn numbers_print_plainly_where_that_is_short() {
    for (written, canonical) in [
        ("1024E6", "1024000000"),
        ("+007.500", "7.5"),
        ("-0.0", "0"),
        ("1e-3", "0.001"),
        ("-12.5e-7", "-0.00000125"),
        ("1e-7", "1e-7"),
        ("18446744073709551615", "18446744073709551615"),
        ("1e20", "100000000000000000000"),
        ("123.4e30", "1.234e32"),
        ("1e308", "1e308"),
        ("25e-325", "2.5e-324"),
    ] {
        assert_eq!(expression(&format!("tag:a = {written}")).to_string(), format!("tag:a = {canonical}"));
    }
}

#[test]
fn an_expression_is_stored_as_its_text_and_checked_on_reading() {
    let original = expression("tag:who = 'o''neil' and (tag:a=1 or not tag:b:='x')");
    let json = serde_json::to_string(&original).unwrap();
    assert_eq!(json, r#""tag:who = 'o''neil' and (tag:a = 1 or not tag:b := 'x')""#);
    assert_eq!(serde_json::from_str::<Expression>(&json).unwrap(), original);

    let too_long = format!("\"tag:a = '{}'\"", "x".repeat(CANONICAL_BYTES_MAX));
    for (text, reason) in
        [("\"tag:a\"", "Unexpected end"), ("\" \"", "Unexpected end"), ("7", "invalid type"), (&too_long, "too long")]
    {
        let error = serde_json::from_str::<Expression>(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn a_shared_expression_is_stored_as_its_text_too() {
    let original = Some(Arc::new(expression("tag:a=1")));
    let bytes = bincode::serde::encode_to_vec(&original, bincode::config::standard()).unwrap();
    assert_eq!(bytes, [&[1, 9][..], b"tag:a = 1"].concat());
    let (read, used): (Option<Arc<Expression>>, _) =
        bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
    assert_eq!((read, used), (original, bytes.len()));
}

#[test]
fn expressions_serve_as_keys_and_equal_ones_are_one_key() {
    let [same, again, other] =
        ["tag:a=1.0and tag:b='x'", "(tag:a = +1) AND (tag:b = 'x')", "tag:a = 1"].map(expression);
    assert_eq!(BTreeSet::from([same.clone(), again.clone(), other.clone()]).len(), 2);
    assert_eq!(same.cmp(&again), Ordering::Equal);
    assert_eq!(same.cmp(&other), other.cmp(&same).reverse());
    let hash = |expression: &Expression| {
        let mut hasher = DefaultHasher::new();
        expression.hash(&mut hasher);
        hasher.finish()
    };
    assert_eq!(hash(&same), hash(&again));
}

#[test]
fn the_densest_text_prints_within_the_limit_of_printed_texts_and_reads_back() {
    for (term, connective) in
        [("tag:a=1", "or"), ("tag:a=1e20", "or"), ("nottag:a=-1e20", "or"), ("server:Id:=1", "or")]
    {
        let count = (TEXT_BYTES_MAX + connective.len()) / (term.len() + connective.len());
        let text = vec![term; count].join(connective);
        assert!(text.len() <= TEXT_BYTES_MAX);
        let expression = expression(&text);
        let printed = expression.to_string();
        assert!(TEXT_BYTES_MAX < printed.len() && printed.len() <= CANONICAL_BYTES_MAX, "{term}: {}", printed.len());
        assert_eq!(Expression::from_canonical(&printed), Ok(expression.clone()));
        let stored = serde_json::to_string(&expression).unwrap();
        assert_eq!(serde_json::from_str::<Expression>(&stored).unwrap(), expression);
    }
}
