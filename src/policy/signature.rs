//! Signatures on policy bundles: they say which key vouches for exactly these files.
//!
//! A signature covers the names and texts of all `.cedar` files and of all test cases in the same directory. The file
//! [`SIGNATURE_FILE`] in this directory contains the signatures.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _, UnparsedPublicKey,
    },
};
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::PolicyText;
use crate::{
    limits::{PEM_BYTES_MAX, POLICY_SIGNATURES_MAX},
    name::Digest,
    plain,
    written::read_regular_text,
};

/// The file with the signatures of a policy directory.
pub const SIGNATURE_FILE: &str = "policy.sig";

/// The prefix of the signed bytes. No other kind of signature uses this prefix.
const DOMAIN: &[u8] = b"leasehold/policy-bundle/v1\n";

/// The DER bytes of a SubjectPublicKeyInfo before the bytes of the key (RFC 8410).
const ED25519_PREFIX: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The DER bytes of a SubjectPublicKeyInfo before the bytes of the key (RFC 5480).
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The signature algorithm of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignatureAlgorithm {
    Ed25519,
    /// ECDSA with P-256 and SHA-256.
    Es256,
}

/// A public key that checks the signatures on bundles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleKey {
    algorithm: SignatureAlgorithm,
    bytes: Vec<u8>,
}

/// A private key that signs bundles.
pub struct BundleSigner {
    key: SigningPair,
}

enum SigningPair {
    Ed25519(Ed25519KeyPair),
    Es256(Box<EcdsaKeyPair>, SystemRandom),
}

/// The signatures on a policy bundle, and the digest of its test cases. The daemon keeps them with each policy that
/// was in force, to check the signatures again if someone puts the policy in force again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBundle {
    /// The digest of the test cases in the policy's directory.
    pub cases: Digest,
    /// The text of [`SIGNATURE_FILE`].
    pub signatures: String,
}

/// The content of [`SIGNATURE_FILE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureFile {
    v: u32,
    /// The digest of the signed files. It shows whether the signatures are for these files.
    bundle: Digest,
    signatures: Vec<BundleSignature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleSignature {
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    key: Digest,
    /// The signature in Base64.
    signature: String,
}

const VERSION: u32 = 1;

/// The reasons for which a bundle does not count as signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error(
        "the policy is not signed, and policy.trusted_keys requires a signature: run `leasehold policy sign --key FILE DIR`"
    )]
    Missing,
    #[error("{SIGNATURE_FILE} cannot be read: {0}")]
    Unreadable(String),
    #[error(
        "{SIGNATURE_FILE} is the signature of other files: sign these with `leasehold policy sign --key FILE DIR`"
    )]
    OtherFiles,
    #[error("{SIGNATURE_FILE} has no signature of a key in policy.trusted_keys; it names {0}")]
    UntrustedKey(String),
    #[error("the signature of the key {0} in {SIGNATURE_FILE} is wrong")]
    Wrong(Digest),
}

