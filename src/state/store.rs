//! The store: the state in memory, and the order of its changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::{
    keys::KeyUse,
    locks::{Lock, LockName},
    logins::Login,
    rebuild::{KeyedJob, Rebuilt},
    size,
    store_state::StoreState,
};
use crate::{
    clock::{Clock, LeaseTime},
    fence::Registry,
    job::Job,
    ledger::Ledger,
    limits,
    name::{Digest, FenceName, HumanName, JobId, SpiffeId},
};

/// The state in memory. One mutex orders its changes. It is held only for short, synchronous steps, never across an
/// await. While it is held, the store calls the table of leases (in [`Store::lock_lease`]), the fence registry and the
/// ledger's queue, in that order. None of them calls the store.
pub struct Store {
    pub(super) inner: Mutex<StoreState>,
    /// Wakes the tasks that wait for the end of a widening change of a job or key.
    pub(super) freed: Notify,
    pub(super) fences: Arc<Registry>,
    pub(super) ledger: Ledger,
    pub(super) clock: Arc<dyn Clock>,
}

/// The number of jobs that `list` reads each time it locks the mutex.
const LIST_BATCH: usize = 256;

impl Store {
    /// Makes a store with the state that was rebuilt from the ledger.
    pub fn new(rebuilt: Rebuilt, fences: Arc<Registry>, ledger: Ledger, clock: Arc<dyn Clock>) -> Self {
        let mut inner = StoreState {
            locks: rebuilt.locks,
            logins: rebuilt.logins,
            reviews: rebuilt.reviews,
            forgot: rebuilt.forgot,
            ..StoreState::default()
        };
        for job in rebuilt.jobs {
            let (key, made) = KeyedJob::of(&job);
            inner.keys.put(key, made);
            let creation = size::of_creation(&job);
            if !job.is_closed() {
                inner.open.add(&job.spec.tenant, size::of_job(creation, &job));
            }
            inner.put(job, creation);
        }
        for (id, of) in rebuilt.identities {
            inner.identities.record_use(&id, of);
        }
        for (key, made) in rebuilt.keys {
            // If a key was reused after it expired, it belongs to the newer job.
            if inner.keys.find(&key.0, &key.1).is_none() {
                inner.keys.put(key, made);
            }
        }
        Store { inner: Mutex::new(inner), freed: Notify::new(), fences, ledger, clock }
    }

    // Each step completes its change before it drops the guard, so a panic elsewhere leaves no incomplete change.
    pub(super) fn lock_inner(&self) -> MutexGuard<'_, StoreState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the job as it is now.
    pub fn job(&self, id: JobId) -> Option<Arc<Job>> {
        self.lock_inner().jobs.get(&id).map(|s| s.job.clone())
    }

    /// Returns a receiver of the job. It has the present state and gets each change. A slow watcher sees only the
    /// newest state.
    pub fn watch(&self, id: JobId) -> Option<watch::Receiver<Arc<Job>>> {
        self.lock_inner().jobs.get(&id).map(|s| s.watch.subscribe())
    }

    /// Returns jobs that pass a filter, newest first. Begins after the cursor `below`.
    pub fn list(
        &self,
        below: Option<(LeaseTime, JobId)>,
        max: usize,
        mut pass: impl FnMut(&Job) -> bool,
    ) -> Vec<Arc<Job>> {
        let mut upper = below.unwrap_or((LeaseTime(u64::MAX), JobId(u128::MAX)));
        let mut found = Vec::new();
        while found.len() < max {
            // The filter runs without the mutex, and each step reads a bounded number of jobs, because others need the mutex
            // meanwhile.
            let some: Vec<_> = {
                let inner = self.lock_inner();
                let keys = inner.order.range(..upper).rev().take(LIST_BATCH);
                keys.map(|(key, ())| (*key, inner.jobs.get(&key.1).map(|s| s.job.clone()))).collect()
            };
            let Some((last, _)) = some.last() else { break };
            upper = *last;
            let left = max - found.len();
            found.extend(some.into_iter().filter_map(|(_, job)| job).filter(|job| pass(job)).take(left));
        }
        found
    }

    /// Returns all jobs that are not closed.
    pub fn open_jobs(&self) -> Vec<Arc<Job>> {
        self.lock_inner().jobs.values().filter(|s| !s.job.is_closed()).map(|s| s.job.clone()).collect()
    }

