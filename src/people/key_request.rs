//! A public key, with the proof that the sender has its private key.

use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData};

use super::fault::LoginFault;
use crate::{limits::KEY_REQUEST_BYTES_MAX, name::Digest};

/// A certificate signing request (PKCS #10) whose signature was verified. Only its key counts; the names in it are ignored.
#[derive(Debug)]
pub struct KeyRequest(PublicKey);

impl KeyRequest {
    /// Reads a request in PEM.
    ///
    /// # Errors
    ///
    /// Fails if the request is malformed, is too long, is not signed by the key in it, or is for a key that is not P-256.
    pub fn from_pem(pem: &str) -> Result<Self, LoginFault> {
        if pem.len() > KEY_REQUEST_BYTES_MAX {
            return Err(LoginFault::KeyRequest);
        }
        let request = CertificateSigningRequestParams::from_pem(pem).map_err(|_| LoginFault::KeyRequest)?;
        let key = request.public_key;
        if *key.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Err(LoginFault::KeyRequest);
        }
        Ok(KeyRequest(key))
    }

    pub(super) fn key(&self) -> &PublicKey {
        &self.0
    }

    /// Returns the nonce that an ID token for this key must have.
    pub fn nonce(&self) -> String {
        nonce_of(&self.0)
    }
}

/// Returns the nonce of a login for a key. It is the digest of the key, so that the ID token is useless with another key.
pub(super) fn nonce_of(key: &impl PublicKeyData) -> String {
    Digest::of(&key.subject_public_key_info()).to_string()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};

    use super::*;

    fn request(key: &KeyPair) -> String {
        CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
    }

    // A person gets an SVID only for a key that they have.
    #[test]
    fn a_key_request_is_signed_by_its_own_key() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key);
        assert_eq!(KeyRequest::from_pem(&good).unwrap().nonce(), nonce_of(&key));
        // Change one byte of the key in the request, so that the signature is not by this key.
        let pem = rustls::pki_types::pem::PemObject::from_pem_slice(good.as_bytes());
        let der: rustls::pki_types::CertificateSigningRequestDer<'_> = pem.unwrap();
        let mut forged = der.to_vec();
        let spki = key.subject_public_key_info();
        let at = forged.windows(spki.len()).position(|w| w == spki).unwrap() + spki.len() - 1;
        forged[at] ^= 1;
        let forged = crate::identity::testing::pem("CERTIFICATE REQUEST", &forged);
        assert_eq!(KeyRequest::from_pem(&forged).unwrap_err(), LoginFault::KeyRequest);
        let other = request(&KeyPair::generate_for(&PKCS_ED25519).unwrap());
        for bad in ["", "no pem", &other, &good.repeat(40)] {
            assert_eq!(KeyRequest::from_pem(bad).unwrap_err(), LoginFault::KeyRequest, "{bad}");
        }
    }
}
