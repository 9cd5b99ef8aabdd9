use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, GeneralSubtree, IsCa, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;

use super::*;
use crate::{
    identity::{
        judge::judged,
        testing::{HOUR, IssuedCertificate, NOW, TestCa, at, bundles, extension, uri},
    },
    reason::Reason,
};

fn client(issued: &IssuedCertificate, trust: &TrustBundles) -> Result<VerifiedLeaf, SvidError> {
    client_at(issued, NOW, trust)
}

/// The result for a client's chain. A server gives the same result in a handshake.
fn client_at(issued: &IssuedCertificate, now: Wall, trust: &TrustBundles) -> Result<VerifiedLeaf, SvidError> {
    let found = verify(&issued.chain, Side::Client, now, trust);
    match (&found, judged(issued, trust, now)) {
        (Ok(verified), Ok(peer)) => {
            assert_eq!((&verified.leaf.spiffe_id, verified.ends), (peer.spiffe_id(), peer.not_after()));
        }
        (Err(why), Err(said)) => assert_eq!(why, &said),
        (found, said) => panic!("{found:?}, and the server says {said:?}"),
    }
    found
}

fn id(issued: &IssuedCertificate, bundles: &TrustBundles) -> Result<String, SvidError> {
    client(issued, bundles).map(|verified| verified.leaf.spiffe_id.to_string())
}

fn unknown_issuer(domain: &str) -> SvidError {
    SvidError::IssuerUnknown { domain: domain.parse().unwrap() }
}

fn one_sub_ca(p: &mut CertificateParams) {
    p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
}

// Proves case C01.
#[test]
fn chains_are_accepted_in_any_order() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    assert!(client(&root.svid("/a"), &trust).is_ok());
    let upper = root.intermediate("upper", &|_| {});
    let lower = upper.intermediate("lower", &|_| {});
    let mut issued = lower.svid("/a");
    assert_eq!(issued.chain.len(), 3);
    assert!(client(&issued, &trust).is_ok());
    issued.chain.swap(1, 2);
    assert!(client(&issued, &trust).is_ok());
    issued.chain.push(root.der.clone());
    assert!(client(&issued, &trust).is_ok());
    assert!(verify(&issued.chain, Side::Server, NOW, &trust).is_ok());
}

// Proves case C02.
#[test]
fn a_chain_that_does_not_reach_a_root_is_refused() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let mut without_intermediate = root.intermediate("upper", &|_| {}).svid("/a");
    without_intermediate.chain.truncate(1);
    assert_eq!(id(&without_intermediate, &trust), Err(unknown_issuer("example.org")));
    let stranger = TestCa::with("example.org", &|p| p.distinguished_name = rcgen::DistinguishedName::new());
    assert_eq!(id(&stranger.svid("/a"), &trust), Err(unknown_issuer("example.org")));
    assert_eq!(id(&root.impostor().svid("/a"), &trust), Err(SvidError::SignatureWrong));
    let mut flipped = root.svid("/a");
    assert!(client(&flipped, &trust).is_ok());
    let mut der = flipped.chain[0].to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    flipped.chain[0] = CertificateDer::from(der);
    assert_eq!(id(&flipped, &trust), Err(SvidError::SignatureWrong));
}

// Proves case C03.
#[test]
fn an_intermediate_that_is_no_ca_signs_nothing() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let not_ca = root.intermediate("upper", &|p| p.is_ca = IsCa::ExplicitNoCa);
    assert_eq!(id(&not_ca.svid("/a"), &trust), Err(SvidError::SignerNotCa));
    assert!(client(&root.intermediate("upper", &|_| {}).svid("/a"), &trust).is_ok());
}

// Proves case C04.
#[test]
fn a_path_length_is_kept() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let upper = root.intermediate("upper", &one_sub_ca);
    assert!(client(&upper.svid("/a"), &trust).is_ok());
    let lower = upper.intermediate("lower", &|_| {});
    assert_eq!(id(&lower.svid("/a"), &trust), Err(SvidError::PathLength));
}

