//! Refusals because of a lock that another tenant set. Such a refusal says only that the owner locked the resource.

use super::{access::AccessControl, rules::Rules};
use crate::{
    name::{FenceKind, FenceName, ResourceName, SpiffeId, TenantName},
    policy::{Call, Rpc},
    reason::{Reason, Refusal},
    state::{Lock, LockName},
};

impl AccessControl {
    /// Returns the refusal because of a lock on one of the requested `names`. If the lock belongs to another tenant
    /// than `viewer`, the refusal shows no name, reason, person or time of the lock.
    pub(super) fn locked_for(&self, viewer: &SpiffeId, lock: &Lock, names: &[&FenceName]) -> Refusal {
        if self.may_know(viewer, &lock.name, names) {
            self.context.locked(lock)
        } else {
            locked_by_owner(lock, names)
        }
    }

    /// Whether an identity may know the reason of a lock or a revocation. It must belong to the tenant that owns the
    /// name, or may list the locks of that tenant. The reason of a recall is for all who may read the data.
    pub(super) fn may_know(&self, viewer: &SpiffeId, name: &LockName, names: &[&FenceName]) -> bool {
        let rules = self.context.rules();
        let tenant_of = |id: &SpiffeId| rules.catalog().principal(id).map(|p| p.tenant.clone());
        let own = tenant_of(viewer);
        let owner = self.owner_of(&rules, name);
        let is_own = match (&owner, name) {
            (_, LockName::Recall(_)) => true,
            (Some(owner), _) => own.as_ref() == Some(owner),
            // A name without a tenant concerns the viewer, or the other identities in the same request.
            (None, _) => names.iter().all(|name| match name.kind() {
                FenceKind::Identity(id) => id == *viewer || tenant_of(&id) == own,
                _ => true,
            }),
        };
        is_own || self.lists_locks_of(&rules, viewer, owner.as_ref())
    }

    fn lists_locks_of(&self, rules: &Rules, viewer: &SpiffeId, owner: Option<&TenantName>) -> bool {
        let now = self.context.clock.now().wall;
        let call = Call {
            caller: viewer,
            rpc: Rpc::ListLocks,
            tenant: owner,
            relations: &[],
            now,
            reason: "",
            amr: &[],
        };
        self.breaks_glass(viewer) || rules.engine.authorize(&call).is_ok()
    }

    /// Returns the tenant that owns the subject of a name. `None` if no tenant owns it.
    fn owner_of(&self, rules: &Rules, name: &LockName) -> Option<TenantName> {
        let of_identity = |id: &SpiffeId| rules.catalog().principal(id).map(|p| p.tenant.clone());
        let name = match name {
            LockName::Name(name) => name,
            LockName::Launcher(id) => return of_identity(id),
            LockName::Recall(name) => return Some(name.tenant()),
            LockName::Prefix(_) => return None,
        };
        match name.kind() {
            FenceKind::Tenant(tenant) => Some(tenant),
            FenceKind::Resource(resource) => Some(resource.tenant()),
            FenceKind::Identity(id) => of_identity(&id),
            FenceKind::Lease(id) => self.context.lease_tenant(id),
            FenceKind::Job(job)
            | FenceKind::Attempt(job, _)
            | FenceKind::AttemptReading(job, _)
            | FenceKind::Member(job, ..)
            | FenceKind::MemberReading(job, ..) => self.context.state.job(job).map(|j| j.spec.tenant.clone()),
            FenceKind::Epoch | FenceKind::Domain(_) | FenceKind::Human(_) | FenceKind::Image(_) => None,
        }
    }
}

/// Returns a refusal that names only what the caller requested.
fn locked_by_owner(lock: &Lock, names: &[&FenceName]) -> Refusal {
    let is_behind = |resource: &ResourceName| match &lock.name {
        LockName::Name(name) => match name.kind() {
            FenceKind::Resource(locked) => *resource == locked || resource.unversioned() == locked,
            FenceKind::Tenant(tenant) => resource.tenant() == tenant,
            _ => false,
        },
        LockName::Launcher(_) | LockName::Recall(_) | LockName::Prefix(_) => false,
    };
    let asked = names.iter().filter_map(|name| match name.kind() {
        FenceKind::Resource(resource) => Some(resource),
        _ => None,
    });
    // If both the name with a version and the name without it are requested, take the longer one, which has the
    // version.
    match asked.filter(is_behind).max_by_key(|resource| resource.as_str().len()) {
        Some(resource) => Refusal::new(Reason::Locked, format!("{resource} is locked by its owner"))
            .fix("ask its owner; `leasehold catalog show` says who that is"),
        None => Refusal::new(Reason::Locked, "another tenant has locked something that this depends on")
            .fix("ask the people who launched the job"),
    }
}
