//! Implements `leasehold policy diff`, `apply`, `approve`, `rollback` and `history`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Client, Exit, Failure, Session,
    client::CallKind,
    confirm::{Confirmed, NOTHING_CHANGED, confirm},
    failure::mistakes,
    output::{Page, TableCell, columns, fields, note, note_page, print, print_line},
    parse,
    policy_close::{closed_page, closed_value},
    text_diff::line_diff,
    timestamp,
};
use crate::{
    name::{Digest, PrincipalKind},
    policy::{PolicyBundle, PolicyText},
    proto::v1,
};

/// The word that means the policy before the last change.
const PREVIOUS: &str = "previous";

#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 0 if the rules are the same, and with 1 if they differ.

Examples:
  leasehold policy diff my/policy
  leasehold policy diff my/policy -o json | jq '.leases_that_end, .jobs'")]
pub(super) struct PolicyDiffArgs {
    /// The directory of .cedar files and cases
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The daemon must have policy.source = \"applied\" in its configuration. It checks the policy, runs its
cases and refuses it if one fails. Then it keeps and records the policy, puts it in force, and ends
access that the policy no longer allows. Before that, the command shows the changes, and asks if
leases end. If a gate needs approval, the command proposes the change, prints who may approve it,
and exits with 3.

Examples:
  leasehold policy apply my/policy --dry-run --reason \"CHG-1412\"
  leasehold policy apply my/policy --reason \"CHG-1412: untrusted data\"")]
pub(super) struct PolicyApplyArgs {
    /// The directory of .cedar files and cases
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold policy history
  leasehold policy rollback --reason \"CHG-1412 denied too much\"
  leasehold policy rollback sha256:… --reason \"back to October\"")]
pub(super) struct PolicyRollbackArgs {
    /// The digest of a kept policy [default: the policy before the last change]
    #[arg(value_name = "DIGEST")]
    digest: Option<Digest>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The command shows the change and asks before it approves. If enough people have approved, the
policy comes into force at once. Approving your own proposal is refused (exit 2). `policy history`
lists the proposals.

Examples:
  leasehold policy approve sha256:… --dry-run --reason \"a look\"
  leasehold policy approve sha256:… --reason \"reviewed, CHG-1412\"")]
pub(super) struct PolicyApproveArgs {
    /// The digest of a proposed policy
    #[arg(value_name = "DIGEST")]
    digest: Digest,
    #[command(flatten)]
    change: ChangeArgs,
}

/// The options of every change.
#[derive(Debug, Args)]
struct ChangeArgs {
    /// Why, for auditors
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask, even if leases end
    #[arg(long)]
    yes: bool,
}

impl PolicyDiffArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let request = v1::ApplyPolicyRequest {
            reason: "a difference".to_owned(),
            dry_run: true,
            ..of_directory(&self.dir)?
        };
        let client = session.client(&[PrincipalKind::Operator])?;
        let answer = send(&client, request).await?;
        show(&answer, session)?;
        Ok(if answer.rules.is_empty() { Exit::Ok } else { Exit::Failure })
    }
}

impl PolicyApplyArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        self.change.carry_out(of_directory(&self.dir)?, ChangePart::Proposer, session).await
    }
}

impl PolicyRollbackArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let kept = self.digest.map_or_else(|| PREVIOUS.to_owned(), |digest| digest.to_string());
        let request = v1::ApplyPolicyRequest { kept, ..Default::default() };
        self.change.carry_out(request, ChangePart::Proposer, session).await
    }
}

impl PolicyApproveArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let kept = self.digest.to_string();
        let decision = v1::ChangeDecision::Approve.into();
        let request = v1::ApplyPolicyRequest { kept, decision, ..Default::default() };
        self.change.carry_out(request, ChangePart::Approver, session).await
    }
}

/// Whether the caller makes a change, or approves the change of someone else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChangePart {
    Proposer,
    Approver,
}

