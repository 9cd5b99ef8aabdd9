use super::*;
use crate::identity::{
    SvidError,
    testing::{NOW, TestCa},
};

fn fault(cert: &str, key: &str) -> LoadFault {
    X509Svid::from_pem(cert.as_bytes(), key.as_bytes()).unwrap_err().fault
}

#[test]
fn an_svid_is_loaded_with_its_chain_and_says_whose_it_is() {
    let issued = TestCa::new("example.org").intermediate("upper", &|_| {}).svid("/daemon");
    let svid = issued.svid();
    assert_eq!(svid.spiffe_id().as_str(), "spiffe://example.org/daemon");
    assert_eq!(svid.certified().cert, issued.chain);
    assert!(svid.is_current(NOW));
    assert!(!svid.is_current(svid.not_after()));
}

#[test]
fn an_svid_and_the_key_of_another_are_refused() {
    let ca = TestCa::new("example.org");
    let (one, other) = (ca.svid("/a"), ca.svid("/a"));
    assert!(X509Svid::from_pem(one.chain_pem().as_bytes(), one.key_pem().as_bytes()).is_ok());
    assert!(matches!(fault(&one.chain_pem(), &other.key_pem()), LoadFault::KeyOfAnother));
}

#[test]
fn each_fault_of_a_file_is_named() {
    let issued = TestCa::new("example.org").svid("/a");
    let (cert, key) = (issued.chain_pem(), issued.key_pem());
    assert!(matches!(fault("", &key), LoadFault::NoCertificate));
    assert!(matches!(fault(&key, &key), LoadFault::NoCertificate));
    assert!(matches!(fault(&cert, ""), LoadFault::NoKey));
    assert!(matches!(fault(&cert, &cert), LoadFault::NoKey));
    let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(matches!(fault(&cert, bad_key), LoadFault::KeyUnusable));
    let ca = TestCa::new("example.org");
    assert!(matches!(
        fault(&ca.pem(), &key),
        LoadFault::Certificate { number: 1, why: SvidError::PathAbsent }
    ));
    let dir = tempfile::tempdir().unwrap();
    let (missing, large) = (dir.path().join("missing.pem"), dir.path().join("large.pem"));
    std::fs::write(&large, vec![b'\n'; usize::try_from(limits::PEM_BYTES_MAX).unwrap() + 1]).unwrap();
    let error = X509Svid::load(&missing, &missing).unwrap_err();
    assert!(matches!(error.fault, LoadFault::Unreadable(_)));
    assert!(error.to_string().contains("missing.pem"), "{error}");
    assert!(matches!(X509Svid::load(&large, &missing).unwrap_err().fault, LoadFault::TooLarge));
}

#[test]
fn what_is_no_file_is_refused_and_never_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe.pem");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = dir.path().join("socket.pem");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, is_opened) in [(pipe, true), (dir.path().to_owned(), true), (socket, false)] {
        let (answered, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || answered.send(X509Svid::load(&path, &path).unwrap_err().fault));
        let fault = answer.recv_timeout(std::time::Duration::from_secs(20)).expect("it is not waited for");
        match fault {
            LoadFault::NotAFile => assert!(is_opened),
            LoadFault::Unreadable(_) => assert!(!is_opened),
            fault => panic!("{fault}"),
        }
    }
}

#[test]
fn no_byte_of_a_key_is_in_a_debug_or_an_error() {
    let ca = TestCa::new("example.org");
    let (one, other) = (ca.svid("/a"), ca.svid("/b"));
    let key = one.key_pem();
    let secret = key.lines().nth(1).unwrap();
    let wrong = X509Svid::from_pem(other.chain_pem().as_bytes(), key.as_bytes()).unwrap_err();
    for shown in [format!("{:?}", one.svid()), format!("{wrong:?}"), wrong.to_string()] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(format!("{:?}", one.svid()).contains("[redacted]"));
}
