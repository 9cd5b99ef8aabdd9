//! Revocations by operators. Access has ended when the answer is given.

use std::convert::Infallible;

use super::{
    caller::Caller,
    context::Broker,
    endings::{EndedWork, RecordedEnding},
    refusals::{move_refusal, state_refusal},
};
use crate::{
    clock::LeaseTime,
    job::{Change, Job, MemberState},
    name::{FenceKind, FenceName, JobId, LeaseId, Outcome, SpiffeId, TenantName},
    policy::Rpc,
    reason::{Reason, Refusal},
    state::{Committed, LockName},
};

/// The answer to a revocation.
#[derive(Debug)]
pub struct Revoked {
    pub ending: RecordedEnding,
    pub jobs_closed: Vec<JobId>,
    pub notes: Vec<String>,
}

/// How an operator wants access to end.
#[derive(Clone, Debug)]
pub struct EndingOptions<'a> {
    /// The reason, for those who lose access and for the auditor.
    pub reason: &'a str,
    /// Only counts what would end.
    pub dry_run: bool,
    /// Accepts a name that nothing has yet.
    pub ahead: bool,
}

impl Broker {
    /// Ends all access behind a name. A name that nothing has is refused unless `ahead` is set.
    pub fn revoke(
        &self,
        caller: &Caller,
        name: &FenceName,
        options: &EndingOptions<'_>,
    ) -> Result<Revoked, Refusal> {
        let EndingOptions { reason, dry_run, ahead } = *options;
        let tenant = self.tenant_of(caller, Rpc::Revoke, name, reason)?;
        self.authorize(caller, Rpc::Revoke, tenant.as_ref(), &[], reason)?;
        self.charge_operator(caller, Rpc::Revoke)?;
        if matches!(name.kind(), FenceKind::Epoch) {
            return Err(Refusal::new(
                Reason::FieldInvalid,
                "the epoch is ended by a restart, not by a revocation",
            ));
        }
        if !ahead {
            self.check_known(caller, Rpc::Revoke, &LockName::Name(name.clone()))?;
        }
        if dry_run {
            return Ok(self.would_revoke(name));
        }
        metrics::counter!("leasehold_revocations_total").increment(1);
        if self.rates.may_log(caller.id()) {
            tracing::warn!(%name, by = %caller.id(), reason, "revoked");
        }
        Ok(match name.kind() {
            FenceKind::Job(job) => {
                let closed = self.close(job, &caller.actor(), Outcome::Revoked, reason, "job revoked")?;
                Revoked { jobs_closed: vec![job], ..self.revoked(closed.done) }
            }
            FenceKind::Attempt(job, attempt) => {
                let ended = self.end_attempt_as(&caller.actor(), job, attempt, Outcome::Revoked, reason);
                let EndedWork { done, .. } = ended.map_err(|r| state_refusal(r, move_refusal))?;
                let jobs_closed = if done.value.is_closed() { vec![job] } else { Vec::new() };
                Revoked { jobs_closed, ..self.revoked(done) }
            }
            FenceKind::Lease(id) => {
                let behind = self.end_lease(id, &format!("revoked: {reason}"));
                let done = self.state.revoke_lease(id, behind, caller.actor(), reason);
                if behind > 0 {
                    self.call_holder(id);
                }
                self.revoked(done)
            }
            kind => self.revoke_name(caller, name, &kind, reason),
        })
    }

    fn revoked<T>(&self, done: Committed<T>) -> Revoked {
        let ending = self.recorded(done.ending, done.record);
        Revoked { ending, jobs_closed: Vec::new(), notes: Vec::new() }
    }

    /// Lowers a fence that is not a job, attempt or lease. The memberships of an identity end after that, so that none is left
    /// that is older than the lowering.
    fn revoke_name(&self, caller: &Caller, name: &FenceName, kind: &FenceKind, reason: &str) -> Revoked {
        let done = self.state.revoke(name, caller.actor(), reason);
        let mut notes = Vec::new();
        let mut ended = Vec::new();
        match kind {
            FenceKind::Identity(id) => {
                ended = self.end_memberships(caller, id, reason);
                if !ended.is_empty() {
                    notes.push(format!("{} membership(s) of it ended", ended.len()));
                }
                notes.push("it may join and ask again: only a lock keeps it out (leasehold lock)".to_owned());
            }
            FenceKind::Tenant(_) | FenceKind::Domain(_) | FenceKind::Human(_) | FenceKind::Resource(_) => {
                notes.push(
                    "jobs may ask again for what policy still allows: only a lock keeps them out (leasehold lock)"
                        .to_owned(),
                );
            }
            _ => {}
        }
        self.sweep(&done.lowered, "revoked");
        self.sweep(&ended, "identity revoked");
        Revoked { notes, ..self.revoked(done) }
    }

