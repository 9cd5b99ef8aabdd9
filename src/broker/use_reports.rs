//! The reports of gateways on the use of leases.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{caller::Caller, verifiers::VerifierUseCases};
use crate::{
    catalog::Catalog,
    clock::LeaseTime,
    job::{Job, ReportedUse},
    ledger::Event,
    limits::USE_REPORTS_PER_MINUTE,
    name::{JobId, SpiffeId},
    policy::{Relation, Rpc},
    reason::{Reason, Refusal},
};

const MINUTE: Duration = Duration::from_secs(60);

/// A report of a gateway.
#[derive(Debug)]
pub struct UseReport {
    pub audience: SpiffeId,
    pub uses: Vec<(JobId, ReportedUse)>,
    /// The number of transfers for which the gateway does not know the lease.
    pub lost_transfers: u64,
    /// The number that identifies this run of the gateway.
    pub run: u64,
    pub is_last: bool,
    /// The number of the report in this run. A report that is sent again has the same number.
    pub seq: u64,
}

/// The gateways that report, each by its SPIFFE ID and its audience.
#[derive(Debug, Default)]
pub struct UseReporters(Mutex<BTreeMap<(SpiffeId, SpiffeId), ReportingRun>>);

#[derive(Clone, Copy, Debug)]
struct ReportingRun {
    run: u64,
    is_over: bool,
    /// The number of the gateway's last report.
    seq: u64,
    minute: LeaseTime,
    reports: u32,
}

/// The position of a report among the earlier reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReportTurn {
    /// The next report of a run, or the first known report.
    Next,
    /// The report was recorded before.
    Again,
    /// The first report of another run. The previous run stopped without its last report.
    AfterBreak,
}

impl UseReporters {
    /// Counts a report. Refuses a gateway that reports too often.
    fn note(
        &self,
        caller: &SpiffeId,
        report: &UseReport,
        catalog: &Catalog,
        now: LeaseTime,
    ) -> Result<ReportTurn, Refusal> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (caller.clone(), report.audience.clone());
        let fresh = ReportingRun { run: report.run, is_over: false, seq: 0, minute: now, reports: 0 };
        if !all.contains_key(&key) {
            // Remove gateways that the catalog no longer names, so that the map stays small.
            all.retain(|(id, audience), _| {
                catalog.audience(audience).is_some_and(|a| a.verifiers.contains(id))
            });
        }
        let known = all.entry(key).or_insert(fresh);
        if now.since(known.minute) >= MINUTE {
            (known.minute, known.reports) = (now, 0);
        }
        if known.reports >= USE_REPORTS_PER_MINUTE {
            let wait = MINUTE.saturating_sub(now.since(known.minute)).as_secs().saturating_add(1);
            return Err(Refusal::new(
                Reason::Overloaded,
                format!("a gateway makes at most {USE_REPORTS_PER_MINUTE} reports in a minute"),
            )
            .with("retry_after", format!("{wait}s")));
        }
        known.reports = known.reports.saturating_add(1);
        let is_same = known.run == report.run;
        let turn = match (is_same, known.is_over) {
            (true, _) if report.seq <= known.seq => return Ok(ReportTurn::Again),
            (false, false) => ReportTurn::AfterBreak,
            (true, _) | (false, true) => ReportTurn::Next,
        };
        (known.run, known.seq, known.is_over) = (report.run, report.seq, report.is_last);
        Ok(turn)
    }
}

impl VerifierUseCases {
    /// Records the use of leases. Returns the number of uses that it did not record, because the job is unknown or does
    /// not have the resource at this audience. A verifier may report only about resources that it serves.
    pub fn report_use(&self, caller: &Caller, report: UseReport) -> Result<u32, Refusal> {
        self.check_verifies(caller, &report.audience)?;
        self.access.authorize(caller, Rpc::ReportUse, Some(caller.tenant()), &[Relation::Verifier], "")?;
        let rules = self.context.rules();
        let now = self.context.clock.now().lease;
        let turn = self.reporters.note(caller.id(), &report, rules.catalog(), now)?;
        if turn == ReportTurn::Again {
            return Ok(0);
        }
        let UseReport { audience, uses, lost_transfers, .. } = report;
        let mut unknown = 0_u32;
        let mut by_job: BTreeMap<JobId, Vec<ReportedUse>> = BTreeMap::new();
        for (id, reported) in uses {
            let job = self.context.state.job(id);
            if job.is_some_and(|job| has_at(&job, &reported, &audience, rules.catalog())) {
                by_job.entry(id).or_default().push(reported);
            } else {
                unknown = unknown.saturating_add(1);
            }
        }
        for (job, uses) in by_job {
            self.context.state.note_use(job, &audience, uses, caller.actor());
        }
        if turn == ReportTurn::AfterBreak {
            self.record_lost(caller, &audience, None);
        }
        if lost_transfers > 0 {
            self.record_lost(caller, &audience, Some(lost_transfers));
        }
        Ok(unknown)
    }

    fn record_lost(&self, caller: &Caller, audience: &SpiffeId, transfers: Option<u64>) {
        tracing::warn!(%audience, by = %caller.id(), transfers, "a gateway could not say which leases some transfers used");
        let (audience, by) = (audience.clone(), caller.actor());
        self.context.ledger.defer(&Event::UseLost { audience, by, transfers });
    }
}

/// Whether a job has the resource of a report and the audience serves the resource.
fn has_at(job: &Job, reported: &ReportedUse, audience: &SpiffeId, catalog: &Catalog) -> bool {
    let object = &reported.resource;
    let of_job = job.spec.scopes().any(|scope| scope.name() == *object);
    of_job && catalog.resource(object.resource()).is_some_and(|r| r.audience == *audience)
}
