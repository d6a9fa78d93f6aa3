//! The served description is the original's 2023.0 one: same paths, same
//! operations, same schemas, nothing more and nothing less. Texts for people
//! are our own and are not compared.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use berth::broker::api::description_yaml;
use serde_json::{Value, json};

const REFERENCE: &str = include_str!("fixtures/dcv-session-manager-api-2023.0.yaml");

fn reference() -> Value {
    yaml_serde::from_str(REFERENCE).unwrap()
}

fn served() -> Value {
    yaml_serde::from_str(&description_yaml().unwrap()).unwrap()
}

/// What a schema says about JSON: no descriptions, no examples, no XML.
fn shape(schema: &Value) -> Value {
    if let Some(target) = schema.get("$ref") {
        return json!({ "$ref": target });
    }
    let mut shape = serde_json::Map::new();
    for name in ["type", "format", "nullable", "required", "enum", "oneOf", "anyOf", "allOf", "minimum", "maximum"] {
        if let Some(value) = schema.get(name) {
            shape.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(items) = schema.get("items") {
        shape.insert("items".to_owned(), self::shape(items));
    }
    if let Some(properties) = schema.get("properties") {
        let properties =
            properties.as_object().unwrap().iter().map(|(name, schema)| (name.clone(), self::shape(schema)));
        shape.insert("properties".to_owned(), Value::Object(properties.collect()));
        // Some of the original's schemas leave the type out.
        shape.insert("type".to_owned(), json!("object"));
    }
    Value::Object(shape)
}

/// What an operation says to a generator of clients.
fn operation(operation: &Value) -> Value {
    let parameters = operation.get("parameters").and_then(Value::as_array).into_iter().flatten();
    let parameters: Vec<Value> = parameters
        .map(|parameter| {
            json!([parameter["name"], parameter["in"], parameter["required"], shape(&parameter["schema"])])
        })
        .collect();
    let content = |holder: &Value| {
        holder.get("content").map(|content| {
            let kinds = content.as_object().unwrap().iter();
            kinds.map(|(kind, content)| (kind.clone(), shape(&content["schema"]))).collect::<BTreeMap<_, _>>()
        })
    };
    let responses: BTreeMap<_, _> = operation["responses"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(status, response)| (status.clone(), content(response)))
        .collect();
    json!({
        "operationId": operation["operationId"],
        "tags": operation["tags"],
        "parameters": parameters,
        "body": operation.get("requestBody").map(|body| json!([body["required"], content(body)])),
        "responses": responses,
    })
}

fn operations(document: &Value) -> BTreeMap<(String, String), Value> {
    let mut operations = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, described) in methods.as_object().unwrap() {
            operations.insert((path.clone(), method.clone()), operation(described));
        }
    }
    operations
}

fn schemas(document: &Value) -> BTreeMap<String, Value> {
    let schemas = document["components"]["schemas"].as_object().unwrap();
    schemas.iter().map(|(name, schema)| (name.clone(), shape(schema))).collect()
}

#[test]
fn the_operations_are_the_original_ones() {
    let (ours, original) = (operations(&served()), operations(&reference()));
    assert_eq!(ours.keys().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>());
    assert_eq!(ours.len(), 9);
    for (place, operation) in &original {
        assert_eq!(&ours[place], operation, "{place:?}");
    }
}

#[test]
fn the_schemas_are_the_original_ones() {
    let (ours, original) = (schemas(&served()), schemas(&reference()));
    assert_eq!(ours.keys().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>());
    for (name, schema) in &original {
        assert_eq!(&ours[name], schema, "{name}");
    }
}

/// Generated constructors take their arguments in this order.
#[test]
fn the_properties_of_a_schema_stand_in_the_original_order() {
    fn orders(text: &str) -> BTreeMap<String, Vec<String>> {
        let document: yaml_serde::Value = yaml_serde::from_str(text).unwrap();
        let schemas = document["components"]["schemas"].as_mapping().unwrap();
        let name = |value: &yaml_serde::Value| value.as_str().unwrap().to_owned();
        let order = |schema: &yaml_serde::Value| schema["properties"].as_mapping().unwrap().keys().map(name).collect();
        schemas.iter().map(|(schema, described)| (name(schema), order(described))).collect()
    }
    assert_eq!(orders(&description_yaml().unwrap()), orders(REFERENCE));
}

#[test]
fn version_title_and_security_are_the_original_ones() {
    let (ours, original) = (served(), reference());
    for place in ["/openapi", "/info/version", "/info/title", "/security", "/components/securitySchemes"] {
        assert_eq!(ours.pointer(place).unwrap(), original.pointer(place).unwrap(), "{place}");
    }
}

#[test]
fn nothing_of_openapi_3_1_is_left() {
    fn look(value: &Value, path: &str) {
        match value {
            Value::Object(members) => {
                if let Some(kind) = members.get("type") {
                    assert!(kind.is_string() || path.ends_with("/properties"), "{path} has the type {kind}");
                }
                for name in ["const", "$schema", "examples", "webhooks", "jsonSchemaDialect"] {
                    assert!(!members.contains_key(name), "{path} has {name}");
                }
                members.iter().for_each(|(name, member)| look(member, &format!("{path}/{name}")));
            }
            Value::Array(items) => items.iter().for_each(|item| look(item, path)),
            _ => {}
        }
    }
    look(&served(), "");
}
