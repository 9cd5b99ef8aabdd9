//! Conversions between the state and the records of the ledger.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::logins::Login;
use crate::{
    fence::Seq,
    job::{
        Approval, Change, DoneWhen, Drain, Emergency, Gate, Input, Job, Lineage, Members, ParamSweep,
        ReportedUse, ResourceUse, Spec, SweepPlace, Tuning,
    },
    ledger::{self, Actor, DecisionRecord, Ending, Event, PersonLoggedIn, UseCounts, UseRecord},
    name::{Digest, HumanName, JobId, SpiffeId},
    secret::SecretDigest,
};

/// The version of the normal form from which the digest of a specification is made.
const SPEC_VERSION: u32 = 1;

/// Returns the record of a specification.
pub fn spec_record(spec: &Spec) -> ledger::JobSpec {
    // The pattern has no `..`, so a new field does not compile until it is part of the record and so of both digests.
    let Spec {
        name,
        tenant,
        purpose,
        why,
        ticket,
        rollback_to,
        prompt_alternative,
        image,
        sweep,
        max_duration,
        tune,
        read,
        read_checkpoints,
        write,
        pins,
        members: Members { start, join, expect, max, attempts, done_when },
        acting_for,
        credential_ttl,
        drain,
    } = spec.clone();
    let (method, params_digest, free_params, prompts) = match tune {
        None => (None, None, Vec::new(), Vec::new()),
        Some(Tuning { method, params_digest, free_params, prompts }) => {
            (Some(method), params_digest, free_params, prompts)
        }
    };
    ledger::JobSpec {
        v: SPEC_VERSION,
        name,
        tenant,
        purpose,
        why,
        max_duration_ms: millis(max_duration),
        method,
        params_digest,
        free_params,
        prompt_lineage: prompts,
        read,
        read_checkpoints,
        write,
        pins,
        start,
        join,
        expect,
        max,
        attempts,
        done_when: done_when.to_string(),
        acting_for,
        credential_ttl_ms: credential_ttl.map(millis),
        drain_ms: drain.map(millis),
        ticket,
        rollback_to,
        prompt_alternative,
        image,
        sweep: sweep.map(|ParamSweep { jobs, values }| ledger::SweepRecord { jobs, values }),
    }
}

/// Returns the SHA-256 of the canonical JSON (RFC 8785) of a specification's record.
pub fn spec_digest(spec: &Spec) -> Result<Digest, serde_json::Error> {
    serde_json_canonicalizer::to_vec(&spec_record(spec)).map(|json| Digest::of(&json))
}

/// The content of an approval: the specification, the launcher, the person for whom it acts, and the catalog's facts
/// about each input.
#[derive(Serialize)]
struct RequestRecord<'a> {
    /// The name and version of this form.
    is: &'static str,
    spec: ledger::JobSpec,
    launcher: &'a SpiffeId,
    acting_for: Option<&'a HumanName>,
    inputs: Vec<ledger::InputRecord>,
}

/// The name in the digest of a request. No other kind of digest uses this name.
const REQUEST: &str = "leasehold/request/v1";

fn request_record(job: &Job) -> RequestRecord<'_> {
    let mut spec = spec_record(&job.spec);
    // An approval covers all values of the free parameters, because the jobs of a parameter sweep have one request.
    spec.sweep.iter_mut().for_each(|sweep| sweep.values.clear());
    RequestRecord {
        is: REQUEST,
        spec,
        launcher: &job.launcher,
        acting_for: job.acting_for.as_ref(),
        inputs: job.inputs.iter().map(input_record).collect(),
    }
}

/// Returns the SHA-256 of the canonical JSON (RFC 8785) of a job's request. Approvals are bound to this digest.
pub fn request_digest(job: &Job) -> Result<Digest, serde_json::Error> {
    serde_json_canonicalizer::to_vec(&request_record(job)).map(|json| Digest::of(&json))
}

pub(super) fn spec_of(r: ledger::JobSpec) -> Result<Spec, &'static str> {
    let done_when: DoneWhen = r.done_when.parse()?;
    Ok(Spec {
        name: r.name,
        tenant: r.tenant,
        purpose: r.purpose,
        why: r.why,
        ticket: r.ticket,
        rollback_to: r.rollback_to,
        prompt_alternative: r.prompt_alternative,
        image: r.image,
        sweep: r.sweep.map(|ledger::SweepRecord { jobs, values }| ParamSweep { jobs, values }),
        max_duration: Duration::from_millis(r.max_duration_ms),
        tune: r.method.map(|method| Tuning {
            method,
            params_digest: r.params_digest,
            free_params: r.free_params,
            prompts: r.prompt_lineage,
        }),
        read: r.read,
        read_checkpoints: r.read_checkpoints,
        write: r.write,
        pins: r.pins,
        members: Members {
            start: r.start,
            join: r.join,
            expect: r.expect,
            max: r.max,
            attempts: r.attempts,
            done_when,
        },
        acting_for: r.acting_for,
        credential_ttl: r.credential_ttl_ms.map(Duration::from_millis),
        drain: r.drain_ms.map(Duration::from_millis),
    })
}

