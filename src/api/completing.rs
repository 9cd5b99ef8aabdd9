//! Work that completes even if no one waits for it any more.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::runtime::Handle;

/// The work panicked. The panic was logged by the panic hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Panicked;

/// Work that runs in the task that awaits it. If that task drops it before its end, a separate task completes it.
///
/// So a client that disconnects does not leave half a request behind, and a request whose client waits is answered without a
/// second task.
pub(super) struct Completing<A: Send + 'static>(Option<BoxFuture<'static, Result<A, Panicked>>>);

impl<A: Send + 'static> Completing<A> {
    pub(super) fn new(work: impl Future<Output = A> + Send + 'static) -> Self {
        Completing(Some(AssertUnwindSafe(work).catch_unwind().map(|done| done.map_err(|_| Panicked)).boxed()))
    }
}

impl<A: Send + 'static> Future for Completing<A> {
    type Output = Result<A, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let done = ready!(work.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(done)
    }
}

impl<A: Send + 'static> Drop for Completing<A> {
    fn drop(&mut self) {
        let Some(work) = self.0.take() else { return };
        // Without a runtime the process ends, and no work can complete.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_that_is_dropped_is_completed() {
        let (release, released) = oneshot::channel::<()>();
        let (done, was_done) = oneshot::channel();
        let mut work = Completing::new(async move {
            released.await.unwrap();
            done.send(()).unwrap();
        });
        assert!((&mut work).now_or_never().is_none(), "it waits");
        drop(work);
        release.send(()).unwrap();
        was_done.await.unwrap();
    }

    #[tokio::test]
    async fn work_that_was_never_polled_is_completed() {
        let (done, was_done) = oneshot::channel();
        drop(Completing::new(async move { done.send(()).unwrap() }));
        was_done.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let work = Completing::<()>::new(async { panic!("planted") });
        assert_eq!(work.await, Err(Panicked));
        assert_eq!(Completing::new(async { 7 }).await, Ok(7));
    }
}
