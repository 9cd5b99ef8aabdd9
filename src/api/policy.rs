//! The calls of `OperatorService` about policy: reads the requests and writes the answers.

use std::sync::Arc;

use super::{
    fields::{page_size, read_duration, read_name, read_optional_name, read_required_reason, read_text},
    messages,
    response::fit_page,
};
use crate::{
    broker::{
        Broker, Caller, ChangeClosing, ChangeStep, ClosedChange, DecideBy, DecidedAgain, EntryThatCan,
        Explained, GateToApprove, PolicyOrder, PolicyOrigin, PolicyQuestion, PolicyReply, RecordedDecision,
        RuleChange, WaitingChange, WantedPolicy, WhoCanPage, WhoCanQuestion,
    },
    ledger, limits,
    name::{AttemptNumber, Digest, Method, SpiffePattern, TenantName},
    policy::{AskedAct, PolicyBundle, PolicyText, Relation},
    proto::{convert::timestamp, v1},
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
        job: read_optional_name("job", &q.job)?,
    };
    if question.job.is_some() && !(q.purpose.is_empty() && q.method.is_empty() && q.tenant.is_empty()) {
        let text = "`purpose`, `method` and `tenant` come from the job if `job` is set: leave them empty, or leave `job` out";
        return Err(Refusal::new(Reason::FieldInvalid, text).with("field", "job"));
    }
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
        approvals_missing: 0,
    }
}

