//! Ports whose certificates change, seen by clients that shake hands with them.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection};
use tempfile::TempDir;

use super::*;
use crate::broker::tls::source::{Password, TrustFile};
use crate::broker::tls::subject::Subject;
use crate::broker::tls::{Roots, authority};
use crate::domain::ClientId;
use crate::domain::gateway::GatewayName;
use crate::secret::Secret;

const HOUR: Duration = Duration::from_hours(1);

struct Called(Arc<Mutex<BTreeSet<String>>>);

impl Names for Called {
    fn names(&self) -> BTreeSet<String> {
        self.0.lock().expect("no panic").clone()
    }
}

struct Site {
    pki: Pki,
    called: Arc<Mutex<BTreeSet<String>>>,
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let called = Arc::new(Mutex::new(BTreeSet::from(["localhost".to_owned()])));
        let names = Box::new(Called(Arc::clone(&called)));
        let further = ["broker.example".to_owned()];
        let pki = Pki::with(&folder.path().join("tls"), &further, names, 30 * HOUR, SystemTime::now()).expect("made");
        Self { pki, called, folder }
    }

    fn port(&self, source: Source, client_auth: ClientAuth) -> Tls {
        self.pki.server_config("clients", source, &[b"http/1.1"], client_auth).expect("usable")
    }

    /// Looks as often as a running broker does, at the host's names too.
    fn look(&self, now: SystemTime) {
        self.pki.look(Some(all_names(self.pki.host_names.as_ref(), &self.pki.further_names)), now);
    }

    fn problem(&self) -> Option<String> {
        self.pki.expiries().remove(0).problem
    }

    /// A source in PEM, with the files that it reads.
    fn pem(&self) -> (Source, PathBuf, PathBuf) {
        let (certificate, key) = (self.folder.path().join("chain.pem"), self.folder.path().join("key.pem"));
        (Source::Pem { certificate: certificate.clone(), key: key.clone() }, certificate, key)
    }
}

/// A client's certificate, its authority, and its key.
struct Holder {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// An authority that is not the broker's.
struct Foreign {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Foreign {
    fn new() -> Self {
        let key = KeyPair::generate().expect("made");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "foreign");
        let certificate = params.self_signed(&key).expect("signed");
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Self { issuer: Issuer::new(params, key), certificate: der, pem }
    }

    fn holder(&self, name: &str, not_after: SystemTime) -> Holder {
        let key = KeyPair::generate().expect("made");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        // It may say that it is ours.
        params.subject_alt_names.push(rcgen::SanType::URI("berth:gateway:gw-1".try_into().expect("plain")));
        params.not_before = (SystemTime::now() - 48 * HOUR).into();
        params.not_after = not_after.into();
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        Holder { certificate, key }
    }
}

fn own_holder(pki: &Pki, subject: &Subject, now: SystemTime) -> Holder {
    let key = KeyPair::generate().expect("made");
    let request = CertificateParams::default().serialize_request(&key).expect("made");
    let request = authority::Request::read(request.der()).expect("one");
    let signed = pki.authority().sign_client(&request, subject, now, authority::AGENT_VALIDITY);
    Holder { certificate: signed.expect("signed").certificate, key }
}

fn gateway() -> Subject {
    Subject::Gateway(GatewayName::new("gw-1").expect("valid"))
}

fn client(trusts: &CertificateDer<'static>, holder: Option<&Holder>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(trusts.clone()).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("known").with_root_certificates(roots);
    Arc::new(match holder {
        Some(Holder { certificate, key }) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(vec![certificate.clone()], key).expect("they fit")
        }
        None => builder.with_no_client_auth(),
    })
}

/// What both sides know after a handshake.
#[derive(Debug)]
struct Shaken {
    shown: CertificateDer<'static>,
    subject: Option<Subject>,
    kind: HandshakeKind,
}

