use super::*;
use crate::{
    clock::manual::ManualClock,
    identity::{
        LoadFault,
        testing::{HOUR, IssuedCertificate, NOW, TestCa, at},
    },
};

/// A folder with an SVID, its key and a bundle, and a source that reads it.
struct Folder {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    files: IdentityFiles,
}

impl Folder {
    fn new(issued: &IssuedCertificate, roots: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = IdentityFiles {
            svid: Some((path("svid.pem"), path("key.pem"))),
            bundles: vec![("example.org".parse().unwrap(), path("bundle.pem"))],
        };
        let folder = Folder { dir, clock: Arc::new(ManualClock::new(NOW)), files };
        folder.write("svid.pem", &issued.chain_pem());
        folder.write("key.pem", &issued.key_pem());
        folder.write("bundle.pem", roots);
        folder
    }

    /// As agents do: a new file, moved over the old one.
    fn write(&self, name: &str, text: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.dir.path().join(name)).unwrap();
    }

    fn open(&self) -> Result<FileSource, LoadError> {
        FileSource::open(self.files.clone(), self.clock.clone())
    }
}

fn id(source: &FileSource) -> String {
    source.current().svid.as_ref().unwrap().spiffe_id().to_string()
}

#[test]
fn files_are_loaded_all_or_not_at_all() {
    let ca = TestCa::new("example.org");
    let folder = Folder::new(&ca.svid("/a"), &ca.pem());
    let trust = folder.open().unwrap().current();
    assert_eq!((trust.revision, trust.bundles.revision()), (1, 1));
    assert_eq!(trust.bundles.root_count(&ca.domain()), Some(1));
    for name in ["svid.pem", "key.pem", "bundle.pem"] {
        let folder = Folder::new(&ca.svid("/a"), &ca.pem());
        fs::remove_file(folder.dir.path().join(name)).unwrap();
        let error = folder.open().err().unwrap();
        match name {
            // Its value may be a key that was pasted, so it is not shown.
            "key.pem" => assert!(matches!(error.fault, LoadFault::KeyFileAbsent), "{error}"),
            _ => assert!(
                error.file.ends_with(name) && matches!(error.fault, LoadFault::Unreadable(_)),
                "{error}"
            ),
        }
    }
}

// Proves case H07.
#[test]
fn a_rotated_svid_is_taken_once_both_its_files_are_there() {
    let ca = TestCa::new("example.org");
    let folder = Folder::new(&ca.svid("/a"), &ca.pem());
    let source = folder.open().unwrap();
    let mut changes = source.watch();
    let next = ca.svid("/b");
    folder.write("svid.pem", &next.chain_pem());
    source.look();
    assert_eq!(id(&source), "spiffe://example.org/a", "the key is not its own yet");
    let trust = changes.borrow_and_update().clone();
    assert_eq!(trust.revision, 1);
    assert!(matches!(&trust.standing, SourceState::Stale { since: NOW, .. }), "{trust:?}");
    folder.write("key.pem", &next.key_pem());
    source.look();
    assert_eq!(id(&source), "spiffe://example.org/b");
    assert!(changes.has_changed().unwrap());
    let trust = source.current();
    assert_eq!(trust.standing, SourceState::Good);
    assert_eq!((trust.revision, trust.bundles.revision()), (2, 1), "the roots are the same");
}

// Proves case D06.
#[test]
fn a_bad_bundle_changes_nothing_and_a_good_one_counts() {
    let (old, new) = (TestCa::new("example.org"), TestCa::new("example.org"));
    let folder = Folder::new(&old.svid("/a"), &old.pem());
    let source = folder.open().unwrap();
    folder.write("bundle.pem", "half a fi");
    source.look();
    assert!(source.reload().is_err());
    assert_eq!(source.current().bundles.revision(), 1);
    folder.write("bundle.pem", &new.pem());
    source.look();
    let trust = source.current();
    assert_eq!((trust.revision, trust.bundles.revision()), (2, 2));
    source.look();
    assert_eq!(source.reload().unwrap(), ReloadOutcome::Unchanged);
    assert_eq!(source.current().revision, 2);
}

// Proves case C09.
#[test]
fn a_root_that_expires_is_dropped_though_no_file_changes() {
    let fresh = TestCa::new("example.org");
    let short = TestCa::with("example.org", &|p| p.not_after = at(NOW.plus(HOUR)));
    let folder = Folder::new(&fresh.svid("/a"), &format!("{}{}", short.pem(), fresh.pem()));
    let source = folder.open().unwrap();
    assert_eq!(source.current().bundles.root_count(&fresh.domain()), Some(2));
    folder.clock.advance(HOUR - std::time::Duration::from_millis(1));
    source.look();
    assert_eq!(source.current().bundles.root_count(&fresh.domain()), Some(2));
    folder.clock.advance(std::time::Duration::from_millis(1));
    source.look();
    let bundles = source.current().bundles.clone();
    assert_eq!((bundles.root_count(&fresh.domain()), bundles.revision()), (Some(1), 2));
}

