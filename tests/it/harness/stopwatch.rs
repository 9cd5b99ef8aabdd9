//! How long something took, without the time in which this process could not run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

/// The time since the start of this machine in which any process waited for a processor or a disk, as the kernel counts it.
/// `None` if the kernel does not count it.
#[derive(Clone, Copy)]
pub struct Pressure(Duration);

impl Pressure {
    pub fn now() -> Self {
        let total = |of: &str| {
            let text = std::fs::read_to_string(format!("/proc/pressure/{of}")).ok()?;
            text.lines().next()?.rsplit_once("total=")?.1.parse().ok().map(Duration::from_micros)
        };
        Pressure(["cpu", "io"].into_iter().filter_map(total).sum())
    }

    /// The time that was added since then.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Counts the turns of a task that sleeps. On a busy machine a turn comes late, and counts as if it had come in time. The time
/// in which any process had to wait is subtracted.
pub struct Stopwatch {
    pressure: Pressure,
    counted_us: Arc<AtomicU64>,
    turns: JoinHandle<()>,
}

impl Stopwatch {
    const TURN: Duration = Duration::from_millis(5);

    pub fn start() -> Self {
        let counted_us = Arc::new(AtomicU64::new(0));
        let counts = counted_us.clone();
        let turns = tokio::spawn(async move {
            loop {
                let before = Instant::now();
                tokio::time::sleep(Self::TURN).await;
                let took = before.elapsed().min(2 * Self::TURN);
                counts.fetch_add(u64::try_from(took.as_micros()).unwrap(), Ordering::Relaxed);
            }
        });
        Stopwatch { pressure: Pressure::now(), counted_us, turns }
    }

    /// The time that it has counted since its start.
    pub fn counted(&self) -> Duration {
        let counted = Duration::from_micros(self.counted_us.load(Ordering::Relaxed));
        counted.saturating_sub(Pressure::now().since(self.pressure))
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.turns.abort();
    }
}