/// Returns the digest of the names and texts of some files, in the order of their names.
pub fn texts_digest(texts: &[PolicyText]) -> Digest {
    let mut sorted: Vec<&PolicyText> = texts.iter().collect();
    sorted.sort_by(|a, b| a.file.cmp(&b.file));
    let mut bytes = b"leasehold/policy-files/v1\n".to_vec();
    for part in sorted.iter().flat_map(|t| [t.file.as_bytes(), t.text.as_bytes()]) {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    Digest::of(&bytes)
}

/// Returns the digest of a bundle, from its policies and the digest of its cases.
fn bundle_digest(policies: &[PolicyText], cases: Digest) -> Digest {
    let mut bytes = DOMAIN.to_vec();
    bytes.extend_from_slice(&texts_digest(policies).0);
    bytes.extend_from_slice(&cases.0);
    Digest::of(&bytes)
}

/// Returns the bytes that a key signs.
fn signed_bytes(bundle: Digest) -> Vec<u8> {
    [DOMAIN, &bundle.0].concat()
}

impl BundleKey {
    /// Reads a public key: PEM of a SubjectPublicKeyInfo, Ed25519 or P-256.
    ///
    /// # Errors
    /// The text is not such a public key.
    pub fn from_pem(text: &str) -> Result<Self, &'static str> {
        const NOT_A_KEY: &str = "is not an Ed25519 or P-256 public key in PEM (BEGIN PUBLIC KEY)";
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).map_err(|_| NOT_A_KEY)?;
        let known =
            [(SignatureAlgorithm::Ed25519, ED25519_PREFIX, 32), (SignatureAlgorithm::Es256, P256_PREFIX, 65)];
        known
            .into_iter()
            .find_map(|(algorithm, prefix, length)| {
                let bytes = der.strip_prefix(prefix).filter(|bytes| bytes.len() == length)?.to_vec();
                Some(BundleKey { algorithm, bytes })
            })
            .ok_or(NOT_A_KEY)
    }

    /// Returns the SHA-256 of the key's SubjectPublicKeyInfo.
    pub fn id(&self) -> Digest {
        let prefix = match self.algorithm {
            SignatureAlgorithm::Ed25519 => ED25519_PREFIX,
            SignatureAlgorithm::Es256 => P256_PREFIX,
        };
        Digest::of(&[prefix, &self.bytes].concat())
    }

    fn verifies(&self, bundle: Digest, signature: &[u8]) -> bool {
        let message = signed_bytes(bundle);
        let verified = match self.algorithm {
            SignatureAlgorithm::Ed25519 => {
                UnparsedPublicKey::new(&ED25519, &self.bytes).verify(&message, signature)
            }
            SignatureAlgorithm::Es256 => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.bytes).verify(&message, signature)
            }
        };
        verified.is_ok()
    }
}

/// The texts of the two files of a new key that signs bundles.
pub struct BundleKeyPem {
    /// The private key, as PKCS#8 PEM.
    pub private: Zeroizing<String>,
    /// The public key, as PEM.
    pub public: String,
}

impl BundleSigner {
    /// Makes an Ed25519 key.
    ///
    /// # Errors
    /// The operating system gives no random bytes.
    pub fn generate() -> Result<BundleKeyPem, rcgen::Error> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        Ok(BundleKeyPem { private: Zeroizing::new(pair.serialize_pem()), public: pair.public_key_pem() })
    }

    /// Reads a private key: PKCS#8 PEM, Ed25519 or P-256.
    ///
    /// # Errors
    /// The text is not such a private key.
    pub fn from_pem(text: &str) -> Result<Self, &'static str> {
        const NOT_A_KEY: &str =
            "is not an unencrypted Ed25519 or P-256 private key in PKCS#8 PEM (BEGIN PRIVATE KEY)";
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| NOT_A_KEY)?;
        let der = der.secret_pkcs8_der();
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(BundleSigner { key: SigningPair::Ed25519(key) });
        }
        let random = SystemRandom::new();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &random).map_err(|_| NOT_A_KEY)?;
        Ok(BundleSigner { key: SigningPair::Es256(Box::new(key), random) })
    }

    /// Returns the public key of this private key.
    pub fn public(&self) -> BundleKey {
        match &self.key {
            SigningPair::Ed25519(key) => BundleKey {
                algorithm: SignatureAlgorithm::Ed25519,
                bytes: key.public_key().as_ref().to_vec(),
            },
            SigningPair::Es256(key, _) => {
                BundleKey { algorithm: SignatureAlgorithm::Es256, bytes: key.public_key().as_ref().to_vec() }
            }
        }
    }

    /// Signs a bundle and returns the text of [`SIGNATURE_FILE`]. If `before` is for the same files, its signatures of
    /// other keys are kept.
    ///
    /// # Errors
    /// The key could not sign, or there are too many signatures.
    pub fn sign(
        &self,
        policies: &[PolicyText],
        cases: &[PolicyText],
        before: Option<&str>,
    ) -> Result<String, String> {
        let bundle = bundle_digest(policies, texts_digest(cases));
        let message = signed_bytes(bundle);
        let signature = match &self.key {
            SigningPair::Ed25519(key) => key.sign(&message).as_ref().to_vec(),
            SigningPair::Es256(key, random) => {
                key.sign(random, &message).map_err(|_| "the key could not sign")?.as_ref().to_vec()
            }
        };
        let key = self.public().id();
        let kept = before.and_then(|text| read(text).ok()).filter(|file| file.bundle == bundle);
        let mut signatures = kept.map(|file| file.signatures).unwrap_or_default();
        signatures.retain(|other| other.key != key);
        signatures.push(BundleSignature { key, signature: STANDARD.encode(signature) });
        if signatures.len() > POLICY_SIGNATURES_MAX {
            return Err(format!(
                "more than {POLICY_SIGNATURES_MAX} keys have signed these files: delete {SIGNATURE_FILE} first"
            ));
        }
        let file = SignatureFile { v: VERSION, bundle, signatures };
        serde_json::to_string_pretty(&file).map(|text| text + "\n").map_err(|e| e.to_string())
    }
}