#[tokio::test]
async fn a_followed_source_sees_a_rotation_and_can_be_stopped() {
    let ca = TestCa::new("example.org");
    let folder = Folder::new(&ca.svid("/a"), &ca.pem());
    let source = Arc::new(folder.open().unwrap());
    let mut changes = source.watch();
    let shutdown = CancellationToken::new();
    let following = tokio::spawn(source.clone().follow(shutdown.clone()));
    let next = ca.svid("/b");
    folder.write("svid.pem", &next.chain_pem());
    folder.write("key.pem", &next.key_pem());
    // The task may not sleep yet when the clock is first moved: move it until the change is seen.
    while !changes.has_changed().unwrap() {
        folder.clock.advance(limits::IDENTITY_POLL);
        tokio::task::yield_now().await;
    }
    assert_eq!(changes.borrow_and_update().svid.as_ref().unwrap().spiffe_id().path(), "/b");
    shutdown.cancel();
    following.await.unwrap();
}

fn document(cas: &[&TestCa], sequence: u64) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let keys: Vec<_> = cas
        .iter()
        .map(|ca| serde_json::json!({ "kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(&ca.der)] }))
        .collect();
    serde_json::json!({ "keys": keys, "spiffe_sequence": sequence }).to_string()
}

// Proves case E05.
#[test]
fn a_bundle_file_with_a_lower_sequence_is_ignored() {
    let (old, new) = (TestCa::new("example.org"), TestCa::new("example.org"));
    let folder = Folder::new(&old.svid("/a"), &document(&[&old], 5));
    let source = folder.open().unwrap();
    let roots = || source.current().bundles.root_count(&old.domain());
    assert_eq!(roots(), Some(1));
    folder.write("bundle.pem", &document(&[&old, &new], 4));
    source.look();
    assert_eq!((roots(), source.current().standing.clone()), (Some(1), SourceState::Good));
    folder.write("bundle.pem", &document(&[&old, &new], 6));
    source.look();
    assert_eq!(roots(), Some(2));
    // Now the sixth is in use, with any content.
    folder.write("bundle.pem", &document(&[&old], 5));
    source.look();
    assert_eq!(roots(), Some(2));
    folder.write("bundle.pem", &document(&[], 7));
    source.look();
    assert_eq!(roots(), Some(0), "identity_e04: all are revoked");
}

// Proves case 6.7.
#[test]
fn files_that_stay_bad_past_the_limit_end_all_trust() {
    let ca = TestCa::new("example.org");
    let folder = Folder::new(&ca.svid("/a"), &ca.pem());
    let source = folder.open().unwrap();
    folder.write("bundle.pem", "half a fi");
    source.look();
    assert!(matches!(source.current().standing, SourceState::Stale { .. }));
    folder.clock.advance(limits::IDENTITY_OUTAGE_MAX);
    source.look();
    assert_eq!(source.current().bundles.domains().count(), 1, "the limit is not past yet");
    folder.clock.advance(Duration::from_secs(1));
    source.look();
    let trust = source.current();
    assert!(matches!(trust.standing, SourceState::GivenUp { .. }), "{trust:?}");
    assert!(trust.svid.is_none() && trust.bundles.domains().count() == 0);
    folder.write("bundle.pem", &ca.pem());
    source.look();
    assert_eq!(
        (source.current().standing.clone(), source.current().bundles.domains().count()),
        (SourceState::Good, 1)
    );
}

#[test]
fn a_chain_that_gains_its_intermediate_is_taken() {
    let ca = TestCa::new("example.org");
    let issued = ca.intermediate("below", &|_| {}).svid("/a");
    let folder = Folder::new(&issued, &ca.pem());
    folder.write("svid.pem", &crate::identity::testing::pem("CERTIFICATE", issued.leaf()));
    let source = folder.open().unwrap();
    assert_eq!(source.current().svid.as_ref().unwrap().certified().cert.len(), 1);
    folder.write("svid.pem", &issued.chain_pem());
    assert_eq!(source.reload().unwrap(), ReloadOutcome::Changed);
    assert_eq!(source.current().svid.as_ref().unwrap().certified().cert.len(), 2);
}
