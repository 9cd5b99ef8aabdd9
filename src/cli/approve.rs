//! Implements `leasehold approve`, `reject` and `unapprove`.

use std::io::{self, BufRead, IsTerminal};

use clap::Args;
use serde_json::json;

use super::{
    Client, Exit, Failure, Session,
    approval_request::{differences, request_page},
    client::CallKind,
    ids::JobRef,
    job::{get, incomplete},
    output::{note, note_page, print, print_line},
    parse, render,
    wait_durable::{Wait, wait_durable},
};
use crate::{name::PrincipalKind, proto::v1};

/// How many earlier jobs of the same name are searched for an approved job.
const EARLIER_JOBS_MAX: usize = 5;

/// Approves a job that waits at a gate of the policy. Shows the whole request first, and asks.
#[derive(Debug, Args)]
#[command(after_help = "\
An approval is bound to what was shown: if the job asks for anything else, the daemon refuses the
approval. You cannot approve a job that you launched, that you take part in, or that acts for you.

Examples:
  leasehold approvals --needs-me
  leasehold approve j-0abc --reason \"reviewed with legal, CHG-1412\"
  leasehold approve j-0abc --gate gate-sensitive-data --reason \"DPIA 7\" --yes")]
pub struct ApproveArgs {
    /// The id of the job, or its beginning, as `approvals` shows it
    #[arg(value_name = "JOB")]
    job: JobRef,
    /// Approve only at this gate [default: all gates that your groups may approve]
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<String>,
    /// Why, for the requester and for auditors
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
    /// Do not ask before approving
    #[arg(long, short)]
    yes: bool,
}

impl ApproveArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        let job = get(&client, self.job.resolve(&client).await?).await?;
        if !session.for_programs() {
            print(&request_page(&job))?;
            show_differences(&client, &job).await?;
        }
        if !self.yes && !confirm(session, &job).await? {
            note("Nothing was approved.");
            return Ok(Exit::Failure);
        }
        let request = v1::ApproveRequest {
            job: job.id.clone(),
            request_digest: job.request_digest.clone(),
            gates: self.gates,
            reason: self.reason,
        };
        let answer =
            client.ask(CallKind::Changes, request, async |r| client.approvals().approve(r).await).await?;
        let job = answer.job.ok_or_else(incomplete)?;
        if session.for_programs() {
            session.print_value(&json!({
                "job": render::job_value(&job, session.now().wall), "gates": answer.gates,
                "changed": answer.changed,
            }))?;
            return Ok(Exit::Ok);
        }
        let word = if answer.changed { "approved" } else { "was approved by you before" };
        print_line(&format!("{} {word}: {}", job.id, answer.gates.join(", ")))?;
        match (job.waiting_for.is_empty(), job.attempts.is_empty()) {
            (true, true) => note("No gate holds the job back. Its launcher can begin it."),
            (true, false) => note("No gate holds the job back. It has already begun."),
            (false, _) => note_page(&render::gate_table(&job.waiting_for)),
        }
        Ok(Exit::Ok)
    }
}

/// Shows the differences from the last job of this name that was approved and has begun.
async fn show_differences(client: &Client, job: &v1::Job) -> Result<(), Failure> {
    let Some(before) = last_approved(client, job).await else {
        note("No earlier job of this name was approved, so there is nothing to compare with.");
        return Ok(());
    };
    let differing = differences(&before, job);
    if differing.is_empty() {
        print_line(&format!("This job asks for the same as {}, which was approved before.", before.id))
    } else {
        print_line(&format!("This job differs from {}, which was approved before:", before.id))?;
        differing.iter().try_for_each(|line| print_line(&format!("  {line}")))
    }
}

/// Finds the newest other job of this name that was approved and has begun. Returns `None` if the caller may not list jobs.
async fn last_approved(client: &Client, job: &v1::Job) -> Option<v1::Job> {
    let request = v1::ListJobsRequest { tenant: job.tenant.clone(), page_size: 1_000, ..Default::default() };
    let listed =
        client.ask(CallKind::Reads, request, async |r| client.jobs().list_jobs(r).await).await.ok()?;
    let earlier = listed.jobs.into_iter().filter(|j| j.name == job.name && j.id != job.id);
    for candidate in earlier.filter(|j| !j.attempts.is_empty()).take(EARLIER_JOBS_MAX) {
        let Ok(id) = candidate.id.parse() else { continue };
        if let Ok(seen) = get(client, id).await
            && seen.gates.iter().any(|gate| !gate.approvals.is_empty())
        {
            return Some(seen);
        }
    }
    None
}

