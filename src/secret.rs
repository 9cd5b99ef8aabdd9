//! Secrets: bytes that no log, error or `Debug` shows and that are wiped when they are dropped.

#[cfg(feature = "server")]
mod prose;
mod redaction;

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

#[cfg(feature = "server")]
pub(crate) use prose::holds_secret;
#[cfg(feature = "cli")]
pub(crate) use redaction::has_secret_form;
pub(crate) use redaction::{looks_secret, redacted, withheld};

/// Text that must not be shown: a token, a ticket.
#[derive(Clone)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text over. It is wiped when the last copy is dropped.
    pub fn new(text: String) -> Self {
        SecretText(Zeroizing::new(text))
    }

    /// Returns the text itself. With each call, a secret leaves its wrapper.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// 256 random bits.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

/// The system could not give random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

impl Secret {
    /// Draws one from the random bytes of the system.
    ///
    /// # Errors
    ///
    /// The system gave none.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        SystemRandom::new().fill(bytes.as_mut()).map_err(|_| NoRandomness)?;
        Ok(Secret(bytes))
    }

    /// `None` unless there are 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Secret(Zeroizing::new(bytes.try_into().ok()?)))
    }

    /// Returns the bytes themselves. With each call, a secret leaves its wrapper.
    pub fn expose(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// base64url without padding, 43 characters.
    pub fn to_text(&self) -> SecretText {
        SecretText::new(URL_SAFE_NO_PAD.encode(self.0.as_ref()))
    }

    /// Reads what [`Secret::to_text`] wrote. `None` for any other text.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        Self::from_bytes(&bytes)
    }

    /// Returns its SHA-256, which may be stored and compared in its place.
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
    /// `None` unless there are 32 bytes.
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

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0u8; 32];
    let d = digest::digest(&digest::SHA256, bytes);
    for (o, b) in out.iter_mut().zip(d.as_ref()) {
        *o = *b;
    }
    out
}

/// 128 random bits, for identifiers.
pub(crate) fn random_u128() -> Result<u128, NoRandomness> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(u128::from_be_bytes(bytes))
}

/// Draws a number from 0 to 1, to spread what many clients would do at the same moment. 1 if the system has no randomness.
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
