//! Random trees with random keys, texts and numbers, nested to the limit: what is read survives being
//! printed.

use proptest::prelude::*;

use super::{Owned, Server};
use crate::domain::requirements::{CANONICAL_BYTES_MAX, DEPTH_MAX, Expression, Property, TEXT_BYTES_MAX};

fn keys() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => prop::sample::select(vec!["tag:a", "tag:b", "tag:and", "tag:dcv", "tag:dcv:os-family"]).prop_map(str::to_owned),
        1 => "tag:[A-Za-z_][A-Za-z0-9_]{0,20}",
        1 => "tag:dcv:[A-Za-z0-9_-]{1,20}",
        2 => prop::sample::select(Property::ALL.to_vec()).prop_map(|property| format!("server:{property}")),
    ]
}

/// A text between its quotes: usual ones, any ones, and ones that look like something else.
fn texts() -> impl Strategy<Value = String> {
    let inside = prop_oneof![
        prop::sample::select(vec!["", "x", "linux", "10", "1e999", "'", "''", "' or tag:a = '", "\r\n\t", "\0", "not"])
            .prop_map(str::to_owned),
        prop::collection::vec(any::<char>(), 0..8).prop_map(String::from_iter),
        "[0-9'. eE+-]{0,12}",
    ];
    inside.prop_map(|text| format!("'{}'", text.replace('\'', "''")))
}

/// A number within the range, in any spelling.
fn numbers() -> impl Strategy<Value = String> {
    let exponent = prop_oneof![Just(String::new()), "[eE][+-]?0{0,3}[0-9]{1,2}", "[eE][+-]?(1[0-9]|2[0-7])[0-9]"];
    ("[+-]?", "0{0,3}", "[0-9]{1,22}", prop::option::of("[0-9]{1,22}"), exponent).prop_map(
        |(sign, zeros, whole, fraction, exponent)| {
            let fraction = fraction.map(|fraction| format!(".{fraction}")).unwrap_or_default();
            format!("{sign}{zeros}{whole}{fraction}{exponent}")
        },
    )
}

fn terms() -> BoxedStrategy<String> {
    let orders = prop::sample::select(vec!["=", "!=", ">", ">=", "<", "<="]);
    let test = prop_oneof![
        (orders.clone(), texts()).prop_map(|(order, text)| (order, text)),
        (orders, numbers()).prop_map(|(order, number)| (order, number)),
        texts().prop_map(|text| (":=", text)),
    ];
    let blanks = prop::sample::select(vec!["", " ", "\r\n", "\t  "]);
    (keys(), test, blanks.clone(), blanks)
        .prop_map(|(key, (operator, value), before, behind)| format!("{key}{before}{operator}{behind}{value}"))
        .boxed()
}

/// The text of a tree, its parentheses at most [`DEPTH_MAX`] deep.
pub(super) fn trees(terms: BoxedStrategy<String>) -> impl Strategy<Value = String> {
    const DEPTH: usize = 6;
    const AROUND_MAX: usize = DEPTH_MAX - DEPTH;

    let depth = u32::try_from(DEPTH).unwrap();
    let bushes = terms.clone().prop_recursive(depth, 32, 4, |inner| {
        let list = prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            inner.clone().prop_map(|inner| format!("not ({inner})")),
            inner.prop_map(|inner| format!("({inner})")),
            list.clone().prop_map(|list| format!("({})", list.join(" And "))),
            list.prop_map(|list| format!("({})", list.join(" or\n"))),
        ]
    });
    let layers = prop_oneof![
        Just(("(", "", ")")),
        Just(("not(", "", ")")),
        Just(("(", " or ", ")")),
        Just(("(", " and ", ")")),
        Just(("not (", " and ", ")")),
    ];
    let count = prop_oneof![3 => 0..4_usize, 1 => AROUND_MAX - 8..=AROUND_MAX];
    let around = count.prop_flat_map(move |count| prop::collection::vec((layers.clone(), terms.clone()), count));
    (bushes, around).prop_map(|(bush, around)| {
        around.into_iter().fold(bush, |inner, ((opening, connective, closing), term)| match connective {
            "" => format!("{opening}{inner}{closing}"),
            // On either side, as it comes.
            _ if term.len() % 2 == 0 => format!("{opening}{term}{connective}{inner}{closing}"),
            _ => format!("{opening}{inner}{connective}{term}{closing}"),
        })
    })
}

fn servers() -> [Server; 3] {
    let full = |text: &str, integer: u64, real: f64| {
        Property::ALL.into_iter().fold(Server::default().with_tag("a", text).with_tag("b", "10"), |server, property| {
            let value = match property {
                Property::CpuLoadAverageOneMinute | Property::CpuLoadAverageFiveMinutes => Owned::Real(real),
                _ if property.is_text() => Owned::Text(text.to_owned()),
                _ => Owned::Integer(integer),
            };
            server.with(property, value)
        })
    };
    [Server::default(), full("linux", 10, 0.25), full("", u64::MAX, f64::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_tree_is_read_and_reads_back_as_itself_from_what_it_prints(text in trees(terms())) {
        prop_assume!(text.len() <= TEXT_BYTES_MAX);
        let Some(parsed) = Expression::parse(&text)? else { return Err(TestCaseError::fail("blank")) };
        let printed = parsed.to_string();
        prop_assert!(printed.len() <= CANONICAL_BYTES_MAX);
        let again = Expression::from_canonical(&printed)?;
        prop_assert_eq!(&again, &parsed, "printed as {}", printed);
        prop_assert_eq!(again.to_string(), printed);
        for server in servers() {
            prop_assert_eq!(again.holds(&server), parsed.holds(&server));
        }
    }
}
