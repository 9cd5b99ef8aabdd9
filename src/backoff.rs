//! Waits between retries.

use std::time::Duration;

use crate::{
    limits::{RETRY_FIRST, RETRY_MAX},
    secret::random_fraction,
};

/// An endless sequence of waits that double up to a cap. Each wait is a random part, at least a half, of its step. So a
/// thousand clients that lose one server do not return at the same time. This type reads no clock and does not sleep.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    step: Duration,
}

impl Backoff {
    /// Makes a sequence that begins at `first`. Waits are at most `cap` long.
    pub fn new(first: Duration, cap: Duration) -> Self {
        let first = first.min(cap);
        Backoff { first, cap, step: first }
    }

    /// Returns the wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        self.draw(random_fraction())
    }

    /// Begins again at the first wait. Call it after an attempt succeeded.
    pub fn reset(&mut self) {
        self.step = self.first;
    }

    fn draw(&mut self, fraction: f64) -> Duration {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.cap);
        step.mul_f64(0.5 + fraction / 2.0)
    }
}

impl Default for Backoff {
    /// Returns the waits for calls to the daemon: from [`RETRY_FIRST`] to [`RETRY_MAX`].
    fn default() -> Self {
        Backoff::new(RETRY_FIRST, RETRY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(fraction: f64) -> Vec<u128> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        (0..6).map(|_| backoff.draw(fraction).as_millis()).collect()
    }

    #[test]
    fn a_wait_doubles_up_to_its_cap_and_stays_there() {
        assert_eq!(drawn(1.0), [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn a_wait_is_never_shorter_than_half_of_its_step() {
        assert_eq!(drawn(0.0), [50, 100, 200, 400, 500, 500]);
    }

    #[test]
    fn two_clients_wait_differently() {
        let waits = || {
            let mut backoff = Backoff::default();
            (0..8).map(|_| backoff.next_wait()).collect::<Vec<_>>()
        };
        let (a, b) = (waits(), waits());
        assert_ne!(a, b);
        assert!(a.iter().chain(&b).all(|d| *d >= RETRY_FIRST / 2 && *d <= RETRY_MAX), "{a:?} {b:?}");
    }

    #[test]
    fn a_reset_begins_at_the_first_wait() {
        let mut backoff = Backoff::default();
        for _ in 0..8 {
            backoff.next_wait();
        }
        backoff.reset();
        assert!(backoff.next_wait() <= RETRY_FIRST);
    }

    #[test]
    fn a_first_wait_beyond_the_cap_is_the_cap() {
        let mut backoff = Backoff::new(Duration::from_secs(9), Duration::from_secs(1));
        assert!(backoff.next_wait() <= Duration::from_secs(1));
    }
}
