//! The content of a verifier's feed: everything that can end a lease at its audience, and nothing about other tenants.

use super::verifiers::VerifierUseCases;
use crate::{
    fence::{Concern, Lowering},
    name::{FenceKind, FenceName, JobId, SpiffeId},
    token::FenceKey,
};

impl VerifierUseCases {
    /// Returns the key that makes the tags of fences: a tag is a keyed digest of the name. The verifiers of an audience
    /// know fences only by these tags.
    pub fn fence_key(&self, audience: &SpiffeId) -> FenceKey {
        self.context.key.fence_key(audience)
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
            Concern::JobsOf(tenant) => self.context.reach.has(audience, |a| a.holders.contains(tenant)),
            Concern::ThingsOf(tenant) => self.context.reach.has(audience, |a| a.owners.contains(tenant)),
        }
    }

    /// Returns the tenants whose leases may end if the fence of this name is lowered. If the name does not belong to
    /// one tenant, these are all tenants.
    fn concern(&self, name: &FenceName) -> Concern {
        let of_job = |id: JobId| self.context.state.job(id).map(|j| j.spec.tenant.clone());
        let tenant = match name.kind() {
            FenceKind::Epoch
            | FenceKind::Domain(_)
            | FenceKind::Identity(_)
            | FenceKind::Human(_)
            | FenceKind::Image(_) => None,
            FenceKind::Tenant(t) => return Concern::ThingsOf(t),
            FenceKind::Resource(r) => return Concern::ThingsOf(r.tenant()),
            FenceKind::Job(j)
            | FenceKind::Attempt(j, _)
            | FenceKind::AttemptReading(j, _)
            | FenceKind::Member(j, ..)
            | FenceKind::MemberReading(j, ..) => of_job(j),
            FenceKind::Lease(id) => self.context.lease_tenant(id),
        };
        tenant.map_or(Concern::All, Concern::JobsOf)
    }
}
