//! The store: the state in memory, and the two ways to change it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::{
    Key, Lock, LockName, Locks, QuotaFull, TooManyKeys, Use,
    closed::Closed,
    identities::{Identities, uses_of},
    keys::{KeyUse, Keys},
    records::{change_record, created_record},
    size::{self, Open},
};
use crate::{
    clock::{Clock, LeaseTime},
    fence::{Lowered, Registry, Revision, Seq},
    job::{Change, Job, JobState},
    ledger::{Actor, Appending, DecisionRecord, Deferred, Ending, Event, Ledger},
    limits,
    name::{AttemptNumber, FenceName, InstanceName, JobId, LeaseId, SpiffeId},
    reason::Reason,
};

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused<E> {
    /// The move itself is not legal.
    #[error(transparent)]
    Move(E),
    #[error("there is no such job")]
    NoJob,
    /// Another specification has this idempotency key.
    #[error("the idempotency key belongs to {0}, which has another specification")]
    KeyConflict(JobId),
    #[error(transparent)]
    QuotaFull(#[from] QuotaFull),
    #[error(transparent)]
    TooManyKeys(#[from] TooManyKeys),
    #[error(
        "as many locks are set as there may be: {} in all, {} by one tenant",
        limits::LOCKS_MAX,
        limits::LOCKS_PER_TENANT_MAX
    )]
    TooManyLocks,
    #[error("there is no such lock")]
    NoLock,
    /// The lock is not the caller's to lift.
    #[error("{0} set this lock for all tenants")]
    NotTheirs(Actor),
    /// The identity belongs to one job alone, and that is this one.
    #[error("your identity belongs to {0} alone")]
    Bound(JobId),
    #[error("there are {} identities, as many as there may be", limits::IDENTITIES_MAX)]
    TooManyIdentities,
    #[error("the lock was set again while it was being lifted, and stands")]
    SetAgain,
    /// The record could not be written, so nothing was changed.
    #[error("the record could not be written: {0}")]
    Ledger(String),
    /// Something narrower happened while the record was being written.
    #[error("the job ended meanwhile")]
    Overtaken,
    #[error("too many changes of one job at once")]
    Contended,
}

impl<E> Refused<E> {
    /// The code, where it is not the move's own.
    pub fn reason(&self) -> Option<Reason> {
        Some(match self {
            Refused::Move(_) => return None,
            Refused::NoJob => Reason::JobNotFound,
            Refused::KeyConflict(_) => Reason::IdempotencyConflict,
            Refused::QuotaFull(_)
            | Refused::TooManyKeys(_)
            | Refused::TooManyLocks
            | Refused::TooManyIdentities => Reason::QuotaExceeded,
            Refused::Bound(_) => Reason::IdentityBound,
            Refused::NoLock => Reason::LockNotFound,
            Refused::NotTheirs(_) => Reason::PolicyDenied,
            Refused::Ledger(_) => Reason::LedgerUnavailable,
            Refused::Overtaken => Reason::JobClosed,
            Refused::SetAgain | Refused::Contended => Reason::Contended,
        })
    }
}

/// A narrowing change, in force.
pub struct Committed<T> {
    pub value: T,
    pub ending: Ending,
    /// Names that were lowered, for the clean-up behind them.
    pub lowered: Vec<FenceName>,
    /// The last record of the change; `None` where nothing changed.
    pub record: Option<Deferred>,
}

/// A widening change, recorded and in force.
#[derive(Debug)]
pub struct Widened {
    pub job: Arc<Job>,
    /// False where there was nothing to change.
    pub changed: bool,
    pub lowered: Vec<FenceName>,
}

/// The outcome of creating a job.
#[derive(Debug)]
pub enum Created {
    New(Arc<Job>),
    /// The key and the specification are those of a job that is there.
    Existing(Arc<Job>),
}

/// A job to be created, decided.
#[derive(Debug)]
pub struct NewJob {
    pub job: Job,
    pub decision: DecisionRecord,
}

#[derive(Debug)]
struct Slot {
    job: Arc<Job>,
    /// What it took when it was created, in bytes.
    creation: usize,
    under_way: UnderWay,
    watch: watch::Sender<Arc<Job>>,
}

