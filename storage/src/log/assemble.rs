//! Puts entries together from their records, and refuses everything that was
//! not written that way.

use super::Entry;
use super::record::{self, Part, Piece, Seal};
use crate::codec::{self, Defect, Kind};

/// Takes records in key order and hands out entries.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    open: Option<Open>,
}

/// An entry of which only pieces were seen so far.
#[derive(Debug)]
struct Open {
    index: u64,
    term: u64,
    pieces: u32,
    payload: Vec<u8>,
}

impl Assembler {
    /// The next record. Answers with the entry that it completes.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<Option<Entry>, Defect> {
        match record::parse_key(key) {
            None => Err(Defect::Damage("it is no key of an entry".to_owned())),
            Some((index, Part::Piece(number))) => {
                let piece: Piece<'_> = codec::decode(Kind::EntryPiece, value)?;
                if (piece.index, piece.number) != (index, number) {
                    return Err(Defect::Damage(format!("it holds piece {} of entry {}", piece.number, piece.index)));
                }
                self.push_piece(&piece)?;
                Ok(None)
            }
            Some((index, Part::Seal)) => {
                let seal: Seal<'_> = codec::decode(Kind::EntrySeal, value)?;
                if seal.index != index {
                    return Err(Defect::Damage(format!("it holds entry {}", seal.index)));
                }
                self.push_seal(&seal).map(Some)
            }
        }
    }

    fn push_piece(&mut self, piece: &Piece<'_>) -> Result<(), Defect> {
        let open = match self.open.take() {
            Some(open) if open.index == piece.index => open,
            Some(open) => return Err(unsealed(open.index)),
            None => Open { index: piece.index, term: piece.term, pieces: 0, payload: Vec::new() },
        };
        if piece.number != open.pieces {
            return Err(Defect::Damage(format!("piece {} is missing", open.pieces)));
        }
        if piece.term != open.term {
            return Err(Defect::Damage("its pieces are of two terms".to_owned()));
        }
        let mut open = open;
        open.pieces += 1;
        open.payload.extend_from_slice(piece.bytes);
        self.open = Some(open);
        Ok(())
    }

    fn push_seal(&mut self, seal: &Seal<'_>) -> Result<Entry, Defect> {
        let (term, pieces, mut payload) = match self.open.take() {
            Some(open) if open.index == seal.index => (open.term, open.pieces, open.payload),
            Some(open) => return Err(unsealed(open.index)),
            None => (seal.term, 0, Vec::new()),
        };
        if term != seal.term {
            return Err(Defect::Damage("its pieces are of two terms".to_owned()));
        }
        if pieces != seal.pieces {
            return Err(Defect::Damage(format!("{pieces} pieces are there, {} were written", seal.pieces)));
        }
        payload.extend_from_slice(seal.bytes);
        if payload.len() != seal.length as usize || crc32c::crc32c(&payload) != seal.crc {
            return Err(Defect::Damage("the checksum of its pieces together does not match".to_owned()));
        }
        Ok(Entry { index: seal.index, term: seal.term, payload })
    }

    /// The entry of which the last part never came, if there is one: legal at
    /// the end of the log only, after a crash while it was being written.
    pub(crate) fn unfinished(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.index)
    }
}

fn unsealed(index: u64) -> Defect {
    Defect::Damage(format!("the last part of entry {index} is missing"))
}
