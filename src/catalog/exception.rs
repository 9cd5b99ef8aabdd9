//! Exceptions that the team which runs Leasehold grants for a time: tenants that are observed, and rules that are waived.

use crate::{
    clock::Wall,
    name::{ResourceName, TenantName},
};

/// A tenant whose jobs are decided and recorded, and not refused: `[[observe]]` of the platform's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedTenant {
    pub tenant: TenantName,
    /// From this moment on its jobs are refused again.
    pub until: Wall,
    /// Whom to ask why.
    pub owner: String,
}

/// A rule that does not hold for some jobs for a time: `[[waiver]]` of the platform's file. The rule must ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiver {
    /// The id of the rule.
    pub rule: String,
    /// The tenant of the jobs.
    pub tenant: TenantName,
    /// One resource, or each version of it. `None` stands for every resource.
    pub resource: Option<ResourceName>,
    /// Whom to ask why.
    pub owner: String,
    pub reason: String,
    /// From this moment on the rule holds again.
    pub until: Wall,
    /// The file and line of its entry, for example `platform.toml:12`.
    pub declared_at: String,
}

impl Waiver {
    /// Whether it is about this resource in jobs of this tenant, and not over.
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
    /// Whether there is none, in force or over.
    pub fn is_empty(&self) -> bool {
        self.observed.is_empty() && self.waivers.is_empty()
    }

    /// How many of them are in force.
    pub fn in_force(&self, now: Wall) -> usize {
        let observed = self.observed.iter().filter(|o| now < o.until).count();
        observed.saturating_add(self.waivers.iter().filter(|w| now < w.until).count())
    }

    /// The ids of the rules that are waived for a resource in jobs of a tenant, sorted.
    pub fn waived(&self, tenant: &TenantName, on: &ResourceName, now: Wall) -> Vec<&str> {
        let covering = self.waivers.iter().filter(|waiver| waiver.covers(tenant, on, now));
        let mut rules: Vec<&str> = covering.map(|waiver| waiver.rule.as_str()).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// Whether the jobs of a tenant are only observed.
    pub fn observes(&self, tenant: &TenantName, now: Wall) -> bool {
        self.observed.iter().any(|o| o.tenant == *tenant && now < o.until)
    }
}
