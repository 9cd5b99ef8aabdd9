//! The order of a job's attempts: a change of one attempt appears before the next attempt's first request, or never.
//!
//! The daemon ends an attempt when the next attempt begins. But a token of the next attempt can reach the gateway before the
//! feed reports that end, while a change of the earlier attempt is under way. So the first request of the next attempt waits
//! until the changes of earlier attempts are done. From then on, the gateway refuses all changes of earlier attempts.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    clock::Clock,
    limits::{GATEWAY_CHANGE_WAIT, GATEWAY_SESSIONS_MAX},
    name::{AttemptNumber, JobId},
    reason::{Reason, Refusal},
};

/// The attempts that used the gateway. A clone is a pointer.
#[derive(Clone, Default)]
pub(super) struct AttemptOrder(Arc<OrderState>);

#[derive(Default)]
struct OrderState {
    jobs: Mutex<OrderedJobs>,
    change_ended: Notify,
}

/// The jobs, in the order of their first requests. If there are too many, the oldest are removed. By then, the feed has
/// reported which of their attempts are over.
#[derive(Default)]
struct OrderedJobs {
    by_id: HashMap<JobId, JobOrder>,
    in_order: VecDeque<JobId>,
}

/// The attempts of one job.
struct JobOrder {
    /// The newest attempt that sent a request.
    newest: AttemptNumber,
    /// The number of changes under way, by attempt.
    changes: BTreeMap<AttemptNumber, usize>,
}

impl AttemptOrder {
    /// Admits a request of an attempt. Waits until the changes of earlier attempts have appeared.
    ///
    /// # Errors
    ///
    /// A later attempt of the job has used the gateway, or the changes are not done within [`GATEWAY_CHANGE_WAIT`].
    pub(super) async fn enter(
        &self,
        job: JobId,
        attempt: AttemptNumber,
        clock: &Arc<dyn Clock>,
    ) -> Result<(), Refusal> {
        let mut until = None;
        loop {
            let ended = self.0.change_ended.notified();
            if !self.jobs().enter(job, attempt)? {
                return Ok(());
            }
            let until = *until.get_or_insert_with(|| clock.now().lease.plus(GATEWAY_CHANGE_WAIT));
            tokio::select! {
                () = ended => {}
                () = clock.sleep_until(until) => {
                    let text = "an earlier attempt of this job is still writing: try again";
                    return Err(Refusal::new(Reason::Overloaded, text));
                }
            }
        }
    }

    /// Begins a change by an attempt. The change is under way until the returned value is dropped.
    pub(super) fn begin_change(&self, job: JobId, attempt: AttemptNumber) -> AttemptChange {
        let mut jobs = self.jobs();
        let count = jobs.of(job).changes.entry(attempt).or_default();
        *count = count.saturating_add(1);
        drop(jobs);
        AttemptChange { order: self.clone(), job, attempt }
    }

    fn jobs(&self) -> MutexGuard<'_, OrderedJobs> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OrderedJobs {
    /// Notes the attempt of a request. Returns whether changes of earlier attempts are under way.
    fn enter(&mut self, job: JobId, attempt: AttemptNumber) -> Result<bool, Refusal> {
        let order = self.of(job);
        order.check(attempt)?;
        order.newest = attempt;
        Ok(order.changes.range(..attempt).next().is_some())
    }

    fn of(&mut self, job: JobId) -> &mut JobOrder {
        if !self.by_id.contains_key(&job) {
            self.remove_oldest();
            self.in_order.push_back(job);
        }
        self.by_id.entry(job).or_default()
    }

    /// Removes the oldest jobs that have no change under way, until one more job can be added.
    fn remove_oldest(&mut self) {
        for _ in 0..self.in_order.len() {
            if self.by_id.len() < GATEWAY_SESSIONS_MAX {
                return;
            }
            let Some(oldest) = self.in_order.pop_front() else { return };
            if self.by_id.get(&oldest).is_some_and(|order| !order.changes.is_empty()) {
                self.in_order.push_back(oldest);
            } else {
                self.by_id.remove(&oldest);
            }
        }
    }
}

