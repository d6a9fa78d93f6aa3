//! The audit: who did what, from where, with which result. Its records are
//! events in the journal, and each holds the digest of the one before, so that
//! a record that was changed, removed or put in between shows.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ids::{ClientId, ReplicaId};
use super::time::Timestamp;

/// Longest text in a record, in bytes; longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 512;

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Actor {
    /// Somebody who did not prove who it is.
    Unknown,
    /// A client of the API.
    Client(ClientId),
    /// An enrolled agent.
    Agent(ClientId),
    /// A gateway, by the name in its certificate.
    Gateway(String),
    /// An operator, on the host of a replica.
    Operator,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Client(id) => write!(f, "client {id}"),
            Self::Agent(id) => write!(f, "agent {id}"),
            Self::Gateway(name) => write!(f, "gateway {name}"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

/// What was done, or tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// Who.
    pub actor: Actor,
    /// From where: an address; `local uid N` for a user at the operators'
    /// socket, `local` for what a replica does by itself.
    pub from: String,
    /// What: the name of an operation.
    pub action: String,
    /// With what: ids, with blanks between them.
    pub target: String,
    /// Id of the request: of calls of the API, as in the log of the replica; of
    /// operators, one for each command. What is recorded twice, because an
    /// answer was lost, has the same.
    pub request_id: String,
    /// The replica that was asked.
    pub via: ReplicaId,
}

impl Deed {
    /// With all texts within their bounds.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if let Actor::Gateway(name) = &mut self.actor {
            cut(name);
        }
        for text in [&mut self.from, &mut self.action, &mut self.target, &mut self.request_id] {
            cut(text);
        }
        self
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// That of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no digest: 64 hexadecimal digits");
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| wrong())?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let value = |digit: u8| char::from(digit).to_digit(16).filter(|_| !digit.is_ascii_uppercase());
            let (high, low) = (value(pair[0]).ok_or_else(wrong)?, value(pair[1]).ok_or_else(wrong)?);
            *byte = u8::try_from(high << 4 | low).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Its number; records have no gaps.
    pub number: u64,
    /// When, by the leader's clock.
    pub at: Timestamp,
    /// What was done.
    pub deed: Deed,
    /// What came of it.
    pub result: String,
    /// Digest of the record before.
    pub previous: Digest,
    /// Digest of this one.
    pub digest: Digest,
}

impl AuditRecord {
    /// What the digest of this record must be: that of its lines, each a name,
    /// the number of bytes that follow, and these. So no text can stand for
    /// two fields, and anybody can compute it from an export.
    pub fn computed(&self) -> Digest {
        let mut hasher = Sha256::new();
        let mut line = |name: &str, value: &str| {
            hasher.update(format!("{name}={}:{value}\n", value.len()).as_bytes());
        };
        line("previous", &self.previous.to_string());
        line("number", &self.number.to_string());
        line("at", &self.at.0.to_string());
        line("actor", &self.deed.actor.to_string());
        line("from", &self.deed.from);
        line("action", &self.deed.action);
        line("target", &self.deed.target);
        line("request", &self.deed.request_id);
        line("replica", &self.deed.via.to_string());
        line("result", &self.result);
        Digest(hasher.finalize().into())
    }
}

/// Where the chain of records ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Chain {
    /// Number of the last record; 0 before the first.
    pub last: u64,
    /// Its digest.
    pub digest: Digest,
}

impl Chain {
    /// The record that comes next.
    pub fn record(&self, at: Timestamp, deed: Deed, mut result: String) -> AuditRecord {
        cut(&mut result);
        let record = AuditRecord {
            number: self.last.saturating_add(1),
            at,
            deed: deed.bounded(),
            result,
            previous: self.digest,
            digest: Digest::default(),
        };
        AuditRecord { digest: record.computed(), ..record }
    }

    /// The end after a record.
    pub const fn after(record: &AuditRecord) -> Self {
        Self { last: record.number, digest: record.digest }
    }
}

/// Why records are not as they were written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A record is not what its digest says.
    #[error("record {0} was changed: its digest is another one")]
    Changed(u64),
    /// A record does not follow the one before.
    #[error("record {found} does not follow record {after}: some were removed, or put in between")]
    Torn {
        /// The record before.
        after: u64,
        /// The one that stands there.
        found: u64,
    },
}

