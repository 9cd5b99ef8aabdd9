//! Secrets: bytes that no log, error or `Debug` shows and that are wiped when they are dropped.

#[cfg(feature = "server")]
mod prose;
mod redaction;
#[cfg(feature = "server")]
mod signing;

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

#[cfg(feature = "server")]
pub(crate) use prose::{as_read, holds_secret};
#[cfg(feature = "cli")]
pub(crate) use redaction::has_secret_form;
pub(crate) use redaction::{looks_secret, redacted, withheld};
#[cfg(feature = "server")]
pub(crate) use signing::{DateKey, S3Secret, hex};

/// Text that must not be shown: a token, a ticket.
#[derive(Clone)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes ownership of the text. Each copy is wiped when it is dropped.
    pub fn new(text: String) -> Self {
        SecretText(Zeroizing::new(text))
    }

    /// Returns the text itself. Call it only if the secret itself is needed: the returned text is not protected.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A secret of 256 random bits.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

impl Secret {
    /// Makes a secret from random bytes of the operating system.
    ///
    /// # Errors
    ///
    /// The operating system gave no random bytes.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        SystemRandom::new().fill(bytes.as_mut()).map_err(|_| NoRandomness)?;
        Ok(Secret(bytes))
    }

    /// Copies the bytes. Returns `None` if there are not exactly 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Secret(Zeroizing::new(bytes.try_into().ok()?)))
    }

    /// Returns the bytes themselves. Call it only if the secret itself is needed: the returned bytes are not protected.
    pub fn expose(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// Returns the secret as base64url without padding, 43 characters.
    pub fn to_text(&self) -> SecretText {
        SecretText::new(URL_SAFE_NO_PAD.encode(self.0.as_ref()))
    }

    /// Reads what [`Secret::to_text`] wrote. `None` for any other text.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        Self::from_bytes(&bytes)
    }

    /// Returns the SHA-256 of the secret. It may be stored and compared instead of the secret.
    pub fn digest(&self) -> SecretDigest {
        SecretDigest(sha256(self.0.as_ref()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// SHA-256 of a secret. Compared in constant time.
#[derive(Clone, Copy)]
pub struct SecretDigest(pub [u8; 32]);

impl SecretDigest {
    /// Copies the bytes. Returns `None` if there are not exactly 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(SecretDigest(bytes.try_into().ok()?))
    }
}

impl PartialEq for SecretDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}
impl Eq for SecretDigest {}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[digest]")
    }
}

/// Returns the SHA-256 of the bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0u8; 32];
    let d = digest::digest(&digest::SHA256, bytes);
    for (o, b) in out.iter_mut().zip(d.as_ref()) {
        *o = *b;
    }
    out
}

/// Returns 128 random bits for an identifier.
pub(crate) fn random_u128() -> Result<u128, NoRandomness> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(u128::from_be_bytes(bytes))
}

/// Returns a random number from 0 to 1. It spreads the requests of many clients over time. Returns 1 if the operating
/// system gives no random bytes.
pub(crate) fn random_fraction() -> f64 {
    let mut bytes = [0u8; 4];
    let drawn = SystemRandom::new().fill(&mut bytes);
    drawn.map_or(1.0, |()| f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_byte_is_in_a_debug() {
        let s = Secret::random().unwrap();
        let text = s.to_text();
        let shown = format!("{s:?} {text:?} {:?}", s.digest());
        assert!(!shown.contains(text.expose()));
        assert_eq!(shown, "[redacted] [redacted] [digest]");
    }

    #[test]
    fn text_reads_back_and_its_digest_is_equal() {
        let s = Secret::random().unwrap();
        assert_eq!(Secret::from_text(s.to_text().expose()).unwrap().digest(), s.digest());
        assert!(Secret::from_text("short").is_none());
    }
}
