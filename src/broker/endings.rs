//! The end of access: the change of state, the lowering of fences, and the clean-up.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use super::{caller::Caller, context::BrokerContext, refusals::plain_refusal};
use crate::{
    job::{Close, End, Illegal, Job},
    lease::Ended,
    ledger::{Actor, Cause, Deferred, Ending, Event, LEASES_PER_RECORD},
    name::{AttemptNumber, FenceName, JobId, LeaseId, Outcome},
    reason::Refusal,
    state::{Committed, Refused},
};

/// An ending that is in force, and its record.
#[derive(Clone, Copy, Debug)]
pub struct RecordedEnding {
    pub ending: Ending,
    /// The index of the ending's record. `None` for a dry run.
    pub index: Option<u64>,
    /// Whether the record is on disk.
    pub durable: bool,
}

/// The answer to an end that is in force.
#[derive(Debug)]
pub struct EndAnswer {
    pub job: Arc<Job>,
    pub ending: RecordedEnding,
    /// Whether the report disagreed with an earlier one. The earlier one stays in force.
    pub conflict: bool,
}

/// Work that was ended, or had ended before.
pub(super) struct EndedWork {
    pub done: Committed<Arc<Job>>,
    /// The outcome of an earlier report, if it differs. The earlier outcome stays in force.
    pub conflict: Option<Outcome>,
}

/// The effect of closing several jobs.
#[derive(Default)]
pub(super) struct ClosedJobs {
    /// The jobs that were open before.
    pub jobs: Vec<JobId>,
    pub behind: u64,
    /// The index of the last record of these endings.
    record: Option<u64>,
}

/// Ends access, and cleans up.
#[derive(Clone)]
pub(super) struct Endings {
    pub(super) context: Arc<BrokerContext>,
}

impl Endings {
    /// Finds out whether the record of an ending is on disk. An ending without effect has no record. It counts as on
    /// disk when all records before it are on disk.
    pub(super) fn recorded(&self, ending: Ending, record: Option<Deferred>) -> RecordedEnding {
        let index = record.map_or_else(
            || {
                let (waiting, _) = self.context.ledger.waiting();
                self.context.ledger.head().index.saturating_add(waiting as u64)
            },
            |record| record.index,
        );
        RecordedEnding { ending, index: Some(index), durable: self.context.ledger.is_durable(index) }
    }

    /// Returns the ending that a dry run shows. `behind` is the number of leases that would end.
    pub(super) fn dry_ending(&self, behind: u64) -> RecordedEnding {
        RecordedEnding {
            ending: Ending { seq: self.context.fences.seq().0, behind },
            index: None,
            durable: true,
        }
    }

    pub(super) fn end_answer(&self, ended: EndedWork) -> EndAnswer {
        let EndedWork { done, conflict } = ended;
        let ending = self.recorded(done.ending, done.record);
        EndAnswer { job: done.value, ending, conflict: conflict.is_some() }
    }

    /// Makes the changes that `decide` returns, and cleans up. The ended leases keep `cause`.
    pub(super) fn end_work<E>(
        &self,
        job: JobId,
        by: &Actor,
        cause: &str,
        decide: impl FnOnce(&Job) -> Result<End, E>,
    ) -> Result<EndedWork, Refused<E>> {
        let mut conflict = None;
        let done = self.context.state.narrow(job, by, |j| {
            Ok(match decide(j)? {
                End::Now(changes) => changes,
                End::Already => Vec::new(),
                End::Conflict(stands) => {
                    conflict = Some(stands);
                    Vec::new()
                }
            })
        })?;
        self.sweep(&done.lowered, cause);
        Ok(EndedWork { done, conflict })
    }

    /// Closes a job that is in any state.
    pub(super) fn close(
        &self,
        job: JobId,
        by: &Actor,
        outcome: Outcome,
        detail: &str,
        cause: &str,
    ) -> Result<EndedWork, Refusal> {
        let now = self.context.clock.now().lease;
        let closed = self.end_work(job, by, cause, |j| {
            Ok::<_, Infallible>(match j.close(outcome, detail, now) {
                Close::Now(change) => End::Now(vec![change]),
                Close::Already => End::Already,
                Close::Conflict(stands) => End::Conflict(stands),
            })
        });
        closed.map_err(plain_refusal)
    }

