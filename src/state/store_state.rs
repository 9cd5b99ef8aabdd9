//! The jobs, keys, identities and locks that the store's mutex guards.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::watch;

use super::{
    closed::Closed,
    identities::{Identities, Use, uses_of},
    keys::IdempotencyKeys,
    locks::Locks,
    logins::Logins,
    reviews::{DueReview, Reviews},
    size::{self, OpenJobs},
};
use crate::{
    clock::LeaseTime,
    job::{Change, Job, SweepPlace},
    name::{AttemptNumber, InstanceName, JobId},
};

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) job: Arc<Job>,
    /// The job's bytes when it was created.
    pub(super) creation: usize,
    pub(super) under_way: UnderWay,
    pub(super) watch: watch::Sender<Arc<Job>>,
}

/// The widening changes of one job whose records are being written. Narrowing changes never wait for them.
///
/// Joins of different instances run in parallel, so thousands of joins of one job cost a few writes. Each join is
/// decided again when its record is on disk. A begin of an attempt waits only for another begin, because it ends all
/// joins before it.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    beginning: bool,
    joining: HashSet<(AttemptNumber, InstanceName)>,
}

impl UnderWay {
    /// Marks a change as under way. Returns false if the change must wait for another change.
    pub(super) fn enter(&mut self, change: &Change) -> bool {
        match change {
            Change::MemberJoined { attempt, instance, .. } => {
                self.joining.insert((*attempt, instance.clone()))
            }
            _ => !std::mem::replace(&mut self.beginning, true),
        }
    }

    /// Whether a change other than a join is under way.
    pub(super) fn is_beginning(&self) -> bool {
        self.beginning
    }

    pub(super) fn leave(&mut self, change: &Change) {
        match change {
            Change::MemberJoined { attempt, instance, .. } => {
                self.joining.remove(&(*attempt, instance.clone()));
            }
            _ => self.beginning = false,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct StoreState {
    pub(super) jobs: HashMap<JobId, Slot>,
    /// The jobs in the order of their creation, for lists.
    pub(super) order: BTreeMap<(LeaseTime, JobId), ()>,
    pub(super) closed: Closed,
    pub(super) open: OpenJobs,
    pub(super) keys: IdempotencyKeys,
    pub(super) identities: Identities,
    pub(super) locks: Locks,
    pub(super) logins: Logins,
    pub(super) reviews: Reviews,
    /// Places in parameter sweeps, for jobs that are being recorded.
    pub(super) pending_sweep_places: HashSet<SweepPlace>,
    /// Whether closed jobs were dropped, in this run of the daemon or before.
    pub(super) forgot: bool,
}

impl StoreState {
    /// Adds a job. An open job is counted already.
    pub(super) fn put(&mut self, job: Job, creation: usize) -> Arc<Job> {
        let job = Arc::new(job);
        self.order.insert((job.created, job.id), ());
        for (id, of) in uses_of(&job) {
            self.identities.record_use(&id, of);
        }
        let watch = watch::Sender::new(job.clone());
        self.jobs.insert(job.id, Slot { job: job.clone(), creation, under_way: UnderWay::default(), watch });
        if job.is_closed() {
            self.remember_closed(&job, size::of_job(creation, &job));
        }
        job
    }

    pub(super) fn apply(&mut self, id: JobId, change: &Change) -> Option<Arc<Job>> {
        let slot = self.jobs.get_mut(&id)?;
        let was_open = !slot.job.is_closed();
        let before = size::of_job(slot.creation, &slot.job);
        let mut next = Job::clone(&slot.job);
        next.apply(change);
        let job = Arc::new(next);
        slot.job = job.clone();
        let bytes = size::of_job(slot.creation, &job);
        slot.watch.send_replace(job.clone());
        if let Change::MemberJoined { attempt, member, .. } = change
            && let Some(a) = job.attempt(*attempt)
        {
            self.identities.record_use(member, Use { job: id, first: a.began, closed: None });
        }
        if matches!(change, Change::GlassBroken { .. })
            && let Some(review) = DueReview::of(&job)
        {
            self.reviews.insert(id, review);
        }
        if was_open && job.is_closed() {
            self.open.remove(&job.spec.tenant, before);
            self.identities.closed(&job);
            self.remember_closed(&job, bytes);
        } else if was_open {
            self.open.replace(&job.spec.tenant, before, bytes);
        }
        Some(job)
    }

    fn remember_closed(&mut self, job: &Job, bytes: usize) {
        self.closed.push(job.id, &job.spec.tenant, bytes);
        while let Some(old) = self.closed.give_up() {
            self.forgot = true;
            if let Some(slot) = self.jobs.remove(&old) {
                self.order.remove(&(slot.job.created, old));
            }
        }
    }
}
