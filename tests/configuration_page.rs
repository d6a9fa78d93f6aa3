//! The table of `docs/operations.md` holds the keys of the configuration, and
//! nothing else, with their defaults.

use std::collections::BTreeMap;

use berth::broker::config::{Config, Fate, KEYS, ORIGINAL_KEYS};

const PAGE: &str = include_str!("../docs/operations.md");

/// Keys and defaults of the table, without back-quotes.
fn table() -> BTreeMap<String, String> {
    rows("Configuration").into_iter().map(|[key, default, _]| (key.to_owned(), default.to_owned())).collect()
}

/// Rows of a section's table whose first cell is a key. Back-quotes around a
/// whole cell are left out.
fn rows(section: &str) -> Vec<[&'static str; 3]> {
    let section = PAGE.split(&format!("\n## {section}\n")).nth(1).expect("the page has the section");
    let section = section.split("\n## ").next().expect("it ends");
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let cell = |place: usize| match cells[place].strip_prefix('`').and_then(|cell| cell.strip_suffix('`')) {
            Some(code) if !code.contains('`') => code,
            _ => cells[place],
        };
        [cell(1), cell(2), cell(3)]
    };
    section.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// A file with one key.
fn file_with(key: &str, value: &str) -> String {
    match key.split_once('.') {
        Some((section, key)) => format!("[{section}]\n{key} = {value}\n"),
        None => format!("{key} = {value}\n"),
    }
}

/// A default as TOML: numbers, lists and truths as they are, the rest quoted.
fn as_toml(text: &str) -> String {
    let plain = text.parse::<u64>().is_ok() || text.parse::<bool>().is_ok() || text.starts_with('[');
    if plain { text.to_owned() } else { format!("'{text}'") }
}

#[test]
fn every_key_of_the_page_exists_and_has_the_default_that_it_says() {
    let table = table();
    assert!(table.len() > 20, "found only {table:?}");
    for (key, default) in &table {
        if default.is_empty() {
            // No default: any value must be accepted as a text.
            let config: Config =
                toml::from_str(&file_with(key, "'/x'")).unwrap_or_else(|error| panic!("{key}: {error}"));
            assert_ne!(config, Config::default(), "{key} changes nothing");
            continue;
        }
        let config: Config =
            toml::from_str(&file_with(key, &as_toml(default))).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(config, Config::default(), "{key} is not {default} by default");
    }
}

#[test]
fn every_key_that_exists_is_on_the_page() {
    // The names of the fields, as the derived form shows them.
    let shown = format!("{:#?}", Config::default());
    let table = table();
    let mut section = String::new();
    let mut found = 0;
    for line in shown.lines() {
        let depth = line.len() - line.trim_start().len();
        let Some((name, rest)) = line.trim().split_once(": ") else { continue };
        match (depth, rest.ends_with('{')) {
            (4, true) => name.clone_into(&mut section),
            (4, false) => {
                assert!(table.contains_key(name), "{name} is not on the page");
                found += 1;
            }
            // Passwords stand in the original's file alone; in ours a file is named.
            (8, _) if name.ends_with("_password") => {}
            (8, _) => {
                let key = format!("{section}.{name}");
                assert!(table.contains_key(&key), "{key} is not on the page");
                found += 1;
            }
            _ => {}
        }
    }
    assert_eq!(found, table.len(), "the page has other keys, too");
}

#[test]
fn every_key_that_exists_can_come_from_the_environment() {
    let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    for key in table().keys() {
        assert!(keys.contains(&key.as_str()), "{key} is not in the list of keys");
    }
    assert_eq!(keys.len(), table().len());
}

#[test]
fn the_page_says_what_becomes_of_each_key_of_the_original() {
    let told = rows("Coming from the original");
    let expected: Vec<[&str; 3]> = ORIGINAL_KEYS
        .iter()
        .map(|key| match key.fate {
            Fate::Becomes { key: ours, .. } => [key.name, ours, key.note],
            Fate::Ignored => [key.name, "ignored", key.note],
        })
        .collect();
    assert_eq!(told, expected);
}
