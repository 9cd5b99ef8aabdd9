//! What the feed of a verifier carries: all that can end a lease at its audience, and nothing of other tenants.

use std::collections::{BTreeSet, HashMap};

use arc_swap::ArcSwap;

use super::context::Broker;
use crate::{
    catalog::Catalog,
    fence::{Concern, Lowering},
    name::{FenceKind, FenceName, JobId, SpiffeId, TenantName},
    token::FenceKey,
};

/// The tenants whose lowerings can end a lease at each audience. It only grows: tokens may be left at an audience that a new
/// catalog takes from a tenant.
#[derive(Default)]
pub(super) struct AudienceReach(ArcSwap<HashMap<SpiffeId, AudienceTenants>>);

/// The tenants of one audience.
#[derive(Clone, Default)]
struct AudienceTenants {
    /// Tenants whose jobs can hold leases there.
    holders: BTreeSet<TenantName>,
    /// Tenants whose data or models those leases can depend on: the holders, and those that share with them.
    owners: BTreeSet<TenantName>,
}

impl AudienceReach {
    /// Adds the audiences of a catalog. This comes before anything is issued under it.
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

    /// Whether the tenants of an audience pass a test.
    fn has(&self, audience: &SpiffeId, has: impl FnOnce(&AudienceTenants) -> bool) -> bool {
        self.0.load().get(audience).is_some_and(has)
    }
}

impl Broker {
    /// Returns the key of the tags by which the verifiers of an audience know the fences.
    pub fn fence_key(&self, audience: &SpiffeId) -> FenceKey {
        self.key.fence_key(audience)
    }

    /// Whether a lowering is sent to the verifiers of an audience.
    pub fn is_lowering_for(&self, audience: &SpiffeId, lowering: &Lowering) -> bool {
        self.concerns(audience, lowering.concern(|name| self.concern(name)))
    }

    /// Whether a name of a snapshot is sent to the verifiers of an audience.
    pub fn is_name_for(&self, audience: &SpiffeId, name: &FenceName) -> bool {
        self.concerns(audience, &self.concern(name))
    }

    fn concerns(&self, audience: &SpiffeId, concern: &Concern) -> bool {
        match concern {
            Concern::All => true,
            Concern::JobsOf(tenant) => self.reach.has(audience, |a| a.holders.contains(tenant)),
            Concern::ThingsOf(tenant) => self.reach.has(audience, |a| a.owners.contains(tenant)),
        }
    }

    /// Returns whose leases a name ends. A name that is no longer known may be anyone's.
    fn concern(&self, name: &FenceName) -> Concern {
        let of_job = |id: JobId| self.state.job(id).map(|j| j.spec.tenant.clone());
        let tenant = match name.kind() {
            FenceKind::Epoch | FenceKind::Domain(_) | FenceKind::Identity(_) | FenceKind::Human(_) => None,
            FenceKind::Tenant(t) => return Concern::ThingsOf(t),
            FenceKind::Resource(r) => return Concern::ThingsOf(r.tenant()),
            FenceKind::Job(j)
            | FenceKind::Attempt(j, _)
            | FenceKind::AttemptReading(j, _)
            | FenceKind::Member(j, ..)
            | FenceKind::MemberReading(j, ..) => of_job(j),
            FenceKind::Lease(id) => self.lease_tenant(id),
        };
        tenant.map_or(Concern::All, Concern::JobsOf)
    }
}
