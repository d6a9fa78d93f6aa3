//! The fleet as a replicated state machine.

use std::io::{self, Read, Write};

use berth_raft as raft;

use crate::domain::fleet::Stamp;
use crate::domain::{Command, Event, Fleet, LogIndex, Outcome, Timestamp, codec};

/// The fleet behind the log.
#[derive(Clone, Debug, Default)]
pub struct Machine(pub Fleet);

const fn stamp(stamp: raft::Stamp) -> Stamp {
    Stamp { index: LogIndex(stamp.index.0), at: Timestamp(stamp.at.0) }
}

impl raft::StateMachine for Machine {
    type Command = Command;
    type Outcome = Outcome;
    type Effect = Event;

    fn encode_command(command: &Command) -> Vec<u8> {
        codec::encode_command(command).expect("commands hold nothing that cannot be encoded, and memory takes it")
    }

    fn decode_command(bytes: &[u8]) -> Result<Command, raft::CodecError> {
        Ok(codec::decode_command(bytes)?)
    }

    fn advance(&mut self, at: raft::Stamp, effects: &mut Vec<Event>) {
        effects.extend(self.0.advance(stamp(at)));
    }

    fn apply(&mut self, at: raft::Stamp, command: Command, effects: &mut Vec<Event>) -> Outcome {
        let applied = self.0.apply(stamp(at), command);
        effects.extend(applied.events);
        applied.outcome
    }

    fn next_deadline(&self) -> Option<raft::UnixMillis> {
        self.0.next_deadline().map(|at| raft::UnixMillis(at.0))
    }

    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.write_image(out).map_err(io::Error::other)
    }

    fn read_snapshot(input: &mut dyn Read) -> Result<Self, raft::CodecError> {
        Ok(Self(Fleet::read_image(input)?))
    }
}
