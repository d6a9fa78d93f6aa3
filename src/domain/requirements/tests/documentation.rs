//! The tables of `docs/requirements.md`, read and run.

use super::{Owned, Server, expression};
use crate::domain::requirements::{DEPTH_MAX, Expression, Property, TEXT_BYTES_MAX};

const PAGE: &str = include_str!("../../../../docs/requirements.md");

/// The rows of the table under this header, each cell without its back-quotes.
fn table(header: &str) -> Vec<Vec<&'static str>> {
    let mut lines = PAGE.lines().skip_while(|line| *line != header);
    assert_eq!(lines.next(), Some(header), "the page has no such table");
    lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap();
            let unquoted = |cell: &'static str| cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
            cells.split('|').map(str::trim).map(|cell| unquoted(cell).unwrap_or(cell)).collect()
        })
        .collect()
}

fn server_of_the_page() -> Server {
    let rows = table("| key | value |");
    assert!(rows.len() >= 10);
    rows.iter().fold(Server::default(), |server, row| {
        let [key, value] = row[..] else { panic!("row {row:?}") };
        let text = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
        let text = text.map(|text| text.replace("''", "'"));
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
fn every_expression_of_the_page_holds_as_the_page_says() {
    let server = server_of_the_page();
    let rows = table("| expression | holds | rule |");
    assert!(rows.len() >= 50, "only {} rows were read", rows.len());
    for row in rows {
        let [text, holds, _] = row[..] else { panic!("row {row:?}") };
        assert_eq!(expression(text).holds(&server), holds.parse::<bool>().unwrap(), "{text}");
    }
}

#[test]
fn every_refused_text_of_the_page_gets_its_message_at_its_place() {
    let rows = table("| expression | at | message begins |");
    assert!(rows.len() >= 30, "only {} rows were read", rows.len());
    for row in rows {
        let [text, character, message] = row[..] else { panic!("row {row:?}") };
        let error = Expression::parse(text).expect_err(text);
        assert!(error.to_string().starts_with(message), "{text}: {error}");
        let position = error.position().unwrap();
        assert_eq!(position.character, character.parse::<usize>().unwrap(), "{text}: {error}");
        assert_eq!(text[..position.byte].chars().count() + 1, position.character, "{text}");
        assert!(error.to_string().contains(&format!("at {position}")), "{text}: {error}");
    }
}

#[test]
fn the_page_lists_exactly_the_properties_that_exist() {
    let listed: Vec<_> = table("| server property | kind |").iter().map(|row| row[0]).collect();
    let existing: Vec<_> = Property::ALL.iter().map(|property| property.as_str()).collect();
    assert_eq!(listed, existing);
}

#[test]
fn the_page_names_the_limits_of_the_code() {
    let rows = table("| limit | value | why |");
    assert_eq!(rows[0][1], format!("{} KiB", TEXT_BYTES_MAX / 1024));
    assert_eq!(rows[1][1], format!("{DEPTH_MAX} deep"));
}
