//! Closed jobs that are still in memory, in the order of their ends.

use rpds::RedBlackTreeMapSync;

use super::size::JobsSize;
use crate::{
    limits,
    name::{JobId, TenantName},
};

/// The position of a closed job in the order.
pub(super) type ClosedPlace = u64;

/// The closed jobs that are kept. Past a bound, the tenant with the most jobs loses its oldest job. So a tenant cannot
/// push out the jobs of a tenant with fewer jobs. A copy shares memory with the original.
#[derive(Clone, Debug, Default)]
pub(super) struct Closed {
    next: ClosedPlace,
    order: RedBlackTreeMapSync<ClosedPlace, ClosedJob>,
    by_tenant: RedBlackTreeMapSync<(TenantName, ClosedPlace), ()>,
    tenants: RedBlackTreeMapSync<TenantName, JobsSize>,
    all: JobsSize,
}

#[derive(Clone, Debug)]
struct ClosedJob {
    job: JobId,
    tenant: TenantName,
    bytes: usize,
}

impl Closed {
    /// Returns the jobs in the order of their ends.
    pub(super) fn iter(&self) -> impl Iterator<Item = JobId> {
        self.order.values().map(|item| item.job)
    }

    /// Adds the job that was closed last.
    pub(super) fn push(&mut self, job: JobId, tenant: &TenantName, bytes: usize) -> ClosedPlace {
        let turn = self.next;
        self.next = turn.saturating_add(1);
        self.order.insert_mut(turn, ClosedJob { job, tenant: tenant.clone(), bytes });
        self.by_tenant.insert_mut((tenant.clone(), turn), ());
        self.all.add(bytes);
        self.change(tenant, |held| held.add(bytes));
        turn
    }

    /// Changes the size of a closed job.
    pub(super) fn weigh(&mut self, turn: ClosedPlace, bytes: usize) {
        let Some(item) = self.order.get(&turn).cloned() else { return };
        if item.bytes != bytes {
            self.all.replace(item.bytes, bytes);
            self.change(&item.tenant, |held| held.replace(item.bytes, bytes));
            self.order.insert_mut(turn, ClosedJob { bytes, ..item });
        }
    }

    /// Removes one job if a bound is exceeded, and returns it. The job that was closed last is never removed.
    pub(super) fn give_up(&mut self) -> Option<JobId> {
        let fits =
            self.all.count <= limits::JOBS_CLOSED_MAX && self.all.bytes <= limits::JOBS_CLOSED_BYTES_MAX;
        if fits || self.all.count <= 1 {
            return None;
        }
        let by_count = self.all.count > limits::JOBS_CLOSED_MAX;
        let most = |held: &JobsSize| if by_count { held.count } else { held.bytes };
        let (tenant, _) = self.tenants.iter().max_by_key(|(_, held)| most(held))?;
        let (&(_, turn), ()) = self.by_tenant.range((tenant.clone(), 0)..).next()?;
        let job = self.order.get(&turn)?.job;
        self.remove(turn);
        Some(job)
    }

    pub(super) fn remove(&mut self, turn: ClosedPlace) {
        let Some(item) = self.order.get(&turn).cloned() else { return };
        self.order.remove_mut(&turn);
        self.by_tenant.remove_mut(&(item.tenant.clone(), turn));
        self.all.remove(item.bytes);
        self.change(&item.tenant, |held| held.remove(item.bytes));
    }

    fn change(&mut self, tenant: &TenantName, change: impl FnOnce(&mut JobsSize)) {
        let mut held = self.tenants.get(tenant).copied().unwrap_or_default();
        change(&mut held);
        if held.count == 0 {
            self.tenants.remove_mut(tenant);
        } else {
            self.tenants.insert_mut(tenant.clone(), held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    fn count(closed: &Closed, name: &str) -> usize {
        closed.tenants.get(&tenant(name)).map_or(0, |held| held.count)
    }

    #[test]
    fn closed_jobs_of_one_tenant_push_out_only_its_own() {
        let mut closed = Closed::default();
        for n in 0..100 {
            closed.push(JobId(n), &tenant("quiet"), 1_000);
        }
        let mut gone = Vec::new();
        for n in 0..limits::JOBS_CLOSED_MAX as u128 {
            closed.push(JobId(1_000 + n), &tenant("loud"), 1_000);
            while let Some(job) = closed.give_up() {
                gone.push(job);
            }
        }
        assert_eq!((closed.all.count, count(&closed, "quiet")), (limits::JOBS_CLOSED_MAX, 100));
        assert_eq!(gone, (0..100).map(|n| JobId(1_000 + n)).collect::<Vec<_>>(), "its oldest first");
    }

    #[test]
    fn closed_jobs_are_bounded_in_bytes() {
        let mut closed = Closed::default();
        closed.push(JobId(1), &tenant("quiet"), 1_000);
        let turn = closed.push(JobId(2), &tenant("loud"), limits::JOBS_CLOSED_BYTES_MAX / 2);
        closed.push(JobId(3), &tenant("loud"), limits::JOBS_CLOSED_BYTES_MAX / 2);
        assert_eq!((closed.give_up(), closed.give_up()), (Some(JobId(2)), None));
        closed.weigh(turn, 1);
        assert_eq!(closed.iter().collect::<Vec<_>>(), [JobId(1), JobId(3)]);
        // The job that was closed last is kept, even if it is large.
        let mut one = Closed::default();
        one.push(JobId(1), &tenant("loud"), 2 * limits::JOBS_CLOSED_BYTES_MAX);
        assert_eq!((one.give_up(), one.all.count), (None, 1));
    }
}
