//! What requirements take for granted about the properties of a server.

use super::{HostFacts, HostLoad, Log, facts, server_id};
use crate::domain::host::{Aws, Cpu, LoadAverage, Os, Usage};
use crate::domain::requirements::{Property, Subject, Value};
use crate::domain::server::Server;

fn known_throughout() -> HostFacts {
    let text = || "x".to_owned();
    HostFacts {
        desktop_version: text(),
        agent_version: text(),
        os: Os {
            name: text(),
            version: text(),
            kernel_version: Some(text()),
            build_number: Some(text()),
            ..Os::default()
        },
        cpu: Cpu { vendor: text(), model_name: text(), architecture: text(), ..Cpu::default() },
        aws: Some(Aws { region: text(), instance_type: text(), instance_id: text(), image_id: text() }),
        ..facts(None, None, false)
    }
}

fn under_load(load: u32) -> HostLoad {
    let usage = Usage { total_bytes: u64::from(load), used_bytes: u64::from(load) };
    let load_average =
        LoadAverage { one_minute_hundredths: load, five_minutes_hundredths: load, fifteen_minutes_hundredths: load };
    HostLoad { memory: usage, swap: usage, load_average, ..HostLoad::default() }
}

#[test]
fn the_properties_of_a_server_are_of_their_kinds_and_change_with_load_where_they_say_so() {
    let mut log = Log::new();
    log.connect(1, known_throughout());
    let server = log.fleet.server(&server_id(1)).expect("connected");
    let idle = Server { load: under_load(0), ..Server::clone(server) };
    let busy = Server { load: under_load(100), ..Server::clone(server) };
    for property in Property::ALL {
        let (before, after) = (idle.property(property), busy.property(property));
        assert!(before.is_some(), "{property} is known");
        assert_eq!(matches!(before, Some(Value::Text(_))), property.is_text(), "{property}");
        assert_eq!(before != after, property.is_load(), "{property}");
    }
}
