//! A clock that stands still until a test moves it.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use leasehold::clock::{BootTime, Clock, LeaseTime, Now, Wall};
use tokio::sync::watch;

use super::soon;

/// Where every test begins: 2026-11-20T04:13:20Z.
pub const NOW: Wall = Wall(1_795_148_000_000);

/// Something that is to happen.
type Act = Box<dyn FnOnce() + Send>;

/// All three clocks, moved by hand. Whoever sleeps wakes when the lease timeline has come to its moment.
pub struct TestClock {
    now: watch::Sender<Now>,
    /// What is to happen at one of the next readings, and how many come before it.
    at_reading: Mutex<Option<(usize, Act)>>,
    readings: AtomicUsize,
}

impl TestClock {
    pub fn new() -> Self {
        let now = Now { wall: NOW, lease: LeaseTime(NOW.0), boot: BootTime(3_600_000) };
        TestClock {
            now: watch::Sender::new(now),
            at_reading: Mutex::new(None),
            readings: AtomicUsize::new(0),
        }
    }

    /// Makes something happen in the middle of what runs next: when the clock is read once more than `before` times.
    pub fn at_reading(&self, before: usize, act: impl FnOnce() + Send + 'static) {
        *self.at_reading.lock().unwrap() = Some((before, Box::new(act)));
    }

    /// How often it was read so far.
    pub fn readings(&self) -> usize {
        self.readings.load(Ordering::SeqCst)
    }

    /// Calls that off. Whether it was still to come.
    pub fn call_off(&self) -> bool {
        self.at_reading.lock().unwrap().take().is_some()
    }

    /// Lets time pass on all three, at once.
    pub fn advance(&self, span: Duration) {
        self.now.send_modify(|now| {
            *now = Now { wall: now.wall.plus(span), lease: now.lease.plus(span), boot: now.boot.plus(span) };
        });
    }

    /// Sets the wall clock alone, as an administrator does. Forward takes the lease timeline along, back does not.
    pub fn set_wall(&self, wall: Wall) {
        self.now.send_modify(|now| {
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
        self.readings.fetch_add(1, Ordering::SeqCst);
        let due = {
            let mut planned = self.at_reading.lock().unwrap();
            match &mut *planned {
                Some((0, _)) => planned.take(),
                Some((before, _)) => {
                    *before -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some((_, act)) = due {
            act();
        }
        *self.now.borrow()
    }

    fn sleep_until(&self, deadline: LeaseTime) -> BoxFuture<'static, ()> {
        let mut now = self.now.subscribe();
        Box::pin(async move {
            if now.wait_for(|now| now.lease >= deadline).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
