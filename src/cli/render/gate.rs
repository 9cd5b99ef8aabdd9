//! Renders the gates of a job, the people who approved or opened them, and the decisions of policy.

use serde_json::{Value, json};

use super::words::none_if_empty;
use crate::{
    cli::{
        output::{Page, columns},
        timestamp::{short, value},
    },
    clock::Wall,
    proto::v1,
};

/// Renders the gates that hold a job back.
pub(in crate::cli) fn gate_table(gates: &[v1::Gate]) -> Page {
    let rows = gates.iter().map(|g| {
        vec![g.id.clone(), g.approver_group.clone(), g.approvals_needed.to_string(), g.explanation.clone()]
    });
    columns(&["WAITS FOR", "GROUP", "APPROVALS", "BECAUSE"], rows)
}

/// Renders all gates of a job, with the number of approvals of each gate.
pub(in crate::cli) fn all_gates_table(gates: &[v1::Gate]) -> Page {
    let rows = gates.iter().map(|g| {
        let given = g.approvals.iter().filter(|a| a.void_because.is_empty()).count();
        let of = format!("{given} of {}", g.approvals_needed);
        vec![g.id.clone(), g.approver_group.clone(), of, g.explanation.clone()]
    });
    columns(&["GATE", "GROUP", "APPROVALS", "BECAUSE"], rows)
}

/// Renders the approvals of a job.
pub(in crate::cli) fn approval_table(gates: &[v1::Gate], now: Wall) -> Page {
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

pub(super) fn gate_value(g: &v1::Gate, now: Wall) -> Value {
    json!({
        "approval_ttl_s": g.approval_ttl.as_ref().map(|d| d.seconds),
        "approvals": g.approvals.iter().map(|a| approval_value(a, now)).collect::<Vec<_>>(),
        "id": g.id, "explanation": g.explanation, "approver_group": g.approver_group,
        "approvals_needed": g.approvals_needed,
    })
}

/// Describes who opened the gates in an emergency, until when and why.
pub(super) fn emergency_text(emergency: Option<&v1::Emergency>, now: Wall) -> String {
    let Some(e) = emergency else { return String::new() };
    let review = if e.review_due { "; its review is due" } else { "; reviewed" };
    let void = if e.void_because.is_empty() { String::new() } else { format!("; void: {}", e.void_because) };
    format!(
        "{} opened {}, which ends {}: {}{void}{review}",
        e.by,
        e.gates.join(", "),
        short(e.until.as_ref(), now),
        e.reason
    )
}

pub(super) fn emergency_value(e: &v1::Emergency, now: Wall) -> Value {
    json!({
        "by": e.by, "human": none_if_empty(e.human.clone()), "gates": e.gates, "reason": e.reason,
        "at": value(e.at.as_ref(), now), "until": value(e.until.as_ref(), now),
        "void_because": none_if_empty(e.void_because.clone()), "review_due": e.review_due,
    })
}

pub(in crate::cli) fn decision_table(decisions: &[v1::Decision]) -> Page {
    let rows = decisions.iter().map(|d| {
        vec![d.result.clone(), d.action.clone(), d.resource.clone(), d.principal.clone(), d.rules.join(", ")]
    });
    columns(&["RESULT", "ACTION", "RESOURCE", "PRINCIPAL", "RULES"], rows)
}

pub(in crate::cli) fn decision_value(d: &v1::Decision) -> Value {
    json!({
        "principal": d.principal, "action": d.action, "resource": d.resource, "result": d.result,
        "rules": d.rules,
    })
}
