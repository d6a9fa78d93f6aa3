//! The format of a snapshot file.
//!
//! ```text
//! SnapshotHeader record
//! chunk*            length u32 | crc32c u32 | bytes    (length > 0)
//! end               0 u32
//! SnapshotFooter record
//! offset of the footer u64 | crc32c of these 8 bytes u32 | "BRTS"
//! ```
//!
//! Numbers are little-endian. A chunk's checksum covers its position in the
//! file too, so that chunks cannot change places.

use std::path::Path;

use bincode::{BorrowDecode, Encode};

use crate::Error;
use crate::codec::{self, HEADER_BYTES, Kind};
use crate::files::Handle;

/// Content bytes of a chunk, except for the last one.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
/// Longest meta.
pub(super) const META_BYTES_MAX: usize = 1 << 20;
pub(super) const CHUNK_HEADER_BYTES: usize = 8;
pub(super) const END_BYTES: usize = 4;
const TRAILER_BYTES: usize = 16;
const TRAILER_MAGIC: [u8; 4] = *b"BRTS";

/// First record.
#[derive(Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) struct Header {
    pub(super) chunk_bytes: u32,
}

/// Last record.
#[derive(Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) struct Footer<'a> {
    pub(super) index: u64,
    /// Length of the content.
    pub(super) length: u64,
    pub(super) meta: &'a [u8],
}

/// What a file's footer says, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) index: u64,
    pub(super) length: u64,
    pub(super) meta: Vec<u8>,
    /// Offset of the first chunk, and of the end mark.
    pub(super) chunks_start: u64,
    pub(super) chunks_end: u64,
}

pub(super) fn header() -> Vec<u8> {
    let chunk_bytes = u32::try_from(CHUNK_BYTES).expect("256 KiB fit");
    codec::encode(Kind::SnapshotHeader, &Header { chunk_bytes }, 5)
}

/// Length and checksum of the chunk `bytes` at `offset` of the file.
pub(super) fn chunk_header(offset: u64, bytes: &[u8]) -> [u8; CHUNK_HEADER_BYTES] {
    let length = u32::try_from(bytes.len()).expect("chunks are at most 256 KiB");
    let mut header = [0; CHUNK_HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..].copy_from_slice(&chunk_crc(offset, bytes).to_le_bytes());
    header
}

/// Length and checksum in a chunk's header.
pub(super) fn parse_chunk_header(header: [u8; CHUNK_HEADER_BYTES]) -> (usize, u32) {
    let both = u64::from_le_bytes(header);
    let (length, crc) = (both & u64::from(u32::MAX), both >> 32);
    let half = |bits| u32::try_from(bits).expect("half of 64 bits are 32");
    (half(length) as usize, half(crc))
}

pub(super) fn chunk_crc(offset: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&offset.to_le_bytes()), bytes)
}

/// All that follows the last chunk; `offset` is where that is.
pub(super) fn ending(offset: u64, footer: &Footer<'_>) -> Vec<u8> {
    let mut bytes = vec![0; END_BYTES];
    bytes.extend(codec::encode(Kind::SnapshotFooter, footer, footer.meta.len() + 32));
    let position = (offset + END_BYTES as u64).to_le_bytes();
    bytes.extend_from_slice(&position);
    bytes.extend_from_slice(&crc32c::crc32c(&position).to_le_bytes());
    bytes.extend_from_slice(&TRAILER_MAGIC);
    bytes
}

/// Reads header and footer of a snapshot file and checks them.
pub(super) fn read_contents(path: &Path, file: &Handle) -> Result<Contents, Error> {
    let failed = |error| Error::io("read", path, error);
    let file_bytes = file.length().map_err(failed)?;

    let mut head = vec![0; HEADER_BYTES.min(usize::try_from(file_bytes).unwrap_or(usize::MAX))];
    file.read_exact_at(&mut head, 0).map_err(failed)?;
    let in_header = |defect: codec::Defect| defect.into_error(path, "the header");
    let header_bytes = HEADER_BYTES + codec::body_length(&head).map_err(in_header)?;
    let trailer_start = file_bytes
        .checked_sub(TRAILER_BYTES as u64)
        .filter(|start| *start >= (header_bytes + END_BYTES) as u64)
        .ok_or_else(|| Error::damaged(path, "the file", format!("only {file_bytes} bytes")))?;
    head.resize(header_bytes, 0);
    file.read_exact_at(&mut head, 0).map_err(failed)?;
    let header: Header = codec::decode(Kind::SnapshotHeader, &head).map_err(in_header)?;
    if header.chunk_bytes as usize != CHUNK_BYTES {
        let reason = format!("chunks of {} bytes", header.chunk_bytes);
        return Err(Error::damaged(path, "the header", reason));
    }

    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, trailer_start).map_err(failed)?;
    let footer_start = parse_trailer(&trailer)
        .filter(|start| {
            (header_bytes as u64 + END_BYTES as u64..trailer_start).contains(start)
                && trailer_start - start <= (HEADER_BYTES + META_BYTES_MAX + 64) as u64
        })
        .ok_or_else(|| {
            Error::damaged(path, format!("the trailer at {trailer_start}"), "it does not lead to a footer")
        })?;
    let footer_bytes = usize::try_from(trailer_start - footer_start).expect("checked above to be about 1 MiB at most");
    let mut record = vec![0; footer_bytes];
    file.read_exact_at(&mut record, footer_start).map_err(failed)?;
    let footer: Footer<'_> = codec::decode(Kind::SnapshotFooter, &record)
        .map_err(|defect| defect.into_error(path, format!("the footer at {footer_start}")))?;
    Ok(Contents {
        index: footer.index,
        length: footer.length,
        meta: footer.meta.to_vec(),
        chunks_start: header_bytes as u64,
        chunks_end: footer_start - END_BYTES as u64,
    })
}

fn parse_trailer(trailer: &[u8; TRAILER_BYTES]) -> Option<u64> {
    let (position, rest) = trailer.split_first_chunk::<8>()?;
    let (crc, magic) = rest.split_first_chunk::<4>()?;
    let whole = u32::from_le_bytes(*crc) == crc32c::crc32c(position) && magic == TRAILER_MAGIC;
    whole.then(|| u64::from_le_bytes(*position))
}