/// The widening changes of one job whose records are being written. Narrowing ones never wait for them.
///
/// Joins of different instances go side by side, so that the thousands of one job cost a few writes; each is decided again
/// when its record is on disk. A begin waits for a begin alone: it ends whatever joined before it.
#[derive(Debug, Default)]
struct UnderWay {
    beginning: bool,
    joining: HashSet<(AttemptNumber, InstanceName)>,
}

impl UnderWay {
    /// Takes the place of a change. False where one that it must not meet is there.
    fn enter(&mut self, change: &Change) -> bool {
        match change {
            Change::MemberJoined { attempt, instance, .. } => {
                self.joining.insert((*attempt, instance.clone()))
            }
            _ => !std::mem::replace(&mut self.beginning, true),
        }
    }

    fn leave(&mut self, change: &Change) {
        match change {
            Change::MemberJoined { attempt, instance, .. } => {
                self.joining.remove(&(*attempt, instance.clone()));
            }
            _ => self.beginning = false,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    jobs: HashMap<JobId, Slot>,
    /// In the order of their creation, for listing.
    order: BTreeMap<(LeaseTime, JobId), ()>,
    closed: Closed,
    open: Open,
    keys: Keys,
    identities: Identities,
    locks: Locks,
}

/// What an identity may be used for, as the catalog says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belongs {
    /// To one job alone.
    ToOneJob,
    /// To whichever jobs name it.
    ToAny,
}

/// The state in memory. One mutex orders its changes; it is held for short, synchronous steps alone, never across an await.
/// While it is held the table of leases (by [`Store::lock_lease`]), the fence registry and the ledger's queue are entered, in
/// that order; none of them ever comes back here.
pub struct Store {
    inner: Mutex<Inner>,
    /// Wakes whoever waits for a widening change of a job, or of a key, to be done.
    freed: Notify,
    fences: Arc<Registry>,
    ledger: Ledger,
    clock: Arc<dyn Clock>,
}

/// Jobs that one look takes from the order of all.
const LIST_STEP: usize = 256;

impl Store {
    /// Begins from what the ledger told.
    pub fn new(
        rebuilt: super::Rebuilt,
        fences: Arc<Registry>,
        ledger: Ledger,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut inner = Inner { locks: rebuilt.locks, ..Inner::default() };
        for job in rebuilt.jobs {
            let (key, made) = Key::of(&job);
            inner.keys.put(key, made);
            let creation = size::of_creation(&job);
            if !job.is_closed() {
                inner.open.add(&job.spec.tenant, size::of_job(creation, &job));
            }
            inner.put(job, creation);
        }
        for (id, of) in rebuilt.identities {
            inner.identities.note(&id, of);
        }
        for (key, made) in rebuilt.keys {
            // A key that was used again after its day is that of the newer job.
            if inner.keys.find(&key.0, &key.1).is_none() {
                inner.keys.put(key, made);
            }
        }
        Store { inner: Mutex::new(inner), freed: Notify::new(), fences, ledger, clock }
    }

    // Each step below leaves the state whole before the guard goes, so a panic elsewhere cannot leave it half changed.
    fn lock_inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---------- reading: after standing ----------

    /// The job as it stands.
    pub fn job(&self, id: JobId) -> Option<Arc<Job>> {
        self.lock_inner().jobs.get(&id).map(|s| s.job.clone())
    }

    /// The job now and at each change. A slow watcher sees the newest only.
    pub fn watch(&self, id: JobId) -> Option<watch::Receiver<Arc<Job>>> {
        self.lock_inner().jobs.get(&id).map(|s| s.watch.subscribe())
    }

    /// Jobs that a filter lets pass, newest first, from below a place in the order.
    pub fn list(
        &self,
        below: Option<(LeaseTime, JobId)>,
        max: usize,
        mut pass: impl FnMut(&Job) -> bool,
    ) -> Vec<Arc<Job>> {
        let mut upper = below.unwrap_or((LeaseTime(u64::MAX), JobId(u128::MAX)));
        let mut found = Vec::new();
        while found.len() < max {
            // The filter runs without the lock, and each look takes a bounded number of jobs: others need the lock meanwhile.
            let some: Vec<_> = {
                let inner = self.lock_inner();
                let keys = inner.order.range(..upper).rev().take(LIST_STEP);
                keys.map(|(key, ())| (*key, inner.jobs.get(&key.1).map(|s| s.job.clone()))).collect()
            };
            let Some((last, _)) = some.last() else { break };
            upper = *last;
            let left = max - found.len();
            found.extend(some.into_iter().filter_map(|(_, job)| job).filter(|job| pass(job)).take(left));
        }
        found
    }

