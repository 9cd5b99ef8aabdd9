use rustls::{RootCertStore, ServerConnection, crypto::ring, server::WebPkiClientVerifier};

use super::*;
use crate::{
    identity::{
        Leaf,
        judge::{SetTime, judged, own, presenting, shaken},
        testing::{IssuedCertificate, NOW, TestCa, bundles, raw_san, uri},
    },
    name::NameError,
};

/// The result of rustls' own verifier for the same chain, with the same root.
fn webpki(root: &TestCa, issued: &IssuedCertificate) -> Result<ServerConnection, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root.der.clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own().1.key.serialize_der().into());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(own().1.chain.clone(), key)
        .unwrap();
    let time = SetTime::default();
    time.set(NOW);
    config.time_provider = Arc::new(time);
    shaken(Arc::new(config), presenting(issued))
}

/// The server's message about an SVID with a bad ID: what is wrong with the ID.
fn refused_id(ca: &TestCa, uri: &[u8]) -> SvidError {
    let issued = ca.issue("spiffe://example.org/a", &|p| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(raw_san(&[uri]));
    });
    judged(&issued, &bundles(&[ca]), NOW).unwrap_err()
}

// Proves case A01, case A09, case A18, case A20.
#[test]
fn good_ids_open_a_connection() {
    let long = format!("spiffe://example.org/{}", "a".repeat(2048 - "spiffe://example.org/".len()));
    for id in ["spiffe://example.org/a", "spiffe://example.org/ns/x/sa/y", "spiffe://example.org/...", &long]
    {
        let ca = TestCa::new("example.org");
        let peer = judged(&ca.issue(id, &|_| {}), &bundles(&[&ca]), NOW).unwrap();
        assert_eq!(peer.spiffe_id().as_str(), id);
    }
    for domain in ["10.0.0.1", "a_b-c.9", &"a".repeat(255)] {
        let ca = TestCa::new(domain);
        assert_eq!(judged(&ca.svid("/w"), &bundles(&[&ca]), NOW).unwrap().spiffe_id().path(), "/w");
    }
}

// Proves case A02, case A03, case A04, case A05, case A06, case A07, case A08, case A10, case A11, case A12, case A13, case A14, case A15, case A16, case A17, case A19, case A21, case A22.
#[test]
fn each_bad_id_is_refused_by_its_rule_in_a_handshake() {
    let ca = TestCa::new("example.org");
    let (too_long, domain) = (format!("spiffe://example.org/{}", "a".repeat(2028)), "a".repeat(256));
    let long_domain = format!("spiffe://{domain}/a");
    let cases = [
        ("A02", "", "it does not begin with `spiffe://`"),
        ("A02", "http://example.org/a", "it does not begin with `spiffe://`"),
        ("A02", "sparfe://example.org/a", "it does not begin with `spiffe://`"),
        ("A03", "SPIFFE://example.org/a", "in lower case"),
        ("A04", "spiffe://Example.org/a", "a trust domain is made of a-z"),
        ("A05", "spiffe:///a", "it is empty"),
        ("A06", "spiffe://u@example.org/a", "without a port or user"),
        ("A07", "spiffe://example.org:8080/a", "without a port or user"),
        ("A08", "spiffe://exa mple.org/a", "a trust domain is made of a-z"),
        ("A10", "spiffe://[::1]/a", "a trust domain is made of a-z"),
        ("A11", &long_domain, "it is longer than 255 bytes"),
        ("A12", "spiffe://example.org/a?x=1", "a path is made of"),
        ("A13", "spiffe://example.org/a#f", "a path is made of"),
        ("A14", "spiffe://example.org/%41", "a path is made of"),
        ("A14", "spiffe://%62%61%64/a", "a trust domain is made of a-z"),
        ("A15", "spiffe://example.org/a//b", "a path segment is empty"),
        ("A16", "spiffe://example.org/a/", "a path segment is empty"),
        ("A17", "spiffe://example.org/a/../b", "a path segment is `.` or `..`"),
        ("A19", "spiffe://example.org/a+b", "a path is made of"),
        ("A19", "spiffe://example.org/\u{e4}", "a path is made of"),
        ("A19", "spiffe://example.org/a\0b", "a path is made of"),
        ("A21", &too_long, "it is longer than 2048 bytes"),
    ];
    for (case, id, rule) in cases {
        let error = refused_id(&ca, id.as_bytes());
        let SvidError::NotASpiffeId(why) = &error else { panic!("{case}: {error}") };
        let why: &NameError = why;
        assert!(why.to_string().contains(rule), "{case}: {why}");
    }
    assert_eq!(refused_id(&ca, b"spiffe://example.org"), SvidError::PathAbsent, "A22");
    assert_eq!(
        refused_id(&ca, b"spiffe://"),
        SvidError::PathAbsent,
        "A05: nor a domain, but no path comes first"
    );
}

