//! The table of leases.

use std::sync::{Arc, PoisonError, atomic::Ordering};

use tokio::sync::broadcast;

use super::{
    Ended, Facts, Fired, Lease, QuotaExceeded, Quotas, Terms,
    deadlines::Deadlines,
    ended::Memory,
    index::{ById, ByJob},
    quota::SlotCount,
};
use crate::{
    clock::LeaseTime,
    limits,
    name::{FenceKind, FenceName, JobId, LeaseId, SpiffeId, TenantName},
    policy::Grant,
    sync::{AtomicUsize, Mutex, MutexGuard},
};

/// The cause of the end of a lease that expired.
pub const EXPIRED: &str = "expired";

/// The number of leases that a sweep removes before it lets other tasks run.
const CLEARED_AT_ONCE: usize = 1_000;

/// The reasons for which a lease was not made or not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unborn {
    /// A quota is used up.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// A fence was lowered while the lease was being made.
    #[error("`{0}` was revoked meanwhile")]
    Lowered(FenceName),
    /// The id is in use. An id is 128 random bits, so the source of randomness is broken.
    #[error("another lease has the id {0}")]
    IdTaken(LeaseId),
}

/// An event of a lease, for listeners.
#[derive(Clone, Debug)]
pub enum LeaseEvent {
    Made(Arc<Lease>),
    Ended(Ended),
}

/// All live leases, with indexes by id and by job and group, and counts by holder and tenant. The leases of a group have one
/// member, one half and the same resources. [`Table::insert`] adds a lease to all indexes. A task that removes a lease from
/// the index by id also removes it from the others. `clearing` is locked before all other locks, and only one of the other
/// locks is held at a time.
#[derive(Debug)]
pub struct Table {
    quotas: Quotas,
    by_id: ById,
    by_job: ByJob,
    holders: SlotCount<SpiffeId>,
    tenants: SlotCount<TenantName>,
    count: AtomicUsize,
    deadlines: Deadlines,
    ended: Memory,
    /// Held while leases are removed. A task that gets no slot waits for this lock, because slots are being freed.
    clearing: Mutex<()>,
    /// Ended leases whose slots were freed before the sweep of their lowering reached them. That sweep still has to
    /// report them.
    untold: Mutex<Vec<Arc<Lease>>>,
    events: broadcast::Sender<LeaseEvent>,
}

impl Default for Table {
    fn default() -> Self {
        Table::new(Quotas::default())
    }
}

impl Table {
    /// Makes a table without leases.
    pub fn new(quotas: Quotas) -> Self {
        Table {
            quotas,
            by_id: ById::default(),
            by_job: ByJob::default(),
            holders: SlotCount::default(),
            tenants: SlotCount::default(),
            count: AtomicUsize::new(0),
            deadlines: Deadlines::default(),
            ended: Memory::default(),
            clearing: Mutex::new(()),
            untold: Mutex::new(Vec::new()),
            events: broadcast::Sender::new(limits::LEASE_EVENTS_BACKLOG),
        }
    }

    /// Refuses a lease that would exceed a quota. Call it before a token is made. [`Table::insert`] checks again.
    ///
    /// A lease that a lowering ended takes no slot, even if no sweep has reached it yet.
    ///
    /// # Errors
    ///
    /// The first quota that is used up, in this order: of the daemon, the tenant, the holder, the job.
    pub fn room(&self, facts: &Facts, now: LeaseTime) -> Result<(), QuotaExceeded> {
        self.with_dead_out(facts, now, || self.full(facts).map_or(Ok(()), Err))
    }

    fn full(&self, facts: &Facts) -> Option<QuotaExceeded> {
        let q = &self.quotas;
        if self.len() >= q.daemon {
            Some(QuotaExceeded::Daemon(q.daemon))
        } else if self.tenants.of(&facts.tenant) >= q.tenant {
            Some(QuotaExceeded::Tenant(q.tenant))
        } else if self.holders.of(&facts.holder) >= q.holder {
            Some(QuotaExceeded::Holder(q.holder))
        } else {
            (self.of_job_count(facts.job) >= q.job).then_some(QuotaExceeded::Job(q.job))
        }
    }

    /// Calls `attempt`. While a quota refuses, frees the slots of ended leases that count against the quota, and calls
    /// `attempt` again.
    fn with_dead_out(
        &self,
        facts: &Facts,
        now: LeaseTime,
        attempt: impl Fn() -> Result<(), QuotaExceeded>,
    ) -> Result<(), QuotaExceeded> {
        if attempt().is_ok() {
            return Ok(());
        }
        let clearing = self.clearing();
        loop {
            let Err(exceeded) = attempt() else { return Ok(()) };
            let dead = self.by_job.collect_dead(|f| match exceeded {
                QuotaExceeded::Job(_) => f.job == facts.job,
                QuotaExceeded::Holder(_) => f.holder == facts.holder,
                QuotaExceeded::Tenant(_) => f.tenant == facts.tenant,
                QuotaExceeded::Daemon(_) => true,
            });
            if dead.is_empty() {
                return Err(exceeded);
            }
            for lease in dead {
                let name = lease.stand.lowered().map(|(name, _)| name);
                let cause = name.map_or_else(String::new, |name| format!("{name} was revoked"));
                let gone = self.take_out(&clearing, [lease.id], now, &cause);
                self.untold.lock().unwrap_or_else(PoisonError::into_inner).extend(gone);
            }
        }
    }

