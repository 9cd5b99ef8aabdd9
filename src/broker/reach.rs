//! Whose leases, and on whose things, can be at an audience.

use std::collections::{BTreeSet, HashMap};

use arc_swap::ArcSwap;

use crate::{
    catalog::Catalog,
    name::{SpiffeId, TenantName},
};

/// Whose lowerings can end a lease at each audience, in this life of the daemon.
///
/// It only grows: a tenant that loses its way to an audience by a new catalog may have left tokens there, and the lowerings
/// that end them come after the catalog is in force.
#[derive(Default)]
pub(super) struct AudienceReach(ArcSwap<HashMap<SpiffeId, Near>>);

/// The tenants of one audience.
#[derive(Clone, Default)]
pub(super) struct Near {
    /// Whose jobs can hold leases there.
    pub(super) holders: BTreeSet<TenantName>,
    /// On whose things those leases can stand: their own, and what is shared with them, wherever it is kept. A lease stands
    /// behind the models that its job tunes.
    pub(super) owners: BTreeSet<TenantName>,
}

impl AudienceReach {
    /// Takes in a catalog. Before anything is issued under it.
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
                let near: &mut Near = reach.entry(a.name.clone()).or_default();
                near.holders.extend(a.reached_by.iter().cloned());
                near.owners.extend(near.holders.iter().cloned());
                let lent = near.holders.iter().filter_map(|holder| lenders.get(holder));
                near.owners.extend(lent.flatten().map(|owner| TenantName::clone(owner)));
            }
            reach
        });
    }

    /// Whether something holds of the tenants of an audience.
    pub(super) fn near(&self, audience: &SpiffeId, is_near: impl FnOnce(&Near) -> bool) -> bool {
        self.0.load().get(audience).is_some_and(is_near)
    }
}