    /// Waits until no widening change of a job, except joins, is being recorded. A reader of the ledger may see the
    /// record of such a change a moment before the change is in force.
    pub async fn settled(&self, id: JobId) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if !self.lock_inner().jobs.get(&id).is_some_and(|slot| slot.under_way.is_beginning()) {
                return;
            }
            freed.await;
        }
    }

    /// Returns the open jobs, except `job`, in which an identity is or was a member.
    pub fn open_elsewhere(&self, id: &SpiffeId, job: JobId) -> Vec<JobId> {
        self.lock_inner().identities.open_elsewhere(id, job).collect()
    }

    /// Returns the other job to which an identity is bound now.
    pub fn bound_elsewhere(&self, id: &SpiffeId, job: JobId) -> Option<JobId> {
        let now = self.clock.now().lease;
        self.lock_inner().identities.bound_elsewhere(id, job, now)
    }

    /// Whether an identity is or was a member of a job that is not forgotten.
    pub fn binds(&self, id: &SpiffeId) -> bool {
        self.lock_inner().identities.contains(id)
    }

    /// Returns an open job of another launcher in which the identity is or was a member.
    pub fn open_launched_by_others(&self, id: &SpiffeId) -> Option<JobId> {
        let inner = self.lock_inner();
        let is_others = |job: &JobId| inner.jobs.get(job).is_some_and(|s| s.job.launcher != *id);
        inner.identities.open(id).find(is_others)
    }

    /// Returns the identities of a job's current attempt that are or were members of other open jobs too, with those jobs.
    /// At most [`limits::IDENTITIES_SHOWN`] identities are checked.
    pub fn identities_in_several_jobs(&self, job: &Job) -> Vec<(SpiffeId, Vec<JobId>)> {
        let Some(a) = job.current() else { return Vec::new() };
        let inner = self.lock_inner();
        let of =
            |id: &SpiffeId| (id.clone(), inner.identities.open_elsewhere(id, job.id).collect::<Vec<_>>());
        a.members
            .identities()
            .take(limits::IDENTITIES_SHOWN)
            .map(of)
            .filter(|(_, jobs)| !jobs.is_empty())
            .collect()
    }

    /// Returns the job that a caller's idempotency key made, if the key is remembered.
    pub fn by_key(&self, launcher: &SpiffeId, key: &str) -> Option<Arc<Job>> {
        let inner = self.lock_inner();
        match inner.keys.find(launcher, key)? {
            KeyUse::Made(made) => inner.jobs.get(&made.job).map(|s| s.job.clone()),
            KeyUse::Pending { .. } => None,
        }
    }

    /// Whether there are locks, including expired ones. Usually there are none.
    pub fn has_locks(&self) -> bool {
        !self.lock_inner().locks.is_empty()
    }

    /// Returns the lock in force on one of these names.
    pub fn lock_on<'a>(&self, names: impl Iterator<Item = &'a FenceName>) -> Option<Lock> {
        let now = self.clock.now().lease;
        self.lock_inner().locks.against(names, now).cloned()
    }

    /// Returns up to `max` locks in force on these names. A lock on several names occurs once.
    pub fn locks_on<'a>(&self, names: impl Iterator<Item = &'a FenceName>, max: usize) -> Vec<Lock> {
        let now = self.clock.now().lease;
        let inner = self.lock_inner();
        let mut found: Vec<Lock> = Vec::new();
        for lock in names.filter_map(|name| inner.locks.against([name].into_iter(), now)) {
            if found.len() >= max {
                break;
            }
            if found.iter().all(|known| known.name != lock.name) {
                found.push(lock.clone());
            }
        }
        found
    }

    /// Whether closed jobs were dropped. Dropped jobs are only in the ledger.
    pub fn has_forgotten(&self) -> bool {
        self.lock_inner().forgot
    }

    /// Returns the lock in force with this name.
    pub fn lock_named(&self, name: &LockName) -> Option<Lock> {
        let now = self.clock.now().lease;
        self.lock_inner().locks.find(name, now).cloned()
    }

    /// Returns up to `max` locks in force, in the order of their names. Begins after the name
    /// `after`.
    pub fn locks(&self, after: Option<&LockName>, max: usize) -> Vec<Lock> {
        let now = self.clock.now().lease;
        self.lock_inner().locks.beyond(after).filter(|l| l.stands(now)).take(max).cloned().collect()
    }

    /// Returns the login in force of a certificate, by the digest of the certificate.
    pub fn login(&self, certificate: &Digest) -> Option<Arc<Login>> {
        let now = self.clock.now().lease;
        self.lock_inner().logins.find(certificate, now).cloned()
    }

    /// Returns the number of logins that a revocation of a name would end.
    pub fn logins_behind(&self, name: &FenceName) -> usize {
        let now = self.clock.now().lease;
        self.lock_inner().logins.count_behind(name, now)
    }

    /// Whether a person has a login in force.
    pub fn is_logged_in(&self, human: &HumanName) -> bool {
        let now = self.clock.now().lease;
        self.lock_inner().logins.iter().any(|login| login.human == *human && now < login.until)
    }

    /// Returns the newest login in force of an identity.
    pub fn login_of(&self, id: &SpiffeId) -> Option<Arc<Login>> {
        let now = self.clock.now().lease;
        self.lock_inner().logins.of(id, now).cloned()
    }

    /// Drops old keys, expired locks and logins, and identities that no job binds now.
    pub fn prune(&self, now: LeaseTime) {
        let mut inner = self.lock_inner();
        inner.locks.prune(now);
        inner.logins.prune(now);
        inner.identities.prune(now);
        inner.keys.prune(now);
    }
}
