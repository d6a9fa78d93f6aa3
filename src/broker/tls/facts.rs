//! What is read from a certificate.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::TlsError;

/// From when until when a certificate is good, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its subject, as X.509 writes it.
    pub subject: String,
    /// Its first moment.
    pub not_before: SystemTime,
    /// Its last moment.
    pub not_after: SystemTime,
}

impl Facts {
    /// Reads a certificate; `None` when it is none.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(certificate).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let validity = certificate.validity();
        Some(Self {
            subject: certificate.subject().to_string(),
            not_before: moment(validity.not_before.timestamp())?,
            not_after: moment(validity.not_after.timestamp())?,
        })
    }

    /// Reads the certificate of a file, which must be good now.
    pub fn valid(certificate: &CertificateDer<'_>, path: &Path, now: SystemTime) -> Result<Self, TlsError> {
        let facts = Self::of(certificate).ok_or_else(|| TlsError::NoCertificate { path: path.to_owned() })?;
        if now > facts.not_after {
            return Err(TlsError::Expired { path: path.to_owned(), not_after: timestamp(facts.not_after) });
        }
        if now < facts.not_before {
            return Err(TlsError::NotYetValid { path: path.to_owned(), not_before: timestamp(facts.not_before) });
        }
        Ok(facts)
    }
}

/// Whether the first certificate was issued under the name of the second.
pub(super) fn is_issued_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) =
        (X509Certificate::from_der(certificate), X509Certificate::from_der(issuer))
    else {
        return false;
    };
    certificate.issuer().as_raw() == issuer.subject().as_raw()
}

/// Seconds since 1970, also negative ones: certificates may be as old.
fn moment(seconds: i64) -> Option<SystemTime> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}

/// A moment for people. Certificates may name years that no calendar here has.
pub(super) fn timestamp(moment: SystemTime) -> jiff::Timestamp {
    let latest = if moment < SystemTime::UNIX_EPOCH { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
    jiff::Timestamp::try_from(moment).unwrap_or(latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_has_no_facts_and_one_has_its_dates() {
        assert_eq!(Facts::of(&CertificateDer::from(&b"nonsense"[..])), None);
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).expect("a name");
        let day = |day: u64| SystemTime::UNIX_EPOCH + Duration::from_hours(24 * day);
        (params.not_before, params.not_after) = (day(100).into(), day(200).into());
        params.distinguished_name.push(rcgen::DnType::CommonName, "a");
        let certificate = params.self_signed(&rcgen::KeyPair::generate().expect("made")).expect("signed");
        let facts = Facts::of(certificate.der()).expect("a certificate");
        assert_eq!((facts.not_before, facts.not_after), (day(100), day(200)));
        assert!(facts.subject.contains("CN=a"), "{}", facts.subject);
        assert!(is_issued_by(certificate.der(), certificate.der()));
        let path = Path::new("a.pem");
        assert!(Facts::valid(certificate.der(), path, day(150)).is_ok());
        let early = Facts::valid(certificate.der(), path, day(99)).expect_err("too early").to_string();
        assert!(early.contains("1970-04-11") && early.contains("a.pem"), "{early}");
        let late = Facts::valid(certificate.der(), path, day(201)).expect_err("too late").to_string();
        assert!(late.contains("1970-07-20") && late.contains("put a new one"), "{late}");
    }
}
