//! The signing key of one epoch of the daemon, and the public keys for a verifier.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    agreement::{self, ECDH_P256, EphemeralPrivateKey, agree_ephemeral},
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
    },
};
use serde::{Deserialize, Serialize};

use super::tag::FenceKey;
use crate::{name::SpiffeId, secret::sha256};

/// The id of a key, `EPOCH.N.THUMBPRINT`: the epoch of the daemon, the number of the key in it, and the key's RFC 7638
/// thumbprint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    /// Returns the `kid` in the header of a token.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the epoch of the daemon that made the key.
    pub fn epoch(&self) -> Option<u64> {
        self.0.split('.').next()?.parse().ok()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a key cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system could not make the key pair or the secret of the tags.
    #[error("the system could not make an ES256 key")]
    Generate,
    /// The system refused to sign.
    #[error("the token could not be signed")]
    Sign,
    /// The text is not JSON, or does not have a member that every key must have.
    #[error("the key set is not a JWK Set: {0}")]
    Json(#[from] serde_json::Error),
    /// A key has another type, use or algorithm, or is not a point on P-256.
    #[error("key `{0}` is not an ES256 signing key with coordinates of 32 bytes")]
    NotEs256(String),
    /// Two keys have the same id, so a token would not say which of them signed it.
    #[error("two keys have the id `{0}`")]
    Twice(String),
}

/// An ES256 key pair and the secret of the fence tags. Both are made when the daemon starts, and are never written to disk.
///
/// Tokens and feeds do not outlive one epoch of the daemon, so the tag secret is not kept longer.
pub struct SigningKey {
    id: KeyId,
    pair: EcdsaKeyPair,
    random: SystemRandom,
    tag_secret: hmac::Key,
    public: KeySet,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Makes the `n`th key of an epoch.
    ///
    /// # Errors
    ///
    /// Fails with [`KeyError::Generate`] if ring cannot make the keys.
    pub fn generate(epoch: u64, n: u32) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map_err(|_| KeyError::Generate)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random)
            .map_err(|_| KeyError::Generate)?;
        let (x, y) = coordinates(pair.public_key().as_ref()).ok_or(KeyError::Generate)?;
        // RFC 7638 section 3: the required members, in lexicographic order, without white space.
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let thumbprint = URL_SAFE_NO_PAD.encode(sha256(canonical.as_bytes()));
        let tag_secret = hmac::Key::generate(hmac::HMAC_SHA256, &random).map_err(|_| KeyError::Generate)?;
        let id = KeyId(format!("{epoch}.{n}.{thumbprint}"));
        let public = KeySet { keys: BTreeMap::from([(id.0.clone(), pair.public_key().as_ref().to_vec())]) };
        Ok(SigningKey { id, pair, random, tag_secret, public })
    }

    /// Derives the key of the fence tags of one audience.
    pub fn fence_key(&self, audience: &SpiffeId) -> FenceKey {
        FenceKey::derive(&self.tag_secret, audience)
    }

    /// Returns the `kid` of the tokens that this key signs.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Returns the public key, as a set with one key.
    pub fn public(&self) -> &KeySet {
        &self.public
    }

    /// Signs as in RFC 7518 section 3.4. The signature is R and S, with 32 bytes each.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.pair.sign(&self.random, message).map(|s| s.as_ref().to_vec()).map_err(|_| KeyError::Sign)
    }
}

/// The public keys that may sign tokens, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    /// The keys as uncompressed points: 0x04, X, Y.
    keys: BTreeMap<String, Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Serialize, Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
    kid: String,
    #[serde(rename = "use")]
    usage: String,
    alg: String,
}

impl KeySet {
    /// Adds the keys of another set.
    pub fn extend(&mut self, other: KeySet) {
        self.keys.extend(other.keys);
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the set has no key, so that no token can be checked.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the set has the key with this `kid`.
    pub fn contains(&self, kid: &str) -> bool {
        self.keys.contains_key(kid)
    }

    /// Whether the key with this id made a signature. `None` if there is no such key.
    pub(super) fn verifies(&self, kid: &str, message: &[u8], signature: &[u8]) -> Option<bool> {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.keys.get(kid)?);
        Some(key.verify(message, signature).is_ok())
    }

    /// Writes the set as a JWK Set (RFC 7517).
    pub fn to_jwks(&self) -> String {
        let keys = self
            .keys
            .iter()
            .filter_map(|(kid, point)| {
                let (x, y) = coordinates(point)?;
                Some(Jwk {
                    kty: "EC".into(),
                    crv: "P-256".into(),
                    x,
                    y,
                    kid: kid.clone(),
                    usage: "sig".into(),
                    alg: "ES256".into(),
                })
            })
            .collect();
        serde_json::to_string(&Jwks { keys }).unwrap_or_else(|_| r#"{"keys":[]}"#.into())
    }

    /// Reads a JWK Set (RFC 7517).
    ///
    /// # Errors
    ///
    /// Fails if the text is not a JWK Set, if a key is not an ES256 signing key on P-256, or if two keys have the same id.
    pub fn from_jwks(text: &str) -> Result<Self, KeyError> {
        let jwks: Jwks = serde_json::from_str(text)?;
        let mut set = KeySet::default();
        for k in jwks.keys {
            let point = (k.kty == "EC" && k.crv == "P-256" && k.usage == "sig" && k.alg == "ES256")
                .then(|| point(&k.x, &k.y))
                .flatten()
                .ok_or_else(|| KeyError::NotEs256(k.kid.clone()))?;
            if set.keys.insert(k.kid.clone(), point).is_some() {
                return Err(KeyError::Twice(k.kid));
            }
        }
        Ok(set)
    }
}

fn coordinates(point: &[u8]) -> Option<(String, String)> {
    let [4, xy @ ..] = point else { return None };
    if xy.len() != 64 {
        return None;
    }
    let (x, y) = xy.split_at(32);
    Some((URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y)))
}

fn point(x: &str, y: &str) -> Option<Vec<u8>> {
    let (x, y) = (URL_SAFE_NO_PAD.decode(x).ok()?, URL_SAFE_NO_PAD.decode(y).ok()?);
    let point = (x.len() == 32 && y.len() == 32).then(|| [&[4], x.as_slice(), y.as_slice()].concat())?;
    is_on_curve(&point).then_some(point)
}

/// Whether a point is on P-256. In ring, only key agreement reports this. A failed verification does not say why it failed.
fn is_on_curve(point: &[u8]) -> bool {
    let Ok(ours) = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()) else { return false };
    agree_ephemeral(ours, &agreement::UnparsedPublicKey::new(&ECDH_P256, point), |_| ()).is_ok()
}
