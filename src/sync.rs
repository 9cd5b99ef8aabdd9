//! Synchronization primitives of fences and leases, from the standard library or from a model checker, and functions that let
//! work go on in other threads.
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
    // If a thread cannot be started, its closure is dropped. So the caller keeps a second handle to the work, and runs it itself
    // if no thread starts.
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

/// Lets another thread take the task that the caller woke last.
///
/// Each worker of Tokio has a private place for the task that it woke last. Other workers cannot take that task, so it waits
/// until the caller's task pauses. Here a new task takes the place, and the woken one goes to the queue of the worker, from which
/// a worker that has nothing else to do takes it.
#[cfg(feature = "server")]
pub(crate) fn release_woken_task() {
    if let Ok(runtime) = tokio::runtime::Handle::try_current()
        && runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread
    {
        drop(runtime.spawn(std::future::ready(())));
    }
}

#[cfg(all(test, feature = "server", not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::Duration,
    };

    use tokio::sync::Notify;

    use super::*;

    // The feed is woken by a lowering, and the task that lowered works on without a pause.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_released_task_runs_while_the_caller_works_on() {
        let caller = tokio::spawn(async {
            let (send, heard) = mpsc::channel();
            let woken = Arc::new(Notify::new());
            let feed = woken.clone();
            tokio::spawn(async move {
                feed.notified().await;
                send.send(()).unwrap();
            });
            // After this pause, the other task waits for its notification.
            tokio::time::sleep(Duration::from_millis(20)).await;
            woken.notify_one();
            release_woken_task();
            heard.recv_timeout(Duration::from_secs(20))
        });
        assert_eq!(caller.await.unwrap(), Ok(()));
    }

    #[test]
    fn without_a_runtime_there_is_nothing_to_release() {
        release_woken_task();
    }
}
