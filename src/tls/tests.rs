use super::renewed::Files;
use super::*;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

fn provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[tokio::test]
async fn a_pair_is_a_certificate_and_its_key() {
    provider();
    let pair = server(&file("first.crt"), &file("first.key"), HTTP1).expect("a pair");
    assert_eq!(pair.borrow().alpn_protocols, [b"http/1.1"]);
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said_of_that_file() {
    provider();
    let directory = tempfile::tempdir().expect("a directory");
    let with = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let garbage = with("garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let cut = with("cut", &std::fs::read(file("first.crt")).expect("there")[..100]);
    let (empty, long) = (with("empty", b""), with("long", &[b'x'; 200 * 1024]));
    let (certificate, key) = (file("first.crt"), file("first.key"));
    let not_its = format!("is not the key of the certificate in {}", certificate.display());
    let table = [
        (&directory.path().join("absent"), &key, 0, "cannot be read: No such file or directory"),
        (&empty, &key, 0, "holds no certificate (PEM)"),
        (&long, &key, 0, "holds more than 128 KiB"),
        (&key, &key, 0, "holds no certificate (PEM)"),
        (&cut, &key, 0, "is malformed: "),
        (&garbage, &key, 0, "invalid peer certificate: BadEncoding"),
        (&certificate, &certificate, 1, "holds no private key (PEM, without a password)"),
        (&certificate, &file("second.key"), 1, &not_its),
    ];
    for (certificate, key, wrong, why) in table {
        let error = server(certificate, key, HTTP1).expect_err(why).to_string();
        let named = [certificate, key][wrong].display();
        assert!(error.starts_with(&format!("{named}: {why}")), "{error}");
    }
    let error = authorities(&empty).expect_err("none").to_string();
    assert_eq!(error, format!("{}: holds no certificate (PEM)", empty.display()));
}

/// The kubelet replaces a file at once, but whoever writes two files may be seen between the two writes.
#[test]
fn files_are_told_of_when_they_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ca.crt");
    let mut files = Files::read([&path]);
    assert!(files.look().is_none(), "absent, and still absent");
    std::fs::write(&path, "garbage").expect("written");
    assert!(files.look().is_some_and(|[file]| file.authorities().is_err()));
    assert!(files.look().is_none(), "told once");
    std::fs::copy(file("first-ca.crt"), &path).expect("copied");
    assert!(files.look().is_some_and(|[file]| file.authorities().is_ok()));
    assert!(files.look().is_none());
}

#[test]
fn authorities_are_certificates_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("everything.pem");
    let read = |name: &str| std::fs::read_to_string(file(name)).expect("there");
    let (first, second) = (read("first-ca.crt"), read("second-ca.crt"));
    std::fs::write(&path, format!("# ours\n{first}{}{second}", read("first.key"))).expect("written");
    assert_eq!(Authorities::read(&path).expect("authorities").pem(), format!("{first}{second}"));
}
