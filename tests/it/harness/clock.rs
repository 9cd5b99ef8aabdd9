//! A clock that stands still until a test moves it.

use std::time::Duration;

use futures_util::future::BoxFuture;
use leasehold::clock::{BootTime, Clock, LeaseTime, Now, Wall};
use tokio::sync::watch;

use super::soon;

/// Where every test begins: 2026-11-20T04:13:20Z.
pub const NOW: Wall = Wall(1_795_148_000_000);

/// All three clocks, moved by hand. Whoever sleeps wakes when the lease timeline has come to its moment.
pub struct TestClock(watch::Sender<Now>);

impl TestClock {
    pub fn new() -> Self {
        TestClock(watch::Sender::new(Now { wall: NOW, lease: LeaseTime(NOW.0), boot: BootTime(3_600_000) }))
    }

    /// Lets time pass on all three, at once.
    pub fn advance(&self, span: Duration) {
        self.0.send_modify(|now| {
            *now = Now { wall: now.wall.plus(span), lease: now.lease.plus(span), boot: now.boot.plus(span) };
        });
    }

    /// Sets the wall clock alone, as an administrator does. Forward takes the lease timeline along, back does not.
    pub fn set_wall(&self, wall: Wall) {
        self.0.send_modify(|now| {
            now.wall = wall;
            now.lease = now.lease.max(LeaseTime(wall.0));
        });
    }

    /// Lets time pass in steps of a second.
    pub async fn pass(&self, span: Duration) {
        const STEP: Duration = Duration::from_secs(1);
        let mut left = span;
        while !left.is_zero() {
            self.advance(left.min(STEP));
            left = left.saturating_sub(STEP);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets time pass in steps of half a second, as a daemon that is awake sees it, until the answer is yes or `most` has
    /// passed. Answers how much did.
    pub async fn pass_until(&self, most: Duration, mut ask: impl AsyncFnMut() -> bool) -> Option<Duration> {
        const STEP: Duration = Duration::from_millis(500);
        let began = self.now().boot;
        soon("time to pass", async {
            loop {
                // The background work runs between two steps: it sleeps on this clock.
                for _ in 0..3 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if ask().await {
                        return Some(self.now().boot.since(began));
                    }
                }
                if self.now().boot.since(began) >= most {
                    return None;
                }
                self.advance(STEP);
            }
        })
        .await
    }
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        *self.0.borrow()
    }

    fn sleep_until(&self, deadline: LeaseTime) -> BoxFuture<'static, ()> {
        let mut now = self.0.subscribe();
        Box::pin(async move {
            if now.wait_for(|now| now.lease >= deadline).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
