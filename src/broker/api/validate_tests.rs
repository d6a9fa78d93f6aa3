#![allow(clippy::unwrap_used, clippy::unnecessary_wraps)]

use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;

use super::*;
use crate::broker::api::wire::CreateSessionRequestData;

fn item() -> CreateSessionRequestData {
    CreateSessionRequestData {
        name: Some("drawing".to_owned()),
        owner: Some("barbara".to_owned()),
        kind: Some("VIRTUAL".to_owned()),
        ..CreateSessionRequestData::default()
    }
}

fn reason(change: impl FnOnce(&mut CreateSessionRequestData)) -> String {
    let mut item = item();
    change(&mut item);
    session_spec(&item, &Autorun::default()).unwrap_err().to_string()
}

fn spec(change: impl FnOnce(&mut CreateSessionRequestData)) -> SessionSpec {
    let mut item = item();
    change(&mut item);
    session_spec(&item, &Autorun::default()).unwrap()
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn what_is_missing_or_blank_is_named() {
    assert_eq!(reason(|item| item.name = None), "Name is missing");
    assert_eq!(reason(|item| item.owner = None), "Owner is missing");
    assert_eq!(reason(|item| item.kind = None), "Type is missing");
    assert_eq!(reason(|item| item.name = text(" \t")), "Name must not be blank");
    assert_eq!(reason(|item| item.owner = text("")), "Owner must not be blank");
}

#[test]
fn the_type_is_compared_without_case() {
    assert_eq!(spec(|item| item.kind = text("Virtual")).kind, SessionKind::Virtual);
    assert_eq!(spec(|item| item.kind = text("console")).kind, SessionKind::Console);
    assert_eq!(reason(|item| item.kind = text("desktop")), "Type must be VIRTUAL or CONSOLE");
}

#[test]
fn lengths_are_limited_and_the_limit_is_told() {
    assert_eq!(spec(|item| item.name = Some("x".repeat(256))).name.len(), 256);
    assert_eq!(reason(|item| item.name = Some("x".repeat(257))), "Name must have at most 256 bytes, this one has 257");
    assert_eq!(
        reason(|item| item.owner = Some("x".repeat(257))),
        "Owner must have at most 256 bytes, this one has 257"
    );
    assert_eq!(reason(|item| item.owner = text("a\nb")), "Owner must not hold control characters");
    assert_eq!(reason(|item| item.storage_root = text("/a\0b")), "StorageRoot must not hold control characters");
}

#[test]
fn clients_are_between_1_and_100() {
    for count in [1, 100] {
        assert_eq!(spec(|item| item.max_concurrent_clients = Some(count)).clients_max.map(i64::from), Some(count));
    }
    for count in [0, -1, 101, i64::MAX] {
        let reason = reason(|item| item.max_concurrent_clients = Some(count));
        assert_eq!(reason, "MaxConcurrentClients must be between 1 and 100");
    }
}

#[test]
fn paths_stay_below_their_folder() {
    assert_eq!(spec(|item| item.init_file = text("a/b..sh")).init_file, text("a/b..sh"));
    for path in ["/etc/passwd", "../a", "a/../b", "a\\..\\b", "\\\\host\\a", "C:\\a", ".."] {
        assert_eq!(reason(|item| item.init_file = text(path)), "InitFile must be a relative path without ..");
        assert_eq!(reason(|item| item.autorun_file = text(path)), "AutorunFile must be a relative path without ..");
    }
}

#[test]
fn the_deprecated_init_file_path_is_used_when_there_is_no_init_file() {
    assert_eq!(spec(|item| item.init_file_path = text("old.sh")).init_file, text("old.sh"));
    let both = spec(|item| {
        item.init_file_path = text("old.sh");
        item.init_file = text("new.sh");
    });
    assert_eq!(both.init_file, text("new.sh"));
}

#[test]
fn a_console_session_takes_neither_gl_nor_init_file_nor_arguments() {
    let console = |change: fn(&mut CreateSessionRequestData)| {
        reason(|item| {
            item.kind = text("CONSOLE");
            change(item);
        })
    };
    let not = |field: &str| format!("{field} is not supported with Type CONSOLE");
    assert_eq!(console(|item| item.dcv_gl_enabled = Some(true)), not("DcvGlEnabled"));
    assert_eq!(console(|item| item.init_file = text("a")), not("InitFile"));
    assert_eq!(console(|item| item.init_file_path = text("a")), not("InitFilePath"));
    assert_eq!(console(|item| item.autorun_file_arguments = Some(vec![String::new()])), not("AutorunFileArguments"));
    let plain = spec(|item| {
        item.kind = text("CONSOLE");
        item.dcv_gl_enabled = Some(false);
        item.autorun_file = text("start.bat");
    });
    assert_eq!(plain.autorun_file, text("start.bat"));
}

#[test]
fn the_limits_of_arguments_are_those_that_are_set() {
    let mut item = item();
    item.autorun_file = text("run.sh");
    item.autorun_file_arguments = Some(vec!["abc".to_owned(); 3]);
    let reason = |arguments_max, argument_chars_max| {
        let autorun = Autorun { arguments_max, argument_chars_max };
        session_spec(&item, &autorun).err().map(|invalid| invalid.to_string())
    };
    assert_eq!(reason(3, 3), None);
    assert_eq!(reason(2, 3).unwrap(), "AutorunFileArguments must have at most 2 entries, there are 3");
    let long = "AutorunFileArguments[0] must have at most 2 characters and no control characters";
    assert_eq!(reason(3, 2).unwrap(), long);
}

#[test]
fn arguments_need_their_program_and_have_limits() {
    let arguments = |count: usize, length: usize| {
        move |item: &mut CreateSessionRequestData| {
            item.autorun_file = text("run.sh");
            item.autorun_file_arguments = Some(vec!["ü".repeat(length); count]);
        }
    };
    assert_eq!(spec(arguments(50, 150)).autorun_arguments.len(), 50);
    assert_eq!(reason(arguments(51, 1)), "AutorunFileArguments must have at most 50 entries, there are 51");
    assert!(reason(arguments(1, 151)).starts_with("AutorunFileArguments[0] must have at most 150 characters"));
    let alone = reason(|item| item.autorun_file_arguments = Some(vec!["a".to_owned()]));
    assert_eq!(alone, "AutorunFileArguments needs AutorunFile");
}

#[test]
fn permissions_are_text_in_base64() {
    let encoded = |content: &[u8]| Some(BASE64_STANDARD.encode(content));
    let file = "[permissions]\n%owner% allow builtin\n";
    assert_eq!(spec(|item| item.permissions_file = encoded(file.as_bytes())).permissions, text(file));
    let wrapped = BASE64_STANDARD.encode(file).replace("cG", "\ncG").trim_end_matches('=').to_owned();
    assert_eq!(spec(|item| item.permissions_file = Some(wrapped)).permissions, text(file));
    assert_eq!(reason(|item| item.permissions_file = text("%%%")), "PermissionsFile must be text in base64");
    assert_eq!(
        reason(|item| item.permissions_file = encoded(&[0xff, 0xfe])),
        "PermissionsFile must be UTF-8 text once decoded"
    );
    assert_eq!(
        reason(|item| item.permissions_file = encoded(&vec![b'a'; PERMISSIONS_BYTES_MAX + 1])),
        "PermissionsFile must have at most 65536 bytes, this one has 65537"
    );
}

#[test]
fn requirements_are_parsed_before_anything_is_proposed() {
    let given = "tag:color = 'pink'";
    assert_eq!(spec(|item| item.requirements = text(given)).requirements.unwrap().to_string(), given);
    assert_eq!(spec(|item| item.requirements = text("  ")).requirements, None);
    assert!(reason(|item| item.requirements = text("color =")).starts_with("Requirements not understood: "));
    let unknown = reason(|item| item.requirements = text("server:Host.Aws.EC2InstanceId = 'i-1'"));
    assert!(unknown.starts_with("Property in Requirements not known: "), "{unknown}");
}

#[test]
fn what_a_portal_leaves_empty_counts_as_absent() {
    let spec = spec(|item| {
        item.init_file = text("");
        item.autorun_file = text("");
        item.permissions_file = text("");
        item.storage_root = text("");
        item.autorun_file_arguments = Some(Vec::new());
    });
    assert_eq!((spec.init_file, spec.autorun_file, spec.permissions, spec.storage_root), (None, None, None, None));
}

#[test]
fn switches_pass_into_the_spec() {
    let spec = spec(|item| {
        item.enqueue_request = Some(true);
        item.disable_retry_on_failure = Some(true);
        item.dcv_gl_enabled = Some(true);
    });
    assert!(spec.enqueue && spec.retry_disabled && spec.gl);
}

proptest! {
    #[test]
    fn an_accepted_item_keeps_within_all_limits(
        name in prop::option::of(".{0,300}"), owner in prop::option::of(".{0,300}"),
        kind in prop::option::of("(?i)(virtual|console)|.{0,9}"), clients in prop::option::of(any::<i64>()),
        path in prop::option::of("[a./\\\\:]{0,8}"), permissions in prop::option::of("[A-Za-z0-9+/=]{0,40}"),
        requirements in prop::option::of(".{0,60}"), arguments in prop::option::of(prop::collection::vec(".{0,160}", 0..60)),
    ) {
        let item = CreateSessionRequestData {
            name, owner, kind, max_concurrent_clients: clients, init_file: path.clone(), autorun_file: path,
            permissions_file: permissions, requirements, autorun_file_arguments: arguments,
            ..CreateSessionRequestData::default()
        };
        if let Ok(spec) = session_spec(&item, &Autorun::default()) {
            prop_assert!(!spec.name.trim().is_empty() && spec.name.len() <= NAME_BYTES_MAX);
            prop_assert!(spec.clients_max.is_none_or(|count| (1..=CLIENTS_MAX).contains(&count)));
            prop_assert!(spec.autorun_arguments.len() <= Autorun::default().arguments_max);
            prop_assert!(spec.init_file.is_none_or(|path| !path.starts_with('/') && !path.split(['/', '\\']).any(|part| part == "..")));
        }
    }
}
