use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, OtherNameValue,
    SanType,
};

use super::*;
use crate::{
    identity::{
        judge::judged,
        testing::{
            CertificateChange, IssuedCertificate, NOW, TestCa, at, bundles, extension, raw_san, tlv, uri,
        },
    },
    reason::Reason,
};

const ID: &str = "spiffe://example.org/tune/job-1";

/// The result for a certificate that was valid before this change. A server gives the same result in a handshake, except
/// for errors that depend on the time.
fn leaf(change: CertificateChange<'_>) -> Result<Leaf, SvidError> {
    let ca = TestCa::new("example.org");
    presented(&ca, &ca.issue(ID, change))
}

fn presented(ca: &TestCa, issued: &IssuedCertificate) -> Result<Leaf, SvidError> {
    let parsed = Leaf::parse(issued.leaf());
    match (&parsed, judged(issued, &bundles(&[ca]), NOW)) {
        (Ok(leaf), Ok(peer)) => assert_eq!(&leaf.spiffe_id, peer.spiffe_id()),
        (Err(why), Err(said)) => assert_eq!(why, &said),
        (Ok(_), Err(SvidError::LifeTooLong { .. })) => {}
        (parsed, said) => panic!("{parsed:?}, and the server says {said:?}"),
    }
    parsed
}

/// A valid SVID with changed bytes.
fn of_bytes(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<Leaf, SvidError> {
    let ca = TestCa::new("example.org");
    let mut issued = ca.issue(ID, &|_| {});
    issued.chain[0] = change(issued.leaf().to_vec()).into();
    presented(&ca, &issued)
}

fn usages(params: &mut CertificateParams, usages: &[KeyUsagePurpose]) {
    params.key_usages = usages.to_vec();
}

// Proves case B01.
#[test]
fn a_plain_svid_is_accepted_and_says_its_facts() {
    let ca = TestCa::new("example.org");
    let issued = ca.issue(ID, &|p| p.serial_number = Some(vec![0x0a, 0xff].into()));
    let leaf = presented(&ca, &issued).unwrap();
    assert_eq!(leaf.spiffe_id.as_str(), ID);
    assert_eq!(leaf.not_after, NOW.plus(Duration::from_secs(3_600)));
    assert_eq!(leaf.not_before.0, NOW.0 - 10_000);
    assert_eq!(leaf.x5t_s256, sha256(issued.leaf()));
    assert_eq!(leaf.serial, "0aff");
}

// Proves case B02.
#[test]
fn names_of_other_kinds_beside_the_id_are_accepted() {
    let found = leaf(&|p| {
        p.subject_alt_names.push(SanType::DnsName("localhost".try_into().unwrap()));
        p.subject_alt_names.insert(0, SanType::IpAddress([127, 0, 0, 1].into()));
        p.subject_alt_names.push(SanType::Rfc822Name("a@example.org".try_into().unwrap()));
    });
    assert_eq!(found.unwrap().spiffe_id.as_str(), ID);
}

// Proves case B03.
#[test]
fn the_other_usages_that_spire_sets_are_accepted() {
    use KeyUsagePurpose as U;
    assert!(leaf(&|p| usages(p, &[U::DigitalSignature, U::KeyEncipherment, U::KeyAgreement])).is_ok());
}

// Proves case B04, case B05, case B06.
#[test]
fn extended_key_usage_is_absent_or_has_both_purposes() {
    use ExtendedKeyUsagePurpose as P;
    let with = |purposes: &[P]| leaf(&|p| p.extended_key_usages = purposes.to_vec());
    assert!(with(&[]).is_ok());
    assert!(with(&[P::ClientAuth, P::ServerAuth, P::CodeSigning]).is_ok());
    assert_eq!(with(&[P::ServerAuth]), Err(SvidError::ClientAuthAbsent));
    assert_eq!(with(&[P::ClientAuth]), Err(SvidError::ServerAuthAbsent));
    assert_eq!(with(&[P::Any]), Err(SvidError::ClientAuthAbsent));
    assert_eq!(with(&[P::CodeSigning]), Err(SvidError::ClientAuthAbsent));
    let empty = leaf(&|p| {
        p.extended_key_usages.clear();
        p.custom_extensions.push(extension(37, false, vec![0x04, 0x00]));
    });
    assert_eq!(empty, Err(SvidError::ExtensionMalformed { extension: "extended key usage" }));
}

// Proves case B07, case B08.
#[test]
fn an_empty_subject_needs_a_critical_name() {
    assert!(leaf(&|p| p.distinguished_name = DistinguishedName::new()).is_ok());
    let not_critical = leaf(&|p| {
        p.distinguished_name = DistinguishedName::new();
        p.subject_alt_names.clear();
        p.custom_extensions.push(raw_san(&[ID.as_bytes()]));
    });
    assert_eq!(not_critical, Err(SvidError::SanNotCritical));
}

// Proves case B09.
#[test]
fn a_name_that_is_not_critical_is_accepted_beside_a_subject() {
    let found = leaf(&|p| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(raw_san(&[ID.as_bytes()]));
    });
    assert_eq!(found.unwrap().spiffe_id.as_str(), ID);
}

