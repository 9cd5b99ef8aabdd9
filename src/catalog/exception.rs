//! Temporary exceptions that the platform team grants: observed tenants, and waived rules.

use crate::{
    clock::Wall,
    name::{ResourceName, TenantName},
};

/// A tenant whose jobs are decided and recorded, but not refused: `[[observe]]` in the platform's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedTenant {
    pub tenant: TenantName,
    /// The end of the exception. From then on, policy can refuse the jobs of the tenant.
    pub until: Wall,
    /// The person or team that knows the reason.
    pub owner: String,
}

/// A rule that temporarily does not apply to some jobs: `[[waiver]]` in the platform's file. The text of the rule must
/// allow waivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiver {
    /// The id of the rule.
    pub rule: String,
    /// The tenant of the jobs.
    pub tenant: TenantName,
    /// One resource, or all versions of a resource. `None` stands for every resource.
    pub resource: Option<ResourceName>,
    /// The person or team that knows the reason.
    pub owner: String,
    pub reason: String,
    /// The end of the waiver. From then on, the rule applies again.
    pub until: Wall,
    /// The file and line of the entry, for example `platform.toml:12`.
    pub declared_at: String,
}

impl Waiver {
    /// Whether the waiver is in force for this resource in jobs of this tenant.
    pub fn covers(&self, tenant: &TenantName, on: &ResourceName, now: Wall) -> bool {
        let is_of = |name: &ResourceName| name == on || *name == on.unversioned();
        now < self.until && self.tenant == *tenant && self.resource.as_ref().is_none_or(is_of)
    }
}

/// All exceptions of a catalog.
#[derive(Clone, Debug, Default)]
pub struct Exceptions {
    pub observed: Vec<ObservedTenant>,
    pub waivers: Vec<Waiver>,
}

impl Exceptions {
    /// Whether there are no exceptions, in force or over.
    pub fn is_empty(&self) -> bool {
        self.observed.is_empty() && self.waivers.is_empty()
    }

    /// Returns the number of exceptions in force.
    pub fn in_force(&self, now: Wall) -> usize {
        let observed = self.observed.iter().filter(|o| now < o.until).count();
        observed.saturating_add(self.waivers.iter().filter(|w| now < w.until).count())
    }

    /// Returns the ids of the rules that are waived for a resource in jobs of a tenant, sorted.
    pub fn waived(&self, tenant: &TenantName, on: &ResourceName, now: Wall) -> Vec<&str> {
        let covering = self.waivers.iter().filter(|waiver| waiver.covers(tenant, on, now));
        let mut rules: Vec<&str> = covering.map(|waiver| waiver.rule.as_str()).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// Whether a tenant is observed: if policy denies its jobs its own resources, the denial is only recorded. Policy can exempt a
    /// rule from this.
    pub fn observes(&self, tenant: &TenantName, now: Wall) -> bool {
        self.observed.iter().any(|o| o.tenant == *tenant && now < o.until)
    }
}
