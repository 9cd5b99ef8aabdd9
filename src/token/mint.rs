//! Makes a token.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{claims::Claims, keys::SigningKey};
use crate::{limits::TOKEN_BYTES_MAX, name::Digest, secret::SecretText};

/// Why a token cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The token would be longer than [`TOKEN_BYTES_MAX`]. The number is its length in bytes.
    #[error("the token would have {0} bytes, and the headers of common servers allow {TOKEN_BYTES_MAX}")]
    TooLarge(usize),
    /// The claims could not be written, or ring refused to sign.
    #[error("the token could not be signed")]
    Sign,
}

/// A token that is ready to be signed. The digest of its claims goes into the ledger before it is signed.
#[derive(Debug)]
pub struct UnsignedToken {
    signing_input: String,
    /// The SHA-256 of the claims' JSON.
    pub claims_digest: Digest,
}

impl UnsignedToken {
    /// Writes the header and the claims.
    ///
    /// # Errors
    ///
    /// Fails with [`MintError::TooLarge`] if the token would not fit into a header.
    pub fn prepare(key: &SigningKey, claims: &Claims) -> Result<Self, MintError> {
        let header = format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"{}"}}"#, key.id());
        let body = serde_json::to_vec(claims).map_err(|_| MintError::Sign)?;
        let mut signing_input = URL_SAFE_NO_PAD.encode(header);
        signing_input.push('.');
        URL_SAFE_NO_PAD.encode_string(&body, &mut signing_input);
        let whole = signing_input.len().saturating_add(1 + 86);
        if whole > TOKEN_BYTES_MAX {
            return Err(MintError::TooLarge(whole));
        }
        Ok(UnsignedToken { signing_input, claims_digest: Digest::of(&body) })
    }

    /// Signs the token. Only this function creates a credential.
    ///
    /// # Errors
    ///
    /// Fails with [`MintError::Sign`] if ring refuses to sign.
    pub fn sign(self, key: &SigningKey) -> Result<SecretText, MintError> {
        let signature = key.sign(self.signing_input.as_bytes()).map_err(|_| MintError::Sign)?;
        let mut token = self.signing_input;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&signature, &mut token);
        Ok(SecretText::new(token))
    }
}

/// Prepares and signs a token.
///
/// # Errors
///
/// Fails if [`UnsignedToken::prepare`] or [`UnsignedToken::sign`] fails.
pub fn mint(key: &SigningKey, claims: &Claims) -> Result<SecretText, MintError> {
    UnsignedToken::prepare(key, claims)?.sign(key)
}