// Proves case C05.
#[test]
fn an_intermediate_without_key_cert_sign_signs_nothing() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    for usages in [vec![], vec![KeyUsagePurpose::DigitalSignature], vec![KeyUsagePurpose::CrlSign]] {
        let upper = root.intermediate("upper", &|p| p.key_usages = usages.clone());
        assert_eq!(id(&upper.svid("/a"), &trust), Err(SvidError::SignerKeyUsage), "{usages:?}");
    }
    let upper = root.intermediate("upper", &|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    assert!(client(&upper.svid("/a"), &trust).is_ok());
}

// Proves case C05.
#[test]
fn a_bad_intermediate_does_not_hide_a_good_one() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let good = root.intermediate("upper", &|_| {});
    let mut issued = good.svid("/a");
    // The same name and key, signed by the same root, without the right to sign: webpki finds this path first.
    let bad = root.intermediate_for(&good, &|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    issued.chain.insert(1, bad);
    assert!(client(&issued, &trust).is_ok());
    issued.chain.remove(2);
    assert_eq!(id(&issued, &trust), Err(SvidError::SignerKeyUsage));
}

// Proves case C06, case C07.
#[test]
fn the_id_of_a_signer_has_no_path_and_may_be_of_another_domain() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let named =
        |text: &str| root.intermediate("upper", &|p| p.subject_alt_names = vec![uri(text)]).svid("/a");
    assert_eq!(id(&named("spiffe://example.org/ca"), &trust), Err(SvidError::SignerHasPath));
    assert!(client(&named("spiffe://example.org"), &trust).is_ok());
    assert!(client(&named("spiffe://other.example"), &trust).is_ok());
    let unnamed = root.intermediate("upper", &|p| p.subject_alt_names.clear());
    assert!(client(&unnamed.svid("/a"), &trust).is_ok());
}

// Proves case C08.
#[test]
fn name_constraints_on_uris_fail_closed() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    // permitted: uniformResourceIdentifier "example.org"
    let value = crate::identity::testing::tlv;
    let subtree = value(0x30, &value(0x86, b"example.org"));
    let constraints = value(0x30, &value(0xa0, &subtree));
    let upper = root.intermediate("upper", &|p| {
        p.custom_extensions.push(extension(30, true, constraints.clone()));
    });
    assert_eq!(id(&upper.svid("/a"), &trust), Err(SvidError::NameConstrained));
    let on_names = root.intermediate("upper", &|p| {
        let mut other = rcgen::DistinguishedName::new();
        other.push(rcgen::DnType::OrganizationName, "other");
        p.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DirectoryName(other)],
            excluded_subtrees: vec![],
        });
    });
    let refused = id(&on_names.svid("/a"), &trust).unwrap_err();
    // The words are true for this kind of constraint too.
    assert!(refused.to_string().contains("forbids a name of this chain, or constrains URIs"), "{refused}");
    let on_dns = root.intermediate("upper", &|p| {
        p.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".to_owned())],
            excluded_subtrees: vec![],
        });
    });
    assert!(client(&on_dns.svid("/a"), &trust).is_ok());
}

// Proves case C09.
#[test]
fn a_root_that_expired_after_it_was_loaded_is_not_trusted() {
    let end = NOW.plus(HOUR / 2);
    let root = TestCa::with("example.org", &|p| p.not_after = at(end));
    let trust = bundles(&[&root]);
    let issued = root.svid("/a");
    let verified = client_at(&issued, Wall(end.0 - 1), &trust).unwrap();
    assert_eq!(verified.ends, end, "a peer ends with its root");
    let error = client_at(&issued, end, &trust).unwrap_err();
    assert_eq!(error, SvidError::RootsExpired { domain: root.domain() });
    let other = TestCa::new("example.org");
    let error = client_at(&issued, end, &bundles(&[&root, &other])).unwrap_err();
    assert_eq!(error, SvidError::SignerExpired { not_after: end });
}

