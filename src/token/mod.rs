//! Tokens: JWS compact (RFC 7515) with ES256, in the profile of RFC 9068 and RFC 9396.
//!
//! This module owns the keys of one epoch of the daemon, the claims, and the making and checking of tokens. It never reads a
//! clock. It keeps only the digest and the claims of a token. A token contains the tags of its lease's fences. So a verifier
//! needs only the token and the feed of lowerings to decide. This module checks only the token itself.
//!
//! | File | Contains |
//! |---|---|
//! | `keys` | [`SigningKey`] and [`KeySet`] |
//! | `claims` | [`Claims`]: the claims of a token |
//! | `tag` | [`FenceTag`]: the name of a fence, opaque to verifiers |
//! | `mint` `check` | [`mint()`] makes a token, and [`check()`] checks it |
//! | `verified` | [`VerifiedTokens`]: tokens that were already checked or recognized |

mod check;
mod claims;
mod keys;
mod mint;
mod tag;
mod verified;

#[cfg(feature = "server")]
pub(crate) use check::KeyHolder;
pub use check::{Expected, Presenter, TokenError, check, peek_key_id};
pub use claims::{AuthorizationDetail, Claims, Confirmation, DETAIL_TYPE, LeaseClaims};
pub use keys::{KeyError, KeyId, KeySet, SigningKey};
pub use mint::{MintError, UnsignedToken, mint};
pub use tag::{FenceKey, FenceTag, FenceTags};
pub use verified::VerifiedTokens;
