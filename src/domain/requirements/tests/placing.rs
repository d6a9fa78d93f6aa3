//! What placement asks of an expression besides whether it holds.

use proptest::prelude::*;

use super::trees::trees;
use super::{Owned, Server, expression};
use crate::domain::requirements::{Expression, Key, Property, Subject, TEXT_BYTES_MAX, Value};

fn required(text: &str) -> Vec<String> {
    let expression = expression(text);
    expression.required_equalities().map(|(key, text)| format!("{key}={text}")).collect()
}

#[test]
fn texts_that_must_be_equal_stand_alone_or_in_the_and_list_around_everything() {
    for (text, equalities) in [
        ("tag:a = 'x'", &["tag:a=x"][..]),
        ("tag:a = 'x' and tag:b > 1 and server:Id = 'o''neil'", &["tag:a=x", "server:Id=o'neil"]),
        ("tag:a = 'x' and (tag:b = '' and (tag:dcv:c = '10'))", &["tag:a=x", "tag:b=", "tag:dcv:c=10"]),
        ("((tag:a = 'x') and not tag:b = 'y')", &["tag:a=x"]),
        ("tag:a = 'x' and (tag:b = 'y' or tag:c = 'z')", &["tag:a=x"]),
        ("tag:a = 'x' and tag:a = 'y'", &["tag:a=x", "tag:a=y"]),
    ] {
        assert_eq!(required(text), equalities, "{text}");
    }
}

#[test]
fn nothing_else_must_be_equal() {
    for text in [
        "tag:a = 'x' or tag:b = 'y'",
        "not tag:a = 'x'",
        "not (tag:a = 'x' and tag:b = 'y')",
        "not (not tag:a = 'x')",
        "tag:a = 1 and tag:a != 'x' and tag:a := 'x' and tag:a >= 'x' and tag:a <= 'x'",
        "server:Host.CpuInfo.NumberOfCpus = '4'",
        "server:Host.Memory.TotalBytes = '16e9' and server:Host.CpuLoadAverage.OneMinute = '0.25'",
    ] {
        assert_eq!(required(text), [""; 0], "{text}");
    }
}

#[test]
fn an_expression_reads_load_if_any_of_its_terms_does() {
    for property in Property::ALL {
        let name = property.as_str();
        let reads = ["Host.Memory.", "Host.Swap.", "Host.CpuLoadAverage."].iter().any(|group| name.starts_with(group));
        for text in [
            format!("server:{name} = 1"),
            format!("not (tag:a = 'x' or server:{name} := 'y')"),
            format!("tag:a = 'x' and (tag:b = 1 or not server:{name} > '2')"),
        ] {
            assert_eq!(expression(&text).reads_load(), reads, "{text}");
        }
    }
    assert!(!expression("tag:a = 'server:Host.Swap.UsedBytes'").reads_load());
}

/// Terms of few keys and few values, so that they often hold.
fn terms() -> BoxedStrategy<String> {
    let keys = prop::sample::select(vec![
        "tag:a",
        "tag:b",
        "server:Id",
        "server:Host.Os.Name",
        "server:Host.CpuInfo.NumberOfCpus",
        "server:Host.Swap.UsedBytes",
    ]);
    let operators = prop::sample::select(vec!["=", "=", "=", "!=", "<=", ">"]);
    let values = prop::sample::select(vec!["'4'", "'04'", "'x'", "''", "4", "4.0"]);
    (keys, operators, values).prop_map(|(key, operator, value)| format!("{key} {operator} {value}")).boxed()
}

fn servers() -> impl Strategy<Value = Server> {
    let text = || prop::option::weighted(0.8, prop::sample::select(vec!["4", "04", "x", ""]));
    let count = || prop::option::weighted(0.8, 3_u64..6);
    (text(), text(), text(), text(), count(), count()).prop_map(|(a, b, id, name, cpus, swap)| {
        let mut server = Server::default();
        for (tag, value) in [("a", a), ("b", b)] {
            server = value.into_iter().fold(server, |server, value| server.with_tag(tag, value));
        }
        for (property, value) in [(Property::Id, id), (Property::OsName, name)] {
            server =
                value.into_iter().fold(server, |server, value| server.with(property, Owned::Text(value.to_owned())));
        }
        for (property, value) in [(Property::CpuNumberOfCpus, cpus), (Property::SwapUsedBytes, swap)] {
            server = value.into_iter().fold(server, |server, value| server.with(property, Owned::Integer(value)));
        }
        server
    })
}

/// The exact text of a key, if it has one.
fn text<'a>(server: &'a Server, key: &Key) -> Option<&'a str> {
    match key {
        Key::Tag(name) => server.tag(name),
        Key::Property(property) => match server.property(*property)? {
            Value::Text(text) => Some(text),
            Value::Integer(_) | Value::Real(_) => None,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_server_that_meets_an_expression_has_the_texts_that_must_be_equal(
        members in prop::collection::vec(prop_oneof![2 => terms(), 1 => trees(terms())], 1..4),
        server in servers(),
    ) {
        let joined = members.join(" and ");
        prop_assume!(joined.len() <= TEXT_BYTES_MAX);
        let Some(expression) = Expression::parse(&joined)? else { return Err(TestCaseError::fail("blank")) };
        if expression.holds(&server) {
            for (key, wanted) in expression.required_equalities() {
                prop_assert_eq!(text(&server, key), Some(wanted), "{} in {}", key, expression);
            }
        }
    }

    #[test]
    fn an_expression_that_reads_no_load_says_the_same_under_any(
        text in trees(terms()),
        server in servers(),
        load in 0_u64..10,
    ) {
        prop_assume!(text.len() <= TEXT_BYTES_MAX);
        let Some(expression) = Expression::parse(&text)? else { return Err(TestCaseError::fail("blank")) };
        let other = server.clone().with(Property::SwapUsedBytes, Owned::Integer(load));
        if !expression.reads_load() {
            prop_assert_eq!(expression.holds(&server), expression.holds(&other), "{}", expression);
        }
    }
}
