//! Messages about recalls, offboardings and remnants (access that is left behind a name).

use super::{
    messages::{ending, lock},
    response::fit_page,
};
use crate::{
    broker::{Broker, Offboarded, Recalled, Remnant, Remnants, RevokedAndLocked},
    limits::REACH_SHOWN_MAX,
    name::JobId,
    proto::v1,
};

pub(super) fn revoked(broker: &Broker, done: RevokedAndLocked) -> v1::RevokeResponse {
    let RevokedAndLocked { revoked, locks } = done;
    let now = broker.clock().now();
    v1::RevokeResponse {
        ending: Some(ending(broker, revoked.ending)),
        jobs_closed: shown_jobs(&revoked.jobs_closed),
        jobs_closed_total: revoked.jobs_closed.len() as u64,
        notes: revoked.notes,
        locks: locks.iter().map(|l| lock(now, l)).collect(),
    }
}

pub(super) fn recalled(broker: &Broker, done: Recalled) -> v1::RecallDatasetResponse {
    v1::RecallDatasetResponse {
        recall: Some(lock(broker.clock().now(), &done.recall)),
        ending: Some(ending(broker, done.ending)),
        jobs_closed: shown_jobs(&done.jobs_closed),
        jobs_closed_total: done.jobs_closed.len() as u64,
        holders: fit_page(done.holders.iter().map(|h| v1::Holder {
            spiffe_id: h.id.to_string(),
            job: h.job.to_string(),
            attempt: h.attempt.value(),
            instance: h.instance.to_string(),
        })),
        holders_total: done.holders_total as u64,
        outputs: fit_page(
            done.outputs.iter().map(|o| v1::Output { line: o.line.to_string(), job: o.job.to_string() }),
        ),
        outputs_total: done.outputs_total as u64,
        notes: done.notes,
    }
}

pub(super) fn offboarded(broker: &Broker, done: Offboarded) -> v1::OffboardResponse {
    v1::OffboardResponse {
        lock: Some(lock(broker.clock().now(), &done.lock)),
        ending: Some(ending(broker, done.ending)),
        jobs_closed: shown_jobs(&done.jobs_closed),
        jobs_closed_total: done.jobs_closed.len() as u64,
        stays_total: done.stays.len() as u64,
        stays: shown(done.stays),
    }
}

pub(super) fn remnants(found: Remnants) -> v1::VerifyCleanResponse {
    v1::VerifyCleanResponse {
        left_total: found.left.len() as u64,
        left: shown(found.left),
        locked_by: found.lock.unwrap_or_default(),
    }
}

fn shown(all: Vec<Remnant>) -> Vec<v1::Remnant> {
    let wire = |r: Remnant| v1::Remnant { kind: r.kind.to_owned(), name: r.name, detail: r.detail };
    fit_page(all.into_iter().take(REACH_SHOWN_MAX).map(wire))
}

/// Returns the ids of as many jobs as an answer may name.
pub(super) fn shown_jobs(jobs: &[JobId]) -> Vec<String> {
    jobs.iter().take(REACH_SHOWN_MAX).map(ToString::to_string).collect()
}
