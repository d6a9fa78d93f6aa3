//! Any bytes as requirements. They are refused at a place inside the text, or read; and what is read
//! means the same after it was printed and read again, here as there.
#![no_main]

use berth::domain::requirements::{CANONICAL_BYTES_MAX, Expression, Key, Property, Subject, TEXT_BYTES_MAX, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Bytes that are no text would never reach the parser; a text near them might.
    let text = String::from_utf8_lossy(bytes);
    match Expression::parse(&text) {
        Ok(None) => assert!(text.trim().is_empty(), "taken for blank"),
        Ok(Some(expression)) => check(&text, &expression),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            match error.position() {
                Some(at) => {
                    assert!(text.is_char_boundary(at.byte), "{error}: byte {}", at.byte);
                    assert_eq!(text[..at.byte].chars().count() + 1, at.character, "{error}");
                }
                None => assert!(text.len() > TEXT_BYTES_MAX, "{error}"),
            }
        }
    }
});

fn check(text: &str, expression: &Expression) {
    let printed = expression.to_string();
    assert!(printed.len() <= CANONICAL_BYTES_MAX, "{} bytes printed of {}", printed.len(), text.len());
    let again = Expression::from_canonical(&printed).unwrap_or_else(|error| panic!("{printed:?}: {error}"));
    assert_eq!(&again, expression, "{printed:?}");
    assert_eq!(again.to_string(), printed);

    for host in [Host::Unknown, Host::Linux, Host::Odd] {
        let idle = Server { host, busy: false };
        let busy = Server { host, busy: true };
        let holds = expression.holds(&idle);
        assert_eq!(again.holds(&idle), holds, "{printed:?} on {host:?}");
        if !expression.reads_load() {
            assert_eq!(expression.holds(&busy), holds, "{printed:?} on {host:?}");
        }
        if holds {
            for (key, wanted) in expression.required_equalities() {
                assert_eq!(idle.text(key), Some(wanted), "{printed:?} on {host:?}");
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Host {
    /// Nothing is known of it but its load.
    Unknown,
    /// As they come; tags that are numbers among others.
    Linux,
    /// Texts at the edges of what a text can be.
    Odd,
}

struct Server {
    host: Host,
    busy: bool,
}

impl Server {
    fn text(&self, key: &Key) -> Option<&str> {
        match key {
            Key::Tag(name) => self.tag(name),
            Key::Property(property) => match self.property(*property) {
                Some(Value::Text(text)) => Some(text),
                _ => None,
            },
        }
    }
}

impl Subject for Server {
    fn tag(&self, key: &str) -> Option<&str> {
        match (self.host, key) {
            (Host::Linux, "color" | "a") => Some("pink"),
            (Host::Linux, "size" | "b") => Some("10"),
            (Host::Linux, "dcv:os-family") => Some("linux"),
            (Host::Odd, "color" | "a") => Some(""),
            (Host::Odd, "size" | "b") => Some("-0.00e7"),
            (Host::Odd, "who") => Some("o'neil\r\n\u{1F980}\0"),
            _ => None,
        }
    }

    fn property(&self, property: Property) -> Option<Value<'_>> {
        if property.is_load() {
            let (integer, real) = if self.busy { (16_000_000_000, 3.75) } else { (9_007_199_254_740_993, 0.1) };
            return Some(match property {
                Property::CpuLoadAverageOneMinute => Value::Real(if self.busy { f64::NAN } else { f64::MIN_POSITIVE }),
                Property::CpuLoadAverageFiveMinutes | Property::CpuLoadAverageFifteenMinutes => Value::Real(real),
                _ => Value::Integer(integer),
            });
        }
        match (self.host, property.is_text()) {
            (Host::Unknown, _) => None,
            (Host::Linux, true) => Some(Value::Text("22.04")),
            (Host::Linux, false) => Some(Value::Integer(4)),
            (Host::Odd, true) => Some(Value::Text("1e999")),
            (Host::Odd, false) => Some(Value::Integer(u64::MAX)),
        }
    }
}
