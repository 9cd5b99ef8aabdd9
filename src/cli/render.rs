//! Answers of the daemon as table rows, pages and JSON values.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    ids,
    output::{Page, TableCell, columns, fields},
    table::{Column, TableSize, list},
    timestamp::{both, short, value},
};
use crate::{clock::Wall, proto::v1};

/// Returns the word for a value of the wire: `awaiting-approval` for `JOB_STATE_AWAITING_APPROVAL`.
fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => String::new(),
        word => word.to_ascii_lowercase().replace('_', "-"),
    }
}

pub(super) fn job_state(job: &v1::Job) -> String {
    word(job.state().as_str_name(), "JOB_STATE_")
}

fn outcome(outcome: v1::Outcome) -> String {
    word(outcome.as_str_name(), "OUTCOME_")
}

/// Returns the word for a method, such as `lora`. Empty if the job tunes nothing.
pub(super) fn method(method: v1::Method) -> String {
    word(method.as_str_name(), "METHOD_")
}

fn half(half: v1::Half) -> String {
    word(half.as_str_name(), "HALF_")
}

fn attempt_state(attempt: &v1::Attempt) -> String {
    match outcome(attempt.outcome()) {
        o if o.is_empty() => word(attempt.state().as_str_name(), "ATTEMPT_STATE_"),
        o => o,
    }
}

/// Returns `joined`, `away` or `draining`, or how the member left and its outcome.
fn member_state(member: &v1::Member) -> String {
    let state = word(member.state().as_str_name(), "MEMBER_STATE_");
    match outcome(member.outcome()) {
        o if !o.is_empty() => format!("{state}, {o}"),
        _ if member.writing_ends.is_some() && state == "joined" => "draining".to_owned(),
        _ => state,
    }
}

/// Returns `ready` or `running`, or the outcome.
pub(super) fn job_state_or_outcome(job: &v1::Job) -> String {
    match outcome(job.outcome()) {
        o if o.is_empty() => job_state(job),
        o => o,
    }
}

const JOB_COLUMNS: [Column; 10] = [
    Column::whole("ID", 0),
    Column::cut("NAME", 12, 2),
    Column::cut("TENANT", 6, 5),
    Column::whole("STATE", 1),
    Column::whole("ATTEMPTS", 7),
    Column::whole("LEASES", 4),
    Column::whole("CREATED", 3),
    Column::whole("ENDS", 6),
    Column::extra("PURPOSE"),
    Column::extra("LAUNCHER"),
];

pub(super) fn job_table(jobs: &[v1::Job], now: Wall, size: TableSize) -> Page {
    let short_ids = ids::shortened(jobs.iter().map(|job| job.id.as_str()));
    let rows = jobs.iter().map(|job| {
        vec![
            shown_id(&job.id, &short_ids, size),
            job.name.clone(),
            job.tenant.clone(),
            job_state_or_outcome(job),
            job.attempts.len().to_string(),
            job.live_leases.to_string(),
            short(job.created.as_ref(), now),
            if job.closed.is_some() { "-".to_owned() } else { short(job.ends_at_latest.as_ref(), now) },
            job.purpose.clone(),
            job.launcher.clone(),
        ]
    });
    list(&JOB_COLUMNS, rows, size)
}

fn shown_id(id: &str, short: &BTreeMap<&str, &str>, size: TableSize) -> String {
    match short.get(id) {
        Some(short) if !size.is_wide => (*short).to_owned(),
        _ => id.to_owned(),
    }
}

