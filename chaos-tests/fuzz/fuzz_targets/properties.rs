//! Any bytes as the original's configuration file. They are refused with words that are neither
//! empty nor long, or read; and what is read can be shown, without passwords.
#![no_main]

use berth::broker::config::{Loaded, Notice};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let loaded = Loaded::of_properties(bytes);
    let lines = 2 + bytes.len();
    assert!(loaded.problems.len() + loaded.notices.len() <= lines + 10, "more is told than was written");
    for told in loaded.problems.iter().map(ToString::to_string).chain(loaded.notices.iter().map(text)) {
        assert!(!told.is_empty() && told.len() < 4_000, "{told}");
    }
    let shown = loaded.as_toml();
    if let Some(password) = &loaded.config.clients.key_store_password {
        assert!(shown.contains("key_store_password = \"[secret]\""), "{password:?}");
    }
    assert_eq!(loaded.as_json()["configuration"].is_null(), !loaded.problems.is_empty());
});

fn text(notice: &Notice) -> String {
    notice.text().to_owned()
}
