//! What a verifier's feed tells: all that can end a lease at its audience, and nothing of other tenants.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::{Broker, Caller};
use crate::{
    catalog::Catalog,
    fence::{Concern, Lowering},
    name::{FenceKind, FenceName, JobId, SpiffeId, TenantName},
    reason::Refusal,
};

/// Whose lowerings can end a lease at each audience, in this life of the daemon.
///
/// It only grows: a tenant that loses its way to an audience by a new catalog may have left tokens there, and the lowerings
/// that end them come after the catalog is in force.
#[derive(Default)]
pub(super) struct Reach(ArcSwap<HashMap<SpiffeId, Near>>);

/// The tenants of one audience.
#[derive(Clone, Default)]
struct Near {
    /// Whose jobs can hold leases there.
    holders: BTreeSet<TenantName>,
    /// On whose things those leases can stand: their own, and what is shared with them, wherever it is kept. A lease stands
    /// behind the models that its job tunes.
    owners: BTreeSet<TenantName>,
}

impl Reach {
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

    fn near(&self, audience: &SpiffeId, is_near: impl FnOnce(&Near) -> bool) -> bool {
        self.0.load().get(audience).is_some_and(is_near)
    }
}

impl Broker {
    /// Whether one who follows the feed of an audience still may. Looked at anew where the rules are not those of the last
    /// look.
    pub fn may_still_watch(&self, caller: &mut Caller, audience: &SpiffeId) -> Result<(), Refusal> {
        if Arc::ptr_eq(&caller.rules, &self.rules()) {
            return Ok(());
        }
        *caller = self.caller(&caller.peer)?;
        self.may_watch(caller, audience)
    }

    /// Whether a lowering is to be told to those who check for an audience.
    pub fn is_told_of(&self, audience: &SpiffeId, lowering: &Lowering) -> bool {
        self.concerns(audience, lowering.concern(|name| self.concern(name)))
    }

    /// The same for a name of a snapshot.
    pub fn is_told_of_name(&self, audience: &SpiffeId, name: &FenceName) -> bool {
        self.concerns(audience, &self.concern(name))
    }

    fn concerns(&self, audience: &SpiffeId, concern: &Concern) -> bool {
        match concern {
            Concern::All => true,
            Concern::JobsOf(tenant) => self.reach.near(audience, |near| near.holders.contains(tenant)),
            Concern::ThingsOf(tenant) => self.reach.near(audience, |near| near.owners.contains(tenant)),
        }
    }

    /// Whose leases a name ends. What is not known any more may be anyone's.
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