impl ChangeArgs {
    /// Shows the change, asks if leases end, and lets the daemon make the change.
    async fn carry_out(
        self,
        request: v1::ApplyPolicyRequest,
        part: ChangePart,
        session: &Session,
    ) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        let request = v1::ApplyPolicyRequest { reason: self.reason.clone(), ..request };
        let would = send(&client, v1::ApplyPolicyRequest { dry_run: true, ..request.clone() }).await?;
        if self.dry_run {
            show(&would, session)?;
            if !session.for_programs() {
                note(NOTHING_CHANGED);
            }
            return Ok(if would.failed.is_empty() { Exit::Ok } else { Exit::Failure });
        }
        if part == ChangePart::Approver {
            let confirmed = Confirmed::of_option(self.yes);
            if confirmed == Confirmed::NotYet {
                note_page(&page(&would));
            }
            let ends = format!("you approve this change, which ends {} lease(s)", would.ended);
            confirm("approve", &ends, confirmed)?;
        } else if would.ended > 0 {
            let confirmed = Confirmed::of_option(self.yes);
            if confirmed == Confirmed::NotYet {
                note_page(&page(&would));
            }
            confirm(&would.ended.to_string(), &format!("{} lease(s) end at once", would.ended), confirmed)?;
        }
        let order = v1::ApplyPolicyRequest {
            in_force: would.before.clone(),
            ends_at_most: Some(would.ended),
            ..request
        };
        let done = send(&client, order).await?;
        show(&done, session)?;
        match &done.waits {
            None => Ok(Exit::Ok),
            Some(waits) => {
                note(&format!(
                    "Nothing was changed yet. To approve it, others run: leasehold policy approve {} --reason TEXT",
                    waits.to
                ));
                Ok(Exit::AwaitingApproval)
            }
        }
    }
}

pub(super) async fn send(
    client: &Client,
    request: v1::ApplyPolicyRequest,
) -> Result<v1::ApplyPolicyResponse, Failure> {
    let kind = CallKind::of_dry_run(request.dry_run);
    client.ask(kind, request, async |r| client.operator().apply_policy(r).await).await
}

/// Reads a policy directory. The daemon checks the content of the files.
fn of_directory(dir: &Path) -> Result<v1::ApplyPolicyRequest, Failure> {
    let bundle = PolicyBundle::read(dir).map_err(|lines| {
        let what = mistakes(&format!("the policy directory {}", dir.display()), lines.len());
        Failure { exit: Exit::Failure, ..Failure::of_problems(what, lines.into_iter()) }
    })?;
    if bundle.policies.is_empty() {
        return Err(Failure::usage(format!("{} has no .cedar file", dir.display()))
            .fix("without rules everything is denied: name the directory of the policies"));
    }
    let file = |t: PolicyText| v1::PolicyFile { file: t.file, text: t.text };
    Ok(v1::ApplyPolicyRequest {
        policies: bundle.policies.into_iter().map(file).collect(),
        cases: bundle.cases.into_iter().map(file).collect(),
        signatures: bundle.signatures.unwrap_or_default(),
        ..Default::default()
    })
}

fn show(answer: &v1::ApplyPolicyResponse, session: &Session) -> Result<(), Failure> {
    match session.for_programs() {
        true => session.print_value(&value(answer)),
        false => {
            print(&page(answer))?;
            for warning in &answer.warnings {
                note(&format!("leasehold: warning: {warning}"));
            }
            Ok(())
        }
    }
}

fn page(answer: &v1::ApplyPolicyResponse) -> Page {
    let count = |is: fn(&v1::RuleChange) -> bool| answer.rules.iter().filter(|r| is(r)).count().to_string();
    let jobs = answer.jobs.iter().map(|job| format!("{}: {}", job.job, job.change));
    let applied = answer.applied;
    let about = fields([
        ("in force", TableCell::from(answer.before.as_str())),
        (if applied { "now" } else { "wanted" }, answer.after.as_str().into()),
        ("rules added", count(|r| r.before.is_empty()).into()),
        ("rules removed", count(|r| r.after.is_empty()).into()),
        ("rules changed", count(|r| !r.before.is_empty() && !r.after.is_empty()).into()),
        (if applied { "leases ended" } else { "leases that would end" }, answer.ended.to_string().into()),
        ("waiting jobs that change", TableCell::list(jobs)),
        ("cases", answer.cases.to_string().into()),
        ("cases that fail", TableCell::list(&answer.failed)),
    ]);
    let rules = answer.rules.iter().fold(Page::default(), |all, rule| {
        let what = match (rule.before.is_empty(), rule.after.is_empty()) {
            (true, _) => "added",
            (_, true) => "removed",
            _ => "changed",
        };
        let title = Page::line(&format!("{} ({what})", rule.id));
        all.then(&title).then(&Page::lines(line_diff(&rule.before, &rule.after)))
    });
    let all = match answer.rules.is_empty() {
        true => about,
        false => rules.below(&about),
    };
    answer.waits.iter().fold(all, |all, waits| all.below(&pending_page(waits)))
}

