//! The state that the daemon rebuilds from the ledger when it starts.

use super::{Locks, Logins, Reviews, Use};
use crate::{
    clock::LeaseTime,
    fence::Seq,
    job::{AttemptState, Change, Job},
    limits,
    name::{Digest, JobId, SpiffeId, TenantName},
};

/// The state that a daemon starts with.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// The closed jobs in the order of their ends, then the open jobs.
    pub jobs: Vec<Job>,
    /// Idempotency keys of closed jobs that were dropped.
    pub keys: Vec<(CallerKey, KeyedJob)>,
    /// Uses of identities by closed jobs that were dropped.
    pub identities: Vec<(SpiffeId, Use)>,
    pub locks: Locks,
    pub logins: Logins,
    /// Emergencies without a review.
    pub reviews: Reviews,
    /// Whether closed jobs were dropped.
    pub forgot: bool,
    /// The last known sequence number of a lowering.
    pub seq: Seq,
    /// Whether the previous daemon shut down cleanly.
    pub in_order: bool,
}

/// A caller and one of its idempotency keys.
pub(super) type CallerKey = (SpiffeId, String);

/// The job that was created with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedJob {
    pub job: JobId,
    /// The tenant of the job. The key counts against its quota.
    pub tenant: TenantName,
    pub spec: Digest,
    pub at: LeaseTime,
}

impl KeyedJob {
    pub(super) fn of(job: &Job) -> (CallerKey, KeyedJob) {
        let tenant = job.spec.tenant.clone();
        let key = KeyedJob { job: job.id, tenant, spec: job.spec_digest, at: job.created };
        ((job.launcher.clone(), job.idempotency_key.clone()), key)
    }

    /// Whether the key is still remembered.
    pub(super) fn is_remembered(&self, now: LeaseTime) -> bool {
        now.since(self.at) < limits::IDEMPOTENCY
    }
}

/// The numbers of jobs, attempts and locks that the previous daemon left open, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenCounts {
    /// The number of open jobs.
    pub jobs: usize,
    /// The number of attempts without a joined member.
    pub suspended: usize,
    pub draining: usize,
    pub locks: usize,
}

impl Rebuilt {
    pub fn left(&self) -> OpenCounts {
        let mut left = OpenCounts { locks: self.locks.len(), ..OpenCounts::default() };
        for job in self.jobs.iter().filter(|j| !j.is_closed()) {
            left.jobs += 1;
            match job.current().map(|a| a.state) {
                Some(AttemptState::Suspended) => left.suspended += 1,
                Some(AttemptState::Draining(_)) => left.draining += 1,
                Some(AttemptState::Running | AttemptState::Ended(_)) | None => {}
            }
        }
        left
    }
}

/// Marks every joined member as away. A member has no access until it returns and policy decides about it
/// again.
pub(super) fn suspend(job: &mut Job, now: LeaseTime) {
    let Some(a) = job.current() else { return };
    let attempt = a.number;
    let joined: Vec<_> = a.present().map(|(i, _)| i.clone()).collect();
    for instance in joined {
        let detail = "the daemon was started again".to_owned();
        job.apply(&Change::MemberAway { attempt, instance, at: now, detail });
    }
    // Suspend an attempt too if no member had joined yet.
    if let Some(a) = job.attempts.last_mut().filter(|a| a.state == AttemptState::Running) {
        a.state = AttemptState::Suspended;
    }
}
