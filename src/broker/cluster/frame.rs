//! What replicas send each other: frames of a bounded length with a type.
//!
//! ```text
//! length u32 | kind u8 | call u64 | service or status u8 | bytes
//! ```
//!
//! All numbers little-endian; the length is that of what follows it. After the
//! handshake of TLS the one that connected says hello, the other one welcomes
//! or refuses it; then the first asks and the second answers, many calls
//! beside each other. Each may ask for a sign of life.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::{Decoder, Encoder};

use super::authority::ClusterId;
use super::runs::Run;
use crate::domain::ReplicaId;
use crate::domain::ids::{FolderId, InvitationId};

/// Version of frames and of what is in them that is not a request of the log's.
pub const VERSION: u16 = 1;
/// Longest frame: the longest request of the log and what surrounds it.
pub const FRAME_BYTES_MAX: usize = berth_raft::ENTRY_BYTES_MAX + 1024 * 1024;
/// Longest frame of one that is no member: a hello, a wish to join.
pub const STRANGERS_FRAME_BYTES_MAX: usize = 16 * 1024;
/// Most bytes that one small message may claim while it is decoded.
const DECODE_BYTES_MAX: usize = 1024 * 1024;

const HEAD_BYTES: usize = 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who is speaking; first of all.
    Hello,
    /// The answer to a hello.
    Welcome,
    /// A question to a service.
    Call,
    /// Its answer.
    Answer,
    /// Are you there?
    Ping,
    /// I am.
    Pong,
}

/// Who answers a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The log.
    Log,
    /// The agents that are connected there.
    Agents,
    /// The cluster: members, forming, operators' wishes.
    Cluster,
    /// Those who let new replicas in.
    Join,
}

/// How a call went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The bytes are the answer.
    Done,
    /// Not carried out: this replica is starting or ending.
    NotServing,
    /// Not carried out; the bytes say why.
    Refused,
    /// Not carried out, nor is anything else of this speaker; the bytes hold the
    /// [`Unwelcome`].
    Unwelcome,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Which call it belongs to; 0 when to none.
    pub call: u64,
    /// Number of the service, or of the status.
    pub tag: u8,
    /// What it carries.
    pub bytes: Bytes,
}

impl Frame {
    /// A frame that belongs to no call and carries nothing.
    pub const fn bare(kind: Kind) -> Self {
        Self { kind, call: 0, tag: 0, bytes: Bytes::new() }
    }
}

impl Kind {
    const ALL: [Self; 6] = [Self::Hello, Self::Welcome, Self::Call, Self::Answer, Self::Ping, Self::Pong];
}

impl Service {
    const ALL: [Self; 4] = [Self::Log, Self::Agents, Self::Cluster, Self::Join];

    /// The service of a number.
    pub fn of(tag: u8) -> Option<Self> {
        Self::ALL.get(usize::from(tag)).copied()
    }
}

impl Status {
    const ALL: [Self; 4] = [Self::Done, Self::NotServing, Self::Refused, Self::Unwelcome];

    /// The status of a number.
    pub fn of(tag: u8) -> Option<Self> {
        Self::ALL.get(usize::from(tag)).copied()
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct Frames {
    bytes_max: usize,
}

impl Frames {
    /// Frames of at most so many bytes.
    pub const fn new(bytes_max: usize) -> Self {
        Self { bytes_max }
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl Decoder for Frames {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some(length) = input.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length < HEAD_BYTES || length > self.bytes_max {
            return Err(invalid(format!(
                "a frame of {length} bytes, but {HEAD_BYTES} to {} are allowed",
                self.bytes_max
            )));
        }
        if input.len() < 4 + length {
            // Grows with what really comes, and not with what is announced.
            input.reserve((4 + length - input.len()).min(64 * 1024));
            return Ok(None);
        }
        input.advance(4);
        let mut frame = input.split_to(length);
        let kind = frame.get_u8();
        let kind = *Kind::ALL.get(usize::from(kind)).ok_or_else(|| invalid(format!("a frame of kind {kind}")))?;
        let (call, tag) = (frame.get_u64_le(), frame.get_u8());
        Ok(Some(Frame { kind, call, tag, bytes: frame.freeze() }))
    }
}

impl Encoder<Frame> for Frames {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, output: &mut BytesMut) -> io::Result<()> {
        let length = HEAD_BYTES + frame.bytes.len();
        let announced = u32::try_from(length).ok().filter(|_| length <= FRAME_BYTES_MAX);
        let Some(announced) = announced else {
            return Err(invalid(format!("a frame of {length} bytes cannot be sent")));
        };
        output.reserve(4 + length);
        output.put_u32_le(announced);
        output.put_u8(frame.kind as u8);
        output.put_u64_le(frame.call);
        output.put_u8(frame.tag);
        output.put_slice(&frame.bytes);
        Ok(())
    }
}

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speaker {
    /// A replica.
    Replica {
        /// Its number.
        id: ReplicaId,
        /// Its data folder.
        folder: FolderId,
        /// Which run of its process.
        run: Run,
    },
    /// One that wants to become a replica.
    Invited(InvitationId),
}

/// The first words of the one who connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Who it is. Its certificate must allow it.
    pub speaker: Speaker,
    /// Whom it believes to talk to, if to one in particular.
    pub to: Option<ReplicaId>,
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// Go on.
    Welcome,
    /// Not to you.
    Refused(Unwelcome),
}

/// Why one is not talked to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Unwelcome {
    /// The certificate does not allow what was said.
    #[error("the certificate is another one's")]
    NotYou,
    /// The one who was wanted is not here.
    #[error("this is replica {0}; is the address right?")]
    NotMe(ReplicaId),
    /// The replica is known with another data folder.
    #[error(
        "replica {id} is a member with another data folder: the one it has now lacks what it acknowledged. Let it join \
         anew: `berth cluster add --replace {id}` on another replica, then `berth cluster join` here, with an empty \
         data folder"
    )]
    OtherFolder {
        /// Its number.
        id: ReplicaId,
    },
    /// The replica was removed.
    #[error(
        "replica {id} was removed from cluster {cluster}; to come back it must join anew, with an empty data folder"
    )]
    Removed {
        /// Its number.
        id: ReplicaId,
        /// The cluster.
        cluster: ClusterId,
    },
    /// There are too many connections.
    #[error("too many connections")]
    Busy,
    /// Another process is connected as this replica.
    #[error(
        "another process speaks as replica {id}: its data folder was copied, or two hosts have the same `replica`. Stop \
         one of the two. A host that is to be a replica of its own needs an empty data folder, and a number of its own or \
         `berth cluster join`"
    )]
    Doubled {
        /// Its number.
        id: ReplicaId,
    },
}

