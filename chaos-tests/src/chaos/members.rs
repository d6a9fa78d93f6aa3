//! What operators do to a cluster while it is broken and under load.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use serde_json::json;

use super::plug::{self, SNAPSHOT_AFTER_ENTRIES};
use super::world::{Replica, WHOLE_LIMIT, World};
use crate::random::Random;

/// How long an operator tries before something else is done.
const OPERATOR_LIMIT: Duration = Duration::from_secs(10);
/// How often a state that is to come is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Calls through each replica before it is looked how far they have come.
const CALLS: usize = 50;
/// What a replica says that takes over another one's snapshot.
const TAKEN_OVER: &str = "snapshot of another replica taken over";
/// What a replica says that was told of other certificates.
const CERTIFIED: &str = "replicas are shown certificates of another authority";

/// What was tried, and how often it was done; 0: it was refused.
pub(super) type Tried = (String, u64);

/// Has another replica lead: a named one, or whichever is best.
pub(super) async fn hand_over(world: &World, random: &mut Random) -> anyhow::Result<Tried> {
    let Some(before) = world.leader() else { return Ok(("nobody leads".to_owned(), 0)) };
    let others: Vec<u64> = world.replicas.iter().map(|replica| replica.number).collect();
    let leader = others[before];
    let others: Vec<u64> = others.into_iter().filter(|number| *number != leader).collect();
    let chosen = others[usize::try_from(random.below(others.len() as u64))?];
    let to = (random.below(3) > 0).then_some(chosen);
    if let Err(error) = world.operate(None, OPERATOR_LIMIT, |broker| plug::hand_over(broker, to)).await {
        return Ok((format!("{error:#}"), 0));
    }
    let begun = Instant::now();
    loop {
        let now = world.leader();
        if now.is_some_and(|now| now != before) {
            return Ok((format!("to {to:?}"), 1));
        }
        if begun.elapsed() > OPERATOR_LIMIT {
            return Ok((format!("to {to:?}, but {leader} leads"), 0));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Has all replicas show certificates of another authority.
pub(super) async fn rotate(world: &World) -> anyhow::Result<Tried> {
    let said = |world: &World| {
        let counts = world.replicas.iter().map(|replica| replica.broker.said(CERTIFIED));
        counts.collect::<anyhow::Result<Vec<u64>>>()
    };
    let before = said(world)?;
    if let Err(error) = world.operate(None, OPERATOR_LIMIT, plug::rotate).await {
        return Ok((format!("{error:#}"), 0));
    }
    let begun = Instant::now();
    loop {
        let changed = said(world)?.iter().zip(&before).filter(|(now, before)| now > before).count();
        if changed == world.replicas.len() || begun.elapsed() > OPERATOR_LIMIT {
            return Ok((String::new(), changed as u64));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Removes a replica that runs. The caller has another one join later.
pub(super) async fn remove(world: &mut World, place: usize) -> anyhow::Result<Tried> {
    let number = world.replicas[place].number;
    // It ends when it hears of it.
    world.replicas[place].may_end = true;
    let removed = world.operate(Some(place), WHOLE_LIMIT, |broker| plug::remove(broker, number)).await;
    removed.with_context(|| format!("replica {number} cannot be removed"))?;
    Ok((format!("number {number}"), 1))
}

/// Removes a replica that was added.
pub(super) async fn remove_spare(world: &World, mut spare: Replica) -> anyhow::Result<()> {
    let number = spare.number;
    spare.may_end = true;
    let removed = world.operate(None, WHOLE_LIMIT, |broker| plug::remove(broker, number)).await;
    removed.with_context(|| format!("the further replica {number} cannot be removed"))?;
    spare.kill().map(drop)
}

/// With a replica away, has the others go on until they have made snapshots
/// without it.
pub(super) async fn go_on_without(world: &World, place: usize) -> anyhow::Result<Tried> {
    let start = world.applied().context("nobody is left")?;
    let goal = start + 3 * SNAPSHOT_AFTER_ENTRIES;
    let begun = Instant::now();
    loop {
        let others = (0..world.replicas.len()).filter(|other| *other != place);
        let calls = others.map(|other| async move {
            for _ in 0..CALLS {
                // Whatever it answers: it is an entry.
                let _ = world.api(other).call("openServers", &json!([{ "ServerId": "nowhere" }])).await;
            }
        });
        join_all(calls).await;
        let now = world.applied().unwrap_or_default();
        if now >= goal || begun.elapsed() > WHOLE_LIMIT {
            return Ok((format!("{} entries", now.saturating_sub(start)), u64::from(now >= goal)));
        }
    }
}

/// Starts a replica that was away for long, and waits until it has caught up;
/// tells how many snapshots it took over for that.
pub(super) async fn take_over_snapshot(world: &mut World, place: usize) -> anyhow::Result<u64> {
    let goal = world.applied().context("nobody is left")?;
    let replica = &mut world.replicas[place];
    let before = replica.broker.said(TAKEN_OVER)?;
    replica.start()?;
    let begun = Instant::now();
    loop {
        ensure!(replica.is_running()?, "it ended: {}", replica.broker.last_words()?);
        let has_caught_up = replica.view().is_ok_and(|view| view.applied >= goal);
        if has_caught_up {
            return Ok(replica.broker.said(TAKEN_OVER)? - before);
        }
        ensure!(begun.elapsed() < WHOLE_LIMIT, "replica {} does not come to entry {goal}", replica.number);
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
