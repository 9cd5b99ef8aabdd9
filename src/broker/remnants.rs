//! The remnants behind a name: the check that access has ended.

use super::{
    caller::Caller,
    dependents::{identity_is_behind, job_is_behind, job_itself_is_behind},
    listing::stood_behind,
    names,
    operators::OperatorUseCases,
    rules::Rules,
};
use crate::{
    catalog::Checks,
    job::{Attempt, Job, JobState, MemberState},
    limits,
    name::{FenceKind, FenceName, SpiffePattern},
    policy::Rpc,
    reason::Refusal,
    state::{Extent, Lock, LockName},
};

/// Access, or a way to new access, that is left behind a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remnant {
    /// The kind of the remnant in one word, such as `lease` or `job`.
    pub kind: &'static str,
    pub name: String,
    pub detail: String,
}

impl Remnant {
    pub(super) fn new(kind: &'static str, name: String, detail: &str) -> Self {
        Remnant { kind, name, detail: detail.to_owned() }
    }
}

/// All remnants behind a name.
#[derive(Debug)]
pub struct Remnants {
    /// The remnants. Empty if all access behind the name has ended.
    pub left: Vec<Remnant>,
    /// The lock that prevents new access. `None` if there is no such lock.
    pub lock: Option<String>,
}

impl OperatorUseCases {
    /// Finds the remnants behind a name: live leases, tokens that a server still accepts, joined members, and open jobs
    /// that can ask for access again. For an identity, a job that it may start or join counts too.
    pub fn verify_clean(&self, caller: &Caller, name: &LockName) -> Result<Remnants, Refusal> {
        let tenant = self.tenant_of_lock(caller, Rpc::VerifyClean, name, "")?;
        self.access.authorize(caller, Rpc::VerifyClean, tenant.as_ref(), &[], "")?;
        self.check_known(caller, Rpc::VerifyClean, name)?;
        let rules = self.context.rules();
        let mut left = Vec::new();
        for lease in self.leases_behind(std::slice::from_ref(name)) {
            let detail = format!("live; {} holds it in {}", lease.facts.holder, lease.facts.job);
            left.push(Remnant::new("lease", lease.id.to_string(), &detail));
        }
        left.extend(self.late_tokens(&rules, name));
        let locks = self.context.state.locks(None, usize::MAX);
        let sees_all = self.access.is_for_all_tenants(caller, Rpc::VerifyClean)?;
        for job in self.context.state.open_jobs() {
            // The caller does not see a job of another tenant that only names the identity.
            let is_shown = sees_all || tenant.as_ref() == Some(&job.spec.tenant);
            if job_is_behind(&rules, &job, name) || is_shown && self.is_open_to(&rules, &job, name, &locks) {
                left.extend(self.left_of_job(&rules, &job, name));
            }
        }
        let lock = self.lock_over(name).map(|lock| lock.to_string());
        Ok(Remnants { left, lock })
    }

    fn left_of_job(&self, rules: &Rules, job: &Job, name: &LockName) -> Vec<Remnant> {
        let mut left = Vec::new();
        // If the job itself does not depend on the name, but one of its identities does, only the memberships of this
        // identity count.
        let is_whole = job_itself_is_behind(rules, job, name);
        let present = job.current().into_iter().flat_map(Attempt::present);
        for (instance, m) in present.filter(|(_, m)| m.state == MemberState::Joined) {
            if is_whole || identity_is_behind(rules, &m.spiffe_id, name) {
                let detail = format!("joined to {} as {}", job.id, m.spiffe_id);
                left.push(Remnant::new("member", instance.to_string(), &detail));
            }
        }
        let is_stopped = self.context.state.lock_on(names::of_job(rules, job).iter()).is_some()
            || self.context.state.lock_named(&LockName::Launcher(job.launcher.clone())).is_some()
            || self.lock_over(name).is_some();
        if !is_stopped {
            let detail = match job.state {
                JobState::AwaitingApproval => "waits for approval, and no lock stops it",
                _ => "open, can ask again, and no lock stops it",
            };
            left.push(Remnant::new("job", job.id.to_string(), detail));
        }
        left
    }

