//! The live leases and jobs that depend on names. Before access is ended, the daemon counts them. Afterwards, it lists
//! them.

use std::{collections::HashSet, sync::Arc};

use super::{names, operators::OperatorUseCases, rules::Rules};
use crate::{
    job::Job,
    lease::Lease,
    name::{FenceKind, FenceName, JobId, LeaseId, SpiffeId},
    state::{Lock, LockName},
};

impl OperatorUseCases {
    /// Counts the live leases that a revocation of a name would end.
    pub(super) fn count_behind(&self, name: &FenceName) -> u64 {
        match name.kind() {
            FenceKind::Lease(id) => u64::from(self.context.table.find(id).is_some()),
            _ => self.context.fences.behind(name),
        }
    }

    /// Counts the live leases behind any of these names. A lease behind several names counts once.
    pub(super) fn count_behind_any(&self, names: &[LockName]) -> u64 {
        match names {
            [LockName::Name(name)] => self.count_behind(name),
            _ => self.leases_behind(names).len() as u64,
        }
    }

    /// Returns the live leases behind any of these names.
    pub(super) fn leases_behind(&self, names: &[LockName]) -> Vec<Arc<Lease>> {
        let launched: HashSet<JobId> = names
            .iter()
            .filter_map(|name| match name {
                LockName::Launcher(id) => Some(self.open_jobs_of(id)),
                _ => None,
            })
            .flatten()
            .map(|job| job.id)
            .collect();
        let is_behind = |lease: &Lease, name: &LockName| match name {
            LockName::Name(name) => match name.kind() {
                FenceKind::Lease(id) => lease.id == id,
                _ => lease.stand().is_behind(name),
            },
            LockName::Prefix(prefix) => lease.stand().names().any(|name| is_below(name, prefix)),
            LockName::Launcher(_) => launched.contains(&lease.facts.job),
            LockName::Recall(name) => lease.stand().is_behind(&FenceName::resource(name.clone())),
        };
        let now = self.context.clock.now().lease;
        let mut found = self.context.table.live(None);
        found.retain(|lease| lease.check(now).is_ok() && names.iter().any(|name| is_behind(lease, name)));
        found
    }

    /// Counts the live leases that a lock would end only because the lock shuts out people who approved the jobs.
    pub(super) fn count_unapproved_by(&self, lock: &Lock) -> u64 {
        let rules = self.context.rules();
        let mut jobs = self.context.state.open_jobs();
        jobs.retain(|job| {
            job.has_begun()
                && (!job.approvals.is_empty() || job.emergency.is_some())
                && self.sweeps.decisions.would_lose_gate(&rules, job, lock)
        });
        if jobs.is_empty() {
            return 0;
        }
        let jobs: HashSet<JobId> = jobs.iter().map(|job| job.id).collect();
        let behind: HashSet<LeaseId> =
            self.leases_behind(std::slice::from_ref(&lock.name)).iter().map(|lease| lease.id).collect();
        let now = self.context.clock.now().lease;
        let mut leases = self.context.table.live(None);
        leases.retain(|lease| {
            lease.check(now).is_ok() && jobs.contains(&lease.facts.job) && !behind.contains(&lease.id)
        });
        leases.len() as u64
    }

    /// Returns the open jobs that an identity launched.
    pub(super) fn open_jobs_of(&self, launcher: &SpiffeId) -> Vec<Arc<Job>> {
        let mut jobs = self.context.state.open_jobs();
        jobs.retain(|job| job.launcher == *launcher);
        jobs
    }
}

/// Whether a job or one of its present members depends on a name.
pub(super) fn job_is_behind(rules: &Rules, job: &Job, name: &LockName) -> bool {
    let mut members = job.current().into_iter().flat_map(|a| a.present().map(|(_, m)| &m.spiffe_id));
    job_itself_is_behind(rules, job, name) || members.any(|id| identity_is_behind(rules, id, name))
}

/// Whether a job depends on a name, regardless of its members.
pub(super) fn job_itself_is_behind(rules: &Rules, job: &Job, name: &LockName) -> bool {
    match (name, name.fence()) {
        (_, Some(fence)) => names::of_job(rules, job).contains(&fence),
        (LockName::Prefix(prefix), _) => job.launcher.as_str().starts_with(prefix),
        (LockName::Launcher(id), _) => job.launcher == *id,
        (LockName::Name(_) | LockName::Recall(_), None) => false,
    }
}

/// Whether a member depends on a name because of its identity.
pub(super) fn identity_is_behind(rules: &Rules, id: &SpiffeId, name: &LockName) -> bool {
    match name {
        LockName::Name(name) => names::of_identity(rules, id).contains(name),
        LockName::Prefix(prefix) => id.as_str().starts_with(prefix),
        LockName::Launcher(_) | LockName::Recall(_) => false,
    }
}

/// Whether a fence belongs to an identity below a prefix.
fn is_below(name: &FenceName, prefix: &str) -> bool {
    matches!(name.kind(), FenceKind::Identity(id) if id.as_str().starts_with(prefix))
}