fn read(text: &str) -> Result<SignatureFile, SignatureError> {
    let file: SignatureFile = serde_json::from_str(text).map_err(|_| {
        SignatureError::Unreadable("it was not written by `leasehold policy sign`".to_owned())
    })?;
    if file.v != VERSION {
        let why = format!("it is of version {}, and this program knows {VERSION}", file.v);
        return Err(SignatureError::Unreadable(why));
    }
    if file.signatures.len() > POLICY_SIGNATURES_MAX {
        let why = format!("it has more than {POLICY_SIGNATURES_MAX} signatures");
        return Err(SignatureError::Unreadable(why));
    }
    Ok(file)
}

/// Checks whether the signatures are for these files. Does not check which keys made them. Returns
/// `None` if the signatures are for these files.
pub fn stale_signature(policies: &[PolicyText], signed: &SignedBundle) -> Option<SignatureError> {
    match read(&signed.signatures) {
        Ok(file) if file.bundle == bundle_digest(policies, signed.cases) => None,
        Ok(_) => Some(SignatureError::OtherFiles),
        Err(fault) => Some(fault),
    }
}

/// The keys of those who may sign policies. If there is no key, a signature is not required.
#[derive(Clone, Debug, Default)]
pub struct TrustedKeys(Vec<BundleKey>);

impl TrustedKeys {
    /// Reads public keys from files. Blocks.
    ///
    /// # Errors
    /// A file cannot be read, or has no such key.
    pub fn load(files: &[PathBuf]) -> Result<Self, String> {
        let load = |path: &PathBuf| {
            let with_path =
                |why: &str| format!("policy.trusted_keys: {} {why}", plain::path(Path::new(path)));
            let text = read_regular_text(path, PEM_BYTES_MAX).map_err(|why| with_path(&why))?;
            BundleKey::from_pem(&text).map_err(with_path)
        };
        files.iter().map(load).collect::<Result<_, _>>().map(TrustedKeys)
    }

    /// Checks that one of the keys signed a policy, if there are keys.
    ///
    /// # Errors
    /// The policy has no valid signature of one of the keys.
    pub fn check(
        &self,
        policies: &[PolicyText],
        signed: Option<&SignedBundle>,
    ) -> Result<(), SignatureError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let signed = signed.ok_or(SignatureError::Missing)?;
        let file = read(&signed.signatures)?;
        let bundle = bundle_digest(policies, signed.cases);
        if file.bundle != bundle {
            return Err(SignatureError::OtherFiles);
        }
        let mut named = Vec::new();
        for BundleSignature { key, signature } in &file.signatures {
            let Some(trusted) = self.0.iter().find(|trusted| trusted.id() == *key) else {
                named.push(key.to_string());
                continue;
            };
            let signature = STANDARD.decode(signature).unwrap_or_default();
            return match trusted.verifies(bundle, &signature) {
                true => Ok(()),
                false => Err(SignatureError::Wrong(*key)),
            };
        }
        Err(SignatureError::UntrustedKey(match named.is_empty() {
            true => "no key".to_owned(),
            false => named.join(", "),
        }))
    }
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
