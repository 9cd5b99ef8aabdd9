//! The tenants whose leases or data each audience can have to do with.

use std::collections::{BTreeSet, HashMap};

use arc_swap::ArcSwap;

use crate::{
    catalog::Catalog,
    name::{SpiffeId, TenantName},
};

/// For each audience, the tenants whose lowered fences can end a lease at this audience. The map only grows, because
/// tokens may still exist for an audience that a new catalog takes from a tenant.
#[derive(Default)]
pub(super) struct AudienceReach(ArcSwap<HashMap<SpiffeId, AudienceTenants>>);

/// The tenants of one audience.
#[derive(Clone, Default)]
pub(super) struct AudienceTenants {
    /// Tenants whose jobs can hold leases at the audience.
    pub(super) holders: BTreeSet<TenantName>,
    /// Tenants that own data or models on which those leases can depend: the holders, and the tenants that share with
    /// them.
    pub(super) owners: BTreeSet<TenantName>,
}

impl AudienceReach {
    /// Adds the audiences of a catalog. Call it before a credential is issued under this catalog.
    pub(super) fn widen(&self, catalog: &Catalog) {
        let mut lenders: HashMap<&TenantName, BTreeSet<&TenantName>> = HashMap::new();
        for r in catalog.resources() {
            for tenant in &r.shared_with {
                lenders.entry(tenant).or_default().insert(&r.tenant);
            }
        }
        self.0.rcu(|known| {
            let mut reach = HashMap::clone(known);
            for a in catalog.audiences() {
                let tenants: &mut AudienceTenants = reach.entry(a.name.clone()).or_default();
                tenants.holders.extend(a.reached_by.iter().cloned());
                tenants.owners.extend(tenants.holders.iter().cloned());
                let lent = tenants.holders.iter().filter_map(|holder| lenders.get(holder));
                tenants.owners.extend(lent.flatten().map(|owner| TenantName::clone(owner)));
            }
            reach
        });
    }

    /// Whether `has` is true for the tenants of an audience. False if the audience is not known.
    pub(super) fn has(&self, audience: &SpiffeId, has: impl FnOnce(&AudienceTenants) -> bool) -> bool {
        self.0.load().get(audience).is_some_and(has)
    }
}
