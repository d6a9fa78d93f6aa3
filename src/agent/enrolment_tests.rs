#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;

fn open(folder: &Path) -> Result<Enrolment, Error> {
    Enrolment::open(folder, ServerId::new("desk").unwrap(), "host".to_owned(), None)
}

/// A certificate for somebody's key, good for a while.
fn certificate(key: &KeyPair, from: Duration, left: Duration) -> String {
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - from).into();
    params.not_after = (SystemTime::now() + left).into();
    params.self_signed(key).unwrap().pem()
}

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn a_key_is_written_down_when_it_is_shown_and_kept_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let enrolment = open(folder.path()).unwrap();
    assert!(enrolment.is_needed() && !enrolment.can_enrol());
    assert!(!folder.path().join(KEY_FILE).exists());
    enrolment.key.keep().unwrap();
    let mode = std::fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = open(folder.path()).unwrap();
    assert_eq!(again.key.pair.serialize_pem(), enrolment.key.pair.serialize_pem());
    assert!(again.can_enrol(), "its key may be known");
    assert!(!format!("{again:?}").contains("PRIVATE"));

    std::fs::write(folder.path().join(CERTIFICATE_FILE), "old").unwrap();
    forget(folder.path()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    forget(folder.path()).unwrap();
    std::fs::write(folder.path().join(KEY_FILE), "nonsense").unwrap();
    assert!(matches!(open(folder.path()), Err(Error::Key(_))));
}

#[tokio::test]
async fn a_certificate_is_shown_after_a_restart_and_renewed_in_its_last_third() {
    let folder = tempfile::tempdir().unwrap();
    let enrolment = open(folder.path()).unwrap();
    enrolment.key.keep().unwrap();
    let write = |pem: String| std::fs::write(folder.path().join(CERTIFICATE_FILE), pem).unwrap();
    // As brokers make them: backdated by a day, good for another.
    write(certificate(&enrolment.key.pair, 24 * HOUR, 24 * HOUR));
    let again = open(folder.path()).unwrap();
    assert!(!again.is_needed() && again.shown.has_certs());
    let due = again.renewed_at().unwrap() - Instant::now();
    assert!((13 * HOUR..19 * HOUR).contains(&due), "{due:?}");
    again.note(false);
    again.note(false);
    again.note(true);
    again.note(false);
    assert!(!again.is_doubtful(), "brokers may die");
    again.note(false);
    again.note(false);
    assert!(again.is_doubtful() && !again.is_needed(), "but not three times in a row");

    write(certificate(&enrolment.key.pair, 47 * HOUR, HOUR));
    let last = open(folder.path()).unwrap();
    assert!(!last.is_needed() && last.renewed_at().unwrap() <= Instant::now() + RENEW_MIN);
    last.refuse();
    assert!(last.is_needed() && last.shown.has_certs());
    last.show_nothing();
    assert!(!last.shown.has_certs());
    write(certificate(&enrolment.key.pair, 49 * HOUR, Duration::ZERO));
    assert!(open(folder.path()).unwrap().is_needed(), "it has ended");
    // What cannot be used is asked for anew.
    for pem in [String::new(), "nonsense".to_owned(), certificate(&KeyPair::generate().unwrap(), HOUR, HOUR)] {
        write(pem);
        let other = open(folder.path()).unwrap();
        assert!(other.is_needed() && !other.shown.has_certs());
    }
}
