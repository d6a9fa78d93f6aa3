//! The tables of `docs/requirements.md`, read and run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Owned, Server, expression};
use crate::domain::requirements::{DEPTH_MAX, Expression, Key, Literal, Property, TEXT_BYTES_MAX, Term, Test};

const PAGE: &str = include_str!("../../../../docs/requirements.md");

const HOLDS: &str = "| expression | holds | rule |";
const REFUSED: &str = "| expression | at | message |";
const REFUSED_SO: &str = "| expression | at | message begins |";

/// The rows of all tables under this header, each cell without its back-quotes.
fn table(header: &str) -> Vec<Vec<&'static str>> {
    let lines: Vec<_> = PAGE.lines().collect();
    let headers = lines.iter().enumerate().filter(|(_, line)| **line == header).map(|(index, _)| index);
    let rows: Vec<_> = headers
        .flat_map(|index| lines[index + 2..].iter().take_while(|line| line.starts_with('|')))
        .map(|line| {
            let cells = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap();
            let unquoted = |cell: &'static str| cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
            cells.split('|').map(str::trim).map(|cell| unquoted(cell).unwrap_or(cell)).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "the page has no table {header}");
    rows
}

/// The text that a cell stands for: with its line breaks and tabs, and `{3×x}` written out as `xxx`.
fn written_out(cell: &str) -> String {
    let mut text = String::new();
    let mut rest = cell;
    while let Some((before, repeated)) = rest.split_once('{') {
        let (repeated, behind) = repeated.split_once('}').unwrap();
        let (times, piece) = repeated.split_once('×').unwrap();
        text += before;
        text += &piece.repeat(times.parse().unwrap());
        rest = behind;
    }
    text += rest;
    text.replace('␊', "\n").replace('␍', "\r").replace('␉', "\t")
}

/// Every expression of the tables, read or refused.
fn expressions() -> Vec<String> {
    [HOLDS, REFUSED, REFUSED_SO].into_iter().flat_map(table).map(|row| written_out(row[0])).collect()
}

fn server_of_the_page() -> Server {
    let rows = table("| key | value |");
    assert!(rows.len() >= 10);
    rows.iter().fold(Server::default(), |server, row| {
        let [key, value] = row[..] else { panic!("row {row:?}") };
        let text = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
        let text = text.map(|text| written_out(text).replace("''", "'"));
        if let Some(tag) = key.strip_prefix("tag:") {
            return server.with_tag(tag, &text.unwrap());
        }
        let property = key.strip_prefix("server:").unwrap().parse().unwrap();
        let value = match text {
            Some(text) => Owned::Text(text),
            None => value.parse().map_or_else(|_| Owned::Real(value.parse().unwrap()), Owned::Integer),
        };
        server.with(property, value)
    })
}

#[test]
fn the_page_has_examples_enough_and_none_twice() {
    let examples = expressions();
    assert!(examples.len() >= 300, "only {} rows were read", examples.len());
    let mut seen = BTreeSet::new();
    for example in &examples {
        assert!(seen.insert(example), "{example} stands on the page twice");
    }
}

#[test]
fn every_property_and_every_operator_on_each_kind_of_value_has_an_example() {
    let holding = table(HOLDS).into_iter().map(|row| expression(&written_out(row[0]))).collect::<Vec<_>>();
    let examples: BTreeSet<_> = holding
        .iter()
        .flat_map(Expression::terms)
        .map(|term| {
            let (operator, value) = match term.test() {
                Test::Contains(_) => (":=", "text"),
                Test::Compare(comparison, Literal::Text(_)) => (comparison.as_str(), "text"),
                Test::Compare(comparison, Literal::Number(_)) => (comparison.as_str(), "number"),
            };
            let key = match term.key() {
                Key::Tag(_) => "tag",
                Key::Property(property) if property.is_text() => "text property",
                Key::Property(_) => "number property",
            };
            (key, operator, value)
        })
        .collect();
    for key in ["tag", "text property", "number property"] {
        for operator in ["=", "!=", ":=", ">", ">=", "<", "<="] {
            assert!(examples.contains(&(key, operator, "text")), "{key} {operator} text");
            // A number behind `:=` is a text by now.
            let number = operator == ":=" || examples.contains(&(key, operator, "number"));
            assert!(number, "{key} {operator} number");
        }
    }
    for property in Property::ALL {
        let named = |term: &Term| *term.key() == Key::Property(property);
        assert!(holding.iter().flat_map(Expression::terms).any(named), "{property} has no example");
    }
}

#[test]
fn every_expression_of_the_page_holds_as_the_page_says() {
    let server = server_of_the_page();
    for row in table(HOLDS) {
        let [cell, holds, _] = row[..] else { panic!("row {row:?}") };
        let expression = expression(&written_out(cell));
        assert_eq!(expression.holds(&server), holds.parse::<bool>().unwrap(), "{cell}");
        let printed = expression.to_string();
        assert_eq!(Expression::from_canonical(&printed), Ok(expression), "{cell} printed as {printed}");
    }
}

#[test]
fn every_refused_text_of_the_page_gets_its_message_at_its_place() {
    let whole = table(REFUSED).into_iter().map(|row| (row, true));
    let beginning = table(REFUSED_SO).into_iter().map(|row| (row, false));
    for (row, whole) in whole.chain(beginning) {
        let [cell, character, wanted] = row[..] else { panic!("row {row:?}") };
        let text = written_out(cell);
        let error = Expression::parse(&text).expect_err(cell);
        let message = error.to_string();
        assert!(if whole { message == wanted } else { message.starts_with(wanted) }, "{cell}: {message}");
        let Some(position) = error.position() else {
            assert_eq!(character, "—", "{cell}: {message}");
            continue;
        };
        assert_eq!(character.parse(), Ok(position.character), "{cell}: {message}");
        assert_eq!(text[..position.byte].chars().count() + 1, position.character, "{cell}");
        assert!(message.contains(&format!("at {position}")), "{cell}: {message}");
    }
}

#[test]
fn the_page_lists_exactly_the_properties_that_exist() {
    let listed: Vec<_> = table("| server property | kind |").iter().map(|row| (row[0], row[1] == "text")).collect();
    let existing: Vec<_> = Property::ALL.iter().map(|property| (property.as_str(), property.is_text())).collect();
    assert_eq!(listed, existing);
}

#[test]
fn the_page_names_the_limits_of_the_code() {
    let rows = table("| limit | value | why |");
    assert_eq!(rows[0][1], format!("{} KiB", TEXT_BYTES_MAX / 1024));
    assert_eq!(rows[1][1], format!("{DEPTH_MAX} deep"));
}

/// Not a test: what the fuzzer begins with.
#[test]
#[ignore = "writes chaos-tests/fuzz/corpus/requirements"]
fn write_the_examples_as_seeds_for_the_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("chaos-tests/fuzz/corpus/requirements");
    fs::create_dir_all(&folder).unwrap();
    for (index, text) in expressions().iter().enumerate() {
        fs::write(folder.join(format!("example-{index:03}")), text).unwrap();
    }
}
