//! The state as it follows from the records.
//!
//! The state depends only on the records. A reader of all records and a reader that begins with a snapshot get the same
//! state and the same snapshot text. Nothing here reads a clock: [`rebuilt`](Recorded::rebuilt) applies the time.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rpds::RedBlackTreeMapSync;

use super::{
    closed::{Closed, ClosedPlace},
    identities::{Use, uses_of},
    locks::{Lock, LockName, Locks},
    logins::Logins,
    rebuild::{CallerKey, KeyedJob, Rebuilt, suspend},
    records::{change_of, job_of, login_of, seq_of},
    reviews::{DueReview, Reviews},
    size,
};
use crate::{
    clock::LeaseTime,
    fence::Seq,
    job::{Change, Job},
    ledger::Event,
    limits,
    name::{FenceKind, JobId, SpiffeId},
};

/// All state that outlives the process, up to the last record that was read. Copies share memory: one is written to a
/// file while the original changes.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    pub(super) jobs: RedBlackTreeMapSync<JobId, RecordedJob>,
    /// The closed jobs, in the order of their ends. Jobs past the bounds are dropped.
    pub(super) closed: Closed,
    /// The number of closed jobs that were dropped.
    pub(super) forgotten: u64,
    /// Idempotency keys of dropped jobs that are still remembered, and their order in time.
    pub(super) keys: RedBlackTreeMapSync<CallerKey, KeyedJob>,
    pub(super) keys_by_time: RedBlackTreeMapSync<(LeaseTime, CallerKey), ()>,
    /// Identities that dropped jobs still bind, in the order of the jobs' ends.
    pub(super) identities: RedBlackTreeMapSync<(SpiffeId, JobId), Use>,
    pub(super) identities_by_time: RedBlackTreeMapSync<(Option<LeaseTime>, SpiffeId, JobId), ()>,
    pub(super) locks: Arc<Locks>,
    pub(super) logins: Arc<Logins>,
    pub(super) reviews: Arc<Reviews>,
    pub(super) seq: Seq,
    /// Whether the last daemon recorded its shutdown.
    pub(super) in_order: bool,
}

/// A job, and its state before the last widening records. These records may be withdrawn during their epoch.
#[derive(Clone, Debug)]
pub(super) struct RecordedJob {
    pub(super) job: Arc<Job>,
    /// The index of the record that created the job.
    pub(super) made: u64,
    /// The job's bytes when it was created.
    pub(super) creation: usize,
    /// The job's position among the closed jobs.
    pub(super) turn: Option<ClosedPlace>,
    pub(super) before: Option<BeforeWidening>,
}

/// A job before a record that widened it, and all changes from that record on.
#[derive(Clone, Debug)]
pub(super) struct BeforeWidening {
    pub(super) job: Arc<Job>,
    pub(super) since: VecDeque<(u64, Change)>,
}

/// The highest number of changes that are kept to be applied again after a withdrawal. If there are more, the oldest
/// change becomes final.
const SINCE_MAX: usize = limits::MEMBERS_MAX as usize;
/// The time in which a widening record may be withdrawn. The wait for the disk, [`limits::LEDGER_WAIT`], is much
/// shorter.
const OPEN: Duration = limits::LEDGER_WAIT.saturating_mul(12);

impl RecordedJob {
    pub(super) fn new(job: Job, made: u64, before: Option<BeforeWidening>) -> Self {
        RecordedJob { creation: size::of_creation(&job), job: Arc::new(job), made, turn: None, before }
    }

    fn apply(&mut self, index: u64, change: Change) {
        if change.widens() && self.before.is_none() {
            self.before = Some(BeforeWidening { job: self.job.clone(), since: VecDeque::new() });
        }
        Arc::make_mut(&mut self.job).apply(&change);
        let Some(BeforeWidening { job, since }) = &mut self.before else { return };
        let now = change.widened_at();
        since.push_back((index, change));
        // Changes at the front that can no longer be withdrawn are final.
        let counts = |c: &Change| match (c.widened_at(), now) {
            (None, _) => true,
            (Some(at), Some(now)) => now.since(at) > OPEN,
            (Some(_), None) => false,
        };
        while let Some((_, first)) = since.front()
            && (since.len() > SINCE_MAX || counts(first))
        {
            Arc::make_mut(job).apply(first);
            since.pop_front();
        }
    }
}

