//! Due reviews of emergencies. A person who was not involved in an emergency must review it afterwards.

use std::{collections::BTreeMap, convert::Infallible};

use serde::{Deserialize, Serialize};

use super::{Refused, Store, widening::in_time};
use crate::{
    clock::LeaseTime,
    job::Job,
    ledger::{Actor, Event},
    limits,
    name::{HumanName, JobId, SpiffeId, TenantName},
};

/// An emergency without a review. It outlives its job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DueReview {
    pub job: JobId,
    /// The name of the job.
    pub name: String,
    pub tenant: TenantName,
    pub launcher: SpiffeId,
    pub acting_for: Option<HumanName>,
    /// The identity that opened the gates.
    pub by: SpiffeId,
    pub human: Option<HumanName>,
    pub gates: Vec<String>,
    pub reason: String,
    pub at: LeaseTime,
    pub until: LeaseTime,
}

impl DueReview {
    /// Returns the review that the emergency of a job needs. `None` if the job had no emergency.
    pub(super) fn of(job: &Job) -> Option<Self> {
        let emergency = job.emergency.clone()?;
        Some(DueReview {
            job: job.id,
            name: job.spec.name.clone(),
            tenant: job.spec.tenant.clone(),
            launcher: job.launcher.clone(),
            acting_for: job.acting_for.clone(),
            by: emergency.by,
            human: emergency.human,
            gates: emergency.gates,
            reason: emergency.reason,
            at: emergency.at,
            until: emergency.until,
        })
    }
}

/// The due reviews, by job.
pub type Reviews = BTreeMap<JobId, DueReview>;

impl Store {
    /// Returns up to `max` due reviews that pass a filter, in the order of the jobs. Begins after the job
    /// `after`.
    pub fn reviews(
        &self,
        after: Option<JobId>,
        max: usize,
        pass: impl Fn(&DueReview) -> bool,
    ) -> Vec<DueReview> {
        let inner = self.lock_inner();
        let rest = inner.reviews.values().filter(|review| after.is_none_or(|after| review.job > after));
        rest.filter(|review| pass(review)).take(max).cloned().collect()
    }

    /// Returns the due review of a job.
    pub fn review(&self, job: JobId) -> Option<DueReview> {
        self.lock_inner().reviews.get(&job).cloned()
    }

    /// Counts the due reviews of a tenant, or of all tenants.
    pub fn reviews_due(&self, tenant: Option<&TenantName>) -> usize {
        let inner = self.lock_inner();
        inner.reviews.values().filter(|review| tenant.is_none_or(|of| review.tenant == *of)).count()
    }

    /// Records that an emergency was reviewed. Resolves when the record is on disk. Then the review is no longer due.
    pub async fn finish_review(
        &self,
        job: JobId,
        by: Actor,
        reason: &str,
    ) -> Result<DueReview, Refused<Infallible>> {
        let (review, appending) = {
            let inner = self.lock_inner();
            let review = inner.reviews.get(&job).cloned().ok_or(Refused::NoJob)?;
            let tenant = review.tenant.clone();
            let at = self.clock.now().lease;
            let record = Event::ReviewDone { job, tenant, by, reason: reason.to_owned(), at };
            (review, self.ledger.append(&record))
        };
        in_time(limits::LEDGER_WAIT, appending).await.map_err(Refused::Ledger)?;
        self.lock_inner().reviews.remove(&job);
        Ok(review)
    }
}
