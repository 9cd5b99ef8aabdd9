//! What operators do: revoke, lock, unlock. What ends access is in force when it is answered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    caller::Caller,
    context::Broker,
    refusals::{move_refusal, state_refusal},
};
use crate::{
    job::{Change, Close, Job, MemberState},
    ledger::{Actor, Ending, Event, LEASES_PER_RECORD},
    name::{FenceKind, FenceName, JobId, LeaseId, Outcome, SpiffeId, TenantName},
    policy::Rpc,
    reason::{Reason, Refusal},
    state::{Lock, LockName, Refused},
};

/// The answer to a revocation.
#[derive(Debug, Default)]
pub struct Revoked {
    pub ending: Ending,
    pub index: Option<u64>,
    pub durable: bool,
    pub jobs_closed: Vec<JobId>,
    pub notes: Vec<String>,
}

/// The answer to a lock.
#[derive(Debug)]
pub struct Locked {
    pub lock: Lock,
    pub ending: Ending,
    pub index: Option<u64>,
    pub durable: bool,
}

/// How an operator asks for an end.
#[derive(Clone, Debug)]
pub struct EndingOptions<'a> {
    /// For those who are cut off, and for the auditor.
    pub reason: &'a str,
    /// Counts what would end, and changes nothing.
    pub dry_run: bool,
    /// Takes a name that nothing has yet.
    pub ahead: bool,
}

/// A lock that an operator asks for.
#[derive(Clone, Debug)]
pub struct LockOrder<'a> {
    pub name: LockName,
    pub manner: EndingOptions<'a>,
    pub ttl: Option<Duration>,
    /// The operators whom it may shut out, as the refusal that asked for this named them.
    pub locks_out: &'a [String],
}

impl Broker {
    /// Ends all access behind a name. A job or lease that is not there is NOT_FOUND; any other name that nothing has is refused
    /// unless the caller says that it comes ahead of it.
    pub fn revoke(
        &self,
        caller: &Caller,
        name: &FenceName,
        manner: &EndingOptions<'_>,
    ) -> Result<Revoked, Refusal> {
        let EndingOptions { reason, dry_run, ahead } = *manner;
        let tenant = self.tenant_of(caller, Rpc::Revoke, name, reason)?;
        self.authorize(caller, Rpc::Revoke, tenant.as_ref(), &[], reason)?;
        if matches!(name.kind(), FenceKind::Epoch) {
            return Err(Refusal::new(
                Reason::FieldInvalid,
                "the epoch is ended by a restart, not by a revocation",
            ));
        }
        if !ahead {
            self.is_known(caller, Rpc::Revoke, &LockName::Name(name.clone()))?;
        }
        if dry_run {
            return Ok(self.would_revoke(name));
        }
        metrics::counter!("leasehold_revocations_total").increment(1);
        tracing::warn!(%name, by = %caller.id(), reason, "revoked");
        let mut answer = Revoked { durable: true, ..Revoked::default() };
        match name.kind() {
            FenceKind::Job(job) => {
                let ended = self.close_job_as(caller.actor(), job, Outcome::Revoked, reason)?;
                answer.ending = ended.0;
                answer.index = ended.1;
                answer.jobs_closed.push(job);
            }
            FenceKind::Attempt(job, attempt) => {
                let now = self.clock.now().lease;
                let done = self
                    .state
                    .narrow(job, &caller.actor(), |j| {
                        Ok(match j.end_attempt(attempt, Outcome::Revoked, reason, now)? {
                            crate::job::End::Now(changes) => changes,
                            crate::job::End::Already | crate::job::End::Conflict(_) => Vec::new(),
                        })
                    })
                    .map_err(|r| state_refusal(r, move_refusal))?;
                self.sweep(&done.lowered, "revoked");
                answer.ending = done.ending;
                answer.index = done.record.map(|r| r.index);
                if done.value.is_closed() {
                    answer.jobs_closed.push(job);
                }
            }
            FenceKind::Lease(id) => {
                let behind = self.end_lease(id, &format!("revoked: {reason}"));
                let done = self.state.revoke_lease(id, behind, caller.actor(), reason);
                if behind > 0 {
                    self.call_holder(id);
                }
                answer.ending = done.ending;
                answer.index = done.record.map(|r| r.index);
            }
            kind => {
                // The fence first, and an identity's memberships after it: one that came in between the two ends with them,
                // and none that is older than the lowering is left. What is issued in between stands behind a membership.
                let done = self.state.revoke(name, caller.actor(), reason);
                let mut ended = Vec::new();
                if let FenceKind::Identity(id) = &kind {
                    ended = self.end_memberships(caller, id, reason);
                    if !ended.is_empty() {
                        answer.notes.push(format!("{} membership(s) of it ended", ended.len()));
                    }
                    answer.notes.push(
                        "it may join and ask again: only a lock keeps it out (leasehold lock)".to_owned(),
                    );
                } else if matches!(
                    kind,
                    FenceKind::Tenant(_)
                        | FenceKind::Domain(_)
                        | FenceKind::Human(_)
                        | FenceKind::Resource(_)
                ) {
                    answer.notes.push(
                        "jobs may ask again for what policy still allows: only a lock keeps them out (leasehold lock)"
                            .to_owned(),
                    );
                }
                self.sweep(&done.lowered, "revoked");
                self.sweep(&ended, "identity revoked");
                answer.ending = done.ending;
                answer.index = done.record.map(|r| r.index);
            }
        }
        let (index, durable) = self.durability(answer.index);
        (answer.index, answer.durable) = (Some(index), durable);
        Ok(answer)
    }

