//! Converts the daemon's types to protobuf messages.

use super::fields::{check_count, read_name};
use crate::{
    broker::{Broker, Caller, LeaseView, Offer, RecordedEnding},
    catalog::{self, Catalog, Resource},
    clock::{LeaseTime, Now},
    job::{
        Approval, Attempt, AttemptState, Emergency, Gate, Input, Job, JobState, Member, MemberState,
        ResourceUse,
    },
    lease::{Facts, Lease},
    ledger::Ending,
    limits,
    name::{Half, InstanceName, LeaseId, Object, Outcome, Scope, TenantName},
    policy::JobRisk,
    proto::{
        convert::{duration, timestamp},
        v1,
    },
    reason::{Reason, Refusal},
    state::{DueReview, Lock, request_digest},
};

/// Converts a time of the lease timeline to a timestamp of the wall clock.
pub(super) fn at(now: Now, time: LeaseTime) -> Option<prost_types::Timestamp> {
    Some(timestamp(now.wall_at(time)))
}

/// Reads an outcome. It must be one of the outcomes that a caller may report.
pub(super) fn read_outcome(value: i32, among: &[Outcome]) -> Result<Outcome, Refusal> {
    v1::Outcome::try_from(value)
        .ok()
        .and_then(|o| Outcome::try_from(o).ok())
        .filter(|o| among.contains(o))
        .ok_or_else(|| {
            let names: Vec<&str> = among.iter().map(|o| o.as_str()).collect();
            Refusal::new(Reason::FieldInvalid, format!("`outcome` must be one of {}", names.join(", ")))
                .with("field", "outcome")
        })
}

pub(super) fn resource(broker: &Broker, r: &Resource) -> v1::Resource {
    let mut wire = v1::Resource {
        name: r.name.to_string(),
        tenant: r.tenant.to_string(),
        location: r.location.clone(),
        audience: r.audience.to_string(),
        pin: r.pin.to_string(),
        owner: r.owner.clone(),
        shared_with: r.shared_with.iter().map(ToString::to_string).collect(),
        enforced: r.enforced.to_string(),
        recalled: broker.rules.recalled_because(&r.name).unwrap_or_default(),
        ..Default::default()
    };
    match &r.facts {
        catalog::ResourceFacts::Dataset(facts) => {
            wire.classification = facts.classification.to_string();
            wire.data_classes = facts.data_classes.iter().cloned().collect();
            wire.purposes = facts.purposes.iter().cloned().collect();
            wire.retain_until = facts.retain_until.map(timestamp);
        }
        catalog::ResourceFacts::Model(facts) => {
            wire.tier = facts.tier.to_string();
            wire.environment = facts.environment.to_string();
        }
        catalog::ResourceFacts::Checkpoint(facts) => wire.model = facts.model.to_string(),
    }
    wire
}

pub(super) fn read_half(value: i32) -> Result<Half, Refusal> {
    v1::Half::try_from(value).ok().and_then(|half| half.try_into().ok()).ok_or_else(|| {
        Refusal::new(Reason::FieldMissing, "`half` is required: reading or writing").with("field", "half")
    })
}

pub(super) fn scope(s: &Scope) -> v1::Scope {
    v1::Scope {
        resource: s.name().to_string(),
        actions: s.actions.iter().map(|a| v1::Action::from(*a) as i32).collect(),
    }
}

/// Reads the scopes of a request. A resource must not occur twice, and the number of scopes is limited to the resources
/// of a job.
pub(super) fn read_scopes(scopes: &[v1::Scope]) -> Result<Vec<Scope>, Refusal> {
    check_count("scopes", scopes.len(), limits::JOB_RESOURCES_MAX)?;
    let mut read: Vec<Scope> = Vec::with_capacity(scopes.len());
    for scope in scopes.iter().map(read_scope) {
        let scope = scope?;
        if read.iter().any(|known| known.name() == scope.name()) {
            let text = format!("`scopes` names {} twice", scope.name());
            return Err(Refusal::new(Reason::FieldInvalid, text).with("field", "scopes"));
        }
        read.push(scope);
    }
    Ok(read)
}

