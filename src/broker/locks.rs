//! Sets, lifts and lists the locks of operators.

use std::{collections::BTreeSet, time::Duration};

use super::{
    caller::Caller, endings::RecordedEnding, operators::OperatorUseCases, refusals::plain_refusal,
    revocations::EndingOptions,
};
use crate::{
    job::Job,
    name::{FenceKind, FenceName, JobId, SpiffeId, TenantName},
    policy::Rpc,
    reason::{Reason, Refusal},
    state::{Lock, LockName, Refused},
};

/// The answer to a lock.
#[derive(Debug)]
pub struct Locked {
    pub lock: Lock,
    pub ending: RecordedEnding,
    /// The jobs that the lock closed, or would close.
    pub jobs_closed: Vec<JobId>,
}

/// A lock that an operator asks for.
#[derive(Clone, Debug)]
pub struct LockOrder<'a> {
    pub name: LockName,
    pub options: EndingOptions<'a>,
    pub ttl: Option<Duration>,
    /// The operators whom the lock may shut out. A refusal listed these names and required this confirmation.
    pub locks_out: &'a [String],
}

impl OperatorUseCases {
    /// Locks a name. All access behind the name ends, and the daemon gives no new access until the lock is lifted.
    pub fn lock(&self, caller: &Caller, order: LockOrder<'_>) -> Result<Locked, Refusal> {
        let LockOrder { name, options: EndingOptions { reason, dry_run, ahead }, ttl, locks_out } = order;
        check_no_recall(&name)?;
        let tenant = self.tenant_of_lock(caller, Rpc::Lock, &name, reason)?;
        self.access.authorize(caller, Rpc::Lock, tenant.as_ref(), &[], reason)?;
        self.access.charge_operator(caller, Rpc::Lock)?;
        if !ahead {
            self.check_known(caller, Rpc::Lock, &name)?;
        }
        let lock = self.new_lock(caller, Rpc::Lock, name, reason, ttl);
        self.check_leaves_operators(caller, &lock, tenant.as_ref(), locks_out)?;
        if dry_run {
            let behind = self.count_behind_any(std::slice::from_ref(&lock.name));
            let behind = behind.saturating_add(self.count_unapproved_by(&lock));
            let ending = self.endings.dry_ending(behind);
            let jobs_closed = self.closed_by(&lock.name);
            return Ok(Locked { lock, ending, jobs_closed });
        }
        self.set_lock(caller, lock)
    }

    /// Makes a lock that is not yet in force. It belongs to the caller's tenant, or to the platform if the caller may
    /// lock for all tenants. Only the platform can lift a lock of the platform.
    pub(super) fn new_lock(
        &self,
        caller: &Caller,
        rpc: Rpc,
        name: LockName,
        reason: &str,
        ttl: Option<Duration>,
    ) -> Lock {
        let now = self.context.clock.now().lease;
        let is_of_all = self.access.authorize(caller, rpc, None, &[], reason).is_ok();
        Lock {
            name,
            reason: reason.to_owned(),
            by: caller.actor(),
            of: (!is_of_all).then(|| caller.tenant().clone()),
            since: now,
            until: ttl.map(|t| now.plus(t)),
        }
    }