/// A small message with its version before it.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    bincode::serde::encode_into_std_write(message, &mut bytes, bincode::config::standard())
        .expect("writing plain data to memory cannot fail");
    Bytes::from(bytes)
}

/// The inverse of [`encode`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    decode_within::<T, DECODE_BYTES_MAX>(bytes)
}

/// The inverse of [`encode`] for what may be as long as a frame.
pub fn decode_large<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    decode_within::<T, FRAME_BYTES_MAX>(bytes)
}

fn decode_within<T: DeserializeOwned, const BYTES_MAX: usize>(bytes: &[u8]) -> io::Result<T> {
    let Some((head, body)) = bytes.split_first_chunk::<2>() else {
        return Err(invalid("a message without a version".to_owned()));
    };
    let version = u16::from_le_bytes(*head);
    if version != VERSION {
        return Err(invalid(format!("a message of version {version}, but this build reads {VERSION}")));
    }
    let config = bincode::config::standard().with_limit::<BYTES_MAX>();
    let (message, used) =
        bincode::serde::decode_from_slice(body, config).map_err(|error| invalid(error.to_string()))?;
    if used == body.len() { Ok(message) } else { Err(invalid("a message with bytes left over".to_owned())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(bytes: &[u8]) -> Frame {
        Frame { kind: Kind::Call, call: 7, tag: 2, bytes: Bytes::copy_from_slice(bytes) }
    }

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let mut sent = BytesMut::new();
        let frames = [frame(b""), Frame::bare(Kind::Ping), frame(&[9; 3_000])];
        for frame in &frames {
            Frames::new(4_096).encode(frame.clone(), &mut sent).expect("short enough");
        }
        for step in [1, 7, sent.len()] {
            let (mut input, mut codec, mut read) = (BytesMut::new(), Frames::new(4_096), Vec::new());
            for piece in sent.chunks(step) {
                input.extend_from_slice(piece);
                while let Some(frame) = codec.decode(&mut input).expect("well formed") {
                    read.push(frame);
                }
            }
            assert_eq!(read, frames);
        }
    }

    #[test]
    fn what_is_too_long_too_short_or_of_no_kind_is_refused() {
        for bytes in
            [&u32::to_le_bytes(5_000)[..], &u32::to_le_bytes(9)[..], &[10, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert!(Frames::new(4_096).decode(&mut BytesMut::from(bytes)).is_err());
        }
        let too_long = frame(&vec![0; FRAME_BYTES_MAX]);
        assert!(Frames::new(FRAME_BYTES_MAX).encode(too_long, &mut BytesMut::new()).is_err());
    }

    #[test]
    fn numbers_keep_their_places() {
        let numbers: Vec<u8> = Kind::ALL.iter().map(|kind| *kind as u8).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
        assert_eq!(Service::of(Service::Join as u8), Some(Service::Join));
        assert_eq!(Status::of(Status::Refused as u8), Some(Status::Refused));
        assert_eq!((Service::of(4), Status::of(4)), (None, None));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut input = BytesMut::from(bytes.as_slice());
            let mut frames = Frames::new(4_096);
            while let Ok(Some(_)) = frames.decode(&mut input) {}
            drop(decode::<Hello>(&bytes));
            drop(decode::<Welcome>(&bytes));
        }
    }
}
