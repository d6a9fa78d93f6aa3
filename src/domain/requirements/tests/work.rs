//! How much work a text makes: steps that are counted, and, by hand, time.

use std::time::Instant;

use proptest::prelude::*;

use super::random;
use crate::domain::requirements::steps::{self, counted};
use crate::domain::requirements::{Expression, TEXT_BYTES_MAX};

/// Most steps for each byte of a text. The dearest byte is a parenthesis: it is looked for among all
/// signs and keywords.
const STEPS_PER_BYTE_MAX: usize = 20;

/// Texts made to cost much, each of at most `bytes` bytes.
fn adversaries(bytes: usize) -> Vec<(&'static str, String)> {
    let filled = |opening: &str, piece: &str, closing: &str| {
        let room = bytes.saturating_sub(opening.len() + closing.len());
        format!("{opening}{}{closing}", piece.repeat(room / piece.len()))
    };
    let nested = |opening: &str, closing: &str, filling: &str| {
        let around = format!("{}tag:a=1", opening.repeat(64));
        let closing = closing.repeat(64);
        filled(&around, filling, &closing)
    };
    vec![
        ("parentheses that open", filled("", "(", "")),
        ("parentheses that close", filled("tag:a=1", ")", "")),
        ("negations that open", filled("", "not(", "")),
        ("negations", filled("", "not ", "")),
        ("blanks", filled("", " ", "")),
        ("white space that is no blank", filled("", "\u{a0}", "")),
        ("blanks before a fault at the end", filled("tag:a=1", " ", "$")),
        ("a text without an end", filled("tag:a='", "x", "")),
        ("doubled quotes without an end", filled("tag:a='", "''", "")),
        ("doubled quotes", filled("tag:a='", "''", "'")),
        ("quotes in pairs", filled("tag:a=", "'' ", "")),
        ("a text", filled("tag:a:='", "\u{1F980}", "'")),
        ("texts", filled("", "tag:a=''or ", "tag:a=''")),
        ("a number", filled("tag:a=", "7", "")),
        ("a number of zeros", filled("tag:a=", "0", "")),
        ("a fraction of zeros", filled("tag:a=0.", "0", "1e-9")),
        ("an exponent", filled("tag:a=1e", "9", "")),
        ("an exponent of zeros", filled("tag:a=1e", "0", "")),
        ("numbers without an operator", filled("", "1 ", "")),
        ("numbers whose exponent is missing", filled("tag:a=1", "e+", "")),
        ("numbers that print longer", filled("", "tag:a=1e20or ", "tag:a=1e20")),
        ("a word", filled("", "x", "")),
        ("a word of no ASCII", filled("", "\u{1D5D1}", "")),
        ("a name", filled("tag:", "x", "=1")),
        ("a built-in name", filled("tag:dcv:", "-", "=1")),
        ("a path", filled("server:Host", ".Os", "=1")),
        ("a path that ends in a dot", filled("server:Host", ".Os", ".=1")),
        ("an unknown property behind all", filled("", "tag:a=1or ", "server:Ip=1")),
        ("an and-list", filled("", "tag:a=1and ", "tag:a=1")),
        ("an or-list", filled("", "tag:a=1or ", "tag:a=1")),
        ("alternating lists", filled("", "tag:a=1or tag:a=2and ", "tag:a=1")),
        ("nested or-lists", nested("(tag:a=1or ", ")", "or tag:a=1")),
        ("or-lists nested to the left", nested("(", "or tag:a=1)", "or tag:a=1")),
        ("nested and-lists", nested("tag:a=1and(", ")", "and tag:a=1")),
        ("nested lists of both kinds", nested("tag:a=1or tag:b=2and(", ")", "and tag:a=1")),
        ("nested negations", nested("not(", ")", "and tag:a=1")),
    ]
}

#[test]
fn no_text_makes_more_work_than_in_proportion_to_its_length() {
    for bytes in [1 << 11, 1 << 12, TEXT_BYTES_MAX] {
        for (name, text) in adversaries(bytes) {
            assert!(text.len() <= bytes && text.len() + 64 > bytes, "{name} of {} bytes", text.len());
            let (_, steps) = counted(|| Expression::parse(&text));
            assert!(steps <= STEPS_PER_BYTE_MAX * (bytes + 1), "{name}: {steps} steps for {bytes} bytes");
        }
    }
}

#[test]
fn a_text_that_is_too_long_is_refused_without_being_looked_at() {
    let (result, steps) = counted(|| Expression::parse(&" ".repeat(TEXT_BYTES_MAX + 1)));
    assert!(result.is_err());
    assert_eq!(steps, 0);
}

#[test]
fn steps_are_counted() {
    assert_eq!(counted(|| steps::took(7)), ((), 7));
    let (_, few) = counted(|| Expression::parse("tag:a = 1"));
    let (_, more) = counted(|| Expression::parse("tag:a = 1 and tag:a = 1"));
    assert!(0 < few && 2 * few <= more, "{few} and {more}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_repetition_of_pieces_makes_more_work_than_in_proportion(
        opening in random::soup(),
        piece in random::soup(),
        closing in random::soup(),
        times in 0_usize..2000,
    ) {
        let mut text = format!("{opening}{}{closing}", piece.repeat(times));
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        let (_, steps) = counted(|| Expression::parse(&text));
        prop_assert!(steps <= STEPS_PER_BYTE_MAX * (text.len() + 1), "{} steps for {} bytes", steps, text.len());
    }
}

/// Not a test: prints how long the texts above take, the costliest first. Worth something in a release
/// build only.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)]
fn measure_the_texts_that_take_longest() {
    const ROUNDS: usize = 200;
    let mut measured: Vec<_> = adversaries(TEXT_BYTES_MAX)
        .into_iter()
        .map(|(name, text)| {
            let mut times: Vec<_> = (0..ROUNDS)
                .map(|_| {
                    let begun = Instant::now();
                    // What was read is dropped within the time, too.
                    drop(Expression::parse(&text));
                    begun.elapsed().as_nanos() / 100
                })
                .collect();
            times.sort_unstable();
            let (result, steps) = counted(|| Expression::parse(&text));
            (times[ROUNDS / 2], times[0], steps, if result.is_ok() { "read" } else { "refused" }, name)
        })
        .collect();
    measured.sort_unstable();
    println!("median  least (tenths of a microsecond)");
    for (median, least, steps, verdict, name) in measured.into_iter().rev() {
        println!("{median:>6} {least:>6} {steps:>7} steps {verdict:>8} {name}");
    }
}
