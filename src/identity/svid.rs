//! Our own X.509-SVID with its private key.

use std::{fmt, path::Path, sync::Arc};

use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem, pem::PemObject},
    sign::CertifiedKey,
};
use zeroize::Zeroize;

use super::{
    bundle::TrustBundles,
    leaf::{Leaf, Side},
    load::{self, LoadError, LoadFault},
    path,
    signing::{SigningLife, check_signature_algorithm},
    svid_error::SvidError,
};
use crate::{clock::Wall, limits, name::SpiffeId};

/// The SVID that this process presents. The leaf satisfies the rules for leaves, and the private key belongs to the
/// leaf. The validity is checked at each use.
///
/// The bytes of the key file are wiped from memory once ring has parsed the key. Ring keeps the parsed key private.
pub struct X509Svid {
    leaf: Leaf,
    certified: Arc<CertifiedKey>,
}

impl X509Svid {
    /// Loads the chain, leaf first, from a PEM file, and the private key from another PEM file.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or [`from_pem`](Self::from_pem) refuses its content.
    pub fn load(cert_file: &Path, key_file: &Path) -> Result<Self, LoadError> {
        let cert = load::read(cert_file)?;
        let (key_file, key) = load::read_key(key_file)?;
        Self::parse(&cert_file.display().to_string(), &cert, &key_file, &key)
    }

    /// Reads the chain, leaf first, and its private key from PEM in memory.
    ///
    /// # Errors
    ///
    /// The leaf breaks a rule for leaves, an intermediate breaks a rule for signers, or the key is encrypted, of an
    /// unsupported kind, or belongs to another certificate.
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self, LoadError> {
        Self::parse("certificate chain", cert, "private key", key)
    }

    /// Reads the chain, leaf first, from a concatenation of DER, and its private key from PKCS#8 DER.
    ///
    /// # Errors
    ///
    /// The errors of [`from_pem`](Self::from_pem).
    pub fn from_der(chain: &[u8], key: &[u8]) -> Result<Self, LoadError> {
        const CHAIN: &str = "certificate chain";
        let chain = load::concatenated(CHAIN, chain, limits::CHAIN_MAX)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
        Self::of(CHAIN, chain, "private key", key)
    }

    fn parse(cert_file: &str, cert: &[u8], key_file: &str, key: &[u8]) -> Result<Self, LoadError> {
        let chain = load::certificates(cert_file, cert, limits::CHAIN_MAX)?;
        let is_encrypted = [&b"BEGIN ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"]
            .iter()
            .any(|mark| key.windows(mark.len()).any(|part| part == *mark));
        if is_encrypted {
            return Err(LoadFault::KeyEncrypted.in_file(key_file));
        }
        let der = PrivateKeyDer::from_pem_slice(key).map_err(|e| {
            if matches!(e, pem::Error::NoItemsFound) { LoadFault::NoKey } else { LoadFault::NotPem }
                .in_file(key_file)
        })?;
        Self::of(cert_file, chain, key_file, der)
    }

    fn of(
        cert_file: &str,
        chain: Vec<CertificateDer<'static>>,
        key_file: &str,
        mut der: PrivateKeyDer<'static>,
    ) -> Result<Self, LoadError> {
        let key = any_supported_type(&der);
        der.zeroize();
        let first = chain.first().ok_or_else(|| LoadFault::NoCertificate.in_file(cert_file))?;
        let broken = |number, why| LoadFault::Certificate { number, why }.in_file(cert_file);
        let leaf = Leaf::parse(first).map_err(|why| broken(1, why))?;
        for (above, number) in chain.iter().skip(1).zip(2..) {
            SigningLife::parse(above).map_err(|why| broken(number, why))?;
            check_signature_algorithm(above).map_err(|why| broken(number, why))?;
        }
        let certified = CertifiedKey::new(chain, key.map_err(|_| LoadFault::KeyUnusable.in_file(key_file))?);
        certified.keys_match().map_err(|_| LoadFault::KeyOfAnother.in_file(key_file))?;
        Ok(X509Svid { leaf, certified: Arc::new(certified) })
    }

    /// Returns the SPIFFE ID: the only URI in the leaf.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.leaf.spiffe_id
    }

    /// Returns the end of the validity, exclusive.
    pub fn not_after(&self) -> Wall {
        self.leaf.not_after
    }

    /// Returns the facts of the leaf.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Checks the SVID as a peer would in a handshake: its validity, its life and, if its trust domain has a bundle
    /// here, its path to a root. Without that bundle, the validity of the certificates above the leaf is checked.
    ///
    /// # Errors
    ///
    /// The rule that the SVID breaks.
    pub fn verify(&self, bundles: &TrustBundles, now: Wall) -> Result<(), SvidError> {
        if bundles.roots(&self.leaf.spiffe_id.trust_domain()).is_some() {
            path::verify(&self.certified.cert, Side::Client, now, bundles)?;
            return path::verify(&self.certified.cert, Side::Server, now, bundles).map(drop);
        }
        self.leaf.check_time(now)?;
        self.leaf.check_life(bundles.svid_life_max())?;
        self.certified.cert.iter().skip(1).try_for_each(|above| SigningLife::parse(above)?.check_time(now))
    }

    /// Whether the SVID is valid now.
    pub fn is_current(&self, now: Wall) -> bool {
        self.leaf.check_time(now).is_ok()
    }

    /// Whether two SVIDs have the same chain. A chain can change while the leaf stays the same.
    pub(super) fn presents_as(&self, other: &X509Svid) -> bool {
        self.certified.cert == other.certified.cert
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

/// Writes the SPIFFE ID and the expiry of the SVID.
impl fmt::Display for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, until {}", self.leaf.spiffe_id, self.leaf.not_after)
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X509Svid({self}, key [redacted])")
    }
}

#[cfg(test)]
#[path = "svid_tests.rs"]
mod tests;
