//! The checkpoints of other jobs that a job reads: their origin, and whether they may be read.
//!
//! A job may read the folder of another job of its tenant, if that job is closed and its outputs are not quarantined. A
//! lease on such a folder stands behind the fences of its origin: see `names`.

use super::{context::BrokerContext, rules::Rules};
use crate::{
    job::{Job, JobState, Lineage, Spec},
    limits::LINEAGE_MAX,
    name::{Object, Outcome, TenantName},
    reason::{Reason, Refusal},
};

/// Whether the job that wrote a checkpoint must still be in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WriterMemory {
    Needed,
    /// No: the daemon checked the writer when it created the reading job. Later, a compromise of the writer marks the reading
    /// job too, and a recall of the writer's data is found by the lineage of the reading job.
    NotNeeded,
}

impl BrokerContext {
    /// Returns the reason if the outputs of a job are quarantined. This is so if the job failed or was revoked, if a
    /// compromise concerns the job or a job in its lineage, or if the outputs come from recalled data.
    pub(super) fn quarantine_of(&self, job: &Job) -> Option<String> {
        if job.spec.write.is_empty() {
            return None;
        }
        if let Some(because) = &job.compromised {
            return Some(format!("{because} was compromised"));
        }
        if let JobState::Closed(outcome @ (Outcome::Failed | Outcome::Revoked)) = job.state {
            return Some(format!("the job ended as {outcome}"));
        }
        let mut origin = job.spec.read.iter().chain(&job.lineage.resources);
        if let Some(recalled) = origin.find(|r| self.recall_of(r).is_some()) {
            return Some(format!("{recalled} was recalled"));
        }
        let mut writers = job.lineage.jobs.iter().filter_map(|id| self.state.job(*id));
        let tainted = writers.find(|writer| writer.compromised.is_some())?;
        Some(format!("it comes from checkpoints of {}, which a compromise concerns", tainted.id))
    }

    /// Returns the origin of the checkpoints that a new job reads. Jobs that are not in memory add nothing.
    pub(super) fn lineage_of(&self, spec: &Spec) -> Lineage {
        let mut lineage = Lineage::default();
        for writer in spec.read_checkpoints.iter().filter_map(|f| self.state.job(f.job()?)) {
            lineage.add(&writer);
        }
        lineage
    }

    /// Refuses a new job that may not read the checkpoints in its specification. `lineage` was read before the stand was taken.
    /// If it has changed since, or is too large, the job is refused too.
    pub(super) fn check_new_checkpoints(
        &self,
        rules: &Rules,
        spec: &Spec,
        lineage: &Lineage,
    ) -> Result<(), Refusal> {
        self.check_folders(rules, spec, lineage, WriterMemory::Needed)?;
        if self.lineage_of(spec) != *lineage {
            return Err(Refusal::new(
                Reason::Contended,
                "a job whose checkpoints are read changed: try again",
            ));
        }
        if !lineage.fits() {
            let text = format!("the checkpoints come from more than {LINEAGE_MAX} jobs, datasets and models");
            let refusal = Refusal::new(Reason::QuotaExceeded, text);
            return Err(
                refusal.fix("begin a new line from a model: have the checkpoint listed as a [[model]]")
            );
        }
        Ok(())
    }

    /// Refuses a job that may no longer read the checkpoints in its specification.
    pub(super) fn check_checkpoints(&self, rules: &Rules, job: &Job) -> Result<(), Refusal> {
        // The mark of the compromise stays on this job, even if the daemon has forgotten the job that wrote the checkpoints.
        if let Some(because) = job.compromised.as_ref().filter(|_| !job.spec.read_checkpoints.is_empty()) {
            let text = format!("{because} was compromised, and this job reads checkpoints of other jobs");
            return Err(Refusal::new(Reason::CheckpointQuarantined, text)
                .fix("create a new job that reads the checkpoints of another job"));
        }
        self.check_folders(rules, &job.spec, &job.lineage, WriterMemory::NotNeeded)
    }

    fn check_folders(
        &self,
        rules: &Rules,
        spec: &Spec,
        lineage: &Lineage,
        expected: WriterMemory,
    ) -> Result<(), Refusal> {
        for folder in &spec.read_checkpoints {
            let is_forgotten = folder.job().is_some_and(|id| self.state.job(id).is_none());
            if !is_forgotten || expected == WriterMemory::Needed {
                self.check_folder(&spec.tenant, folder)?;
            }
        }
        // The feed of an audience has only the revocations of tenants that share data with its users. If an owner no longer
        // shares its data, a verifier does not see a revocation of that data.
        let is_unshared =
            |r: &&_| !rules.catalog().resource(r).is_some_and(|found| found.visible_to(&spec.tenant));
        let mut foreign = lineage.resources.iter().filter(|r| r.tenant() != spec.tenant);
        match foreign.find(is_unshared) {
            None => Ok(()),
            Some(origin) => {
                let text = format!(
                    "checkpoints that the job reads come from {origin}, which its owner no longer shares"
                );
                Err(Refusal::new(Reason::CheckpointQuarantined, text)
                    .fix("ask the owner of that data, or read checkpoints of another job"))
            }
        }
    }

    /// Refuses a folder that a tenant may not read. The answer is the same for an absent job and for a job of another
    /// tenant.
    pub(super) fn check_folder(&self, tenant: &TenantName, folder: &Object) -> Result<(), Refusal> {
        let writer = folder.job().and_then(|id| self.state.job(id));
        let writer = writer
            .filter(|job| job.spec.tenant == *tenant && job.spec.write.contains(folder.resource()))
            .ok_or_else(|| no_such_folder(folder))?;
        if !writer.is_closed() {
            let text = format!("{} is not closed, so its checkpoints may still change", writer.id);
            return Err(Refusal::new(Reason::StateConflict, text).fix("wait until the job is closed"));
        }
        match self.quarantine_of(&writer) {
            None => Ok(()),
            Some(why) => {
                Err(Refusal::new(Reason::CheckpointQuarantined, format!("{folder} is quarantined: {why}"))
                    .fix("read the checkpoints of another job: leasehold job list"))
            }
        }
    }
}

fn no_such_folder(folder: &Object) -> Refusal {
    let text = format!("there is no {folder}, or none that this tenant may see");
    Refusal::new(Reason::ResourceNotFound, text)
        .fix("check the line and the job: leasehold job list; a job that closed long ago is no longer known")
}