// Proves case C09.
#[test]
fn a_root_is_not_trusted_before_its_life_begins() {
    let begin = NOW.plus(HOUR / 2);
    let root = TestCa::with("example.org", &|p| p.not_before = at(begin));
    let issued = root.svid("/a");
    for early in [NOW, Wall(begin.0 - 1)] {
        let error = client_at(&issued, early, &bundles(&[&root])).unwrap_err();
        assert_eq!(error, SvidError::RootsExpired { domain: root.domain() });
        let beside = bundles(&[&root, &TestCa::new("example.org")]);
        let error = client_at(&issued, early, &beside).unwrap_err();
        assert_eq!(error, SvidError::SignerNotYetValid { not_before: begin });
    }
    assert!(client_at(&issued, begin, &bundles(&[&root])).is_ok());
}

// Proves case C09.
#[test]
fn an_intermediate_ends_before_its_not_after_too() {
    let root = TestCa::new("example.org");
    let end = NOW.plus(HOUR / 2);
    let upper = root.intermediate("upper", &|p| p.not_after = at(end));
    let issued = upper.svid("/a");
    let trust = bundles(&[&root]);
    assert_eq!(client_at(&issued, Wall(end.0 - 1), &trust).unwrap().ends, end);
    for late in [end, end.plus(Duration::from_secs(2))] {
        let error = client_at(&issued, late, &trust).unwrap_err();
        assert_eq!(error, SvidError::SignerExpired { not_after: end });
        assert_eq!(error.reason(), Reason::SvidUntrusted);
    }
}

// Proves case C11.
#[test]
fn a_leaf_that_signed_itself_is_refused() {
    let root = TestCa::new("example.org");
    let issued = root.self_signed_leaf("spiffe://example.org/a");
    assert_eq!(id(&issued, &bundles(&[&root])), Err(unknown_issuer("example.org")));
    assert!(client(&root.svid("/a"), &bundles(&[&root])).is_ok());
}

// Proves case C10, case C11.
#[test]
fn a_bundle_takes_no_certificate_that_may_not_sign() {
    let root = TestCa::new("example.org");
    // Leaves below a certificate that may not sign. webpki takes any certificate as an anchor, and would accept them.
    let not_ca = TestCa::with("example.org", &|p| p.is_ca = IsCa::ExplicitNoCa);
    let no_signing = TestCa::with("example.org", &|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    for (bad, rule) in [(&not_ca, SvidError::SignerNotCa), (&no_signing, SvidError::SignerKeyUsage)] {
        let pem = format!("{}{}", root.pem(), bad.pem());
        let refused =
            TrustBundles::empty().with_pem(root.domain(), "bundle", pem.as_bytes(), NOW).unwrap_err();
        assert!(refused.to_string().contains(&rule.to_string()), "{refused}");
        assert!(client(&bad.svid("/a"), &bundles(&[&root])).is_err());
    }
    // A leaf in the bundle is not trusted either.
    let leaf = root.svid("/a");
    let pem = format!("{}{}", root.pem(), leaf.chain_pem());
    assert!(TrustBundles::empty().with_pem(root.domain(), "bundle", pem.as_bytes(), NOW).is_err());
    assert!(client(&leaf, &bundles(&[&root])).is_ok());
}

// Proves case C13.
#[test]
fn a_chain_that_names_a_revocation_list_is_accepted() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let lists = |p: &mut CertificateParams| {
        p.crl_distribution_points =
            vec![rcgen::CrlDistributionPoint { uris: vec!["http://example.org/list.crl".to_owned()] }];
    };
    let upper = root.intermediate("upper", &lists);
    assert!(client(&upper.issue("spiffe://example.org/a", &lists), &trust).is_ok());
    assert!(client(&root.svid("/a"), &trust).is_ok());
}

// Proves case B27.
#[test]
fn an_unknown_critical_extension_is_refused_above_the_leaf() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let with = |critical| {
        let unknown = extension(99, critical, vec![0x05, 0x00]);
        root.intermediate("upper", &|p| p.custom_extensions.push(unknown.clone())).svid("/a")
    };
    assert!(client(&with(false), &trust).is_ok());
    assert!(matches!(id(&with(true), &trust), Err(SvidError::ExtensionUnknown { .. })));
}

