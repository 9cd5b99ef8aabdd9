//! How long to wait before an origin is asked again.

use std::time::Duration;

use crate::secret::random_u128;

/// Waits that double up to a cap, each between a half and the whole of its step: all workloads of a node lose one agent.
#[derive(Debug)]
pub(super) struct Waits {
    first: Duration,
    cap: Duration,
    step: Duration,
}

impl Waits {
    pub(super) fn new(first: Duration, cap: Duration) -> Self {
        Waits { first, cap, step: first }
    }

    pub(super) fn reset(&mut self) {
        self.step = self.first;
    }

    pub(super) fn next(&mut self) -> Duration {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.cap);
        // Without randomness the whole step is waited for: later, never sooner.
        let drawn = random_u128().ok().and_then(|n| u32::try_from(n % 512).ok()).unwrap_or(512);
        step / 2 + step / 2 * drawn / 512
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_doubles_up_to_its_cap_and_begins_anew() {
        let second = Duration::from_secs(1);
        let mut waits = Waits::new(second, 5 * second);
        for step in [1, 2, 4, 5, 5] {
            let wait = waits.next();
            assert!(wait >= step * second / 2 && wait <= step * second, "{wait:?} of {step}");
        }
        waits.reset();
        assert!(waits.next() <= second);
    }
}
