//! Shows one lease to callers that may see it.

use std::sync::Arc;

use super::{access::AccessControl, caller::Caller, context::BrokerContext, refusals::lease_not_found};
use crate::{
    lease::{Ended, Lease},
    name::LeaseId,
    policy::{Relation, Rpc},
    reason::Refusal,
};

/// A live lease, or one that ended a short while ago.
#[derive(Clone, Debug)]
pub enum LeaseView {
    Live(Arc<Lease>),
    Ended(Ended),
}

impl LeaseView {
    pub fn id(&self) -> LeaseId {
        match self {
            LeaseView::Live(l) => l.id,
            LeaseView::Ended(e) => e.id,
        }
    }
}

/// The use cases of launchers, operators and auditors for leases.
pub struct LeaseUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
}

impl LeaseUseCases {
    pub fn get_lease(&self, caller: &Caller, id: LeaseId) -> Result<LeaseView, Refusal> {
        let view = match self.context.table.find(id) {
            Some(lease) => Some(self.lease_view(lease)),
            None => self.context.table.find_ended(id).map(LeaseView::Ended),
        };
        // A caller that may not see leases must not learn whether this lease exists.
        let absent = || match self.access.authorize(caller, Rpc::GetLease, Some(caller.tenant()), &[], "") {
            Ok(()) => lease_not_found(),
            Err(refusal) => refusal,
        };
        let Some(view) = view else {
            // This call takes the same time as the check for a lease of another tenant, so the time of the answer does
            // not show whether the lease exists.
            drop(self.access.authorize(caller, Rpc::GetJob, None, &[], ""));
            return Err(absent());
        };
        let (tenant, job) = match &view {
            LeaseView::Live(l) => (l.facts.tenant.clone(), l.facts.job),
            LeaseView::Ended(e) => (e.facts.tenant.clone(), e.facts.job),
        };
        if !self.access.sees(caller, &tenant) {
            return Err(absent());
        }
        let launched = self.context.state.job(job).is_some_and(|job| job.launcher == *caller.id());
        let relations: &[Relation] = if launched { &[Relation::Launcher] } else { &[] };
        self.access.authorize(caller, Rpc::GetLease, Some(&tenant), relations, "")?;
        Ok(view)
    }

    /// Returns a lease of the table as it is now. If a lease is over and not yet removed, it is shown as ended.
    fn lease_view(&self, lease: Arc<Lease>) -> LeaseView {
        let now = self.context.clock.now().lease;
        match lease.check(now) {
            Ok(()) => LeaseView::Live(lease),
            Err(why) => LeaseView::Ended(lease.as_ended(now.min(lease.deadline()), why.to_string())),
        }
    }
}
