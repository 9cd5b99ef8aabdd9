//! Revocations because of a compromise: the identities that held the access are locked too.

use std::collections::BTreeSet;

use super::{
    caller::Caller,
    operators::OperatorUseCases,
    revocations::{EndingOptions, Revoked},
};
use crate::{
    job::Job,
    limits,
    name::{FenceKind, FenceName, JobId, SpiffeId},
    policy::Rpc,
    reason::{Reason, Refusal},
    state::{Lock, LockName},
};

/// A revocation, and the locks that were set before it.
#[derive(Debug)]
pub struct RevokedAndLocked {
    pub revoked: Revoked,
    pub locks: Vec<Lock>,
}

impl OperatorUseCases {
    /// Ends all access behind a name. Locks the identities that held the access, and all jobs that their launchers
    /// launch. The locks are set first. Otherwise the holders could get new access between the revocation and the
    /// locks.
    pub fn revoke_compromised(
        &self,
        caller: &Caller,
        name: &FenceName,
        options: &EndingOptions<'_>,
    ) -> Result<RevokedAndLocked, Refusal> {
        let EndingOptions { reason, dry_run, .. } = *options;
        // A dry run makes all checks, and returns what a revocation of the name would end.
        let dry = self.revoke(caller, name, &EndingOptions { dry_run: true, ..options.clone() })?;
        let mut locks = Vec::new();
        for target in self.compromised(name)? {
            let tenant = self.tenant_of_lock(caller, Rpc::Lock, &target, reason)?;
            self.access.authorize(caller, Rpc::Lock, tenant.as_ref(), &[], reason)?;
            let lock = self.new_lock(caller, Rpc::Lock, target, &format!("compromised: {reason}"), None);
            self.check_leaves_operators(caller, &lock, tenant.as_ref(), &[])?;
            locks.push(lock);
        }
        if dry_run {
            let mut names: Vec<LockName> = locks.iter().map(|lock| lock.name.clone()).collect();
            let mut jobs: BTreeSet<_> = names.iter().flat_map(|name| self.closed_by(name)).collect();
            jobs.extend(&dry.jobs_closed);
            names.push(LockName::Name(name.clone()));
            let tainted = self.tainted(name);
            names.extend(self.read_by_others(&tainted).map(LockName::Name));
            let ending = self.endings.dry_ending(self.count_behind_any(&names));
            let mut notes = dry.notes;
            notes.extend(quarantine_note(tainted.with_output));
            let revoked = Revoked { ending, jobs_closed: jobs.into_iter().collect(), notes };
            return Ok(RevokedAndLocked { revoked, locks });
        }
        let (mut set, mut behind, mut jobs) = (Vec::new(), 0u64, BTreeSet::new());
        for lock in locks {
            let done = self.set_lock(caller, lock)?;
            behind = behind.saturating_add(done.ending.ending.behind);
            jobs.extend(done.jobs_closed);
            set.push(done.lock);
        }
        let mut revoked = self.revoke(caller, name, &EndingOptions { ahead: true, ..options.clone() })?;
        revoked.ending.ending.behind = revoked.ending.ending.behind.saturating_add(behind);
        if matches!(name.kind(), FenceKind::Job(id) if jobs.contains(&id)) {
            // The lock on the launcher has just closed the job, so the note "was closed already" is wrong.
            revoked.notes.clear();
        }
        jobs.extend(&revoked.jobs_closed);
        revoked.jobs_closed = jobs.into_iter().collect();
        // From here on, nothing more is written, so no output is missed.
        let tainted = self.tainted(name);
        self.context.state.quarantine(name, &tainted.jobs);
        let readers = self.end_readers(&tainted);
        revoked.ending.ending.behind = revoked.ending.ending.behind.saturating_add(readers);
        revoked.notes.extend(quarantine_note(tainted.with_output));
        Ok(RevokedAndLocked { revoked, locks: set })
    }

    /// Ends the leases of other jobs that read the checkpoints of quarantined jobs. Returns their number.
    fn end_readers(&self, tainted: &Tainted) -> u64 {
        const BECAUSE: &str = "checkpoints that it reads were quarantined";
        // A request may have checked the quarantine before. It compares the revision after it has inserted its lease into
        // the table, so it starts again.
        self.context.fences.raise_revision();
        let mut ended = 0u64;
        for name in self.read_by_others(tainted).filter(|name| self.context.fences.behind(name) > 0) {
            let lowered = self.context.state.lower(&name, BECAUSE);
            ended = ended.saturating_add(lowered.ending.behind);
            self.endings.sweep(&[name], BECAUSE);
        }
        ended
    }

    /// Returns the fences of the jobs whose checkpoints other jobs can read. Open jobs are left out: no other job reads
    /// their checkpoints yet, and lowering the fence of a job would also end the leases of the members of that job.
    fn read_by_others(&self, tainted: &Tainted) -> impl Iterator<Item = FenceName> {
        let is_open = |id: &JobId| self.context.state.job(*id).is_some_and(|job| !job.is_closed());
        tainted.writers.iter().copied().filter(move |id| !is_open(id)).map(FenceName::job)
    }

