//! Names that operators write: checks that they exist, and suggests similar names.

use std::collections::BTreeSet;

use super::{caller::Caller, operators::OperatorUseCases};
use crate::{
    catalog::{HumanPattern, Principal, Resource},
    job::{Job, Members},
    limits,
    name::{FenceKind, FenceName, HumanName, ResourceName, SpiffeId, SpiffePattern, TenantName},
    policy::Rpc,
    reason::{Reason, Refusal},
    state::{Lock, LockName},
    written::nearest,
};

impl OperatorUseCases {
    /// Refuses a name that does not exist, because it is probably a typing error, and suggests the nearest name.
    pub(super) fn check_known(&self, caller: &Caller, rpc: Rpc, name: &LockName) -> Result<(), Refusal> {
        let is_known = match name {
            LockName::Name(name) => self.context.fences.behind(name) > 0 || self.is_known_name(name),
            LockName::Prefix(prefix) => self.is_known_prefix(prefix),
            LockName::Launcher(id) => self.is_known_name(&FenceName::identity(id.clone())),
            LockName::Recall(dataset) => self.is_known_name(&FenceName::resource(dataset.clone())),
        };
        let own = caller.principal.human(caller.id()).map(|human| LockName::Name(FenceName::human(human)));
        // A locked name is known too: an operator may have locked it before its first use. The caller's own name is
        // known.
        if is_known || self.context.state.lock_named(name).is_some() || own.as_ref() == Some(name) {
            return Ok(());
        }
        let written = name.to_string();
        let refusal = Refusal::new(Reason::NameUnknown, format!("nothing is called {written}"));
        let refusal = match nearest(&written, self.names_like(caller, rpc, name).iter().map(String::as_str)) {
            Some(near) => refusal.with("nearest", near),
            None => refusal,
        };
        Err(refusal.fix("correct it; or pass --ahead if the name does not exist yet"))
    }

    /// Returns the refusal of an absent lock, with the nearest lock that the caller may see.
    pub(super) fn no_such_lock(&self, caller: &Caller, name: &LockName) -> Refusal {
        let refusal =
            Refusal::new(Reason::LockNotFound, "there is no such lock").with("asked", name.to_string());
        let written = name.to_string();
        let alike =
            |lock: &Lock| lock.name.to_string().len().abs_diff(written.len()) <= limits::NEAREST_EDITS_MAX;
        let mut locks = self.context.state.locks(None, limits::NEAREST_NAMES_MAX);
        locks.retain(|lock| alike(lock) && self.may_list(caller, lock));
        let names: Vec<_> = locks.into_iter().map(|l| l.name.to_string()).collect();
        let refusal = match nearest(&written, names.iter().map(String::as_str)) {
            Some(near) => refusal.with("nearest", near),
            None => refusal,
        };
        match self.recall_behind(caller, name) {
            Some((dataset, why)) => refusal.with("recalled", why).fix(format!(
                "{dataset} was recalled, and `unlock` cannot lift a recall: the platform takes it back with `leasehold dataset unrecall {dataset}`"
            )),
            None => refusal.fix("name a lock as `leasehold lock list` shows it"),
        }
    }

    /// Returns the recalled dataset and the reason, if the name is a resource that a recall covers and the caller may see
    /// the recall.
    fn recall_behind(&self, caller: &Caller, name: &LockName) -> Option<(ResourceName, String)> {
        let LockName::Name(name) = name else { return None };
        let FenceKind::Resource(resource) = name.kind() else { return None };
        let recall = self.context.recall_of(&resource).filter(|recall| self.may_list(caller, recall))?;
        match recall.name {
            LockName::Recall(dataset) => Some((dataset, recall.reason)),
            _ => None,
        }
    }

