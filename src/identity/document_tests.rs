use serde_json::{Value, json};

use super::*;
use crate::identity::{
    bundle::TrustBundles,
    judge::judged,
    svid_error::SvidError,
    testing::{NOW, TestCa},
};

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn parse(json: &str) -> Result<BundleDocument, LoadFault> {
    BundleDocument::parse("bundle.json", json.as_bytes(), &domain()).map_err(|e| e.fault)
}

fn read(json: Value) -> Result<BundleDocument, LoadFault> {
    parse(&json.to_string())
}

fn x5c(ca: &TestCa) -> String {
    STANDARD.encode(&ca.der)
}

fn key(ca: &TestCa) -> Value {
    json!({ "kty": "EC", "use": "x509-svid", "crv": "P-256", "x": "AA", "y": "AA", "x5c": [x5c(ca)] })
}

/// A valid key with a change, beside a valid key.
fn beside(change: impl FnOnce(&mut Value)) -> Result<usize, LoadFault> {
    let (good, other) = (TestCa::new("example.org"), TestCa::new("example.org"));
    let mut changed = key(&other);
    change(&mut changed);
    read(json!({ "keys": [changed, key(&good)] })).map(|document| document.roots.len())
}

// Proves case E01.
#[test]
fn members_of_later_versions_do_not_break_a_document() {
    let ca = TestCa::new("example.org");
    let largest = u64::MAX;
    let document = read(json!({
        "keys": [key(&ca)], "spiffe_sequence": largest, "spiffe_refresh_hint": 600, "spiffe_later": { "a": [1.5, null, true, -1] },
    }))
    .unwrap();
    assert_eq!(document.roots, std::slice::from_ref(&ca.der));
    assert_eq!(document.sequence, Some(u64::MAX));
    assert_eq!(document.refresh_hint, Some(Duration::from_secs(600)));
}

// Proves case E02.
#[test]
fn sequence_and_hint_may_be_absent() {
    let document = read(json!({ "keys": [key(&TestCa::new("example.org"))] })).unwrap();
    assert_eq!((document.sequence, document.refresh_hint), (None, None));
}

// Proves case E03.
#[test]
fn what_is_no_document_is_refused() {
    for json in ["", "{", "[]", "not json", "{\"keys\": []} {}", "{\"keys\": [],}", "\u{feff}{\"keys\":[]}"] {
        assert!(parse(json).is_err(), "{json}");
    }
    assert!(BundleDocument::parse("b", b"{\"keys\":[],\"a\":\"\xff\"}", &domain()).is_err(), "not UTF-8");
    for json in [
        json!({}),
        json!({ "Keys": [] }),
        json!({ "keys": {} }),
        json!({ "keys": null }),
        json!({ "keys": [], "spiffe_sequence": "1" }),
        json!({ "keys": [], "spiffe_sequence": -1 }),
        json!({ "keys": [], "spiffe_sequence": 1.5 }),
        json!({ "keys": [], "spiffe_refresh_hint": "5m" }),
    ] {
        assert!(matches!(read(json.clone()), Err(LoadFault::NotABundle { .. })), "{json}");
    }
    assert!(matches!(
        parse("{\"keys\": [], \"spiffe_sequence\": 18446744073709551616}"),
        Err(LoadFault::NotABundle { .. })
    ));
}

// Proves case E04, case D08.
#[test]
fn no_keys_revoke_all() {
    let document = read(json!({ "keys": [] })).unwrap();
    assert_eq!(document.roots, []);
    let bundles = TrustBundles::empty().with_document(domain(), "bundle.json", &document, NOW).unwrap();
    assert_eq!(
        bundles.root_count(&domain()),
        Some(0),
        "the trust domain is known, and no identity of it is trusted"
    );
    let ca = TestCa::new("example.org");
    let before = TrustBundles::empty()
        .with_document(domain(), "bundle.json", &read(json!({ "keys": [key(&ca)] })).unwrap(), NOW)
        .unwrap();
    assert!(judged(&ca.svid("/a"), &before, NOW).is_ok());
    let refused = judged(&ca.svid("/a"), &bundles, NOW).unwrap_err();
    assert_eq!(refused, SvidError::RootsAbsent { domain: domain() });
    // The file has no fault, and the log must report why peers are refused.
    let warning = "`example.org` has no usable root (it lists none)";
    assert!(bundles.warnings()[0].starts_with(warning), "{:?}", bundles.warnings());
    assert_eq!(before.warnings(), [""; 0]);
}