    /// All jobs that are not closed.
    pub fn open_jobs(&self) -> Vec<Arc<Job>> {
        self.lock_inner().jobs.values().filter(|s| !s.job.is_closed()).map(|s| s.job.clone()).collect()
    }

    /// Open jobs beside this one that an identity is a member of.
    pub fn open_elsewhere(&self, id: &SpiffeId, job: JobId) -> Vec<JobId> {
        self.lock_inner().identities.open_elsewhere(id, job).collect()
    }

    /// An open job that an identity is or was a member of and did not launch.
    pub fn open_of_others(&self, id: &SpiffeId) -> Option<JobId> {
        let inner = self.lock_inner();
        let is_others = |job: &JobId| inner.jobs.get(job).is_some_and(|s| s.job.launcher != *id);
        inner.identities.open(id).find(is_others)
    }

    /// The identities of a job's last attempt that are members of other open jobs too, with these. Of many, the first few.
    pub fn in_several(&self, job: &Job) -> Vec<(SpiffeId, Vec<JobId>)> {
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

    /// The job that a caller's idempotency key made, if it is remembered.
    pub fn by_key(&self, launcher: &SpiffeId, key: &str) -> Option<Arc<Job>> {
        let inner = self.lock_inner();
        match inner.keys.find(launcher, key)? {
            KeyUse::Made(made) => inner.jobs.get(&made.job).map(|s| s.job.clone()),
            KeyUse::Pending { .. } => None,
        }
    }

    /// The lock that stands before any of these names.
    pub fn locked<'a>(&self, names: impl Iterator<Item = &'a FenceName>) -> Option<Lock> {
        let now = self.clock.now().lease;
        self.lock_inner().locks.against(names, now).cloned()
    }

    /// Some of the locks in force, by name, beyond one.
    pub fn locks(&self, after: Option<&LockName>, max: usize) -> Vec<Lock> {
        let now = self.clock.now().lease;
        self.lock_inner().locks.beyond(after).filter(|l| l.stands(now)).take(max).cloned().collect()
    }

    // ---------- what widens: the record first ----------