/// Checks that each of some records is as it was written and follows the one
/// before. What came before the first is not here to be checked.
pub fn verify<'a>(records: impl IntoIterator<Item = &'a AuditRecord>) -> Result<Option<Chain>, Broken> {
    let mut end: Option<Chain> = None;
    for record in records {
        if record.computed() != record.digest {
            return Err(Broken::Changed(record.number));
        }
        if let Some(end) = end
            && (end.last.checked_add(1) != Some(record.number) || record.previous != end.digest)
        {
            return Err(Broken::Torn { after: end.last, found: record.number });
        }
        end = Some(Chain::after(record));
    }
    Ok(end)
}

/// The result of a call with several items.
#[must_use]
pub fn counted(done: usize, refused: usize) -> String {
    format!("{done} done, {refused} refused")
}

/// A text that a record has room for.
#[must_use]
pub fn bounded(mut text: String) -> String {
    cut(&mut text);
    text
}

fn cut(text: &mut String) {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX - '…'.len_utf8()));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(target: &str) -> Deed {
        Deed {
            actor: Actor::Client(ClientId::new("portal").expect("valid")),
            from: "10.0.0.1".to_owned(),
            action: "deleteSessions".to_owned(),
            target: target.to_owned(),
            request_id: "r".to_owned(),
            via: ReplicaId(1),
        }
    }

    fn records(count: u64) -> Vec<AuditRecord> {
        let mut chain = Chain::default();
        (1..=count)
            .map(|number| {
                let record = chain.record(Timestamp(number), deed(&format!("s{number}")), "done".to_owned());
                chain = Chain::after(&record);
                record
            })
            .collect()
    }

    #[test]
    fn records_that_are_whole_verify_from_any_of_them_on() {
        let records = records(5);
        assert_eq!(verify(&records), Ok(Some(Chain::after(&records[4]))));
        assert_eq!(verify(&records[2..]), Ok(Some(Chain::after(&records[4]))));
        assert_eq!(verify([]), Ok(None));
    }

    #[test]
    fn each_change_of_each_field_shows() {
        let records = records(3);
        let alterations: [fn(&mut AuditRecord); 9] = [
            |record| record.number += 1,
            |record| record.at = Timestamp(99),
            |record| record.deed.actor = Actor::Operator,
            |record| record.deed.from.push('1'),
            |record| record.deed.action = "createSessions".to_owned(),
            |record| record.deed.target.clear(),
            |record| record.deed.request_id.push('x'),
            |record| record.deed.via = ReplicaId(2),
            |record| record.result = "refused".to_owned(),
        ];
        for alter in alterations {
            let mut changed = records.clone();
            alter(&mut changed[1]);
            assert!(matches!(verify(&changed), Err(Broken::Changed(_))), "{:?}", changed[1]);
            // Who can compute digests still tears the chain.
            changed[1].digest = changed[1].computed();
            assert!(matches!(verify(&changed), Err(Broken::Torn { .. })), "{:?}", changed[1]);
        }
    }

    #[test]
    fn a_record_that_is_missing_or_moved_shows() {
        let records = records(4);
        let without = [records[0].clone(), records[2].clone()];
        assert_eq!(verify(&without), Err(Broken::Torn { after: 1, found: 3 }));
        let swapped = [records[1].clone(), records[0].clone()];
        assert_eq!(verify(&swapped), Err(Broken::Torn { after: 2, found: 1 }));
    }

    #[test]
    fn a_text_cannot_stand_for_two_fields() {
        let mut one = records(1).remove(0);
        let mut other = one.clone();
        one.deed.action = "a\ntarget=1:b".to_owned();
        one.deed.target = String::new();
        other.deed.action = "a".to_owned();
        other.deed.target = "b".to_owned();
        assert_ne!(one.computed(), other.computed());
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let record = Chain::default().record(Timestamp(1), deed(&"ä".repeat(600)), "x".repeat(9_000));
        assert!(record.deed.target.len() <= TEXT_BYTES_MAX && record.result.len() <= TEXT_BYTES_MAX);
        assert!(record.deed.target.ends_with("ä…"));
    }

    #[test]
    fn digests_are_read_as_they_are_shown() {
        let digest = records(1)[0].digest;
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for wrong in ["", "00", &"g".repeat(64), &"A".repeat(64), &"ä".repeat(32)] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }
}
