#![allow(clippy::unwrap_used)]

use axum::http::HeaderValue;
use proptest::prelude::*;

use super::super::wire::{CreateSessionRequestData, DeleteSessionRequestData, DescribeSessionsRequestData};
use super::*;

fn message(error: Error) -> String {
    match error {
        Error::BadRequest(message) => message,
        other => panic!("another error: {other:?}"),
    }
}

fn create(body: &str) -> Result<Vec<CreateSessionRequestData>, Error> {
    items(body.as_bytes())
}

#[test]
fn a_wrong_type_is_refused_by_the_name_of_its_field() {
    let cases = [
        (r#"[{"Name": 7}]"#, "[0].Name has the wrong type: it must be text"),
        (r#"[{}, {"DcvGlEnabled": "yes"}]"#, "[1].DcvGlEnabled has the wrong type: it must be true or false"),
        (
            r#"[{"MaxConcurrentClients": 2.5}]"#,
            "[0].MaxConcurrentClients has the wrong type: it must be a whole number",
        ),
        (r#"[{"AutorunFileArguments": "a"}]"#, "[0].AutorunFileArguments has the wrong type: it must be an array"),
        (r#"[{"AutorunFileArguments": ["a", 1]}]"#, "[0].AutorunFileArguments[1] has the wrong type: it must be text"),
        ("[{}, null]", "item [1] must be a JSON object"),
        (r#"[["a"]]"#, "item [0] must be a JSON object"),
        (r#"{"Name": "a"}"#, "the body has the wrong type: it must be an array"),
        ("\"text\"", "the body has the wrong type: it must be an array"),
        (" \n", "the body is empty; it must be a JSON array"),
        (r#"[{"Name": "#, "the body is no JSON: it ends too early at line 1 column 10"),
        ("[}", "the body is no JSON: it is not valid at line 1 column 2"),
    ];
    for (body, expected) in cases {
        assert_eq!(message(create(body).unwrap_err()), expected, "{body}");
    }
}

#[test]
fn an_error_does_not_repeat_what_was_sent() {
    let sent = r#"[{"MaxConcurrentClients": "expected hunter2"}]"#;
    assert!(!message(create(sent).unwrap_err()).contains("hunter2"));
}

#[test]
fn both_spellings_of_a_field_are_understood() {
    for (alias, name) in [("MaxConcurrents", "MaxConcurrentClients"), ("MaxConcurrentsClients", "MaxConcurrentClients")]
    {
        assert_eq!(create(&format!("[{{\"{alias}\": 3}}]")).unwrap(), create(&format!("[{{\"{name}\": 3}}]")).unwrap());
    }
    assert_eq!(create(r#"[{"DcvGLEnabled": true}]"#).unwrap()[0].dcv_gl_enabled, Some(true));
    assert_eq!(create(r#"[{"PermissionFile": "x"}]"#).unwrap()[0].permissions_file.as_deref(), Some("x"));
}

#[test]
fn the_described_spelling_wins_over_the_other_one() {
    let both = create(r#"[{"MaxConcurrents": 3, "MaxConcurrentClients": 4}]"#).unwrap();
    assert_eq!(both[0].max_concurrent_clients, Some(4));
    let null = create(r#"[{"MaxConcurrents": 3, "MaxConcurrentClients": null}]"#).unwrap();
    assert_eq!(null[0].max_concurrent_clients, Some(3));
}

#[test]
fn null_and_unknown_fields_count_as_absent() {
    let item = &create(r#"[{"Name": null, "InitFilePath": null, "Colour": {"deep": [1]}}]"#).unwrap()[0];
    assert_eq!(item, &CreateSessionRequestData::default());
}

#[test]
fn a_thousand_items_are_taken_and_one_more_is_not() {
    let body = |count: usize| format!("[{}]", vec!["{}"; count].join(","));
    assert_eq!(items::<DeleteSessionRequestData>(body(ITEMS_MAX).as_bytes()).unwrap().len(), ITEMS_MAX);
    let refused = message(items::<DeleteSessionRequestData>(body(ITEMS_MAX + 1).as_bytes()).unwrap_err());
    assert_eq!(refused, "the body has 1001 items; at most 1000 are allowed in one call");
}

#[test]
fn a_query_may_be_empty_or_null_but_no_array() {
    for body in ["", "  ", "{}", "null"] {
        assert_eq!(
            query::<DescribeSessionsRequestData>(body.as_bytes()).unwrap(),
            DescribeSessionsRequestData::default()
        );
    }
    assert!(query::<DescribeSessionsRequestData>(b"[[\"a\"]]").is_err());
    let null_value: DescribeSessionsRequestData = query(br#"{"Filters": [{"Key": "owner", "Value": null}]}"#).unwrap();
    assert_eq!(null_value.filters.unwrap()[0].value, None);
}

#[test]
fn a_body_is_json_by_its_type_or_without_one() {
    let with = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
        has_json_type(&headers)
    };
    assert!(has_json_type(&HeaderMap::new()));
    assert!(with("application/json; charset=utf-8") && with("Application/JSON") && with("application/problem+json"));
    assert!(!with("text/plain") && !with("application/x-www-form-urlencoded"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("Name".to_owned()),
        Just("Type".to_owned()),
        Just("MaxConcurrents".to_owned()),
        Just("MaxConcurrentClients".to_owned()),
        Just("Filters".to_owned()),
        Just("Key".to_owned()),
        ".{0,8}",
    ];
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_makes_the_decoder_panic(value in any_json()) {
        let body = serde_json::to_vec(&value).unwrap();
        let _ = items::<CreateSessionRequestData>(&body);
        let _ = query::<DescribeSessionsRequestData>(&body);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = items::<CreateSessionRequestData>(&body);
        let _ = query::<DescribeSessionsRequestData>(&body);
    }
}
