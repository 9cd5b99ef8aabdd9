//! Changes that narrow access: they take effect at once.

use std::{convert::Infallible, sync::Arc};

use super::{
    locks::{Lock, LockName},
    lowering_run,
    records::change_record,
    refused::Refused,
    store::Store,
};
use crate::{
    clock::LeaseTime,
    fence::{Lowered, Revision, Seq},
    job::{Change, Job, JobState, ReportedUse},
    ledger::{Actor, Deferred, Ending, Event, JOBS_PER_RECORD},
    limits,
    name::{Digest, FenceName, JobId, LeaseId, SpiffeId},
    sync::release_woken_task,
};

/// A narrowing change that is in force.
pub struct Committed<T> {
    pub value: T,
    pub ending: Ending,
    /// The fences that were lowered. The caller cleans up behind them.
    pub lowered: Vec<FenceName>,
    /// The last record of the change. `None` if nothing changed.
    pub record: Option<Deferred>,
}

impl Store {
    /// Makes narrowing changes of a job: decides under the mutex, applies them, lowers their fences, and queues their
    /// records in the ledger.
    pub fn narrow<E>(
        &self,
        id: JobId,
        by: &Actor,
        decide: impl FnOnce(&Job) -> Result<Vec<Change>, E>,
    ) -> Result<Committed<Arc<Job>>, Refused<E>> {
        // Read the clock before the first change, so that each change is complete, with its lowering and its record.
        let now = self.clock.now().lease;
        let mut inner = self.lock_inner();
        let slot = inner.jobs.get(&id).ok_or(Refused::NoJob)?;
        let changes = decide(&slot.job).map_err(Refused::Transition)?;
        let mut done = Committed {
            value: slot.job.clone(),
            ending: Ending { seq: 0, behind: 0 },
            lowered: Vec::new(),
            record: None,
        };
        for change in changes {
            let names = done.value.fences_of(&change);
            done.value = inner.apply(id, &change).ok_or(Refused::NoJob)?;
            let mut one = Ending::default();
            for name in names {
                let l = self.lower_fence(&name, now);
                one.seq = one.seq.max(l.seq.0);
                one.behind = one.behind.max(l.behind);
                done.lowered.push(name);
            }
            done.ending.seq = done.ending.seq.max(one.seq);
            done.ending.behind = done.ending.behind.max(one.behind);
            done.record = Some(self.ledger.defer(&change_record(id, &change, by.clone(), None, one)));
            // If the end of an attempt closes its job, record that too: even if other changes are recorded meanwhile,
            // the job is closed after a restart.
            if let (JobState::Closed(outcome), false) =
                (done.value.state, matches!(change, Change::Closed { .. }))
            {
                let at = done.value.closed.unwrap_or(now);
                let closed = Change::Closed { outcome, at, detail: done.value.detail.clone() };
                done.record = Some(self.ledger.defer(&change_record(id, &closed, by.clone(), None, one)));
            }
        }
        if done.ending.seq == 0 {
            done.ending.seq = self.fences.seq().0;
        }
        Ok(done)
    }

    /// Ends all access behind a name. The state of the named subject does not change, and new access behind the name is
    /// valid.
    pub fn revoke(&self, name: &FenceName, by: Actor, reason: &str) -> Committed<()> {
        self.lower_and_record(name, None, |name, ending| Event::Revoked {
            name,
            by,
            reason: reason.to_owned(),
            ending,
        })
    }

    /// Ends one login. Returns `None` if the login is over already.
    pub fn log_out(&self, certificate: &Digest, by: Actor) -> Option<Deferred> {
        let at = self.clock.now().lease;
        let mut inner = self.lock_inner();
        let login = inner.logins.remove(certificate)?;
        Some(self.ledger.defer(&Event::PersonLoggedOut {
            person: login.id.clone(),
            human: login.human.clone(),
            certificate: login.certificate,
            serial: login.serial.clone(),
            by,
            at,
        }))
    }