// Proves case A23, case A24, case D13.
#[test]
fn an_id_that_differs_by_a_byte_is_another_in_a_handshake() {
    let ca = TestCa::new("example.org");
    let trust = bundles(&[&ca]);
    let id = |path: &str| judged(&ca.svid(path), &trust, NOW).unwrap().spiffe_id().clone();
    assert_ne!(id("/A"), id("/a"));
    for other in ["example.org.", "x.example.org", "example.orgx"] {
        let issued = ca.issue(&format!("spiffe://{other}/a"), &|_| {});
        let domain = other.parse().unwrap();
        assert_eq!(judged(&issued, &trust, NOW).unwrap_err(), SvidError::TrustDomainUnknown { domain });
    }
}

// ---------- the mistakes of other projects ----------

// Proves case 6.1.
#[test]
fn one_root_pool_for_all_trust_domains_is_none_of_ours() {
    let all = ["a.example", "b.example", "c.example"].map(TestCa::new);
    let trust = bundles(&all.iter().collect::<Vec<_>>());
    for signer in &all {
        for claimed in &all {
            let issued = signer.issue(&format!("spiffe://{}/x", claimed.domain()), &|_| {});
            let found = judged(&issued, &trust, NOW);
            if signer.domain() == claimed.domain() {
                assert_eq!(found.unwrap().spiffe_id().trust_domain(), claimed.domain());
            } else {
                assert_eq!(found.unwrap_err(), SvidError::IssuerUnknown { domain: claimed.domain() });
            }
        }
    }
}

// Proves case 6.2.
#[test]
fn leaf_rules_are_not_left_to_the_x_509_library() {
    use rcgen::{DistinguishedName, ExtendedKeyUsagePurpose as P, IsCa, KeyUsagePurpose as U};
    const ID: &str = "spiffe://example.org/a";
    let ca = TestCa::new("example.org");
    let trust = bundles(&[&ca]);
    let good = ca.svid("/a");
    assert!(judged(&good, &trust, NOW).is_ok() && webpki(&ca, &good).is_ok());
    let cases: [(IssuedCertificate, SvidError); 9] = [
        (
            ca.issue(ID, &|p| p.key_usages = vec![U::DigitalSignature, U::KeyCertSign]),
            SvidError::LeafSignsCertificates,
        ),
        (ca.issue(ID, &|p| p.key_usages = vec![U::DigitalSignature, U::CrlSign]), SvidError::LeafSignsCrls),
        (ca.issue(ID, &|p| p.key_usages.clear()), SvidError::KeyUsageAbsent),
        (ca.issue(ID, &|p| p.key_usages = vec![U::KeyEncipherment]), SvidError::DigitalSignatureAbsent),
        (ca.issue("spiffe://example.org", &|_| {}), SvidError::PathAbsent),
        (
            ca.issue(ID, &|p| p.subject_alt_names.push(uri("spiffe://example.org/b"))),
            SvidError::UriRepeated { found: 2 },
        ),
        (ca.issue(ID, &|p| p.is_ca = IsCa::NoCa), SvidError::BasicConstraintsAbsent),
        (ca.issue(ID, &|p| p.extended_key_usages = vec![P::ClientAuth]), SvidError::ServerAuthAbsent),
        (
            ca.issue(ID, &|p| {
                p.distinguished_name = DistinguishedName::new();
                p.subject_alt_names.clear();
                p.custom_extensions.push(raw_san(&[ID.as_bytes()]));
            }),
            SvidError::SanNotCritical,
        ),
    ];
    for (issued, rule) in cases {
        assert!(webpki(&ca, &issued).is_ok(), "the library alone accepts what breaks: {rule}");
        assert_eq!(judged(&issued, &trust, NOW).unwrap_err(), rule);
    }
}

// Proves case 6.3.
#[test]
fn san_entries_are_counted_and_not_parsed_uris() {
    let ca = TestCa::new("example.org");
    let good: &[u8] = b"spiffe://example.org/a";
    let of = |uris: &[&[u8]]| {
        ca.issue("spiffe://example.org/a", &|p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(raw_san(uris));
        })
    };
    assert!(judged(&of(&[good]), &bundles(&[&ca]), NOW).is_ok());
    let bad: &[u8] = b"spiffe://b/\xff";
    for order in [[good, bad], [bad, good]] {
        let issued = of(&order);
        assert!(webpki(&ca, &issued).is_ok());
        assert!(spiffe::cert::spiffe_id_from_der(issued.leaf()).is_ok(), "the spiffe crate accepts it too");
        assert_eq!(Leaf::parse(issued.leaf()).unwrap_err(), SvidError::UriRepeated { found: 2 });
        assert_eq!(judged(&issued, &bundles(&[&ca]), NOW).unwrap_err(), SvidError::UriRepeated { found: 2 });
    }
}
