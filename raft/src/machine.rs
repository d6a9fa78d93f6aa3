//! What is replicated: the contract of a deterministic state machine.

use crate::ids::{Stamp, UnixMillis};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};

/// An error of a state machine's own encoding, kept with its source.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// The observer of applied entries, told of each published state that brought something.
///
/// It is called after the state it gets is visible to [`Replica::local`](crate::Replica::local),
/// so that whoever it wakes sees at least that state, and before the callers of these entries get
/// their outcomes. It gets the effects of all entries applied since the call before, in log order:
/// every effect once, also those of entries that are replayed after a restart. What brought no
/// effects is not reported.
///
/// A call **without** effects says that a whole state has replaced the one before (at start, and
/// when a snapshot of the leader is installed): anything may have changed, and the effects that
/// led there are not told.
///
/// It runs on the apply path: it must be quick, must not block, and must not panic (which stops the
/// replica).
pub type Observer<M> = std::sync::Arc<dyn Fn(&M, &[<M as StateMachine>::Effect]) + Send + Sync + 'static>;

/// A deterministic state machine whose commands are replicated.
///
/// `Clone` must be O(1) in the size of the state (persistent maps): a clone is the immutable view
/// that readers and the snapshot writer hold.
///
/// [`advance`](Self::advance) and [`apply`](Self::apply) must be total (never panic, whatever the
/// command) and may depend on nothing but the state, the stamp and the command.
pub trait StateMachine: Clone + Send + Sync + 'static {
    /// What callers ask for.
    type Command: Send + Sync + 'static;
    /// What one command resulted in; sent back to the caller, possibly from another replica.
    type Outcome: Clone + Send + Sync + Serialize + DeserializeOwned + 'static;
    /// What follows from an applied entry outside the state, as data. Hashed, so that replicas can
    /// be compared.
    type Effect: Send + Sync + Serialize + 'static;

    /// Raised with every build in which the same state, outcomes or effects are written as other
    /// bytes than before: replicas of different builds are not taken for different then.
    const HASH_VERSION: u32 = 1;

    /// The command as bytes that every replica, now and later, can decode: they are stored.
    fn encode_command(command: &Self::Command) -> Vec<u8>;

    /// The command back from its bytes. An error stops the replica: bytes of a committed entry
    /// that cannot be read are damage or a version that this build is too old for.
    fn decode_command(bytes: &[u8]) -> Result<Self::Command, CodecError>;

    /// Called once per entry, before its commands: time moves to `stamp.at`, due deadlines fire.
    /// An entry without commands is a tick.
    fn advance(&mut self, stamp: Stamp, effects: &mut Vec<Self::Effect>);

    /// Applies one command.
    fn apply(&mut self, stamp: Stamp, command: Self::Command, effects: &mut Vec<Self::Effect>) -> Self::Outcome;

    /// When [`advance`](Self::advance) has to be called next, if at all. The leader proposes a
    /// tick once its clock has reached this moment.
    fn next_deadline(&self) -> Option<UnixMillis>;

    /// Writes the whole state, with a version of its own at the beginning. Equal states give equal
    /// bytes, on whatever way they came about: replicas compare them.
    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()>;

    /// Reads back what [`write_snapshot`](Self::write_snapshot) wrote.
    fn read_snapshot(input: &mut dyn Read) -> Result<Self, CodecError>;
}
