//! The keys and signatures that the verifier supports.

use rustls::{
    crypto::{WebPkiSupportedAlgorithms, ring},
    pki_types::SignatureVerificationAlgorithm,
};
use x509_parser::{
    certificate::X509Certificate, public_key::PublicKey, x509::AlgorithmIdentifier as Written,
};

use super::svid_error::SvidError;

/// Checks that signatures by the key of a certificate can be verified.
pub(super) fn check_key(cert: &X509Certificate<'_>) -> Result<(), SvidError> {
    if let Ok(PublicKey::RSA(key)) = cert.public_key().parsed() {
        match key.key_size() {
            bits @ ..2048 => return Err(SvidError::KeyTooShort { bits }),
            bits @ 8193.. => return Err(SvidError::KeyAlgorithm { found: format!("RSA of {bits} bits") }),
            _ => {}
        }
    }
    let written = &cert.public_key().algorithm;
    let identifier = identifier(written);
    if is_verifiable(|known| known.public_key_alg_id().as_ref() == identifier) {
        return Ok(());
    }
    Err(SvidError::KeyAlgorithm { found: name(&curve_or_algorithm(written)) })
}

/// Checks that the signature on a certificate can be verified.
pub(super) fn check_signature(cert: &X509Certificate<'_>) -> Result<(), SvidError> {
    let oid = oid_der(cert.signature_algorithm.algorithm.as_bytes());
    // Only the OID is compared: RSASSA-PSS has parameters, which the verifier checks.
    if is_verifiable(|known| known.signature_alg_id().as_ref().starts_with(&oid)) {
        return Ok(());
    }
    Err(SvidError::SignatureAlgorithm { found: name(&cert.signature_algorithm.algorithm.to_id_string()) })
}

/// Returns the accepted signature algorithms of ring: not SHA-1, and not RSA below 2048 bits.
pub(super) fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

fn is_verifiable(is_it: impl Fn(&dyn SignatureVerificationAlgorithm) -> bool) -> bool {
    algorithms().all.iter().any(|known| is_it(*known))
}

/// Returns the content of an AlgorithmIdentifier as the verifier compares it: the OID and its parameters.
fn identifier(written: &Written<'_>) -> Vec<u8> {
    let mut out = oid_der(written.algorithm.as_bytes());
    if let Some(parameters) = &written.parameters {
        // The parameters of known algorithms are NULL or an OID: a tag, a length of one byte, a value.
        let length = u8::try_from(parameters.data.len()).unwrap_or(u8::MAX);
        out.extend([u8::try_from(parameters.tag().0).unwrap_or(u8::MAX), length]);
        out.extend_from_slice(parameters.data);
    }
    out
}

fn oid_der(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    [&[0x06, length], bytes].concat()
}

/// Returns the OID of the curve, or of the algorithm if the key has no curve.
fn curve_or_algorithm(written: &Written<'_>) -> String {
    const ON_A_CURVE: &str = "1.2.840.10045.2.1";
    let algorithm = written.algorithm.to_id_string();
    let curve = written.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|oid| oid.to_id_string());
    if algorithm == ON_A_CURVE { curve.unwrap_or(algorithm) } else { algorithm }
}

/// Returns the common name of an algorithm.
fn name(oid: &str) -> String {
    let known = match oid {
        "1.3.132.0.35" => "ECDSA P-521",
        "1.3.132.0.33" => "ECDSA P-224",
        "1.3.132.0.10" => "ECDSA secp256k1",
        "1.3.101.113" => "Ed448",
        "1.2.840.10040.4.1" => "DSA",
        "1.2.840.113549.1.1.10" => "RSASSA-PSS",
        "1.2.840.10045.4.1" => "ecdsa-with-SHA1",
        "1.2.840.10045.4.3.1" => "ecdsa-with-SHA224",
        "1.2.840.10045.4.3.4" => "ecdsa-with-SHA512",
        "1.2.840.113549.1.1.4" => "md5WithRSAEncryption",
        "1.2.840.113549.1.1.5" => "sha1WithRSAEncryption",
        "1.2.840.113549.1.1.14" => "sha224WithRSAEncryption",
        other => return format!("the algorithm {}", other.chars().take(64).collect::<String>()),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    use super::*;
    use crate::identity::{
        bundle::TrustBundles,
        leaf::Leaf,
        leaf::Side,
        load::LoadFault,
        path::verify,
        testing::{NOW, TestCa},
    };

    const ROOT: &str = include_str!("../../tests/fixtures/algorithms/root.pem");
    const ROOT_P521: &str = include_str!("../../tests/fixtures/algorithms/root-p521.pem");
    const ROOT_SHA512: &str = include_str!("../../tests/fixtures/algorithms/root-sha512.pem");
    const LEAF_P521: &str = include_str!("../../tests/fixtures/algorithms/leaf-p521.pem");
    const LEAF_SHA512: &str = include_str!("../../tests/fixtures/algorithms/leaf-sha512.pem");
    const LEAF_OF_P521: &str = include_str!("../../tests/fixtures/algorithms/leaf-of-p521.pem");

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn load(pem: &str) -> Result<TrustBundles, LoadFault> {
        let domain = "example.org".parse().unwrap();
        TrustBundles::empty().with_pem(domain, "r.pem", pem.as_bytes(), NOW).map_err(|e| e.fault)
    }

    #[test]
    fn an_unsupported_leaf_is_refused_with_its_algorithm() {
        let found = |name: &str| name.to_owned();
        let refused = |pem| Leaf::parse(&der(pem)).unwrap_err();
        assert_eq!(refused(LEAF_P521), SvidError::KeyAlgorithm { found: found("ECDSA P-521") });
        assert_eq!(refused(LEAF_SHA512), SvidError::SignatureAlgorithm { found: found("ecdsa-with-SHA512") });
        assert!(Leaf::parse(&der(LEAF_OF_P521)).is_ok(), "only its root is unusable");
    }

    #[test]
    fn an_unusable_root_is_reported_when_it_is_loaded() {
        assert!(load(ROOT).unwrap().warnings().is_empty());
        let single = load(ROOT_P521).unwrap_err().to_string();
        assert!(single.contains("the key is of ECDSA P-521"), "{single}");
        let beside = load(&format!("{ROOT}{ROOT_P521}")).unwrap();
        assert_eq!(beside.root_count(&"example.org".parse().unwrap()), Some(1));
        assert!(beside.warnings()[0].contains("certificate 2 cannot be used: the key is of ECDSA P-521"));
        let refused = verify(&[der(LEAF_OF_P521)], Side::Client, NOW, &beside).unwrap_err();
        assert!(matches!(refused, SvidError::IssuerUnknown { .. } | SvidError::SignatureAlgorithm { .. }));
        let doubtful = load(ROOT_SHA512).unwrap();
        assert!(doubtful.warnings()[0].contains("ecdsa-with-SHA512"), "{:?}", doubtful.warnings());
    }

    #[test]
    fn every_algorithm_of_the_verifier_passes() {
        let ca = TestCa::new("example.org");
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            assert!(Leaf::parse(&ca.issue_for("spiffe://example.org/a", &key)).is_ok(), "{algorithm:?}");
        }
    }
}
