//! Tokens that were already checked or recognized.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

#[cfg(feature = "server")]
use super::check::TokenParts;
use super::{
    check::{TokenError, verify},
    claims::Claims,
    keys::KeySet,
};
#[cfg(feature = "server")]
use crate::name::LeaseId;
use crate::{limits, secret::sha256};

/// How many locks the cache has, so that two tokens seldom wait for each other.
const SHARDS: usize = 16;

/// The claims of tokens with a correct form and signature, by the SHA-256 of the token.
///
/// A client presents its token with each request, and the signature is most of the cost of a check. Everything that can change
/// between two requests is checked each time: issuer, audience, time, presenter, fences, and whether the key set still has the
/// key. A refused token is not kept, so that only the holder of a signing key can fill the cache.
pub struct VerifiedTokens {
    shards: [Mutex<Shard>; SHARDS],
    /// The number of tokens in one half of a shard.
    half: usize,
}

type TokenDigest = [u8; 32];

/// The tokens that were used last, in two halves. If the present half is full, it becomes the earlier half, and the tokens of
/// the old earlier half are dropped.
#[derive(Default)]
struct Shard {
    present: HashMap<TokenDigest, Verified>,
    earlier: HashMap<TokenDigest, Verified>,
}

#[derive(Clone)]
struct Verified {
    kid: Arc<str>,
    claims: Arc<Claims>,
}

impl Default for VerifiedTokens {
    /// Makes a cache for [`limits::VERIFIED_TOKENS_MAX`] tokens.
    fn default() -> Self {
        Self::with_room(limits::VERIFIED_TOKENS_MAX)
    }
}

impl VerifiedTokens {
    fn with_room(tokens: usize) -> Self {
        VerifiedTokens {
            shards: std::array::from_fn(|_| Mutex::default()),
            half: tokens.div_ceil(SHARDS).div_ceil(2),
        }
    }

    /// Returns the claims of a token that has a correct form and a correct signature by one of the keys.
    ///
    /// # Errors
    ///
    /// Fails if the form, the key, the signature or the claims are wrong.
    pub fn claims(&self, token: &str, keys: &KeySet) -> Result<Arc<Claims>, TokenError> {
        self.claims_or(token, keys, |_| verify(token, keys))
    }

    /// Returns the claims of a token. Does not check the signature if `is_newest_of` says that the lease which the token names has
    /// the SHA-256 of this token as that of its newest token.
    ///
    /// Anyone can write the name of a lease into a token, so `is_newest_of` must trust only the digest.
    ///
    /// # Errors
    ///
    /// Fails if the form, the key, the signature or the claims are wrong.
    #[cfg(feature = "server")]
    pub(crate) fn claims_recognizing(
        &self,
        token: &str,
        keys: &KeySet,
        is_newest_of: impl FnOnce(LeaseId, &TokenDigest) -> bool,
    ) -> Result<Arc<Claims>, TokenError> {
        self.claims_or(token, keys, |digest| {
            let parts = TokenParts::split(token)?;
            let is_recognized = keys.contains(&parts.kid)
                && parts.named_lease().is_some_and(|lease| is_newest_of(lease, digest));
            if !is_recognized {
                parts.check_signature(keys)?;
            }
            Ok((parts.claims()?, parts.kid))
        })
    }

    /// Returns the claims of a token from the cache. If the cache does not have them, `check` reads them, and they are kept.
    fn claims_or(
        &self,
        token: &str,
        keys: &KeySet,
        check: impl FnOnce(&TokenDigest) -> Result<(Claims, String), TokenError>,
    ) -> Result<Arc<Claims>, TokenError> {
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Err(TokenError::too_long());
        }
        let digest = sha256(token.as_bytes());
        if let Some(known) = self.find(&digest) {
            return if keys.contains(&known.kid) { Ok(known.claims) } else { Err(TokenError::KeyUnknown) };
        }
        let (claims, kid) = check(&digest)?;
        let claims = Arc::new(claims);
        self.keep(digest, Verified { kid: kid.into(), claims: claims.clone() });
        Ok(claims)
    }

    fn find(&self, digest: &TokenDigest) -> Option<Verified> {
        let mut shard = self.shard(digest)?.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shard.present.get(digest) {
            return Some(known.clone());
        }
        let known = shard.earlier.remove(digest)?;
        shard.keep(*digest, known.clone(), self.half);
        Some(known)
    }

    fn keep(&self, digest: TokenDigest, verified: Verified) {
        if let Some(shard) = self.shard(&digest) {
            shard.lock().unwrap_or_else(PoisonError::into_inner).keep(digest, verified, self.half);
        }
    }

    fn shard(&self, digest: &TokenDigest) -> Option<&Mutex<Shard>> {
        let [first, ..] = digest;
        self.shards.get(usize::from(*first) % SHARDS)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let count = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap();
            shard.present.len() + shard.earlier.len()
        };
        self.shards.iter().map(count).sum()
    }
}

