//! The fleet as replicas apply it, with a place to break it.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Write};
use std::sync::Arc;

use berth::broker::machine::Machine;
use berth::domain::{Command, Event, Fleet, Outcome};
use berth_raft::{Clock, CodecError, Stamp, StateMachine, UnixMillis};

use super::clock::MachineClock;

/// The real machine, unless it is given a clock: then its state depends on that.
#[derive(Debug, Clone, Default)]
pub struct Replicated {
    machine: Machine,
    defect: Option<Arc<MachineClock>>,
}

impl Replicated {
    /// One that goes by the clock of its own machine.
    pub fn broken(clock: Arc<MachineClock>) -> Self {
        Self { machine: Machine::default(), defect: Some(clock) }
    }

    /// The fleet in it.
    pub const fn fleet(&self) -> &Fleet {
        &self.machine.0
    }

    /// A number over all of its state.
    pub fn fingerprint(&self) -> u64 {
        let mut hashed = Hashed::default();
        // Nothing can fail that writes to this.
        drop(self.machine.write_snapshot(&mut hashed));
        hashed.0.finish()
    }

    fn stamp(&self, stamp: Stamp) -> Stamp {
        match &self.defect {
            Some(clock) => Stamp { at: stamp.at.max(clock.now()), ..stamp },
            None => stamp,
        }
    }
}

#[derive(Default)]
struct Hashed(DefaultHasher);

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StateMachine for Replicated {
    type Command = Command;
    type Outcome = Outcome;
    type Effect = Event;

    fn encode_command(command: &Command) -> Vec<u8> {
        Machine::encode_command(command)
    }

    fn decode_command(bytes: &[u8]) -> Result<Command, CodecError> {
        Machine::decode_command(bytes)
    }

    fn advance(&mut self, stamp: Stamp, effects: &mut Vec<Event>) {
        let stamp = self.stamp(stamp);
        self.machine.advance(stamp, effects);
    }

    fn apply(&mut self, stamp: Stamp, command: Command, effects: &mut Vec<Event>) -> Outcome {
        let stamp = self.stamp(stamp);
        self.machine.apply(stamp, command, effects)
    }

    fn next_deadline(&self) -> Option<UnixMillis> {
        self.machine.next_deadline()
    }

    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        self.machine.write_snapshot(out)
    }

    fn read_snapshot(input: &mut dyn Read) -> Result<Self, CodecError> {
        Ok(Self { machine: Machine::read_snapshot(input)?, defect: None })
    }
}
