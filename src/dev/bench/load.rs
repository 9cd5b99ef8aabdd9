//! A load of many requests at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use super::{figure::Sample, work::Work};

/// How many requests are in flight, for how long, and when each request begins.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) in_flight: usize,
    pub(super) time: Duration,
    pub(super) rate: Option<u32>,
}

impl Load {
    /// Repeats the works until the time is over, each with one request in flight. Stops at the first failed request.
    pub(super) async fn apply(self, works: impl IntoIterator<Item = Work>) -> Result<Sample, String> {
        let begin = Instant::now();
        let turns = Arc::new(AtomicU32::new(0));
        let mut workers = JoinSet::new();
        for work in works.into_iter().take(self.in_flight) {
            workers.spawn(self.repeat(work, begin, turns.clone()));
        }
        let mut all = Sample::new()?;
        while let Some(sample) = workers.join_next().await {
            all.add(&sample.map_err(|e| e.to_string())??)?;
        }
        all.time = begin.elapsed();
        Ok(all)
    }

    async fn repeat(self, mut work: Work, begin: Instant, turns: Arc<AtomicU32>) -> Result<Sample, String> {
        let mut sample = Sample::new()?;
        let end = begin + self.time;
        loop {
            let mut from = Instant::now();
            if let Some(rate) = self.rate {
                // If earlier requests are slow, this request begins late. Its latency counts from the time at which it
                // should have begun.
                from = begin + Duration::from_secs(1) / rate.max(1) * turns.fetch_add(1, Ordering::Relaxed);
            }
            if from >= end {
                return Ok(sample);
            }
            if self.rate.is_some() {
                tokio::time::sleep_until(from).await;
            }
            work.once().await?;
            sample.record(from.elapsed());
        }
    }
}

/// A number of requests, of which some are in flight at once.
#[derive(Clone, Copy)]
pub(super) struct Batch {
    pub(super) requests: usize,
    pub(super) in_flight: usize,
}

impl Batch {
    /// Repeats the works until all requests are made, each with one in flight. Stops at the first failed request.
    pub(super) async fn apply(self, works: impl IntoIterator<Item = Work>) -> Result<(), String> {
        let left = Arc::new(AtomicUsize::new(self.requests));
        let mut workers = JoinSet::new();
        for mut work in works.into_iter().take(self.in_flight) {
            let left = left.clone();
            workers.spawn(async move {
                let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
                while take().is_ok() {
                    work.once().await?;
                }
                Ok::<_, String>(())
            });
        }
        while let Some(done) = workers.join_next().await {
            done.map_err(|e| e.to_string())??;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretText;

    // The timer has steps of a millisecond. Without a rate, no request waits for it. Other work of the machine may stop this process
    // for a while, so there are several tries.
    #[tokio::test]
    async fn a_load_without_a_rate_does_not_wait() {
        let load = Load { in_flight: 1, time: Duration::from_millis(100), rate: None };
        for _ in 0..50 {
            let sample = load.apply([Work::Digest(SecretText::new("token".to_owned()))]).await.unwrap();
            if sample.measured().calls > 1_000 {
                return;
            }
        }
        panic!("each request waited for the timer");
    }

    // If each worker waited for a turn after the end, this would take 32 s.
    #[tokio::test]
    async fn a_steady_load_ends_in_time_with_many_workers() {
        let load = Load { in_flight: 640, time: Duration::from_millis(200), rate: Some(20) };
        let sample =
            load.apply((0..640).map(|_| Work::Digest(SecretText::new("token".to_owned())))).await.unwrap();
        assert_eq!(sample.measured().calls, 4);
        assert!(sample.time < Duration::from_secs(10), "{:?}", sample.time);
    }
}