impl Recorded {
    /// Applies one more event.
    pub fn take(&mut self, index: u64, event: Event) -> Result<(), &'static str> {
        // A snapshot adds nothing to the records before it, and may come after the end of an epoch.
        if matches!(event, Event::Snapshot(_)) {
            return Ok(());
        }
        self.seq = self.seq.max(seq_of(&event));
        self.in_order = matches!(event, Event::EpochEnded { .. });
        match event {
            Event::JobCreated(created) => self.create_job(index, job_of(*created)?)?,
            Event::EpochBegan(_) => self.end_widenings(),
            Event::Withdrawn { index, job, .. } => self.withdraw(index, job),
            Event::LockSet { name, by, of, reason, at, until, .. } => {
                let name: LockName = name.parse().map_err(|_| "its lock has no valid name")?;
                let locks = Arc::make_mut(&mut self.locks);
                locks.prune(at);
                Arc::make_mut(&mut self.logins).end_locked(&name);
                locks.insert(Lock { name, reason, by, of, since: at, until });
            }
            Event::Revoked { name, .. } | Event::Lowered { name, .. } => {
                if !self.logins.is_empty() {
                    Arc::make_mut(&mut self.logins).end_behind(&name);
                }
            }
            Event::PersonLoggedIn(login) => Arc::make_mut(&mut self.logins).insert(login_of(*login)),
            Event::PersonLoggedOut { certificate, .. } => {
                Arc::make_mut(&mut self.logins).remove(&certificate);
            }
            Event::DatasetRecalled { name, by, reason, at, .. } => {
                let name = LockName::Recall(name);
                Arc::make_mut(&mut self.locks).insert(Lock {
                    name,
                    reason,
                    by,
                    of: None,
                    since: at,
                    until: None,
                });
            }
            Event::DatasetUnrecalled { name, .. } => {
                Arc::make_mut(&mut self.locks).remove(&LockName::Recall(name));
            }
            Event::LockLifted { name, .. } => {
                let name: LockName = name.parse().map_err(|_| "its lock has no valid name")?;
                Arc::make_mut(&mut self.locks).remove(&name);
            }
            // The quarantine of a recall's outputs follows from the recall and ends with it.
            Event::OutputsQuarantined { because, .. } if matches!(because.kind(), FenceKind::Resource(_)) => {
            }
            Event::OutputsQuarantined { because, jobs } => {
                for id in jobs {
                    if self.jobs.contains_key(&id) {
                        self.change_job(index, id, Change::Compromised { because: because.clone() })?;
                    }
                }
            }
            Event::ReviewDone { job, .. } => {
                Arc::make_mut(&mut self.reviews).remove(&job);
            }
            other => {
                let Some((id, change, _)) = change_of(other) else { return Ok(()) };
                self.change_job(index, id, change)?;
            }
        }
        Ok(())
    }

    fn create_job(&mut self, index: u64, job: Job) -> Result<(), &'static str> {
        self.prune(job.created);
        if self.jobs.contains_key(&job.id) {
            return Err("it creates a job that exists already");
        }
        self.jobs.insert_mut(job.id, RecordedJob::new(job, index, None));
        Ok(())
    }

    fn change_job(&mut self, index: u64, id: JobId, change: Change) -> Result<(), &'static str> {
        let Some(entry) = self.jobs.get_mut(&id) else {
            // A dropped job is closed, so it cannot change.
            return if self.forgotten > 0 { Ok(()) } else { Err("it is about a job that does not exist") };
        };
        let is_emergency = matches!(change, Change::GlassBroken { .. });
        entry.apply(index, change);
        if is_emergency && let Some(review) = DueReview::of(&entry.job) {
            Arc::make_mut(&mut self.reviews).insert(id, review);
        }
        self.note_size(id);
        Ok(())
    }

    /// Makes all widening changes final when an epoch begins, because records of the previous daemon can no longer be
    /// withdrawn.
    fn end_widenings(&mut self) {
        let widened = self.jobs.iter().filter(|(_, entry)| entry.before.is_some());
        for id in widened.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(entry) = self.jobs.get_mut(&id) {
                entry.before = None;
            }
        }
    }

    /// Undoes a widening record, and applies the later changes again.
    fn withdraw(&mut self, index: u64, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        if entry.made == index {
            // No caller got an answer about this job, so remove it, unless it has begun or is closed.
            if entry.job.attempts.is_empty() && !entry.job.is_closed() {
                self.jobs.remove_mut(&id);
            }
            return;
        }
        let Some(BeforeWidening { job, since }) = &mut entry.before else { return };
        let Ok(place) = since.binary_search_by_key(&index, |(i, _)| *i) else { return };
        since.remove(place);
        entry.job = job.clone();
        let job = Arc::make_mut(&mut entry.job);
        since.iter().for_each(|(_, change)| job.apply(change));
        if job.emergency.is_none() && self.reviews.contains_key(&id) {
            Arc::make_mut(&mut self.reviews).remove(&id);
        }
        self.note_size(id);
    }

    /// Returns the state with which a daemon starts at `now`: joined members are away, and expired locks are removed.
    pub fn rebuilt(&self, now: LeaseTime) -> Rebuilt {
        let mut locks = Locks::clone(&self.locks);
        locks.prune(now);
        let mut logins = Logins::clone(&self.logins);
        logins.prune(now);
        let jobs = self.ordered().map(|job| {
            let mut job = Job::clone(&job.job);
            suspend(&mut job, now);
            job
        });
        Rebuilt {
            jobs: jobs.collect(),
            keys: self.keys.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            identities: self.identities.iter().map(|((id, _), u)| (id.clone(), *u)).collect(),
            locks,
            logins,
            reviews: Reviews::clone(&self.reviews),
            forgot: self.forgotten > 0,
            seq: self.seq,
            in_order: self.in_order,
        }
    }

    /// Returns the closed jobs in the order of their ends, then the open jobs by id.
    pub(super) fn ordered(&self) -> impl Iterator<Item = &RecordedJob> {
        let open = self.jobs.values().filter(|e| e.turn.is_none());
        self.closed.iter().filter_map(|id| self.jobs.get(&id)).chain(open)
    }

    /// Keeps the closed jobs within their bounds after a job changed.
    fn note_size(&mut self, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let bytes = size::of_job(entry.creation, &entry.job);
        match (entry.turn, entry.job.is_closed()) {
            (Some(turn), true) => return self.closed.weigh(turn, bytes),
            (Some(turn), false) => {
                entry.turn = None;
                return self.closed.remove(turn);
            }
            (None, false) => return,
            (None, true) => entry.turn = Some(self.closed.push(id, &entry.job.spec.tenant, bytes)),
        }
        while let Some(old) = self.closed.give_up() {
            let Some(RecordedJob { job, .. }) = self.jobs.get(&old).cloned() else { continue };
            self.jobs.remove_mut(&old);
            self.forgotten = self.forgotten.saturating_add(1);
            let (key, made) = KeyedJob::of(&job);
            self.put_key(key, made);
            uses_of(&job).into_iter().for_each(|(id, of)| self.put_identity(id, of));
        }
    }

    pub(super) fn put_key(&mut self, of: CallerKey, key: KeyedJob) {
        if let Some(before) = self.keys.get(&of) {
            self.keys_by_time.remove_mut(&(before.at, of.clone()));
        }
        self.keys_by_time.insert_mut((key.at, of.clone()), ());
        self.keys.insert_mut(of, key);
    }

    pub(super) fn put_identity(&mut self, id: SpiffeId, of: Use) {
        let place = (id, of.job);
        if let Some(before) = self.identities.get(&place) {
            self.identities_by_time.remove_mut(&(before.closed, place.0.clone(), place.1));
        }
        self.identities_by_time.insert_mut((of.closed, place.0.clone(), place.1), ());
        self.identities.insert_mut(place, of);
    }

    /// Drops keys and identities that no longer count. The cost depends only on the number of dropped entries.
    fn prune(&mut self, now: LeaseTime) {
        while let Some(((at, of), ())) = self.keys_by_time.first()
            && let (at, of) = (*at, of.clone())
            && self.keys.get(&of).is_none_or(|key| !key.is_remembered(now))
        {
            self.keys.remove_mut(&of);
            self.keys_by_time.remove_mut(&(at, of));
        }
        // An identity in a job without an end would be sorted first. It stays bound, so do not drop it.
        while let Some(((closed @ Some(_), id, job), ())) = self.identities_by_time.first()
            && let place = (id.clone(), *job)
            && let closed = *closed
            && self.identities.get(&place).is_none_or(|of| !of.binds(now))
        {
            self.identities.remove_mut(&place);
            self.identities_by_time.remove_mut(&(closed, place.0, place.1));
        }
    }
}
