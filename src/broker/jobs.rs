//! Shows jobs to callers that may see them. Shows no secret.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::{
    access::AccessControl,
    caller::Caller,
    context::BrokerContext,
    decide::{Decisions, job_risk},
    endings::Endings,
    job_filter::JobFilter,
    joining::Joining,
    names,
    refusals::job_not_found,
    tickets::Tickets,
    wording::Tokens,
};
use crate::{
    catalog::IdentityUse,
    clock::LeaseTime,
    job::Job,
    limits,
    name::{FenceName, JobId, PrincipalKind, SpiffeId, SpiffePattern, TenantName},
    policy::{JobRisk, Relation, Rpc},
    reason::Refusal,
    state::Lock,
};

/// The use cases of launchers, schedulers and readers for jobs and their attempts.
pub struct JobUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) decisions: Decisions,
    pub(super) endings: Endings,
    pub(super) joining: Joining,
    pub(super) tokens: Tokens,
    pub(super) tickets: Tickets,
}

impl JobUseCases {
    pub fn get_job(&self, caller: &Caller, id: JobId) -> Result<Arc<Job>, Refusal> {
        let job = self.context.state.job(id).ok_or_else(|| self.access.absent_job(caller, Rpc::GetJob))?;
        self.access.authorize_job(caller, Rpc::GetJob, &job, "")?;
        Ok(job)
    }

    /// Returns a receiver of the job. It has the present state, and gets each change.
    pub fn watch_job(&self, caller: &Caller, id: JobId) -> Result<watch::Receiver<Arc<Job>>, Refusal> {
        let job = self.context.state.job(id).ok_or_else(|| self.access.absent_job(caller, Rpc::WatchJob))?;
        self.access.authorize_job(caller, Rpc::WatchJob, &job, "")?;
        self.context.state.watch(id).ok_or_else(job_not_found)
    }

    /// Returns the jobs that the caller may see and that match a filter. The newest job is first. The list begins after
    /// a given position.
    pub fn list_jobs(
        &self,
        caller: &Caller,
        filter: &JobFilter,
        below: Option<(LeaseTime, JobId)>,
        max: usize,
    ) -> Vec<Arc<Job>> {
        let oversees = matches!(caller.principal.kind, PrincipalKind::Operator | PrincipalKind::Auditor);
        let own =
            oversees && self.access.authorize(caller, Rpc::ListJobs, Some(caller.tenant()), &[], "").is_ok();
        let all = oversees && self.access.authorize(caller, Rpc::ListJobs, None, &[], "").is_ok();
        // The list is made while the state's mutex is held. To be fast, this asks policy only once for each tenant and
        // set of relations.
        let mut said: BTreeMap<(TenantName, Vec<Relation>), bool> = BTreeMap::new();
        let now = self.context.clock.now();
        self.context.state.list(below, max, |job| {
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
                self.access.authorize(caller, Rpc::ListJobs, Some(tenant), relations, "").is_ok()
            })
        })
    }

    pub fn live_leases_of(&self, job: JobId) -> usize {
        self.context.table.of_job_count(job)
    }

    /// Returns the risk of a job, by the present catalog.
    pub fn risk_of(&self, job: &Job) -> JobRisk {
        job_risk(&self.context.rules(), job)
    }

    /// Returns notes for a reader of a job: ended memberships, locks in force, identities that are members of
    /// other jobs too, and identities that are bound to another job.
    pub fn notes_on(&self, job: &Job) -> Vec<String> {
        let note = |(id, jobs): (SpiffeId, Vec<JobId>)| {
            let shown: Vec<String> = jobs.iter().take(3).map(ToString::to_string).collect();
            let more = if jobs.len() > shown.len() {
                format!(" and {} more", jobs.len() - shown.len())
            } else {
                String::new()
            };
            format!("{id} is a member of {}{more} too", shown.join(", "))
        };
        let ended = job.ended_memberships.iter();
        let ended = ended.map(|e| format!("attempt {}: {} lost access: {}", e.attempt, e.identity, e.detail));
        let several = self.context.state.identities_in_several_jobs(job).into_iter().map(note);
        ended.chain(self.locks_before(job)).chain(several).chain(self.bound_elsewhere(job)).collect()
    }

    /// Returns a line for each identity that an open job names without a wildcard and that is still bound to another
    /// job.
    fn bound_elsewhere(&self, job: &Job) -> Vec<String> {
        if job.is_closed() {
            return Vec::new();
        }
        let rules = self.context.rules();
        let of_one_job = |id: &SpiffeId| {
            rules.catalog().principal(id).is_some_and(|entry| entry.identity == IdentityUse::Job)
        };
        let named = job.spec.members.join.iter().filter_map(SpiffePattern::exact);
        let line = |id: SpiffeId| {
            let other = self.context.state.bound_elsewhere(&id, job.id)?;
            let is_own =
                self.context.state.job(other).is_some_and(|other| other.spec.tenant == job.spec.tenant);
            let other = if is_own { other.to_string() } else { "another job".to_owned() };
            Some(format!(
                "{id} belongs to {other}, until {} h after the end of that job: until then, it cannot run this job",
                limits::IDENTITY_BOUND.as_secs() / 3600
            ))
        };
        named.filter(of_one_job).filter_map(line).take(limits::IDENTITIES_SHOWN).collect()
    }

    /// Returns a line for each lock that stops the access of an open job or of its present members.
    fn locks_before(&self, job: &Job) -> Vec<String> {
        if job.is_closed() {
            return Vec::new();
        }
        let mut names = names::of_job(&self.context.rules(), job);
        let members = job.current().into_iter().flat_map(|a| a.members.identities());
        names.extend(members.take(limits::IDENTITIES_SHOWN).cloned().map(FenceName::identity));
        let locks = self.context.state.locks_on(names.iter(), limits::LOCKS_SHOWN);
        let line = |lock: Lock| {
            // The line does not name operators of another tenant whose data the job reads.
            let is_foreign = lock.of.as_ref().is_some_and(|of| *of != job.spec.tenant);
            let by = if is_foreign { "its owner".to_owned() } else { lock.by.to_string() };
            let since = self.access.wall_text(lock.since);
            format!("{} is locked by {by} since {since}: {}", lock.name, lock.reason)
        };
        locks.into_iter().map(line).collect()
    }
}
