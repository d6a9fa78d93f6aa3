//! Software statements (RFC 7591 section 2.3): what an agent shows when it
//! enrols. As in the original they are JSON in base64; unlike there each holds
//! a proof, made with a key that only replicas have, so that nobody makes one
//! who was not given it, and none is good by default.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::seal::ClusterKey;
use crate::domain::client::SoftwareStatement;
use crate::domain::ids::StatementId;
use crate::secret::Secret;

/// Longest statement that is looked at, in bytes.
const STATEMENT_BYTES_MAX: usize = 4 * 1024;
/// What the original calls the version of the form.
const FORM_VERSION: &str = "1.0.0";

/// A statement as it is in base64. The order of the fields is that of the
/// original.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    id: StatementId,
    active: bool,
    issued_at: f64,
    broker_version: String,
    proof: String,
}

/// What is proved: which statement it is. When it was issued is for people.
fn proved(id: &StatementId) -> Vec<u8> {
    format!("berth software statement {id}").into_bytes()
}

/// The text of a statement, to be given to agents.
pub(super) fn text(statement: &SoftwareStatement, key: &ClusterKey) -> Secret {
    let proof = URL_SAFE_NO_PAD.encode(key.sign_statement(&proved(&statement.id)));
    let body = Body {
        id: statement.id.clone(),
        active: true,
        // Milliseconds since 1970 are exact in 53 bits for the next 280,000 years.
        #[allow(clippy::cast_precision_loss)]
        issued_at: statement.issued_at.0 as f64 / 1000.0,
        broker_version: FORM_VERSION.to_owned(),
        proof,
    };
    let json = serde_json::to_vec(&body).expect("texts and a number can be written");
    Secret::new(STANDARD.encode(json))
}

/// Which statement a text is; `None` if it is none of this cluster.
pub(super) fn read(text: &str, key: &ClusterKey) -> Option<StatementId> {
    if text.len() > STATEMENT_BYTES_MAX {
        return None;
    }
    let body: Body = serde_json::from_slice(&STANDARD.decode(text.trim()).ok()?).ok()?;
    let proof = URL_SAFE_NO_PAD.decode(&body.proof).ok()?;
    key.is_statement(&proved(&body.id), &proof).then_some(body.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;

    fn key() -> ClusterKey {
        ClusterKey::new(&Secret::random()).expect("a key")
    }

    #[test]
    fn a_statement_is_of_the_cluster_that_made_it_and_cannot_be_changed() {
        let key = key();
        let statement = SoftwareStatement {
            id: StatementId::new("6f1c").expect("valid"),
            issued_at: Timestamp(1_700_000_000_123),
            active: true,
        };
        let text = text(&statement, &key);
        assert_eq!(read(text.expose(), &key), Some(statement.id.clone()));
        assert_eq!(read(&format!(" {}\n", text.expose()), &key), Some(statement.id));
        assert_eq!(read(text.expose(), &super::tests::key()), None);
        let json = String::from_utf8(STANDARD.decode(text.expose()).expect("base64")).expect("text");
        assert!(json.starts_with(r#"{"id":"6f1c","active":true,"issuedAt":1700000000.123,"brokerVersion":"1.0.0","#));
        let other = STANDARD.encode(json.replace("6f1c", "6f1d"));
        assert_eq!(read(&other, &key), None);
        for nonsense in ["", "e30=", "no base64", &"A".repeat(STATEMENT_BYTES_MAX + 1)] {
            assert_eq!(read(nonsense, &key), None);
        }
    }
}