    /// Marks the outputs of jobs as quarantined because of a compromise. Returns the number of newly marked jobs.
    pub fn quarantine(&self, because: &FenceName, jobs: &[JobId]) -> usize {
        let change = Change::Compromised { because: because.clone() };
        let mut inner = self.lock_inner();
        let is_unmarked = |id: &JobId| inner.jobs.get(id).is_some_and(|slot| slot.job.compromised.is_none());
        let unmarked: Vec<JobId> = jobs.iter().copied().filter(is_unmarked).collect();
        for id in &unmarked {
            inner.apply(*id, &change);
        }
        for jobs in unmarked.chunks(JOBS_PER_RECORD) {
            self.ledger.defer(&Event::OutputsQuarantined { because: because.clone(), jobs: jobs.to_vec() });
        }
        unmarked.len()
    }

    /// Adds a gateway's report to a job. Does nothing if the job is unknown.
    pub fn note_use(&self, job: JobId, audience: &SpiffeId, uses: Vec<ReportedUse>, by: Actor) {
        let change = Change::Used { audience: audience.clone(), uses };
        let mut inner = self.lock_inner();
        if inner.jobs.contains_key(&job) {
            inner.apply(job, &change);
            self.ledger.defer(&change_record(job, &change, by, None, Ending::default()));
        }
    }

    /// Revokes one lease. The caller has already ended the lease, because no lease has a stand behind a lease's name.
    /// `behind` is the number of ended leases, 0 or 1.
    pub fn revoke_lease(&self, id: LeaseId, behind: u64, by: Actor, reason: &str) -> Committed<()> {
        let name = FenceName::lease(id);
        self.lower_and_record(&name, Some(behind), |name, ending| Event::Revoked {
            name,
            by,
            reason: reason.to_owned(),
            ending,
        })
    }

    /// Lowers a fence as the consequence of another event, such as a drain or a sweep.
    pub fn lower(&self, name: &FenceName, because: &str) -> Committed<()> {
        self.lower_and_record(name, None, |name, ending| Event::Lowered {
            name,
            because: because.to_owned(),
            ending,
        })
    }

    /// Lowers the fence of one lease. The caller has already ended the lease. `behind` as in [`Store::revoke_lease`].
    pub fn lower_lease(&self, id: LeaseId, behind: u64, because: &str) -> Committed<()> {
        let name = FenceName::lease(id);
        self.lower_and_record(&name, Some(behind), |name, ending| Event::Lowered {
            name,
            because: because.to_owned(),
            ending,
        })
    }

    /// Lowers a fence. The caller then sweeps without a pause, and some callers lower many fences. If that is much work, this first
    /// lets another thread tell the verifiers.
    pub(super) fn lower_fence(&self, name: &FenceName, now: LeaseTime) -> Lowered {
        let lowered = self.fences.lower(name, now);
        let is_long_run = lowered.first && lowering_run::is_long(now);
        if is_long_run || (lowered.first && lowered.behind > limits::SWEPT_IN_TASK_MAX) {
            release_woken_task();
        }
        lowered
    }

    fn lower_and_record(
        &self,
        name: &FenceName,
        behind: Option<u64>,
        event: impl FnOnce(FenceName, Ending) -> Event,
    ) -> Committed<()> {
        let mut inner = self.lock_inner();
        let l = self.lower_fence(name, self.clock.now().lease);
        let logins = inner.logins.end_behind(name);
        let mut ending = ending(l);
        ending.behind = behind.unwrap_or(ending.behind);
        // The record ends the logins again after a restart.
        let record = (l.first || logins > 0).then(|| self.ledger.defer(&event(name.clone(), ending)));
        Committed { value: (), ending, lowered: vec![name.clone()], record }
    }

    /// Locks a name: ends the access behind the name, and admits no new access. A prefix or a launcher has no fence:
    /// the revision is raised, and the caller ends the existing access.
    pub fn lock(&self, lock: Lock) -> Result<(Committed<Lock>, Option<Revision>), Refused<Infallible>> {
        self.lock_and_end(lock, None::<fn() -> u64>)
    }

    /// Locks one lease. When the lock is certain to be set, `end` ends the lease and returns the number of ended
    /// leases, 0 or 1. `end` must be short and must not call the store.
    pub fn lock_lease(
        &self,
        lock: Lock,
        end: impl FnOnce() -> u64,
    ) -> Result<Committed<Lock>, Refused<Infallible>> {
        self.lock_and_end(lock, Some(end)).map(|(done, _)| done)
    }

