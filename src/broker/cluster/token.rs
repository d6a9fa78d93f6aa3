//! Join tokens: what a new replica needs to be let in, in one line of text.
//!
//! A token holds where the members are, the authorities that they are known
//! by, and a certificate with its key that is good for one thing, once and for
//! an hour. Who has it can join: it is a secret.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::authority::{Certified, ClusterId, Tls};
use super::dial::{self, ConnectError};
use super::frame::{self, Service, Speaker};
use super::message::{Join, Joined};
use crate::domain::ids::InvitationId;
use crate::secret::Secret;

/// What each token begins with.
const PREFIX: &str = "berth-join-";
/// Longest token that is read, in bytes.
const BYTES_MAX: usize = 16 * 1024;
/// How long one member may take to let a replica in.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

/// A token, taken apart.
#[derive(Serialize, Deserialize)]
pub struct JoinToken {
    /// The cluster.
    pub cluster: ClusterId,
    /// The invitation.
    pub invitation: InvitationId,
    /// Where members are, the one that gave the token first.
    pub addresses: Vec<String>,
    authorities: Vec<Vec<u8>>,
    certificate: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
}

/// Why a replica could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The text is no token.
    #[error("this is no join token; `berth cluster add` on a replica prints one")]
    Malformed,
    /// The certificate in it cannot be used.
    #[error("the join token cannot be used")]
    Unusable(#[from] super::authority::AuthorityError),
    /// No member answered.
    #[error("no replica of the cluster could be asked: {0}")]
    Unreachable(String),
    /// The cluster refused.
    #[error("the cluster refused: {0}")]
    Refused(String),
}

impl JoinToken {
    /// Puts a token together.
    pub fn new(
        cluster: ClusterId,
        invitation: InvitationId,
        addresses: Vec<String>,
        authorities: &[CertificateDer<'_>],
        certified: &Certified,
    ) -> Self {
        Self {
            cluster,
            invitation,
            addresses,
            authorities: authorities.iter().map(|authority| authority.to_vec()).collect(),
            certificate: certified.certificate.to_vec(),
            key: zeroize::Zeroizing::new(certified.key.secret_pkcs8_der().to_vec()),
        }
    }

    /// The token as text.
    pub fn to_text(&self) -> Secret {
        Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(frame::encode(self))))
    }

    /// The token of a text.
    pub fn parse(text: &Secret) -> Result<Self, JoinError> {
        let body = text.expose().trim().strip_prefix(PREFIX).filter(|body| body.len() <= BYTES_MAX);
        let bytes = URL_SAFE_NO_PAD.decode(body.ok_or(JoinError::Malformed)?).map_err(|_| JoinError::Malformed)?;
        frame::decode(&bytes).map_err(|_| JoinError::Malformed)
    }

    /// Asks the members, one after the other, to be let in.
    pub async fn join(&self, join: &Join) -> Result<Joined, JoinError> {
        let authorities = self.authorities.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let certified = Certified {
            certificate: CertificateDer::from(self.certificate.clone()),
            key: PrivatePkcs8KeyDer::from(self.key.to_vec()),
        };
        let tls = Tls::new(authorities, certified)?;
        let mut failures = Vec::new();
        for address in &self.addresses {
            let speaker = Speaker::Invited(self.invitation.clone());
            let request = frame::encode(join);
            let answer =
                dial::ask_once(&self.cluster, &tls, address, speaker, Service::Join, request, JOIN_TIMEOUT).await;
            match answer {
                Ok(bytes) => match frame::decode(&bytes) {
                    Ok(Joined::Refused(reason)) => return Err(JoinError::Refused(reason)),
                    Ok(joined) => return Ok(joined),
                    Err(error) => failures.push(format!("{address}: {error}")),
                },
                Err(ConnectError::Unwelcome(unwelcome)) => return Err(JoinError::Refused(unwelcome.to_string())),
                Err(ConnectError::Io(error)) => failures.push(format!("{address}: {error}")),
            }
        }
        Err(JoinError::Unreachable(failures.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::cluster::authority::Authorities;

    #[test]
    fn a_token_comes_back_and_other_texts_are_none() {
        let authorities = Authorities::new(&Secret::random()).expect("made");
        let invitation = InvitationId::new("i-1").expect("valid");
        let certified = authorities.invitation(0, &invitation, Duration::from_hours(1)).expect("signed");
        let trusted = authorities.trusted(0).expect("made");
        let addresses = vec!["b1:47100".to_owned()];
        let token = JoinToken::new(authorities.cluster().clone(), invitation, addresses, &trusted, &certified);
        let text = token.to_text();
        let read = JoinToken::parse(&text).expect("a token");
        assert_eq!((read.cluster, read.invitation, read.addresses), (token.cluster, token.invitation, token.addresses));
        for text in ["", "berth-join-", "berth-join-AAAA", "hello", &text.expose()[..60]] {
            assert!(matches!(JoinToken::parse(&Secret::new(text.to_owned())), Err(JoinError::Malformed)), "{text}");
        }
    }
}