impl Shard {
    fn keep(&mut self, digest: TokenDigest, verified: Verified, half: usize) {
        if self.present.len() >= half {
            self.earlier = std::mem::take(&mut self.present);
        }
        self.present.insert(digest, verified);
    }
}

/// Shows no field, because the cache contains claims.
impl fmt::Debug for VerifiedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifiedTokens")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{SigningKey, check::tests::minted};

    // A token that was checked before gets the answer of a full check, and shares its claims.
    #[test]
    fn a_token_seen_before_has_the_same_claims() {
        let key = SigningKey::generate(7, 1).unwrap();
        let tokens = VerifiedTokens::default();
        let token = minted(&key, 1);
        let first = tokens.claims(&token, key.public()).unwrap();
        let second = tokens.claims(&token, key.public()).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(*first, verify(&token, key.public()).unwrap().0);
    }

    // A cached token is refused when its key is withdrawn, and a changed token is checked separately.
    #[test]
    fn a_cached_token_is_refused_without_its_key() {
        let (key, other) = (SigningKey::generate(7, 1).unwrap(), SigningKey::generate(7, 2).unwrap());
        let tokens = VerifiedTokens::default();
        let token = minted(&key, 1);
        tokens.claims(&token, key.public()).unwrap();
        assert_eq!(tokens.claims(&token, other.public()), Err(TokenError::KeyUnknown));
        let changed =
            minted(&key, 2).rsplit_once('.').unwrap().0.to_owned() + "." + token.rsplit_once('.').unwrap().1;
        assert_eq!(tokens.claims(&changed, key.public()), Err(TokenError::Signature));
        assert_eq!(tokens.len(), 1, "a refused token is not kept");
    }

    // The daemon does not check the signature of a token that it recognizes, and checks every other text: with another signature,
    // or with other claims. The key of a recognized token must still be there.
    #[cfg(feature = "server")]
    #[test]
    fn only_the_exact_token_is_recognized() {
        let (key, other) = (SigningKey::generate(7, 1).unwrap(), SigningKey::generate(7, 2).unwrap());
        let (token, second) = (minted(&key, 1), minted(&key, 2));
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (signed_2, signature_2) = second.rsplit_once('.').unwrap();
        let claims = |known: &str, token: &str, keys: &KeySet| {
            let known = sha256(known.as_bytes());
            let newest = |lease, digest: &TokenDigest| (lease, *digest) == (LeaseId(1), known);
            VerifiedTokens::default().claims_recognizing(token, keys, newest).map(|_| ())
        };
        assert_eq!(claims(&token, &token, key.public()), Ok(()));
        assert_eq!(claims(&second, &token, key.public()), Ok(()), "an earlier token is checked");
        assert_eq!(claims(&token, &token, other.public()), Err(TokenError::KeyUnknown));
        let forged = format!("{signed}.{signature_2}");
        assert_eq!(claims(&token, &forged, key.public()), Err(TokenError::Signature));
        let changed = format!("{signed_2}.{signature}");
        assert_eq!(claims(&token, &changed, key.public()), Err(TokenError::Signature));
        assert_eq!(claims(&forged, &forged, key.public()), Ok(()), "the signature is not looked at");
    }

    // The size of the cache is limited, and a token in use stays in it.
    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let key = SigningKey::generate(7, 1).unwrap();
        let tokens = VerifiedTokens::with_room(64);
        let used = minted(&key, 0);
        let first = tokens.claims(&used, key.public()).unwrap();
        for n in 1..300 {
            tokens.claims(&minted(&key, n), key.public()).unwrap();
            assert!(Arc::ptr_eq(&first, &tokens.claims(&used, key.public()).unwrap()));
            assert!(tokens.len() <= 64 + SHARDS, "{}", tokens.len());
        }
    }
}