    /// Puts a lock in force, and ends the access behind it.
    pub(super) fn set_lock(&self, caller: &Caller, lock: Lock) -> Result<Locked, Refusal> {
        let (name, reason) = (lock.name.clone(), lock.reason.clone());
        if self.context.rates.may_log(caller.id()) {
            tracing::warn!(%name, by = %caller.id(), reason, "locked");
        }
        let kind = match &name {
            LockName::Name(n) => Some(n.kind()),
            LockName::Prefix(_) | LockName::Launcher(_) | LockName::Recall(_) => None,
        };
        let set = match &kind {
            // The lease is ended directly in the table: no lease stands behind a `lease:` name.
            Some(FenceKind::Lease(id)) => {
                let end = || self.endings.end_lease(*id, &format!("locked: {reason}"));
                self.context.state.lock_lease(lock, end).map(|done| (done, None))
            }
            _ => self.context.state.lock(lock),
        };
        let (done, revision) = set.map_err(plain_refusal)?;
        if let Some(FenceKind::Lease(id)) = &kind
            && done.ending.behind > 0
        {
            self.endings.call_holder(*id);
        }
        let mut ending = done.ending;
        if let Some(FenceKind::Identity(id)) = &kind {
            let ended = self.end_memberships(caller, id, "locked", &reason);
            self.endings.sweep(&ended, "locked");
        }
        if revision.is_some() {
            ending.behind = self.sweep_locked_prefix(&name, &reason);
        }
        self.endings.sweep(&done.lowered, "locked");
        let detail = format!("its launcher was locked: {reason}");
        let closed = self.endings.close_all(caller, self.closed_by(&name), &detail, "locked");
        // Access that depends on the approval of a locked person ends too.
        let is_void = |job: &Job| {
            let approvers = job.approvals.iter().map(|a| &a.by);
            let breaker = job.emergency.iter().map(|e| &e.by);
            approvers.chain(breaker).any(|by| shuts_out_approver(&done.value, by))
        };
        let unapproved = self.sweeps.end_unapproved("an approver is locked", is_void);
        // If someone who is now locked proposed a change, the change has one person too few. So it becomes void before
        // the caller gets the answer.
        self.access.void_changes_of_the_lost();
        ending.behind = ending.behind.saturating_add(unapproved);
        self.context.decide_again();
        let recorded = self.endings.recorded(ending, done.record);
        let ending = self.endings.with_closed(recorded, &closed);
        Ok(Locked { lock: done.value, ending, jobs_closed: closed.jobs })
    }

    /// Returns the jobs that a lock closes: the jobs of a locked launcher. All other locks leave jobs open, but without
    /// access.
    pub(super) fn closed_by(&self, name: &LockName) -> Vec<JobId> {
        match name {
            LockName::Launcher(id) => self.open_jobs_of(id).iter().map(|job| job.id).collect(),
            LockName::Name(_) | LockName::Prefix(_) | LockName::Recall(_) => Vec::new(),
        }
    }

    /// Lifts a lock, and waits until the record is on disk. Only the platform can lift a lock of the platform. The
    /// break-glass identity can lift every lock.
    pub async fn unlock(&self, caller: &Caller, name: &LockName, reason: &str) -> Result<Lock, Refusal> {
        check_no_recall(name)?;
        let breaks_glass = self.access.breaks_glass(caller.id());
        if !breaks_glass {
            let tenant = self.tenant_of_lock(caller, Rpc::Unlock, name, reason)?;
            self.access.authorize(caller, Rpc::Unlock, tenant.as_ref(), &[], reason)?;
            self.access.charge_operator(caller, Rpc::Unlock)?;
        }
        self.context.refuse_if_held()?;
        let is_of_all = breaks_glass || self.access.authorize(caller, Rpc::Unlock, None, &[], reason).is_ok();
        let may = |lock: &Lock| is_of_all || lock.of.as_ref() == Some(caller.tenant());
        let lifted = self.context.state.unlock(name, caller.actor(), reason, may).await;
        if breaks_glass && lifted.is_ok() {
            tracing::warn!(%name, by = %caller.id(), reason, "a lock was lifted by the break-glass identity");
        }
        lifted.map_err(|refused| match refused {
            Refused::NotTheirs(by) => Refusal::new(Reason::PolicyDenied, refused_text(name))
                .with("locked by", by.to_string())
                .fix("ask who set it, or another operator of the platform, to lift it"),
            Refused::NoLock => self.no_such_lock(caller, name),
            refused => plain_refusal(refused),
        })
    }

