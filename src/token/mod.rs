//! Tokens: JWS compact (RFC 7515) with ES256, in the profile of RFC 9068 and RFC 9396.
//!
//! Owns the keys of one life of the daemon, the claims, minting and checking. Never reads a clock, never keeps a token. A
//! token carries the tags of the fences of its lease, so that it and a feed of lowerings are enough to decide whether it is
//! good now; only what the token itself says is checked here.
//!
//! | File | Noun |
//! |---|---|
//! | `keys` | [`SigningKey`] and [`KeySet`] |
//! | `claims` | [`Claims`]: what a token says |
//! | `tag` | [`FenceTag`]: a fence's name, opaque to verifiers |
//! | `mint` `check` | both directions |

mod check;
mod claims;
mod keys;
mod mint;
mod tag;

pub use check::{Expected, Presenter, TokenError, check, peek_key_id};
pub use claims::{AuthorizationDetail, Claims, Confirmation, DETAIL_TYPE, LeaseClaims};
pub use keys::{KeyError, KeyId, KeySet, SigningKey};
pub use mint::{MintError, Minted, mint};
pub use tag::{FenceKey, FenceTag, FenceTags};
