//! How long a member waits between retries.

pub use crate::backoff::Backoff;
use crate::secret::random_fraction;

/// Draws a number from 0 to 1.
pub trait Fraction {
    fn draw(&mut self) -> f64;
}

/// Draws from the random source of the system.
#[derive(Debug)]
pub struct SystemFraction;

impl SystemFraction {
    pub(super) fn new() -> Self {
        SystemFraction
    }
}

impl Fraction for SystemFraction {
    fn draw(&mut self) -> f64 {
        random_fraction()
    }
}
