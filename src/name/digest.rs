//! SHA-256 digests in their text form: `sha256:` and 64 hexadecimal digits.

use std::{fmt, str::FromStr};

use super::{NameError, text_form, write_hex};
use crate::secret::sha256;

/// A SHA-256 digest of public bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest with only zeros. It stands for an absent digest.
    pub const ZERO: Digest = Digest([0; 32]);

    /// Hashes the bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(sha256(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        write_hex(&self.0, f)
    }
}

impl FromStr for Digest {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bytes = text.strip_prefix("sha256:").and_then(read_hex::<32>);
        bytes
            .map(Digest)
            .ok_or_else(|| NameError::new(text, "a digest", "it must be `sha256:` and 64 hexadecimal digits"))
    }
}
text_form!(Digest);

/// Reads lower-case hexadecimal digits of exactly `N` bytes.
pub(super) fn read_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut out = [0u8; N];
    for (i, o) in out.iter_mut().enumerate() {
        *o = u8::from_str_radix(text.get(i * 2..i * 2 + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back() {
        let d = Digest::of(b"x");
        assert_eq!(d.to_string().parse::<Digest>().unwrap(), d);
        assert!("sha256:00".parse::<Digest>().is_err());
        assert!(d.to_string().to_uppercase().parse::<Digest>().is_err());
    }
}
