//! The calls of `OperatorService` about policy: their requests read, their answers written.

use super::{
    fields::{page_size, read_duration, read_name, read_optional_name, read_text},
    response::fit_page,
};
use crate::{
    broker::{
        Broker, Caller, EntryThatCan, GateToApprove, PolicyQuestion, PolicyReply, WhoCanPage, WhoCanQuestion,
    },
    limits,
    name::{Method, SpiffePattern, TenantName},
    policy::{AskedAct, Relation},
    proto::v1,
    reason::{Reason, Refusal},
};

pub(super) fn evaluate(
    broker: &Broker,
    caller: &Caller,
    q: &v1::EvaluatePolicyRequest,
) -> Result<v1::EvaluatePolicyResponse, Refusal> {
    let question = PolicyQuestion {
        act: read_act(&q.action, &q.resource, caller.tenant())?,
        identity: read_optional_name("identity", &q.identity)?,
        purpose: read_text("purpose", &q.purpose, limits::TEXT_BYTES_MAX)?,
        method: read_method(&q.method)?,
        tenant: read_optional_name("tenant", &q.tenant)?,
        ttl: read_duration("ttl", q.ttl.as_ref(), limits::LEASE_TTL_MAX)?,
        relations: read_relations(&q.relations)?,
    };
    let found = broker.policies.evaluate(caller, &question)?;
    let mut answer = v1::EvaluatePolicyResponse {
        identity: found.identity.to_string(),
        tenant: found.tenant.to_string(),
        rules: found.rules.into_iter().map(|(id, explanation)| v1::PolicyRule { id, explanation }).collect(),
        owner: found.owner.unwrap_or_default(),
        policy: found.policy.to_string(),
        catalog: found.catalog.to_string(),
        ..v1::EvaluatePolicyResponse::default()
    };
    match found.reply {
        PolicyReply::Allow => answer.set_answer(v1::PolicyAnswer::Allow),
        PolicyReply::Wait(gates) => {
            answer.set_answer(v1::PolicyAnswer::Wait);
            answer.gates = gates.into_iter().map(gate).collect();
        }
        PolicyReply::Deny(refusal) => {
            answer.set_answer(v1::PolicyAnswer::Deny);
            refusal.reason.code().clone_into(&mut answer.reason);
            answer.fix = refusal.fact("fix").unwrap_or_default().to_owned();
            answer.text = match refusal.fact("rule") {
                Some(rule) => format!("{} ({rule})", refusal.text),
                None => refusal.text.into_owned(),
            };
        }
    }
    Ok(answer)
}

fn gate(to_approve: GateToApprove) -> v1::PolicyGate {
    let GateToApprove { gate, approvers } = to_approve;
    v1::PolicyGate {
        id: gate.id,
        explanation: gate.explanation,
        approver_group: gate.approver_group,
        approvals_needed: gate.approvals_needed,
        approvers,
    }
}

pub(super) fn who_can(
    broker: &Broker,
    caller: &Caller,
    q: &v1::WhoCanRequest,
) -> Result<v1::WhoCanResponse, Refusal> {
    let purpose = read_text("purpose", &q.purpose, limits::TEXT_BYTES_MAX)?;
    let question = WhoCanQuestion {
        act: read_act(&q.action, &q.resource, caller.tenant())?,
        purpose: (!purpose.is_empty()).then_some(purpose),
        method: read_method(&q.method)?,
        relations: read_relations(&q.relations)?,
    };
    let after: Option<SpiffePattern> = match q.page_token.as_str() {
        "" => None,
        token => Some(read_name("page_token", token)?),
    };
    let WhoCanPage { entries, next, notes } =
        broker.policies.who_can(caller, &question, after.as_ref(), page_size(q.page_size))?;
    let shown = fit_page(entries.iter().map(entry));
    // A page that would be too large ends after its last entry.
    let next = match entries.get(..shown.len()) {
        Some(fitting) if fitting.len() < entries.len() => {
            fitting.last().map(|last| last.entry.pattern.clone())
        }
        _ => next,
    };
    Ok(v1::WhoCanResponse {
        entries: shown,
        next_page_token: next.map(|pattern| pattern.to_string()).unwrap_or_default(),
        notes,
    })
}

fn entry(found: &EntryThatCan) -> v1::WhoCanEntry {
    let answer = if found.gates.is_empty() { v1::PolicyAnswer::Allow } else { v1::PolicyAnswer::Wait };
    v1::WhoCanEntry {
        r#match: found.entry.pattern.to_string(),
        kind: found.entry.kind.to_string(),
        tenant: found.entry.tenant.to_string(),
        answer: answer.into(),
        rules: found.rules.clone(),
        gates: found.gates.clone(),
        purposes: found.purposes.clone(),
    }
}

fn read_act(action: &str, resource: &str, own: &TenantName) -> Result<AskedAct, Refusal> {
    if action.is_empty() {
        return Err(Refusal::new(Reason::FieldMissing, "`action` is required").with("field", "action"));
    }
    AskedAct::parse(action, resource, Some(own))
        .map_err(|(field, why)| Refusal::new(Reason::FieldInvalid, why).with("field", field))
}

fn read_method(text: &str) -> Result<Option<Method>, Refusal> {
    if matches!(text, "" | "none") {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let known: Vec<_> = Method::ALL.iter().map(|m| m.as_str()).collect();
        Refusal::new(Reason::FieldInvalid, format!("`method` is none of {}", known.join(", ")))
            .with("field", "method")
    })
}

fn read_relations(words: &[String]) -> Result<Vec<Relation>, Refusal> {
    if words.len() > Relation::ALL.len() {
        return Err(Refusal::new(Reason::FieldInvalid, "`relations` has more words than there are")
            .with("field", "relations"));
    }
    let read = |word: &String| {
        Relation::parse(word).ok_or_else(|| {
            let known: Vec<_> = Relation::ALL.iter().map(|r| r.as_str()).collect();
            Refusal::new(Reason::FieldInvalid, format!("`relations` has a word beside {}", known.join(", ")))
                .with("field", "relations")
        })
    };
    words.iter().map(read).collect()
}
