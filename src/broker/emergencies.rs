//! One person opens the gates of a job in an emergency. Others review the emergency afterwards.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    access_request::{AccessRequest, Overtaken},
    approvals::ApprovalUseCases,
    approved::{check_uninvolved, human_of},
    caller::{Caller, relations},
    decide::Decisions,
    names,
    refusals::{job_not_found, move_refusal, plain_refusal, state_refusal},
    rules::Rules,
};
use crate::{
    catalog::Principal,
    clock::LeaseTime,
    job::{Emergency, GlassBreaker, Job},
    limits,
    name::{Digest, FenceName, HumanName, JobId, Outcome, SpiffeId, TenantName},
    policy::{Call, Rpc},
    reason::{Reason, Refusal},
    state::{DueReview, request_digest},
};

/// The size of an emergency's record without its reason, in bytes.
const EMERGENCY_RECORD_BYTES: usize = 1_024;

/// A person's order to open the gates of a job in an emergency.
#[derive(Clone, Copy, Debug)]
pub struct EmergencyOrder<'a> {
    pub job: JobId,
    /// The digest of the request that the person saw.
    pub request: Digest,
    pub reason: &'a str,
    /// The time for which the job may have access. `None` means the default.
    pub lasting: Option<Duration>,
}

impl ApprovalUseCases {
    /// Opens the gates of a job without approvals, for a short time. Resolves when the record is on disk.
    pub async fn break_glass(
        &self,
        caller: &Caller,
        order: &EmergencyOrder<'_>,
    ) -> Result<Arc<Job>, Refusal> {
        self.context.refuse_if_held()?;
        self.context.state.job(order.job).ok_or_else(job_not_found)?;
        let request = self.access.access_request(&caller.peer, Rpc::BreakGlass)?;
        let id = request.caller.id();
        let human = request.caller.principal.human(id);
        let mut names = names::of_identity(&request.rules, id);
        names.push(FenceName::job(order.job));
        let standing = request.stand(&names);
        let AccessRequest { caller, .. } = &standing.request;

        // Everything below is read after the stand was taken.
        let job = self.context.state.job(order.job).ok_or_else(job_not_found)?;
        self.may_break_glass(caller, &job, order)?;
        self.access.charge_operator(caller, Rpc::BreakGlass)?;
        self.context.rates.charge_bytes(caller, EMERGENCY_RECORD_BYTES.saturating_add(order.reason.len()))?;
        let now = self.context.clock.now().lease;
        let until = now.plus(order.lasting.unwrap_or(limits::EMERGENCY_DEFAULT));
        let breaker = GlassBreaker { by: caller.id(), human: human.as_ref(), reason: order.reason, until };
        let decide = |job: &Job| job.break_glass(breaker, order.request, now);
        let widened = self.context.state.widen(order.job, caller.actor(), None, decide).await;
        let widened = widened.map_err(|r| state_refusal(r, move_refusal))?;
        if !widened.changed {
            return Ok(widened.job);
        }
        let again = standing.look_again("its gates were being opened", None, |changed| match changed {
            None => Ok(()),
            Some((_, caller)) => self.may_break_glass(caller, &widened.job, order),
        });
        if let Err(Overtaken { refusal, detail }) = again {
            self.endings.close_quietly(order.job, Outcome::Revoked, &detail);
            return Err(refusal);
        }
        metrics::counter!("leasehold_emergencies_total").increment(1);
        tracing::error!(
            job = %order.job, tenant = %widened.job.spec.tenant, by = %caller.id(), reason = order.reason,
            "EMERGENCY: the gates of a job were opened without approval; its review is due"
        );
        Ok(widened.job)
    }

    fn may_break_glass(&self, caller: &Caller, job: &Job, order: &EmergencyOrder<'_>) -> Result<(), Refusal> {
        self.access.authorize_job(caller, Rpc::BreakGlass, job, order.reason)?;
        let request = request_digest(job)
            .map_err(|_| Refusal::new(Reason::Internal, "the request has no canonical form"))?;
        if request != order.request {
            return Err(Refusal::new(
                Reason::RequestMismatch,
                "the request that you saw is not the request of the job",
            )
            .with("yours", order.request.to_string())
            .with("job", request.to_string())
            .fix(format!("look at it again: leasehold job show {}", job.id)));
        }
        let due = self.context.state.reviews_due(Some(&job.spec.tenant));
        if due >= limits::REVIEWS_DUE_PER_TENANT_MAX {
            let text = format!("{due} emergencies of {} are not reviewed yet", job.spec.tenant);
            return Err(Refusal::new(Reason::QuotaExceeded, text)
                .fix("have people who were not involved review them: leasehold reviews due"));
        }
        Ok(())
    }

    /// Lists the due reviews that the caller may see, in the order of the jobs. Begins after the job `after`.
    pub fn list_reviews(
        &self,
        caller: &Caller,
        after: Option<JobId>,
        max: usize,
    ) -> Result<Vec<DueReview>, Refusal> {
        let everything = self.access.is_for_all_tenants(caller, Rpc::ListReviews)?;
        let sees = |review: &DueReview| everything || review.tenant == *caller.tenant();
        Ok(self.context.state.reviews(after, max, sees))
    }

