//! Random expressions against a model of their own, and random texts.

use proptest::prelude::*;

use super::{Owned, Server};
use crate::domain::requirements::{Expression, Property};

/// An expression as the grammar makes it, with the blanks and cases it is written with.
#[derive(Debug, Clone)]
enum Model {
    /// Whether the term holds on [`server`], and one way to write it.
    Term(bool, &'static str),
    Not(Box<Model>),
    And(Vec<Model>),
    Or(Vec<Model>),
    Parentheses(Box<Model>),
}

const TERMS: [(bool, &str); 14] = [
    (true, "tag:a='x'"),
    (false, "tag:a = 'o''neil'"),
    (true, "tag:a!=7"),
    (false, "tag:a >\n7"),
    (true, "tag:n >= 1e1"),
    (false, "tag:n<10"),
    (true, "tag:n := '0'"),
    (false, "tag:missing!='x'"),
    (true, "tag:dcv:os-family='linux'"),
    (true, "server:Host.Memory.TotalBytes = 16e9"),
    (false, "server:Host.Memory.TotalBytes:=16"),
    (true, "server:Host.CpuInfo.NumberOfCpus\t< '10'"),
    (false, "server:Host.Os.Family = 'Linux'"),
    (true, "server:Host.Os.Family := 'in'"),
];

fn server() -> Server {
    Server::default()
        .with_tag("a", "x")
        .with_tag("n", "10")
        .with_tag("dcv:os-family", "linux")
        .with(Property::MemoryTotalBytes, Owned::Integer(16_000_000_000))
        .with(Property::CpuNumberOfCpus, Owned::Integer(4))
        .with(Property::OsFamily, Owned::Text("linux".to_owned()))
}

fn models() -> impl Strategy<Value = Model> {
    let term = prop::sample::select(&TERMS[..]).prop_map(|(holds, text)| Model::Term(holds, text));
    term.prop_recursive(6, 48, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|model| Model::Not(Box::new(model))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Model::And),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Model::Or),
            inner.prop_map(|model| Model::Parentheses(Box::new(model))),
        ]
    })
}

impl Model {
    fn holds(&self) -> bool {
        match self {
            Self::Term(holds, _) => *holds,
            Self::Not(model) => !model.holds(),
            Self::And(models) => models.iter().fold(true, |holds, model| holds & model.holds()),
            Self::Or(models) => models.iter().fold(false, |holds, model| holds | model.holds()),
            Self::Parentheses(model) => model.holds(),
        }
    }

    /// How tightly the outermost part binds.
    fn strength(&self) -> u8 {
        match self {
            Self::Or(_) => 0,
            Self::And(_) => 1,
            Self::Not(_) => 2,
            Self::Term(..) | Self::Parentheses(_) => 3,
        }
    }

    fn write(&self, [and, or, not]: [&str; 3], to: &mut String) {
        let words = [and, or, not];
        let operand = |model: &Self, least: u8, to: &mut String| {
            if model.strength() >= least {
                return model.write(words, to);
            }
            to.push('(');
            model.write(words, to);
            to.push(')');
        };
        match self {
            Self::Term(_, text) => to.push_str(text),
            Self::Parentheses(model) => {
                to.push('(');
                model.write(words, to);
                to.push(')');
            }
            Self::Not(model) => {
                to.push_str(not);
                operand(model, 3, to);
            }
            Self::And(models) | Self::Or(models) => {
                let (word, least) = if self.strength() == 1 { (and, 2) } else { (or, 1) };
                for (index, model) in models.iter().enumerate() {
                    to.push_str(if index == 0 { "" } else { word });
                    operand(model, least, to);
                }
            }
        }
    }
}

/// Pieces of the language, right and wrong, in no order.
pub(super) fn soup() -> impl Strategy<Value = String> {
    let pieces = [
        "tag:",
        "tag:a",
        "tag:dcv:",
        "tag:dcv:x-1",
        "server:",
        "server:Id",
        "server:Host.Os.",
        "Family",
        "and",
        "OR",
        "not",
        "(",
        ")",
        "=",
        "!=",
        ":=",
        ">",
        ">=",
        "<",
        "<=",
        "'",
        "''",
        "'x'",
        "'ж'",
        "1",
        "+",
        "-",
        ".",
        "e",
        "1e999",
        "0.25",
        " ",
        "\n",
        "ü",
        "\0",
        "!",
        ":",
        "inf",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..24).prop_map(|pieces| pieces.concat())
}