pub fn input_record(i: &Input) -> ledger::InputRecord {
    // The pattern has no `..`, for the reason given in `spec_record`.
    let Input { resource, pin, location, classification, data_classes, tier } = i.clone();
    ledger::InputRecord { resource, pin, location, classification, data_classes, tier }
}

/// Returns the record of a lineage. `None` if the lineage is empty.
pub fn lineage_record(lineage: &Lineage) -> Option<ledger::LineageRecord> {
    // The pattern has no `..`, for the reason given in `spec_record`.
    let Lineage { jobs, resources } = lineage.clone();
    let record = || ledger::LineageRecord {
        jobs: jobs.into_iter().collect(),
        resources: resources.into_iter().collect(),
    };
    (!lineage.is_empty()).then(record)
}

pub(super) fn lineage_of(record: Option<ledger::LineageRecord>) -> Arc<Lineage> {
    record.map_or_else(Arc::default, |ledger::LineageRecord { jobs, resources }| {
        let (jobs, resources) = (jobs.into_iter().collect(), resources.into_iter().collect());
        Arc::new(Lineage { jobs, resources })
    })
}

/// Returns the record of a login.
pub(super) fn login_record(login: &Login) -> PersonLoggedIn {
    // The pattern has no `..`, for the reason given in `spec_record`.
    let Login { certificate, serial, id, human, issuer, sub, groups, amr, terms, at, until } = login.clone();
    PersonLoggedIn { certificate, serial, person: id, human, issuer, sub, groups, amr, terms, at, until }
}

pub(super) fn login_of(r: PersonLoggedIn) -> Login {
    let PersonLoggedIn { certificate, serial, person, human, issuer, sub, groups, amr, terms, at, until } = r;
    Login { certificate, serial, id: person, human, issuer, sub, groups, amr, terms, at, until }
}

pub(super) fn created_record(job: &Job, decision: DecisionRecord) -> Event {
    Event::JobCreated(Box::new(ledger::JobCreated {
        job: job.id,
        launcher: job.launcher.clone(),
        acting_for: job.acting_for.clone(),
        idempotency_key: job.idempotency_key.clone(),
        spec: spec_record(&job.spec),
        spec_digest: job.spec_digest,
        request_digest: request_digest(job).ok(),
        at: job.created,
        ends: job.ends,
        inputs: job.inputs.iter().map(input_record).collect(),
        lineage: lineage_record(&job.lineage),
        outputs: job.spec.write.clone(),
        decision,
        waiting_for: job.gates.iter().map(gate_record).collect(),
        sweep_number: job.sweep_place.map(|place| place.number),
        approvals: job.approvals.iter().map(approval_record).collect(),
    }))
}

pub fn gate_record(g: &Gate) -> ledger::GateRecord {
    ledger::GateRecord {
        id: g.id.clone(),
        explanation: g.explanation.clone(),
        approver_group: g.approver_group.clone(),
        approvals_needed: g.approvals_needed,
        approval_ttl_ms: millis(g.approval_ttl),
    }
}

pub(super) fn gate_of(g: ledger::GateRecord) -> Gate {
    Gate {
        id: g.id,
        explanation: g.explanation,
        approver_group: g.approver_group,
        approvals_needed: g.approvals_needed,
        approval_ttl: Duration::from_millis(g.approval_ttl_ms),
    }
}

pub fn approval_record(a: &Approval) -> ledger::ApprovalRecord {
    let Approval { gate, group, by, human, at, reason } = a.clone();
    ledger::ApprovalRecord { gate, group, by, human, at, reason }
}

pub fn emergency_record(e: &Emergency) -> ledger::EmergencyRecord {
    let Emergency { by, human, gates, reason, at, until } = e.clone();
    ledger::EmergencyRecord { by, human, gates, reason, at, until }
}

pub(super) fn emergency_of(e: ledger::EmergencyRecord) -> Emergency {
    let ledger::EmergencyRecord { by, human, gates, reason, at, until } = e;
    Emergency { by, human, gates, reason, at, until }
}