    fn clearing(&self) -> MutexGuard<'_, ()> {
        self.clearing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the lease of a Grant. The lease is inserted first, and its fences are checked after that. So a lowering in
    /// between either finds the lease here or is seen by this check. A lease that has ended by then is removed from
    /// every index before the error returns.
    ///
    /// # Errors
    ///
    /// A quota is used up, a fence was lowered meanwhile, or the id is taken.
    pub fn insert(&self, grant: Grant, terms: Terms) -> Result<Arc<Lease>, Unborn> {
        let (id, issued) = (terms.id, terms.issued);
        let lease = self.put(grant, terms)?;
        if let Some((name, _)) = lease.stand.lowered() {
            let name = name.clone();
            self.remove(id, issued, "revoked before it was handed out");
            return Err(Unborn::Lowered(name));
        }
        if self.events.receiver_count() > 0 {
            let _ = self.events.send(LeaseEvent::Made(lease.clone()));
        }
        Ok(lease)
    }

    /// Inserts the lease into every index.
    pub(super) fn put(&self, grant: Grant, terms: Terms) -> Result<Arc<Lease>, Unborn> {
        self.with_dead_out(&terms.facts, terms.issued, || self.reserve(&terms.facts))?;
        let lease = self.by_job.create(grant.into_parts().stand, terms);
        lease.stand.enter();
        if !self.by_id.insert(lease.clone()) {
            self.unindex(std::slice::from_ref(&lease));
            return Err(Unborn::IdTaken(lease.id));
        }
        self.deadlines.arm(lease.id, lease.deadline());
        Ok(lease)
    }

    /// Takes a slot in every quota. If one quota refuses, takes no slot.
    fn reserve(&self, facts: &Facts) -> Result<(), QuotaExceeded> {
        let q = &self.quotas;
        if self.count.fetch_add(1, Ordering::Relaxed) >= q.daemon {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(QuotaExceeded::Daemon(q.daemon));
        }
        if !self.tenants.take(&facts.tenant, q.tenant) {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(QuotaExceeded::Tenant(q.tenant));
        }
        if !self.holders.take(&facts.holder, q.holder) {
            self.tenants.give_back(&facts.tenant, 1);
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(QuotaExceeded::Holder(q.holder));
        }
        if !self.by_job.reserve(facts.job, q.job) {
            self.holders.give_back(&facts.holder, 1);
            self.tenants.give_back(&facts.tenant, 1);
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(QuotaExceeded::Job(q.job));
        }
        Ok(())
    }

    /// Returns the lease, if it was not removed. [`Lease::check`] says whether the lease is valid.
    pub fn find(&self, id: LeaseId) -> Option<Arc<Lease>> {
        self.by_id.find(id)
    }

    /// Ends a lease, removes it from every index, and adds it to the ended leases. Returns `None` if the lease is not
    /// in the table. If several callers remove a lease, only one gets it.
    pub fn remove(&self, id: LeaseId, now: LeaseTime, cause: &str) -> Option<Arc<Lease>> {
        self.take_out(&self.clearing(), [id], now, cause).pop()
    }

    /// Ends many leases, like [`Table::remove`]. Returns the leases that this call removed.
    fn take_out(
        &self,
        clearing: &MutexGuard<'_, ()>,
        ids: impl IntoIterator<Item = LeaseId>,
        now: LeaseTime,
        cause: &str,
    ) -> Vec<Arc<Lease>> {
        let mut out: Vec<_> = ids.into_iter().filter_map(|id| self.by_id.remove_if(id, |_| true)).collect();
        self.bury(clearing, &mut out, now, cause);
        out
    }

    /// Ends leases that were removed from the index by id, and removes them from the other indexes. Leases of one group
    /// are removed together, under one lock of their job, and the number of leases of each fence is reduced once.
    fn bury(&self, _clearing: &MutexGuard<'_, ()>, out: &mut [Arc<Lease>], now: LeaseTime, cause: &str) {
        // End the leases themselves first, so that a task that still has a lease sees the end at its next check.
        for lease in &*out {
            lease.cell.end();
        }
        let kind = |l: &Arc<Lease>| (l.stand.place(), Arc::as_ptr(&l.facts));
        out.sort_unstable_by_key(kind);
        for alike in out.chunk_by(|a, b| kind(a) == kind(b)) {
            self.unindex(alike);
        }
        let cause: Arc<str> = cause.into();
        let ended = out.iter().map(|l| l.as_ended(now, cause.clone()));
        if self.events.receiver_count() > 0 {
            for e in ended.clone() {
                let _ = self.events.send(LeaseEvent::Ended(e));
            }
        }
        self.ended.add(ended);
    }

