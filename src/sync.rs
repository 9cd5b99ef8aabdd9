//! Where threads meet: the primitives of fences and leases, the standard library's or those of a model checker.
//!
//! loom and shuttle come as cargo features, for `tests/loom` and `tests/model` alone: what they give works inside a model
//! only, so nothing else runs in a build with either.

#[cfg(feature = "loom")]
use loom::sync as here;
#[cfg(all(feature = "shuttle", not(feature = "loom")))]
use shuttle::sync as here;
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
use std::sync as here;

pub(crate) use here::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64},
};
// Of the leases alone, which a verifier has none of.
#[cfg(any(feature = "server", feature = "loom", feature = "shuttle"))]
pub(crate) use here::{RwLock, atomic::AtomicUsize};

/// Whether this build is for a model checker, which wants everything small.
#[cfg(any(feature = "server", feature = "loom", feature = "shuttle"))]
pub(crate) const MODEL: bool = cfg!(any(feature = "loom", feature = "shuttle"));