fn read_scope(s: &v1::Scope) -> Result<Scope, Refusal> {
    let whole = Scope::of(&read_name("scopes.resource", &s.resource)?);
    if s.actions.is_empty() {
        return Ok(whole);
    }
    let actions = s
        .actions
        .iter()
        .map(|a| v1::Action::try_from(*a).ok().and_then(|a| a.try_into().ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| {
            Refusal::new(Reason::FieldInvalid, "`scopes.actions` names an action that does not exist")
                .with("field", "scopes.actions")
        })?;
    Ok(Scope { actions, ..whole })
}

pub(super) fn offer(o: Offer) -> v1::Offer {
    let (s3_endpoint, s3_server_id) =
        o.s3.map(|s3| (s3.address, s3.server_id.to_string())).unwrap_or_default();
    v1::Offer {
        half: v1::Half::from(o.half) as i32,
        audience: o.audience.to_string(),
        scopes: o.scopes.iter().map(scope).collect(),
        locations: o.locations.into_iter().map(|(n, l)| (n.to_string(), l)).collect(),
        s3_endpoint,
        s3_server_id,
    }
}

/// Returns the signed head of the ledger. Empty if there is no head yet, and for callers that may not read the ledger.
pub(super) fn ledger_head(broker: &Broker, caller: &Caller) -> String {
    if !broker.records.may_see_heads(caller) {
        return String::new();
    }
    broker.ledger().signed_head().map(|head| head.as_str().to_owned()).unwrap_or_default()
}

/// Returns up to `max` mistakes in the catalog files that are not in force, and the number of further mistakes.
pub(super) fn catalog_mistakes(catalog: &Catalog, max: usize) -> Vec<String> {
    let all = catalog.not_taken();
    let more = all.len().saturating_sub(max);
    let shown = all.iter().take(max).map(ToString::to_string);
    shown.chain((more > 0).then(|| format!("and {more} more in the daemon's log"))).collect()
}

pub(super) fn ending(broker: &Broker, recorded: RecordedEnding) -> v1::Ending {
    let RecordedEnding { ending: Ending { seq, behind }, index, durable } = recorded;
    let receipt = index.map(|index| broker.records.receipt(index)).unwrap_or_default();
    v1::Ending { seq, behind, durable, receipt }
}

pub(super) fn member(now: Now, instance: &InstanceName, m: &Member) -> v1::Member {
    let state = match m.state {
        MemberState::Joined => v1::MemberState::Joined,
        MemberState::Away { .. } => v1::MemberState::Away,
        MemberState::Left => v1::MemberState::Left,
        MemberState::Lost => v1::MemberState::Lost,
    };
    v1::Member {
        spiffe_id: m.spiffe_id.to_string(),
        instance: instance.to_string(),
        state: state as i32,
        joined: at(now, m.joined),
        reading_ends: m.drain.and_then(|d| at(now, d.reading_ends)),
        writing_ends: m.drain.and_then(|d| at(now, d.writing_ends)),
        outcome: m.outcome.map_or(v1::Outcome::Unspecified, Into::into) as i32,
    }
}

/// Converts an attempt with all of its members.
pub(super) fn attempt(now: Now, a: &Attempt) -> v1::Attempt {
    let members: Vec<_> = a.members.iter().map(|(i, m)| member(now, i, m)).collect();
    v1::Attempt { members_left_out: 0, members, ..attempt_summary(now, a) }
}

/// Converts an attempt without its members.
fn attempt_summary(now: Now, a: &Attempt) -> v1::Attempt {
    let (state, ended) = match a.state {
        AttemptState::Running => (v1::AttemptState::Running, None),
        AttemptState::Suspended => (v1::AttemptState::Suspended, None),
        AttemptState::Draining(_) => (v1::AttemptState::Draining, None),
        AttemptState::Ended(o) => (v1::AttemptState::Ended, Some(o)),
    };
    v1::Attempt {
        number: a.number.value(),
        state: state as i32,
        outcome: ended.map_or(v1::Outcome::Unspecified, Into::into) as i32,
        key: a.key.clone(),
        began: at(now, a.began),
        ended: a.ended.and_then(|t| at(now, t)),
        members: Vec::new(),
        detail: a.detail.clone(),
        members_left_out: u32::try_from(a.members.len()).unwrap_or(u32::MAX),
    }
}

/// Converts a whole job. If the job has very many members, only the members of its newest attempts are included.
pub(super) fn job(broker: &Broker, j: &Job) -> v1::Job {
    let now = broker.clock().now();
    let mut left = limits::MEMBERS_SHOWN_MAX;
    let newest_first = j.attempts.iter().rev().map(|a| match left.checked_sub(a.members.len()) {
        Some(rest) => {
            left = rest;
            attempt(now, a)
        }
        None => {
            left = 0;
            attempt_summary(now, a)
        }
    });
    let mut attempts: Vec<_> = newest_first.collect();
    attempts.reverse();
    let (spec, notes) = (Some(super::spec::to_wire(&j.spec)), broker.jobs.notes_on(j));
    v1::Job { attempts, spec, notes, ..job_with_gates(broker, j) }
}

/// Converts a job with its gates, its approvals and the digest for approvals.
pub(super) fn job_with_gates(broker: &Broker, j: &Job) -> v1::Job {
    let now = broker.clock().now();
    let gate = |g: &Gate| {
        let at = j.approvals.iter().filter(|a| a.gate == g.id);
        v1::Gate { approvals: at.map(|a| approval(broker, now, j, a)).collect(), ..gate(g) }
    };
    v1::Job {
        request_digest: request_digest(j).map(|digest| digest.to_string()).unwrap_or_default(),
        gates: j.gates.iter().map(gate).collect(),
        inputs: j.inputs.iter().map(input).collect(),
        risk: Some(risk(&broker.jobs.risk_of(j))),
        emergency: j.emergency.as_ref().map(|e| emergency(broker, now, j, e)),
        uses: j.used.iter().map(|(resource, done)| resource_use(resource, done)).collect(),
        ..job_summary(broker, j)
    }
}

fn resource_use(resource: &Object, done: &ResourceUse) -> v1::ResourceUse {
    let ResourceUse { objects, reads, read_bytes, writes, written_bytes, cut, refused, first, last } = *done;
    let (first, last) = (Some(timestamp(first)), Some(timestamp(last)));
    let resource = resource.to_string();
    v1::ResourceUse { resource, objects, reads, read_bytes, writes, written_bytes, cut, refused, first, last }
}

fn emergency(broker: &Broker, now: Now, j: &Job, e: &Emergency) -> v1::Emergency {
    v1::Emergency {
        by: e.by.to_string(),
        human: e.human.as_ref().map(|h| format!("human:{h}")).unwrap_or_default(),
        gates: e.gates.clone(),
        reason: e.reason.clone(),
        at: at(now, e.at),
        until: at(now, e.until),
        void_because: broker.approvals.emergency_void_because(j).unwrap_or_default(),
        review_due: broker.approvals.review_is_due(j.id),
    }
}

pub(super) fn review(now: Now, r: &DueReview) -> v1::Review {
    v1::Review {
        job: r.job.to_string(),
        name: r.name.clone(),
        tenant: r.tenant.to_string(),
        launcher: r.launcher.to_string(),
        by: r.by.to_string(),
        human: r.human.as_ref().map(|h| format!("human:{h}")).unwrap_or_default(),
        gates: r.gates.clone(),
        reason: r.reason.clone(),
        at: at(now, r.at),
        until: at(now, r.until),
    }
}

pub(super) fn risk(risk: &JobRisk) -> v1::Risk {
    v1::Risk { score: risk.score(), reasons: risk.reasons().into_iter().map(str::to_owned).collect() }
}

fn gate(g: &Gate) -> v1::Gate {
    v1::Gate {
        id: g.id.clone(),
        explanation: g.explanation.clone(),
        approver_group: g.approver_group.clone(),
        approvals_needed: g.approvals_needed,
        approval_ttl: Some(duration(g.approval_ttl)),
        approvals: Vec::new(),
    }
}

fn approval(broker: &Broker, now: Now, j: &Job, a: &Approval) -> v1::Approval {
    v1::Approval {
        by: a.by.to_string(),
        human: a.human.as_ref().map(|h| format!("human:{h}")).unwrap_or_default(),
        group: a.group.clone(),
        at: at(now, a.at),
        reason: a.reason.clone(),
        void_because: broker.approvals.void_because(j, a).unwrap_or_default(),
    }
}

fn input(i: &Input) -> v1::JobInput {
    v1::JobInput {
        resource: i.resource.to_string(),
        pin: i.pin.to_string(),
        classification: i.classification.clone().unwrap_or_default(),
        data_classes: i.data_classes.clone(),
        tier: i.tier.clone().unwrap_or_default(),
        location: i.location.clone(),
    }
}

/// Converts a job for a list, without its specification, members and notes.
pub(super) fn job_summary(broker: &Broker, j: &Job) -> v1::Job {
    let now = broker.clock().now();
    let (state, closed) = match j.state {
        JobState::AwaitingApproval => (v1::JobState::AwaitingApproval, None),
        JobState::Ready => (v1::JobState::Ready, None),
        JobState::Running => (v1::JobState::Running, None),
        JobState::Closed(o) => (v1::JobState::Closed, Some(o)),
    };
    v1::Job {
        id: j.id.to_string(),
        name: j.spec.name.clone(),
        tenant: j.spec.tenant.to_string(),
        state: state as i32,
        outcome: closed.map_or(v1::Outcome::Unspecified, Into::into) as i32,
        launcher: j.launcher.to_string(),
        acting_for: j.acting_for.as_ref().map(|h| format!("human:{h}")).unwrap_or_default(),
        purpose: j.spec.purpose.clone(),
        why: j.spec.why.clone(),
        created: at(now, j.created),
        ends_at_latest: at(now, j.ends),
        spec_digest: j.spec_digest.to_string(),
        attempts: j
            .attempts
            .iter()
            .map(|a| v1::Attempt { key: String::new(), detail: String::new(), ..attempt_summary(now, a) })
            .collect(),
        waiting_for: broker.approvals.gates_waiting(j).into_iter().map(gate).collect(),
        detail: j.detail.clone(),
        spec: None,
        live_leases: broker.jobs.live_leases_of(j.id) as u64,
        closed: j.closed.and_then(|t| at(now, t)),
        notes: Vec::new(),
        uses: Vec::new(),
        quarantined: broker.jobs.quarantine_of(j).unwrap_or_default(),
        request_digest: String::new(),
        gates: Vec::new(),
        inputs: Vec::new(),
        risk: None,
        emergency: None,
    }
}

fn lease_facts(id: LeaseId, f: &Facts) -> v1::Lease {
    v1::Lease {
        id: id.to_string(),
        job: f.job.to_string(),
        attempt: f.attempt.value(),
        tenant: f.tenant.to_string(),
        holder: f.holder.to_string(),
        instance: f.instance.to_string(),
        half: v1::Half::from(f.half) as i32,
        audience: f.audience.to_string(),
        scopes: f.scopes.iter().map(scope).collect(),
        ..v1::Lease::default()
    }
}

pub(super) fn lease(now: Now, l: &Lease) -> v1::Lease {
    v1::Lease {
        issued: at(now, l.issued),
        expires: at(now, l.deadline()),
        expires_at_latest: at(now, l.latest),
        generation: l.generation(),
        stood_at: l.stand().at().0,
        state: "live".into(),
        ..lease_facts(l.id, &l.facts)
    }
}

pub(super) fn lease_view(now: Now, view: &LeaseView) -> v1::Lease {
    match view {
        LeaseView::Live(l) => lease(now, l),
        LeaseView::Ended(e) => v1::Lease {
            issued: at(now, e.issued),
            expires: at(now, e.deadline),
            expires_at_latest: at(now, e.latest),
            generation: e.generation,
            stood_at: e.stood_at.0,
            state: "ended".into(),
            cause: e.cause.to_string(),
            ..lease_facts(e.id, &e.facts)
        },
    }
}

/// Converts a lease for the owner of data. For a lease of another tenant, the message shows the holder, the job, the
/// begin and the end. It hides the scopes on data of other owners, the cause of the end, and the count of lowerings.
pub(super) fn lease_of_owner(now: Now, view: &LeaseView, owner: Option<&TenantName>) -> v1::Lease {
    let mut shown = lease_view(now, view);
    if let Some(owner) = owner
        && shown.tenant != owner.as_str()
    {
        let is_own =
            |s: &v1::Scope| s.resource.parse::<Object>().is_ok_and(|r| r.resource().tenant() == *owner);
        shown.scopes.retain(is_own);
        shown.cause.clear();
        shown.stood_at = 0;
    }
    shown
}

pub(super) fn lock(now: Now, l: &Lock) -> v1::Lock {
    v1::Lock {
        name: l.name.to_string(),
        reason: l.reason.clone(),
        by: l.by.to_string(),
        since: at(now, l.since),
        until: l.until.and_then(|t| at(now, t)),
    }
}

pub(super) fn binding(b: crate::broker::Binding) -> v1::Binding {
    match b {
        crate::broker::Binding::Subject => v1::Binding::Subject,
        crate::broker::Binding::Certificate => v1::Binding::Certificate,
        crate::broker::Binding::Bearer => v1::Binding::Bearer,
    }
}