    fn lock_and_end(
        &self,
        lock: Lock,
        end: Option<impl FnOnce() -> u64>,
    ) -> Result<(Committed<Lock>, Option<Revision>), Refused<Infallible>> {
        let mut inner = self.lock_inner();
        if !inner.locks.has_room(&lock) {
            inner.locks.prune(self.clock.now().lease);
        }
        if !inner.locks.has_room(&lock) {
            return Err(Refused::TooManyLocks);
        }
        let now = lock.since;
        let lock = inner.locks.insert(lock).clone();
        inner.logins.end_locked(&lock.name);
        let (ending, lowered, revision) = match lock.name.fence() {
            Some(name) => {
                let own = end.map(|end| end());
                let l = self.lower_fence(&name, now);
                let mut ending = ending(l);
                ending.behind = own.unwrap_or(ending.behind);
                (ending, vec![name], None)
            }
            None => {
                let revision = self.fences.raise_revision();
                (Ending { seq: self.fences.seq().0, behind: 0 }, Vec::new(), Some(revision))
            }
        };
        let record = self.ledger.defer(&lock_record(&lock, ending));
        Ok((Committed { value: lock, ending, lowered, record: Some(record) }, revision))
    }
}

pub(super) fn lock_record(lock: &Lock, ending: Ending) -> Event {
    if let LockName::Recall(name) = &lock.name {
        let (name, by, reason) = (name.clone(), lock.by.clone(), lock.reason.clone());
        return Event::DatasetRecalled { name, by, reason, at: lock.since, ending };
    }
    Event::LockSet {
        name: lock.name.to_string(),
        by: lock.by.clone(),
        of: lock.of.clone(),
        reason: lock.reason.clone(),
        at: lock.since,
        until: lock.until,
        ending,
    }
}

pub(super) fn ending(l: Lowered) -> Ending {
    let Lowered { seq: Seq(seq), behind, .. } = l;
    Ending { seq, behind }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;
    use crate::{
        fence::Registry,
        ledger::{Ledger, Options, forgetful::Forgetful},
        state::{Rebuilt, testing::clock},
    };

    /// Returns a store, its fences, and a receiver that gets `true` when the feed hears of a lowering.
    fn store_and_feed() -> (Store, Arc<Registry>, mpsc::Receiver<bool>) {
        let clock = clock();
        let opened =
            Ledger::open_on(Arc::new(Forgetful::default()), clock.clone(), Options::default()).unwrap();
        let fences = Arc::new(Registry::new(Seq(0)));
        let store = Store::new(Rebuilt::default(), fences.clone(), opened.ledger, clock);
        let (send, heard) = mpsc::channel();
        let mut feed = fences.listen();
        tokio::spawn(async move { send.send(feed.recv().await.is_ok()).unwrap() });
        (store, fences, heard)
    }

    // A caller lowers a fence and sweeps without a pause. The feed, which a worker has just woken, does not wait for that.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_feed_hears_of_a_lowering_during_a_sweep() {
        let caller = tokio::spawn(async move {
            let (store, fences, heard) = store_and_feed();
            // After this pause, the feed waits for a lowering.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let name = FenceName::lease(LeaseId(1));
            let stand = fences.stand([name.clone()]);
            (0..=limits::SWEPT_IN_TASK_MAX).for_each(|_| stand.enter());
            store.lower(&name, "a test");
            heard.recv_timeout(Duration::from_secs(20))
        });
        assert_eq!(caller.await.unwrap(), Ok(true));
    }

    // A caller lowers many fences without a pause. No fence has a lease behind it. The feed hears of a lowering before the caller
    // stops.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_feed_hears_of_a_lowering_during_a_run() {
        let caller = tokio::spawn(async move {
            let (store, _, heard) = store_and_feed();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let end = store.clock.now().lease.plus(Duration::from_secs(5));
            (1..).map(LeaseId).take_while(|_| store.clock.now().lease < end).find_map(|id| {
                store.lower(&FenceName::lease(id), "a test");
                heard.try_recv().ok()
            })
        });
        assert_eq!(caller.await.unwrap(), Some(true));
    }
}
