//! Checking tokens away from the daemon: what a resource server embeds.
//!
//! Owns the follower of the fence feed, the public keys, and the one question that every use of a token comes down to: is
//! it good in itself, of the daemon's present life, and was none of its fences lowered since its lease took its stand?
//! A [`Verifier`] answers from memory; what it does not know for sure it refuses. An [`Introspector`] asks the daemon each
//! time. Never issues or renews anything, never keeps a token, and never sees the policy.
//!
//! One background task, the follower. It ends when the last clone of its [`Verifier`] goes, or at
//! [`Verifier::shutdown`]; whatever ends it, everything is refused from then on.
//!
//! | File | Noun |
//! |---|---|
//! | `verifier` | [`Verifier`]: tokens in, [`Access`] out |
//! | `access` | [`Access`]: a use that was allowed, to be looked at again while it lasts |
//! | `introspect` | [`Introspector`]: the same question, put to the daemon |
//! | `feed` | the follower: connects, listens, ticks, comes back |
//! | `subscription` | one subscription, over the wire |
//! | `session` | one subscription, message by message |
//! | `board` | what the follower has written and checks read |
//! | `fences` | the lowered names |
//! | `keys` | the public keys |

mod access;
mod board;
mod feed;
mod fences;
mod introspect;
mod keys;
mod session;
mod subscription;
mod verifier;

#[cfg(test)]
pub(crate) mod testing;

pub use access::Access;
pub use introspect::{Introspected, Introspector};
pub use verifier::{Settings, Verifier};