    /// Ends one lease by its own word, and answers how many lived until then: one or none. Its name is lowered next, for those
    /// who follow the feed.
    pub(super) fn end_lease(&self, id: LeaseId, cause: &str) -> u64 {
        let now = self.clock.now().lease;
        let lived = self.table.find(id).is_some_and(|l| l.check(now).is_ok());
        // Of several that end it, one does.
        u64::from(self.table.remove(id, now, cause).is_some() && lived)
    }

    /// Live leases that a name would end.
    fn behind(&self, name: &FenceName) -> u64 {
        match name.kind() {
            FenceKind::Lease(id) => u64::from(self.table.find(id).is_some()),
            _ => self.fences.behind(name),
        }
    }

    fn would_revoke(&self, name: &FenceName) -> Revoked {
        let behind = self.behind(name);
        let jobs_closed = match name.kind() {
            FenceKind::Job(job) if self.state.job(job).is_some_and(|j| !j.is_closed()) => vec![job],
            _ => Vec::new(),
        };
        Revoked {
            ending: Ending { seq: self.fences.seq().0, behind },
            index: None,
            durable: true,
            jobs_closed,
            notes: vec!["dry run: nothing was changed".to_owned()],
        }
    }

    /// Locks: what is there ends, and nothing new comes until it is lifted.
    pub fn lock(&self, caller: &Caller, order: LockOrder<'_>) -> Result<Locked, Refusal> {
        let LockOrder { name, manner: EndingOptions { reason, dry_run, ahead }, ttl, locks_out } = order;
        let tenant = match &name {
            LockName::Name(n) => self.tenant_of(caller, Rpc::Lock, n, reason)?,
            LockName::Prefix(_) => None,
        };
        self.authorize(caller, Rpc::Lock, tenant.as_ref(), &[], reason)?;
        if !ahead {
            self.is_known(caller, Rpc::Lock, &name)?;
        }
        let now = self.clock.now().lease;
        let is_of_all = self.authorize(caller, Rpc::Lock, None, &[], reason).is_ok();
        let lock = Lock {
            name: name.clone(),
            reason: reason.to_owned(),
            by: caller.actor(),
            of: (!is_of_all).then(|| caller.tenant().clone()),
            since: now,
            until: ttl.map(|t| now.plus(t)),
        };
        self.leaves_operators(caller, &lock, tenant.as_ref(), locks_out)?;
        if dry_run {
            let behind = match &name {
                LockName::Name(n) => self.behind(n),
                LockName::Prefix(p) => {
                    let below = |n: &FenceName| matches!(n.kind(), FenceKind::Identity(id) if id.as_str().starts_with(p.as_str()));
                    self.table.live(None).iter().filter(|l| l.stand().names().any(below)).count() as u64
                }
            };
            let ending = Ending { seq: self.fences.seq().0, behind };
            return Ok(Locked { lock, ending, index: None, durable: true });
        }
        tracing::warn!(%name, by = %caller.id(), reason, "locked");
        let kind = match &name {
            LockName::Name(n) => Some(n.kind()),
            LockName::Prefix(_) => None,
        };
        let set = match &kind {
            // A lease's own end is its own word: nobody stands behind its name.
            Some(FenceKind::Lease(id)) => {
                let end = || self.end_lease(*id, &format!("locked: {reason}"));
                self.state.lock_lease(lock, end).map(|done| (done, None))
            }
            _ => self.state.lock(lock),
        };
        let (done, revision) = set.map_err(|r| state_refusal(r, |never| match never {}))?;
        if let Some(FenceKind::Lease(id)) = &kind
            && done.ending.behind > 0
        {
            self.call_holder(*id);
        }
        let mut ending = done.ending;
        if let Some(FenceKind::Identity(id)) = &kind {
            let ended = self.end_memberships(caller, id, reason);
            self.sweep(&ended, "locked");
        }
        if revision.is_some() {
            ending.behind = self.sweep_locked_prefix(&name, reason);
        }
        self.sweep(&done.lowered, "locked");
        self.decide_again();
        let (index, durable) = self.durability(done.record.map(|r| r.index));
        Ok(Locked { lock: done.value, ending, index: Some(index), durable })
    }

