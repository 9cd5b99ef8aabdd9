//! The size of jobs in memory and in a snapshot, and the quotas of open jobs.

use std::collections::HashMap;

use super::records::{input_record, lineage_record, spec_record};
use crate::{
    job::{Approval, Change, Emergency, Job, Spec},
    ledger::json_bytes,
    limits,
    name::{Object, TenantName},
};

/// The size of a job without its texts, in bytes: identifiers, times, digests, and two details of the greatest length.
const JOB_BYTES: usize = 1_024 + 2 * limits::TEXT_BYTES_MAX;
/// The size of an attempt without its key and members, in bytes.
const ATTEMPT_BYTES: usize = 512 + limits::TEXT_BYTES_MAX;

/// The size of a reported use of one resource without its name, in bytes.
const USE_BYTES: usize = 256;
/// The size of an approval without its texts and the approver's SPIFFE ID, in bytes.
const APPROVAL_BYTES: usize = 256;

/// Returns the bytes of a job that do not change after its creation, mostly the recorded specification.
pub(super) fn of_creation(job: &Job) -> usize {
    let inputs: Vec<_> = job.inputs.iter().map(input_record).collect();
    let lineage = lineage_record(&job.lineage).as_ref().map_or(0, json_bytes);
    let texts = spec_bytes(&job.spec).saturating_add(json_bytes(&inputs)).saturating_add(lineage);
    let names = job.launcher.as_str().len().saturating_add(job.idempotency_key.len());
    texts.saturating_add(names).saturating_add(JOB_BYTES)
}

/// Returns the size of a job in bytes. The job had `creation` bytes when it was created.
pub(super) fn of_job(creation: usize, job: &Job) -> usize {
    let attempts = job.attempts.iter().map(|a| ATTEMPT_BYTES + a.key.len() + a.members.bytes());
    let mark = job.compromised.iter().map(|because| because.as_str().len());
    let used = job.used.iter().map(|(resource, _)| of_use(resource));
    let emergency = job.emergency.iter().map(of_emergency);
    let approvals = job.approvals.iter().map(of_approval);
    attempts.chain(approvals).chain(emergency).chain(mark).chain(used).fold(creation, usize::saturating_add)
}

fn of_approval(a: &Approval) -> usize {
    let texts = [&a.gate, &a.group, &a.reason].map(String::len).iter().sum::<usize>();
    APPROVAL_BYTES.saturating_add(texts).saturating_add(a.by.as_str().len())
}

fn of_use(resource: &Object) -> usize {
    USE_BYTES.saturating_add(resource.to_string().len())
}

fn of_emergency(e: &Emergency) -> usize {
    let texts = e.gates.iter().chain([&e.reason]).map(String::len).sum::<usize>();
    APPROVAL_BYTES.saturating_add(texts).saturating_add(e.by.as_str().len())
}

/// Returns the bytes that a change may add to a job.
pub(super) fn of_change(change: &Change) -> usize {
    match change {
        Change::Approved { approvals, .. } => approvals.iter().map(of_approval).sum(),
        Change::GlassBroken { emergency, .. } => of_emergency(emergency),
        Change::AttemptBegan { key, .. } => ATTEMPT_BYTES + key.len(),
        Change::Used { uses, .. } => uses.iter().map(|reported| of_use(&reported.resource)).sum(),
        Change::MemberJoined { instance, member, .. } => crate::job::member_bytes(instance, member),
        _ => 0,
    }
}

/// A number of jobs or keys, and their size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct JobsSize {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl JobsSize {
    pub(super) fn add(&mut self, bytes: usize) {
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn remove(&mut self, bytes: usize) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    pub(super) fn replace(&mut self, before: usize, after: usize) {
        self.bytes = self.bytes.saturating_sub(before).saturating_add(after);
    }
}

/// The quota of open jobs that would be exceeded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaFull {
    #[error(
        "the tenant {tenant} has {} open jobs, which is the limit for one tenant",
        limits::JOBS_OPEN_PER_TENANT_MAX
    )]
    Jobs { tenant: TenantName },
    #[error(
        "the open jobs of the tenant {tenant} take {} MiB with their members, which is the limit for one tenant",
        limits::JOBS_OPEN_BYTES_PER_TENANT_MAX >> 20
    )]
    Bytes { tenant: TenantName },
    #[error("the open jobs of all tenants take {} MiB, which is the limit", limits::JOBS_OPEN_BYTES_MAX >> 20)]
    BytesOfAll,
}

/// The size of the open jobs, by tenant.
#[derive(Debug, Default)]
pub(super) struct OpenJobs {
    tenants: HashMap<TenantName, JobsSize>,
    all: JobsSize,
}

impl OpenJobs {
    /// Refuses a job that would exceed a quota of its tenant or of all tenants together.
    pub(super) fn admit(&self, tenant: &TenantName, jobs: usize, bytes: usize) -> Result<(), QuotaFull> {
        let of = self.tenants.get(tenant).copied().unwrap_or_default();
        if of.count.saturating_add(jobs) > limits::JOBS_OPEN_PER_TENANT_MAX {
            return Err(QuotaFull::Jobs { tenant: tenant.clone() });
        }
        if of.bytes.saturating_add(bytes) > limits::JOBS_OPEN_BYTES_PER_TENANT_MAX {
            return Err(QuotaFull::Bytes { tenant: tenant.clone() });
        }
        if self.all.bytes.saturating_add(bytes) > limits::JOBS_OPEN_BYTES_MAX {
            return Err(QuotaFull::BytesOfAll);
        }
        Ok(())
    }

    /// Counts a job without a check of the quotas.
    pub(super) fn add(&mut self, tenant: &TenantName, bytes: usize) {
        self.tenants.entry(tenant.clone()).or_default().add(bytes);
        self.all.add(bytes);
    }

    pub(super) fn remove(&mut self, tenant: &TenantName, bytes: usize) {
        if let Some(held) = self.tenants.get_mut(tenant) {
            held.remove(bytes);
            if held.count == 0 {
                self.tenants.remove(tenant);
            }
        }
        self.all.remove(bytes);
    }

    pub(super) fn replace(&mut self, tenant: &TenantName, before: usize, after: usize) {
        if let Some(held) = self.tenants.get_mut(tenant) {
            held.replace(before, after);
        }
        self.all.replace(before, after);
    }
}

/// Returns the size of a specification in its record, in bytes.
pub fn spec_bytes(spec: &Spec) -> usize {
    json_bytes(&spec_record(spec))
}
