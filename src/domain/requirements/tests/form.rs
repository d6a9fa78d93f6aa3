//! The canonical text and the stored form.

use super::expression;
use crate::domain::requirements::{Expression, TEXT_BYTES_MAX};

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

    let bytes = bincode::serde::encode_to_vec(&original, bincode::config::standard()).unwrap();
    let (read, used): (Expression, _) = bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
    assert_eq!((read, used), (original, bytes.len()));

    for (text, reason) in [("\"tag:a\"", "Unexpected end"), ("\" \"", "blank"), ("7", "invalid type")] {
        let error = serde_json::from_str::<Expression>(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn a_dense_text_whose_canonical_form_is_too_long_to_be_read_again_is_refused() {
    let text = vec!["tag:a=1"; 900].join("or");
    assert!(text.len() <= TEXT_BYTES_MAX);
    let error = Expression::parse(&text).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");

    let text = vec!["tag:a=1"; 600].join("or");
    let expression = expression(&text);
    assert_eq!(Expression::parse(&expression.to_string()), Ok(Some(expression)));
}
