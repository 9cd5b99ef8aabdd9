//! Where threads meet: the primitives of fences and leases, the standard library's or those of a model checker.
//!
//! loom and shuttle come as cargo features, for `tests/loom` and `tests/model` alone: what they give works inside a model
//! only, so nothing else runs in a build with either.

#[cfg(feature = "loom")]
pub(crate) use loom::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};
#[cfg(all(feature = "shuttle", not(feature = "loom")))]
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub(crate) use std::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};

/// Whether this build is for a model checker, which wants everything small.
pub(crate) const MODEL: bool = cfg!(any(feature = "loom", feature = "shuttle"));