    /// Counts the live leases that a name would end.
    pub(super) fn count_behind(&self, name: &FenceName) -> u64 {
        match name.kind() {
            FenceKind::Lease(id) => u64::from(self.table.find(id).is_some()),
            _ => self.fences.behind(name),
        }
    }

    fn would_revoke(&self, name: &FenceName) -> Revoked {
        let ending = self.dry_ending(self.count_behind(name));
        let jobs_closed = match name.kind() {
            FenceKind::Job(job) if self.state.job(job).is_some_and(|j| !j.is_closed()) => vec![job],
            _ => Vec::new(),
        };
        Revoked { ending, jobs_closed, notes: vec!["dry run: nothing was changed".to_owned()] }
    }

    /// Ends all memberships of an identity. Returns the names that this lowered, for the clean-up.
    pub(super) fn end_memberships(&self, caller: &Caller, id: &SpiffeId, reason: &str) -> Vec<FenceName> {
        let mut ended = Vec::new();
        for job in self.state.open_jobs() {
            let now = self.clock.now().lease;
            let done = self
                .state
                .narrow(job.id, &caller.actor(), |j| Ok::<_, Infallible>(leave_all(j, id, reason, now)));
            if let Ok(done) = done {
                ended.extend(done.lowered);
            }
        }
        ended
    }

    /// Counts a call of an operator, unless it is one of the platform's: those must be able to end access at any time.
    pub(super) fn charge_operator(&self, caller: &Caller, rpc: Rpc) -> Result<(), Refusal> {
        let is_of_all = self.breaks_glass(caller.id()) || self.authorize(caller, rpc, None, &[], "").is_ok();
        if is_of_all { Ok(()) } else { self.rates.charge_call(caller) }
    }

    /// Returns the tenant whose operators may end what stands behind a name; `None` means only operators of all tenants. A
    /// caller that may not make the call at all does not learn whether there is such a job or lease.
    pub(super) fn tenant_of(
        &self,
        caller: &Caller,
        rpc: Rpc,
        name: &FenceName,
        reason: &str,
    ) -> Result<Option<TenantName>, Refusal> {
        let not_found = |code, what: &str| {
            self.authorize(caller, rpc, Some(caller.tenant()), &[], reason)?;
            Err(Refusal::new(code, format!("there is no such {what}, or none that you may see")))
        };
        let of_job = |id: JobId| self.state.job(id).map(|j| j.spec.tenant.clone());
        match name.kind() {
            FenceKind::Job(j)
            | FenceKind::Attempt(j, _)
            | FenceKind::AttemptReading(j, _)
            | FenceKind::Member(j, ..)
            | FenceKind::MemberReading(j, ..) => match of_job(j) {
                Some(tenant) if self.sees(caller, &tenant) => Ok(Some(tenant)),
                _ => not_found(Reason::JobNotFound, "job"),
            },
            FenceKind::Lease(id) => match self.lease_tenant(id) {
                Some(tenant) if self.sees(caller, &tenant) => Ok(Some(tenant)),
                _ => not_found(Reason::LeaseNotFound, "lease"),
            },
            FenceKind::Tenant(t) => Ok(Some(t)),
            FenceKind::Resource(r) => Ok(Some(r.tenant())),
            // Only callers that see its tenant learn whose an identity is, and whether it is known.
            FenceKind::Identity(id) => {
                let tenant = caller.rules.catalog().principal(&id).map(|p| p.tenant.clone());
                Ok(tenant.filter(|tenant| self.sees(caller, tenant)))
            }
            FenceKind::Epoch | FenceKind::Domain(_) | FenceKind::Human(_) => Ok(None),
        }
    }

    pub(super) fn lease_tenant(&self, id: LeaseId) -> Option<TenantName> {
        self.table
            .find(id)
            .map(|l| l.facts.tenant.clone())
            .or_else(|| self.table.find_ended(id).map(|l| l.facts.tenant.clone()))
    }
}

/// Returns the changes that end all memberships of an identity in the current attempt of a job.
fn leave_all(job: &Job, id: &SpiffeId, reason: &str, at: LeaseTime) -> Vec<Change> {
    let Some(a) = job.current() else { return Vec::new() };
    a.members
        .iter()
        .filter(|(_, m)| {
            m.spiffe_id == *id && matches!(m.state, MemberState::Joined | MemberState::Away { .. })
        })
        .map(|(instance, _)| Change::MemberLeft {
            attempt: a.number,
            instance: instance.clone(),
            at,
            outcome: None,
            detail: format!("its identity was revoked: {reason}"),
        })
        .collect()
}
