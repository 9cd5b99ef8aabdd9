//! ReconnectLimiter for those who come back.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::context::Broker;
use crate::{
    clock::Clock,
    job::{Job, MemberState},
    limits,
    name::{AttemptNumber, FenceName, InstanceName, SpiffeId},
    reason::{Reason, Refusal},
};

/// After a restart thousands ask at once for what they had before. They take turns, so that whoever is new is answered
/// meanwhile: of the requests in work never more than a share is theirs, and of those that are let in to wait never more than
/// half.
pub(super) struct ReconnectLimiter {
    /// Those in work.
    places: Semaphore,
    /// Those in work and those that wait.
    let_in: Semaphore,
    clock: Arc<dyn Clock>,
}

/// One turn, until it is dropped.
pub(super) struct ReconnectPermit<'a>(
    #[expect(dead_code, reason = "held for their places")] (SemaphorePermit<'a>, SemaphorePermit<'a>),
);

impl ReconnectLimiter {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        ReconnectLimiter {
            places: Semaphore::new(limits::RETURNING_MAX),
            let_in: Semaphore::new(limits::RETURNING_WAITING_MAX),
            clock,
        }
    }

    /// The next turn, in the order in which they came.
    async fn take(&self) -> Result<ReconnectPermit<'_>, Refusal> {
        let crowded =
            || Refusal::new(Reason::Overloaded, "very many come back at once: try again in a moment");
        let let_in = self.let_in.try_acquire().map_err(|_| crowded())?;
        tokio::select! {
            biased;
            place = self.places.acquire() => Ok(ReconnectPermit((let_in, place.map_err(|_| crowded())?))),
            () = self.clock.sleep(limits::RETURNING_WAIT) => Err(crowded()),
        }
    }
}

impl Broker {
    /// A turn where a member that is away comes back. None where somebody joins for the first time.
    pub(super) async fn permit_to_join(
        &self,
        job: &Job,
        attempt: AttemptNumber,
        instance: &InstanceName,
        caller: &SpiffeId,
    ) -> Result<Option<ReconnectPermit<'_>>, Refusal> {
        let member = job.attempt(attempt).and_then(|a| a.members.get(instance));
        // Anybody else is refused without one.
        match member.filter(|m| m.spiffe_id == *caller).map(|m| m.state) {
            Some(MemberState::Away { .. }) => self.reconnects.take().await.map(Some),
            _ => Ok(None),
        }
    }

    /// A turn where a member of an earlier life of the daemon asks for its first lease of this one.
    pub(super) async fn permit_to_ask(
        &self,
        job: &Job,
        attempt: AttemptNumber,
        instance: &InstanceName,
        caller: &SpiffeId,
    ) -> Result<Option<ReconnectPermit<'_>>, Refusal> {
        let of_before = job.attempt(attempt).filter(|a| a.began < self.began);
        let is_its = of_before.and_then(|a| a.members.get(instance)).is_some_and(|m| m.spiffe_id == *caller);
        let member = FenceName::member(job.id, attempt, instance.clone());
        match is_its && self.fences.behind(&member) == 0 {
            true => self.reconnects.take().await.map(Some),
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test]
    async fn who_comes_back_waits_for_a_turn_and_no_longer_than_its_client_does() {
        let turns = ReconnectLimiter::new(Arc::new(SystemClock::new()));
        let held: Vec<_> =
            (0..limits::RETURNING_MAX).map(|_| turns.take().now_or_never().unwrap().unwrap()).collect();
        let mut next = Box::pin(turns.take());
        assert!(next.as_mut().now_or_never().is_none(), "it waits");
        drop(held);
        assert!(next.now_or_never().unwrap().is_ok());
        assert!(limits::RETURNING_WAIT < limits::CALL, "a refusal comes while somebody listens");
        const { assert!(limits::RETURNING_WAITING_MAX <= limits::REQUESTS_MAX / 2, "half is for who is new") };
    }

    #[tokio::test]
    async fn no_more_are_let_in_to_wait_than_leave_room_for_others() {
        let turns = ReconnectLimiter::new(Arc::new(SystemClock::new()));
        let held: Vec<_> =
            (0..limits::RETURNING_MAX).map(|_| turns.take().now_or_never().unwrap().unwrap()).collect();
        let mut waiting: Vec<_> =
            (limits::RETURNING_MAX..limits::RETURNING_WAITING_MAX).map(|_| Box::pin(turns.take())).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        let refusal = turns.take().now_or_never().unwrap().err().unwrap();
        assert_eq!(refusal.reason, Reason::Overloaded);
        // Who gives up gives its place back.
        drop(waiting);
        assert!(turns.take().now_or_never().is_none());
        drop(held);
        assert!(turns.take().now_or_never().unwrap().is_ok());
    }
}