// Proves case B10.
#[test]
fn an_id_anywhere_but_in_a_uri_is_no_id() {
    let only = |name: Option<SanType>| {
        leaf(&|p| {
            p.subject_alt_names = name.clone().into_iter().collect();
            p.distinguished_name.push(rcgen::DnType::CommonName, ID);
        })
    };
    assert_eq!(only(None), Err(SvidError::SanAbsent));
    for name in [
        SanType::DnsName(ID.try_into().unwrap()),
        SanType::Rfc822Name(ID.try_into().unwrap()),
        SanType::OtherName((vec![1, 2, 3], OtherNameValue::Utf8String(ID.to_owned()))),
    ] {
        assert_eq!(only(Some(name)), Err(SvidError::UriAbsent));
    }
    assert!(only(Some(uri(ID))).is_ok());
}

// Proves case B11.
#[test]
fn a_uri_of_another_scheme_is_no_id() {
    let other = leaf(&|p| p.subject_alt_names = vec![uri("https://example.org/tune/job-1")]);
    assert!(matches!(other, Err(SvidError::NotASpiffeId(_))));
    let upper = leaf(&|p| p.subject_alt_names = vec![uri("SPIFFE://example.org/tune/job-1")]);
    assert!(matches!(upper, Err(SvidError::NotASpiffeId(_))));
}

// Proves case B12.
#[test]
fn two_uris_are_refused_whatever_they_are() {
    for second in ["spiffe://example.org/other", "https://example.org/x", ID] {
        for order in [[ID, second], [second, ID]] {
            let found = leaf(&|p| p.subject_alt_names = order.iter().map(|text| uri(text)).collect());
            assert_eq!(found, Err(SvidError::UriRepeated { found: 2 }), "{order:?}");
        }
    }
}

// Proves case B13.
#[test]
fn a_second_uri_that_is_not_utf_8_still_counts() {
    let bad = b"spiffe://b/\xff".as_slice();
    for order in [[ID.as_bytes(), bad], [bad, ID.as_bytes()]] {
        let found = leaf(&|p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(raw_san(&order));
        });
        assert_eq!(found, Err(SvidError::UriRepeated { found: 2 }));
    }
    let alone = leaf(&|p| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(raw_san(&[bad]));
    });
    assert_eq!(alone, Err(SvidError::SanInvalid));
    let beside_a_bad_dns_name = leaf(&|p| {
        p.subject_alt_names.clear();
        let names = [tlv(0x86, ID.as_bytes()), tlv(0x82, b"\xff\xfe")].concat();
        p.custom_extensions.push(extension(17, false, tlv(0x30, &names)));
    });
    assert_eq!(beside_a_bad_dns_name, Err(SvidError::SanInvalid));
}

