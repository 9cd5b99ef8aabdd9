//! What a verifier's feed tells: all that can end a lease at its audience, and nothing of other tenants.

use super::context::Broker;
use crate::{
    fence::{Concern, Lowering},
    name::{FenceKind, FenceName, JobId, SpiffeId},
    token::FenceKey,
};

impl Broker {
    /// Makes the tags by which the verifiers of an audience know the fences.
    pub fn fence_key(&self, audience: &SpiffeId) -> FenceKey {
        self.key.fence_key(audience)
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
