//! Each change of a bundle, of its signature or of the key is noticed.

use super::*;

fn text(file: &str, text: &str) -> PolicyText {
    PolicyText { file: file.into(), text: text.into() }
}

/// A new private key, and the public keys that trust it.
fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> (BundleSigner, TrustedKeys) {
    let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let signer = BundleSigner::from_pem(&pair.serialize_pem()).unwrap();
    let public = BundleKey::from_pem(&pair.public_key_pem()).unwrap();
    assert_eq!(public, signer.public());
    (signer, TrustedKeys(vec![public]))
}

#[test]
fn only_the_signed_files_pass_with_a_trusted_key() {
    let policies = vec![text("a.cedar", "permit (principal, action, resource);"), text("b.cedar", "// b")];
    let cases = vec![text("tests.toml", "[defaults]")];
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256] {
        let (signer, trusted) = key(algorithm);
        let signatures = signer.sign(&policies, &cases, None).unwrap();
        let signed = SignedBundle { cases: texts_digest(&cases), signatures };
        assert_eq!(trusted.check(&policies, Some(&signed)), Ok(()));
        let turned: Vec<PolicyText> = policies.iter().rev().cloned().collect();
        assert_eq!(trusted.check(&turned, Some(&signed)), Ok(()), "the order of the names counts");
        assert_eq!(trusted.check(&policies, None), Err(SignatureError::Missing));
        assert_eq!(TrustedKeys::default().check(&policies, None), Ok(()), "no key asks for none");

        let mut others = vec![policies[..1].to_vec()];
        let changes: [fn(&mut PolicyText); 2] = [|t| t.text.push(' '), |t| t.file.insert(0, 'x')];
        for change in changes {
            let mut other = policies.clone();
            change(&mut other[1]);
            others.push(other);
        }
        for other in others {
            assert_eq!(trusted.check(&other, Some(&signed)), Err(SignatureError::OtherFiles));
            // The digest in the file is corrected, but the signature is not.
            let mut file = read(&signed.signatures).unwrap();
            file.bundle = bundle_digest(&other, signed.cases);
            let forged = SignedBundle { signatures: serde_json::to_string(&file).unwrap(), ..signed.clone() };
            let wrong = SignatureError::Wrong(signer.public().id());
            assert_eq!(trusted.check(&other, Some(&forged)), Err(wrong));
        }
        let other_cases = SignedBundle { cases: texts_digest(&[]), ..signed.clone() };
        assert_eq!(trusted.check(&policies, Some(&other_cases)), Err(SignatureError::OtherFiles));
        let (_, stranger) = key(algorithm);
        let no = stranger.check(&policies, Some(&signed)).unwrap_err();
        assert_eq!(no, SignatureError::UntrustedKey(signer.public().id().to_string()));
        for bad in ["", "{}", "{\"v\":2,\"bundle\":\"x\",\"signatures\":[]}", "x".repeat(99).as_str()] {
            let bad = SignedBundle { signatures: bad.into(), ..signed.clone() };
            assert!(matches!(trusted.check(&policies, Some(&bad)), Err(SignatureError::Unreadable(_))));
        }
    }
}

#[test]
fn a_second_key_adds_its_signature_to_the_file() {
    let policies = vec![text("a.cedar", "// a")];
    let (old, trusts_old) = key(&rcgen::PKCS_ED25519);
    let (new, trusts_new) = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let by_old = old.sign(&policies, &[], None).unwrap();
    let both = SignedBundle {
        cases: texts_digest(&[]),
        signatures: new.sign(&policies, &[], Some(&by_old)).unwrap(),
    };
    assert_eq!(
        (trusts_old.check(&policies, Some(&both)), trusts_new.check(&policies, Some(&both))),
        (Ok(()), Ok(()))
    );
    assert_eq!(read(&both.signatures).unwrap().signatures.len(), 2);
    // Signatures of other files are not kept.
    let changed = vec![text("a.cedar", "// b")];
    let only_new = new.sign(&changed, &[], Some(&both.signatures)).unwrap();
    assert_eq!(read(&only_new).unwrap().signatures.len(), 1);
}

#[test]
fn keys_of_other_kinds_are_refused() {
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(BundleSigner::from_pem(&p384.serialize_pem()).is_err());
    assert!(BundleKey::from_pem(&p384.public_key_pem()).is_err());
    assert!(BundleKey::from_pem(&p384.serialize_pem()).is_err(), "a private key is no public key");
    assert!(BundleKey::from_pem("").is_err() && BundleSigner::from_pem("x").is_err());
}