/// Writes a change that waits for people.
pub(super) fn pending(broker: &Broker, waiting: WaitingChange) -> v1::PendingChange {
    let gates = waiting.gates.into_iter();
    let gates =
        gates.map(|(to_approve, missing)| v1::PolicyGate { approvals_missing: missing, ..gate(to_approve) });
    let now = broker.clock().now();
    let proposed = waiting.proposed.as_ref();
    v1::PendingChange {
        call: proposed.map(|change| change.rpc.as_str().to_owned()).unwrap_or_default(),
        from: proposed.map(|change| change.from.to_string()).unwrap_or_default(),
        to: proposed.map(|change| change.to.to_string()).unwrap_or_default(),
        proposed_by: proposed.map(|change| change.by.to_string()).unwrap_or_default(),
        reason: proposed.map(|change| change.reason.clone()).unwrap_or_default(),
        until: proposed.map(|change| timestamp(now.wall_at(change.until))),
        gates: gates.collect(),
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
    // If not all entries fit, the page ends after the last entry that fits.
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

/// Shows the recorded decisions of a job, and decides each of them again. For this, it may read kept rules from disk.
pub(super) async fn explain_job(
    broker: Arc<Broker>,
    caller: Caller,
    q: v1::ExplainJobRequest,
) -> Result<v1::ExplainJobResponse, Refusal> {
    let what = match (q.job.as_str(), q.lease.as_str()) {
        (job, "") => Explained::Job(read_name("job", job)?),
        ("", lease) => Explained::Lease(read_name("lease", lease)?),
        _ => {
            return Err(Refusal::new(Reason::FieldInvalid, "`job` and `lease` are both set: set one")
                .with("field", "lease"));
        }
    };
    let by = if q.replay { DecideBy::Then } else { DecideBy::Now };
    let explanation = broker.policies.recorded_decisions(&caller, what).await?;
    let rules = broker.rules.in_force();
    let catalog = broker.policies.catalog_seen_by(&caller, &rules);
    let sees_catalog = broker.policies.sees_catalog(&caller);
    let decided = tokio::task::spawn_blocking(move || {
        let again = broker.policies.decide_again(&explanation, by);
        (explanation, again)
    });
    let (explanation, again) =
        decided.await.map_err(|_| Refusal::new(Reason::Internal, "the decisions could not be repeated"))?;
    let shown = explanation.decisions.iter().zip(again).map(|(d, again)| {
        let mut shown = recorded(d, again);
        if !sees_catalog {
            // The digest of the catalog changes with each tenant's file, so it would show changes by other tenants.
            shown.catalog.clear();
        }
        shown
    });
    let decisions = fit_page(shown);
    Ok(v1::ExplainJobResponse {
        job: explanation.job.id.to_string(),
        policy: rules.engine.digest().to_string(),
        catalog: catalog.to_string(),
        whole: explanation.is_whole && decisions.len() == explanation.decisions.len(),
        decisions,
        from_index: explanation.from,
    })
}

fn recorded(d: &RecordedDecision, again: DecidedAgain) -> v1::RecordedDecision {
    let (outcome, answer, why) = match again {
        DecidedAgain::Same(answer) => (v1::DecidedAgain::Same, Some(answer), String::new()),
        DecidedAgain::Differs(answer) => {
            let why = answer.why.clone();
            (v1::DecidedAgain::Differs, Some(answer), why)
        }
        DecidedAgain::Not(why) => (v1::DecidedAgain::NotPossible, None, why),
    };
    let risk_again = answer.as_ref().map(|a| messages::risk(&a.risk));
    let (result_again, rules_again, approved) =
        answer.map(|a| (a.result.to_owned(), a.rules, a.approved)).unwrap_or_default();
    let ledger::RiskRecord { score, reasons } = d.decision.risk.clone();
    v1::RecordedDecision {
        record: d.kind.clone(),
        index: d.index,
        time: Some(timestamp(d.at)),
        times: d.times,
        attempt: d.attempt.map_or(0, AttemptNumber::value),
        lease: d.lease.map(|id| id.to_string()).unwrap_or_default(),
        member: d.member.as_ref().map(ToString::to_string).unwrap_or_default(),
        result: d.decision.result.clone(),
        rules: d.decision.rules.clone(),
        policy: d.decision.policy.to_string(),
        catalog: d.decision.catalog.to_string(),
        again: outcome.into(),
        result_again,
        rules_again,
        why,
        approved,
        risk: Some(v1::Risk { score, reasons }),
        risk_again,
    }
}

/// The word for the policy before the last change.
const PREVIOUS: &str = "previous";

/// Changes the policy, or shows what a change would do; or closes a change that was proposed.
pub(super) async fn apply(
    broker: Arc<Broker>,
    caller: Caller,
    q: v1::ApplyPolicyRequest,
) -> Result<v1::ApplyPolicyResponse, Refusal> {
    let decision = v1::ChangeDecision::try_from(q.decision).map_err(|_| {
        Refusal::new(Reason::FieldInvalid, "`decision` is not known").with("field", "decision")
    })?;
    if decision != v1::ChangeDecision::Unspecified && matches!(q.kept.as_str(), "" | PREVIOUS) {
        return Err(Refusal::new(Reason::FieldMissing, "`kept` must name the change that was proposed")
            .with("field", "kept")
            .fix("name it by its digest, as leasehold policy history shows it"));
    }
    let step = match decision {
        v1::ChangeDecision::Unspecified => ChangeStep::Ask,
        v1::ChangeDecision::Approve => ChangeStep::Approve,
        v1::ChangeDecision::Reject => return close(broker, caller, q, ChangeClosing::Reject).await,
        v1::ChangeDecision::Withdraw => return close(broker, caller, q, ChangeClosing::Withdraw).await,
    };
    apply_as(broker, caller, q, step).await
}

/// Rejects or withdraws a change that was proposed.
async fn close(
    broker: Arc<Broker>,
    caller: Caller,
    q: v1::ApplyPolicyRequest,
    closing: ChangeClosing,
) -> Result<v1::ApplyPolicyResponse, Refusal> {
    if !q.policies.is_empty() || !q.cases.is_empty() {
        return Err(Refusal::new(Reason::FieldInvalid, "`kept` and files are both set: set one")
            .with("field", "kept"));
    }
    let to: Digest = read_name("kept", &q.kept)?;
    let reason = read_required_reason("reason", &q.reason)?;
    let closer = broker.clone();
    let closed = tokio::task::spawn_blocking(move || {
        closer.rules.close_change(&caller, to, closing, &reason, q.dry_run)
    });
    let closed =
        closed.await.map_err(|_| Refusal::new(Reason::Internal, "the change could not be closed"))??;
    let waits = pending(&broker, closed);
    let (before, after) = (waits.from.clone(), waits.to.clone());
    Ok(v1::ApplyPolicyResponse { before, after, waits: Some(waits), ..Default::default() })
}

async fn apply_as(
    broker: Arc<Broker>,
    caller: Caller,
    q: v1::ApplyPolicyRequest,
    step: ChangeStep,
) -> Result<v1::ApplyPolicyResponse, Refusal> {
    let text = |file: v1::PolicyFile| PolicyText { file: file.file, text: file.text };
    let (policies, cases) =
        (q.policies.into_iter().map(text).collect(), q.cases.into_iter().map(text).collect());
    let signatures = (!q.signatures.is_empty()).then_some(q.signatures);
    let bundle = PolicyBundle::of(policies, cases, signatures);
    let bundle = bundle.map_err(|faults| {
        let refusal = Refusal::new(Reason::FieldInvalid, "the files cannot be used as a policy");
        faults.into_iter().take(limits::MISTAKES_SHOWN_MAX).fold(refusal, |r, line| r.with("mistake", line))
    })?;
    let wanted = match q.kept.as_str() {
        "" => WantedPolicy::Bundle(bundle),
        _ if !bundle.policies.is_empty() || !bundle.cases.is_empty() => {
            return Err(Refusal::new(Reason::FieldInvalid, "`kept` and files are both set: set one")
                .with("field", "kept"));
        }
        PREVIOUS => WantedPolicy::Previous,
        digest => WantedPolicy::Kept(read_name("kept", digest)?),
    };
    let order = PolicyOrder {
        step,
        wanted,
        reason: read_required_reason("reason", &q.reason)?,
        dry_run: q.dry_run,
        in_force: read_optional_name("in_force", &q.in_force)?,
        ends_at_most: q.ends_at_most,
    };
    let applying = broker.clone();
    let done = tokio::task::spawn_blocking(move || applying.rules.apply_policy(&caller, &order)).await;
    let done = done.map_err(|_| Refusal::new(Reason::Internal, "the policy could not be applied"))??;
    let rule = |r: RuleChange| v1::RuleChange {
        id: r.id,
        before: r.before.unwrap_or_default(),
        after: r.after.unwrap_or_default(),
    };
    Ok(v1::ApplyPolicyResponse {
        before: done.before.to_string(),
        after: done.after.to_string(),
        rules: done.rules.into_iter().map(rule).collect(),
        ended: done.ended,
        jobs: done
            .jobs
            .into_iter()
            .map(|(job, change)| v1::JobChange { job: job.to_string(), change })
            .collect(),
        cases: u64::try_from(done.cases).unwrap_or(u64::MAX),
        failed: done.failed.into_iter().take(limits::MISTAKES_SHOWN_MAX).collect(),
        warnings: done.warnings.into_iter().take(limits::MISTAKES_SHOWN_MAX).collect(),
        applied: done.is_applied,
        waits: done.waits.map(|waiting| pending(&broker, waiting)),
    })
}

/// Lists the kept policies. Reads them from disk.
pub(super) async fn list(broker: Arc<Broker>, caller: Caller) -> Result<v1::ListPoliciesResponse, Refusal> {
    let listing = broker.clone();
    let listed = tokio::task::spawn_blocking(move || listing.rules.policy_history(&caller)).await;
    let history =
        listed.map_err(|_| Refusal::new(Reason::Internal, "the policies could not be listed"))??;
    let kept = history.kept.into_iter().map(|kept| v1::KeptPolicy {
        digest: kept.digest.to_string(),
        since: Some(timestamp(kept.since)),
        by: kept.by,
        reason: kept.reason,
        files: kept.files,
    });
    Ok(v1::ListPoliciesResponse {
        in_force: history.in_force.to_string(),
        source: match history.origin {
            PolicyOrigin::Files(dir) => dir.display().to_string(),
            PolicyOrigin::Applied => String::new(),
        },
        policies: kept.collect(),
        proposed: history.proposed.into_iter().map(|waiting| pending(&broker, waiting)).collect(),
        closed: history.closed.into_iter().map(closed_change).collect(),
    })
}

fn closed_change(change: ClosedChange) -> v1::ClosedChange {
    v1::ClosedChange {
        call: change.rpc.as_str().to_owned(),
        from: change.from.to_string(),
        to: change.to.to_string(),
        proposed_by: change.proposed_by.to_string(),
        proposed_because: change.proposed_because,
        outcome: change.outcome.as_str().to_owned(),
        by: change.by.to_string(),
        reason: change.reason,
        at: Some(timestamp(change.at)),
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
        Refusal::new(Reason::FieldInvalid, format!("`method` is not one of {}", known.join(", ")))
            .with("field", "method")
    })
}

fn read_relations(words: &[String]) -> Result<Vec<Relation>, Refusal> {
    if words.len() > Relation::ALL.len() {
        return Err(Refusal::new(
            Reason::FieldInvalid,
            "`relations` has more words than there are relations",
        )
        .with("field", "relations"));
    }
    let read = |word: &String| {
        Relation::parse(word).ok_or_else(|| {
            let known: Vec<_> = Relation::ALL.iter().map(|r| r.as_str()).collect();
            Refusal::new(
                Reason::FieldInvalid,
                format!("`relations` has a word that is not one of {}", known.join(", ")),
            )
            .with("field", "relations")
        })
    };
    words.iter().map(read).collect()
}