/// Shows who must approve a change.
pub(super) fn pending_page(waits: &v1::PendingChange) -> Page {
    let rows = waits.gates.iter().map(|gate| {
        let who = match gate.approvers.is_empty() {
            true => format!("no one in the group {}", gate.approver_group),
            false => gate.approvers.join(", "),
        };
        vec![gate.id.clone(), gate.approver_group.clone(), gate.approvals_missing.to_string(), who]
    });
    let gates = columns(&["WAITS FOR", "GROUP", "PEOPLE", "WHO MAY APPROVE"], rows);
    let Some(until) = &waits.until else { return gates };
    let about = fields([
        ("proposed by", TableCell::from(waits.proposed_by.as_str())),
        ("because", waits.reason.as_str().into()),
        ("void from", timestamp::whole(until).into()),
    ]);
    gates.below(&about)
}

/// Returns a change that waits, for programs.
pub(super) fn pending_value(waits: &v1::PendingChange) -> Value {
    let gates = waits.gates.iter().map(|gate| {
        json!({
            "id": gate.id, "approver_group": gate.approver_group, "approvals_missing": gate.approvals_missing,
            "approvers": gate.approvers,
        })
    });
    json!({
        "call": waits.call, "from": waits.from, "to": waits.to, "proposed_by": waits.proposed_by,
        "reason": waits.reason, "until": waits.until.as_ref().map(timestamp::whole),
        "gates": gates.collect::<Vec<_>>(),
    })
}

fn value(answer: &v1::ApplyPolicyResponse) -> Value {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let rules = answer
        .rules
        .iter()
        .map(|r| json!({ "id": r.id, "before": text(&r.before), "after": text(&r.after) }));
    let jobs = answer.jobs.iter().map(|j| json!({ "job": j.job, "change": j.change }));
    let leases = if answer.applied { "leases_ended" } else { "leases_that_end" };
    json!({
        "applied": answer.applied, "before": answer.before, "after": answer.after,
        "rules": rules.collect::<Vec<_>>(), leases: answer.ended, "jobs": jobs.collect::<Vec<_>>(),
        "cases": answer.cases, "failed": answer.failed, "warnings": answer.warnings,
        "waits": answer.waits.as_ref().map(pending_value),
    })
}

/// Runs `leasehold policy history`.
pub(super) async fn history(session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Operator, PrincipalKind::Auditor])?;
    let request = v1::ListPoliciesRequest {};
    let answer =
        client.ask(CallKind::Reads, request, async |r| client.operator().list_policies(r).await).await?;
    let since = |p: &v1::KeptPolicy| p.since.as_ref().map(timestamp::whole).unwrap_or_default();
    if session.for_programs() {
        let kept = answer.policies.iter().map(|p| {
            json!({
                "digest": p.digest, "in_force": p.digest == answer.in_force, "since": since(p), "by": p.by,
                "reason": p.reason, "files": p.files,
            })
        });
        session.print_value(&json!({
            "in_force": answer.in_force, "source": answer.source, "policies": kept.collect::<Vec<_>>(),
            "proposed": answer.proposed.iter().map(pending_value).collect::<Vec<_>>(),
            "closed": answer.closed.iter().map(closed_value).collect::<Vec<_>>(),
        }))?;
        return Ok(Exit::Ok);
    }
    let rows = answer.policies.iter().map(|p| {
        let mark = if p.digest == answer.in_force { "in force" } else { "" };
        vec![p.digest.clone(), mark.to_owned(), since(p), p.by.clone(), p.reason.clone()]
    });
    if answer.policies.is_empty() {
        print_line("no policy is kept yet")?;
    } else {
        print(&columns(&["POLICY", "", "SINCE", "BY", "REASON"], rows))?;
    }
    for waits in &answer.proposed {
        let title = Page::line(&format!("{} to {} was proposed", waits.call, waits.to));
        print(&pending_page(waits).below(&title))?;
    }
    for closed in &answer.closed {
        print(&closed_page(closed))?;
    }
    note(&match answer.source.as_str() {
        "" => "The policy is the one that was applied last.".to_owned(),
        dir => format!("The policy is read from files in {dir}."),
    });
    Ok(Exit::Ok)
}