// Proves case B13.
#[test]
fn a_name_that_is_written_as_der_does_not_allow_is_none() {
    let with = |names: Vec<u8>| {
        leaf(&|p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(extension(17, false, tlv(0x30, &names)));
        })
    };
    let id = tlv(0x86, ID.as_bytes());
    assert!(with(id.clone()).is_ok());
    let long_length = [&[0x86, 0x81, u8::try_from(ID.len()).unwrap()][..], ID.as_bytes()].concat();
    let long_tag = [&[0x9f, 0x06, u8::try_from(ID.len()).unwrap()][..], ID.as_bytes()].concat();
    for (what, name) in [
        ("of parts", tlv(0xa6, ID.as_bytes())),
        ("of one part", tlv(0xa6, &tlv(0x16, ID.as_bytes()))),
        ("a length of two bytes", long_length),
        ("a tag of two bytes", long_tag),
        ("of another class", tlv(0x46, ID.as_bytes())),
        ("no end", [&[0x86, 0x80][..], ID.as_bytes(), &[0, 0]].concat()),
    ] {
        for names in [name.clone(), [tlv(0x82, b"localhost"), name.clone()].concat()] {
            let refused = with(names).unwrap_err();
            let is_form = matches!(refused, SvidError::SanInvalid | SvidError::ExtensionMalformed { .. });
            assert!(is_form, "{what}: {refused}");
        }
        assert!(with([id.clone(), name].concat()).is_err(), "{what}");
    }
    assert_eq!(with([id.clone(), tlv(0xa2, b"localhost")].concat()), Err(SvidError::SanInvalid));
}

// Proves case B14.
#[test]
fn no_extension_may_be_there_twice() {
    let twice = [
        ("2.5.29.17", raw_san(&[ID.as_bytes()])),
        ("2.5.29.15", extension(15, true, vec![0x03, 0x02, 0x07, 0x80])),
        ("2.5.29.19", extension(19, true, vec![0x30, 0x00])),
        ("2.5.29.37", extension(37, false, tlv(0x30, &[]))),
    ];
    for (oid, second) in twice {
        let found = leaf(&|p| p.custom_extensions.push(second.clone()));
        assert_eq!(found, Err(SvidError::ExtensionRepeated { extension: oid.to_owned() }));
    }
}

// Proves case B15.
#[test]
fn an_extension_that_cannot_be_read_is_no_absent_one() {
    let bad = || vec![0x04, 0x01, 0xff];
    let san = leaf(&|p| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(extension(17, false, bad()));
    });
    assert_eq!(san, Err(SvidError::ExtensionMalformed { extension: "subject alternative name" }));
    let usage = leaf(&|p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(15, true, bad()));
    });
    assert_eq!(usage, Err(SvidError::ExtensionMalformed { extension: "key usage" }));
    let constraints = leaf(&|p| {
        p.is_ca = IsCa::NoCa;
        p.custom_extensions.push(extension(19, true, bad()));
    });
    assert_eq!(constraints, Err(SvidError::ExtensionMalformed { extension: "basic constraints" }));
}

// Proves case B16.
#[test]
fn an_id_without_a_path_is_no_workload() {
    let found = leaf(&|p| p.subject_alt_names = vec![uri("spiffe://example.org")]);
    assert_eq!(found, Err(SvidError::PathAbsent));
    for bad in ["spiffe://example.org/", "spiffe://example.org/a//b", "spiffe://example.org/a/.."] {
        let found = leaf(&|p| p.subject_alt_names = vec![uri(bad)]);
        assert!(matches!(found, Err(SvidError::NotASpiffeId(_))), "{bad}");
    }
}