    /// Creates a job, or finds the one that the key made. Resolves when it is on disk.
    pub async fn create(&self, new: NewJob) -> Result<Created, Refused<std::convert::Infallible>> {
        let NewJob { job, decision } = new;
        let (key, made) = Key::of(&job);
        let (tenant, creation) = (job.spec.tenant.clone(), size::of_creation(&job));
        let appending = loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut inner = self.lock_inner();
                match inner.keys.find(&key.0, &key.1) {
                    Some(&KeyUse::Made(Key { job: id, spec, .. })) => {
                        let found = inner.jobs.get(&id).map(|s| s.job.clone());
                        return match found {
                            Some(found) if spec == job.spec_digest => Ok(Created::Existing(found)),
                            _ => Err(Refused::KeyConflict(id)),
                        };
                    }
                    Some(KeyUse::Pending { .. }) => {}
                    None => {
                        inner.open.admit(&tenant, 1, creation)?;
                        inner.keys.hold(&key.0, &key.1, &tenant)?;
                        // Counted from here on: many may be recorded at once.
                        inner.open.add(&tenant, creation);
                        break self.ledger.append(&created_record(&job, decision));
                    }
                }
            }
            freed.await;
        };
        let written = self.written(job.id, appending).await;
        let mut inner = self.lock_inner();
        self.freed.notify_waiters();
        if let Err(why) = written {
            inner.keys.release(&key.0, &key.1);
            inner.open.remove(&tenant, creation);
            return Err(Refused::Ledger(why));
        }
        inner.keys.put(key, made);
        Ok(Created::New(inner.put(job, creation)))
    }

    /// Makes a widening change of a job: decided under the mutex, recorded, then made. `decide` is asked again where another
    /// widening change came first, and answers `Ok(None)` where there is nothing to change.
    pub async fn widen<E>(
        &self,
        id: JobId,
        by: Actor,
        decision: Option<DecisionRecord>,
        decide: impl Fn(&Job) -> Result<Option<Change>, E>,
    ) -> Result<Widened, Refused<E>> {
        self.widen_for(id, by, decision, None, decide).await
    }

    /// The same for a member. An identity that belongs to one job alone is let into no other.
    pub async fn admit<E>(
        &self,
        id: JobId,
        member: (&SpiffeId, Belongs),
        decide: impl Fn(&Job) -> Result<Option<Change>, E>,
    ) -> Result<Widened, Refused<E>> {
        self.widen_for(id, Actor::SpiffeId(member.0.clone()), None, Some(member), decide).await
    }

    async fn widen_for<E>(
        &self,
        id: JobId,
        by: Actor,
        decision: Option<DecisionRecord>,
        member: Option<(&SpiffeId, Belongs)>,
        decide: impl Fn(&Job) -> Result<Option<Change>, E>,
    ) -> Result<Widened, Refused<E>> {
        let mut turns = 0u32;
        let (change, appending) = loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut inner = self.lock_inner();
                let Inner { jobs, identities, open, .. } = &mut *inner;
                let slot = jobs.get_mut(&id).ok_or(Refused::NoJob)?;
                let Some(change) = decide(&slot.job).map_err(Refused::Move)? else {
                    return Ok(Widened { job: slot.job.clone(), changed: false, lowered: Vec::new() });
                };
                if let Some((identity, belongs)) = member {
                    let now = self.clock.now().lease;
                    if belongs == Belongs::ToOneJob
                        && let Some(other) = identities.bound_elsewhere(identity, id, now)
                    {
                        return Err(Refused::Bound(other));
                    }
                    if identities.len() >= limits::IDENTITIES_MAX && !identities.knows(identity) {
                        return Err(Refused::TooManyIdentities);
                    }
                }
                open.admit(&slot.job.spec.tenant, 0, size::of_change(&change))?;
                if slot.under_way.enter(&change) {
                    if let Some((identity, _)) = member {
                        identities.claim(identity, id);
                    }
                    let record = change_record(id, &change, by.clone(), decision.clone(), Ending::default());
                    break (change, self.ledger.append(&record));
                }
            }
            turns = turns.saturating_add(1);
            if turns > limits::MEMBERS_MAX {
                return Err(Refused::Contended);
            }
            freed.await;
        };
        let written = self.written(id, appending).await;
        let now = self.clock.now().lease;
        let mut inner = self.lock_inner();
        if let Some((identity, _)) = member {
            inner.identities.unclaim(identity);
        }
        let Some(slot) = inner.jobs.get_mut(&id) else { return Err(Refused::NoJob) };
        slot.under_way.leave(&change);
        self.freed.notify_waiters();
        let index = written.map_err(Refused::Ledger)?;
        // Decided again: something narrower may have come while the record was written, and it stands.
        match decide(&slot.job) {
            Ok(Some(again)) if again == change => {}
            otherwise => {
                let why = "something narrower came while it was recorded".to_owned();
                self.ledger.defer(&Event::Withdrawn { index, job: id, why });
                return Err(otherwise.err().map_or(Refused::Overtaken, Refused::Move));
            }
        }
        let names = slot.job.fences_of(&change);
        let job = inner.apply(id, &change).ok_or(Refused::NoJob)?;
        let mut lowered = Vec::new();
        for name in names {
            let l = self.fences.lower(&name, now);
            let because = "a newer attempt began".to_owned();
            self.ledger.defer(&Event::Lowered { name: name.clone(), because, ending: ending(l) });
            lowered.push(name);
        }
        Ok(Widened { job, changed: true, lowered })
    }

    /// Lifts a lock. Resolves when that is on disk; nothing that the lock ended comes back.
    ///
    /// Where the record failed, or was not known to be on disk in time, the lock stands, in this life and in later ones: that
    /// record may be there all the same, so the lock is recorded once more behind it.
    /// `may` is asked of the lock as it stands when it is lifted.
    pub async fn unlock(
        &self,
        name: &LockName,
        by: Actor,
        reason: &str,
        may: impl Fn(&Lock) -> bool,
    ) -> Result<Lock, Refused<std::convert::Infallible>> {
        self.unlock_within(limits::LEDGER_WAIT, name, by, reason, may).await
    }

    pub(super) async fn unlock_within(
        &self,
        patience: Duration,
        name: &LockName,
        by: Actor,
        reason: &str,
        may: impl Fn(&Lock) -> bool,
    ) -> Result<Lock, Refused<std::convert::Infallible>> {
        let (turn, lock, appending) = {
            let inner = self.lock_inner();
            let (turn, lock) = inner.locks.set(name, self.clock.now().lease).ok_or(Refused::NoLock)?;
            let lock = lock.clone();
            if !may(&lock) {
                return Err(Refused::NotTheirs(lock.by));
            }
            let record = Event::LockLifted { name: name.to_string(), by, reason: reason.to_owned() };
            (turn, lock, self.ledger.append(&record))
        };
        let accepted = appending.index().is_some();
        let written = in_time(patience, appending).await;
        let mut inner = self.lock_inner();
        let stands = inner.locks.set(name, self.clock.now().lease).is_some_and(|(now, _)| now == turn);
        if let Err(why) = written {
            // Another setting of it is recorded behind this lifting already.
            if accepted && stands {
                let record = lock_record(inner.locks.insert(lock), Ending::default());
                self.ledger.defer(&record);
            }
            return Err(Refused::Ledger(why));
        }
        // A lock that was set again meanwhile, and recorded after this, stays.
        inner.locks.lift(name, turn);
        if inner.locks.find(name, self.clock.now().lease).is_some() {
            Err(Refused::SetAgain)
        } else {
            Ok(lock)
        }
    }

    /// Waits until a widening record is on disk. Where that cannot be known in time, the record is withdrawn: it may be there
    /// all the same, and must not take effect in a later life.
    async fn written(&self, job: JobId, appending: Appending) -> Result<u64, String> {
        let place = appending.index();
        let written = in_time(limits::LEDGER_WAIT, appending).await;
        if let (Some(index), Err(why)) = (place, &written) {
            self.ledger.defer(&Event::Withdrawn { index, job, why: why.clone() });
        }
        written
    }

    // ---------- what narrows: at once ----------

    /// Makes narrowing changes of a job: decided under the mutex, made, their fences lowered, their records handed over.
    pub fn narrow<E>(
        &self,
        id: JobId,
        by: &Actor,
        decide: impl FnOnce(&Job) -> Result<Vec<Change>, E>,
    ) -> Result<Committed<Arc<Job>>, Refused<E>> {
        // Read before anything changes: each change is made whole, with its lowering and its record.
        let now = self.clock.now().lease;
        let mut inner = self.lock_inner();
        let slot = inner.jobs.get(&id).ok_or(Refused::NoJob)?;
        let changes = decide(&slot.job).map_err(Refused::Move)?;
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
                let l = self.fences.lower(&name, now);
                one.seq = one.seq.max(l.seq.0);
                one.behind = one.behind.max(l.behind);
                done.lowered.push(name);
            }
            done.ending.seq = done.ending.seq.max(one.seq);
            done.ending.behind = done.ending.behind.max(one.behind);
            done.record = Some(self.ledger.defer(&change_record(id, &change, by.clone(), None, one)));
            // The end of a job is said in so many words where an attempt's end is that too: whatever else was being recorded
            // meanwhile, a later life finds the job closed.
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

    /// Ends all that stands behind a name. What it names stays what it was: a new stand is good.
    pub fn revoke(&self, name: &FenceName, by: Actor, reason: &str) -> Committed<()> {
        self.lowered(name, None, |name, ending| Event::Revoked {
            name,
            by,
            reason: reason.to_owned(),
            ending,
        })
    }

    /// The same for one lease, which was told by its own word that it is over. `behind` is what that ended, one or nothing:
    /// nobody stands behind a lease's name.
    pub fn revoke_lease(&self, id: LeaseId, behind: u64, by: Actor, reason: &str) -> Committed<()> {
        let name = FenceName::lease(id);
        self.lowered(&name, Some(behind), |name, ending| Event::Revoked {
            name,
            by,
            reason: reason.to_owned(),
            ending,
        })
    }

    /// Lowers a fence as the consequence of something else: a drain's reading half, a sweep.
    pub fn lower(&self, name: &FenceName, because: &str) -> Committed<()> {
        self.lowered(name, None, |name, ending| Event::Lowered { name, because: because.to_owned(), ending })
    }

    /// The same for one lease, as [`Store::revoke_lease`].
    pub fn lower_lease(&self, id: LeaseId, behind: u64, because: &str) -> Committed<()> {
        let name = FenceName::lease(id);
        self.lowered(&name, Some(behind), |name, ending| Event::Lowered {
            name,
            because: because.to_owned(),
            ending,
        })
    }

    fn lowered(
        &self,
        name: &FenceName,
        behind: Option<u64>,
        event: impl FnOnce(FenceName, Ending) -> Event,
    ) -> Committed<()> {
        let _order = self.lock_inner();
        let l = self.fences.lower(name, self.clock.now().lease);
        let mut ending = ending(l);
        ending.behind = behind.unwrap_or(ending.behind);
        let record = l.first.then(|| self.ledger.defer(&event(name.clone(), ending)));
        Committed { value: (), ending, lowered: vec![name.clone()], record }
    }

    /// Locks: nothing new behind the name, and nothing old. For a prefix the revision is raised and the caller sweeps.
    pub fn lock(
        &self,
        lock: Lock,
    ) -> Result<(Committed<Lock>, Option<Revision>), Refused<std::convert::Infallible>> {
        self.locked_with(lock, None::<fn() -> u64>)
    }

    /// The same for a lock on one lease. `end` ends it by its own word, once it is certain that the lock is set, and answers
    /// how many lived until then, as [`Store::revoke_lease`]. It is short, and asks nothing of the state.
    pub fn lock_lease(
        &self,
        lock: Lock,
        end: impl FnOnce() -> u64,
    ) -> Result<Committed<Lock>, Refused<std::convert::Infallible>> {
        self.locked_with(lock, Some(end)).map(|(done, _)| done)
    }

    fn locked_with(
        &self,
        lock: Lock,
        end: Option<impl FnOnce() -> u64>,
    ) -> Result<(Committed<Lock>, Option<Revision>), Refused<std::convert::Infallible>> {
        let mut inner = self.lock_inner();
        if !inner.locks.has_room(&lock) {
            inner.locks.prune(self.clock.now().lease);
        }
        if !inner.locks.has_room(&lock) {
            return Err(Refused::TooManyLocks);
        }
        let now = lock.since;
        let lock = inner.locks.insert(lock).clone();
        let (ending, lowered, revision) = match &lock.name {
            LockName::Name(name) => {
                let own = end.map(|end| end());
                let l = self.fences.lower(name, now);
                let mut ending = ending(l);
                ending.behind = own.unwrap_or(ending.behind);
                (ending, vec![name.clone()], None)
            }
            LockName::Prefix(_) => {
                let revision = self.fences.raise_revision();
                (Ending { seq: self.fences.seq().0, behind: 0 }, Vec::new(), Some(revision))
            }
        };
        let record = self.ledger.defer(&lock_record(&lock, ending));
        Ok((Committed { value: lock, ending, lowered, record: Some(record) }, revision))
    }

    /// Forgets what need not be remembered any more: old keys, locks whose time is over.
    pub fn prune(&self, now: LeaseTime) {
        let mut inner = self.lock_inner();
        inner.locks.prune(now);
        inner.identities.prune(now);
        inner.keys.prune(now);
    }
}