// Proves case C12.
#[test]
fn a_path_has_a_length_at_most() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let below = |authorities: usize| {
        let lowest = (1..authorities).fold(root.intermediate("1", &|_| {}), |upper, n| {
            upper.intermediate(&(n + 1).to_string(), &|_| {})
        });
        lowest.svid("/a")
    };
    assert!(client(&below(6), &trust).is_ok());
    assert_eq!(id(&below(7), &trust), Err(SvidError::PathTooDeep));
}

// Proves case B28.
#[test]
fn a_signature_made_with_a_weak_digest_is_refused() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let mut issued = root.svid("/a");
    assert!(client(&issued, &trust).is_ok());
    // ecdsa-with-SHA256 becomes ecdsa-with-SHA224, which is as long; in the body and beside the signature.
    let (sha_256, sha_224) =
        ([0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2], [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 1]);
    let mut der = issued.chain[0].to_vec();
    let places: Vec<usize> = (0..der.len() - 8).filter(|i| der[*i..*i + 8] == sha_256).collect();
    assert_eq!(places.len(), 2);
    for place in places {
        der[place..place + 8].copy_from_slice(&sha_224);
    }
    issued.chain[0] = CertificateDer::from(der);
    assert_eq!(
        id(&issued, &trust),
        Err(SvidError::SignatureAlgorithm { found: "ecdsa-with-SHA224".to_owned() })
    );
}

// Proves case C12.
#[test]
fn long_chains_are_refused_before_they_are_read() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let mut issued = root.svid("/a");
    issued.chain.resize(limits::CHAIN_MAX, root.der.clone());
    assert!(client(&issued, &trust).is_ok());
    issued.chain.push(CertificateDer::from(vec![0]));
    assert_eq!(id(&issued, &trust), Err(SvidError::ChainTooLong { found: limits::CHAIN_MAX + 1 }));
    issued.chain.truncate(1);
    issued.chain.push(CertificateDer::from(vec![0; limits::CERTIFICATE_BYTES_MAX + 1]));
    assert!(matches!(id(&issued, &trust), Err(SvidError::CertificateTooLarge { .. })));
    issued.chain.clear();
    assert_eq!(id(&issued, &trust), Err(SvidError::NotPresented));
}

// Proves case B24, case B25, case B29.
#[test]
fn time_and_life_are_checked_on_the_way() {
    let root = TestCa::new("example.org");
    let trust = bundles(&[&root]);
    let issued = root.svid("/a");
    let at_time = |now| client_at(&issued, now, &trust).map(|v| v.ends);
    let end = NOW.plus(HOUR);
    assert_eq!(at_time(Wall(end.0 - 1)), Ok(end));
    assert_eq!(
        at_time(end),
        Err(SvidError::Expired { not_after: end }),
        "webpki alone would accept this second"
    );
    let begin = Wall(NOW.0 - 10_000);
    assert_eq!(at_time(begin), Ok(end));
    assert_eq!(at_time(Wall(begin.0 - 1)), Err(SvidError::NotYetValid { not_before: begin }));
    let long = root.issue("spiffe://example.org/a", &|p| p.not_after = at(NOW.plus(48 * HOUR)));
    assert!(matches!(id(&long, &trust), Err(SvidError::LifeTooLong { .. })));
    assert!(client(&long, &trust.with_svid_life_max(49 * HOUR)).is_ok());
}

// Proves case D01, case D02, case D03, case D04.
#[test]
fn a_domain_is_vouched_for_by_its_own_roots_and_no_others() {
    let (a, b) = (TestCa::new("a.example"), TestCa::new("b.example"));
    let both = bundles(&[&a, &b]);
    for (signer, issuer) in [(&a, "a.example"), (&b, "b.example")] {
        for claimed in ["a.example", "b.example"] {
            let issued = signer.issue(&format!("spiffe://{claimed}/x"), &|_| {});
            let found = id(&issued, &both);
            if issuer == claimed {
                assert!(found.is_ok());
            } else {
                assert_eq!(found, Err(unknown_issuer(claimed)));
            }
        }
    }
    let of_b_by_a = a.issue("spiffe://b.example/x", &|_| {});
    let error = id(&of_b_by_a, &bundles(&[&a])).unwrap_err();
    assert_eq!(error, SvidError::TrustDomainUnknown { domain: b.domain() });
    assert_eq!(error.reason(), Reason::TrustDomainUnknown);
}

