//! Bounds of what an agent can put into the log.

use super::farewell::Farewell;
use crate::domain::host::Health;
use crate::domain::instruction::Answer;
use crate::domain::report::{Inventory, Report};

/// Sessions in one report.
const SESSIONS_MAX: usize = 10_000;
/// Tags of a server.
const TAGS_MAX: usize = 1_000;
/// Graphics processors or endpoints of a server.
const PARTS_MAX: usize = 100;
/// Users logged in at a server.
const USERS_MAX: usize = 1_000;
/// Longest name of a tag, and longest value, in bytes.
const TAG_BYTES_MAX: usize = 4_096;
/// Longest text for people, such as the reason of a failure, in bytes.
const REASON_BYTES_MAX: usize = 1_024;

/// Bounds what an agent can put into the log. Texts for people are cut.
pub(super) fn check(report: &mut Report) -> Result<(), Farewell> {
    cut_texts(report);
    let sessions = match &report.sessions {
        Some(Inventory::Full(sessions)) => sessions.len(),
        Some(Inventory::Changes { changed, gone }) => changed.len() + gone.len(),
        None => 0,
    };
    let facts = report.facts.as_ref();
    let bounds = [
        ("sessions", sessions, SESSIONS_MAX),
        ("tags", facts.map_or(0, |facts| facts.tags.len()), TAGS_MAX),
        ("gpus", facts.map_or(0, |facts| facts.gpus.len()), PARTS_MAX),
        ("endpoints", facts.map_or(0, |facts| facts.endpoints.len()), PARTS_MAX),
        ("logged_in_users", report.load.as_ref().map_or(0, |load| load.logged_in_users.len()), USERS_MAX),
    ];
    for (what, number, max) in bounds {
        if number > max {
            return Err(Farewell::nonsense(format!("a report may hold {max} {what}, this one has {number}")));
        }
    }
    let tags = facts.map(|facts| &facts.tags).into_iter().flatten();
    if tags.into_iter().any(|(key, text)| key.len() > TAG_BYTES_MAX || text.len() > TAG_BYTES_MAX) {
        return Err(Farewell::nonsense(format!("a tag's name and its value may have {TAG_BYTES_MAX} bytes each")));
    }
    Ok(())
}

/// Cuts what only people read to what they read.
fn cut_texts(report: &mut Report) {
    if let Some(Health::Unhealthy(reason)) = &mut report.health {
        cut(reason);
    }
    let (sessions, gone) = match &mut report.sessions {
        Some(Inventory::Full(sessions)) => (sessions, None),
        Some(Inventory::Changes { changed, gone }) => (changed, Some(gone)),
        None => return,
    };
    for session in sessions {
        cut(&mut session.name);
        session.storage_root.iter_mut().for_each(cut);
    }
    gone.into_iter().flatten().filter_map(|ended| ended.reason.as_mut()).for_each(cut);
}

fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
}

/// Cuts the reason of a failure to what a person reads.
pub(super) fn bounded(answer: Answer) -> Answer {
    match answer {
        Answer::Failed { mut reason } => {
            cut(&mut reason);
            Answer::Failed { reason }
        }
        Answer::Done => Answer::Done,
    }
}
