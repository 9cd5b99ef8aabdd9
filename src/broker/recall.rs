//! Recalls: a dataset is taken back from all present and future jobs.
//!
//! A recall is kept as a lock that `unlock` cannot lift. So the data is refused even if policy allows it, and a mistake
//! in a policy does not give out recalled data. The jobs that read the data are closed, and their outputs are
//! quarantined.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    caller::Caller, context::BrokerContext, endings::RecordedEnding, jobs::JobUseCases,
    operators::OperatorUseCases, refusals::plain_refusal, reload::RuleUseCases, revocations::EndingOptions,
};
use crate::{
    catalog::Checks,
    job::{Attempt, Job, Member},
    ledger::{Event, JOBS_PER_RECORD},
    limits,
    name::{AttemptNumber, FenceName, InstanceName, JobId, ResourceKind, ResourceName, SpiffeId},
    policy::Rpc,
    reason::{Reason, Refusal},
    state::{Lock, LockName, Refused},
};

/// The answer to a recall.
#[derive(Debug)]
pub struct Recalled {
    pub recall: Lock,
    pub ending: RecordedEnding,
    /// The jobs that the recall closed, or would close.
    pub jobs_closed: Vec<JobId>,
    /// The members that could read the data and may have a copy. There are `holders_total`, and this lists at most
    /// [`limits::REACH_SHOWN_MAX`] of them.
    pub holders: Vec<Holder>,
    pub holders_total: usize,
    /// The outputs of the jobs that read the data. There are `outputs_total`, and this lists at most
    /// [`limits::REACH_SHOWN_MAX`] of them.
    pub outputs: Vec<Output>,
    pub outputs_total: usize,
    pub notes: Vec<String>,
}

/// A member that could read recalled data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub id: SpiffeId,
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub instance: InstanceName,
}

/// A folder of a checkpoint line that one job wrote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Output {
    pub line: ResourceName,
    pub job: JobId,
}

impl BrokerContext {
    /// Returns the recall of a resource: of this version, or of all versions.
    pub(super) fn recall_of(&self, name: &ResourceName) -> Option<Lock> {
        let of = |name: ResourceName| self.state.lock_named(&LockName::Recall(name));
        of(name.clone()).or_else(|| of(name.unversioned()))
    }
}

impl RuleUseCases {
    /// Returns the reason of the recall, if a resource was recalled.
    pub fn recalled_because(&self, name: &ResourceName) -> Option<String> {
        self.context.recall_of(name).map(|recall| recall.reason)
    }
}

impl JobUseCases {
    /// Returns the reason if the outputs of a job are quarantined.
    pub fn quarantine_of(&self, job: &Job) -> Option<String> {
        self.context.quarantine_of(job)
    }
}

impl OperatorUseCases {
    /// Recalls one or all versions of a dataset: ends every lease on it, closes the jobs that read it, and refuses it
    /// from now on. A second recall closes the jobs that the first recall left open.
    pub fn recall_dataset(
        &self,
        caller: &Caller,
        name: &ResourceName,
        options: &EndingOptions<'_>,
    ) -> Result<Recalled, Refusal> {
        let EndingOptions { reason, dry_run, ahead } = *options;
        check_is_dataset(name)?;
        let fence = FenceName::resource(name.clone());
        let tenant = self.tenant_of(caller, Rpc::RecallDataset, &fence, reason)?;
        self.access.authorize(caller, Rpc::RecallDataset, tenant.as_ref(), &[], reason)?;
        self.access.charge_operator(caller, Rpc::RecallDataset)?;
        if !ahead {
            self.check_known(caller, Rpc::RecallDataset, &LockName::Name(fence.clone()))?;
        }
        let recall = Lock {
            // Only the platform may take a recall back.
            of: None,
            ..self.new_lock(caller, Rpc::RecallDataset, LockName::Recall(name.clone()), reason, None)
        };
        if dry_run {
            let readers = self.readers_of(name);
            let open: Vec<JobId> = readers.iter().filter(|job| !job.is_closed()).map(|job| job.id).collect();
            let mut names = vec![LockName::Name(fence)];
            names.extend(open.iter().map(|job| LockName::Name(FenceName::job(*job))));
            let ending = self.endings.dry_ending(self.count_behind_any(&names));
            return Ok(self.recalled(recall, ending, open, &readers));
        }
        if self.context.rates.may_log(caller.id()) {
            tracing::warn!(%name, by = %caller.id(), reason, "dataset recalled");
        }
        metrics::counter!("leasehold_revocations_total").increment(1);
        let (done, _) = self.context.state.lock(recall).map_err(plain_refusal)?;
        self.endings.sweep(&done.lowered, "recalled");
        // Read the jobs only now, after the fence was lowered: a job that is created later finds the recall itself.
        let readers = self.readers_of(name);
        let open = readers.iter().filter(|job| !job.is_closed()).map(|job| job.id);
        let detail = format!("{name} was recalled: {reason}");
        let closed = self.endings.close_all(caller, open.collect(), &detail, "recalled");
        self.record_quarantine(name, &readers);
        self.context.decide_again();
        let recorded = self.endings.recorded(done.ending, done.record);
        let ending = self.endings.with_closed(recorded, &closed);
        Ok(self.recalled(done.value, ending, closed.jobs, &readers))
    }