    /// Records that the caller reviewed an emergency. Refuses a person who was involved in the emergency or the job.
    pub async fn finish_review(
        &self,
        caller: &Caller,
        job: JobId,
        reason: &str,
    ) -> Result<DueReview, Refusal> {
        self.context.refuse_if_held()?;
        let absent = || self.access.absent_job(caller, Rpc::FinishReview);
        let may_review =
            |tenant: &TenantName| self.access.authorize(caller, Rpc::FinishReview, Some(tenant), &[], reason);
        let review = self.context.state.review(job).ok_or_else(|| match self.context.state.job(job) {
            Some(job) if may_review(&job.spec.tenant).is_ok() => {
                let text = format!("no review of job {} is due", job.id);
                Refusal::new(Reason::StateConflict, text).fix("`leasehold reviews due` lists those that are")
            }
            _ => absent(),
        })?;
        let allowed = may_review(&review.tenant);
        // A caller that may not know of the job gets the answer for a job without a review.
        allowed
            .map_err(|refusal| if self.access.sees(caller, &review.tenant) { refusal } else { absent() })?;
        check_reviewer(&self.context.rules(), &review, self.context.state.job(job).as_deref(), caller)?;
        self.access.charge_operator(caller, Rpc::FinishReview)?;
        self.context.rates.charge_bytes(caller, EMERGENCY_RECORD_BYTES.saturating_add(reason.len()))?;
        let done = self.context.state.finish_review(job, caller.actor(), reason).await;
        let done = done.map_err(plain_refusal)?;
        tracing::warn!(%job, by = %caller.id(), reason, "an emergency was reviewed");
        Ok(done)
    }

    /// Returns the reason if the emergency of a job opens no gate now. `None` if it opens gates, or if there was no
    /// emergency.
    pub fn emergency_void_because(&self, job: &Job) -> Option<String> {
        let now = self.context.clock.now().lease;
        self.decisions.emergency_void_because(&self.context.rules(), job, now)
    }

    /// Whether the emergency of a job still has to be reviewed.
    pub fn review_is_due(&self, job: JobId) -> bool {
        self.context.state.review(job).is_some()
    }
}

impl Decisions {
    /// Whether the emergency of a job opens this gate now: the emergency is not over, and its opener could still open
    /// the gate.
    pub(super) fn emergency_opens(&self, rules: &Rules, job: &Job, gate: &str) -> bool {
        let now = self.context.clock.now().lease;
        let Some(emergency) = &job.emergency else { return false };
        job.is_open_by_emergency(gate, now) && self.check_breaker(rules, job, emergency).is_ok()
    }

    /// Returns the reason if the emergency of a job does not open its gates now.
    pub(super) fn emergency_void_because(&self, rules: &Rules, job: &Job, now: LeaseTime) -> Option<String> {
        let emergency = job.emergency.as_ref()?;
        if now >= emergency.until {
            return Some("its time is over".to_owned());
        }
        self.check_breaker(rules, job, emergency).err().map(|refusal| refusal.text.into_owned())
    }

    fn check_breaker(&self, rules: &Rules, job: &Job, emergency: &Emergency) -> Result<(), Refusal> {
        let Emergency { by, human, reason, .. } = emergency;
        let login = self.context.state.login_of(by);
        rules.engine.authorize(&Call {
            caller: by,
            rpc: Rpc::BreakGlass,
            tenant: Some(&job.spec.tenant),
            relations: &relations(by, job),
            now: self.context.clock.now().wall,
            reason,
            amr: login.as_ref().map_or(&[], |login| login.amr.as_slice()),
        })?;
        let mut names = names::of_identity(rules, by);
        names.extend(human.clone().map(FenceName::human));
        match self.context.state.lock_on(names.iter()) {
            Some(lock) => Err(Refusal::new(Reason::Locked, format!("{} is locked", lock.name))),
            None => Ok(()),
        }
    }
}

/// Refuses a reviewer who opened the gates or is involved in the job, with this identity or with another identity of
/// this person.
fn check_reviewer(
    rules: &Rules,
    review: &DueReview,
    job: Option<&Job>,
    caller: &Caller,
) -> Result<(), Refusal> {
    let (id, principal): (&SpiffeId, &Principal) = (caller.id(), &caller.principal);
    let human = principal.human(id);
    let is_same = |other: &SpiffeId, then: Option<&HumanName>| {
        other == id || human.is_some() && (human.as_ref() == then || human == human_of(rules, other))
    };
    let involved = |what: String| {
        Err(Refusal::new(Reason::ApproverInvolved, what)
            .fix("a person who was not involved in the emergency must review it"))
    };
    if is_same(&review.by, review.human.as_ref()) {
        return involved(format!("you opened the gates of the job, as {}", review.by));
    }
    if is_same(&review.launcher, review.acting_for.as_ref()) {
        return involved("you launched the job, or it acts for you".to_owned());
    }
    let humans: BTreeSet<HumanName> = human.into_iter().collect();
    job.map_or(Ok(()), |job| check_uninvolved(rules, job, id, &humans))
}
