//! Reads the answers of Vault. See <https://developer.hashicorp.com/vault/api-docs>.

use http::StatusCode;
use serde::Deserialize;

use crate::{plain, secret::SecretText};

/// The most characters of an error of Vault that are shown.
const ERROR_SHOWN: usize = 300;

/// The secrets of a Vault that was just initialized with one share.
pub(super) struct VaultSecrets {
    pub(super) unseal_key: SecretText,
    pub(super) root_token: SecretText,
}

/// A token that Vault created.
pub(super) struct CreatedToken {
    pub(super) token: SecretText,
    pub(super) seconds: u64,
}

#[derive(Deserialize)]
struct InitAnswer {
    keys_base64: Vec<String>,
    root_token: String,
}

#[derive(Deserialize)]
struct SealAnswer {
    sealed: bool,
}

#[derive(Deserialize)]
struct TokenAnswer {
    auth: TokenFields,
}

#[derive(Deserialize)]
struct TokenFields {
    client_token: String,
    lease_duration: u64,
}

#[derive(Default, Deserialize)]
struct Errors {
    errors: Vec<String>,
}

/// Reads the answer to `sys/init`.
pub(super) fn read_init(body: &[u8]) -> Result<VaultSecrets, String> {
    let InitAnswer { keys_base64, root_token } = read("sys/init", body)?;
    let root_token = SecretText::new(root_token);
    match <[String; 1]>::try_from(keys_base64) {
        Ok([key]) => Ok(VaultSecrets { unseal_key: SecretText::new(key), root_token }),
        Err(keys) => Err(format!("Vault was asked for one key and sent {} keys", keys.len())),
    }
}

/// Reads the answer to `sys/unseal`. Fails if Vault is still sealed.
pub(super) fn read_unseal(body: &[u8]) -> Result<(), String> {
    let SealAnswer { sealed } = read("sys/unseal", body)?;
    if sealed { Err("Vault is still sealed".to_owned()) } else { Ok(()) }
}

/// Reads the answer to `auth/token/create`.
pub(super) fn read_token(body: &[u8]) -> Result<CreatedToken, String> {
    let TokenAnswer { auth } = read("auth/token/create", body)?;
    Ok(CreatedToken { token: SecretText::new(auth.client_token), seconds: auth.lease_duration })
}

/// Describes an answer that is an error.
pub(super) fn describe_error(status: StatusCode, body: &[u8]) -> String {
    let Errors { errors } = serde_json::from_slice(body).unwrap_or_default();
    let shown: String = errors.join("; ").chars().take(ERROR_SHOWN).collect();
    match shown.is_empty() {
        true => format!("Vault answered with {status}"),
        false => format!("Vault answered with {status}: {}", plain::line(&shown)),
    }
}

/// Reads an answer. The text of an error does not show the answer, because answers contain secrets.
fn read<'a, T: Deserialize<'a>>(path: &str, body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|e| {
        format!("Vault's answer to {path} cannot be read: line {}, column {}", e.line(), e.column())
    })
}
