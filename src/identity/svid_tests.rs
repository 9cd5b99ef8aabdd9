use super::*;
use crate::identity::{
    svid_error::SvidError,
    testing::{HOUR, NOW, TestCa, at, bundles},
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
    let good = dir.path().join("good.pem");
    std::fs::write(&good, &cert).unwrap();
    let error = X509Svid::load(&good, &missing).unwrap_err();
    assert!(matches!(error.fault, LoadFault::KeyFileAbsent));
    assert!(!format!("{error}{error:?}").contains("missing.pem"), "a pasted key would be printed: {error}");
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

#[test]
fn encrypted_keys_and_byte_order_marks_have_words() {
    let issued = TestCa::new("example.org").svid("/a");
    let (cert, key) = (issued.chain_pem(), issued.key_pem());
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    assert!(matches!(fault(&cert, &encrypted), LoadFault::KeyEncrypted));
    let old =
        "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
    assert!(matches!(fault(&cert, old), LoadFault::KeyEncrypted));
    let dir = tempfile::tempdir().unwrap();
    let (cert_file, key_file) = (dir.path().join("svid.pem"), dir.path().join("svid.key"));
    std::fs::write(&key_file, &key).unwrap();
    let utf_16: Vec<u8> = cert.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for marked in [[b"\xef\xbb\xbf", cert.as_bytes()].concat(), [&b"\xff\xfe"[..], &utf_16].concat()] {
        std::fs::write(&cert_file, marked).unwrap();
        let fault = X509Svid::load(&cert_file, &key_file).unwrap_err().fault;
        assert!(matches!(fault, LoadFault::ByteOrderMark), "{fault}");
    }
}

#[test]
fn an_intermediate_that_may_not_sign_is_refused_at_the_start() {
    let ca = TestCa::new("example.org");
    let good = ca.intermediate("good", &|_| {}).svid("/a");
    assert!(X509Svid::from_pem(good.chain_pem().as_bytes(), good.key_pem().as_bytes()).is_ok());
    let bad = ca.intermediate("bad", &|p| p.is_ca = rcgen::IsCa::ExplicitNoCa).svid("/a");
    let fault = fault(&bad.chain_pem(), &bad.key_pem());
    assert!(matches!(fault, LoadFault::Certificate { number: 2, why: SvidError::SignerNotCa }), "{fault}");
}

#[test]
fn our_own_svid_is_judged_as_a_peer_would_judge_it() {
    let ca = TestCa::new("example.org");
    let trust = bundles(&[&ca]);
    assert_eq!(ca.svid("/a").svid().verify(&trust, NOW), Ok(()));
    let long = ca.issue("spiffe://example.org/a", &|p| p.not_after = at(NOW.plus(30 * 24 * HOUR))).svid();
    assert!(matches!(long.verify(&trust, NOW), Err(SvidError::LifeTooLong { .. })));
    assert!(matches!(ca.svid("/a").svid().verify(&trust, NOW.plus(HOUR)), Err(SvidError::Expired { .. })));
    let other = ca.impostor().svid("/a").svid();
    assert!(other.verify(&trust, NOW).is_err(), "a root of ours did not sign it");
    // Without the bundle of its domain, the validity of its intermediates still counts.
    let short = ca.intermediate("short", &|p| p.not_after = at(NOW.plus(HOUR / 2))).svid("/a").svid();
    assert_eq!(short.verify(&TrustBundles::empty(), NOW), Ok(()));
    let late = short.verify(&TrustBundles::empty(), NOW.plus(HOUR / 2));
    assert!(matches!(late, Err(SvidError::SignerExpired { .. })));
}