// Proves case B17, case B18.
#[test]
fn a_leaf_says_that_it_is_no_ca() {
    assert!(leaf(&|p| p.is_ca = IsCa::ExplicitNoCa).is_ok());
    let ca = leaf(&|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert_eq!(ca, Err(SvidError::LeafIsCa));
    assert_eq!(leaf(&|p| p.is_ca = IsCa::NoCa), Err(SvidError::BasicConstraintsAbsent));
}

// Proves case B19, case B20, case B21, case B22, case B23.
#[test]
fn a_leaf_signs_messages_and_nothing_else() {
    use KeyUsagePurpose as U;
    let with = |all: &[U]| leaf(&|p| usages(p, all));
    assert!(with(&[U::DigitalSignature]).is_ok());
    assert_eq!(with(&[U::DigitalSignature, U::KeyCertSign]), Err(SvidError::LeafSignsCertificates));
    assert_eq!(with(&[U::DigitalSignature, U::CrlSign]), Err(SvidError::LeafSignsCrls));
    assert_eq!(with(&[]), Err(SvidError::KeyUsageAbsent));
    assert_eq!(with(&[U::KeyEncipherment]), Err(SvidError::DigitalSignatureAbsent));
    let raw = |critical| {
        leaf(&|p| {
            p.key_usages.clear();
            p.custom_extensions.push(extension(15, critical, vec![0x03, 0x02, 0x07, 0x80]));
        })
    };
    assert!(raw(true).is_ok());
    assert_eq!(raw(false), Err(SvidError::KeyUsageNotCritical));
}

// Proves case B24, case B25.
#[test]
fn validity_begins_with_not_before_and_ends_before_not_after() {
    let leaf = leaf(&|_| {}).unwrap();
    let (begin, end) = (leaf.not_before, leaf.not_after);
    assert!(leaf.check_time(begin).is_ok());
    assert!(leaf.check_time(Wall(end.0 - 1)).is_ok());
    assert_eq!(leaf.check_time(Wall(begin.0 - 1)), Err(SvidError::NotYetValid { not_before: begin }));
    assert_eq!(leaf.check_time(end), Err(SvidError::Expired { not_after: end }));
    assert_eq!(SvidError::Expired { not_after: end }.reason(), Reason::SvidExpired);
    assert_eq!(SvidError::NotYetValid { not_before: begin }.reason(), Reason::SvidExpired);
}

// Proves case B26.
#[test]
fn bytes_behind_a_certificate_and_old_versions_are_refused() {
    assert!(of_bytes(|good| good).is_ok());
    let longer = of_bytes(|good| [good.as_slice(), &[0]].concat());
    assert_eq!(longer, Err(SvidError::TrailingBytes { bytes: 1 }));
    let shorter = of_bytes(|good| good[..good.len() - 1].to_vec());
    assert_eq!(shorter, Err(SvidError::Malformed));
    assert_eq!(of_bytes(|_| Vec::new()), Err(SvidError::Malformed));
    // version [0] { INTEGER 2 }, first in the body: make it X.509 v2, and v1.
    for version in [1, 0] {
        let older = of_bytes(|mut good| {
            let place = good.windows(5).position(|w| w == [0xa0, 0x03, 0x02, 0x01, 0x02]).unwrap();
            good[place + 4] = version;
            good
        });
        assert_eq!(older, Err(SvidError::NotVersion3));
    }
}

// Proves case B27.
#[test]
fn an_unknown_critical_extension_is_refused() {
    let with = |critical| leaf(&|p| p.custom_extensions.push(extension(99, critical, vec![0x05, 0x00])));
    assert!(with(false).is_ok());
    assert_eq!(with(true), Err(SvidError::ExtensionUnknown { extension: "2.5.29.99".to_owned() }));
}

// Proves case B28.
#[test]
fn a_short_rsa_key_is_refused() {
    use rcgen::PublicKeyData;
    /// A public key with this many bits. Nothing is signed with it.
    struct Rsa(Vec<u8>);
    impl PublicKeyData for Rsa {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &rcgen::PKCS_RSA_SHA256
        }
    }
    let of_bits = |bits: usize| {
        let mut modulus = vec![0u8];
        modulus.resize(bits / 8 + 1, 0xc5);
        let key = [tlv(0x02, &modulus), tlv(0x02, &[1, 0, 1])].concat();
        let ca = TestCa::new("example.org");
        let mut issued = ca.issue(ID, &|_| {});
        issued.chain[0] = ca.issue_for(ID, &Rsa(tlv(0x30, &key)));
        (Leaf::parse(issued.leaf()), judged(&issued, &bundles(&[&ca]), NOW).unwrap_err())
    };
    let (long, short) = (of_bits(2048), of_bits(1024));
    assert!(long.0.is_ok());
    assert_eq!(long.1, SvidError::NotPossessed, "the chain is good: only the private key is missing");
    assert_eq!(short, (Err(SvidError::KeyTooShort { bits: 1024 }), SvidError::KeyTooShort { bits: 1024 }));
}

