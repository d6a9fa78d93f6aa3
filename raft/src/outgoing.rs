//! A snapshot on its way out: offered first, so that only what the receiver lacks is sent.
//!
//! While one is under way, this replica makes no new one unless the log grows too long: a transfer
//! that is disturbed goes on only with the same snapshot, and the entries behind it have to be
//! there when it has arrived.

use crate::codec::{RawVote, SnapshotHeader};
use crate::ids::ReplicaId;
use crate::incoming::number_of;
use crate::network::Sender;
use crate::snapshot::blocking;
use crate::types::{Types, Vote};
use crate::wire::{Answer, Request, SnapshotEnd};
use berth_storage::Snapshot;
use openraft::StorageError;
use openraft::errors::ErrorSource;
use openraft::errors::StreamingError;
use openraft::raft::SnapshotResponse;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long one part of a snapshot may take.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the last part may take, which includes reading the state.
const LAST_PART_TIMEOUT: Duration = Duration::from_mins(5);

/// How long a disturbed transfer counts as under way.
const UNDER_WAY: Duration = Duration::from_secs(30);

/// The transfers from this replica.
#[derive(Clone, Default)]
pub(crate) struct Transfers {
    last_sent: Arc<Mutex<BTreeMap<ReplicaId, Instant>>>,
}

impl Transfers {
    fn last_sent(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Instant>> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.last_sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_on(&self, to: ReplicaId) {
        self.last_sent().insert(to, Instant::now());
    }

    fn ended(&self, to: ReplicaId) {
        self.last_sent().remove(&to);
    }

    /// Whether a snapshot is being sent, or will soon go on.
    pub(crate) fn under_way(&self) -> bool {
        self.any_within(UNDER_WAY)
    }

    fn any_within(&self, silent: Duration) -> bool {
        let mut last_sent = self.last_sent();
        last_sent.retain(|_, at| at.elapsed() < silent);
        !last_sent.is_empty()
    }
}

/// Sends `stored`, all of it or what the receiver lacks.
pub(crate) async fn send(
    sender: &Sender,
    vote: Vote,
    stored: &Snapshot,
) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
    let network = &sender.network;
    let header = SnapshotHeader::decode(stored.meta()).map_err(|error| unreadable(&error.into()))?;
    // A header of the first format does not identify its content, and earlier builds know no offers.
    let offers = header.extra.is_some();
    let number = if offers { number_of(stored.meta()) } else { network.next_transfer() };
    network.outgoing.goes_on(sender.to);
    let mut offset = 0;
    if offers {
        let offer = Request::SnapshotOffer { header: stored.meta().to_vec(), length: stored.length() };
        match sender.call(offer, PART_TIMEOUT).await? {
            Answer::SnapshotFrom { offset: from } if from <= stored.length() => offset = from,
            _ => return Err(sender.mismatch().into()),
        }
    }
    let mut reader = stored.open();
    let skipped = blocking("read a snapshot", move || {
        io::copy(&mut reader.by_ref().take(offset), &mut io::sink())?;
        Ok(reader)
    });
    let mut reader = skipped.await.map_err(|error| unreadable(&error))?;
    loop {
        let part_bytes = network.part_bytes as u64;
        let read = blocking("read a snapshot", move || {
            let mut bytes = Vec::new();
            reader.by_ref().take(part_bytes).read_to_end(&mut bytes)?;
            Ok((reader, bytes))
        });
        let (open, bytes) = read.await.map_err(|error| unreadable(&error))?;
        reader = open;
        let next_offset = offset + bytes.len() as u64;
        let is_last = next_offset >= stored.length();
        let request = if offers {
            let end = is_last.then(|| RawVote::from(&vote));
            Request::SnapshotPart { snapshot: number, offset, bytes, end }
        } else {
            let end = is_last.then(|| SnapshotEnd { vote: RawVote::from(&vote), meta: stored.meta().to_vec() });
            Request::SnapshotChunk { transfer: number, offset, bytes, end }
        };
        offset = next_offset;
        network.outgoing.goes_on(sender.to);
        let within = if is_last { LAST_PART_TIMEOUT } else { PART_TIMEOUT };
        match sender.call(request, within).await? {
            Answer::ChunkTaken if !is_last => {}
            Answer::Snapshot { vote } => {
                network.outgoing.ended(sender.to);
                return Ok(SnapshotResponse::new(vote.into()));
            }
            _ => return Err(sender.mismatch().into()),
        }
    }
}

/// A snapshot of ours that cannot be read is damage of this replica.
fn unreadable(error: &io::Error) -> StreamingError<Types> {
    StorageError::read_snapshot(None, openraft::impls::BoxedErrorSource::from_error(error)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_under_way_until_it_has_ended_or_has_been_silent_for_long() {
        let transfers = Transfers::default();
        assert!(!transfers.under_way());
        transfers.goes_on(ReplicaId(2));
        assert!(transfers.under_way());
        transfers.ended(ReplicaId(2));
        assert!(!transfers.under_way());
        transfers.goes_on(ReplicaId(3));
        assert!(!transfers.any_within(Duration::ZERO));
    }
}
