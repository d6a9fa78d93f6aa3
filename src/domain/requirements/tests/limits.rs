//! Texts at the limits and one beyond.

use std::thread;

use super::{Server, expression, holds};
use crate::domain::requirements::{DEPTH_MAX, Error, Expression, Property, TEXT_BYTES_MAX};

#[test]
fn a_text_of_the_greatest_length_is_read_and_a_longer_one_is_not() {
    let value = "x".repeat(TEXT_BYTES_MAX - "tag:a = ''".len());
    let text = format!("tag:a = '{value}'");
    assert_eq!(text.len(), TEXT_BYTES_MAX);
    assert!(holds(&text, &Server::default().with_tag("a", &value)));

    let error = Expression::parse(&format!("{text} ")).unwrap_err();
    assert_eq!(error, Error::TooLong { bytes: TEXT_BYTES_MAX + 1, limit: TEXT_BYTES_MAX });
    assert_eq!(error.position(), None);
}

#[test]
fn blanks_count_towards_the_length_also_alone() {
    assert_eq!(Expression::parse(&" ".repeat(TEXT_BYTES_MAX)), Ok(None));
    let bytes = TEXT_BYTES_MAX + 1;
    assert_eq!(Expression::parse(&" ".repeat(bytes)), Err(Error::TooLong { bytes, limit: TEXT_BYTES_MAX }));
}

#[test]
fn parentheses_nest_to_the_limit_and_no_deeper() {
    let nested = |opening: &str, depth: usize| format!("{}tag:a = 1{}", opening.repeat(depth), ")".repeat(depth));
    let server = Server::default().with_tag("a", "1");
    assert!(holds(&nested("(", DEPTH_MAX), &server));
    assert!(holds(&nested("not (", DEPTH_MAX), &server));
    for opening in ["(", "not ("] {
        let error = Expression::parse(&nested(opening, DEPTH_MAX + 1)).unwrap_err();
        let Error::TooDeep { at, limit: DEPTH_MAX } = error else { panic!("{error:?}") };
        assert_eq!(at.byte + 1, opening.len() * (DEPTH_MAX + 1));
    }
}

#[test]
fn a_text_of_nothing_but_parentheses_is_refused_without_running_out_of_stack() {
    for text in ["(".repeat(TEXT_BYTES_MAX), "not(".repeat(TEXT_BYTES_MAX / 4)] {
        assert!(matches!(Expression::parse(&text), Err(Error::TooDeep { .. })));
    }
}

#[test]
fn the_deepest_expression_is_read_printed_asked_and_dropped_on_a_small_stack() {
    const STACK_BYTES: usize = 512 * 1024;
    for opening in ["(tag:b = 1 or ", "not (tag:b = 1 and ", "(tag:b = 2 and (tag:b = 1 or "] {
        let depth = DEPTH_MAX / opening.matches('(').count();
        let text = format!("{}tag:a = 1{}", opening.repeat(depth), ")".repeat(DEPTH_MAX));
        let work = move || {
            let expression = expression(&text);
            assert_eq!(Expression::from_canonical(&expression.to_string()).as_ref(), Ok(&expression));
            let _ = expression.clone().holds(&Server::default().with_tag("a", "1"));
            expression.terms().count()
        };
        let terms = thread::Builder::new().stack_size(STACK_BYTES).spawn(work).unwrap().join().unwrap();
        assert!(terms > DEPTH_MAX);
    }
}

#[test]
fn a_message_repeats_no_more_than_a_piece_of_a_long_text() {
    for text in ["w".repeat(8000), format!("server:{} = 1", "W".repeat(8000))] {
        let message = Expression::parse(&text).unwrap_err().to_string();
        assert!(message.len() < 300 && message.contains('…'), "{message}");
    }
}

#[test]
fn an_unknown_property_that_differs_in_case_gets_the_right_name() {
    let error = Expression::parse("tag:ü = 1 or server:Host.Aws.EC2InstanceId = 'i-1'").unwrap_err();
    assert!(matches!(error, Error::InvalidTagKey { .. }), "{error}");

    let error = Expression::parse("tag:a = 'ü' and server:Host.Aws.EC2InstanceId = 'i-1'").unwrap_err();
    let Error::UnknownProperty { at, similar, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*similar, Some(Property::AwsEc2InstanceId));
    assert_eq!((at.character, at.byte), (17, 17));
    assert!(error.to_string().contains("did you mean server:Host.Aws.Ec2InstanceId?"), "{error}");
}

#[test]
fn what_is_wrong_first_is_reported_first() {
    for (text, character) in [("tag:a := 1 $", 7), ("server:Ip = 1 $", 1), ("tag:a = 1e999 $", 9)] {
        let error = Expression::parse(text).unwrap_err();
        assert_eq!(error.position().unwrap().character, character, "{text}: {error}");
    }
}

#[test]
fn the_smallest_steps_at_the_ends_of_the_range_of_numbers() {
    for number in ["9.999e308", "-9.999e308", "1e-324", "0.1e309", "10e-325"] {
        expression(&format!("tag:a = {number}"));
    }
    for number in ["1e309", "10e308", "9.9e-325", "-1e309", "1e999999999999999999999999", "1e-999999999999999999999"] {
        let error = Expression::parse(&format!("tag:a = {number}")).unwrap_err();
        assert!(matches!(error, Error::NumberOutOfRange { .. }), "{number}: {error}");
    }
}