    /// Returns the locks that the caller may see, in the order of their names: the locks of its tenant, or all. Begins
    /// after the name `after`.
    pub fn list_locks(
        &self,
        caller: &Caller,
        mut after: Option<LockName>,
        max: usize,
    ) -> Result<Vec<Lock>, Refusal> {
        let everything = self.lists_all_locks(caller)?;
        let mut found = Vec::new();
        while found.len() < max {
            let some = self.context.state.locks(after.as_ref(), max);
            let Some(last) = some.last() else { break };
            after = Some(last.name.clone());
            found.extend(some.into_iter().filter(|l| everything || self.is_own_lock(caller, l)));
        }
        found.truncate(max);
        Ok(found)
    }

    /// Whether the caller may see a lock in the list of locks.
    pub(super) fn may_list(&self, caller: &Caller, lock: &Lock) -> bool {
        self.lists_all_locks(caller).is_ok_and(|all| all || self.is_own_lock(caller, lock))
    }

    fn lists_all_locks(&self, caller: &Caller) -> Result<bool, Refusal> {
        if self.access.breaks_glass(caller.id()) {
            return Ok(true);
        }
        self.access.is_for_all_tenants(caller, Rpc::ListLocks)
    }

    /// Whether the caller's tenant owns the subject of a lock.
    fn is_own_lock(&self, caller: &Caller, lock: &Lock) -> bool {
        let tenant = self.tenant_of_lock(caller, Rpc::ListLocks, &lock.name, "");
        tenant.ok().flatten().as_ref() == Some(caller.tenant())
    }

    /// Returns the tenant whose operators may set and lift a lock. `None` if only an operator who is responsible
    /// for all tenants may.
    pub(super) fn tenant_of_lock(
        &self,
        caller: &Caller,
        rpc: Rpc,
        name: &LockName,
        reason: &str,
    ) -> Result<Option<TenantName>, Refusal> {
        match name {
            LockName::Name(name) => self.tenant_of(caller, rpc, name, reason),
            LockName::Launcher(id) => self.tenant_of(caller, rpc, &FenceName::identity(id.clone()), reason),
            LockName::Recall(name) => Ok(Some(name.tenant())),
            LockName::Prefix(_) => Ok(None),
        }
    }

    /// Ends the access of each identity below a locked prefix. The caller of this function has raised the revision.
    fn sweep_locked_prefix(&self, name: &LockName, reason: &str) -> u64 {
        let LockName::Prefix(prefix) = name else { return 0 };
        let mut ids = BTreeSet::new();
        for job in self.context.state.open_jobs() {
            ids.insert(job.launcher.clone());
            ids.extend(job.attempts.iter().flat_map(|a| a.members.values().map(|m| m.spiffe_id.clone())));
        }
        ids.extend(self.context.table.live(None).iter().map(|l| l.facts.holder.clone()));
        let mut behind = 0u64;
        for id in ids.into_iter().filter(|id| id.as_str().starts_with(prefix.as_str())) {
            let fence = FenceName::identity(id);
            behind = behind.saturating_add(self.context.state.lower(&fence, reason).ending.behind);
            self.endings.sweep(&[fence], "locked");
        }
        behind
    }
}

fn refused_text(name: &LockName) -> String {
    format!("the lock on {name} was set by the platform, so a tenant cannot lift it")
}

/// Refuses to lock or unlock a recall, because recalls have their own calls and rights.
fn check_no_recall(name: &LockName) -> Result<(), Refusal> {
    let LockName::Recall(dataset) = name else { return Ok(()) };
    let refusal = Refusal::new(Reason::FieldInvalid, format!("{name} is a recall, not a lock"));
    Err(refusal.with("field", "name").fix(format!(
        "recall data by `leasehold dataset recall {dataset}`; the platform takes it back by `leasehold dataset unrecall {dataset}`"
    )))
}

/// Whether a lock may shut out the person `by` who approved a job or opened its gates in an emergency.
fn shuts_out_approver(lock: &Lock, by: &SpiffeId) -> bool {
    // The catalog may say by now that another identity belongs to this person, so each approval is checked again.
    let is_human = matches!(&lock.name, LockName::Name(name) if matches!(name.kind(), FenceKind::Human(_)));
    is_human || lock.shuts_out(by)
}
