//! What broker and agent say to each other.
//!
//! One WebSocket over TLS, opened by the agent at [`PATH`]; each message is
//! one text frame with one JSON object whose `type` names it. The agent proves
//! itself with a client certificate, which it gets when it enrols
//! ([`enrolment`]). `docs/agent-protocol.md` describes all of it for those who
//! write another agent.
//!
//! Unknown fields are ignored, so that either side may be newer; an unknown
//! `type`, or a version of [`VERSIONS`] that the broker does not speak, closes
//! the connection with a reason.

pub mod enrolment;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::instruction::{Answer, Instruction};
use crate::domain::report::Report;
use crate::domain::{AgentInstance, Epoch, InstructionId, ServerId, SessionId};

/// Where the broker takes agents, on the agents' port.
pub const PATH: &str = "/agent/link";

/// Port for agents, as in the original.
pub const DEFAULT_PORT: u16 = 8445;

/// Versions of this protocol that this build speaks.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 1..=1;

/// Longest message in bytes. A full report of a host with 1,000 sessions is
/// about 400 KiB; a screenshot in base64 stays below 6 MiB.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// An agent that has heard nothing for this long pings, and again as long as it
/// hears nothing.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);

/// The same for the broker. It is longer, so that one side's ping and the
/// other's pong are all that an idle connection carries: 20,000 of them are
/// 20,000 small messages a second each way, over all replicas.
pub const PING_INTERVAL_OF_BROKER: Duration = Duration::from_millis(1_500);

/// After this many of an agent's pings without anything heard, the peer counts
/// as dead, on both sides.
pub const PINGS_MISSED_MAX: u32 = 3;

/// Silence after which the peer counts as dead, also while it takes nothing.
pub const SILENCE_MAX: Duration = PING_INTERVAL.saturating_mul(PINGS_MISSED_MAX);

/// How long the broker waits for the agent's hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the agent waits for the broker's welcome.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an agent has to answer a ping after another one came with its
/// server's id. It is dropped then, and the other one is let in when it tries
/// again: a host that lost its power is back within seconds, while a copy of a
/// host stays out as long as the original answers.
pub const CONTEST_TIMEOUT: Duration = Duration::from_secs(2);

/// What an agent is told that is refused because another one with the same
/// server id is connected; no more bytes than a close frame takes.
pub const CLONED_REASON: &str = "this server id is in use by another agent; on a copied host delete server-id in the data_folder, restart the agent";

/// From agent to broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    /// First message.
    Hello(Hello),
    /// What changed on the host.
    Report {
        /// Number of the report on this connection, from 1.
        number: u64,
        /// The changes.
        report: Report,
    },
    /// How an instruction ended.
    Answer {
        /// Which instruction.
        instruction: InstructionId,
        /// How it ended.
        answer: Answer,
    },
    /// The answer to a question.
    Reply {
        /// Number of the question.
        question: u64,
        /// What was asked for.
        reply: Reply,
    },
    /// Asks for a [`FromBroker::Pong`] with the same number.
    Ping {
        /// Number.
        number: u64,
    },
    /// Answers a ping.
    Pong {
        /// Its number.
        number: u64,
    },
}

/// The agent introduces itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the protocol that the agent speaks.
    pub version: u32,
    /// Id of the server: made once by the agent, kept for ever.
    pub server: ServerId,
    /// This run of the agent: drawn at random at its start.
    pub instance: AgentInstance,
    /// How often it will report, in milliseconds; between
    /// [`REPORT_INTERVAL_MS_MIN`] and [`REPORT_INTERVAL_MS_MAX`].
    pub report_interval_ms: u64,
    /// A full report.
    pub report: Report,
}

/// Shortest time between reports that a broker accepts.
pub const REPORT_INTERVAL_MS_MIN: u64 = 1_000;
/// Longest time between reports that a broker accepts.
pub const REPORT_INTERVAL_MS_MAX: u64 = 600_000;

/// From broker to agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromBroker {
    /// Answers the hello: the connection counts.
    Welcome {
        /// Version that both will speak.
        version: u32,
        /// Number of this connection. Instructions of a smaller one are void.
        epoch: Epoch,
        /// The oldest instruction that the broker still waits for. The agent
        /// may forget what it knows of older ones.
        oldest_instruction: InstructionId,
    },
    /// The report of that number is in the log.
    Reported {
        /// Number of the report.
        number: u64,
    },
    /// Something to do.
    Instruction {
        /// Number of the connection for which it is meant.
        epoch: Epoch,
        /// What.
        instruction: Instruction,
    },
    /// The answer is in the log; the agent may forget the instruction.
    Settled {
        /// Which instruction.
        instruction: InstructionId,
    },
    /// Wants to know something now; leaves no trace in the log.
    Question {
        /// Number, for the reply.
        number: u64,
        /// What.
        question: Question,
    },
    /// Asks for a [`FromAgent::Pong`] with the same number.
    Ping {
        /// Number.
        number: u64,
    },
    /// Answers a ping.
    Pong {
        /// Its number.
        number: u64,
    },
    /// This replica cannot reach a majority of the others, or can again. While
    /// it cannot, what the agent says waits; the agent looks whether another
    /// broker takes it, and stays here while none does.
    CutOff {
        /// Whether it cannot.
        cut_off: bool,
    },
}

/// A question of the broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// A picture of a session's screen.
    Screenshot {
        /// Which session.
        session: SessionId,
        /// Largest width in pixels.
        width_max: u32,
        /// Largest height in pixels.
        height_max: u32,
        /// Format.
        format: ImageFormat,
    },
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// One image for each screen.
    Screenshot(Vec<Image>),
    /// It cannot be told.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// Format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// PNG.
    #[default]
    Png,
    /// JPEG.
    Jpeg,
}

impl ImageFormat {
    /// Name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
        }
    }
}

/// A picture of one screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Format.
    pub format: ImageFormat,
    /// The file's bytes in base64.
    pub data: String,
    /// When it was taken, in milliseconds since 1970 by the host's clock.
    pub taken_at_ms: u64,
    /// Whether it is the primary screen.
    pub primary: bool,
}

/// Codes with which either side closes the WebSocket.
pub mod close {
    /// The peer said something that cannot be understood.
    pub const NONSENSE: u16 = 4400;
    /// The agent's certificate is not one of this server, or was revoked.
    pub const NOT_ENROLLED: u16 = 4401;
    /// The broker does not speak the agent's version.
    pub const VERSION: u16 = 4426;
    /// Another connection of the same server took over.
    pub const REPLACED: u16 = 4409;
    /// Another agent with the same server id is connected.
    pub const CLONED: u16 = 4423;
    /// Nothing was heard for three pings.
    pub const SILENT: u16 = 4408;
    /// The broker cannot take it now (no leader, or the disk is full): try again.
    pub const UNAVAILABLE: u16 = 4503;
    /// The broker ends.
    pub const GOING_AWAY: u16 = 1001;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_for_a_copied_host_fits_into_a_close_frame() {
        assert!(CLONED_REASON.len() <= 123, "{} bytes", CLONED_REASON.len());
        assert!(CONTEST_TIMEOUT < SILENCE_MAX, "silence alone would be noticed as soon");
    }
}