/// A text either is an expression that reads back as itself or is refused at a place inside it.
fn is_read_or_refused(text: &str) -> Result<(), TestCaseError> {
    match Expression::parse(text) {
        Ok(None) => prop_assert!(text.trim().is_empty()),
        Ok(Some(expression)) => {
            let _ = expression.holds(&server());
            prop_assert_eq!(Expression::from_canonical(&expression.to_string()), Ok(expression));
        }
        Err(error) => {
            let position = error.position();
            prop_assert!(position.is_some_and(|at| text.is_char_boundary(at.byte)), "{}", error);
        }
    }
    Ok(())
}

proptest! {
    // A failure prints the smallest case; nothing is written beside the sources.
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_expression_means_what_its_tree_means_and_so_does_what_it_prints(
        model in models(),
        words in prop::sample::select(vec![[" and ", " or ", "not "], ["\tAND\n", " oR ", "NoT\r\n"], ["and", "or", "not"]]),
    ) {
        let mut text = String::new();
        model.write(words, &mut text);
        let Some(parsed) = Expression::parse(&text)? else { return Err(TestCaseError::fail("blank")) };
        prop_assert_eq!(parsed.holds(&server()), model.holds(), "{}", text);
        let printed = parsed.to_string();
        let again = Expression::parse(&printed)?;
        prop_assert_eq!(again.as_ref(), Some(&parsed), "{} printed as {}", text, printed);
        prop_assert_eq!(again.map(|again| again.to_string()), Some(printed));
    }

    #[test]
    fn pieces_of_the_language_in_any_order_are_read_or_refused(text in soup()) {
        is_read_or_refused(&text)?;
    }

    #[test]
    fn random_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        is_read_or_refused(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn any_text_survives_being_quoted(value in any::<String>()) {
        let text = format!("tag:a = '{}' and tag:a := '{0}'", value.replace('\'', "''"));
        let Some(parsed) = Expression::parse(&text)? else { return Err(TestCaseError::fail("blank")) };
        prop_assert!(parsed.holds(&Server::default().with_tag("a", &value)));
        prop_assert_eq!(Expression::parse(&parsed.to_string()), Ok(Some(parsed)));
    }

    #[test]
    fn integers_compare_as_integers_however_they_are_written(
        actual in any::<u64>(),
        wanted in any::<u64>(),
        near in any::<bool>(),
        exponent in 0_usize..25,
    ) {
        let wanted = if near { actual.saturating_add(wanted % 3).saturating_sub(1) } else { wanted };
        let server = Server::default().with(Property::MemoryTotalBytes, Owned::Integer(actual));
        let shifted = format!("{wanted:0>width$}", width = exponent + 1);
        let (whole, fraction) = shifted.split_at(shifted.len() - exponent);
        let fraction = if fraction.is_empty() { "0" } else { fraction };
        for written in [wanted.to_string(), format!("{whole}.{fraction}e{exponent}"), format!("+{wanted}.0E-0")] {
            for (operator, expected) in
                [("=", actual == wanted), ("!=", actual != wanted), ("<", actual < wanted), (">=", actual >= wanted)]
            {
                let text = format!("server:Host.Memory.TotalBytes {operator} {written}");
                prop_assert_eq!(super::holds(&text, &server), expected, "{} for {}", text, actual);
            }
        }
    }

    #[test]
    fn doubles_compare_as_doubles(actual in prop::num::f64::NORMAL, wanted in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL) {
        let server = Server::default().with(Property::CpuLoadAverageOneMinute, Owned::Real(actual));
        for (operator, expected) in [("<", actual < wanted), (">", actual > wanted), ("<=", actual <= wanted)] {
            for text in [
                format!("server:Host.CpuLoadAverage.OneMinute {operator} {wanted}"),
                format!("server:Host.CpuLoadAverage.OneMinute {operator} {wanted:e}"),
            ] {
                prop_assert_eq!(super::holds(&text, &server), expected, "{} for {:e}", text, actual);
            }
        }
        let same = format!("server:Host.CpuLoadAverage.OneMinute = {actual:e}");
        prop_assert!(super::holds(&same, &server), "{}", same);
    }
}
