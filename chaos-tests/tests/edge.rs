//! The broker's ports and its agents on a simulated network, in simulated time.
//! Each world is a process that repeats itself: half of them run twice, and have
//! to go the same way.
#![allow(clippy::print_stdout)] // the seeds, and how each world ended

use std::path::Path;

use berth_chaos_tests::edge::apart::{self, Worlds};
use berth_chaos_tests::random::number_from;

/// Random worlds; `BERTH_EDGE_SEEDS` says otherwise.
const LIVES: u64 = 50;

fn run(scenario: &str, seeds: u64, twice: bool) -> anyhow::Result<()> {
    let at_once = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let worlds = Worlds { scenario: scenario.to_owned(), first_seed: 1, seeds, twice, at_once };
    for line in apart::run(Path::new(env!("CARGO_BIN_EXE_edge")), &worlds)? {
        println!("{line}");
    }
    Ok(())
}

#[test]
fn silence_in_either_direction_or_both_is_found_out_and_overcome_with_nothing_doubled() -> anyhow::Result<()> {
    ["held", "lost", "lost-to-broker", "lost-from-broker"].into_iter().try_for_each(|cut| run(cut, 2, true))
}

#[test]
fn a_network_that_fails_in_the_midst_of_a_hello_or_a_word_costs_and_doubles_nothing() -> anyhow::Result<()> {
    run("midst-of-hello", 4, true)?;
    run("midst-of-word", 4, true)
}

#[test]
fn a_broker_that_dies_while_it_is_called_keeps_what_it_acknowledged_and_its_agents_come_back() -> anyhow::Result<()> {
    run("death", 2, true)
}

#[test]
fn clients_that_hold_connections_and_give_nothing_lose_them_and_others_are_served() -> anyhow::Result<()> {
    run("hogs", 2, true)?;
    run("full", 1, false)
}

#[test]
fn a_call_whose_answer_is_lost_happens_once_when_it_is_repeated_with_its_key() -> anyhow::Result<()> {
    run("lost-answer", 4, true)
}

#[test]
fn a_stream_that_is_held_up_is_not_gathered_for_and_goes_on_where_it_was() -> anyhow::Result<()> {
    run("stream", 1, false)
}

#[test]
fn whatever_breaks_what_was_acknowledged_is_there_once_and_all_are_back_within_a_minute() -> anyhow::Result<()> {
    run("lives", number_from("BERTH_EDGE_SEEDS")?.unwrap_or(LIVES), false)?;
    run("lives", 3, true)
}