    /// Returns the jobs in memory that a compromise concerns. The writers are the named job, or all jobs that the named
    /// identity launched or joined. All jobs that read checkpoints of the writers are tainted too. The
    /// readers are marked themselves, because the daemon may forget a writer before it forgets its readers.
    fn tainted(&self, name: &FenceName) -> Tainted {
        let has_part = |job: &Job| match name.kind() {
            FenceKind::Identity(id) => job.launcher == id || job.attempts.iter().any(|a| a.members.has(&id)),
            FenceKind::Job(id)
            | FenceKind::Attempt(id, _)
            | FenceKind::AttemptReading(id, _)
            | FenceKind::Member(id, ..)
            | FenceKind::MemberReading(id, ..) => job.id == id,
            FenceKind::Lease(id) => self.context.lease_job(id) == Some(job.id),
            FenceKind::Epoch
            | FenceKind::Domain(_)
            | FenceKind::Tenant(_)
            | FenceKind::Human(_)
            | FenceKind::Image(_)
            | FenceKind::Resource(_) => false,
        };
        let writes = |job: &Job| !job.spec.write.is_empty() && !job.attempts.is_empty();
        let jobs = self.context.state.list(None, usize::MAX, |job| writes(job) && has_part(job));
        let mut writers: BTreeSet<JobId> = jobs.iter().map(|job| job.id).collect();
        if let FenceKind::Job(id) = name.kind() {
            // The job may be forgotten, while jobs that read its checkpoints are not.
            writers.insert(id);
        }
        let descends = |job: &Job| writers.contains(&job.id) || !job.lineage.jobs.is_disjoint(&writers);
        let jobs = self.context.state.list(None, usize::MAX, descends);
        let with_output = jobs.iter().filter(|job| !job.spec.write.is_empty()).count();
        Tainted { jobs: jobs.iter().map(|job| job.id).collect(), with_output, writers }
    }

    /// Returns the locks that a compromise of a name needs: one on each holder, and one on all jobs of the launcher.
    fn compromised(&self, name: &FenceName) -> Result<Vec<LockName>, Refusal> {
        let of_job = |id| self.context.state.job(id);
        let (holders, launcher) = match name.kind() {
            FenceKind::Identity(id) => (BTreeSet::from([id]), None),
            FenceKind::Lease(id) => {
                let live = self.context.table.find(id).map(|l| l.facts.clone());
                let facts = live.or_else(|| self.context.table.find_ended(id).map(|l| l.facts));
                let launcher = facts.as_ref().and_then(|f| of_job(f.job)).map(|job| job.launcher.clone());
                (facts.map(|f| f.holder.clone()).into_iter().collect(), launcher)
            }
            FenceKind::Job(job) => {
                let job = of_job(job);
                (job.as_deref().map(holders).unwrap_or_default(), job.map(|job| job.launcher.clone()))
            }
            FenceKind::Attempt(job, n) | FenceKind::AttemptReading(job, n) => {
                let job = of_job(job);
                let attempt = job.as_ref().and_then(|job| job.attempt(n));
                let ids = attempt.map(|a| a.members.identities().cloned().collect()).unwrap_or_default();
                (ids, job.as_ref().map(|job| job.launcher.clone()))
            }
            FenceKind::Member(job, n, instance) | FenceKind::MemberReading(job, n, instance) => {
                let job = of_job(job);
                let member = job.as_ref().and_then(|job| job.attempt(n)?.members.get(&instance).cloned());
                let ids = member.map(|m| m.spiffe_id).into_iter().collect();
                (ids, job.map(|job| job.launcher.clone()))
            }
            _ => {
                let text = format!("{name} has no holder that could be locked");
                return Err(Refusal::new(Reason::FieldInvalid, text)
                    .with("field", "cause")
                    .fix("name a job, attempt, member, lease or identity; or lock the name itself"));
            }
        };
        if holders.len() > limits::COMPROMISED_MAX {
            let text = format!(
                "{name} has {} holders, and at most {} are locked by one call",
                holders.len(),
                limits::COMPROMISED_MAX
            );
            return Err(Refusal::new(Reason::QuotaExceeded, text)
                .fix("lock the path above them first: leasehold lock identity-prefix:spiffe://…/"));
        }
        // A locked identity cannot launch jobs, so it needs no second lock.
        let launcher = launcher.filter(|id| !holders.contains(id)).map(LockName::Launcher);
        let holders = holders.into_iter().map(|id| LockName::Name(FenceName::identity(id)));
        Ok(holders.chain(launcher).collect())
    }
}

/// The jobs that a compromise concerns.
struct Tainted {
    /// The jobs whose identities or members were compromised.
    writers: BTreeSet<JobId>,
    /// The writers, and the jobs in memory that read their checkpoints.
    jobs: Vec<JobId>,
    /// The number of `jobs` that write checkpoints.
    with_output: usize,
}

fn quarantine_note(jobs: usize) -> Option<String> {
    (jobs > 0).then(|| {
        format!("what {jobs} job(s) have written is quarantined, also if a job completed: see `leasehold job show`")
    })
}

/// Returns the identities of the members in the current or last attempt.
fn holders(job: &Job) -> BTreeSet<SpiffeId> {
    job.attempts.last().map(|a| a.members.identities().cloned().collect()).unwrap_or_default()
}
