//! Whether registers behaved as if each operation had happened at one instant
//! between its call and its answer.
//!
//! Two ways to look at it. [`by_value`] knows nothing but what clients saw; it is
//! exact for registers that get no value twice (Gibbons and Korach, "Testing
//! shared memories", 1997): the operations of one value form a zone, and zones
//! tell. [`by_index`] takes the log's own order for the truth, and holds values
//! and real time against it; it does for all registers.

use std::collections::BTreeMap;

use super::history::{Input, Moment, Operation, Output, Value};

/// The operations on each register.
fn by_key(operations: &[Operation]) -> BTreeMap<&str, Vec<&Operation>> {
    let mut registers: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        registers.entry(&operation.key).or_default().push(operation);
    }
    registers
}

/// The time from the first answer to the last call among the operations of one
/// value, in which the register must have held it (forwards); or the other way
/// round, when at one instant in between it may have.
#[derive(Debug, Clone, Copy)]
struct Zone {
    from: Moment,
    to: Moment,
    is_forward: bool,
}

/// What is wrong with registers that get no value twice, beginning with nothing
/// in them.
pub fn by_value(operations: &[Operation]) -> Vec<String> {
    by_key(operations).into_iter().filter_map(|(key, operations)| zones_clash(&operations).err().map(|text| format!("{key}: {text}"))).collect()
}

fn zones_clash(operations: &[&Operation]) -> Result<(), String> {
    let mut values: BTreeMap<&Value, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        let value = match (&operation.input, &operation.output) {
            (Input::Write(value), _) | (Input::Read, Output::Read(value)) => value,
            (Input::Read, _) => continue,
        };
        values.entry(value).or_default().push(operation);
    }
    let mut zones: Vec<(Zone, &Value)> = Vec::new();
    for (value, operations) in values {
        let is_read = |operation: &&&Operation| operation.input == Input::Read;
        let reads: Vec<&&Operation> = operations.iter().filter(is_read).collect();
        let write = operations.iter().find(|operation| operation.input != Input::Read);
        let written = match (write, value) {
            // Written before everything.
            (None, None) => None,
            (None, Some(value)) => return Err(format!("{value:?} was read and never written")),
            (Some(write), _) => Some(write),
        };
        if let Some(early) = reads.iter().find(|read| written.is_some_and(|write| read.returned < write.called)) {
            return Err(format!("{value:?} was read before it was written: {early:?}"));
        }
        let is_in_doubt = written.is_some_and(|write| write.output == Output::Unknown);
        if is_in_doubt && reads.is_empty() {
            // Perhaps it never happened.
            continue;
        }
        let first_answer = operations.iter().map(|operation| operation.returned).min().unwrap_or_default();
        let last_call = operations.iter().map(|operation| operation.called).max().unwrap_or_default();
        // What was there at the beginning was written then.
        let first_answer = if written.is_none() { Moment(0) } else { first_answer };
        let is_forward = first_answer < last_call;
        let (from, to) = if is_forward { (first_answer, last_call) } else { (last_call, first_answer) };
        zones.push((Zone { from, to, is_forward }, value));
    }
    for (position, (zone, value)) in zones.iter().enumerate() {
        for (other, other_value) in &zones[position + 1..] {
            if clash(*zone, *other) || clash(*other, *zone) {
                return Err(format!("{value:?} and {other_value:?} were in it at the same time, or by turns"));
            }
        }
    }
    Ok(())
}

fn clash(zone: Zone, other: Zone) -> bool {
    match (zone.is_forward, other.is_forward) {
        (true, true) => zone.from < other.to && other.from < zone.to,
        // The other's instant lies where only this one's value may be.
        (true, false) => zone.from < other.from && other.to < zone.to,
        (false, _) => false,
    }
}

/// What is wrong with registers in the order of the log.
pub fn by_index(operations: &[Operation]) -> Vec<String> {
    by_key(operations).into_iter().filter_map(|(key, operations)| order_clashes(&operations).err().map(|text| format!("{key}: {text}"))).collect()
}

fn order_clashes(operations: &[&Operation]) -> Result<(), String> {
    let mut written: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    let mut in_doubt: Vec<(Moment, &Value)> = Vec::new();
    for operation in operations {
        match (&operation.input, &operation.output, operation.index) {
            (Input::Write(value), Output::Written, Some(index)) => written.entry(index).or_default().push(value),
            (Input::Write(value), _, _) => in_doubt.push((operation.called, value)),
            (Input::Read, _, _) => {}
        }
    }
    for operation in operations {
        let (Output::Read(value), Some(index)) = (&operation.output, operation.index) else { continue };
        // Several writes of one entry happened in an order that is not known here.
        let last = written.range(..=index).next_back();
        let is_last = match last {
            Some((_, values)) => values.contains(&value),
            None => value.is_none(),
        };
        let may_be = in_doubt.iter().any(|(called, other)| *called < operation.returned && *other == value);
        if !is_last && !may_be {
            return Err(format!("read {value:?} as of entry {index}, where {:?} was the last written", last.map(|(_, values)| values)));
        }
    }
    Ok(())
}
