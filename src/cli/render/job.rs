//! Renders a job: as a row of a list, as a page, as a value.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    gate::{approval_table, emergency_text, emergency_value, gate_table, gate_value},
    words::{
        attempt_state, job_state, job_state_or_outcome, member_state, none_if_empty, outcome, shown_id, word,
    },
};
use crate::{
    cli::{
        ids,
        output::{Page, TableCell, columns, fields},
        table::{Column, TableSize, list},
        timestamp::{both, short, value},
    },
    clock::Wall,
    plain::bytes_shown,
    proto::v1,
};

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

pub(in crate::cli) fn job_table(jobs: &[v1::Job], now: Wall, size: TableSize) -> Page {
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
            match job.closed.is_some() || is_to_begin(job) {
                true => "-".to_owned(),
                false => short(job.ends_at_latest.as_ref(), now),
            },
            job.purpose.clone(),
            job.launcher.clone(),
        ]
    });
    list(&JOB_COLUMNS, rows, size)
}

/// Returns a text such as `dataset:acme/tickets@v3: 4 objects, 220.0 MiB read, 1 cut`.
fn use_text(done: &v1::ResourceUse) -> String {
    let objects = if done.objects == 1 { "1 object".to_owned() } else { format!("{} objects", done.objects) };
    let mut parts = vec![objects];
    if done.reads > 0 {
        parts.push(format!("{} read", bytes_shown(done.read_bytes)));
    }
    if done.writes > 0 {
        parts.push(format!("{} written", bytes_shown(done.written_bytes)));
    }
    if done.cut > 0 {
        parts.push(format!("{} cut", done.cut));
    }
    if done.refused > 0 {
        parts.push(format!("{} refused", done.refused));
    }
    format!("{}: {}", done.resource, parts.join(", "))
}

fn use_value(done: &v1::ResourceUse, now: Wall) -> Value {
    json!({
        "resource": done.resource, "objects": done.objects, "reads": done.reads, "read_bytes": done.read_bytes,
        "writes": done.writes, "written_bytes": done.written_bytes, "cut": done.cut, "refused": done.refused,
        "first": value(done.first.as_ref(), now), "last": value(done.last.as_ref(), now),
    })
}

/// Whether `ends_at_latest` is the time until which a job with gates may begin. Its `max_duration` runs from its first attempt on.
fn is_to_begin(job: &v1::Job) -> bool {
    let has_gates = !job.gates.is_empty() || !job.waiting_for.is_empty();
    has_gates && job.attempts.is_empty() && job.emergency.is_none() && job.closed.is_none()
}

pub(in crate::cli) fn job_page(job: &v1::Job, now: Wall) -> Page {
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
        ("image", spec.image.as_str().into()),
        ("risk", risk_text(job.risk.as_ref()).into()),
        ("reads", TableCell::list(&spec.read)),
        ("writes", TableCell::list(&spec.write)),
        ("used", TableCell::list(job.uses.iter().map(use_text).collect::<Vec<_>>())),
        ("created", both(job.created.as_ref(), now).into()),
        (
            if is_to_begin(job) { "begin by" } else { "ends at latest" },
            both(job.ends_at_latest.as_ref(), now).into(),
        ),
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

fn input_value(i: &v1::JobInput) -> Value {
    json!({
        "resource": i.resource, "pin": i.pin, "classification": none_if_empty(i.classification.clone()),
        "data_classes": i.data_classes, "tier": none_if_empty(i.tier.clone()),
        "location": none_if_empty(i.location.clone()),
    })
}

pub(in crate::cli) fn job_value(job: &v1::Job, now: Wall) -> Value {
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
        "uses": job.uses.iter().map(|u| use_value(u, now)).collect::<Vec<_>>(),
        "attempts": attempts.collect::<Vec<_>>(),
        "spec": job.spec.as_ref().map(spec_value),
    })
}

/// Returns a text such as `one of 8 jobs, with seed=7`. Empty for a job without a sweep.
fn sweep_text(sweep: Option<&v1::ParamSweep>) -> String {
    sweep.map(|s| format!("one of {} jobs, with {}", s.jobs, s.values.join(", "))).unwrap_or_default()
}

/// Returns a text such as `5: personal-data, production-model`. Empty for a message without a risk.
pub(in crate::cli) fn risk_text(risk: Option<&v1::Risk>) -> String {
    match risk {
        None => String::new(),
        Some(risk) if risk.reasons.is_empty() => "0: no reason known".to_owned(),
        Some(risk) => format!("{}: {}", risk.score, risk.reasons.join(", ")),
    }
}

pub(in crate::cli) fn risk_value(risk: &v1::Risk) -> Value {
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
        "image": none_if_empty(spec.image.clone()),
        "sweep": spec.sweep.as_ref().map(|s| json!({ "jobs": s.jobs, "values": s.values })),
        "drain_s": spec.drain.as_ref().map(|d| d.seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // Before it begins, a job with gates has a time to begin by. Its `max_duration` runs from then on.
        let approved =
            v1::Job { attempts: vec![], waiting_for: vec![], gates: job.waiting_for.clone(), ..job.clone() };
        let size = TableSize { is_wide: false, columns: None };
        assert!(!job_table(std::slice::from_ref(&approved), now, size).to_string().contains("in 1h"));
        assert!(job_table(std::slice::from_ref(&job), now, size).to_string().contains("in 1h"));
        let until = "2026-11-20T05:13:20.000Z (in 1h)";
        for (seen, label) in [
            (approved.clone(), "begin by"),
            (v1::Job { attempts: vec![], ..job.clone() }, "begin by"),
            (v1::Job { emergency: Some(v1::Emergency::default()), ..approved.clone() }, "ends at latest"),
            (v1::Job { gates: vec![], ..approved.clone() }, "ends at latest"),
            (v1::Job { attempts: job.attempts.clone(), ..approved.clone() }, "ends at latest"),
            (v1::Job { closed: at(0), ..approved }, "ends at latest"),
        ] {
            let page = job_page(&seen, now).to_string();
            let line = page.lines().find(|line| line.ends_with(until)).unwrap();
            assert_eq!(line.trim_end_matches(until).trim_end(), label, "{page}");
        }
        let json = job_value(&job, now);
        assert_eq!(json["attempts"][0]["members"][0]["state"], "joined");
        assert_eq!(json["created"]["from_now_s"], -60);
        assert_eq!(json["outcome"], Value::Null);
    }
}
