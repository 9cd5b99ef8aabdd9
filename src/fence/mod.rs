//! Fences: names that can be lowered, and the stands of leases behind them. Every revocation is built on fences.
//!
//! There is one counter, [`Seq`]. A fence is a name and the Seq of its last lowering. A request for a lease first takes
//! a [`Stand`]: the present Seq, and the fences of everything on which the lease depends. A lease is live while none of
//! its fences was lowered after the lease's stand was taken. A revocation is one store, regardless of the number of
//! leases behind the fence. A fence is never raised again, and a new request takes a new stand.
//!
//! This module has the counter, the fences by name, the revision and the feed of lowerings. It uses no clock, is not
//! async and does no I/O: times are arguments. Checks take no lock.
//!
//! | File | Contains |
//! |---|---|
//! | `seq` | [`Seq`]: the count of lowerings, which a verifier uses too |
//! | `stand` | [`Stand`]: the fences of a set of names, and the Seq at one moment |
//! | `registry` | [`Registry`]: the mutex that orders stands and lowerings |
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