    /// Removes leases of one group with equal facts from every index except the index by id.
    fn unindex(&self, alike: &[Arc<Lease>]) {
        let Some(first) = alike.first() else { return };
        let n = alike.len();
        self.by_job.remove(alike);
        first.stand.leave(n);
        self.holders.give_back(&first.facts.holder, n);
        self.tenants.give_back(&first.facts.tenant, n);
        self.count.fetch_sub(n, Ordering::Relaxed);
    }

    /// Checks up to `max` deadlines that have passed, and ends the leases that are still due. Returns these leases, and
    /// the number of checked deadlines.
    pub fn expire(&self, now: LeaseTime, max: usize) -> (Vec<Arc<Lease>>, usize) {
        let due = self.deadlines.due(now, max);
        let looked = due.len();
        let clearing = self.clearing();
        let (mut gone, mut later) = (Vec::new(), Vec::new());
        for id in due {
            gone.extend(self.by_id.remove_if(id, |lease| match lease.cell.fire(now) {
                Fired::Later(deadline) => {
                    later.push((id, deadline));
                    false
                }
                Fired::Expired | Fired::Already => true,
            }));
        }
        self.bury(&clearing, &mut gone, now, EXPIRED);
        for (id, deadline) in later {
            self.deadlines.arm(id, deadline);
        }
        (gone, looked)
    }

    /// Returns the time at which deadlines must be checked again.
    pub fn next_deadline(&self) -> Option<LeaseTime> {
        self.deadlines.next()
    }

    /// Removes the leases that a lowering of this name ended, and returns them. Also frees their slots, if this was not
    /// done before.
    pub fn sweep(&self, name: &FenceName, now: LeaseTime, cause: &str) -> Vec<Arc<Lease>> {
        let mut dead = Vec::new();
        self.each(Some(name), |l| {
            if !l.stand.is_up() {
                dead.push(l.id);
            }
        });
        let mut gone = Vec::with_capacity(dead.len());
        for turn in dead.chunks(CLEARED_AT_ONCE) {
            gone.extend(self.take_out(&self.clearing(), turn.iter().copied(), now, cause));
        }
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        gone.extend(untold.extract_if(.., |l| l.stand.is_behind(name)));
        gone
    }

    /// Returns all live leases, or the live leases behind one name.
    pub fn live(&self, behind: Option<&FenceName>) -> Vec<Arc<Lease>> {
        let mut out = Vec::new();
        self.each(behind, |l| out.push(l.clone()));
        out
    }

    /// Calls `see` for all live leases, or for the live leases behind one name, in no order. Shards are locked
    /// meanwhile, so `see` must be short and must not call the table.
    pub fn each(&self, behind: Option<&FenceName>, mut see: impl FnMut(&Arc<Lease>)) {
        let Some(name) = behind else { return self.by_id.each(see) };
        match name.kind() {
            FenceKind::Lease(id) => self.find(id).iter().for_each(&mut see),
            // The job has no lease left, but leases of other jobs that read its checkpoints can be behind its fence.
            FenceKind::Job(j) if self.by_job.count(j) == 0 => self.by_job.each_behind(name, see),
            FenceKind::Job(j)
            | FenceKind::Attempt(j, _)
            | FenceKind::AttemptReading(j, _)
            | FenceKind::Member(j, ..)
            | FenceKind::MemberReading(j, ..) => self.by_job.each_of_job(j, name, see),
            _ => self.by_job.each_behind(name, see),
        }
    }

    /// Drops the ended leases that were kept for long enough.
    pub fn prune(&self, now: LeaseTime) {
        self.ended.prune(now);
    }

    /// Returns the leases that ended recently, newest first.
    pub fn ended(&self) -> Vec<Ended> {
        let mut out = Vec::new();
        self.each_ended(|e| out.push(e.clone()));
        out
    }

    /// Calls `see` for the leases that ended recently, newest first. `see` must be short, because no lease can end
    /// meanwhile.
    pub fn each_ended(&self, see: impl FnMut(&Ended)) {
        self.ended.each(see);
    }

    /// Returns a lease that ended recently.
    pub fn find_ended(&self, id: LeaseId) -> Option<Ended> {
        self.ended.find(id)
    }

    /// Returns the events of leases from now on. The table never waits for a listener. A listener that is more than
    /// [`limits::LEASE_EVENTS_BACKLOG`] behind gets the number of missed events.
    pub fn watch(&self) -> broadcast::Receiver<LeaseEvent> {
        self.events.subscribe()
    }

    /// Returns the number of a job's leases that have a slot.
    pub fn of_job_count(&self, job: JobId) -> usize {
        self.by_job.count(job)
    }

    /// Returns the number of a SPIFFE ID's leases that have a slot.
    pub fn of_holder_count(&self, holder: &SpiffeId) -> usize {
        self.holders.of(holder)
    }

    /// Returns the number of leases of a tenant's jobs that have a slot.
    pub fn of_tenant_count(&self, tenant: &TenantName) -> usize {
        self.tenants.of(tenant)
    }

    /// Returns the number of leases that have a slot.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether no lease has a slot.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
