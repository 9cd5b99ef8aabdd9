//! Tokens: JWS compact (RFC 7515) with ES256, in the profile of RFC 9068 and RFC 9396.
//!
//! Owns the keys of one epoch of the daemon, the claims, minting and checking. Never reads a clock, and keeps of a token only its digest and claims. A
//! token contains the tags of the fences of its lease, so that a verifier needs only the token and the feed of lowerings to
//! decide. This module checks only the token itself.
//!
//! | File | Noun |
//! |---|---|
//! | `keys` | [`SigningKey`] and [`KeySet`] |
//! | `claims` | [`Claims`]: the claims of a token |
//! | `tag` | [`FenceTag`]: the name of a fence, opaque to verifiers |
//! | `mint` `check` | [`mint()`] and [`check()`] a token |
//! | `verified` | [`VerifiedTokens`]: tokens whose signature was checked before |

mod check;
mod claims;
mod keys;
mod mint;
mod tag;
mod verified;

pub use check::{Expected, Presenter, TokenError, check, peek_key_id};
pub use claims::{AuthorizationDetail, Claims, Confirmation, DETAIL_TYPE, LeaseClaims};
pub use keys::{KeyError, KeyId, KeySet, SigningKey};
pub use mint::{MintError, UnsignedToken, mint};
pub use tag::{FenceKey, FenceTag, FenceTags};
pub use verified::VerifiedTokens;
