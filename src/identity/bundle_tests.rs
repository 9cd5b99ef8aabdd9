use rcgen::{IsCa, KeyUsagePurpose};

use super::*;
use crate::identity::testing::{HOUR, NOW, TestCa, at, bundles, uri};

fn load(pem: &str) -> Result<TrustBundles, LoadFault> {
    TrustBundles::empty()
        .with_pem("example.org".parse().unwrap(), "roots.pem", pem.as_bytes(), NOW)
        .map_err(|error| error.fault)
}

// Proves case C09.
#[test]
fn expired_roots_are_left_out_when_a_bundle_is_loaded() {
    let fresh = TestCa::new("example.org");
    let stale = TestCa::with("example.org", &|p| p.not_after = at(NOW));
    let both = load(&format!("{}{}", stale.pem(), fresh.pem())).unwrap();
    assert_eq!(both.root_count(&fresh.domain()), Some(1));
    let error = load(&stale.pem()).unwrap_err();
    assert!(matches!(error, LoadFault::NoRoot { expired: 1, .. }), "{error}");
}

// Proves case C10, case C11.
#[test]
fn a_certificate_that_may_not_sign_is_no_root() {
    let good = TestCa::new("example.org");
    assert!(load(&good.pem()).is_ok());
    let refused = |ca: TestCa| match load(&format!("{}{}", good.pem(), ca.pem())).unwrap_err() {
        LoadFault::Certificate { number: 2, why } => why,
        other => panic!("{other}"),
    };
    let not_ca = TestCa::with("example.org", &|p| p.is_ca = IsCa::ExplicitNoCa);
    assert_eq!(refused(not_ca), SvidError::SignerNotCa);
    let unsaid = TestCa::with("example.org", &|p| p.is_ca = IsCa::NoCa);
    assert_eq!(refused(unsaid), SvidError::SignerNotCa);
    let no_signing = TestCa::with("example.org", &|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_eq!(refused(no_signing), SvidError::SignerKeyUsage);
    let with_path = TestCa::with("example.org", &|p| {
        p.subject_alt_names = vec![uri("spiffe://example.org/ca")];
    });
    assert_eq!(refused(with_path), SvidError::SignerHasPath);
    // A leaf in the bundle.
    let leaf = good.svid("/a");
    let error = load(&leaf.chain_pem()).unwrap_err();
    assert!(matches!(error, LoadFault::Certificate { number: 1, why: SvidError::SignerNotCa }), "{error}");
}

// Proves case D08.
#[test]
fn a_bundle_without_a_root_is_an_error() {
    assert!(matches!(load(""), Err(LoadFault::NoCertificate)));
    assert!(matches!(load("not pem at all"), Err(LoadFault::NoCertificate)));
    assert!(matches!(
        load("-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"),
        Err(LoadFault::NotPem)
    ));
    assert!(matches!(
        load("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        Err(LoadFault::Certificate { number: 1, why: SvidError::Malformed })
    ));
}

#[test]
fn a_bundle_has_a_bound_and_a_root_counts_once() {
    let ca = TestCa::new("example.org");
    assert_eq!(load(&ca.pem().repeat(3)).unwrap().root_count(&ca.domain()), Some(1));
    let all = |many: usize| (0..many).map(|_| TestCa::new("example.org").pem()).collect::<String>();
    assert!(load(&all(limits::BUNDLE_ROOTS_MAX)).is_ok());
    let error = load(&all(limits::BUNDLE_ROOTS_MAX + 1)).unwrap_err();
    assert!(matches!(error, LoadFault::TooManyCertificates { .. }), "{error}");
}

// Proves case D04.
#[test]
fn a_second_bundle_for_a_domain_is_an_error_and_not_a_merge() {
    let ca = TestCa::new("example.org");
    let pem = ca.pem();
    let error = bundles(&[&ca]).with_pem(ca.domain(), "again.pem", pem.as_bytes(), NOW).unwrap_err();
    assert!(matches!(error.fault, LoadFault::DomainRepeated { .. }));
    assert!(error.to_string().contains("again.pem") && error.to_string().contains("example.org"), "{error}");
}

// Proves case D12.
#[test]
fn domains_that_share_a_root_are_seen() {
    let (a, b) = (TestCa::new("a.example"), TestCa::new("b.example"));
    assert!(bundles(&[&a, &b]).shared_roots().is_empty());
    let shared =
        bundles(&[&a]).with_pem("b.example".parse().unwrap(), "b.pem", a.pem().as_bytes(), NOW).unwrap();
    assert_eq!(shared.shared_roots(), [(&a.domain(), &b.domain())].into());
    // Another certificate for the same key, and both of them: only the key counts.
    let anew = a.intermediate_for(&a, &|p| p.not_after = at(NOW.plus(HOUR)));
    assert_ne!(anew, a.der);
    let both = format!("{}{}", crate::identity::testing::pem("CERTIFICATE", &anew), b.pem());
    let shared =
        bundles(&[&a]).with_pem("b.example".parse().unwrap(), "b.pem", both.as_bytes(), NOW).unwrap();
    assert_eq!(shared.shared_roots(), [(&a.domain(), &b.domain())].into());
    let rotating = format!("{}{}", crate::identity::testing::pem("CERTIFICATE", &anew), a.pem());
    let alone = TrustBundles::empty().with_pem(a.domain(), "a.pem", rotating.as_bytes(), NOW).unwrap();
    assert!(alone.root_count(&a.domain()) == Some(2) && alone.shared_roots().is_empty());
}

#[test]
fn bundles_trust_alike_when_their_roots_are_the_same() {
    let (a, b) = (TestCa::new("a.example"), TestCa::new("b.example"));
    assert!(bundles(&[&a, &b]).trusts_as(&bundles(&[&a, &b]).with_revision(9)));
    assert!(!bundles(&[&a, &b]).trusts_as(&bundles(&[&a])));
    assert!(!bundles(&[&a]).trusts_as(&bundles(&[&TestCa::new("a.example")])));
    assert!(!bundles(&[&a]).trusts_as(&bundles(&[&a]).with_svid_life_max(HOUR)));
}

#[test]
fn roots_that_have_expired_do_not_count_against_the_bound() {
    let ca = TestCa::new("example.org");
    let mut pem = ca.pem();
    for _ in 0..limits::BUNDLE_ROOTS_MAX {
        pem += &TestCa::with("example.org", &|p| p.not_after = at(Wall(NOW.0 - 1_000))).pem();
    }
    let bundles = TrustBundles::empty().with_pem(ca.domain(), "bundle.pem", pem.as_bytes(), NOW);
    assert_eq!(bundles.unwrap().root_count(&ca.domain()), Some(1));
}
