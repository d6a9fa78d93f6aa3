//! Places for streams. A stream lives long and holds a connection, so there
//! are only so many of them, and a client may have only a few.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::broker::api::door::{Unavailable, UnavailableReason};
use crate::broker::api::error::Error;
use crate::broker::api::limits::{EVENT_STREAMS_MAX, EVENT_STREAMS_PER_CLIENT_MAX};
use crate::domain::ClientId;

/// When to try again when all places of the replica are taken.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How many streams there are.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Of a client that has any.
    by_client: HashMap<ClientId, usize>,
}

/// The places of a replica.
#[derive(Debug, Clone, Default)]
pub(in crate::broker::api) struct Places(Arc<Mutex<Taken>>);

/// One place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: ClientId,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing under the lock can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a client's stream.
    pub(super) fn take(&self, client: &ClientId) -> Result<Place, Error> {
        let mut taken = self.taken();
        let of_client = taken.by_client.get(client).copied().unwrap_or_default();
        if of_client >= EVENT_STREAMS_PER_CLIENT_MAX {
            return Err(Error::TooManyStreams { max: EVENT_STREAMS_PER_CLIENT_MAX });
        }
        if taken.all >= EVENT_STREAMS_MAX {
            return Err(Unavailable { reason: UnavailableReason::Busy, retry_after: RETRY_AFTER }.into());
        }
        taken.all += 1;
        taken.by_client.insert(client.clone(), of_client + 1);
        Ok(Place { places: self.clone(), client: client.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        match taken.by_client.get_mut(&self.client) {
            Some(of_client) if *of_client > 1 => *of_client -= 1,
            _ => {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn client(number: usize) -> ClientId {
        ClientId::new(&format!("client-{number}")).unwrap()
    }

    #[test]
    fn a_client_has_only_a_few_places_and_gets_one_back_when_a_stream_ends() {
        let places = Places::default();
        let mut held: Vec<Place> =
            (0..EVENT_STREAMS_PER_CLIENT_MAX).map(|_| places.take(&client(1)).unwrap()).collect();
        assert_eq!(places.take(&client(1)).unwrap_err(), Error::TooManyStreams { max: EVENT_STREAMS_PER_CLIENT_MAX });
        places.take(&client(2)).unwrap();
        held.pop();
        places.take(&client(1)).unwrap();
        held.clear();
        let taken = places.taken();
        assert_eq!((taken.all, taken.by_client.len()), (0, 0));
    }

    #[test]
    fn a_replica_has_only_so_many_places() {
        let places = Places::default();
        let held: Vec<Place> = (0..EVENT_STREAMS_MAX).map(|number| places.take(&client(number)).unwrap()).collect();
        let refused = places.take(&client(EVENT_STREAMS_MAX)).unwrap_err();
        assert_eq!(refused.to_string(), "the broker is busy; try again in 5 s");
        drop(held);
        places.take(&client(0)).unwrap();
    }
}