    /// Takes a recall back, and waits until the record is on disk. Ended leases and closed jobs stay as they are.
    pub async fn unrecall_dataset(
        &self,
        caller: &Caller,
        name: &ResourceName,
        reason: &str,
    ) -> Result<Lock, Refusal> {
        check_is_dataset(name)?;
        self.access.authorize(caller, Rpc::UnrecallDataset, None, &[], reason)?;
        self.context.refuse_if_held()?;
        let recall = LockName::Recall(name.clone());
        let lifted = self.context.state.unlock(&recall, caller.actor(), reason, |_| true).await;
        lifted.map_err(|refused| match refused {
            Refused::NoLock => self.no_such_lock(caller, &recall),
            refused => plain_refusal(refused),
        })
    }

    /// Returns the open and closed jobs in memory that read a dataset, or checkpoints that come from it.
    fn readers_of(&self, name: &ResourceName) -> Vec<Arc<Job>> {
        let is_it = |r: &ResourceName| r == name || r.unversioned() == *name;
        let reads = |job: &Job| job.spec.read.iter().chain(&job.lineage.resources).any(is_it);
        self.context.state.list(None, usize::MAX, reads)
    }

    /// Records the jobs whose outputs come from recalled data.
    fn record_quarantine(&self, name: &ResourceName, readers: &[Arc<Job>]) {
        let ids: Vec<JobId> = readers.iter().filter(|j| !j.spec.write.is_empty()).map(|j| j.id).collect();
        for jobs in ids.chunks(JOBS_PER_RECORD) {
            let because = FenceName::resource(name.clone());
            self.context.ledger.defer(&Event::OutputsQuarantined { because, jobs: jobs.to_vec() });
        }
    }

    fn recalled(
        &self,
        recall: Lock,
        ending: RecordedEnding,
        jobs_closed: Vec<JobId>,
        readers: &[Arc<Job>],
    ) -> Recalled {
        let holders: BTreeSet<Holder> = readers.iter().flat_map(|job| holders_of(job)).collect();
        let line = |job: &Arc<Job>, line: &ResourceName| Output { line: line.clone(), job: job.id };
        let has_run = readers.iter().filter(|job| !job.attempts.is_empty());
        let outputs: BTreeSet<Output> =
            has_run.flat_map(|job| job.spec.write.iter().map(|w| line(job, w)).collect::<Vec<_>>()).collect();
        let mut notes = Vec::new();
        if !holders.is_empty() {
            notes.push(
                "bytes that a holder has already copied are not recalled: ask those who run its host"
                    .to_owned(),
            );
        }
        notes.extend(self.late_audiences(&recall.name).into_iter().map(|audience| {
            format!(
                "{audience} only reads /keys: it accepts the tokens that it has seen until they expire, {} s at most",
                limits::OFFLINE_TOKEN_TTL_MAX.as_secs()
            )
        }));
        if self.context.state.has_forgotten() {
            notes.push(
                "jobs that were closed long ago are only in the ledger: leasehold audit tail --from 1 --no-follow --about NAME"
                    .to_owned(),
            );
        }
        let (holders_total, outputs_total) = (holders.len(), outputs.len());
        Recalled {
            recall,
            ending,
            jobs_closed,
            holders: holders.into_iter().take(limits::REACH_SHOWN_MAX).collect(),
            holders_total,
            outputs: outputs.into_iter().take(limits::REACH_SHOWN_MAX).collect(),
            outputs_total,
            notes,
        }
    }

    /// Returns the audiences of a recalled dataset that do not learn of revocations.
    fn late_audiences(&self, name: &LockName) -> BTreeSet<SpiffeId> {
        let rules = self.context.rules();
        let catalog = rules.catalog();
        let is_it = |r: &ResourceName| matches!(name, LockName::Recall(n) if n == r || *n == r.unversioned());
        catalog
            .resources()
            .filter(|r| is_it(&r.name))
            .filter(|r| catalog.audience(&r.audience).is_some_and(|a| a.checks == Checks::Jwt))
            .map(|r| r.audience.clone())
            .collect()
    }
}

fn holders_of(job: &Job) -> Vec<Holder> {
    let of_attempt = |a: &Attempt| {
        let holder = |(instance, m): (&InstanceName, &Member)| Holder {
            id: m.spiffe_id.clone(),
            job: job.id,
            attempt: a.number,
            instance: instance.clone(),
        };
        a.members.iter().map(holder).collect::<Vec<_>>()
    };
    job.attempts.iter().flat_map(of_attempt).collect()
}

fn check_is_dataset(name: &ResourceName) -> Result<(), Refusal> {
    if name.kind() == ResourceKind::Dataset {
        return Ok(());
    }
    let refusal =
        Refusal::new(Reason::FieldInvalid, format!("{name} is not a dataset")).with("field", "name");
    Err(refusal.fix("name a dataset; a model is taken out of use by a lock: leasehold freeze model:…"))
}
