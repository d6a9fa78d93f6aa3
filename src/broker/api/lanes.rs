//! Requests under way, each kind with so many places: when the log or the
//! agents are slow, what waits for them is bounded, further requests are
//! refused before their bodies are read, and requests of the other kinds go on.
//!
//! A client has its share of each kind, so that one that asks for much does not
//! shut out the others. A place is kept until the answer was taken, for as long
//! it is in memory. Answers without an end (streams) give it back at once; they
//! have bounds of their own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::door::{Unavailable, UnavailableReason};
use super::error::Error;
use super::limits::{CHANGES_UNDER_WAY_MAX, PICTURES_UNDER_WAY_MAX, READS_UNDER_WAY_MAX};
use crate::broker::shares::{Full, Share, Shares};
use crate::broker::taking::Held;
use crate::domain::ClientId;

const BUSY: Unavailable = Unavailable { reason: UnavailableReason::Busy, retry_after: Duration::from_secs(1) };

/// Requests that wait for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// What tells the fleet's state.
    Reading,
    /// What goes through the log.
    Changing,
    /// What agents are asked for: large, and as slow as the slowest agent.
    Pictures,
}

/// Places of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneWidths {
    /// Of [`Lane::Reading`].
    pub reading: usize,
    /// Of [`Lane::Changing`].
    pub changing: usize,
    /// Of [`Lane::Pictures`].
    pub pictures: usize,
}

impl Default for LaneWidths {
    fn default() -> Self {
        Self { reading: READS_UNDER_WAY_MAX, changing: CHANGES_UNDER_WAY_MAX, pictures: PICTURES_UNDER_WAY_MAX }
    }
}

/// The places of a replica.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    reading: Arc<Shares<ClientId>>,
    changing: Arc<Shares<ClientId>>,
    pictures: Arc<Shares<ClientId>>,
}

/// The place of one request, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place(Share<ClientId>);

impl Lanes {
    pub(super) fn new(widths: LaneWidths) -> Self {
        let [reading, changing, pictures] = [widths.reading, widths.changing, widths.pictures].map(Shares::new);
        Self { reading, changing, pictures }
    }

    /// Takes a place for a client, or says at once that there is none. Where
    /// nobody says who calls there are no shares.
    pub(super) fn enter(&self, lane: Lane, client: Option<&ClientId>) -> Result<Place, Error> {
        let places = match lane {
            Lane::Reading => &self.reading,
            Lane::Changing => &self.changing,
            Lane::Pictures => &self.pictures,
        };
        places.take(client.cloned()).map(Place).map_err(|full| match full {
            Full::All => BUSY.into(),
            Full::Share => Error::TooManyUnderWay,
        })
    }
}

impl Place {
    /// Keeps the place until the answer was taken, if that has an end.
    pub(super) fn keep_for(self, answer: Response) -> Response {
        let is_in_memory = HttpBody::size_hint(answer.body()).exact().is_some_and(|bytes| bytes > 0);
        if !is_in_memory {
            return answer;
        }
        // The body may be gone long before its bytes are; who listens knows when they are.
        let place = Arc::new(self.0);
        let mut answer = answer.map(|body| Body::new(Placed { body, _place: Arc::clone(&place) }));
        answer.extensions_mut().insert(Held::new(place));
        answer
    }
}

/// A body and the place of its request.
struct Placed {
    body: Body,
    _place: Arc<Share<ClientId>>,
}

impl HttpBody for Placed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        HttpBody::size_hint(&self.body)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_lane_has_its_own_places_and_gets_them_back() {
        let lanes = Lanes::new(LaneWidths { reading: 1, changing: 2, pictures: 0 });
        let enter = |lane| lanes.enter(lane, None);
        let first = enter(Lane::Changing).unwrap();
        let _second = enter(Lane::Changing).unwrap();
        assert_eq!(enter(Lane::Changing).unwrap_err(), Error::Unavailable(BUSY));
        assert!(enter(Lane::Reading).is_ok() && enter(Lane::Pictures).is_err());
        drop(first);
        assert!(enter(Lane::Changing).is_ok());
    }

    #[test]
    fn a_client_gets_its_share_of_a_lane_and_leaves_the_rest_to_others() {
        let lanes = Lanes::new(LaneWidths { reading: 16, changing: 16, pictures: 16 });
        let [greedy, other] = ["greedy", "other"].map(|name| ClientId::new(name).unwrap());
        let mut held: Vec<_> = (0..14).map(|_| lanes.enter(Lane::Reading, Some(&greedy)).unwrap()).collect();
        assert_eq!(lanes.enter(Lane::Reading, Some(&greedy)).unwrap_err(), Error::TooManyUnderWay);
        assert!(lanes.enter(Lane::Changing, Some(&greedy)).is_ok(), "each kind by itself");
        let _others = [(); 2].map(|()| lanes.enter(Lane::Reading, Some(&other)).unwrap());
        assert_eq!(lanes.enter(Lane::Reading, Some(&other)).unwrap_err(), Error::Unavailable(BUSY));
        held.pop();
        assert!(lanes.enter(Lane::Reading, Some(&other)).is_ok());
    }

    #[test]
    fn an_answer_in_memory_keeps_its_place_and_one_without_an_end_does_not() {
        let lanes = Lanes::new(LaneWidths { reading: 1, changing: 0, pictures: 0 });
        let enter = || lanes.enter(Lane::Reading, None);
        let mut answer = enter().unwrap().keep_for(Response::new(Body::from("long")));
        assert!(enter().is_err());
        assert_eq!(HttpBody::size_hint(answer.body()).exact(), Some(4), "its length is told as before");
        let held = answer.extensions_mut().remove::<Held>();
        drop(answer);
        assert!(enter().is_err(), "its bytes may still wait to be sent");
        drop(held);
        let endless = Body::from_stream(futures_util::stream::pending::<Result<Bytes, axum::Error>>());
        let _stream = enter().unwrap().keep_for(Response::new(endless));
        assert!(enter().is_ok());
    }
}
