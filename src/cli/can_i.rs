//! Implements `leasehold can-i` and `leasehold who-can`.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    client::{CallKind, fetch_pages},
    ids::JobRef,
    output::{Page, TableCell, columns, fields, note, print, print_line},
    parse,
};
use crate::{
    name::PrincipalKind,
    proto::{convert::duration, v1},
    reason::Reason,
};

/// The kinds that may ask about themselves. Without `--as`, the command uses the first kind for which the context has an
/// identity.
const ASKERS: [PrincipalKind; 6] = [
    PrincipalKind::Workload,
    PrincipalKind::Launcher,
    PrincipalKind::Operator,
    PrincipalKind::Auditor,
    PrincipalKind::Scheduler,
    PrincipalKind::Verifier,
];

/// The kinds, in the order in which the command prefers them for a question about another identity. Operators and auditors are
/// first, because policy lets them ask about others.
const ASKERS_FOR_OTHERS: [PrincipalKind; 6] = [
    PrincipalKind::Operator,
    PrincipalKind::Auditor,
    PrincipalKind::Launcher,
    PrincipalKind::Workload,
    PrincipalKind::Scheduler,
    PrincipalKind::Verifier,
];

/// Says whether policy would let you do something, by which rules, and whom to ask. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
ACTION is what a job does (read_dataset, read_model, finetune, write_checkpoint, read_checkpoint,
delete_checkpoint), or a call of the API, such as CreateJob or Revoke (a wrong word prints all of
them). Exits with 0 if you may, with 2 if not, and with 3 if people must approve first.

Examples:
  leasehold can-i read_dataset dataset:acme/tickets@v3 --purpose support-tuning
  leasehold can-i finetune model:acme/base-7b@2026.10 --job j-…
  leasehold can-i Revoke acme --for spiffe://people.acme.example/u/ada")]
pub struct CanIArgs {
    /// What a job does, or a call of the API
    #[arg(value_name = "ACTION")]
    action: String,
    /// The dataset, model or checkpoint line. For a call: the tenant [default: your tenant]
    #[arg(value_name = "RESOURCE", default_value = "", hide_default_value = true)]
    resource: String,
    /// Ask about another identity in a tenant that you oversee. Asks as your operator or auditor, unless --as says another
    #[arg(long = "for", value_name = "SPIFFE_ID")]
    identity: Option<crate::name::SpiffeId>,
    /// The purpose of the job
    #[arg(long, value_name = "WORD", default_value = "", hide_default_value = true)]
    purpose: String,
    /// The method: full, lora, adapter, prompt-tuning or preference
    #[arg(long, value_name = "METHOD", default_value = "", hide_default_value = true)]
    method: String,
    /// The tenant of the job [default: the tenant of the identity]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// The lifetime of a credential [default: the daemon's setting]
    #[arg(long, value_name = "SPAN", value_parser = parse::span)]
    ttl: Option<Duration>,
    /// For a call about a job: the identity's part in it (launcher, start, join, member, self, verifier)
    #[arg(long, value_name = "WORD")]
    relation: Vec<String>,
    /// Ask about this job, with its purpose, method and approvals
    #[arg(long, value_name = "ID", conflicts_with_all = ["purpose", "method", "tenant"])]
    job: Option<JobRef>,
}

impl CanIArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let is_for_other = self.identity.is_some();
        let client = session.client(if is_for_other { &ASKERS_FOR_OTHERS } else { &ASKERS })?;
        let asked = format!("{} {}", self.action, self.resource);
        let job = match &self.job {
            Some(job) => job.resolve(&client).await?.to_string(),
            None => String::new(),
        };
        let request = v1::EvaluatePolicyRequest {
            action: self.action,
            resource: self.resource,
            identity: self.identity.map(|id| id.to_string()).unwrap_or_default(),
            purpose: self.purpose,
            method: self.method,
            tenant: self.tenant,
            ttl: self.ttl.map(duration),
            relations: self.relation,
            job,
        };
        let answer = client
            .ask(CallKind::Reads, request, async |r| client.operator().evaluate_policy(r).await)
            .await
            .map_err(|failure| match failure.reason {
                Some(Reason::PolicyDenied | Reason::KindNotAllowed) if is_for_other => failure
                    .fix("ask as an operator or an auditor of that tenant: --as operator or --as auditor"),
                _ => failure,
            })?;
        if session.for_programs() {
            session.print_value(&evaluation_value(&answer))?;
        } else {
            print(&evaluation_page(asked.trim_end(), &answer))?;
        }
        Ok(match answer.answer() {
            v1::PolicyAnswer::Allow => Exit::Ok,
            v1::PolicyAnswer::Wait => Exit::AwaitingApproval,
            v1::PolicyAnswer::Deny | v1::PolicyAnswer::Unspecified => Exit::Denied,
        })
    }
}

fn word(answer: v1::PolicyAnswer) -> &'static str {
    match answer {
        v1::PolicyAnswer::Allow => "yes",
        v1::PolicyAnswer::Wait => "needs approval",
        v1::PolicyAnswer::Deny | v1::PolicyAnswer::Unspecified => "no",
    }
}

