//! The code that revocations and locks share: who may end which access, and the end of memberships.

use std::{convert::Infallible, sync::Arc};

use super::{
    access::AccessControl, caller::Caller, context::BrokerContext, endings::Endings, sweeps::Sweeps,
};
use crate::{
    clock::LeaseTime,
    job::{Change, Job, MemberState},
    name::{FenceKind, FenceName, JobId, SpiffeId, TenantName},
    policy::Rpc,
    reason::{Reason, Refusal},
};

/// The use cases of operators to end access and to prevent new access.
pub struct OperatorUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) endings: Endings,
    pub(super) sweeps: Sweeps,
}

impl OperatorUseCases {
    /// Returns the tenant whose operators may end the access behind a name. `None` means that only an operator
    /// who is responsible for all tenants may. A caller that may not make the call does not learn whether the job or lease
    /// exists.
    pub(super) fn tenant_of(
        &self,
        caller: &Caller,
        rpc: Rpc,
        name: &FenceName,
        reason: &str,
    ) -> Result<Option<TenantName>, Refusal> {
        let not_found = |code, what: &str| {
            self.access.authorize(caller, rpc, Some(caller.tenant()), &[], reason)?;
            Err(Refusal::new(code, format!("there is no such {what}, or none that you may see")))
        };
        // The daemon may have forgotten a job whose checkpoints other jobs of its tenant still read. Then these jobs show
        // the tenant.
        let reader_of =
            |id: JobId| self.context.state.open_jobs().into_iter().find(|job| job.lineage.jobs.contains(&id));
        let of_job = |id: JobId| {
            self.context.state.job(id).or_else(|| reader_of(id)).map(|job| job.spec.tenant.clone())
        };
        match name.kind() {
            FenceKind::Job(j)
            | FenceKind::Attempt(j, _)
            | FenceKind::AttemptReading(j, _)
            | FenceKind::Member(j, ..)
            | FenceKind::MemberReading(j, ..) => match of_job(j) {
                Some(tenant) if self.access.sees(caller, &tenant) => Ok(Some(tenant)),
                _ => not_found(Reason::JobNotFound, "job"),
            },
            FenceKind::Lease(id) => match self.context.lease_tenant(id) {
                Some(tenant) if self.access.sees(caller, &tenant) => Ok(Some(tenant)),
                _ => not_found(Reason::LeaseNotFound, "lease"),
            },
            FenceKind::Tenant(t) => Ok(Some(t)),
            FenceKind::Resource(r) => Ok(Some(r.tenant())),
            // Only callers that see the tenant of an identity learn the tenant, and whether the identity is known.
            FenceKind::Identity(id) => {
                let tenant = caller.rules.catalog().principal(&id).map(|p| p.tenant.clone());
                Ok(tenant.filter(|tenant| self.access.sees(caller, tenant)))
            }
            FenceKind::Epoch | FenceKind::Domain(_) | FenceKind::Human(_) | FenceKind::Image(_) => Ok(None),
        }
    }

    /// Ends all memberships of an identity after its revocation or lock. `done` is the verb for the
    /// reason, such as `revoked`. Returns the lowered names, for the clean-up.
    pub(super) fn end_memberships(
        &self,
        caller: &Caller,
        id: &SpiffeId,
        done: &str,
        reason: &str,
    ) -> Vec<FenceName> {
        let detail = format!("its identity was {done} {}", by_whom(caller, reason));
        let mut ended = Vec::new();
        for job in self.context.state.open_jobs() {
            let now = self.context.clock.now().lease;
            let done = self
                .context
                .state
                .narrow(job.id, &caller.actor(), |j| Ok::<_, Infallible>(leave_all(j, id, &detail, now)));
            if let Ok(done) = done {
                ended.extend(done.lowered);
            }
        }
        ended
    }
}

/// Returns the text for members that lose access: who ended the access, and why.
pub(super) fn by_whom(caller: &Caller, reason: &str) -> String {
    format!("by {}: {reason}", caller.id())
}

/// Returns the changes that end all memberships of an identity in the current attempt of a job.
fn leave_all(job: &Job, id: &SpiffeId, detail: &str, at: LeaseTime) -> Vec<Change> {
    let Some(a) = job.current() else { return Vec::new() };
    a.members
        .iter()
        .filter(|(_, m)| {
            m.spiffe_id == *id && matches!(m.state, MemberState::Joined | MemberState::Away { .. })
        })
        .map(|(instance, _)| Change::MemberLeft {
            attempt: a.number,
            instance: instance.clone(),
            at,
            outcome: None,
            detail: detail.to_owned(),
        })
        .collect()
}
