//! Offboarding: an identity or a tenant loses its access permanently, and its remnants are listed.

use super::{
    caller::Caller, endings::RecordedEnding, operators::OperatorUseCases, remnants::Remnant,
    revocations::EndingOptions,
};
use crate::{
    job::Job,
    name::{FenceKind, FenceName, JobId, SpiffeId, TenantName},
    policy::Rpc,
    reason::{Reason, Refusal},
    state::{Lock, LockName},
};

/// The answer to an offboarding.
#[derive(Debug)]
pub struct Offboarded {
    pub lock: Lock,
    pub ending: RecordedEnding,
    /// The jobs that the offboarding closed, or would close.
    pub jobs_closed: Vec<JobId>,
    /// Remnants that a person must remove.
    pub stays: Vec<Remnant>,
}

impl OperatorUseCases {
    /// Locks an identity or a tenant, closes its open jobs, and lists its remnants. The lock comes first, so no new access begins
    /// meanwhile. Only the platform may offboard a tenant. `locks_out` has the names of the operators whom the lock will shut
    /// out: the caller confirms each by name.
    pub fn offboard(
        &self,
        caller: &Caller,
        name: &FenceName,
        options: &EndingOptions<'_>,
        locks_out: &[String],
    ) -> Result<Offboarded, Refusal> {
        let EndingOptions { reason, dry_run, ahead } = *options;
        let tenant = match name.kind() {
            FenceKind::Identity(_) => self.tenant_of(caller, Rpc::Offboard, name, reason)?,
            FenceKind::Tenant(_) => None,
            _ => {
                let refusal = Refusal::new(Reason::FieldInvalid, format!("{name} cannot be offboarded"));
                return Err(refusal.with("field", "name").fix("name an identity or a tenant"));
            }
        };
        self.access.authorize(caller, Rpc::Offboard, tenant.as_ref(), &[], reason)?;
        self.access.charge_operator(caller, Rpc::Offboard)?;
        let locked = LockName::Name(name.clone());
        if !ahead {
            self.check_known(caller, Rpc::Offboard, &locked)?;
        }
        let lock = self.new_lock(caller, Rpc::Offboard, locked.clone(), reason, None);
        self.check_leaves_operators(caller, &lock, tenant.as_ref(), locks_out)?;
        let open = || -> Vec<JobId> {
            let jobs = self.context.state.open_jobs();
            jobs.iter().filter(|job| is_of(job, &name.kind())).map(|job| job.id).collect()
        };
        let stays = self.what_stays(&name.kind());
        if dry_run {
            let jobs_closed = open();
            let mut names = vec![locked];
            names.extend(jobs_closed.iter().map(|job| LockName::Name(FenceName::job(*job))));
            let ending = self.endings.dry_ending(self.count_behind_any(&names));
            return Ok(Offboarded { lock, ending, jobs_closed, stays });
        }
        let set = self.set_lock(caller, lock)?;
        let detail = format!("{name} was offboarded: {reason}");
        let closed = self.endings.close_all(caller, open(), &detail, "offboarded");
        let ending = self.endings.with_closed(set.ending, &closed);
        Ok(Offboarded { lock: set.lock, ending, jobs_closed: closed.jobs, stays })
    }

    fn what_stays(&self, kind: &FenceKind) -> Vec<Remnant> {
        match kind {
            FenceKind::Identity(id) => self.stays_of_identity(id),
            FenceKind::Tenant(tenant) => self.stays_of_tenant(tenant),
            _ => Vec::new(),
        }
    }

    fn stays_of_identity(&self, id: &SpiffeId) -> Vec<Remnant> {
        let rules = self.context.rules();
        let catalog = rules.catalog();
        let mut stays = Vec::new();
        let mut add = |kind, name: String, detail: &str| stays.push(Remnant::new(kind, name, detail));
        if let Some(principal) = catalog.principal(id) {
            let detail = match principal.pattern.exact() {
                Some(_) => "disable or remove this entry",
                None => "a pattern that other identities match too: only the lock keeps this one out",
            };
            add("catalog entry", principal.declared_at.clone(), detail);
        }
        add("svid", id.to_string(), "valid until it expires: delete its entry in SPIRE, or in its issuer");
        if self.access.breaks_glass(id) {
            add("break glass", id.to_string(), "remove it from policy.break_glass: it may still lift locks");
        }
        for audience in catalog.audiences_of_verifier(id) {
            add("audience", audience.name.to_string(), "it checks tokens for this audience");
        }
        let locks = self.context.state.locks(None, usize::MAX);
        for lock in locks.into_iter().filter(|lock| lock.by.spiffe_id() == Some(id)) {
            add("lock", lock.name.to_string(), "it set this lock, which stays");
        }
        for job in
            self.context.state.list(None, usize::MAX, |job| job.launcher == *id && !job.attempts.is_empty())
        {
            for line in &job.spec.write {
                add("output", format!("{line}/{}", job.id), "written by a job that it launched");
            }
        }
        stays
    }

    fn stays_of_tenant(&self, tenant: &TenantName) -> Vec<Remnant> {
        let rules = self.context.rules();
        let catalog = rules.catalog();
        let mut stays = Vec::new();
        let mut add = |kind, name: String, detail: String| stays.push(Remnant::new(kind, name, &detail));
        let entries = catalog.principals().filter(|p| p.tenant == *tenant).count();
        if entries > 0 {
            let detail =
                format!("{entries} principal(s), who can still read lists and states: remove the file");
            add("catalog file", format!("{tenant}.toml"), detail);
        }
        let mut resources: Vec<_> = catalog.resources().filter(|r| r.tenant == *tenant).collect();
        resources.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        for r in resources {
            let shared: Vec<&str> = r.shared_with.iter().map(TenantName::as_str).collect();
            let detail = match shared.is_empty() {
                true => format!("ask {}", r.owner),
                false => format!("shared with {}; ask {}", shared.join(", "), r.owner),
            };
            add("resource", r.name.to_string(), detail);
        }
        let mut shares: Vec<_> = catalog.resources().filter(|r| r.shared_with.contains(tenant)).collect();
        shares.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        for r in shares {
            add("share", r.name.to_string(), format!("{} shares it with this tenant", r.tenant));
        }
        for job in self.context.state.open_jobs().into_iter().filter(|job| job.spec.tenant != *tenant) {
            let used = job.spec.resources().find(|r| r.tenant() == *tenant);
            if let Some(used) = used {
                let detail = format!("an open job of {}, which can no longer use {used}", job.spec.tenant);
                add("job", job.id.to_string(), detail);
            }
        }
        stays
    }
}

/// Whether an offboarding closes a job.
fn is_of(job: &Job, kind: &FenceKind) -> bool {
    match kind {
        FenceKind::Identity(id) => job.launcher == *id,
        FenceKind::Tenant(tenant) => job.spec.tenant == *tenant,
        _ => false,
    }
}
