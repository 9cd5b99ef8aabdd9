//! A limit on members that return at the same time.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::session::MemberSession;
use crate::{
    clock::{Clock, LeaseTime},
    fence::Registry,
    job::{Job, MemberState},
    limits,
    name::{AttemptNumber, FenceName, InstanceName, SpiffeId},
    reason::{Reason, Refusal},
};

/// Limits how many requests of returning members are processed at once. After a restart, thousands of members return at
/// once, and new callers must still get answers.
pub(super) struct ReconnectLimiter {
    /// Permits for requests that are processed.
    places: Semaphore,
    /// Permits for requests that are processed or wait.
    let_in: Semaphore,
    clock: Arc<dyn Clock>,
    fences: Arc<Registry>,
    /// The time at which this run of the daemon began.
    began: LeaseTime,
}

/// The permit of one request of a returning member, until it is dropped.
pub(super) struct ReconnectPermit<'a>(
    #[expect(dead_code, reason = "held for their places")] (SemaphorePermit<'a>, SemaphorePermit<'a>),
);

impl ReconnectLimiter {
    pub(super) fn new(clock: Arc<dyn Clock>, fences: Arc<Registry>) -> Self {
        ReconnectLimiter {
            began: clock.now().lease,
            fences,
            places: Semaphore::new(limits::RETURNING_MAX),
            let_in: Semaphore::new(limits::RETURNING_WAITING_MAX),
            clock,
        }
    }

    /// Waits for the next permit, in the order of the requests.
    async fn take(&self) -> Result<ReconnectPermit<'_>, Refusal> {
        let crowded =
            || Refusal::new(Reason::Overloaded, "too many members reconnect at once: try again in a moment");
        let let_in = self.let_in.try_acquire().map_err(|_| crowded())?;
        tokio::select! {
            biased;
            place = self.places.acquire() => Ok(ReconnectPermit((let_in, place.map_err(|_| crowded())?))),
            () = self.clock.sleep(limits::RETURNING_WAIT) => Err(crowded()),
        }
    }

    /// Returns a permit if a member that is away returns. A first join needs no permit.
    pub(super) async fn permit_to_join(
        &self,
        job: &Job,
        attempt: AttemptNumber,
        instance: &InstanceName,
        caller: &SpiffeId,
    ) -> Result<Option<ReconnectPermit<'_>>, Refusal> {
        let member = job.attempt(attempt).and_then(|a| a.members.get(instance));
        // All other callers are refused later and need no permit.
        let own = member.filter(|m| m.spiffe_id == *caller);
        match own.map(|m| m.state) {
            Some(MemberState::Away { .. }) => self.take().await.map(Some),
            _ => Ok(None),
        }
    }

    /// Returns a permit if a member of an earlier run of the daemon asks for its first lease in this run.
    pub(super) async fn permit_to_ask(
        &self,
        job: &Job,
        session: &MemberSession,
        caller: &SpiffeId,
    ) -> Result<Option<ReconnectPermit<'_>>, Refusal> {
        let MemberSession { attempt, instance, .. } = session;
        let earlier = job.attempt(*attempt).filter(|a| a.began < self.began);
        let is_own = earlier.and_then(|a| a.members.get(instance)).is_some_and(|m| m.spiffe_id == *caller);
        let has_none = || self.fences.behind(&FenceName::member(job.id, *attempt, instance.clone())) == 0;
        match is_own && has_none() {
            true => self.take().await.map(Some),
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::{clock::SystemClock, fence::Seq};

    fn limiter() -> ReconnectLimiter {
        ReconnectLimiter::new(Arc::new(SystemClock::new()), Arc::new(Registry::new(Seq(0))))
    }

    #[tokio::test]
    async fn a_returning_member_waits_no_longer_than_its_client() {
        let limiter = limiter();
        let held: Vec<_> =
            (0..limits::RETURNING_MAX).map(|_| limiter.take().now_or_never().unwrap().unwrap()).collect();
        let mut next = Box::pin(limiter.take());
        assert!(next.as_mut().now_or_never().is_none(), "it waits");
        drop(held);
        assert!(next.now_or_never().unwrap().is_ok());
        assert!(limits::RETURNING_WAIT < limits::CALL, "the refusal comes before the client gives up");
        const { assert!(limits::RETURNING_WAITING_MAX <= limits::REQUESTS_MAX / 2, "half is for new callers") };
    }

    #[tokio::test]
    async fn waiting_members_leave_room_for_other_callers() {
        let limiter = limiter();
        let held: Vec<_> =
            (0..limits::RETURNING_MAX).map(|_| limiter.take().now_or_never().unwrap().unwrap()).collect();
        let mut waiting: Vec<_> = (limits::RETURNING_MAX..limits::RETURNING_WAITING_MAX)
            .map(|_| Box::pin(limiter.take()))
            .collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        let refusal = limiter.take().now_or_never().unwrap().err().unwrap();
        assert_eq!(refusal.reason, Reason::Overloaded);
        // A request that gives up frees its slot.
        drop(waiting);
        assert!(limiter.take().now_or_never().is_none());
        drop(held);
        assert!(limiter.take().now_or_never().unwrap().is_ok());
    }
}
