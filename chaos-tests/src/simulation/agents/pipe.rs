//! One direction of a connection: what is sent arrives later, in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::simulation::world::Dice;

/// The sending end.
#[derive(Debug, Clone)]
pub struct Sender<T> {
    dice: Arc<Dice>,
    delay_ms: u64,
    queue: mpsc::UnboundedSender<(Instant, T)>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: mpsc::UnboundedReceiver<(Instant, T)>,
    next: Option<(Instant, T)>,
}

/// A direction on which things take up to `delay_ms`.
pub fn pipe<T>(dice: Arc<Dice>, delay_ms: u64) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Sender { dice, delay_ms, queue: sender }, Receiver { queue: receiver, next: None })
}

impl<T> Sender<T> {
    /// Sends; false if nobody listens any more.
    pub fn send(&self, message: T) -> bool {
        let at = Instant::now() + Duration::from_millis(self.dice.below(self.delay_ms + 1));
        self.queue.send((at, message)).is_ok()
    }
}

impl<T> Receiver<T> {
    /// The next message; `None` at the end. May be called off and called again.
    pub async fn receive(&mut self) -> Option<T> {
        if self.next.is_none() {
            self.next = Some(self.queue.recv().await?);
        }
        if let Some((at, _)) = &self.next {
            sleep_until(*at).await;
        }
        self.next.take().map(|(_, message)| message)
    }
}
