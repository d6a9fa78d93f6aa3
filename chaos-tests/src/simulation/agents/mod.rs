//! Desktop hosts with their agents: [`host`] is what really runs there and the
//! agent's memory, [`link`] the broker's end of a connection, [`life`] what an
//! agent does all day.

pub mod host;
pub mod life;
pub mod link;
pub mod pipe;

use berth::domain::instruction::Answer;
use berth::domain::report::Report;
use berth::domain::{AgentInstance, Epoch, Instruction, InstructionId, ServerId};

/// What an agent says.
#[derive(Debug, Clone)]
pub enum FromAgent {
    /// Who it is, with a full report.
    Hello {
        /// Its server.
        server: ServerId,
        /// This run of it.
        instance: AgentInstance,
        /// Everything.
        report: Report,
    },
    /// What changed.
    Report(Report),
    /// How an instruction ended.
    Answer {
        /// Which.
        instruction: InstructionId,
        /// How.
        answer: Answer,
    },
}

/// What a replica says to an agent.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // few exist at a time
pub enum ToAgent {
    /// It is connected.
    Welcome {
        /// Number of the connection.
        epoch: Epoch,
        /// What came before may be forgotten.
        oldest: InstructionId,
    },
    /// To be carried out.
    Instruction {
        /// Number of the connection.
        epoch: Epoch,
        /// What.
        instruction: Instruction,
    },
    /// An answer is in the log.
    Settled(InstructionId),
    /// A report is in the log, or the broker lives.
    Alive,
}

/// What befalls an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// Its connection breaks.
    Flap,
    /// It is killed; its host may lose what ran there.
    Crash {
        /// The host goes down with it.
        loses_desktops: bool,
    },
    /// It cannot be reached for a while, and thinks the same of the broker.
    Silence {
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// It answers late from now on, or no more.
    Slow(bool),
    /// It says everything twice from now on, or no more.
    Repeats(bool),
    /// It lies from now on, or no more.
    Lies(bool),
    /// A session ends by itself, or is made by hand.
    Stir,
}