    /// Whether an identity behind a name may start or join a job, and no lock shuts it out.
    fn is_open_to(&self, rules: &Rules, job: &Job, name: &LockName, locks: &[Lock]) -> bool {
        let is_shut_out = |named: &SpiffePattern| match named.exact() {
            Some(id) => self.access.lock_on_identity(&id).is_some(),
            None => locks.iter().any(|lock| lock.shuts_out_of(named) == Extent::All),
        };
        let members = &job.spec.members;
        members
            .start
            .iter()
            .chain(&members.join)
            .any(|named| has_identity_behind(rules, named, name) && !is_shut_out(named))
    }

    /// Returns the ended leases whose tokens a server that only reads `/keys` still accepts.
    fn late_tokens(&self, rules: &Rules, name: &LockName) -> Vec<Remnant> {
        let LockName::Name(fence) = name else { return Vec::new() };
        let now = self.context.clock.now();
        let mut late = Vec::new();
        self.context.table.each_ended(|e| {
            // A token for a server that only reads `/keys` may expire before its lease does.
            let until = e.deadline.min(e.at.plus(limits::OFFLINE_TOKEN_TTL_MAX));
            let is_late = until > now.lease
                && stood_behind(e, Some(fence))
                && rules.catalog().audience(&e.facts.audience).is_some_and(|a| a.checks == Checks::Jwt);
            if is_late {
                let until = now.wall_at(until);
                let detail =
                    format!("{} only reads /keys and may accept its token until {until}", e.facts.audience);
                late.push(Remnant::new("token", e.id.to_string(), &detail));
            }
        });
        late
    }

    /// Returns the lock or recall that prevents new access behind a name.
    fn lock_over(&self, name: &LockName) -> Option<LockName> {
        if let Some(lock) = self.context.state.lock_named(name) {
            return Some(lock.name);
        }
        let name = match name {
            LockName::Name(name) => name,
            // A lock on a wider prefix, or on the trust domain, shuts out these identities too.
            LockName::Prefix(prefix) => {
                let below = below(prefix)?;
                let mut locks = self.context.state.locks(None, usize::MAX).into_iter();
                return locks.find(|lock| lock.shuts_out_of(&below) == Extent::All).map(|lock| lock.name);
            }
            LockName::Launcher(_) | LockName::Recall(_) => return None,
        };
        let names: Vec<FenceName> = match name.kind() {
            FenceKind::Identity(id) => names::of_identity(&self.context.rules(), &id),
            FenceKind::Resource(r) => names::of_resource(&r).into(),
            _ => vec![name.clone()],
        };
        self.context.state.lock_on(names.iter()).map(|lock| lock.name)
    }
}

/// Whether a pattern in the members of a job matches an identity behind a name.
fn has_identity_behind(rules: &Rules, named: &SpiffePattern, name: &LockName) -> bool {
    if let Some(id) = named.exact() {
        return identity_is_behind(rules, &id, name);
    }
    match name {
        LockName::Name(name) => match name.kind() {
            FenceKind::Identity(id) => named.matches(&id),
            FenceKind::Domain(domain) => domain == *named.trust_domain(),
            _ => false,
        },
        // The text of the pattern is also compared with the prefix. A pattern leaves out SPIRE's own identities, so a
        // comparison of what the two match would miss some.
        LockName::Prefix(prefix) => {
            named.to_string().starts_with(prefix.as_str())
                || below(prefix).is_some_and(|below| below.overlaps(named))
        }
        LockName::Launcher(_) | LockName::Recall(_) => false,
    }
}

/// Returns the pattern of the identities below a prefix.
fn below(prefix: &str) -> Option<SpiffePattern> {
    format!("{prefix}**").parse().ok()
}
