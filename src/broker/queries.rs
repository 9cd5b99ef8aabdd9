//! Reading: jobs, leases, the caller itself. Shows no secret, and nothing that the caller may not see.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::{
    caller::Caller,
    context::Broker,
    job_filter::JobFilter,
    refusals::{job_not_found, lease_not_found},
};
use crate::{
    catalog::Resource,
    clock::LeaseTime,
    job::Job,
    lease::{Ended, Lease},
    ledger::{LedgerError, Tail},
    limits,
    name::{FenceKind, FenceName, JobId, LeaseId, PrincipalKind, ResourceName, TenantName},
    policy::{Relation, Rpc},
    reason::{Reason, Refusal},
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

impl Broker {
    pub fn get_job(&self, caller: &Caller, id: JobId) -> Result<Arc<Job>, Refusal> {
        let job = self.state.job(id).ok_or_else(job_not_found)?;
        self.authorize_job(caller, Rpc::GetJob, &job, "")?;
        Ok(job)
    }

    /// Returns a receiver of the job: its state now and after each change.
    pub fn watch_job(&self, caller: &Caller, id: JobId) -> Result<watch::Receiver<Arc<Job>>, Refusal> {
        let job = self.state.job(id).ok_or_else(job_not_found)?;
        self.authorize_job(caller, Rpc::WatchJob, &job, "")?;
        self.state.watch(id).ok_or_else(job_not_found)
    }

    /// Returns the jobs that the caller may see and that match a filter, newest first, after a position in the order.
    pub fn list_jobs(
        &self,
        caller: &Caller,
        filter: &JobFilter,
        below: Option<(LeaseTime, JobId)>,
        max: usize,
    ) -> Vec<Arc<Job>> {
        let oversees = matches!(caller.principal.kind, PrincipalKind::Operator | PrincipalKind::Auditor);
        let own = oversees && self.authorize(caller, Rpc::ListJobs, Some(caller.tenant()), &[], "").is_ok();
        let all = oversees && self.authorize(caller, Rpc::ListJobs, None, &[], "").is_ok();
        // Policy is asked once for each tenant and set of relations, because the list is made under the state's mutex.
        let mut said: BTreeMap<(TenantName, Vec<Relation>), bool> = BTreeMap::new();
        let now = self.clock.now();
        self.state.list(below, max, |job| {
            if !filter.matches(job, now) {
                return false;
            }
            if all || (own && job.spec.tenant == *caller.tenant()) {
                return true;
            }
            let relations = caller.relations(job);
            if relations.is_empty() {
                return false;
            }
            *said.entry((job.spec.tenant.clone(), relations)).or_insert_with_key(|(tenant, relations)| {
                self.authorize(caller, Rpc::ListJobs, Some(tenant), relations, "").is_ok()
            })
        })
    }

    /// Returns the resources that the caller may name in a job, or all if it may see all, by name, after `after`.
    pub fn list_resources(
        &self,
        caller: &Caller,
        only: Option<&ResourceName>,
        after: Option<&ResourceName>,
        max: usize,
    ) -> Result<Vec<Resource>, Refusal> {
        let sees_all = self.is_for_all_tenants(caller, Rpc::ListResources)?;
        let is_wanted = |r: &Resource| only.is_none_or(|n| r.name == *n || r.name.unversioned() == *n);
        let rules = self.rules();
        let mut seen: Vec<_> = rules
            .catalog()
            .resources()
            .filter(|r| (sees_all || r.visible_to(caller.tenant())) && is_wanted(r))
            .filter(|r| after.is_none_or(|after| r.name.as_str() > after.as_str()))
            .collect();
        seen.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        let shown = seen.into_iter().take(max).map(|r| {
            let mut shown = r.clone();
            if !sees_all && shown.tenant != *caller.tenant() {
                // The caller must not learn with which other tenants the owner shares it.
                shown.shared_with.retain(|tenant| tenant == caller.tenant());
            }
            shown
        });
        Ok(shown.collect())
    }

    pub fn live_leases_of(&self, job: JobId) -> usize {
        self.table.of_job_count(job)
    }

    pub fn get_lease(&self, caller: &Caller, id: LeaseId) -> Result<LeaseView, Refusal> {
        let view = match self.table.find(id) {
            Some(lease) => Some(self.lease_view(lease)),
            None => self.table.find_ended(id).map(LeaseView::Ended),
        };
        // A caller that may not see any lease must not learn whether this one exists.
        let absent = || match self.authorize(caller, Rpc::GetLease, Some(caller.tenant()), &[], "") {
            Ok(()) => lease_not_found(),
            Err(refusal) => refusal,
        };
        let view = view.ok_or_else(absent)?;
        let (tenant, job) = match &view {
            LeaseView::Live(l) => (l.facts.tenant.clone(), l.facts.job),
            LeaseView::Ended(e) => (e.facts.tenant.clone(), e.facts.job),
        };
        if !self.sees(caller, &tenant) {
            return Err(absent());
        }
        let launched = self.state.job(job).is_some_and(|job| job.launcher == *caller.id());
        let relations: &[Relation] = if launched { &[Relation::Launcher] } else { &[] };
        self.authorize(caller, Rpc::GetLease, Some(&tenant), relations, "")?;
        Ok(view)
    }

    /// Returns a lease of the table as it is now: one that is over is shown as ended before it is cleaned up.
    fn lease_view(&self, lease: Arc<Lease>) -> LeaseView {
        let now = self.clock.now().lease;
        match lease.check(now) {
            Ok(()) => LeaseView::Live(lease),
            Err(why) => LeaseView::Ended(lease.as_ended(now.min(lease.deadline()), why.to_string())),
        }
    }

    /// Returns a receipt, with which a caller can wait until the record of a revocation is on disk.
    pub fn receipt(&self, index: u64) -> Vec<u8> {
        self.receipts.issue(index)
    }

    /// Waits until the record of a receipt, and all records before it, are on disk.
    pub async fn wait_durable(&self, caller: &Caller, receipt: &[u8]) -> Result<(), Refusal> {
        self.authorize(caller, Rpc::WaitDurable, Some(caller.tenant()), &[], "")?;
        let index = self.receipts.read(receipt).ok_or_else(|| {
            Refusal::new(Reason::EpochChanged, "the receipt is not from this run of the daemon")
                .fix("do it again: if the first time lasted, the second gets the same answer")
        })?;
        let waited = tokio::time::timeout(limits::DURABLE_WAIT, self.ledger.wait_durable(index)).await;
        let waited =
            waited.unwrap_or_else(|_| Err(LedgerError::Unavailable { why: "it takes too long".into() }));
        waited.map(drop).map_err(|error| {
            tracing::error!(%error, "a record is not durable");
            Refusal::new(
                Reason::LedgerUnavailable,
                "the record is not on disk: what it ended stays ended while this daemon runs",
            )
            .fix("mend the disk; the daemon writes it as soon as it can")
        })
    }

    /// Whether a caller may see how far the ledger has come. The ledger covers all tenants, so only its readers may.
    pub fn may_see_heads(&self, caller: &Caller) -> bool {
        caller.is_only_tenant() || self.authorize(caller, Rpc::TailLedger, None, &[], "").is_ok()
    }

    /// Follows the ledger from a record on. It covers all tenants, so only callers that may see all of them may read it.
    pub fn tail_ledger(&self, caller: &Caller, from: u64) -> Result<Tail, Refusal> {
        if self.is_for_all_tenants(caller, Rpc::TailLedger)? || caller.is_only_tenant() {
            return Ok(self.ledger.tail(from));
        }
        let text = "the ledger covers every tenant, and you may see only one";
        Err(Refusal::new(Reason::KindNotAllowed, text)
            .fix("ask a platform operator, or an auditor of all tenants"))
    }
}

pub(super) fn stood_behind(e: &Ended, behind: Option<&FenceName>) -> bool {
    let Some(name) = behind else { return true };
    match name.kind() {
        FenceKind::Job(j) => e.facts.job == j,
        FenceKind::Attempt(j, n) | FenceKind::AttemptReading(j, n) => {
            e.facts.job == j && e.facts.attempt == n
        }
        FenceKind::Member(j, n, i) | FenceKind::MemberReading(j, n, i) => {
            e.facts.job == j && e.facts.attempt == n && e.facts.instance == i
        }
        FenceKind::Identity(id) => e.facts.holder == id,
        FenceKind::Domain(d) => e.facts.holder.trust_domain() == d,
        FenceKind::Tenant(t) => {
            e.facts.tenant == t || e.facts.scopes.iter().any(|s| s.resource.tenant() == t)
        }
        FenceKind::Resource(r) => {
            e.facts.scopes.iter().any(|s| s.resource == r || s.resource.unversioned() == r)
        }
        FenceKind::Lease(l) => e.id == l,
        FenceKind::Epoch => true,
        FenceKind::Human(_) => false,
    }
}
