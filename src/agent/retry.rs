//! The backoff between retries.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

use crate::limits::{RETRY_FIRST, RETRY_MAX};

/// An endless exponential backoff with jitter. Each wait is between half of its step and the whole, so that a thousand members
/// that lost one daemon do not come back at the same time. Reads no clock and does not sleep.
#[derive(Debug)]
pub struct Backoff<R = SystemFraction> {
    step: Duration,
    cap: Duration,
    fraction: R,
}

/// Yields numbers from 0 to 1.
pub trait Fraction {
    fn draw(&mut self) -> f64;
}

/// Yields random numbers of the system.
#[derive(Debug)]
pub struct SystemFraction(SystemRandom);

impl SystemFraction {
    pub(super) fn new() -> Self {
        SystemFraction(SystemRandom::new())
    }
}

impl Fraction for SystemFraction {
    fn draw(&mut self) -> f64 {
        let mut bytes = [0u8; 4];
        // Without randomness, use the whole step.
        self.0.fill(&mut bytes).map_or(1.0, |()| f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
    }
}

impl<F: FnMut() -> f64> Fraction for F {
    fn draw(&mut self) -> f64 {
        self()
    }
}

impl Backoff {
    /// Begins with `first`. No wait is longer than `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Backoff { step: first.min(cap), cap, fraction: SystemFraction::new() }
    }
}

impl Default for Backoff {
    /// The backoff for calls to the daemon, from [`RETRY_FIRST`] to [`RETRY_MAX`].
    fn default() -> Self {
        Backoff::new(RETRY_FIRST, RETRY_MAX)
    }
}

impl<R: Fraction> Iterator for Backoff<R> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.cap);
        let share = 0.5 + self.fraction.draw().clamp(0.0, 1.0) / 2.0;
        // NaN does not make a wait shorter.
        Some(if share.is_nan() { step } else { step.mul_f64(share) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(fraction: f64) -> Vec<u128> {
        let (step, cap) = (Duration::from_millis(100), Duration::from_secs(1));
        Backoff { step, cap, fraction: move || fraction }.take(6).map(|d| d.as_millis()).collect()
    }

    #[test]
    fn a_wait_doubles_up_to_its_cap_and_stays_there() {
        assert_eq!(drawn(1.0), [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn a_wait_is_never_shorter_than_half_of_its_step() {
        assert_eq!(drawn(0.0), [50, 100, 200, 400, 500, 500]);
        assert_eq!(drawn(f64::NAN), drawn(1.0));
    }

    #[test]
    fn two_clients_do_not_wait_the_same() {
        let (a, b): (Vec<_>, Vec<_>) =
            (Backoff::default().take(8).collect(), Backoff::default().take(8).collect());
        assert_ne!(a, b);
        assert!(a.iter().chain(&b).all(|d| *d >= RETRY_FIRST / 2 && *d <= RETRY_MAX), "{a:?} {b:?}");
    }

    #[test]
    fn a_first_wait_beyond_the_cap_is_the_cap() {
        let mut waits = Backoff::new(Duration::from_secs(9), Duration::from_secs(1));
        assert!(waits.next().is_some_and(|d| d <= Duration::from_secs(1)));
    }
}
