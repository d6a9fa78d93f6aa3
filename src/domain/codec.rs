//! How commands and snapshots are written as bytes: bincode with one fixed
//! configuration behind a header `[kind u8][version u16]`.
//!
//! Integrity (lengths, checksums) is the business of the store below.

use std::io::{Read, Write};

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::command::Command;

/// Longest command in bytes. A full report with 1,000 sessions stays far
/// below; the limit keeps a damaged length from asking for all memory.
pub const COMMAND_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A [`Command`] in the log.
    Command,
    /// A snapshot of the state.
    Image,
}

impl Kind {
    const fn tag(self) -> u8 {
        match self {
            Self::Command => b'C',
            Self::Image => b'I',
        }
    }
}

/// Why something cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The header names something else.
    #[error("expected a {expected:?}, found the tag {found:#04x}")]
    Kind {
        /// What should stand there.
        expected: Kind,
        /// What stands there.
        found: u8,
    },
    /// A version that this build cannot read: it was written by a newer one.
    #[error("version {version} of {kind:?} is newer than this build can read; run the version that wrote it")]
    Version {
        /// What it is.
        kind: Kind,
        /// Its version.
        version: u16,
    },
    /// The body cannot be written.
    #[error("cannot encode")]
    Encode(#[source] bincode::error::EncodeError),
    /// The body cannot be read.
    #[error("cannot decode")]
    Decode(#[source] bincode::error::DecodeError),
    /// Reading or writing the bytes failed.
    #[error("cannot read or write")]
    Io(#[source] std::io::Error),
    /// Something follows the end.
    #[error("{0} bytes follow the end of a command")]
    Trailing(usize),
}

type Config = Configuration<LittleEndian, Varint, Limit<COMMAND_BYTES_MAX>>;

const fn config() -> Config {
    bincode::config::standard().with_limit::<COMMAND_BYTES_MAX>()
}

/// Version of commands that this build writes.
pub const COMMAND_VERSION: u16 = 1;

/// Writes a command.
pub fn encode_command(command: &Command) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![Kind::Command.tag()];
    bytes.extend_from_slice(&COMMAND_VERSION.to_le_bytes());
    bincode::serde::encode_into_std_write(command, &mut bytes, config()).map_err(CodecError::Encode)?;
    Ok(bytes)
}

/// Reads a command of any version that was ever written.
pub fn decode_command(bytes: &[u8]) -> Result<Command, CodecError> {
    let mut input = bytes;
    let version = read_header(Kind::Command, &mut input)?;
    match version {
        1 => {
            let (command, length) = bincode::serde::decode_from_slice(input, config()).map_err(CodecError::Decode)?;
            match input.len() - length {
                0 => Ok(command),
                trailing => Err(CodecError::Trailing(trailing)),
            }
        }
        version => Err(CodecError::Version { kind: Kind::Command, version }),
    }
}

pub(super) fn write_header(kind: Kind, version: u16, out: &mut dyn Write) -> Result<(), CodecError> {
    out.write_all(&[kind.tag()]).and_then(|()| out.write_all(&version.to_le_bytes())).map_err(CodecError::Io)
}

pub(super) fn read_header(kind: Kind, input: &mut dyn Read) -> Result<u16, CodecError> {
    let mut header = [0; 3];
    input.read_exact(&mut header).map_err(CodecError::Io)?;
    let [tag, low, high] = header;
    if tag != kind.tag() {
        return Err(CodecError::Kind { expected: kind, found: tag });
    }
    Ok(u16::from_le_bytes([low, high]))
}

/// Writes one value of at most [`COMMAND_BYTES_MAX`].
pub(super) fn write<T: Serialize>(value: &T, mut out: &mut dyn Write) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(value, &mut out, config()).map_err(CodecError::Encode)?;
    Ok(())
}

/// How many bytes a value has when it is written.
pub(super) fn encoded_len<T: Serialize>(value: &T) -> u64 {
    struct Counter(u64);
    impl Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // What cannot be written has no further bytes.
    let _ = bincode::serde::encode_into_std_write(value, &mut counter, config());
    counter.0
}

/// Reads one value. Never takes more memory than its limit, whatever the
/// bytes say.
pub(super) fn read<T: DeserializeOwned>(mut input: &mut dyn Read) -> Result<T, CodecError> {
    bincode::serde::decode_from_std_read(&mut input, config()).map_err(CodecError::Decode)
}

/// Writes how many values there are, and each of them by itself, so that the
/// whole may be of any length.
pub(super) fn write_all<T: Serialize>(
    values: impl ExactSizeIterator<Item = T>,
    out: &mut dyn Write,
) -> Result<(), CodecError> {
    write(&(values.len() as u64), out)?;
    for value in values {
        write(&value, out)?;
    }
    Ok(())
}

/// Reads what [`write_all`] wrote.
pub(super) fn read_all<T: DeserializeOwned, C: Default + Extend<T>>(input: &mut dyn Read) -> Result<C, CodecError> {
    let count: u64 = read(input)?;
    let mut values = C::default();
    for _ in 0..count {
        values.extend(std::iter::once(read::<T>(input)?));
    }
    Ok(values)
}