    fn is_known_name(&self, name: &FenceName) -> bool {
        let rules = self.context.rules();
        let catalog = rules.catalog();
        let some_job = |is: &dyn Fn(&Job) -> bool| !self.context.state.list(None, 1, is).is_empty();
        match name.kind() {
            // The caller of this function has already refused an absent job or lease.
            FenceKind::Epoch | FenceKind::Job(_) | FenceKind::Lease(_) => true,
            FenceKind::Attempt(job, n) | FenceKind::AttemptReading(job, n) => {
                self.context.state.job(job).is_some_and(|j| j.attempt(n).is_some())
            }
            FenceKind::Member(job, n, instance) | FenceKind::MemberReading(job, n, instance) => {
                let attempt = self.context.state.job(job).and_then(|j| j.attempt(n).cloned());
                attempt.is_some_and(|a| a.members.get(&instance).is_some())
            }
            FenceKind::Tenant(tenant) => {
                catalog.tenants().any(|t| *t == tenant) || some_job(&|j| j.spec.tenant == tenant)
            }
            FenceKind::Domain(domain) => {
                catalog.principals().any(|p| *p.pattern.trust_domain() == domain)
                    || some_job(&|j| identities(j).any(|id| id.trust_domain() == domain))
            }
            FenceKind::Identity(id) => {
                let has_it = |j: &Job| identities(j).any(|known| *known == id) || may_take_part(j, &id);
                catalog.principal(&id).is_some() || self.context.state.binds(&id) || some_job(&has_it)
            }
            FenceKind::Human(human) => {
                let is_one = |p: &HumanPattern| matches!(p, HumanPattern::Exactly(h) if *h == human);
                let is =
                    |id: &SpiffeId| catalog.principal(id).and_then(|p| p.human(id)).as_ref() == Some(&human);
                // A pattern that matches all people does not name a person.
                let named = |p: &Principal| {
                    p.human_text().is_some_and(|text| text.eq_ignore_ascii_case(human.as_str()))
                };
                // If only a pattern matches a person, the person is known if they approved a job, opened its gates or
                // took part in it.
                let did = |by: &SpiffeId, recorded: Option<&HumanName>| recorded == Some(&human) || is(by);
                let has_part = |j: &Job| {
                    j.acting_for.as_ref() == Some(&human)
                        || identities(j).any(is)
                        || j.approvals.iter().any(|a| did(&a.by, a.human.as_ref()))
                        || j.emergency.iter().any(|e| did(&e.by, e.human.as_ref()))
                };
                catalog.principals().any(|p| p.may_act_for.iter().any(is_one) || named(p))
                    || self.context.proposals.has_person(did)
                    || self.context.state.is_logged_in(&human)
                    || some_job(&has_part)
                    || !self.context.state.reviews(None, 1, |r| did(&r.by, r.human.as_ref())).is_empty()
            }
            FenceKind::Image(image) => some_job(&|j| j.spec.image.as_ref() == Some(&image)),
            FenceKind::Resource(resource) => {
                let is_it = |r: &ResourceName| *r == resource || r.unversioned() == resource;
                catalog.resources().any(|r| is_it(&r.name)) || some_job(&|j| j.spec.resources().any(is_it))
            }
        }
    }

    fn is_known_prefix(&self, prefix: &str) -> bool {
        let Ok(below) = format!("{prefix}**").parse::<SpiffePattern>() else { return false };
        let is_below = |job: &Job| identities(job).any(|id| id.as_str().starts_with(prefix));
        self.context.rules().catalog().principals().any(|p| p.pattern.overlaps(&below))
            || !self.context.state.list(None, 1, is_below).is_empty()
    }