/// Shakes hands in memory, as `name`.
fn shake(tls: &Tls, config: &Arc<ClientConfig>, name: &str) -> Result<Shaken, rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::clone(config), name)?;
    let mut server = ServerConnection::new(tls.current())?;
    loop {
        let mut moved = 0;
        let mut bytes = Vec::new();
        while client.wants_write() {
            moved += client.write_tls(&mut bytes).expect("memory takes it");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory gives it");
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            moved += server.write_tls(&mut bytes).expect("memory takes it");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory gives it");
            client.process_new_packets()?;
        }
        if moved == 0 {
            break;
        }
    }
    let shown = client.peer_certificates().and_then(<[_]>::first).expect("the server shows one").clone();
    let subject = tls.shown(server.peer_certificates()).map(|shown| shown.subject);
    Ok(Shaken { shown: shown.into_owned(), subject, kind: server.handshake_kind().expect("shaken") })
}

#[test]
fn the_server_certificate_is_renewed_when_it_is_old_and_when_the_host_is_called_something_else() {
    let site = Site::new();
    let tls = site.port(Source::OwnAuthority, ClientAuth::None);
    let client = client(site.pki.authority().certificate(), None);
    let first = shake(&tls, &client, "localhost").expect("trusted").shown;
    assert_eq!(shake(&tls, &client, "broker.example").expect("a configured name").shown, first);
    let now = SystemTime::now();
    site.look(now + HOUR);
    assert_eq!(shake(&tls, &client, "localhost").expect("trusted").shown, first, "renewed without a reason");

    let standing = tls.current();
    site.look(now + 21 * HOUR);
    let second = shake(&tls, &client, "localhost").expect("trusted").shown;
    assert_ne!(second, first);
    // Who holds the earlier one, in the middle of a handshake, goes on with it.
    assert!(!Arc::ptr_eq(&standing, &tls.current()));

    site.called.lock().expect("no panic").insert("10.0.0.7".to_owned());
    assert!(shake(&tls, &client, "10.0.0.7").is_err());
    site.pki.look(None, now + 22 * HOUR);
    assert_eq!(shake(&tls, &client, "localhost").expect("trusted").shown, second, "names were not asked for");
    site.look(now + 22 * HOUR);
    let third = shake(&tls, &client, "10.0.0.7").expect("it holds the new address").shown;
    assert_ne!(third, second);
    // A clock that is set back far makes one that is valid there.
    site.look(now - 10 * HOUR);
    assert_ne!(shake(&tls, &client, "localhost").expect("trusted").shown, third);
    let expiry = site.pki.expiries().remove(0);
    assert!(expiry.is_renewed && expiry.names.contains("10.0.0.7") && expiry.problem.is_none(), "{expiry:?}");
}

#[test]
fn own_files_are_taken_when_they_change_and_only_when_they_fit() {
    let (site, foreign) = (Site::new(), Foreign::new());
    let (source, certificate, key) = site.pem();
    let write = |holder: &Holder| {
        std::fs::write(&certificate, pem_of(&holder.certificate)).expect("written");
        std::fs::write(&key, holder.key.serialize_pem()).expect("written");
    };
    let now = SystemTime::now();
    let [one, two, three] = ["one", "two", "three"].map(|name| foreign.holder(name, now + 90 * HOUR));
    write(&one);
    let tls = site.port(source, ClientAuth::None);
    let client = client(&foreign.certificate, None);
    let shown = || shake(&tls, &client, "localhost").expect("trusted").shown;
    assert_eq!(shown(), one.certificate);

    write(&two);
    assert_eq!(shown(), one.certificate, "before the look");
    site.look(now);
    assert_eq!(shown(), two.certificate);

    // Half of a change, no certificate at all, a file that is gone.
    std::fs::write(&certificate, pem_of(&three.certificate)).expect("written");
    site.look(now);
    assert_eq!(shown(), two.certificate);
    assert!(site.problem().expect("told").contains("do not work together"));
    std::fs::write(&certificate, "nonsense").expect("written");
    site.look(now);
    assert!(site.problem().expect("told").contains("no usable PEM"));
    std::fs::remove_file(&key).expect("removed");
    site.look(now);
    assert!(site.problem().expect("told").contains("cannot read"));
    assert_eq!(shown(), two.certificate);
    write(&three);
    site.look(now);
    assert_eq!((shown(), site.problem()), (three.certificate.clone(), None));

    // What is in use comes back: nothing is left to tell.
    std::fs::write(&key, one.key.serialize_pem()).expect("written");
    site.look(now);
    assert!(site.problem().is_some());
    write(&three);
    site.look(now);
    assert_eq!((shown(), site.problem()), (three.certificate, None));
}