/// Asks the person at the terminal to confirm.
async fn confirm(session: &Session, job: &v1::Job) -> Result<bool, Failure> {
    if session.for_programs() || !io::stdin().is_terminal() {
        return Err(Failure::usage("this must be confirmed, but there is no terminal")
            .fix("look at the job (leasehold job show), then add --yes"));
    }
    note(&format!("Type y to approve {}:", job.id));
    let mut line = String::new();
    let read = tokio::task::spawn_blocking(move || io::stdin().lock().read_line(&mut line).map(|_| line));
    let line = read.await.ok().and_then(Result::ok).unwrap_or_default();
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Refuses a job that waits at a gate of the policy, and closes the job.
#[derive(Debug, Args)]
#[command(after_help = "\
You cannot reject a job that has begun. Withdraw your approval (`unapprove`), or revoke the job.

Examples:
  leasehold reject j-0abc --reason \"tickets before 2025 are not cleared for this\"")]
pub struct RejectArgs {
    /// The id of the job, or its beginning, as `approvals` shows it
    #[arg(value_name = "JOB")]
    job: JobRef,
    /// Why, for the requester and for auditors
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
}

impl RejectArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        let job = self.job.resolve(&client).await?;
        let request = v1::RejectRequest { job: job.to_string(), reason: self.reason };
        let answer =
            client.ask(CallKind::Changes, request, async |r| client.approvals().reject(r).await).await?;
        let job = answer.job.ok_or_else(incomplete)?;
        let mut ending = answer.ending.unwrap_or_default();
        let recorded = wait_durable(&client, &mut ending, Wait::UntilDurable).await;
        if session.for_programs() {
            session.print_value(&json!({
                "job": render::job_value(&job, session.now().wall), "ending": render::ending_value(&ending),
            }))?;
        } else {
            print_line(&format!("{} {}", job.id, render::job_state_or_outcome(&job)))?;
        }
        recorded.map(|()| Exit::Ok)
    }
}

/// Withdraws your approval of a job. Access that needs the approval ends at once.
#[derive(Debug, Args)]
#[command(after_help = "\
A job that has not begun waits for approval again. A job that has begun is closed as revoked, unless
enough others have approved it.

Examples:
  leasehold unapprove j-0abc --reason \"the consent was withdrawn\"")]
pub struct UnapproveArgs {
    /// The id of the job, or its beginning, as `job list` shows it
    #[arg(value_name = "JOB")]
    job: JobRef,
    /// Only at this gate [default: at each gate that you approved]
    #[arg(long, value_name = "GATE")]
    gate: Option<String>,
    /// Why, for the requester and for auditors
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
}

impl UnapproveArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        let job = self.job.resolve(&client).await?;
        let gate = self.gate.unwrap_or_default();
        let request = v1::WithdrawApprovalRequest { job: job.to_string(), gate, reason: self.reason };
        let answer = client
            .ask(CallKind::Changes, request, async |r| client.approvals().withdraw_approval(r).await)
            .await?;
        let job = answer.job.ok_or_else(incomplete)?;
        let mut ending = answer.ending.unwrap_or_default();
        let recorded = wait_durable(&client, &mut ending, Wait::UntilDurable).await;
        if session.for_programs() {
            session.print_value(&json!({
                "job": render::job_value(&job, session.now().wall), "gates": answer.gates,
                "ending": render::ending_value(&ending),
            }))?;
        } else if answer.gates.is_empty() {
            print_line(&format!("{}: you had not approved it, so nothing changed", job.id))?;
        } else {
            let (word, gates) = (render::job_state_or_outcome(&job), answer.gates.join(", "));
            print_line(&format!("{} {word}: {} live leases ended", job.id, ending.behind))?;
            note(&format!("Your approval no longer counts at {gates}."));
        }
        recorded.map(|()| Exit::Ok)
    }
}
