//! When a credential is asked for again. Reads no clock, waits for nothing.

use std::time::Duration;

use crate::{agent::retry::Backoff, clock::LeaseTime, limits::RETRY_MAX};

/// The pace of one credential: when it is renewed, when it dies, and that one request at most is under way.
#[derive(Debug)]
pub(crate) struct Schedule {
    due: Option<LeaseTime>,
    expires: Option<LeaseTime>,
    asking: bool,
    /// What is under way was overtaken: its answer is about a lease that is over.
    overtaken: bool,
    waits: Backoff,
}

/// Whether asking again would give more time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    Yes,
    /// Not now: something else, our SVID, ends before the lease does.
    NotYet,
    /// The lease is at its latest end.
    Never,
}

impl Schedule {
    /// To be asked for at once.
    pub(crate) fn new(now: LeaseTime) -> Self {
        Schedule { due: Some(now), expires: None, asking: false, overtaken: false, waits: Backoff::default() }
    }

    /// When to ask; none while a request is under way, or where there is nothing to ask for.
    pub(crate) fn due(&self) -> Option<LeaseTime> {
        self.due.filter(|_| !self.asking)
    }

    /// Whether it is held, or to be asked for.
    pub(crate) fn is_wanted(&self) -> bool {
        self.due.is_some() || self.expires.is_some()
    }

    /// When what was granted dies; none where nothing is held.
    pub(crate) fn expires(&self) -> Option<LeaseTime> {
        self.expires
    }

    /// A request is under way.
    pub(crate) fn asked(&mut self) {
        self.asking = true;
        self.overtaken = false;
    }

    /// The answer is here. Whether it still counts: not where everything was demanded anew meanwhile.
    pub(crate) fn answered(&mut self) -> bool {
        self.asking = false;
        !self.overtaken
    }

    /// A credential with this much life was granted: it is renewed after a third of it, so that two thirds are left for a
    /// daemon that is away. `draw` is from 0 to 1.
    pub(crate) fn granted(&mut self, now: LeaseTime, life: Duration, more: More, draw: f64) {
        self.waits = Backoff::default();
        self.expires = Some(now.plus(life));
        let third = life.mul_f64(0.30 + draw.clamp(0.0, 1.0) * 0.066);
        self.due = match more {
            More::Yes => Some(now.plus(third)),
            More::NotYet => Some(now.plus(third.max(RETRY_MAX))),
            More::Never => None,
        };
    }

    /// Asked in vain: again after a wait.
    pub(crate) fn failed(&mut self, now: LeaseTime) {
        self.due = self.waits.next().map(|wait| now.plus(wait));
    }

    /// To be asked for at once, whatever is under way.
    pub(crate) fn hurry(&mut self, now: LeaseTime) {
        self.due = Some(now);
        self.overtaken = self.asking;
    }

    /// Held no more, and not to be asked for.
    pub(crate) fn stop(&mut self) {
        self.due = None;
        self.expires = None;
        self.overtaken = self.asking;
    }

    /// Held no more; asked for as before.
    pub(crate) fn expired(&mut self) {
        self.expires = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: LeaseTime = LeaseTime(1_000_000);

    fn granted(life: Duration, more: More, draw: f64) -> Schedule {
        let mut schedule = Schedule::new(NOW);
        schedule.asked();
        assert!(schedule.answered());
        schedule.granted(NOW, life, more, draw);
        schedule
    }

    #[test]
    fn a_credential_is_renewed_at_a_third_of_its_life_and_not_all_at_once() {
        let life = Duration::from_secs(300);
        let (early, late) = (granted(life, More::Yes, 0.0), granted(life, More::Yes, 1.0));
        assert_eq!(early.due().unwrap().since(NOW), Duration::from_secs(90));
        assert!(late.due().unwrap().since(NOW) > Duration::from_secs(108));
        assert!(late.due().unwrap().since(NOW) <= life.mul_f64(0.37));
        assert_eq!(late.expires(), Some(NOW.plus(life)));
        assert_eq!(granted(life, More::Yes, f64::INFINITY).due(), late.due());
    }

    #[test]
    fn of_one_credential_one_request_is_under_way() {
        let mut schedule = Schedule::new(NOW);
        assert_eq!(schedule.due(), Some(NOW));
        schedule.asked();
        assert_eq!(schedule.due(), None);
        schedule.hurry(NOW);
        assert_eq!(schedule.due(), None, "not even in a hurry");
        assert!(!schedule.answered(), "what was overtaken does not count");
        assert_eq!(schedule.due(), Some(NOW));
    }

    #[test]
    fn where_nothing_is_to_be_gained_nothing_is_asked_for() {
        assert_eq!(granted(Duration::from_secs(3), More::Never, 0.5).due(), None);
        let later = granted(Duration::from_secs(3), More::NotYet, 0.5);
        assert_eq!(later.due().unwrap().since(NOW), RETRY_MAX, "no faster than retries are");
    }

    #[test]
    fn failures_are_spaced_out_and_forgotten_after_a_success() {
        let mut schedule = granted(Duration::from_secs(300), More::Yes, 0.5);
        let mut waits = Vec::new();
        for _ in 0..12 {
            schedule.failed(NOW);
            waits.push(schedule.due().unwrap().since(NOW));
        }
        assert!(waits[0] <= crate::limits::RETRY_FIRST && waits[11] >= RETRY_MAX / 2, "{waits:?}");
        assert!(waits.iter().all(|w| *w <= RETRY_MAX));
        schedule.granted(NOW, Duration::from_secs(300), More::Yes, 0.5);
        schedule.failed(NOW);
        assert!(schedule.due().unwrap().since(NOW) <= crate::limits::RETRY_FIRST);
    }

    #[test]
    fn what_was_stopped_is_neither_held_nor_asked_for() {
        let mut schedule = granted(Duration::from_secs(300), More::Yes, 0.5);
        schedule.asked();
        schedule.stop();
        assert!(!schedule.answered());
        assert_eq!((schedule.due(), schedule.expires(), schedule.is_wanted()), (None, None, false));
    }
}
