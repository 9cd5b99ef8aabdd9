//! The schedule of a credential: when to request it again. This code reads no clock and never waits.

use std::time::Duration;

use crate::{backoff::Backoff, clock::LeaseTime, limits::RETRY_MAX};

/// The schedule of one credential: when to request it and when it expires. At most one request is in flight.
#[derive(Debug)]
pub(crate) struct Schedule {
    due: Option<LeaseTime>,
    expires: Option<LeaseTime>,
    in_flight: bool,
    /// Whether the response to the request in flight no longer counts.
    superseded: bool,
    backoff: Backoff,
}

/// Whether another request would give more time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    Yes,
    /// Not now, because our SVID ends before the lease does.
    NotYet,
    /// No renewal: the lease has reached its latest end.
    Never,
}

impl Schedule {
    /// Creates a schedule whose first request is due now.
    pub(crate) fn new(now: LeaseTime) -> Self {
        Schedule {
            due: Some(now),
            expires: None,
            in_flight: false,
            superseded: false,
            backoff: Backoff::default(),
        }
    }

    /// When to send the next request. `None` while a request is in flight, or if no request is needed.
    pub(crate) fn due(&self) -> Option<LeaseTime> {
        self.due.filter(|_| !self.in_flight)
    }

    /// Whether there is a token, or a token is to be requested.
    pub(crate) fn is_wanted(&self) -> bool {
        self.due.is_some() || self.expires.is_some()
    }

    /// When the token expires. `None` if there is no token.
    pub(crate) fn expires(&self) -> Option<LeaseTime> {
        self.expires
    }

    /// Notes that a request is in flight.
    pub(crate) fn mark_requested(&mut self) {
        self.in_flight = true;
        self.superseded = false;
    }

    /// Notes that the response has arrived. Returns whether it still counts.
    pub(crate) fn mark_answered(&mut self) -> bool {
        self.in_flight = false;
        !self.superseded
    }

    /// Notes a token with this lifetime. The token is renewed after a third of its lifetime, so that two thirds are left if
    /// the daemon is down. `draw` is from 0 to 1.
    pub(crate) fn mark_granted(&mut self, now: LeaseTime, life: Duration, more: More, draw: f64) {
        self.backoff.reset();
        self.expires = Some(now.plus(life));
        let third = life.mul_f64(0.30 + draw.clamp(0.0, 1.0) * 0.066);
        self.due = match more {
            More::Yes => Some(now.plus(third)),
            More::NotYet => Some(now.plus(third.max(RETRY_MAX))),
            More::Never => None,
        };
    }

    /// Notes a failed request: the next one follows after a backoff.
    pub(crate) fn mark_failed(&mut self, now: LeaseTime) {
        self.due = Some(now.plus(self.backoff.next_wait()));
    }

    /// Makes the next request due now. The response to a request in flight no longer counts.
    pub(crate) fn request_now(&mut self, now: LeaseTime) {
        self.due = Some(now);
        self.superseded = self.in_flight;
    }

    /// Notes that the token is removed and that no other token is wanted.
    pub(crate) fn stop(&mut self) {
        self.due = None;
        self.expires = None;
        self.superseded = self.in_flight;
    }

    /// Notes that the token has expired. The next request stays as scheduled.
    pub(crate) fn mark_expired(&mut self) {
        self.expires = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: LeaseTime = LeaseTime(1_000_000);

    fn granted(life: Duration, more: More, draw: f64) -> Schedule {
        let mut schedule = Schedule::new(NOW);
        schedule.mark_requested();
        assert!(schedule.mark_answered());
        schedule.mark_granted(NOW, life, more, draw);
        schedule
    }

    #[test]
    fn renewals_begin_at_a_third_of_the_life_and_are_spread() {
        let life = Duration::from_secs(300);
        let (early, late) = (granted(life, More::Yes, 0.0), granted(life, More::Yes, 1.0));
        assert_eq!(early.due().unwrap().since(NOW), Duration::from_secs(90));
        assert!(late.due().unwrap().since(NOW) > Duration::from_secs(108));
        assert!(late.due().unwrap().since(NOW) <= life.mul_f64(0.37));
        assert_eq!(late.expires(), Some(NOW.plus(life)));
        assert_eq!(granted(life, More::Yes, f64::INFINITY).due(), late.due());
    }

    #[test]
    fn each_credential_has_at_most_one_request_in_flight() {
        let mut schedule = Schedule::new(NOW);
        assert_eq!(schedule.due(), Some(NOW));
        schedule.mark_requested();
        assert_eq!(schedule.due(), None);
        schedule.request_now(NOW);
        assert_eq!(schedule.due(), None, "the request in flight is awaited first");
        assert!(!schedule.mark_answered(), "its response was superseded");
        assert_eq!(schedule.due(), Some(NOW));
    }

    #[test]
    fn a_renewal_that_gains_no_time_is_not_sent() {
        assert_eq!(granted(Duration::from_secs(3), More::Never, 0.5).due(), None);
        let later = granted(Duration::from_secs(3), More::NotYet, 0.5);
        assert_eq!(later.due().unwrap().since(NOW), RETRY_MAX, "no faster than retries");
    }

    #[test]
    fn failures_back_off_until_a_success() {
        let mut schedule = granted(Duration::from_secs(300), More::Yes, 0.5);
        let mut waits = Vec::new();
        for _ in 0..12 {
            schedule.mark_failed(NOW);
            waits.push(schedule.due().unwrap().since(NOW));
        }
        assert!(waits[0] <= crate::limits::RETRY_FIRST && waits[11] >= RETRY_MAX / 2, "{waits:?}");
        assert!(waits.iter().all(|w| *w <= RETRY_MAX));
        schedule.mark_granted(NOW, Duration::from_secs(300), More::Yes, 0.5);
        schedule.mark_failed(NOW);
        assert!(schedule.due().unwrap().since(NOW) <= crate::limits::RETRY_FIRST);
    }

    #[test]
    fn a_stopped_credential_is_not_requested() {
        let mut schedule = granted(Duration::from_secs(300), More::Yes, 0.5);
        schedule.mark_requested();
        schedule.stop();
        assert!(!schedule.mark_answered());
        assert_eq!((schedule.due(), schedule.expires(), schedule.is_wanted()), (None, None, false));
    }
}