fn pem_of(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[test]
fn a_certificate_out_of_its_time_is_not_taken_and_an_early_one_when_its_time_comes() {
    let (site, foreign) = (Site::new(), Foreign::new());
    let (source, certificate, key) = site.pem();
    let now = SystemTime::now();
    let [one, old] = [now + 90 * HOUR, now - HOUR].map(|end| foreign.holder("one", end));
    let write = |holder: &Holder| {
        std::fs::write(&certificate, pem_of(&holder.certificate)).expect("written");
        std::fs::write(&key, holder.key.serialize_pem()).expect("written");
    };
    write(&old);
    let refused = site.pki.server_config("clients", source.clone(), &[], ClientAuth::None).err();
    assert!(matches!(refused, Some(TlsError::Expired { path, .. }) if path == certificate));
    write(&one);
    let tls = site.port(source, ClientAuth::None);
    let client = client(&foreign.certificate, None);
    let shown = || shake(&tls, &client, "localhost").expect("trusted").shown;
    write(&old);
    site.look(now);
    assert!(shown() == one.certificate && site.problem().expect("told").contains("expired on"));
    // The same files, by a clock that is two days behind: too early for one, in time for the other.
    site.look(now - 72 * HOUR);
    assert!(shown() == one.certificate && site.problem().is_some());

    let early = foreign.holder("early", now + 90 * HOUR);
    write(&early);
    site.look(now - 72 * HOUR);
    assert!(site.problem().expect("told").contains("not valid before"));
    site.look(now);
    assert_eq!((shown(), site.problem()), (early.certificate, None));
}

#[test]
fn clients_certificates_are_demanded_checked_and_told_apart() {
    let (site, foreign, stranger) = (Site::new(), Foreign::new(), Foreign::new());
    let now = SystemTime::now();
    let trust = site.folder.path().join("trust.pem");
    std::fs::write(&trust, &foreign.pem).expect("written");
    let roots = Roots { own_authority: true, files: vec![TrustFile { file: trust.clone(), password: Password::None }] };
    let required = site.port(Source::OwnAuthority, ClientAuth::Required(roots.clone()));
    let optional = site.port(Source::OwnAuthority, ClientAuth::Optional(roots));
    let not_asked = site.port(Source::OwnAuthority, ClientAuth::None);
    let ca = site.pki.authority().certificate();
    let come =
        |tls: &Tls, holder: Option<&Holder>| shake(tls, &client(ca, holder), "localhost").map(|shaken| shaken.subject);

    assert!(come(&required, None).is_err());
    assert_eq!(come(&optional, None), Ok(None));
    let agent = Subject::Agent(ClientId::new("0191e1a2-6c1d-7aa2-bb1c-a8f2a4d9b1c3").expect("valid"));
    for subject in [agent, gateway()] {
        let holder = own_holder(&site.pki, &subject, now);
        assert_eq!(come(&required, Some(&holder)), Ok(Some(subject.clone())));
        assert_eq!(come(&optional, Some(&holder)), Ok(Some(subject)));
        assert_eq!(come(&not_asked, Some(&holder)), Ok(None));
    }
    // Trusted, and yet nobody whom we enrolled, whatever it says.
    let trusted = foreign.holder("gateway", now + HOUR);
    assert_eq!(come(&required, Some(&trusted)), Ok(Some(Subject::Other("CN=gateway".to_owned()))));
    let expired = own_holder(&site.pki, &gateway(), now - 30 * HOUR);
    for holder in [&expired, &stranger.holder("gateway", now + HOUR), &foreign.holder("late", now - HOUR)] {
        assert!(come(&required, Some(holder)).is_err());
        assert!(come(&optional, Some(holder)).is_err(), "a wrong certificate is worse than none");
    }
    // A server's certificate is not a client's.
    let key = KeyPair::generate().expect("made");
    let signed = site.pki.authority().sign_server(&key, vec!["localhost".to_owned()], now, HOUR).expect("signed");
    let server = Holder { certificate: signed.certificate, key };
    assert!(come(&required, Some(&server)).is_err());

    // Trust is looked at like certificates are.
    std::fs::write(&trust, &stranger.pem).expect("written");
    site.look(now);
    assert!(come(&required, Some(&trusted)).is_err());
    assert!(come(&required, Some(&stranger.holder("gateway", now + HOUR))).is_ok());
    std::fs::write(&trust, "").expect("written");
    site.look(now);
    assert!(come(&required, Some(&stranger.holder("gateway", now + HOUR))).is_ok(), "a broken file changes nothing");
}

#[test]
fn authorities_of_clients_come_from_key_stores_too_and_somebody_must_be_trusted() {
    let site = Site::new();
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name);
    let changeit = || Password::Text(Secret::new("changeit".to_owned()));
    for name in ["trust.jks", "trust.p12", "openssl-trust.p12"] {
        let files = vec![TrustFile { file: fixture(name), password: changeit() }];
        site.port(Source::OwnAuthority, ClientAuth::Required(Roots { own_authority: false, files }));
    }
    let files = vec![TrustFile { file: fixture("one.jks"), password: changeit() }];
    let none = ClientAuth::Required(Roots { own_authority: false, files });
    assert!(matches!(site.pki.server_config("gateways", Source::OwnAuthority, &[], none), Err(TlsError::Store { .. })));
    let nobody = ClientAuth::Optional(Roots::default());
    assert!(matches!(site.pki.server_config("gateways", Source::OwnAuthority, &[], nobody), Err(TlsError::NoRoots)));
}

