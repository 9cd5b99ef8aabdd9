//! The check of a token: form, key, signature, issuer, audience, time, presenter.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::{claims::Claims, keys::KeySet};
use crate::{
    clock::Wall,
    limits::TOKEN_BYTES_MAX,
    name::{LeaseId, SpiffeId},
    reason::{Reason, Refusal},
};

/// How far in the future `nbf` may be, because the clocks of two machines differ.
const NOT_BEFORE_LEEWAY_SECONDS: u64 = 5;

/// Why a token is refused. The text never contains a part of the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The token is not a JWS in the profile of this module. The text says which part is wrong.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// The key set has no key with the `kid` of the token's header.
    #[error("the token is signed with an unknown key")]
    KeyUnknown,
    /// The token was changed, or another key signed it.
    #[error("the token's signature is wrong")]
    Signature,
    /// The token's `iss` is not the expected issuer.
    #[error("the token is of another issuer")]
    Issuer,
    /// The token's `aud`, which is given here, is not the expected audience.
    #[error("the token is for another audience: `{0}`")]
    Audience(SpiffeId),
    /// The token's `exp`, which is given here, has passed.
    #[error("the token expired at {0}")]
    Expired(Wall),
    /// The token's `nbf`, which is given here, is more than 5 seconds in the future.
    #[error("the token is not valid before {0}")]
    NotYetValid(Wall),
    /// The token is bound to a certificate, and the server does not see who presents it.
    #[error("the token was presented without the holder's SVID")]
    NoPresenter,
    /// Someone other than the holder presented the token.
    #[error("the token belongs to `{subject}`, but `{presenter}` presented it")]
    Presenter {
        /// The token's `sub`: the holder.
        subject: SpiffeId,
        /// The SPIFFE ID of the SVID that was presented with the token.
        presenter: SpiffeId,
    },
    /// The holder presented the token with a certificate other than the one in `cnf`.
    #[error(
        "the token is bound to another certificate of its holder: renew the lease with the present certificate"
    )]
    Certificate,
    /// The request is signed with the S3 key of another lease.
    #[error(
        "the token is of another lease than the access key: send the session token that came with the key"
    )]
    OtherLease,
}

impl TokenError {
    /// Returns the error for a text that is longer than any token.
    pub fn too_long() -> Self {
        TokenError::Malformed("it is longer than any token")
    }

    /// Returns the code of the refusal.
    pub fn reason(&self) -> Reason {
        match self {
            TokenError::Malformed(_) => Reason::TokenMalformed,
            TokenError::KeyUnknown => Reason::TokenKeyUnknown,
            TokenError::Signature => Reason::TokenSignature,
            TokenError::Issuer => Reason::TokenIssuer,
            TokenError::Audience(_) => Reason::TokenAudience,
            TokenError::Expired(_) => Reason::TokenExpired,
            TokenError::NotYetValid(_) => Reason::TokenNotYetValid,
            TokenError::NoPresenter | TokenError::Presenter { .. } | TokenError::OtherLease => {
                Reason::TokenPresenter
            }
            TokenError::Certificate => Reason::TokenCertificate,
        }
    }
}

/// The refusal has the reason and the text of the error.
impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        Refusal::new(error.reason(), error.to_string())
    }
}

/// The presenter of a token, if the checking server knows it.
#[derive(Clone, Copy, Debug)]
pub enum Presenter<'a> {
    /// A peer with an SVID over mutual TLS, and the SHA-256 of its certificate if it is known.
    Svid {
        /// The SPIFFE ID of the peer.
        id: &'a SpiffeId,
        /// The SHA-256 of the DER of the peer's certificate (RFC 8705 section 3.1). If it is `None`, a bound token is refused.
        x5t_s256: Option<&'a [u8; 32]>,
    },
    /// The presenter is unknown, because the catalog says that the audience does not see it. A bound token is refused.
    Unseen,
    /// A client without an SVID. Only this crate can make it.
    #[doc(hidden)]
    KeyHolder(KeyHolder),
}

/// A client without an SVID whose request names an S3 key, and must be signed with that key. The token must be of the same lease
/// as the key.
///
/// For such a client, the `sub` and the `cnf` of a token are not checked. Only the gateway of this package makes a `KeyHolder`,
/// because the gateway also checks the signature of the request. A resource server has no key for that check, so it cannot make
/// a `KeyHolder`:
///
/// ```compile_fail
/// let lease: leasehold::name::LeaseId = "l-1".parse().unwrap();
/// let holder = leasehold::token::KeyHolder::new(lease);
/// ```
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct KeyHolder {
    lease: LeaseId,
}

impl KeyHolder {
    /// `lease` is the lease that the access key names.
    #[cfg(feature = "server")]
    pub(crate) fn new(lease: LeaseId) -> Self {
        KeyHolder { lease }
    }

    /// The lease that the access key names.
    #[cfg(feature = "server")]
    pub(crate) fn lease(self) -> LeaseId {
        self.lease
    }
}

impl Presenter<'_> {
    /// Checks that this presenter may use verified claims.
    ///
    /// # Errors
    ///
    /// Fails if the presenter is not the `sub`, or does not show the certificate of the `cnf`.
    pub fn may_present(self, claims: &Claims) -> Result<(), TokenError> {
        match (self, &claims.cnf) {
            (Presenter::KeyHolder(holder), _) if holder.lease == claims.lh.lease => Ok(()),
            (Presenter::KeyHolder(_), _) => Err(TokenError::OtherLease),
            (Presenter::Unseen, None) => Ok(()),
            (Presenter::Unseen, Some(_)) => Err(TokenError::NoPresenter),
            (Presenter::Svid { id, .. }, _) if *id != claims.sub => {
                Err(TokenError::Presenter { subject: claims.sub.clone(), presenter: id.clone() })
            }
            (Presenter::Svid { .. }, None) => Ok(()),
            (Presenter::Svid { x5t_s256, .. }, Some(cnf)) => x5t_s256
                .is_some_and(|x| URL_SAFE_NO_PAD.encode(x) == cnf.x5t_s256)
                .then_some(())
                .ok_or(TokenError::Certificate),
        }
    }
}

