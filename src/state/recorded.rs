//! What the records say, one after the other, and the same as a text that a ledger segment can begin with.
//!
//! The text is a function of the records alone: whoever reads all of them, and whoever begins with a snapshot on the way,
//! comes to the same bytes. Nothing here reads a clock; what time makes of it is for [`rebuilt`](Recorded::rebuilt).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rpds::RedBlackTreeMapSync;

use super::{
    closed::{Closed, ClosedPlace},
    identities::{Use, uses_of},
    locks::{Lock, LockName, Locks},
    rebuild::{KeyOf, KeyedJob, Rebuilt, suspend},
    records::{change_of, job_of, seq_of},
    size,
};
use crate::{
    clock::LeaseTime,
    fence::Seq,
    job::{Change, Job},
    ledger::Event,
    limits,
    name::{JobId, SpiffeId},
};

/// All that outlives the process, as far as the records were read. A copy shares what is equal: one is written to a file
/// while the original goes on.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    pub(super) jobs: RedBlackTreeMapSync<JobId, RecordedJob>,
    /// In the order in which they were closed; what is past the bounds is forgotten.
    pub(super) closed: Closed,
    /// Closed jobs that are no longer here.
    pub(super) forgotten: u64,
    /// Idempotency keys of forgotten jobs, while they count, and these in the order of their times.
    pub(super) keys: RedBlackTreeMapSync<KeyOf, KeyedJob>,
    pub(super) keys_by_time: RedBlackTreeMapSync<(LeaseTime, KeyOf), ()>,
    /// Identities of forgotten jobs, while they count, and these in the order of the jobs' ends.
    pub(super) identities: RedBlackTreeMapSync<(SpiffeId, JobId), Use>,
    pub(super) identities_by_time: RedBlackTreeMapSync<(Option<LeaseTime>, SpiffeId, JobId), ()>,
    pub(super) locks: Arc<Locks>,
    pub(super) seq: Seq,
    /// Whether the last life said that it ended.
    pub(super) in_order: bool,
}

/// A job, and what it was before the records that widened it lately: those may be withdrawn, as long as their epoch lasts.
#[derive(Clone, Debug)]
pub(super) struct RecordedJob {
    pub(super) job: Arc<Job>,
    /// The index of the record that made it.
    pub(super) made: u64,
    /// What it took when it was created, in bytes.
    pub(super) creation: usize,
    /// Its place among the closed ones.
    pub(super) turn: Option<ClosedPlace>,
    pub(super) before: Option<BeforeWidening>,
}

/// A job before a record that widened it, and all that came from there on, that record first.
#[derive(Clone, Debug)]
pub(super) struct BeforeWidening {
    pub(super) job: Arc<Job>,
    pub(super) since: VecDeque<(u64, Change)>,
}

/// Changes that are kept to be made again after a withdrawal; past so many the oldest counts.
const SINCE_MAX: usize = limits::MEMBERS_MAX as usize;
/// How long a record that widens may still be withdrawn. It waits for the disk for [`limits::LEDGER_WAIT`]; this is far more.
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
        // What came first and can no longer be withdrawn counts.
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
    /// Takes one more event.
    pub fn take(&mut self, index: u64, event: Event) -> Result<(), &'static str> {
        // It says what the records before it gave, and may come after the end of an epoch.
        if matches!(event, Event::Snapshot(_)) {
            return Ok(());
        }
        self.seq = self.seq.max(seq_of(&event));
        self.in_order = matches!(event, Event::EpochEnded { .. });
        match event {
            Event::JobCreated(created) => {
                let job = job_of(*created)?;
                self.prune(job.created);
                if self.jobs.contains_key(&job.id) {
                    return Err("it creates a job that is there already");
                }
                self.jobs.insert_mut(job.id, RecordedJob::new(job, index, None));
            }
            // Nothing of the life before is under way any more.
            Event::EpochBegan(_) => {
                let under_way = self.jobs.iter().filter(|(_, e)| e.before.is_some());
                for id in under_way.map(|(id, _)| *id).collect::<Vec<_>>() {
                    if let Some(entry) = self.jobs.get_mut(&id) {
                        entry.before = None;
                    }
                }
            }
            Event::Withdrawn { index, job, .. } => self.withdraw(index, job),
            Event::LockSet { name, by, of, reason, at, until, .. } => {
                let name: LockName = name.parse().map_err(|_| "its lock has no valid name")?;
                let locks = Arc::make_mut(&mut self.locks);
                locks.prune(at);
                locks.insert(Lock { name, reason, by, of, since: at, until });
            }
            Event::LockLifted { name, .. } => {
                let name: LockName = name.parse().map_err(|_| "its lock has no valid name")?;
                Arc::make_mut(&mut self.locks).remove(&name);
            }
            other => {
                let Some((id, change, _)) = change_of(other) else { return Ok(()) };
                let Some(entry) = self.jobs.get_mut(&id) else {
                    // One that was forgotten is closed, and nothing changes it.
                    return if self.forgotten > 0 {
                        Ok(())
                    } else {
                        Err("it is about a job that is not there")
                    };
                };
                entry.apply(index, change);
                self.note_size(id);
            }
        }
        Ok(())
    }

    /// Undoes a record that widened, and makes again what came after it.
    fn withdraw(&mut self, index: u64, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        if entry.made == index {
            // Nobody was told of it.
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
        self.note_size(id);
    }

    /// What a new life begins with: whoever was joined is away since `now`, and locks whose time is over are gone.
    pub fn rebuilt(&self, now: LeaseTime) -> Rebuilt {
        let mut locks = Locks::clone(&self.locks);
        locks.prune(now);
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
            seq: self.seq,
            in_order: self.in_order,
        }
    }

    /// The closed ones as they were closed, then the open ones by id.
    pub(super) fn ordered(&self) -> impl Iterator<Item = &RecordedJob> {
        let open = self.jobs.values().filter(|e| e.turn.is_none());
        self.closed.iter().filter_map(|id| self.jobs.get(&id)).chain(open)
    }

    /// Keeps the closed ones within their bounds after a job changed.
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

    pub(super) fn put_key(&mut self, of: KeyOf, key: KeyedJob) {
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

    /// Forgets what counts no more. It costs what is forgotten, however much is kept.
    fn prune(&mut self, now: LeaseTime) {
        while let Some(((at, of), ())) = self.keys_by_time.first()
            && let (at, of) = (*at, of.clone())
            && self.keys.get(&of).is_none_or(|key| !key.counts(now))
        {
            self.keys.remove_mut(&of);
            self.keys_by_time.remove_mut(&(at, of));
        }
        // Jobs without an end, if there were any, would bind for good and come first.
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