// Proves case D05, case D06.
#[test]
fn any_root_of_the_bundle_will_do_until_it_is_removed() {
    let (old, new) = (
        TestCa::new("example.org"),
        TestCa::with("example.org", &|p| {
            p.distinguished_name.push(rcgen::DnType::CommonName, "the next root");
        }),
    );
    let rotating = bundles(&[&old, &new]);
    assert!(client(&old.svid("/a"), &rotating).is_ok());
    assert!(client(&new.svid("/a"), &rotating).is_ok());
    let after = bundles(&[&new]);
    assert_eq!(id(&old.svid("/a"), &after), Err(unknown_issuer("example.org")));
    assert!(client(&new.svid("/a"), &after).is_ok());
}

// Proves case D07.
#[test]
fn an_identity_of_a_domain_without_a_bundle_is_refused() {
    let (a, b) = (TestCa::new("a.example"), TestCa::new("b.example"));
    let issued = b.svid("/x");
    assert!(client(&issued, &bundles(&[&a, &b])).is_ok());
    let error = id(&issued, &bundles(&[&a])).unwrap_err();
    assert_eq!(error, SvidError::TrustDomainUnknown { domain: b.domain() });
    assert_eq!(id(&issued, &TrustBundles::empty()).unwrap_err(), error);
}

// Proves case D08.
#[test]
fn a_domain_whose_last_root_expired_is_refused() {
    let root = TestCa::with("example.org", &|p| p.not_after = at(NOW.plus(HOUR / 2)));
    let issued = root.svid("/a");
    let trust = bundles(&[&root]);
    assert!(client(&issued, &trust).is_ok());
    assert!(trust.without_expired(NOW).is_none());
    let later = NOW.plus(HOUR / 2);
    let none_left = trust.without_expired(later).unwrap();
    assert_eq!(none_left.root_count(&root.domain()), Some(0));
    let error = client_at(&issued, later, &none_left).unwrap_err();
    assert_eq!(error, SvidError::RootsExpired { domain: root.domain() });
}

// Proves case D09.
#[test]
fn only_roots_of_the_bundle_are_trusted() {
    // An authority like those that browsers have: without a SPIFFE ID, and otherwise valid.
    let public = TestCa::with("example.org", &|p| {
        p.subject_alt_names = Vec::new();
        p.distinguished_name = rcgen::DistinguishedName::new();
        p.distinguished_name.push(rcgen::DnType::CommonName, "A public root");
    });
    let issued = public.svid("/a");
    assert!(client(&issued, &bundles(&[&public])).is_ok(), "in the bundle it would do");
    assert_eq!(id(&issued, &bundles(&[&TestCa::new("example.org")])), Err(unknown_issuer("example.org")));
    // The roots of this machine vouch for identity providers and stores only: no code of identities or connections names a crate
    // that would add them.
    let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![src.join("identity"), src.join("link")];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for roots in ["webpki_roots", "rustls_native_certs", "rustls_platform_verifier", "reqwest"] {
                let named = format!("{roots}::");
                assert!(!text.contains(&named), "{} names {roots}", path.display());
            }
        }
    }
}

// Proves case D13.
#[test]
fn the_same_path_in_two_domains_is_two_identities() {
    let (a, b) = (TestCa::new("a.example"), TestCa::new("b.example"));
    let both = bundles(&[&a, &b]);
    let of = |ca: &TestCa| client(&ca.svid("/tune/job-1"), &both).unwrap().leaf.spiffe_id;
    assert_ne!(of(&a), of(&b));
    assert_eq!(of(&a).path(), of(&b).path());
}