pub(super) fn job_page(job: &v1::Job, now: Wall) -> Page {
    let spec = job.spec.clone().unwrap_or_default();
    let mut page = fields([
        ("id", TableCell::from(job.id.as_str())),
        ("name", job.name.as_str().into()),
        ("tenant", job.tenant.as_str().into()),
        ("state", job_state_or_outcome(job).into()),
        ("because", job.detail.as_str().into()),
        ("quarantined", job.quarantined.as_str().into()),
        ("emergency", emergency_text(job.emergency.as_ref(), now).into()),
        ("note", TableCell::list(&job.notes)),
        ("launcher", job.launcher.as_str().into()),
        ("acting for", job.acting_for.as_str().into()),
        ("purpose", job.purpose.as_str().into()),
        ("why", job.why.as_str().into()),
        ("ticket", spec.ticket.as_str().into()),
        ("rollback to", spec.rollback_to.as_str().into()),
        ("sweep", sweep_text(spec.sweep.as_ref()).into()),
        ("why not a prompt", spec.prompt_alternative.as_str().into()),
        ("risk", risk_text(job.risk.as_ref()).into()),
        ("reads", TableCell::list(&spec.read)),
        ("writes", TableCell::list(&spec.write)),
        ("created", both(job.created.as_ref(), now).into()),
        ("ends at latest", both(job.ends_at_latest.as_ref(), now).into()),
        ("closed", both(job.closed.as_ref(), now).into()),
        ("live leases", job.live_leases.to_string().into()),
        ("spec", job.spec_digest.as_str().into()),
        ("request", job.request_digest.as_str().into()),
    ]);
    if !job.waiting_for.is_empty() {
        page = page.below(&gate_table(&job.waiting_for));
    }
    if job.gates.iter().any(|gate| !gate.approvals.is_empty()) {
        page = page.below(&approval_table(&job.gates, now));
    }
    if !job.attempts.is_empty() {
        let rows = job.attempts.iter().map(|a| {
            vec![
                a.number.to_string(),
                attempt_state(a),
                a.members.len().to_string(),
                short(a.began.as_ref(), now),
                short(a.ended.as_ref(), now),
                a.detail.clone(),
            ]
        });
        page = page.below(&columns(&["ATTEMPT", "STATE", "MEMBERS", "BEGAN", "ENDED", "BECAUSE"], rows));
    }
    let members = job.attempts.iter().flat_map(|a| a.members.iter().map(move |m| (a.number, m)));
    let rows: Vec<_> = members
        .map(|(number, m)| {
            vec![
                number.to_string(),
                m.instance.clone(),
                member_state(m),
                short(m.joined.as_ref(), now),
                m.spiffe_id.clone(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        page = page.below(&columns(&["ATTEMPT", "MEMBER", "STATE", "JOINED", "SPIFFE ID"], rows));
    }
    page
}

pub(super) fn gate_table(gates: &[v1::Gate]) -> Page {
    let rows = gates.iter().map(|g| {
        vec![g.id.clone(), g.approver_group.clone(), g.approvals_needed.to_string(), g.explanation.clone()]
    });
    columns(&["WAITS FOR", "GROUP", "APPROVALS", "BECAUSE"], rows)
}

/// Renders the approvals of a job.
pub(super) fn approval_table(gates: &[v1::Gate], now: Wall) -> Page {
    let approvals = gates.iter().flat_map(|gate| gate.approvals.iter().map(move |a| (gate, a)));
    let rows = approvals.map(|(gate, a)| {
        let counts =
            if a.void_because.is_empty() { "yes".to_owned() } else { format!("no: {}", a.void_because) };
        vec![
            gate.id.clone(),
            a.group.clone(),
            a.by.clone(),
            short(a.at.as_ref(), now),
            a.reason.clone(),
            counts,
        ]
    });
    columns(&["APPROVED AT", "GROUP", "BY", "WHEN", "REASON", "COUNTS"], rows)
}

fn approval_value(a: &v1::Approval, now: Wall) -> Value {
    json!({
        "by": a.by, "human": none_if_empty(a.human.clone()), "group": a.group, "at": value(a.at.as_ref(), now),
        "reason": a.reason, "void_because": none_if_empty(a.void_because.clone()),
    })
}

fn input_value(i: &v1::JobInput) -> Value {
    json!({
        "resource": i.resource, "pin": i.pin, "classification": none_if_empty(i.classification.clone()),
        "data_classes": i.data_classes, "tier": none_if_empty(i.tier.clone()),
    })
}

fn gate_value(g: &v1::Gate, now: Wall) -> Value {
    json!({
        "approval_ttl_s": g.approval_ttl.as_ref().map(|d| d.seconds),
        "approvals": g.approvals.iter().map(|a| approval_value(a, now)).collect::<Vec<_>>(),
        "id": g.id, "explanation": g.explanation, "approver_group": g.approver_group,
        "approvals_needed": g.approvals_needed,
    })
}

pub(super) fn job_value(job: &v1::Job, now: Wall) -> Value {
    let attempts = job.attempts.iter().map(|a| {
        let members = a.members.iter().map(|m| {
            json!({
                "spiffe_id": m.spiffe_id, "instance": m.instance,
                "state": word(m.state().as_str_name(), "MEMBER_STATE_"),
                "joined": value(m.joined.as_ref(), now), "outcome": none_if_empty(outcome(m.outcome())),
                "reading_ends": value(m.reading_ends.as_ref(), now), "writing_ends": value(m.writing_ends.as_ref(), now),
            })
        });
        json!({
            "number": a.number, "state": word(a.state().as_str_name(), "ATTEMPT_STATE_"),
            "outcome": none_if_empty(outcome(a.outcome())), "key": a.key, "began": value(a.began.as_ref(), now),
            "ended": value(a.ended.as_ref(), now), "detail": none_if_empty(a.detail.clone()),
            "members": members.collect::<Vec<_>>(),
        })
    });
    json!({
        "id": job.id, "name": job.name, "tenant": job.tenant, "state": job_state(job),
        "outcome": none_if_empty(outcome(job.outcome())), "launcher": job.launcher,
        "acting_for": none_if_empty(job.acting_for.clone()), "purpose": job.purpose, "why": job.why,
        "created": value(job.created.as_ref(), now), "ends_at_latest": value(job.ends_at_latest.as_ref(), now),
        "closed": value(job.closed.as_ref(), now), "quarantined": none_if_empty(job.quarantined.clone()), "spec_digest": job.spec_digest,
        "detail": none_if_empty(job.detail.clone()), "live_leases": job.live_leases, "notes": job.notes,
        "waiting_for": job.waiting_for.iter().map(|g| gate_value(g, now)).collect::<Vec<_>>(),
        "gates": job.gates.iter().map(|g| gate_value(g, now)).collect::<Vec<_>>(),
        "request_digest": none_if_empty(job.request_digest.clone()),
        "inputs": job.inputs.iter().map(input_value).collect::<Vec<_>>(),
        "risk": job.risk.as_ref().map(risk_value),
        "emergency": job.emergency.as_ref().map(|e| emergency_value(e, now)),
        "attempts": attempts.collect::<Vec<_>>(),
        "spec": job.spec.as_ref().map(spec_value),
    })
}

/// `one of 8 jobs, with seed=7`, or nothing.
fn sweep_text(sweep: Option<&v1::ParamSweep>) -> String {
    sweep.map(|s| format!("one of {} jobs, with {}", s.jobs, s.values.join(", "))).unwrap_or_default()
}

/// Who opened the gates in an emergency, until when and why.
fn emergency_text(emergency: Option<&v1::Emergency>, now: Wall) -> String {
    let Some(e) = emergency else { return String::new() };
    let review = if e.review_due { "; its review is due" } else { "; reviewed" };
    let void = if e.void_because.is_empty() { String::new() } else { format!("; void: {}", e.void_because) };
    format!(
        "{} opened {} until {}: {}{void}{review}",
        e.by,
        e.gates.join(", "),
        short(e.until.as_ref(), now),
        e.reason
    )
}

fn emergency_value(e: &v1::Emergency, now: Wall) -> Value {
    json!({
        "by": e.by, "human": none_if_empty(e.human.clone()), "gates": e.gates, "reason": e.reason,
        "at": value(e.at.as_ref(), now), "until": value(e.until.as_ref(), now),
        "void_because": none_if_empty(e.void_because.clone()), "review_due": e.review_due,
    })
}

/// `5: personal-data, production-model`, or nothing if a message has no risk.
pub(super) fn risk_text(risk: Option<&v1::Risk>) -> String {
    match risk {
        None => String::new(),
        Some(risk) if risk.reasons.is_empty() => "0: no reason known".to_owned(),
        Some(risk) => format!("{}: {}", risk.score, risk.reasons.join(", ")),
    }
}

pub(super) fn risk_value(risk: &v1::Risk) -> Value {
    json!({ "score": risk.score, "reasons": risk.reasons })
}

fn spec_value(spec: &v1::JobSpec) -> Value {
    let tune = spec.tune.as_ref().map(|t| {
        json!({
            "method": word(t.method().as_str_name(), "METHOD_"), "params_digest": none_if_empty(t.params_digest.clone()),
            "free_params": t.free_params, "prompts": t.prompts,
        })
    });
    let members = spec.members.as_ref().map(|m| {
        json!({
            "start": m.start, "join": m.join, "expect": m.expect, "max": m.max, "attempts": m.attempts,
            "done_when": none_if_empty(m.done_when.clone()),
        })
    });
    let pins: BTreeMap<_, _> = spec.pins.iter().collect();
    json!({
        "name": spec.name, "tenant": none_if_empty(spec.tenant.clone()), "purpose": spec.purpose, "why": spec.why,
        "max_duration_s": spec.max_duration.as_ref().map(|d| d.seconds), "tune": tune, "read": spec.read,
        "write": spec.write, "members": members, "acting_for": none_if_empty(spec.acting_for.clone()),
        "credential_ttl_s": spec.credential_ttl.as_ref().map(|d| d.seconds), "pins": pins,
        "ticket": none_if_empty(spec.ticket.clone()), "rollback_to": none_if_empty(spec.rollback_to.clone()),
        "prompt_alternative": none_if_empty(spec.prompt_alternative.clone()),
        "sweep": spec.sweep.as_ref().map(|s| json!({ "jobs": s.jobs, "values": s.values })),
        "drain_s": spec.drain.as_ref().map(|d| d.seconds),
    })
}

pub(super) fn decision_table(decisions: &[v1::Decision]) -> Page {
    let rows = decisions.iter().map(|d| {
        vec![d.result.clone(), d.action.clone(), d.resource.clone(), d.principal.clone(), d.rules.join(", ")]
    });
    columns(&["RESULT", "ACTION", "RESOURCE", "PRINCIPAL", "RULES"], rows)
}

pub(super) fn decision_value(d: &v1::Decision) -> Value {
    json!({
        "principal": d.principal, "action": d.action, "resource": d.resource, "result": d.result,
        "rules": d.rules,
    })
}

const LEASE_COLUMNS: [Column; 13] = [
    Column::whole("ID", 0),
    Column::whole("STATE", 1),
    Column::whole("ACCESS", 8),
    Column::whole("JOB", 2),
    Column::cut("MEMBER", 8, 7),
    Column::whole("EXPIRES", 5),
    Column::cut("OPENS", 20, 3),
    Column::cut("HOLDER", 24, 4),
    Column::cut("CAUSE", 16, 6),
    Column::extra("TENANT"),
    Column::extra("ISSUED"),
    Column::extra("ATTEMPT"),
    Column::extra("AUDIENCE"),
];

pub(super) fn lease_table(leases: &[v1::Lease], now: Wall, size: TableSize) -> Page {
    let short_ids = ids::shortened(leases.iter().flat_map(|l| [l.id.as_str(), l.job.as_str()]));
    let rows = leases.iter().map(|l| {
        let opens: Vec<_> = l.scopes.iter().map(|s| s.resource.as_str()).collect();
        vec![
            shown_id(&l.id, &short_ids, size),
            l.state.clone(),
            half(l.half()),
            shown_id(&l.job, &short_ids, size),
            l.instance.clone(),
            if l.state == "live" { short(l.expires.as_ref(), now) } else { "-".to_owned() },
            opens.join(", "),
            l.holder.clone(),
            l.cause.clone(),
            l.tenant.clone(),
            short(l.issued.as_ref(), now),
            l.attempt.to_string(),
            l.audience.clone(),
        ]
    });
    list(&LEASE_COLUMNS, rows, size)
}

pub(super) fn lease_page(l: &v1::Lease, now: Wall) -> Page {
    let scopes = l.scopes.iter().map(|s| format!("{}: {}", s.resource, actions(s).join(", ")));
    fields([
        ("id", TableCell::from(l.id.as_str())),
        ("state", l.state.as_str().into()),
        ("cause", l.cause.as_str().into()),
        ("access", half(l.half()).into()),
        ("opens", TableCell::list(scopes)),
        ("audience", l.audience.as_str().into()),
        ("holder", l.holder.as_str().into()),
        ("job", l.job.as_str().into()),
        ("attempt", l.attempt.to_string().into()),
        ("member", l.instance.as_str().into()),
        ("tenant", l.tenant.as_str().into()),
        ("issued", both(l.issued.as_ref(), now).into()),
        ("expires", both(l.expires.as_ref(), now).into()),
        ("at the latest", both(l.expires_at_latest.as_ref(), now).into()),
        ("generation", l.generation.to_string().into()),
        ("issued at seq", l.stood_at.to_string().into()),
    ])
}

fn actions(scope: &v1::Scope) -> Vec<String> {
    scope.actions().map(|a| a.as_str_name().trim_start_matches("ACTION_").to_ascii_lowercase()).collect()
}

pub(super) fn lease_value(l: &v1::Lease, now: Wall) -> Value {
    let scopes = l.scopes.iter().map(|s| json!({ "resource": s.resource, "actions": actions(s) }));
    json!({
        "id": l.id, "state": l.state, "cause": none_if_empty(l.cause.clone()), "half": half(l.half()), "job": l.job,
        "attempt": l.attempt, "tenant": l.tenant, "holder": l.holder, "instance": l.instance,
        "audience": l.audience, "scopes": scopes.collect::<Vec<_>>(), "issued": value(l.issued.as_ref(), now),
        "expires": value(l.expires.as_ref(), now),
        "expires_at_latest": value(l.expires_at_latest.as_ref(), now), "generation": l.generation,
        "stood_at": l.stood_at,
    })
}

const RESOURCE_COLUMNS: [Column; 6] = [
    Column::whole("NAME", 0),
    Column::cut("CLASS", 8, 2),
    Column::cut("PURPOSES", 16, 1),
    Column::cut("OWNER", 12, 3),
    Column::extra("AUDIENCE"),
    Column::extra("LOCATION"),
];

pub(super) fn resource_table(resources: &[v1::Resource], size: TableSize) -> Page {
    let rows = resources.iter().map(|r| {
        let class = if r.classification.is_empty() { &r.tier } else { &r.classification };
        let purposes = r.purposes.join(", ");
        vec![r.name.clone(), class.clone(), purposes, r.owner.clone(), r.audience.clone(), r.location.clone()]
    });
    list(&RESOURCE_COLUMNS, rows, size)
}

pub(super) fn resource_page(r: &v1::Resource, now: Wall) -> Page {
    fields([
        ("name", TableCell::from(r.name.as_str())),
        ("tenant", r.tenant.as_str().into()),
        ("recalled", r.recalled.as_str().into()),
        ("owner", r.owner.as_str().into()),
        ("purposes", TableCell::list(&r.purposes)),
        ("classification", r.classification.as_str().into()),
        ("data classes", r.data_classes.join(", ").into()),
        ("tier", r.tier.as_str().into()),
        ("environment", r.environment.as_str().into()),
        ("model", r.model.as_str().into()),
        ("shared with", r.shared_with.join(", ").into()),
        ("retained until", both(r.retain_until.as_ref(), now).into()),
        ("pin", r.pin.as_str().into()),
        ("audience", r.audience.as_str().into()),
        ("enforced by", r.enforced.as_str().into()),
        ("location", r.location.as_str().into()),
    ])
}

pub(super) fn resource_value(r: &v1::Resource, now: Wall) -> Value {
    json!({
        "name": r.name, "tenant": r.tenant, "recalled": none_if_empty(r.recalled.clone()), "owner": r.owner, "purposes": r.purposes,
        "classification": none_if_empty(r.classification.clone()), "data_classes": r.data_classes,
        "tier": none_if_empty(r.tier.clone()), "environment": none_if_empty(r.environment.clone()), "model": none_if_empty(r.model.clone()),
        "shared_with": r.shared_with, "retain_until": value(r.retain_until.as_ref(), now), "pin": r.pin,
        "audience": r.audience, "enforced": r.enforced, "location": r.location,
    })
}

const LOCK_COLUMNS: [Column; 5] = [
    Column::whole("NAME", 0),
    Column::whole("SINCE", 3),
    Column::whole("UNTIL", 2),
    Column::cut("BY", 16, 4),
    Column::cut("REASON", 16, 1),
];

pub(super) fn lock_table(locks: &[v1::Lock], now: Wall, size: TableSize) -> Page {
    let rows = locks.iter().map(|l| {
        let until = if l.until.is_none() { "lifted".to_owned() } else { short(l.until.as_ref(), now) };
        vec![l.name.clone(), short(l.since.as_ref(), now), until, l.by.clone(), l.reason.clone()]
    });
    list(&LOCK_COLUMNS, rows, size)
}

pub(super) fn lock_value(l: &v1::Lock, now: Wall) -> Value {
    json!({
        "name": l.name, "reason": l.reason, "by": l.by, "since": value(l.since.as_ref(), now),
        "until": value(l.until.as_ref(), now),
    })
}

pub(super) fn ending_value(e: &v1::Ending) -> Value {
    json!({ "seq": e.seq, "behind": e.behind, "durable": e.durable })
}

/// Returns `None` for empty text.
pub(super) fn none_if_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_values_become_plain_words() {
        assert_eq!(word("JOB_STATE_AWAITING_APPROVAL", "JOB_STATE_"), "awaiting-approval");
        assert_eq!(word("OUTCOME_UNSPECIFIED", "OUTCOME_"), "");
        let job = v1::Job {
            state: v1::JobState::Closed.into(),
            outcome: v1::Outcome::Interrupted.into(),
            ..Default::default()
        };
        assert_eq!(
            (job_state(&job).as_str(), job_state_or_outcome(&job).as_str()),
            ("closed", "interrupted")
        );
    }

    #[test]
    fn a_member_that_drains_or_left_says_so() {
        let joined = v1::Member { state: v1::MemberState::Joined.into(), ..Default::default() };
        let drains = v1::Member { writing_ends: Some(Default::default()), ..joined.clone() };
        let outcome = v1::Outcome::Interrupted.into();
        let left = v1::Member { state: v1::MemberState::Left.into(), outcome, ..drains.clone() };
        assert_eq!([&joined, &drains, &left].map(member_state), ["joined", "draining", "left, interrupted"]);
    }

    #[test]
    fn the_lease_list_shows_expiry_and_fits_the_terminal() {
        let now = Wall(1_795_148_000_000);
        let at = |s: i64| Some(prost_types::Timestamp { seconds: 1_795_148_000 + s, nanos: 0 });
        let lease = v1::Lease {
            id: "l-1".into(),
            state: "live".into(),
            half: v1::Half::Reading.into(),
            job: "j-1".into(),
            attempt: 1,
            instance: "n0".into(),
            expires: at(252),
            audience: "spiffe://td.example/files".into(),
            ..Default::default()
        };
        let ended =
            v1::Lease { id: "l-2".into(), state: "revoked".into(), cause: "op: x".into(), ..lease.clone() };
        let scope = |resource: &str| v1::Scope { resource: resource.into(), actions: Vec::new() };
        let scopes = vec![scope("dataset:acme/tickets@v3"), scope("model:acme/base@1")];
        let holder = "spiffe://td.example/ns/ml/job/7".to_owned();
        let leases =
            [lease, ended].map(|l| v1::Lease { scopes: scopes.clone(), holder: holder.clone(), ..l });
        let shown = |is_wide, columns| lease_table(&leases, now, TableSize { is_wide, columns });
        let all = shown(false, None).to_string();
        assert!(all.contains("dataset:acme/tickets@v3, model:acme/base@1") && all.contains(&holder), "{all}");
        assert!(all.contains("in 4m 12s") && all.contains("op: x"), "{all}");
        let wide = shown(true, Some(60)).to_string();
        assert!(wide.contains("AUDIENCE") && wide.contains("spiffe://td.example/files"), "{wide}");
        for columns in [60, 80, 120] {
            let text = shown(false, Some(columns)).to_string();
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
            assert!(text.contains("l-1") && text.contains("dataset:acme/ticke"), "{text}");
        }
    }

    #[test]
    fn a_job_page_has_attempts_members_and_gates() {
        let now = Wall(1_795_148_000_000);
        let at = |s: i64| Some(prost_types::Timestamp { seconds: 1_795_148_000 + s, nanos: 0 });
        let job = v1::Job {
            id: "j-1".into(),
            name: "support-lora".into(),
            tenant: "acme".into(),
            state: v1::JobState::Running.into(),
            launcher: "spiffe://td.example/ci".into(),
            purpose: "support-tuning".into(),
            created: at(-60),
            ends_at_latest: at(3_600),
            waiting_for: vec![v1::Gate {
                id: "prod".into(),
                explanation: "production".into(),
                approver_group: "ops".into(),
                approvals_needed: 1,
                ..Default::default()
            }],
            attempts: vec![v1::Attempt {
                number: 1,
                state: v1::AttemptState::Running.into(),
                began: at(-30),
                members: vec![v1::Member {
                    spiffe_id: "spiffe://td.example/w".into(),
                    instance: "n0".into(),
                    state: v1::MemberState::Joined.into(),
                    joined: at(-29),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        };
        insta::assert_snapshot!(job_page(&job, now), @r#"
        id              j-1
        name            support-lora
        tenant          acme
        state           running
        launcher        spiffe://td.example/ci
        purpose         support-tuning
        created         2026-11-20T04:12:20.000Z (1m ago)
        ends at latest  2026-11-20T05:13:20.000Z (in 1h)
        live leases     0

        WAITS FOR  GROUP  APPROVALS  BECAUSE
        prod       ops    1          production

        ATTEMPT  STATE    MEMBERS  BEGAN    ENDED  BECAUSE
        1        running  1        30s ago  -

        ATTEMPT  MEMBER  STATE   JOINED   SPIFFE ID
        1        n0      joined  29s ago  spiffe://td.example/w
        "#);
        let json = job_value(&job, now);
        assert_eq!(json["attempts"][0]["members"][0]["state"], "joined");
        assert_eq!(json["created"]["from_now_s"], -60);
        assert_eq!(json["outcome"], Value::Null);
    }
}
