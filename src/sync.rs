//! Synchronization primitives of fences and leases, from the standard library or from a model checker.
//!
//! loom and shuttle are cargo features only for `tests/loom` and `tests/model`. Their primitives work only inside a
//! model, so other code does not run in such a build. Builds without the feature `server` do not have these primitives,
//! because a verifier has no fences and no leases.

#[cfg(feature = "loom")]
use loom::sync as here;
#[cfg(all(feature = "shuttle", not(feature = "loom")))]
use shuttle::sync as here;
#[cfg(all(feature = "server", not(any(feature = "loom", feature = "shuttle"))))]
use std::sync as here;

#[cfg(feature = "server")]
pub(crate) use here::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize},
};

/// Whether this build is for a model checker. Sizes are reduced in these builds.
#[cfg(feature = "server")]
pub(crate) const IS_MODEL_CHECK: bool = cfg!(any(feature = "loom", feature = "shuttle"));

/// Runs blocking work on a new thread. If no thread can be started, runs it on the caller's thread.
///
/// Tokio's `spawn_blocking` would panic if no thread can be started, and a limit on processes must not crash the wrapper. Returns
/// `None` if the work panicked.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    // If a thread cannot be started, its closure is dropped. So the new thread and the caller share the work.
    let theirs = std::sync::Arc::new(std::sync::Mutex::new(Some(move || {
        // The caller may have stopped waiting.
        let _ = done.send(work());
    })));
    let run = move || {
        let taken = theirs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(work) = taken {
            work();
        }
    };
    if std::thread::Builder::new().name("blocking".to_owned()).spawn(run.clone()).is_err() {
        run();
    }
    result.await.ok()
}