fn evaluation_page(asked: &str, answer: &v1::EvaluatePolicyResponse) -> Page {
    let rules = answer.rules.iter().map(|rule| match rule.explanation.as_str() {
        "" => rule.id.clone(),
        explanation => format!("{}: {explanation}", rule.id),
    });
    let ask = answer.gates.iter().map(|gate| {
        let who = match gate.approvers.is_empty() {
            true => "no entry that you may see is in this group".to_owned(),
            false => gate.approvers.join(", "),
        };
        format!("{}: {} of group {} ({who})", gate.id, gate.approvals_needed, gate.approver_group)
    });
    Page::line(word(answer.answer())).then(&fields([
        ("asked", TableCell::from(asked)),
        ("for", answer.identity.as_str().into()),
        ("tenant", answer.tenant.as_str().into()),
        ("why", answer.text.as_str().into()),
        ("rules", TableCell::list(rules)),
        ("approvals", TableCell::list(ask)),
        ("fix", answer.fix.as_str().into()),
        ("owner", answer.owner.as_str().into()),
        ("policy", answer.policy.as_str().into()),
    ]))
}

fn evaluation_value(answer: &v1::EvaluatePolicyResponse) -> Value {
    let gates = answer.gates.iter().map(|gate| {
        json!({
            "id": gate.id, "explanation": gate.explanation, "approver_group": gate.approver_group,
            "approvals_needed": gate.approvals_needed, "approvers": gate.approvers,
        })
    });
    let rules = answer.rules.iter().map(|rule| json!({ "id": rule.id, "explanation": rule.explanation }));
    json!({
        "answer": answer_code(answer.answer()), "identity": answer.identity, "tenant": answer.tenant,
        "rules": rules.collect::<Vec<_>>(), "gates": gates.collect::<Vec<_>>(), "reason": answer.reason,
        "text": answer.text, "fix": answer.fix, "owner": answer.owner, "policy": answer.policy,
        "catalog": answer.catalog,
    })
}

fn answer_code(answer: v1::PolicyAnswer) -> &'static str {
    match answer {
        v1::PolicyAnswer::Allow => "allow",
        v1::PolicyAnswer::Wait => "wait",
        v1::PolicyAnswer::Deny | v1::PolicyAnswer::Unspecified => "deny",
    }
}

/// Lists who in the catalog may do something, and the approvals needed. For operators and auditors.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --purpose, each purpose that a dataset allows is tried.
You see the entries of your tenant, or of all tenants if you oversee all.

Examples:
  leasehold who-can finetune model:acme/base-7b@2026.10
  leasehold who-can read_dataset dataset:acme/tickets@v3 --purpose support-tuning
  leasehold who-can Revoke acme -o json | jq -r '.entries[].match'")]
pub struct WhoCanArgs {
    /// What a job does, or a call of the API
    #[arg(value_name = "ACTION")]
    action: String,
    /// The dataset, model or checkpoint line. For a call: the tenant [default: your tenant]
    #[arg(value_name = "RESOURCE", default_value = "", hide_default_value = true)]
    resource: String,
    /// Only for this purpose
    #[arg(long, value_name = "WORD", default_value = "", hide_default_value = true)]
    purpose: String,
    /// The method: full, lora, adapter, prompt-tuning or preference
    #[arg(long, value_name = "METHOD", default_value = "", hide_default_value = true)]
    method: String,
    /// For a call about a job: the entry's part in it (launcher, start, join, member, self, verifier)
    #[arg(long, value_name = "WORD")]
    relation: Vec<String>,
}

impl WhoCanArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator, PrincipalKind::Auditor])?;
        let mut notes = Vec::new();
        // The size of the daemon's catalog limits the number of pages.
        let (entries, _) = fetch_pages(usize::MAX, async |page_size, page_token| {
            let request = v1::WhoCanRequest {
                action: self.action.clone(),
                resource: self.resource.clone(),
                purpose: self.purpose.clone(),
                method: self.method.clone(),
                relations: self.relation.clone(),
                page_size,
                page_token,
            };
            let answer =
                client.ask(CallKind::Reads, request, async |r| client.operator().who_can(r).await).await?;
            notes = answer.notes;
            Ok((answer.entries, answer.next_page_token))
        })
        .await?;
        if session.for_programs() {
            let entries: Vec<_> = entries.iter().map(entry_value).collect();
            session.print_value(&json!({ "entries": entries, "notes": notes }))?;
            return Ok(Exit::Ok);
        }
        if entries.is_empty() {
            print_line("no entry of the catalog that you may see can do this")?;
        } else {
            let rows = entries.iter().map(|e| {
                let answer = match e.gates.is_empty() {
                    true => "yes".to_owned(),
                    false => format!("needs approval: {}", e.gates.join(", ")),
                };
                vec![e.r#match.clone(), e.kind.clone(), e.tenant.clone(), answer, e.purposes.join(", ")]
            });
            print(&columns(&["ENTRY", "KIND", "TENANT", "MAY", "PURPOSES"], rows))?;
        }
        for text in &notes {
            note(&format!("leasehold: note: {text}"));
        }
        Ok(Exit::Ok)
    }
}

fn entry_value(entry: &v1::WhoCanEntry) -> Value {
    json!({
        "match": entry.r#match, "kind": entry.kind, "tenant": entry.tenant,
        "answer": answer_code(entry.answer()), "rules": entry.rules, "gates": entry.gates,
        "purposes": entry.purposes,
    })
}