/// Waits until a record is on disk. An error says why that is not known.
async fn in_time(patience: Duration, appending: Appending) -> Result<u64, String> {
    match tokio::time::timeout(patience, appending).await {
        Ok(written) => written.map_err(|e| e.to_string()),
        Err(_) => Err("it took too long".to_owned()),
    }
}

fn lock_record(lock: &Lock, ending: Ending) -> Event {
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

fn ending(l: Lowered) -> Ending {
    let Lowered { seq: Seq(seq), behind, .. } = l;
    Ending { seq, behind }
}

impl Inner {
    /// Puts a job there, which is counted already if it is open.
    fn put(&mut self, job: Job, creation: usize) -> Arc<Job> {
        let job = Arc::new(job);
        self.order.insert((job.created, job.id), ());
        for (id, of) in uses_of(&job) {
            self.identities.note(&id, of);
        }
        let watch = watch::Sender::new(job.clone());
        self.jobs.insert(job.id, Slot { job: job.clone(), creation, under_way: UnderWay::default(), watch });
        if job.is_closed() {
            self.remember_closed(&job, size::of_job(creation, &job));
        }
        job
    }

    fn apply(&mut self, id: JobId, change: &Change) -> Option<Arc<Job>> {
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
            self.identities.note(member, Use { job: id, first: a.began, closed: None });
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
            if let Some(slot) = self.jobs.remove(&old) {
                self.order.remove(&(slot.job.created, old));
            }
        }
    }
}