#[test]
fn sessions_are_resumed_until_something_changes_and_never_past_a_clients_certificate() {
    let site = Site::new();
    let all = ClientAuth::Optional(Roots { own_authority: true, files: Vec::new() });
    let [plain, asking] = [ClientAuth::None, all].map(|auth| site.port(Source::OwnAuthority, auth));
    for (version, name) in [(&rustls::version::TLS13, "1.3"), (&rustls::version::TLS12, "1.2")] {
        let mut roots = RootCertStore::empty();
        roots.add(site.pki.authority().certificate().clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).expect("known");
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        let kind = |tls: &Tls, name: &str| shake(tls, &config, name).expect("trusted").kind;
        assert_eq!(kind(&plain, "localhost"), HandshakeKind::Full, "{name}");
        assert_eq!(kind(&plain, "localhost"), HandshakeKind::Resumed, "{name}");
        site.called.lock().expect("no panic").insert(format!("renewed-{name}.example"));
        site.look(SystemTime::now());
        assert_eq!(kind(&plain, "localhost"), HandshakeKind::Full, "{name}");
        for _ in 0..2 {
            assert_eq!(kind(&asking, "broker.example"), HandshakeKind::Full, "{name}");
        }
    }
}

#[test]
fn a_name_that_no_certificate_can_hold_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = Pki::open(folder.path(), &["two words".to_owned()]).err();
    assert!(matches!(refused, Some(TlsError::Name { name }) if name == "two words"));
}
