//! The audit, for operators: its records as they are in the journal.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use crate::broker::core::Broker;
use crate::domain::Event;
use crate::domain::audit::{Actor, AuditRecord, Chain, Deed, Digest};
use crate::domain::ids::{ClientId, LogIndex, ReplicaId};
use crate::domain::journal::Position;
use crate::domain::time::Timestamp;

/// Records of one page.
const RECORDS_MAX: usize = 10_000;

/// A record in an export. What its digest is made of, and how, says
/// `docs/operations.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// Its number.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Who.
    pub actor: String,
    /// From where.
    pub from: String,
    /// What.
    pub action: String,
    /// With what.
    pub target: String,
    /// Id of the request.
    pub request: String,
    /// The replica that was asked.
    pub replica: u64,
    /// What came of it.
    pub result: String,
    /// Digest of the record before, in hexadecimal digits.
    pub previous: String,
    /// Digest of this one.
    pub digest: String,
}

impl From<&AuditRecord> for AuditEntry {
    fn from(record: &AuditRecord) -> Self {
        let AuditRecord { number, at, deed, result, previous, digest } = record;
        Self {
            number: *number,
            at: at.0,
            actor: deed.actor.to_string(),
            from: deed.from.clone(),
            action: deed.action.clone(),
            target: deed.target.clone(),
            request: deed.request_id.clone(),
            replica: deed.via.0,
            result: result.clone(),
            previous: previous.to_string(),
            digest: digest.to_string(),
        }
    }
}

impl TryFrom<AuditEntry> for AuditRecord {
    type Error = String;

    fn try_from(entry: AuditEntry) -> Result<Self, String> {
        let id = |id: &str| ClientId::new(id).map_err(|error| format!("record {}: {error}", entry.number));
        let actor = match entry.actor.split_once(' ') {
            Some(("client", client)) => Actor::Client(id(client)?),
            Some(("agent", agent)) => Actor::Agent(id(agent)?),
            Some(("gateway", name)) => Actor::Gateway(name.to_owned()),
            None if entry.actor == "unknown" => Actor::Unknown,
            None if entry.actor == "operator" => Actor::Operator,
            _ => return Err(format!("record {}: nobody is called {:?}", entry.number, entry.actor)),
        };
        Ok(Self {
            number: entry.number,
            at: Timestamp(entry.at),
            deed: Deed {
                actor,
                from: entry.from,
                action: entry.action,
                target: entry.target,
                request_id: entry.request,
                via: ReplicaId(entry.replica),
            },
            result: entry.result,
            previous: entry.previous.parse::<Digest>()?,
            digest: entry.digest.parse::<Digest>()?,
        })
    }
}

/// Which records are wanted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Where the page before ended.
    after: Option<String>,
}

/// A page of records.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditPage {
    /// The records, oldest first.
    pub records: Vec<AuditEntry>,
    /// Where the next page begins; absent with the last one.
    pub next: Option<String>,
    /// Number of the last record that there is.
    pub last: u64,
    /// Its digest.
    pub digest: String,
}

/// The routes.
pub(super) fn routes(broker: Arc<Broker>) -> Router {
    Router::new().route("/audit", get(list)).with_state(broker)
}

async fn list(State(broker): State<Arc<Broker>>, Query(wanted): Query<Wanted>) -> Json<AuditPage> {
    let fleet = broker.fleet();
    let after = wanted.after.as_deref().and_then(position);
    let mut records = Vec::new();
    let mut next = None;
    for record in fleet.journal().after(after) {
        if let Event::Audited(audited) = &record.event {
            records.push(AuditEntry::from(&**audited));
            if records.len() == RECORDS_MAX {
                next = Some(format!("{}.{}", record.position.index, record.position.number));
                break;
            }
        }
    }
    let Chain { last, digest } = fleet.audit();
    Json(AuditPage { records, next, last: *last, digest: digest.to_string() })
}

fn position(text: &str) -> Option<Position> {
    let (index, number) = text.split_once('.')?;
    Some(Position { index: LogIndex(index.parse().ok()?), number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exported_record_is_the_record() {
        let actors = [
            Actor::Unknown,
            Actor::Client(ClientId::new("a b").expect("valid")),
            Actor::Agent(ClientId::new("x").expect("valid")),
            Actor::Gateway("g 1".to_owned()),
            Actor::Operator,
        ];
        for actor in actors {
            let deed = Deed {
                actor,
                from: "::1".to_owned(),
                action: "a".to_owned(),
                target: "t".to_owned(),
                request_id: "r".to_owned(),
                via: ReplicaId(3),
            };
            let record = Chain::default().record(Timestamp(7), deed, "done".to_owned());
            assert_eq!(AuditRecord::try_from(AuditEntry::from(&record)), Ok(record));
        }
    }
}
