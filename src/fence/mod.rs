//! Fences: names that can be lowered, and the stands of leases behind them. Every revocation is built on fences.
//!
//! There is one counter, [`Seq`]. A fence is a name and the Seq of its last lowering. A request for a lease first takes a
//! [`Stand`]: the present Seq, and the fences of all that the lease depends on. A lease is live while none of its fences
//! was lowered after it took its stand. Revoking is one store, regardless of the number of leases behind it; a fence is
//! never raised again, and a new request takes a new stand.
//!
//! Owns the counter, the fences by name, the revision and the feed of lowerings. No clock, no await, no I/O: times come in
//! as arguments. Checks take no lock.
//!
//! | File | Noun |
//! |---|---|
//! | `seq` | [`Seq`]: the count of lowerings, the only part that a verifier has too |
//! | `stand` | [`Stand`]: a place behind a set of names |
//! | `registry` | [`Registry`]: the one mutex that orders standing and lowering |
//! | `feed` | [`Subscription`]: every lowering, in order |

#[cfg(feature = "server")]
mod feed;
#[cfg(any(feature = "loom", feature = "shuttle"))]
mod mutants;
#[cfg(feature = "server")]
mod registry;
mod seq;
#[cfg(feature = "server")]
mod stand;

pub use seq::Seq;
#[cfg(feature = "server")]
pub use {
    feed::{Concern, Lowering, Subscription},
    registry::{Lowered, Registry, Revision},
    stand::Stand,
};
