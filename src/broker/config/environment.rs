//! Variables of the environment: `BERTH_CLIENTS_LISTEN` is `clients.listen`.

use std::ffi::OsString;

use super::keys::{KEYS, Key, closest, sections, variable};
use super::sources::{Layer, Notice, Origin, not_text};

/// What all our variables begin with.
const PREFIX: &str = "BERTH_";

/// Variables that mean something else.
const OTHERS: [&str; 5] = ["BERTH_CONFIG", "BERTH_PROPERTIES", "BERTH_LOG", "BERTH_LOG_JSON", "BERTH_AGENT_CONFIG"];

/// Reads those that are ours. One without a value does not count.
pub(super) fn layer(environment: &[(OsString, OsString)]) -> Layer {
    let mut layer = Layer::default();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX) && !OTHERS.contains(name)) else {
            continue;
        };
        let origin = Origin::Variable(name.to_owned());
        match (KEYS.iter().find(|key| variable(key.name) == name), value.to_str()) {
            (Some(_), Some(text)) if text.trim().is_empty() => {}
            (Some(key), Some(text)) => layer.take(key, text, origin),
            (Some(key), None) => layer.refuse(not_text(key), origin),
            (None, value) => layer.notices.extend(doubt(name, value.unwrap_or_default()).map(Notice::Warning)),
        }
    }
    layer
}

/// What to say about a variable that is none of ours: it may be a mistake, or
/// somebody else's.
fn doubt(name: &str, value: &str) -> Option<String> {
    let in_section = sections().any(|section| name.starts_with(&format!("{}_", variable(section))));
    let meant = closest_key(name);
    if is_of_kubernetes(name, value) || !(in_section || meant.is_some()) {
        return None;
    }
    let meant = meant.map(|key| format!("; did you mean {}?", variable(key.name))).unwrap_or_default();
    Some(format!("the variable {name} has no effect: there is no such key{meant}"))
}

fn closest_key(name: &str) -> Option<&'static Key> {
    let path = name.strip_prefix(PREFIX)?.to_lowercase();
    let meant = closest(&path.replace('_', "."), KEYS.iter().map(|key| key.name))
        .or_else(|| closest(&path.replacen('_', ".", 1), KEYS.iter().map(|key| key.name)))?;
    KEYS.iter().find(|key| key.name == meant)
}

/// Kubernetes tells every container about services: one that is called
/// `berth-clients` gives `BERTH_CLIENTS_PORT=tcp://10.0.0.1:8443` and the like.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Layer {
        let environment: Vec<_> = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        layer(&environment)
    }

    #[test]
    fn every_key_has_a_variable_of_its_own() {
        let variables: BTreeSet<String> = KEYS.iter().map(|key| variable(key.name)).collect();
        assert_eq!(variables.len(), KEYS.len());
        assert!(OTHERS.iter().all(|other| !variables.contains(*other)));
        assert_eq!(variable("clients.listen"), "BERTH_CLIENTS_LISTEN");
    }

    #[test]
    fn a_variable_that_looks_like_a_key_is_doubted_and_one_of_others_is_not() {
        let doubts = |name: &str, value: &str| {
            let layer = of(&[(name, value)]);
            assert!(layer.values.is_empty() && layer.problems.is_empty());
            layer.notices.first().map(|notice| notice.text().to_owned())
        };
        let text = doubts("BERTH_CLIENT_LISTEN", "x").unwrap();
        assert!(text.contains("BERTH_CLIENTS_LISTEN"), "{text}");
        assert!(doubts("BERTH_SESSIONS_QUEUE_MAXIMUM", "5").is_some());
        assert!(doubts("BERTH_CLUSTER_COLOUR", "blue").is_some());
        for (name, value) in [
            ("BERTH_LOG", "info"),
            ("BERTH_SESSION_ID", "x"),
            ("BERTH_SEED", "5"),
            ("BERTH_PROGRAM", "/bin/berth"),
            ("BERTH_CLIENTS_PORT", "tcp://10.0.0.1:8443"),
            ("BERTH_CLIENTS_PORT_8443_TCP_ADDR", "10.0.0.1"),
            ("BERTH_CLIENTS_SERVICE_HOST", "10.0.0.1"),
            ("PATH", "/bin"),
        ] {
            assert_eq!(doubts(name, value), None, "{name}");
        }
    }

    #[test]
    fn one_without_a_value_does_not_count() {
        let layer = of(&[("BERTH_CLUSTER_ADDRESS", ""), ("BERTH_REPLICA", " ")]);
        assert!(layer.values.is_empty() && layer.problems.is_empty() && layer.notices.is_empty());
    }
}
