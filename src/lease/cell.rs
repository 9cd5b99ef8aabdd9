//! Deadline, generation and end of one lease in one atomic word, so that a reader sees a consistent state of all three.

use std::sync::atomic::Ordering;

use crate::{clock::LeaseTime, sync::AtomicU64};

const ENDED: u64 = 1 << 63;
/// One step of the generation: bits 42 to 62.
const GENERATION: u64 = 1 << 42;
/// The bits of the deadline, in ms of the lease timeline: bits 0 to 41, until the year 2109.
const DEADLINE: u64 = GENERATION - 1;
const GENERATION_MAX: u64 = (ENDED >> 42) - 1;

/// The reasons for which a lease is not valid, or was not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefused {
    /// The lease was released or removed.
    #[error("the lease has ended")]
    Ended,
    /// The deadline of the lease has passed.
    #[error("the lease has expired")]
    Expired,
    /// A fence of the lease was lowered.
    #[error("a name that the lease depends on was revoked")]
    Lowered,
    /// The generation counter of the lease is at its maximum.
    #[error("the lease was renewed as often as it can be")]
    WornOut,
    /// Another renewal already took the next generation number of this credential.
    #[error("another renewal came first")]
    Overtaken,
}

/// The result when a deadline fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired {
    /// The lease was due, and has ended now.
    Expired,
    /// The lease was renewed. Check it again at this time.
    Later(LeaseTime),
    /// The lease had ended before.
    Already,
}

/// The atomic word. Every change is a compare-and-exchange. If a renewal and an expiry come at once, only one takes
/// effect.
#[derive(Debug)]
pub(super) struct LeaseCell(pub(super) AtomicU64);

impl LeaseCell {
    pub(super) fn new(deadline: LeaseTime) -> Self {
        LeaseCell(AtomicU64::new(deadline.0.min(DEADLINE)))
    }

    pub(super) fn deadline(&self) -> LeaseTime {
        LeaseTime(self.0.load(Ordering::Acquire) & DEADLINE)
    }

    pub(super) fn generation(&self) -> u32 {
        u32::try_from((self.0.load(Ordering::Acquire) & !ENDED) >> 42).unwrap_or(u32::MAX)
    }

    /// Checks that the lease has not ended and is not due.
    pub(super) fn check(&self, now: LeaseTime) -> Result<(), LeaseRefused> {
        Self::check_word(self.0.load(Ordering::Acquire), now)
    }

    fn check_word(word: u64, now: LeaseTime) -> Result<(), LeaseRefused> {
        if word & ENDED != 0 {
            return Err(LeaseRefused::Ended);
        }
        if now.0 >= word & DEADLINE {
            return Err(LeaseRefused::Expired);
        }
        Ok(())
    }

    /// Sets a new deadline with the next generation, if the lease is live at `now` and no other renewal made that
    /// generation first. The deadline may be earlier than before, because a renewal under shorter limits shortens the
    /// lease.
    pub(super) fn renew(&self, next: u32, now: LeaseTime, deadline: LeaseTime) -> Result<(), LeaseRefused> {
        let next = u64::from(next);
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            Self::check_word(word, now)?;
            if next > GENERATION_MAX {
                return Err(LeaseRefused::WornOut);
            }
            if word >> 42 != next.wrapping_sub(1) {
                return Err(LeaseRefused::Overtaken);
            }
            let new = (next << 42) | deadline.0.min(DEADLINE);
            match self.0.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(seen) => word = seen,
            }
        }
    }

    /// Ends the lease. Returns whether this call ended it.
    pub(super) fn end(&self) -> bool {
        self.0.fetch_or(ENDED, Ordering::AcqRel) & ENDED == 0
    }

    /// Ends the lease only if its deadline is still due.
    pub(super) fn fire(&self, now: LeaseTime) -> Fired {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if word & ENDED != 0 {
                return Fired::Already;
            }
            if now.0 < word & DEADLINE {
                return Fired::Later(LeaseTime(word & DEADLINE));
            }
            match self.0.compare_exchange_weak(word, word | ENDED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Fired::Expired,
                Err(seen) => word = seen,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Proves law 09.
    #[test]
    fn a_check_at_the_deadline_is_refused() {
        let c = LeaseCell::new(LeaseTime(100));
        assert_eq!(c.check(LeaseTime(99)), Ok(()));
        assert_eq!(c.check(LeaseTime(100)), Err(LeaseRefused::Expired));
    }

    // Proves law 17.
    #[test]
    fn a_lease_that_is_over_is_not_renewed() {
        let c = LeaseCell::new(LeaseTime(100));
        assert_eq!(c.renew(1, LeaseTime(100), LeaseTime(900)), Err(LeaseRefused::Expired));
        assert_eq!((c.deadline(), c.generation()), (LeaseTime(100), 0));
        assert_eq!(c.renew(1, LeaseTime(99), LeaseTime(200)), Ok(()));
        assert!(c.end());
        assert!(!c.end(), "ended once");
        assert_eq!(c.renew(2, LeaseTime(99), LeaseTime(900)), Err(LeaseRefused::Ended));
    }

    // Proves law 18.
    #[test]
    fn a_late_expiry_does_not_undo_a_renewal() {
        let c = LeaseCell::new(LeaseTime(100));
        c.renew(1, LeaseTime(99), LeaseTime(200)).unwrap();
        assert_eq!(c.fire(LeaseTime(100)), Fired::Later(LeaseTime(200)));
        assert_eq!(c.check(LeaseTime(150)), Ok(()));
        assert_eq!(c.fire(LeaseTime(200)), Fired::Expired);
        assert_eq!(c.fire(LeaseTime(200)), Fired::Already);
    }

    #[test]
    fn of_two_renewals_at_once_one_makes_the_generation() {
        let c = LeaseCell::new(LeaseTime(100));
        assert_eq!(c.renew(1, LeaseTime(1), LeaseTime(200)), Ok(()));
        assert_eq!(c.renew(1, LeaseTime(1), LeaseTime(900)), Err(LeaseRefused::Overtaken));
        assert_eq!((c.deadline(), c.generation()), (LeaseTime(200), 1));
    }

    #[test]
    fn a_generation_never_runs_over_into_the_end() {
        let c = LeaseCell(AtomicU64::new((GENERATION_MAX << 42) | 100));
        let next = u32::try_from(GENERATION_MAX + 1).unwrap();
        assert_eq!(c.renew(next, LeaseTime(1), LeaseTime(200)), Err(LeaseRefused::WornOut));
        assert_eq!(c.check(LeaseTime(1)), Ok(()));
        let c = LeaseCell(AtomicU64::new(((GENERATION_MAX - 1) << 42) | 100));
        let last = u32::try_from(GENERATION_MAX).unwrap();
        assert_eq!(c.renew(last, LeaseTime(1), LeaseTime(200)), Ok(()), "the last one is a generation too");
        assert_eq!((c.deadline(), c.generation(), c.check(LeaseTime(1))), (LeaseTime(200), last, Ok(())));
    }
}