// Proves case E06.
#[test]
fn keys_of_another_use_or_unknown_type_are_skipped() {
    assert_eq!(beside(|_| {}).unwrap(), 2);
    let changes: [fn(&mut Value); 8] = [
        |k| drop(k.as_object_mut().unwrap().remove("use")),
        |k| k["use"] = "sig".into(),
        |k| k["use"] = "X509-SVID".into(),
        |k| k["use"] = 5.into(),
        |k| drop(k.as_object_mut().unwrap().remove("kty")),
        |k| k["kty"] = "AKP".into(),
        |k| k["kty"] = Value::Null,
        |k| *k = "a key".into(),
    ];
    for change in changes {
        assert_eq!(beside(change).unwrap(), 1);
    }
}

// Proves case E07.
#[test]
fn the_first_of_several_certificates_counts() {
    let (first, second) = (TestCa::new("example.org"), TestCa::new("example.org"));
    let mut two = key(&first);
    two["x5c"] = json!([x5c(&first), x5c(&second)]);
    assert_eq!(read(json!({ "keys": [two] })).unwrap().roots, std::slice::from_ref(&first.der));
    assert_eq!(beside(|k| drop(k.as_object_mut().unwrap().remove("x5c"))).unwrap(), 1);
    assert_eq!(beside(|k| k["x5c"] = json!([])).unwrap(), 1);
    assert_eq!(beside(|k| k["kid"] = "a publisher must not".into()).unwrap(), 2);
    for broken in ["!!!", "", "AA-_", "AAA"] {
        assert!(
            matches!(beside(|k| k["x5c"] = json!([broken])), Err(LoadFault::X5c { number: 1 })),
            "{broken}"
        );
    }
    assert!(matches!(beside(|k| k["x5c"] = json!([5])), Err(LoadFault::X5c { number: 1 })));
    // Base64 of something that is not a certificate.
    let document = read(json!({ "keys": [{ "kty": "EC", "use": "x509-svid", "x5c": ["AAAA"] }] })).unwrap();
    let error = TrustBundles::empty().with_document(domain(), "bundle.json", &document, NOW).unwrap_err();
    assert!(matches!(error.fault, LoadFault::Certificate { number: 1, .. }), "{error}");
}

// Proves case E08, case E09.
#[test]
fn keys_for_tokens_are_never_roots() {
    let ca = TestCa::new("example.org");
    let mut jwt = key(&ca);
    jwt["use"] = "jwt-svid".into();
    let mut wit = key(&ca);
    wit["use"] = "wit-svid".into();
    wit["kid"] = "k".into();
    assert_eq!(read(json!({ "keys": [jwt, wit.clone(), wit] })).unwrap().roots, []);
}

// Proves case E10.
#[test]
fn no_member_may_be_there_twice() {
    let key = key(&TestCa::new("example.org"));
    for (json, twice) in [
        (format!("{{\"keys\": [{key}], \"keys\": []}}"), "keys"),
        (format!("{{\"keys\": [{key}], \"x\": {{\"a\": 1, \"a\": 2}}}}"), "a"),
        (key.to_string().replacen('{', "{\"keys\": [{\"use\": \"a\", \"use\": \"b\"}], ", 1), "use"),
        (
            format!(
                "{{\"trust_domains\": {{\"example.org\": {{\"keys\": [{key}]}}, \"example.org\": {{\"keys\": []}}}}}}"
            ),
            "example.org",
        ),
    ] {
        let error = parse(&json).unwrap_err();
        assert!(
            matches!(&error, LoadFault::NotJson { why } if why.contains(&format!("`{twice}` is repeated"))),
            "{error}"
        );
    }
}

// Proves case E11.
#[test]
fn every_name_in_a_bundle_map_is_a_trust_domain() {
    let (ours, other) = (TestCa::new("example.org"), TestCa::new("other.example"));
    let map = json!({ "trust_domains": {
        "example.org": { "keys": [key(&ours)], "spiffe_sequence": 4 }, "other.example": { "keys": [key(&other)] },
    } });
    let document = read(map.clone()).unwrap();
    assert_eq!((document.roots, document.sequence), (vec![ours.der.clone()], Some(4)));
    for name in ["#", "Other.example", "spiffe://other.example", ""] {
        let mut map = map.clone();
        map["trust_domains"][name] = json!({ "keys": [] });
        assert!(matches!(read(map), Err(LoadFault::DomainName { .. })), "{name}");
    }
    assert!(
        matches!(read(json!({ "trust_domains": {} })), Err(LoadFault::NotABundle { .. })),
        "ours is not in it"
    );
}
