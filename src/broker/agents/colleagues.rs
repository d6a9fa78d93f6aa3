//! Questions to agents that are connected to another replica.
//!
//! The log knows which replica holds an agent. Instructions need no more than
//! that the holder reads the log; questions leave no trace in it and go from
//! replica to replica. Whoever is asked by a colleague asks its own agents
//! only, so a question travels one step at most.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::broker::api::door::AskError;
use crate::domain::{ReplicaId, ServerId};
use crate::protocol::{Question, Reply};

/// Questions that this replica has under way to all others, and as many that
/// it answers for them: each may bring 8 MiB.
const QUESTIONS_MAX: usize = 64;

/// How long a colleague may take: as long as its agent may, and the way.
const COLLEAGUE_TIMEOUT: Duration = Duration::from_secs(12);

/// The other replicas, as far as questions to their agents go.
pub trait Colleagues: Send + Sync + 'static {
    /// Has a replica ask an agent that is connected to it; there the question
    /// comes to [`Broker::answer_colleague`](crate::broker::core::Broker::answer_colleague).
    /// [`AskError::Unreachable`] when the replica cannot be reached. The caller
    /// bounds the time and drops the future when it is up.
    fn ask<'a>(
        &'a self,
        replica: ReplicaId,
        server: &'a ServerId,
        question: Question,
    ) -> BoxFuture<'a, Result<Reply, AskError>>;
}

/// The colleagues of a replica that is alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoColleagues;

impl Colleagues for NoColleagues {
    fn ask<'a>(&'a self, _: ReplicaId, _: &'a ServerId, _: Question) -> BoxFuture<'a, Result<Reply, AskError>> {
        Box::pin(std::future::ready(Err(AskError::Unreachable)))
    }
}

/// Bounds questions between replicas, in one direction.
#[derive(Debug)]
pub(in crate::broker) struct Desk(Semaphore);

impl Default for Desk {
    fn default() -> Self {
        Self(Semaphore::new(QUESTIONS_MAX))
    }
}

impl Desk {
    /// Waits for the answer to one more question, if there is room for it.
    pub(in crate::broker) async fn handle(
        &self,
        asking: impl Future<Output = Result<Reply, AskError>>,
    ) -> Result<Reply, AskError> {
        let _place = self.0.try_acquire().map_err(|_| AskError::Busy)?;
        timeout(COLLEAGUE_TIMEOUT, asking).await.unwrap_or(Err(AskError::TimedOut))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_desk_turns_away_what_it_has_no_room_for() {
        let desk = Desk::default();
        let reply = || async { Ok(Reply::Failed { reason: "no".to_owned() }) };
        {
            let mut waiting: Vec<_> =
                (0..QUESTIONS_MAX).map(|_| Box::pin(desk.handle(std::future::pending()))).collect();
            for question in &mut waiting {
                assert!(futures_util::poll!(question).is_pending());
            }
            assert_eq!(desk.handle(reply()).await, Err(AskError::Busy));
        }
        assert!(desk.handle(reply()).await.is_ok(), "those who gave up have made room");
    }

    #[test]
    fn questions_and_answers_can_be_sent_as_bytes() {
        fn same<T>(value: &T)
        where
            T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
        {
            let configuration = bincode::config::standard();
            let bytes = bincode::serde::encode_to_vec(value, configuration).unwrap();
            let (decoded, length): (T, usize) = bincode::serde::decode_from_slice(&bytes, configuration).unwrap();
            assert_eq!((&decoded, length), (value, bytes.len()));
        }
        let session = crate::domain::SessionId::new("s").unwrap();
        let format = crate::protocol::ImageFormat::Jpeg;
        same(&Question::Screenshot { session, width_max: 1, height_max: 2, format });
        let image = crate::protocol::Image { format, data: "aGk=".to_owned(), taken_at_ms: 3, primary: true };
        let replies = [Reply::Screenshot(vec![image]), Reply::Failed { reason: "no".to_owned() }];
        same(&replies.map(Ok::<_, AskError>).to_vec());
        same(&[AskError::Unreachable, AskError::Busy, AskError::TimedOut].map(Err::<Reply, _>).to_vec());
    }
}
