//! A bound on the lines of the log that callers can cause.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::clock::{BootTime, Clock};

const WINDOW: Duration = Duration::from_secs(60);

/// Admits a number of lines in a minute, and counts the others. So a caller that can cause lines cannot fill the disk.
pub(crate) struct LogBudget {
    clock: Arc<dyn Clock>,
    lines_max: u32,
    window: Mutex<LogWindow>,
}

struct LogWindow {
    began: BootTime,
    logged: u32,
    left_out: u64,
}

impl LogBudget {
    pub(crate) fn new(lines_max: u32, clock: Arc<dyn Clock>) -> Self {
        let began = clock.now().boot;
        LogBudget { clock, lines_max, window: Mutex::new(LogWindow { began, logged: 0, left_out: 0 }) }
    }

    /// Returns `None` if a line may not be logged. Otherwise returns the number of lines of earlier minutes that were
    /// left out and not yet reported.
    pub(crate) fn admit(&self) -> Option<u64> {
        let now = self.clock.now().boot;
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = 0;
        if now.since(window.began) >= WINDOW {
            left_out = window.left_out;
            *window = LogWindow { began: now, logged: 0, left_out: 0 };
        }
        if window.logged >= self.lines_max {
            window.left_out = window.left_out.saturating_add(1);
            return None;
        }
        window.logged += 1;
        Some(left_out)
    }
}

impl fmt::Debug for LogBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogBudget").field("lines_max", &self.lines_max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Wall, manual::ManualClock};

    #[test]
    fn a_minute_has_a_bounded_number_of_lines() {
        let clock = Arc::new(ManualClock::new(Wall(1_000_000)));
        let budget = LogBudget::new(60, clock.clone());
        assert_eq!((0..1_000).filter_map(|_| budget.admit()).count(), 60);
        clock.advance(WINDOW);
        assert_eq!(budget.admit(), Some(940));
        assert_eq!(budget.admit(), Some(0));
    }
}
