//! Tests of the language as a whole, and what they share.
#![allow(clippy::unwrap_used)]

mod documentation;
mod form;
mod limits;
mod meaning;
mod placing;
mod random;
mod trees;
mod work;

use std::collections::BTreeMap;

use super::{Expression, Property, Subject, Value};

/// The value of a property, owned.
#[derive(Debug, Clone)]
enum Owned {
    Text(String),
    Integer(u64),
    Real(f64),
}

/// A server made of two lists.
#[derive(Debug, Clone, Default)]
struct Server {
    tags: BTreeMap<String, String>,
    properties: BTreeMap<Property, Owned>,
}

impl Server {
    fn with_tag(mut self, key: &str, value: &str) -> Self {
        self.tags.insert(key.to_owned(), value.to_owned());
        self
    }

    fn with(mut self, property: Property, value: Owned) -> Self {
        self.properties.insert(property, value);
        self
    }
}

impl Subject for Server {
    fn tag(&self, key: &str) -> Option<&str> {
        self.tags.get(key).map(String::as_str)
    }

    fn property(&self, property: Property) -> Option<Value<'_>> {
        self.properties.get(&property).map(|value| match value {
            Owned::Text(text) => Value::Text(text),
            Owned::Integer(integer) => Value::Integer(*integer),
            Owned::Real(real) => Value::Real(*real),
        })
    }
}

/// The expression of a text that is one.
fn expression(text: &str) -> Expression {
    Expression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).unwrap()
}

fn holds(text: &str, server: &Server) -> bool {
    expression(text).holds(server)
}
