use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

#[test]
fn files_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str, mode: u32| {
        std::fs::write(path(name), text).unwrap();
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let pair = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["b1".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let ((certificate, key), (_, other_key)) = (pair(), pair());
    write("cert.pem", &certificate, 0o644);
    write("no-key.pem", &certificate, 0o600);
    write("key.pem", &key, 0o640);
    write("other.pem", &other_key, 0o600);
    write("open.pem", &key, 0o644);
    write("empty", "", 0o600);
    write("secret", "hunter2", 0o600);
    write("shown", "hunter2", 0o640);
    write("password", "changeit", 0o600);
    for store in ["one.jks", "trust.p12"] {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(store);
        std::fs::copy(fixture, path(store)).unwrap();
        std::fs::set_permissions(path(store), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    write("cluster", crate::secret::Secret::random().expose(), 0o600);

    let problems = |settings: &[(&str, &str)]| -> Vec<String> {
        let mut places = Places::new();
        for (key, name) in settings {
            places = places.flag(key, path(name).to_str().unwrap());
        }
        let problems = places.load().config.file_problems();
        problems.into_iter().map(|error| Problem::from(error).to_string()).collect()
    };
    let one = |settings: &[(&str, &str)]| {
        let mut problems = problems(settings);
        assert_eq!(problems.len(), 1, "{settings:?}: {problems:?}");
        problems.remove(0)
    };
    let none: [String; 0] = [];
    assert_eq!(problems(&[]), none);
    let good = [
        ("clients.certificate_file", "cert.pem"),
        ("clients.key_file", "key.pem"),
        ("agents.key_store_file", "one.jks"),
        ("agents.key_store_password_file", "password"),
        ("gateway.trust_store_file", "trust.p12"),
        ("gateway.trust_store_password_file", "password"),
        ("cluster.secret_file", "cluster"),
    ];
    assert_eq!(problems(&good), none);
    // A replica that is alone makes it.
    assert_eq!(problems(&[("cluster.secret_file", "none")]), none);

    let pair = one(&[("agents.certificate_file", "cert.pem"), ("agents.key_file", "other.pem")]);
    assert!(pair.contains("`agents.certificate_file`") && pair.contains("does not work together"), "{pair}");
    assert!(one(&[("gateway.key_file", "open.pem")]).contains("mode 0644"));
    assert!(one(&[("clients.certificate_file", "none")]).contains("cannot be read"));
    assert!(one(&[("clients.certificate_file", "empty")]).contains("holds no certificate"));
    assert!(one(&[("clients.certificate_file", "key.pem")]).contains("holds no certificate"));
    assert!(one(&[("clients.key_file", "no-key.pem")]).contains("holds no private key"));
    assert!(one(&[("clients.key_file", "none")]).contains("cannot be read"));
    assert_eq!(problems(&[("gateway.trust_file", "cert.pem")]), none);
    assert!(one(&[("clients.key_store_file", "empty")]).contains("cannot be used"));
    let wrong = one(&[("clients.key_store_file", "one.jks"), ("clients.key_store_password_file", "secret")]);
    assert!(wrong.contains("`clients.key_store_file`") && wrong.contains("password"), "{wrong}");
    assert!(one(&[("gateway.trust_store_file", "none")]).contains("cannot be used"));
    assert!(one(&[("cluster.secret_file", "shown")]).contains("chmod 600"));
    assert!(one(&[("gateway.trust_store_password_file", "none")]).contains("No such file"));
    assert!(one(&[("cluster.secret_file", "secret")]).contains("32 bytes"));
    assert!(one(&[("data_folder", "secret")]).contains("is no folder"));
}