impl Default for JobOrder {
    fn default() -> Self {
        JobOrder { newest: AttemptNumber::FIRST, changes: BTreeMap::new() }
    }
}

impl JobOrder {
    /// Refuses an attempt if a newer attempt of the job has sent a request.
    fn check(&self, attempt: AttemptNumber) -> Result<(), Refusal> {
        if attempt >= self.newest {
            return Ok(());
        }
        let text = format!("attempt {attempt} is over: attempt {} of this job has begun", self.newest);
        Err(Refusal::new(Reason::AttemptStale, text))
    }
}

/// A change that is under way.
pub(super) struct AttemptChange {
    order: AttemptOrder,
    job: JobId,
    attempt: AttemptNumber,
}

impl AttemptChange {
    /// Checks that no later attempt of the job has used the gateway.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.order.jobs().of(self.job).check(self.attempt)
    }
}

impl Drop for AttemptChange {
    fn drop(&mut self) {
        let mut jobs = self.order.jobs();
        let changes = &mut jobs.of(self.job).changes;
        if let Some(count) = changes.get_mut(&self.attempt) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                changes.remove(&self.attempt);
            }
        }
        drop(jobs);
        self.order.0.change_ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::clock::{Wall, manual::ManualClock};

    const JOB: JobId = JobId(7);

    fn attempt(number: u64) -> AttemptNumber {
        AttemptNumber::new(number).unwrap()
    }

    fn clock() -> (Arc<ManualClock>, Arc<dyn Clock>) {
        let clock = Arc::new(ManualClock::new(Wall(1_000_000)));
        (clock.clone(), clock)
    }

    #[tokio::test]
    async fn the_next_attempt_waits_until_changes_have_appeared() {
        let (order, (_, clock)) = (AttemptOrder::default(), clock());
        order.enter(JOB, attempt(1), &clock).await.unwrap();
        let (one, other) = (order.begin_change(JOB, attempt(1)), order.begin_change(JOB, attempt(1)));
        order.enter(JOB, attempt(1), &clock).await.unwrap();
        order.enter(JobId(8), attempt(2), &clock).await.unwrap();
        let mut next = Box::pin(order.enter(JOB, attempt(2), &clock));
        assert!(next.as_mut().now_or_never().is_none());
        // From now on, no change of the first attempt appears, even if the change began earlier.
        assert_eq!(one.check().unwrap_err().reason, Reason::AttemptStale);
        drop(one);
        assert!(next.as_mut().now_or_never().is_none());
        drop(other);
        next.await.unwrap();
        assert_eq!(order.enter(JOB, attempt(1), &clock).await.unwrap_err().reason, Reason::AttemptStale);
        assert!(order.begin_change(JOB, attempt(1)).check().is_err());
        assert!(order.begin_change(JOB, attempt(2)).check().is_ok());
    }

    #[tokio::test]
    async fn a_change_without_end_delays_an_attempt_within_a_bound() {
        let (order, (time, clock)) = (AttemptOrder::default(), clock());
        let _change = order.begin_change(JOB, attempt(1));
        let mut next = Box::pin(order.enter(JOB, attempt(2), &clock));
        assert!(next.as_mut().now_or_never().is_none());
        time.advance(GATEWAY_CHANGE_WAIT);
        assert_eq!(next.await.unwrap_err().reason, Reason::Overloaded);
    }

    #[test]
    fn the_oldest_jobs_without_changes_are_forgotten() {
        let order = AttemptOrder::default();
        let change = order.begin_change(JobId(0), attempt(1));
        for id in 1..=GATEWAY_SESSIONS_MAX as u128 {
            drop(order.begin_change(JobId(id), attempt(1)));
        }
        let jobs = order.jobs();
        assert_eq!((jobs.by_id.len(), jobs.in_order.len()), (GATEWAY_SESSIONS_MAX, GATEWAY_SESSIONS_MAX));
        assert!(jobs.by_id.contains_key(&JobId(0)) && !jobs.by_id.contains_key(&JobId(1)));
        drop(jobs);
        drop(change);
    }
}
