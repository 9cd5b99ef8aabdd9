//! Revocations by operators. When the caller gets the answer, access has ended.

use super::{
    caller::Caller,
    endings::{EndedWork, RecordedEnding},
    operators::{OperatorUseCases, by_whom},
    refusals::{move_refusal, state_refusal},
};
use crate::{
    job::JobState,
    name::{FenceKind, FenceName, JobId, Outcome},
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

/// The options of an operator for the end of access.
#[derive(Clone, Debug)]
pub struct EndingOptions<'a> {
    /// The reason, for those who lose access and for the auditor.
    pub reason: &'a str,
    /// If set, the call only counts the access that would end.
    pub dry_run: bool,
    /// If set, the name need not exist yet.
    pub ahead: bool,
}

impl OperatorUseCases {
    /// Ends all access behind a name. A name that does not exist is refused unless `ahead` is set.
    pub fn revoke(
        &self,
        caller: &Caller,
        name: &FenceName,
        options: &EndingOptions<'_>,
    ) -> Result<Revoked, Refusal> {
        let EndingOptions { reason, dry_run, ahead } = *options;
        let tenant = self.tenant_of(caller, Rpc::Revoke, name, reason)?;
        self.access.authorize(caller, Rpc::Revoke, tenant.as_ref(), &[], reason)?;
        self.access.charge_operator(caller, Rpc::Revoke)?;
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
        if self.context.rates.may_log(caller.id()) {
            tracing::warn!(%name, by = %caller.id(), reason, "revoked");
        }
        let detail = by_whom(caller, reason);
        Ok(match name.kind() {
            // The daemon has forgotten the job, and other jobs read its checkpoints.
            FenceKind::Job(job)
                if self.context.state.job(job).is_none() && self.context.fences.behind(name) > 0 =>
            {
                self.revoke_name(caller, name, &FenceKind::Job(job), reason)
            }
            FenceKind::Job(job) => {
                let closed =
                    self.endings.close(job, &caller.actor(), Outcome::Revoked, &detail, "job revoked")?;
                // The job had closed before. Leases of other jobs that read its checkpoints are still behind its fence.
                if closed.done.record.is_none() && self.context.fences.behind(name) > 0 {
                    return Ok(self.revoke_name(caller, name, &FenceKind::Job(job), reason));
                }
                self.closed_by_revocation(job, closed)
            }
            FenceKind::Attempt(job, attempt) => {
                let ended =
                    self.endings.end_attempt_as(&caller.actor(), job, attempt, Outcome::Revoked, &detail);
                let EndedWork { done, .. } = ended.map_err(|r| state_refusal(r, move_refusal))?;
                let jobs_closed = if done.value.is_closed() { vec![job] } else { Vec::new() };
                Revoked { jobs_closed, ..self.revoked(done) }
            }
            FenceKind::Lease(id) => {
                let behind = self.endings.end_lease(id, &format!("revoked: {reason}"));
                let done = self.context.state.revoke_lease(id, behind, caller.actor(), reason);
                if behind > 0 {
                    self.endings.call_holder(id);
                }
                self.revoked(done)
            }
            kind => self.revoke_name(caller, name, &kind, reason),
        })
    }

    /// Returns the answer about one job. If the job was closed before, nothing ended.
    fn closed_by_revocation(&self, job: JobId, closed: EndedWork) -> Revoked {
        let was_closed = closed.done.record.is_none();
        let (outcome, state) = (closed.conflict.unwrap_or(Outcome::Revoked), self.revoked(closed.done));
        match was_closed {
            true => Revoked { notes: vec![closed_before(job, outcome)], ..state },
            false => Revoked { jobs_closed: vec![job], ..state },
        }
    }

    fn revoked<T>(&self, done: Committed<T>) -> Revoked {
        let ending = self.endings.recorded(done.ending, done.record);
        Revoked { ending, jobs_closed: Vec::new(), notes: Vec::new() }
    }

    /// Lowers the fence of a name that is not a job, attempt or lease. If the name is an identity, its memberships end
    /// after the fence is lowered, so that none of the earlier memberships is left.
    fn revoke_name(&self, caller: &Caller, name: &FenceName, kind: &FenceKind, reason: &str) -> Revoked {
        let logins = self.context.state.logins_behind(name);
        self.context.reasons.note(name, reason);
        let done = self.context.state.revoke(name, caller.actor(), reason);
        let mut notes = Vec::new();
        if logins > 0 {
            notes.push(format!("{logins} login(s) of people ended; they may log in again"));
        }
        let mut ended = Vec::new();
        match kind {
            FenceKind::Identity(id) => {
                ended = self.end_memberships(caller, id, "revoked", reason);
                if !ended.is_empty() {
                    notes.push(format!("{} membership(s) of it ended", ended.len()));
                }
                notes.push(
                    "this identity may join and ask again: only a lock keeps it out (leasehold lock)"
                        .to_owned(),
                );
            }
            FenceKind::Tenant(_)
            | FenceKind::Domain(_)
            | FenceKind::Human(_)
            | FenceKind::Image(_)
            | FenceKind::Resource(_) => {
                notes.push(
                    "jobs may ask again for what policy still allows: only a lock keeps them out (leasehold lock)"
                        .to_owned(),
                );
            }
            FenceKind::Job(job) => {
                notes.push(format!(
                    "{job} was closed already: the access of jobs that read its checkpoints ended; they may ask again (leasehold lock)"
                ));
            }
            _ => {}
        }
        self.endings.sweep(&done.lowered, "revoked");
        self.endings.sweep(&ended, "identity revoked");
        Revoked { notes, ..self.revoked(done) }
    }

    fn would_revoke(&self, name: &FenceName) -> Revoked {
        let ending = self.endings.dry_ending(self.count_behind(name));
        let (mut jobs_closed, mut notes) = (Vec::new(), vec!["Dry run: nothing was changed.".to_owned()]);
        let logins = self.context.state.logins_behind(name);
        if logins > 0 {
            notes.push(format!("{logins} login(s) of people would end"));
        }
        if let FenceKind::Job(id) = name.kind()
            && let Some(job) = self.context.state.job(id)
        {
            match job.state {
                JobState::Closed(_) if ending.ending.behind > 0 => {
                    notes.push(format!("{id} was closed already: other jobs read its checkpoints"));
                }
                JobState::Closed(outcome) => notes.push(closed_before(id, outcome)),
                _ => jobs_closed.push(id),
            }
        }
        Revoked { ending, jobs_closed, notes }
    }
}

fn closed_before(job: JobId, outcome: Outcome) -> String {
    format!("{job} was closed already: {outcome}. It had no access left, so nothing ended")
}
