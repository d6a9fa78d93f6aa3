//! What the tables of the page do not show.

use super::{Owned, Server, expression, holds};
use crate::domain::requirements::{Comparison, Key, Literal, Property, Test};

#[test]
fn every_property_is_found_by_its_name_and_by_no_other_case() {
    for property in Property::ALL {
        let server = Server::default().with(property, Owned::Text("x".to_owned()));
        assert!(holds(&format!("server:{property} = 'x'"), &server));
        assert_eq!(property.as_str().parse(), Ok(property));
        assert!(property.as_str().to_lowercase().parse::<Property>().is_err());
    }
}

#[test]
fn byte_counts_compare_exactly_up_to_the_greatest() {
    let server = Server::default().with(Property::MemoryTotalBytes, Owned::Integer(u64::MAX));
    for (condition, expected) in [
        ("= 18446744073709551615", true),
        ("= 18446744073709551616", false),
        ("< 18446744073709551616", true),
        ("> 18446744073709551614.999999999999999999", true),
        ("= 1.8446744073709551615e19", true),
        ("= '18446744073709551615.000'", true),
        ("> -1", true),
    ] {
        assert_eq!(holds(&format!("server:Host.Memory.TotalBytes {condition}"), &server), expected, "{condition}");
    }
}

#[test]
fn a_load_average_that_is_not_finite_meets_no_condition() {
    for load in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let server = Server::default().with(Property::CpuLoadAverageOneMinute, Owned::Real(load));
        for condition in ["= 1", "!= 1", "> 1", "<= 1", "!= 'inf'", "= 'NaN'", ":= ''"] {
            let text = format!("server:Host.CpuLoadAverage.OneMinute {condition}");
            assert!(!holds(&text, &server), "{text} for {load}");
        }
    }
}

#[test]
fn load_averages_at_the_ends_of_the_range_of_doubles_compare() {
    for (load, condition) in [
        (f64::MAX, "= 1.7976931348623157e308"),
        (f64::MAX, "> 1e308"),
        (f64::MIN, "< -1e308"),
        (5e-324, "= 5e-324"),
        (5e-324, "> 0"),
        (0.0, "= 0"),
        (-0.0, "= 0"),
        (0.1, "= 0.1"),
        (1e21, "= 1000000000000000000000"),
    ] {
        let server = Server::default().with(Property::CpuLoadAverageFiveMinutes, Owned::Real(load));
        assert!(holds(&format!("server:Host.CpuLoadAverage.FiveMinutes {condition}"), &server), "{load} {condition}");
    }
}

#[test]
fn zero_is_one_value_however_it_is_written() {
    let server = Server::default().with_tag("zero", "-0.00e7");
    for zero in ["0", "-0", "+0.0", "0e999", "000", "0E-99999999999999999999999"] {
        assert!(holds(&format!("tag:zero = {zero}"), &server), "{zero}");
        assert_eq!(expression(&format!("tag:zero = {zero}")), expression("tag:zero = 0"));
    }
}

#[test]
fn long_mantissas_and_exponents_cancel_out() {
    let server = Server::default().with_tag("one", "1");
    let shrunk = format!("1{}e-1000", "0".repeat(1000));
    let grown = format!("0.{}1e1001", "0".repeat(1000));
    for one in [shrunk, grown] {
        assert!(holds(&format!("tag:one = {one}"), &server));
    }
}

#[test]
fn a_tag_with_a_number_beyond_the_range_is_a_text() {
    let server = Server::default().with_tag("x", "1e99999999999999999999999");
    assert!(holds("tag:x != 1 and tag:x := '1e9'", &server));
    assert!(!holds("tag:x > 1 or tag:x < 1 or tag:x = 1", &server));
}

#[test]
fn texts_may_hold_line_breaks_quotes_and_any_script() {
    let server = Server::default().with_tag("x", "a\r\n'ж'\u{1F980}\0");
    assert!(holds("tag:x = 'a\r\n''ж''\u{1F980}\0'", &server));
    assert!(holds("tag:x := '\u{1F980}'\n\t\r and tag:x := ''''", &server));
}

#[test]
fn the_terms_come_in_the_order_of_the_text() {
    let expression = expression("tag:a = 1 and not (tag:b := 'x' or tag:c != 'y') or not server:Host.Os.Name >= 'z'");
    let terms: Vec<_> = expression.terms().map(ToString::to_string).collect();
    assert_eq!(terms, ["tag:a = 1", "tag:b := 'x'", "tag:c != 'y'", "server:Host.Os.Name >= 'z'"]);
}

#[test]
fn a_term_tells_its_key_and_its_test() {
    let expression = expression("server:Host.Os.Name >= 'z' and tag:dcv:os-family := 'lin'");
    let [first, second] = expression.terms().collect::<Vec<_>>()[..] else { panic!("{expression}") };
    assert_eq!(first.key(), &Key::Property(Property::OsName));
    assert_eq!(first.test(), &Test::Compare(Comparison::GreaterOrEqual, Literal::Text("z".into())));
    assert_eq!(second.key(), &Key::Tag("dcv:os-family".into()));
    assert_eq!(second.test(), &Test::Contains("lin".into()));
    let server = Server::default().with_tag("dcv:os-family", "linux");
    assert!(!first.holds(&server) && second.holds(&server));
}