    /// Lifts a lock; resolves when that is on disk. Only operators of all tenants lift a lock that they set. The break-glass
    /// identity lifts every lock.
    pub async fn unlock(&self, caller: &Caller, name: &LockName, reason: &str) -> Result<Lock, Refusal> {
        let breaks_glass = self.breaks_glass(caller.id());
        if !breaks_glass {
            let tenant = match name {
                LockName::Name(n) => self.tenant_of(caller, Rpc::Unlock, n, reason)?,
                LockName::Prefix(_) => None,
            };
            self.authorize(caller, Rpc::Unlock, tenant.as_ref(), &[], reason)?;
        }
        self.widening()?;
        let is_of_all = breaks_glass || self.authorize(caller, Rpc::Unlock, None, &[], reason).is_ok();
        let may = |lock: &Lock| is_of_all || lock.of.as_ref() == Some(caller.tenant());
        let lifted = self.state.unlock(name, caller.actor(), reason, may).await;
        if breaks_glass && lifted.is_ok() {
            tracing::warn!(%name, by = %caller.id(), reason, "a lock was lifted by the break-glass identity");
        }
        lifted.map_err(|refused| match refused {
            Refused::NotTheirs(by) => Refusal::new(Reason::PolicyDenied, refused_text(name))
                .with("locked by", by.to_string())
                .fix("ask who set it, or another operator of the platform, to lift it"),
            Refused::NoLock => self.no_such_lock(caller, name),
            refused => state_refusal(refused, |never| match never {}),
        })
    }

    /// The locks that the caller may see, by name, beyond one: its tenant's, or all.
    pub fn list_locks(
        &self,
        caller: &Caller,
        mut after: Option<LockName>,
        max: usize,
    ) -> Result<Vec<Lock>, Refusal> {
        let everything =
            self.breaks_glass(caller.id()) || self.authorize(caller, Rpc::ListLocks, None, &[], "").is_ok();
        if !everything {
            self.authorize(caller, Rpc::ListLocks, Some(caller.tenant()), &[], "")?;
        }
        let mine = |lock: &Lock| match &lock.name {
            LockName::Name(n) => {
                self.tenant_of(caller, Rpc::ListLocks, n, "").ok().flatten().as_ref() == Some(caller.tenant())
            }
            LockName::Prefix(_) => false,
        };
        let mut found = Vec::new();
        while found.len() < max {
            let some = self.state.locks(after.as_ref(), max);
            let Some(last) = some.last() else { break };
            after = Some(last.name.clone());
            found.extend(some.into_iter().filter(|l| everything || mine(l)));
        }
        found.truncate(max);
        Ok(found)
    }

    /// Ends all memberships of an identity. Answers the names that this lowered, for the clean-up.
    fn end_memberships(&self, caller: &Caller, id: &SpiffeId, reason: &str) -> Vec<FenceName> {
        let mut ended = Vec::new();
        for job in self.state.open_jobs() {
            let now = self.clock.now().lease;
            let done = self.state.narrow(job.id, &caller.actor(), |j| {
                Ok::<_, std::convert::Infallible>(leave_all(j, id, reason, now))
            });
            if let Ok(done) = done {
                ended.extend(done.lowered);
            }
        }
        ended
    }

