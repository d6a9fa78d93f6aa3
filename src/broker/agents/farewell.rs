//! The end of a connection: why, and how the agent is told.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use tokio::time::timeout;

use crate::domain::ServerId;
use crate::protocol::close;

/// How long the farewell may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a connection ends: the code and the words for the agent.
#[derive(Debug)]
pub(super) struct Farewell {
    pub(super) code: u16,
    reason: String,
    /// The agent is gone, as far as can be known.
    pub(super) is_silence: bool,
}

impl Farewell {
    pub(super) fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), is_silence: false }
    }

    /// The agent did not answer although it was asked for a sign of life.
    pub(super) fn silence() -> Self {
        let reason = "another agent came for this server, and this one did not answer";
        Self { is_silence: true, ..Self::new(close::SILENT, reason) }
    }

    pub(super) fn nonsense(reason: impl Into<String>) -> Self {
        Self::new(close::NONSENSE, reason)
    }

    /// Nothing more can be read: the agent broke the rules of WebSocket, or
    /// the connection broke under it.
    pub(super) fn broken(error: axum::Error) -> Self {
        use tokio_tungstenite::tungstenite::Error;
        use tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
        let error = error.into_inner();
        match error.downcast_ref::<Error>() {
            Some(Error::Capacity(_) | Error::Utf8(_)) => Self::nonsense(error.to_string()),
            Some(Error::Protocol(problem)) if *problem != ResetWithoutClosingHandshake => {
                Self::nonsense(error.to_string())
            }
            _ => Self::new(close::GOING_AWAY, format!("the connection broke: {error}")),
        }
    }

    /// The agent went away by itself.
    pub(super) fn gone() -> Self {
        Self::new(close::GOING_AWAY, "the agent went away")
    }

    /// The log does not take it for now.
    pub(super) fn log_takes_nothing() -> Self {
        Self::new(close::UNAVAILABLE, "the log takes nothing now")
    }

    /// Says goodbye and closes.
    pub(super) async fn say(self, socket: &mut WebSocket, server: Option<&ServerId>) {
        let server = server.map_or("unknown", ServerId::as_str);
        let reason = shortened(self.reason);
        if self.code == close::CLONED {
            // It comes again and again. The replica with the other agent's
            // connection tells it, once a minute.
            tracing::debug!(server, "an agent was refused: another one with its server id is connected");
        } else {
            tracing::info!(server, code = self.code, reason, "agent connection ends");
        }
        let frame = CloseFrame { code: self.code, reason: Utf8Bytes::from(reason) };
        let _ = timeout(FAREWELL_TIMEOUT, async {
            socket.send(Message::Close(Some(frame))).await?;
            // Read on until the agent has closed its side, or the words are lost.
            while let Some(Ok(_)) = socket.recv().await {}
            Ok::<_, axum::Error>(())
        })
        .await;
    }
}

/// A reason has at most 123 bytes (RFC 6455 section 5.5).
fn shortened(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(123));
    reason
}