/// The values that a token must have.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The issuer, which is compared with `iss` byte by byte.
    pub issuer: &'a str,
    /// The audience, which must be the `aud`.
    pub audience: &'a SpiffeId,
    /// The presenter, which must be the `sub` and must have the certificate of the `cnf`.
    pub presenter: Presenter<'a>,
}

impl Expected<'_> {
    /// Checks what a correct signature does not prove: that the token is for this audience, now, from this presenter.
    ///
    /// # Errors
    ///
    /// Returns the first fault, in this order: issuer, audience, time, presenter.
    pub fn accept(&self, claims: &Claims, now: Wall) -> Result<(), TokenError> {
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        if claims.aud != *self.audience {
            return Err(TokenError::Audience(claims.aud.clone()));
        }
        if now >= Wall::from_seconds(claims.exp) {
            return Err(TokenError::Expired(Wall::from_seconds(claims.exp)));
        }
        if Wall::from_seconds(claims.nbf.saturating_sub(NOT_BEFORE_LEEWAY_SECONDS)) > now {
            return Err(TokenError::NotYetValid(Wall::from_seconds(claims.nbf)));
        }
        self.presenter.may_present(claims)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// Reads the key id of an unverified token, so that keys can be fetched before the check. `None` if the token is malformed.
pub fn peek_key_id(token: &str) -> Option<String> {
    let (header, _) = token.split_once('.')?;
    read_header(header).ok().map(|h| h.kid)
}

fn read_header(part: &str) -> Result<Header, TokenError> {
    let bytes =
        URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("its header is not base64url"))?;
    // Unknown members are errors: `crit`, `jwk`, `jku`, `x5c` and all other members that could select another key or rule.
    let header: Header = serde_json::from_slice(&bytes)
        .map_err(|_| TokenError::Malformed("its header has other members than alg, typ and kid"))?;
    if header.alg != "ES256" {
        return Err(TokenError::Malformed("its algorithm is not ES256"));
    }
    if header.typ != "at+jwt" {
        return Err(TokenError::Malformed("its type is not at+jwt"));
    }
    Ok(header)
}

/// Checks the token itself, and not whether its fences were lowered. A `Verifier` checks both.
///
/// # Errors
///
/// Returns the first fault, in this order: form, key, signature, claims, issuer, audience, time, presenter.
pub fn check(token: &str, keys: &KeySet, expected: Expected<'_>, now: Wall) -> Result<Claims, TokenError> {
    let (claims, _) = verify(token, keys)?;
    expected.accept(&claims, now)?;
    Ok(claims)
}

/// Checks form, key, signature and claims. Returns the claims, and the id of the key.
pub(super) fn verify(token: &str, keys: &KeySet) -> Result<(Claims, String), TokenError> {
    let parts = TokenParts::split(token)?;
    parts.check_signature(keys)?;
    Ok((parts.claims()?, parts.kid))
}

/// The parts of a token with a correct form. Its signature may be wrong.
pub(super) struct TokenParts<'a> {
    pub(super) kid: String,
    signed: &'a str,
    body: &'a str,
    signature: Vec<u8>,
}

/// The lease in the claims of a token.
#[cfg(feature = "server")]
#[derive(Deserialize)]
struct NamedLease {
    lh: NamedLeaseClaims,
}

#[cfg(feature = "server")]
#[derive(Deserialize)]
struct NamedLeaseClaims {
    lease: LeaseId,
}

impl<'a> TokenParts<'a> {
    pub(super) fn split(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::too_long());
        }
        let (signed, signature) =
            token.rsplit_once('.').ok_or(TokenError::Malformed("it does not have three parts"))?;
        let (header, body) =
            signed.split_once('.').ok_or(TokenError::Malformed("it does not have three parts"))?;
        if body.contains('.') {
            return Err(TokenError::Malformed("it has more than three parts"));
        }
        let header = read_header(header)?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| TokenError::Malformed("its signature is not base64url"))?;
        Ok(TokenParts { kid: header.kid, signed, body, signature })
    }

    pub(super) fn check_signature(&self, keys: &KeySet) -> Result<(), TokenError> {
        match keys.verifies(&self.kid, self.signed.as_bytes(), &self.signature) {
            None => Err(TokenError::KeyUnknown),
            Some(false) => Err(TokenError::Signature),
            Some(true) => Ok(()),
        }
    }

    /// Returns the lease that the token names, without reading the other claims. Anyone can write such a name.
    #[cfg(feature = "server")]
    pub(super) fn named_lease(&self) -> Option<LeaseId> {
        let claims: NamedLease = serde_json::from_slice(&self.body().ok()?).ok()?;
        Some(claims.lh.lease)
    }

    fn body(&self) -> Result<Vec<u8>, TokenError> {
        URL_SAFE_NO_PAD.decode(self.body).map_err(|_| TokenError::Malformed("its claims are not base64url"))
    }

    /// Reads the claims. Check the signature first: anyone can write claims, and can make them slow to read.
    pub(super) fn claims(&self) -> Result<Claims, TokenError> {
        let body = self.body()?;
        let claims: Claims = serde_json::from_slice(&body)
            .map_err(|_| TokenError::Malformed("its claims are not those of a lease"))?;
        if !claims.has_all_fences() {
            return Err(TokenError::Malformed("the number of its fence tags does not fit its other claims"));
        }
        Ok(claims)
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
pub(super) mod tests;