    /// After the lock on a prefix and the raised revision: every identity below it that holds or launched something.
    fn sweep_locked_prefix(&self, name: &LockName, reason: &str) -> u64 {
        let LockName::Prefix(prefix) = name else { return 0 };
        let mut ids = std::collections::BTreeSet::new();
        for job in self.state.open_jobs() {
            ids.insert(job.launcher.clone());
            ids.extend(job.attempts.iter().flat_map(|a| a.members.values().map(|m| m.spiffe_id.clone())));
        }
        ids.extend(self.table.live(None).iter().map(|l| l.facts.holder.clone()));
        let mut behind = 0u64;
        for id in ids.into_iter().filter(|id| id.as_str().starts_with(prefix.as_str())) {
            let fence = FenceName::identity(id);
            behind = behind.saturating_add(self.state.lower(&fence, reason).ending.behind);
            self.sweep(&[fence], "locked");
        }
        behind
    }

    /// The tenant whose operators may end what stands behind a name; `None` where only those of all tenants may.
    ///
    /// Who may not make the call at all is told so before it is told whether there is such a job or lease.
    fn tenant_of(
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
        let of_job = |id: JobId| self.state.job(id).map(|j: Arc<Job>| j.spec.tenant.clone());
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
            // Whose an identity is, and whether it is known at all, is said to those who see its tenant.
            FenceKind::Identity(id) => {
                let tenant = caller.rules.catalog().principal(&id).map(|p| p.tenant.clone());
                Ok(tenant.filter(|tenant| self.sees(caller, tenant)))
            }
            FenceKind::Epoch | FenceKind::Domain(_) | FenceKind::Human(_) => Ok(None),
        }
    }

    /// Whether a tenant's things exist for the caller.
    pub(super) fn sees(&self, caller: &Caller, tenant: &TenantName) -> bool {
        caller.tenant() == tenant || self.authorize(caller, Rpc::GetJob, Some(tenant), &[], "").is_ok()
    }

    pub(super) fn lease_tenant(&self, id: LeaseId) -> Option<TenantName> {
        self.table
            .find(id)
            .map(|l| l.facts.tenant.clone())
            .or_else(|| self.table.find_ended(id).map(|l| l.facts.tenant.clone()))
    }

    pub(super) fn close_job_as(
        &self,
        by: Actor,
        job: JobId,
        outcome: Outcome,
        reason: &str,
    ) -> Result<(Ending, Option<u64>), Refusal> {
        let now = self.clock.now().lease;
        let done = self
            .state
            .narrow(job, &by, |j| {
                Ok::<_, std::convert::Infallible>(match j.close(outcome, reason, now) {
                    Close::Now(change) => vec![change],
                    Close::Already | Close::Conflict(_) => Vec::new(),
                })
            })
            .map_err(|r| state_refusal(r, |never| match never {}))?;
        self.sweep(&done.lowered, &format!("job {outcome}"));
        Ok((done.ending, done.record.map(|r| r.index)))
    }

    /// Clears out what a lowering ended: frees places, remembers the leases for a while, records them with their cause.
    /// They are dead before this begins.
    pub(super) fn sweep(&self, lowered: &[FenceName], cause: &str) {
        let now = self.clock.now().lease;
        for name in lowered {
            // What is found dead here may have died of another lowering at the same time: each lease says itself which.
            let mut by_cause: BTreeMap<(FenceName, u64), Vec<LeaseId>> = BTreeMap::new();
            for lease in self.table.sweep(name, now, cause) {
                let (fence, seq) = lease.stand().lowered().map_or((name, 0), |(fence, seq)| (fence, seq.0));
                by_cause.entry((fence.clone(), seq)).or_default().push(lease.id);
            }
            for ((name, seq), ids) in by_cause {
                for leases in ids.chunks(LEASES_PER_RECORD) {
                    self.ledger.defer(&Event::LeasesEnded {
                        cause: crate::ledger::Cause::Lowered { name: name.clone(), seq },
                        leases: leases.to_vec(),
                        by: None,
                    });
                }
            }
        }
    }
}

fn refused_text(name: &LockName) -> String {
    format!("the lock on {name} was set by the platform, so a tenant does not lift it")
}

/// All memberships of one identity in a job's current attempt end.
fn leave_all(job: &Job, id: &SpiffeId, reason: &str, at: crate::clock::LeaseTime) -> Vec<Change> {
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