    /// Returns names of the same kind that the caller may see, at most [`limits::NEAREST_NAMES_MAX`].
    fn names_like(&self, caller: &Caller, rpc: Rpc, name: &LockName) -> Vec<String> {
        let everything = self.access.authorize(caller, rpc, None, &[], "").is_ok();
        let rules = self.context.rules();
        let catalog = rules.catalog();
        let is_mine = |tenant: &TenantName| everything || tenant == caller.tenant();
        let principals = || catalog.principals().filter(|p| is_mine(&p.tenant));
        let exact = || principals().filter_map(|p| p.pattern.exact());
        let is_open_and_mine = |job: &Job| !job.is_closed() && is_mine(&job.spec.tenant);
        let jobs = || self.context.state.list(None, limits::NEAREST_JOBS_MAX, is_open_and_mine).into_iter();
        let name = match name {
            LockName::Launcher(_) => {
                let launchers = exact().chain(jobs().map(|job| job.launcher.clone()));
                return some(launchers.map(LockName::Launcher));
            }
            LockName::Prefix(_) => {
                return some(principals().filter_map(|p| parent(&p.pattern)).map(LockName::Prefix));
            }
            LockName::Recall(name) => FenceName::resource(name.clone()),
            LockName::Name(name) => name.clone(),
        };
        match name.kind() {
            FenceKind::Tenant(_) => {
                some(catalog.tenants().filter(|t| is_mine(t)).map(|t| FenceName::tenant(t.clone())))
            }
            FenceKind::Domain(_) => {
                let domains: BTreeSet<_> = principals().map(|p| p.pattern.trust_domain()).collect();
                some(domains.into_iter().map(|domain| FenceName::domain(domain.clone())))
            }
            FenceKind::Identity(_) => {
                let of_jobs = jobs().flat_map(|j| identities(&j).cloned().collect::<Vec<_>>());
                some(exact().chain(of_jobs).map(FenceName::identity))
            }
            FenceKind::Human(_) => {
                let people = principals()
                    .filter_map(|p| p.human_text()?.to_ascii_lowercase().parse::<HumanName>().ok());
                some(people.chain(jobs().filter_map(|j| j.acting_for.clone())).map(FenceName::human))
            }
            FenceKind::Image(_) => some(jobs().filter_map(|j| j.spec.image.clone()).map(FenceName::image)),
            FenceKind::Resource(asked) => {
                let tenant = asked.tenant();
                let mine = || catalog.resources().filter(|r| is_mine(&r.tenant));
                let is_like = |r: &&Resource| r.name.kind() == asked.kind() && r.tenant == tenant;
                let alike = mine().filter(is_like).chain(mine().filter(|r| !is_like(r))).map(|r| &r.name);
                some(alike.flat_map(|r| [r.unversioned(), r.clone()]).map(FenceName::resource))
            }
            _ => Vec::new(),
        }
    }
}

/// Returns the names as texts, up to the limit.
fn some(names: impl Iterator<Item = impl ToString>) -> Vec<String> {
    names.take(limits::NEAREST_NAMES_MAX).map(|name| name.to_string()).collect()
}

/// Returns the identities of a job: the launcher and the members.
fn identities(job: &Job) -> impl Iterator<Item = &SpiffeId> {
    job.attempts.iter().flat_map(|a| a.members.identities()).chain([&job.launcher])
}

/// Whether the section `members` of a job's specification names an identity. For an open job, a pattern that matches the
/// identity is enough.
fn may_take_part(job: &Job, id: &SpiffeId) -> bool {
    let Members { start, join, .. } = &job.spec.members;
    let is_it =
        |p: &SpiffePattern| if job.is_closed() { p.exact().as_ref() == Some(id) } else { p.matches(id) };
    start.iter().chain(join).any(is_it)
}

/// Returns the pattern's path up to the last segment or the first wildcard, with the final slash.
fn parent(pattern: &SpiffePattern) -> Option<String> {
    let text = pattern.to_string();
    let plain = text.split('*').next()?;
    plain.rfind('/').and_then(|slash| plain.get(..=slash)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_path_above_the_first_wildcard() {
        for (pattern, wanted) in [
            ("spiffe://td/ns/ml/job/*", "spiffe://td/ns/ml/job/"),
            ("spiffe://td/*/x", "spiffe://td/"),
            ("spiffe://td/u/ada", "spiffe://td/u/"),
        ] {
            assert_eq!(parent(&pattern.parse().unwrap()).as_deref(), Some(wanted));
        }
    }
}
