//! A clock that stands still until a test moves it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use leasehold::clock::{BootTime, Clock, LeaseTime, Now, Wall};
use tokio::{sync::watch, task};

use super::soon;

/// The time at which every test begins: 2026-11-20T04:13:20Z.
pub const NOW: Wall = Wall(1_795_148_000_000);

/// An action that will run.
type Act = Box<dyn FnOnce() + Send>;

/// All three clocks, moved by the test. A task that sleeps wakes when the lease timeline has reached its time.
pub struct TestClock {
    now: watch::Sender<Now>,
    sleepers: Arc<Mutex<Sleepers>>,
    /// The action at one of the next readings, and how many readings come before it.
    at_reading: Mutex<Option<(usize, Act)>>,
    readings: AtomicUsize,
}

impl TestClock {
    pub fn new() -> Self {
        let now = Now { wall: NOW, lease: LeaseTime(NOW.0), boot: BootTime(3_600_000) };
        TestClock {
            now: watch::Sender::new(now),
            sleepers: Arc::default(),
            at_reading: Mutex::new(None),
            readings: AtomicUsize::new(0),
        }
    }

    /// Runs an action in the middle of the next work: when the clock has been read `before` times, at the next reading. The
    /// ledger's thread reads the clock at any time, so its readings do not count.
    pub fn at_reading(&self, before: usize, act: impl FnOnce() + Send + 'static) {
        *self.at_reading.lock().unwrap() = Some((before, Box::new(act)));
    }

    /// How often the clock was read so far.
    pub fn readings(&self) -> usize {
        self.readings.load(Ordering::SeqCst)
    }

    /// Cancels the action. Returns whether it had not run yet.
    pub fn call_off(&self) -> bool {
        self.at_reading.lock().unwrap().take().is_some()
    }

    /// Advances all three clocks in one step.
    pub fn advance(&self, span: Duration) {
        self.now.send_modify(|now| {
            *now = Now { wall: now.wall.plus(span), lease: now.lease.plus(span), boot: now.boot.plus(span) };
        });
    }

    /// Sets only the wall clock, as an administrator does. A step forward also advances the lease timeline, a step back
    /// does not.
    pub fn set_wall(&self, wall: Wall) {
        self.now.send_modify(|now| {
            now.wall = wall;
            now.lease = now.lease.max(LeaseTime(wall.0));
        });
    }

    /// Advances the clocks in steps of a second.
    pub async fn pass(&self, span: Duration) {
        const STEP: Duration = Duration::from_secs(1);
        let mut left = span;
        while !left.is_zero() {
            self.advance(left.min(STEP));
            left = left.saturating_sub(STEP);
            self.settled().await;
        }
    }

    /// Advances the clocks in steps of half a second, as a daemon that is awake sees it, until the condition is true.
    /// Returns how much time passed. After `most` the clock stands still, and the condition must become true by then.
    pub async fn pass_until(
        &self,
        what: &str,
        most: Duration,
        mut ask: impl AsyncFnMut() -> bool,
    ) -> Duration {
        const STEP: Duration = Duration::from_millis(500);
        let began = self.now().boot;
        soon(what, async {
            loop {
                for _ in 0..3 {
                    self.settled().await;
                    if ask().await {
                        return self.now().boot.since(began);
                    }
                }
                if self.now().boot.since(began) < most {
                    self.advance(STEP);
                }
            }
        })
        .await
    }

    /// The same, but no faster than real time: for requests over connections whose deadlines are on this clock.
    pub async fn pass_slowly_until(&self, what: &str, mut ask: impl AsyncFnMut() -> bool) {
        const STEP: Duration = Duration::from_secs(1);
        soon(what, async {
            loop {
                let began = Instant::now();
                while began.elapsed() < STEP {
                    if ask().await {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                self.advance(STEP);
            }
        })
        .await;
    }

    /// Waits until each task that should wake by now has woken, and each periodic task is asleep again. Otherwise, on a busy
    /// machine, several steps could pass before a background task checks.
    pub async fn settled(&self) {
        // A task that ends when it wakes never sleeps again.
        const MOST: Duration = Duration::from_secs(2);
        let began = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let now = self.now.borrow().lease;
            let mut sleepers = self.sleepers.lock().unwrap();
            if sleepers.are_settled(now) {
                return;
            }
            if began.elapsed() > MOST {
                return sleepers.give_up_on_the_rest(now);
            }
        }
    }
}

/// The tasks that sleep on a clock, and those that were woken and are at work.
#[derive(Default)]
struct Sleepers {
    count: u64,
    asleep: HashMap<u64, LeaseTime>,
    /// How often each task has gone to sleep.
    turns: HashMap<task::Id, u64>,
    at_work: HashSet<task::Id>,
}

impl Sleepers {
    /// After this many sleeps, a task counts as periodic.
    const TURNS: u64 = 3;

    fn are_settled(&self, now: LeaseTime) -> bool {
        self.at_work.is_empty() && self.asleep.values().all(|until| now < *until)
    }

    fn give_up_on_the_rest(&mut self, now: LeaseTime) {
        self.at_work.clear();
        self.asleep.retain(|_, until| now < *until);
    }
}

/// One sleep, which starts when it is first polled.
struct Asleep {
    sleepers: Arc<Mutex<Sleepers>>,
    id: u64,
}

impl Asleep {
    fn until(deadline: LeaseTime, sleepers: Arc<Mutex<Sleepers>>) -> Self {
        let mut all = sleepers.lock().unwrap();
        all.count += 1;
        let id = all.count;
        all.asleep.insert(id, deadline);
        if let Some(task) = task::try_id() {
            *all.turns.entry(task).or_default() += 1;
            all.at_work.remove(&task);
        }
        drop(all);
        Asleep { sleepers, id }
    }

    fn wakes(&self) {
        let mut all = self.sleepers.lock().unwrap();
        if let Some(task) = task::try_id()
            && all.turns.get(&task).is_some_and(|turns| *turns >= Sleepers::TURNS)
        {
            all.at_work.insert(task);
        }
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        if let Ok(mut all) = self.sleepers.lock() {
            all.asleep.remove(&self.id);
        }
    }
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        self.readings.fetch_add(1, Ordering::SeqCst);
        let due = if std::thread::current().name() == Some("ledger") {
            None
        } else {
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
        let (mut now, sleepers) = (self.now.subscribe(), self.sleepers.clone());
        Box::pin(async move {
            let asleep = Asleep::until(deadline, sleepers);
            if now.wait_for(|now| now.lease >= deadline).await.is_err() {
                std::future::pending::<()>().await;
            }
            asleep.wakes();
        })
    }
}