    /// Closes jobs with the outcome `revoked`. Skips closed jobs.
    pub(super) fn close_all(&self, by: &Caller, jobs: Vec<JobId>, detail: &str, cause: &str) -> ClosedJobs {
        let mut all = ClosedJobs::default();
        for job in jobs {
            let Ok(closed) = self.close(job, &by.actor(), Outcome::Revoked, detail, cause) else { continue };
            let Some(record) = closed.done.record else { continue };
            all.jobs.push(job);
            all.behind = all.behind.saturating_add(closed.done.ending.behind);
            all.record = Some(record.index);
        }
        all
    }

    /// Adds the closed jobs to an ending.
    pub(super) fn with_closed(&self, mut recorded: RecordedEnding, closed: &ClosedJobs) -> RecordedEnding {
        recorded.ending.behind = recorded.ending.behind.saturating_add(closed.behind);
        if let Some(index) = closed.record {
            recorded.index = Some(index);
            recorded.durable = self.context.ledger.is_durable(index);
        }
        recorded
    }

    /// Ends an attempt with all of its access.
    pub(super) fn end_attempt_as(
        &self,
        by: &Actor,
        job: JobId,
        attempt: AttemptNumber,
        outcome: Outcome,
        detail: &str,
    ) -> Result<EndedWork, Refused<Illegal>> {
        let now = self.context.clock.now().lease;
        self.end_work(job, by, outcome.as_str(), |j| j.end_attempt(attempt, outcome, detail, now))
    }

    /// Ends an attempt that must not go on. Does nothing if the attempt has ended already.
    pub(super) fn end_quietly(&self, job: JobId, attempt: AttemptNumber, outcome: Outcome, detail: &str) {
        let _ = self.end_attempt_as(&Actor::Daemon(detail.to_owned()), job, attempt, outcome, detail);
    }

    /// Closes a job that must not go on. Does nothing if the job is closed already.
    pub(super) fn close_quietly(&self, job: JobId, outcome: Outcome, detail: &str) {
        let by = Actor::Daemon(detail.to_owned());
        let _ = self.close(job, &by, outcome, detail, &format!("job {outcome}"));
    }

    /// Records a report that disagrees with an earlier report. Writes at most one record a minute for each reporter and
    /// outcome.
    pub(super) fn record_conflict(
        &self,
        job: JobId,
        attempt: Option<AttemptNumber>,
        stands: Outcome,
        reported: Outcome,
        by: Actor,
        detail: &str,
    ) {
        if self.context.denials.is_first_conflict(job, reported, &by) {
            let detail = detail.to_owned();
            self.context.ledger.defer(&Event::JobConflict { job, attempt, stands, reported, by, detail });
        }
    }

    /// Ends one lease directly in the table, without a fence. Returns 1 if the lease was live, else 0. Afterwards, the
    /// caller of this function lowers the fence of the lease's name, so that verifiers learn of the end.
    pub(super) fn end_lease(&self, id: LeaseId, cause: &str) -> u64 {
        let now = self.context.clock.now().lease;
        let lived = self.context.table.find(id).is_some_and(|l| l.check(now).is_ok());
        // If several calls end the lease at once, only one of them counts it.
        u64::from(self.context.table.remove(id, now, cause).is_some() && lived)
    }

    /// Cleans up behind lowered fences: frees quotas, and keeps and records the ended leases.
    pub(super) fn sweep(&self, lowered: &[FenceName], cause: &str) {
        let now = self.context.clock.now().lease;
        for name in lowered {
            // Another lowering at the same time may have ended a lease. The lease's stand shows which lowering ended
            // it.
            let mut by_cause: BTreeMap<(FenceName, u64), Vec<LeaseId>> = BTreeMap::new();
            for lease in self.context.table.sweep(name, now, cause) {
                let (fence, seq) = lease.stand().lowered().map_or((name, 0), |(fence, seq)| (fence, seq.0));
                by_cause.entry((fence.clone(), seq)).or_default().push(lease.id);
            }
            for ((name, seq), ids) in by_cause {
                self.record_ended(&ids, &Cause::Lowered { name, seq });
            }
        }
    }

    /// Records the end of leases with the same cause.
    pub(super) fn record_ended(&self, ids: &[LeaseId], cause: &Cause) {
        for leases in ids.chunks(LEASES_PER_RECORD) {
            let leases = leases.to_vec();
            self.context.ledger.defer(&Event::LeasesEnded { cause: cause.clone(), leases, by: None });
        }
    }

    /// Wakes the holder of a lease after an operator ended the lease, so that the holder asks for a new one.
    pub(super) fn call_holder(&self, lease: LeaseId) {
        if let Some(Ended { facts, .. }) = self.context.table.find_ended(lease) {
            self.context.sessions.lease_ended(&(facts.job, facts.attempt, facts.instance.clone()));
        }
    }
}
