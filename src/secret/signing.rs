//! The keys of AWS Signature Version 4.

use std::fmt;

use ring::hmac;
use zeroize::Zeroizing;

use super::{NoRandomness, Secret, SecretText};

/// The secret of an S3 access key. The daemon keeps it in memory, and shows it once.
pub struct S3Secret(SecretText);

impl S3Secret {
    /// Makes one from 256 random bits.
    ///
    /// # Errors
    ///
    /// The system gave no random bytes.
    pub fn random() -> Result<Self, NoRandomness> {
        Secret::random().map(|secret| S3Secret(secret.to_text()))
    }

    /// Takes the secret of another key.
    #[cfg(test)]
    pub fn of_test(text: &str) -> Self {
        S3Secret(SecretText::new(text.to_owned()))
    }

    /// Returns the text for the client.
    pub fn to_text(&self) -> SecretText {
        self.0.clone()
    }

    /// Returns the key for the signatures of one day, `YYYYMMDD`.
    pub fn date_key(&self, date: &str) -> DateKey {
        let secret = Zeroizing::new(format!("AWS4{}", self.0.expose()));
        DateKey(Secret(Zeroizing::new(hmac_sha256(secret.as_bytes(), date.as_bytes()))))
    }
}

impl fmt::Debug for S3Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The key for the signatures of one access key on one day. The secret cannot be computed from it.
#[derive(Clone, Debug)]
pub struct DateKey(Secret);

impl DateKey {
    /// Makes the key from the bytes that [`DateKey::expose`] returned in another process.
    pub fn new(key: Secret) -> Self {
        DateKey(key)
    }

    /// Returns the bytes themselves. Call it only if the secret itself is needed: the returned bytes are not protected.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// Signs a text for S3 in one region. Returns the signature in lower-case hexadecimal.
    pub fn sign(&self, region: &str, text: &str) -> String {
        let of_region = Zeroizing::new(hmac_sha256(self.expose(), region.as_bytes()));
        let of_service = Zeroizing::new(hmac_sha256(of_region.as_ref(), b"s3"));
        let key = Zeroizing::new(hmac_sha256(of_service.as_ref(), b"aws4_request"));
        hex(&hmac_sha256(key.as_ref(), text.as_bytes()))
    }
}

/// Writes bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hmac_sha256(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut out = [0u8; 32];
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    for (o, b) in out.iter_mut().zip(tag.as_ref()) {
        *o = *b;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of AWS: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    #[test]
    fn a_signature_is_that_of_the_published_example() {
        let secret = S3Secret(SecretText::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()));
        let text = "AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n\
                    7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972";
        let signature = secret.date_key("20130524").sign("us-east-1", text);
        assert_eq!(signature, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
        assert_ne!(secret.date_key("20130525").sign("us-east-1", text), signature);
        assert_ne!(secret.date_key("20130524").sign("eu-west-1", text), signature);
    }

    #[test]
    fn no_part_of_a_key_is_in_its_debug() {
        let secret = S3Secret::random().unwrap();
        let key = secret.date_key("20130524");
        assert_eq!(format!("{secret:?} {key:?}"), "[redacted] DateKey([redacted])");
        assert_eq!(secret.to_text().expose().len(), 43);
    }
}