pub(super) fn approval_of(a: ledger::ApprovalRecord) -> Approval {
    let ledger::ApprovalRecord { gate, group, by, human, at, reason } = a;
    Approval { gate, group, by, human, at, reason }
}

pub(super) fn input_of(i: ledger::InputRecord) -> Input {
    Input {
        resource: i.resource,
        pin: i.pin,
        location: i.location,
        classification: i.classification,
        data_classes: i.data_classes,
        tier: i.tier,
    }
}

pub(super) fn job_of(r: ledger::JobCreated) -> Result<Job, &'static str> {
    let gates: Vec<Gate> = r.waiting_for.into_iter().map(gate_of).collect();
    let inputs: Vec<Input> = r.inputs.into_iter().map(input_of).collect();
    let (ends, lineage) = (r.ends, lineage_of(r.lineage));
    let approvals: Vec<Approval> = r.approvals.into_iter().map(approval_of).collect();
    let sweep_place =
        r.sweep_number.zip(r.request_digest).map(|(number, request)| SweepPlace { request, number });
    let spec = Arc::new(spec_of(r.spec)?);
    let new = Job::new(r.job, spec, r.spec_digest, r.launcher, r.idempotency_key, r.at, inputs);
    let job = Job { acting_for: r.acting_for, ends, approvals, sweep_place, lineage, ..new };
    // The record says when the job ends. This also holds for records of older daemons, which gave jobs no extra time to
    // wait for approval.
    Ok(Job { ends, ..job.held_by(gates) })
}

/// Returns the record of one change. The begin of an attempt has a `decision`, a narrowing change has an `ending`.
pub(super) fn change_record(
    job: JobId,
    change: &Change,
    by: Actor,
    decision: Option<DecisionRecord>,
    ending: Ending,
) -> Event {
    match change.clone() {
        Change::Approved { request, approvals } => Event::JobApproved {
            job,
            request_digest: request,
            approvals: approvals.iter().map(approval_record).collect(),
        },
        Change::GlassBroken { request, emergency } => {
            Event::JobGlassBroken { job, request_digest: request, emergency: emergency_record(&emergency) }
        }
        Change::ApprovalWithdrawn { gate, by: approver, at, detail } => {
            Event::JobApprovalWithdrawn { job, gate, approver, at, by, detail, ending }
        }
        Change::Closed { outcome, at, detail } => Event::JobClosed { job, outcome, at, by, detail, ending },
        Change::AttemptBegan { attempt, key, at, ticket, vouched } => Event::AttemptBegan {
            job,
            attempt,
            key,
            at,
            by,
            ticket: Digest(ticket.0),
            vouched,
            decision: decision.unwrap_or_else(|| DecisionRecord {
                result: "allow".into(),
                rules: Vec::new(),
                policy: Digest::ZERO,
                catalog: Digest::ZERO,
                approved: Vec::new(),
                risk: ledger::RiskRecord::default(),
            }),
        },
        Change::AttemptDraining { attempt, drain: Drain { reading_ends, writing_ends }, detail } => {
            Event::AttemptDraining { job, attempt, reading_ends, writing_ends, by, detail }
        }
        Change::MemberDraining { attempt, instance, drain: Drain { reading_ends, writing_ends }, detail } => {
            Event::MemberDraining { job, attempt, instance, reading_ends, writing_ends, by, detail }
        }
        Change::AttemptEnded { attempt, outcome, at, detail } => {
            Event::AttemptEnded { job, attempt, outcome, at, by, detail, ending }
        }
        Change::MemberJoined { attempt, instance, member, session, at } => {
            Event::MemberJoined { job, attempt, instance, member, session: Digest(session.0), at }
        }
        Change::MemberAway { attempt, instance, at, detail } => {
            Event::MemberAway { job, attempt, instance, at, detail, ending }
        }
        Change::MemberLeft { attempt, instance, at, outcome, detail } => {
            Event::MemberLeft { job, attempt, instance, at, outcome, detail, ending }
        }
        Change::MemberLost { attempt, instance, at, detail } => {
            Event::MemberLost { job, attempt, instance, at, detail, ending }
        }
        Change::Compromised { because } => Event::OutputsQuarantined { because, jobs: vec![job] },
        Change::Used { audience, uses } => {
            Event::JobUsed { job, audience, by, uses: uses.iter().map(use_record).collect() }
        }
    }
}