// Proves case B29.
#[test]
fn a_life_longer_than_a_day_and_an_hour_is_refused() {
    let life = |seconds: u64| {
        leaf(&|p| {
            p.not_before = at(NOW);
            p.not_after = at(NOW.plus(Duration::from_secs(seconds)));
        })
        .unwrap()
        .check_life(limits::SVID_LIFE_MAX)
    };
    assert!(life(25 * 3600).is_ok());
    let error = life(25 * 3600 + 1).unwrap_err();
    assert_eq!(error, SvidError::LifeTooLong { seconds: 90_001, seconds_max: 90_000 });
    assert_eq!(error.reason(), Reason::SvidInvalid);
}

#[test]
fn names_beside_the_id_have_a_bound() {
    let with = |names: usize| {
        leaf(&|p| {
            for n in 1..names {
                p.subject_alt_names.push(SanType::DnsName(format!("host-{n}").try_into().unwrap()));
            }
        })
    };
    assert_eq!(with(limits::SAN_NAMES_MAX).unwrap().spiffe_id.as_str(), ID);
    assert_eq!(with(limits::SAN_NAMES_MAX + 1), Err(SvidError::SanTooLong));
}

#[test]
fn absurdly_large_certificates_and_serials_are_refused() {
    let large = leaf(&|p| p.custom_extensions.push(extension(99, false, tlv(0x04, &[0; 16 << 10]))));
    assert!(matches!(large, Err(SvidError::CertificateTooLarge { .. })));
    // The largest size that is allowed. The length of a signature varies by a byte, so this needs a few tries.
    let ca = TestCa::new("example.org");
    let mut padding = 16_000;
    let largest = loop {
        let value = tlv(0x04, &vec![0; padding]);
        let issued = ca.issue(ID, &|p| p.custom_extensions.push(extension(99, false, value.clone())));
        if issued.leaf().len() == limits::CERTIFICATE_BYTES_MAX {
            break issued;
        }
        padding = padding + limits::CERTIFICATE_BYTES_MAX - issued.leaf().len();
    };
    assert_eq!(presented(&ca, &largest).unwrap().spiffe_id.as_str(), ID);
    let serial = |bytes: usize| leaf(&|p| p.serial_number = Some(vec![0x7f; bytes].into()));
    assert_eq!(serial(20).unwrap().serial, "7f".repeat(20));
    let negative_but_for_a_zero = leaf(&|p| p.serial_number = Some(vec![0xff; 20].into())).unwrap();
    assert_eq!(negative_but_for_a_zero.serial, format!("00{}", "ff".repeat(20)));
    assert_eq!(serial(22), Err(SvidError::SerialTooLong));
}

#[test]
fn a_refusal_is_one_bounded_line_whatever_was_presented() {
    let hostile = format!("spiffe://example.org/\u{1b}[31m\n{}", "x".repeat(4_000));
    let found = leaf(&|p| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(raw_san(&[hostile.as_bytes()]));
    });
    let line = found.unwrap_err().to_string();
    assert!(line.len() < 400 && !line.contains(['\n', '\u{1b}']), "{line}");
}
