//! The signature of a notice, as in [Standard Webhooks]: HMAC-SHA256 over id, time and body.
//!
//! [Standard Webhooks]: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use zeroize::Zeroizing;

use crate::{
    limits::{WEBHOOK_FILE_BYTES_MAX, WEBHOOK_SECRET_BYTES, WEBHOOK_SECRETS_MAX},
    written::read_regular_text,
};

/// The keys that sign, in the order of their file. There are several keys while receivers change from one key to the next.
pub(super) struct SigningSecrets(Vec<hmac::Key>);

impl SigningSecrets {
    /// Reads a file with one secret on each line: `whsec_` and base64 of 24 to 64 bytes.
    ///
    /// # Errors
    /// Returns what is wrong with the file. The text contains no part of a secret.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let text = Zeroizing::new(read_regular_text(path, WEBHOOK_FILE_BYTES_MAX)?);
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() || lines.len() > WEBHOOK_SECRETS_MAX {
            let count = lines.len();
            return Err(format!("has {count} secrets: write 1 to {WEBHOOK_SECRETS_MAX}, one a line"));
        }
        let key = |(number, line): (usize, &str)| {
            let encoded = line.strip_prefix("whsec_").unwrap_or(line);
            let bytes = STANDARD.decode(encoded).map(Zeroizing::new).ok();
            bytes
                .filter(|bytes| WEBHOOK_SECRET_BYTES.contains(&bytes.len()))
                .map(|bytes| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
                .ok_or_else(|| {
                    let (least, most) = (WEBHOOK_SECRET_BYTES.start(), WEBHOOK_SECRET_BYTES.end());
                    format!("line {number} is no secret: write whsec_ and base64 of {least} to {most} random bytes")
                })
        };
        (1..).zip(lines).map(key).collect::<Result<_, _>>().map(SigningSecrets)
    }

    /// Returns the value of the header `webhook-signature`: one signature for each secret.
    pub(super) fn sign(&self, id: &str, unix_seconds: u64, body: &[u8]) -> String {
        let signatures = self.0.iter().map(|key| {
            let mut context = hmac::Context::with_key(key);
            context.update(format!("{id}.{unix_seconds}.").as_bytes());
            context.update(body);
            format!("v1,{}", STANDARD.encode(context.sign()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // This is the example of the reference implementation of Standard Webhooks.
    #[test]
    fn the_signature_is_that_of_the_reference() {
        let secrets = SigningSecrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signature =
            secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_sign_while_receivers_change() {
        let (old, new) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let both = SigningSecrets::parse(&format!("{new}\n{old}\n")).unwrap().sign("id", 1, b"x");
        let one = |text: &str| SigningSecrets::parse(text).unwrap().sign("id", 1, b"x");
        assert_eq!(both, format!("{} {}", one(new), one(old)));
    }

    #[test]
    fn a_bad_secret_is_refused_and_not_shown() {
        let many = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n".repeat(WEBHOOK_SECRETS_MAX + 1);
        for bad in ["", "whsec_", "whsec_c2hvcnQ=", "hunter2hunter2hunter2hunter2hunter2!", many.as_str()] {
            let why = SigningSecrets::parse(bad).err().unwrap();
            assert!(!why.contains("hunter2") && why.contains("write"), "{bad}: {why}");
        }
    }
}