/// Returns the change in a record. `None` if the record is not about a change of a job.
pub(super) fn change_of(event: Event) -> Option<(JobId, Change, Ending)> {
    let none = Ending::default();
    Some(match event {
        Event::JobApproved { job, request_digest, approvals } => {
            let approvals = approvals.into_iter().map(approval_of).collect();
            (job, Change::Approved { request: request_digest, approvals }, none)
        }
        Event::JobGlassBroken { job, request_digest, emergency } => {
            (job, Change::GlassBroken { request: request_digest, emergency: emergency_of(emergency) }, none)
        }
        Event::JobApprovalWithdrawn { job, gate, approver, at, detail, ending, .. } => {
            (job, Change::ApprovalWithdrawn { gate, by: approver, at, detail }, ending)
        }
        Event::JobClosed { job, outcome, at, detail, ending, .. } => {
            (job, Change::Closed { outcome, at, detail }, ending)
        }
        Event::AttemptBegan { job, attempt, key, at, ticket, vouched, .. } => {
            let ticket = SecretDigest(ticket.0);
            (job, Change::AttemptBegan { attempt, key, at, ticket, vouched }, none)
        }
        Event::AttemptDraining { job, attempt, reading_ends, writing_ends, detail, .. } => (
            job,
            Change::AttemptDraining { attempt, drain: Drain { reading_ends, writing_ends }, detail },
            none,
        ),
        Event::MemberDraining { job, attempt, instance, reading_ends, writing_ends, detail, .. } => {
            let drain = Drain { reading_ends, writing_ends };
            (job, Change::MemberDraining { attempt, instance, drain, detail }, none)
        }
        Event::AttemptEnded { job, attempt, outcome, at, detail, ending, .. } => {
            (job, Change::AttemptEnded { attempt, outcome, at, detail }, ending)
        }
        Event::MemberJoined { job, attempt, instance, member, session, at } => {
            let session = SecretDigest(session.0);
            (job, Change::MemberJoined { attempt, instance, member, session, at }, none)
        }
        Event::MemberAway { job, attempt, instance, at, detail, ending } => {
            (job, Change::MemberAway { attempt, instance, at, detail }, ending)
        }
        Event::MemberLeft { job, attempt, instance, at, outcome, detail, ending } => {
            (job, Change::MemberLeft { attempt, instance, at, outcome, detail }, ending)
        }
        Event::MemberLost { job, attempt, instance, at, detail, ending } => {
            (job, Change::MemberLost { attempt, instance, at, detail }, ending)
        }
        Event::OutputsQuarantined { because, jobs } => match jobs.as_slice() {
            [job] => (*job, Change::Compromised { because }, none),
            _ => return None,
        },
        Event::JobUsed { job, audience, uses, .. } => {
            (job, Change::Used { audience, uses: uses.iter().map(use_of).collect() }, none)
        }
        _ => return None,
    })
}

fn use_record(reported: &ReportedUse) -> UseRecord {
    let ReportedUse { lease, resource, done } = reported;
    UseRecord { lease: *lease, resource: resource.clone(), counts: counts_record(done) }
}

fn use_of(record: &UseRecord) -> ReportedUse {
    let UseRecord { lease, resource, counts } = record;
    ReportedUse { lease: *lease, resource: resource.clone(), done: counts_of(*counts) }
}

pub(super) fn counts_record(done: &ResourceUse) -> UseCounts {
    let ResourceUse { objects, reads, read_bytes, writes, written_bytes, cut, refused, first, last } = *done;
    UseCounts { objects, reads, read_bytes, writes, written_bytes, cut, refused, first, last }
}

pub(super) fn counts_of(counts: UseCounts) -> ResourceUse {
    let UseCounts { objects, reads, read_bytes, writes, written_bytes, cut, refused, first, last } = counts;
    ResourceUse { objects, reads, read_bytes, writes, written_bytes, cut, refused, first, last }
}

/// Returns the greatest sequence number in a record.
pub(super) fn seq_of(event: &Event) -> Seq {
    Seq(match event {
        Event::EpochBegan(e) => e.seq,
        Event::JobClosed { ending, .. }
        | Event::JobApprovalWithdrawn { ending, .. }
        | Event::AttemptEnded { ending, .. }
        | Event::MemberAway { ending, .. }
        | Event::MemberLeft { ending, .. }
        | Event::MemberLost { ending, .. }
        | Event::Revoked { ending, .. }
        | Event::Lowered { ending, .. }
        | Event::LockSet { ending, .. }
        | Event::DatasetRecalled { ending, .. } => ending.seq,
        _ => 0,
    })
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
