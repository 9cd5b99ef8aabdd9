//! Implements `leasehold dataset`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    client::CallKind,
    confirm::{NOTHING_CHANGED, confirm, would_end},
    output::{TableCell, fields, note, print, print_line},
    parse, render,
    revoke::EndingArgs,
    wait_durable::wait_durable,
};
use crate::{
    name::{PrincipalKind, ResourceName},
    proto::v1,
};

/// Recalls datasets, so that no present or future job can read them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold dataset recall acme/tickets@v3 --dry-run --reason \"DP-88\"
  leasehold dataset unrecall acme/tickets@v3 --reason \"recalled by mistake\"")]
pub struct DatasetArgs {
    #[command(subcommand)]
    command: DatasetCommand,
}

#[derive(Debug, Subcommand)]
enum DatasetCommand {
    /// Ends all access to a dataset permanently, and closes the jobs that read it.
    #[command(after_help = "\
Every lease on the dataset ends, every job that reads it is closed as revoked, and no job can read
it until the platform cancels the recall. The checkpoints of those jobs are quarantined, as `job
show` says. The answer lists who may have copies. No command can take copies back.

Examples:
  leasehold dataset recall acme/tickets@v3 --dry-run --reason \"DP-88\"
  leasehold dataset recall acme/tickets --reason \"DP-88\"       all versions
  leasehold verify-clean dataset:acme/tickets")]
    Recall(RecallArgs),
    /// Cancels a recall (only for operators of the platform). Ended access does not come back.
    #[command(after_help = "\
Examples:
  leasehold dataset unrecall acme/tickets@v3 --reason \"recalled by mistake\"")]
    Unrecall {
        /// The name of the dataset, as in the recall
        #[arg(value_name = "NAME", value_parser = parse::dataset)]
        name: ResourceName,
        /// Why, for auditors
        #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
        reason: String,
    },
}

#[derive(Debug, Args)]
struct RecallArgs {
    /// A dataset, such as acme/tickets@v3. Without a version: all versions, also future ones
    #[arg(value_name = "NAME", value_parser = parse::dataset)]
    name: ResourceName,
    /// Why, for the people who lose access and for auditors
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
    #[command(flatten)]
    large: EndingArgs,
}

impl DatasetArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            DatasetCommand::Recall(args) => recall(args, session).await,
            DatasetCommand::Unrecall { name, reason } => unrecall(&name, reason, session).await,
        }
    }
}

async fn recall(args: RecallArgs, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Operator])?;
    let name = args.name.to_string();
    let ask = async |dry_run: bool| {
        let request = v1::RecallDatasetRequest {
            name: name.clone(),
            reason: args.reason.clone(),
            dry_run,
            ahead: args.large.ahead,
        };
        let kind = CallKind::of_dry_run(dry_run);
        client.ask(kind, request, async |r| client.operator().recall_dataset(r).await).await
    };
    let mut answer = ask(true).await?;
    if !args.large.dry_run {
        let ends = would_end(answer.ending.as_ref(), answer.jobs_closed_total);
        confirm(&name, &ends, args.large.confirmed())?;
        answer = ask(false).await?;
    }
    let mut ending = answer.ending.clone().unwrap_or_default();
    let recorded = wait_durable(&client, &mut ending, args.large.wait()).await;
    if session.for_programs() {
        session.print_value(&recall_value(&name, args.large.dry_run, &answer, &ending))?;
    } else {
        let holders =
            answer.holders.iter().map(|h| format!("{} on {} in {}", h.spiffe_id, h.instance, h.job));
        let outputs = answer.outputs.iter().map(|o| format!("{}/{}", o.line, o.job));
        let (what, leases, jobs) = match args.large.dry_run {
            true => ("would recall", "leases that would end", "jobs it would close"),
            false => ("recalled", "leases ended", "jobs closed"),
        };
        let durable = match (args.large.dry_run, ending.durable) {
            (true, _) => "",
            (false, true) => "yes",
            (false, false) => "not yet known",
        };
        print(&fields([
            (what, TableCell::from(name.as_str())),
            (leases, ending.behind.to_string().into()),
            (jobs, answer.jobs_closed_total.to_string().into()),
            ("", TableCell::list(&answer.jobs_closed)),
            ("may have copies", answer.holders_total.to_string().into()),
            ("", TableCell::list(holders)),
            ("outputs in quarantine", answer.outputs_total.to_string().into()),
            ("", TableCell::list(outputs)),
            ("on disk", durable.into()),
        ]))?;
        answer.notes.iter().for_each(|line| note(line));
        if args.large.dry_run {
            note(NOTHING_CHANGED);
        }
    }
    recorded.map(|()| Exit::Ok)
}

fn recall_value(name: &str, dry_run: bool, answer: &v1::RecallDatasetResponse, ending: &v1::Ending) -> Value {
    let holder = |h: &v1::Holder| json!({ "spiffe_id": h.spiffe_id, "job": h.job, "attempt": h.attempt, "instance": h.instance });
    let output = |o: &v1::Output| json!({ "line": o.line, "job": o.job });
    json!({
        "name": name, "dry_run": dry_run, "ending": render::ending_value(ending),
        "jobs_closed": answer.jobs_closed, "jobs_closed_total": answer.jobs_closed_total,
        "holders": answer.holders.iter().map(holder).collect::<Vec<_>>(), "holders_total": answer.holders_total,
        "outputs": answer.outputs.iter().map(output).collect::<Vec<_>>(), "outputs_total": answer.outputs_total,
        "notes": answer.notes,
    })
}

async fn unrecall(name: &ResourceName, reason: String, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Operator])?;
    let request = v1::UnrecallDatasetRequest { name: name.to_string(), reason };
    let answer =
        client.ask(CallKind::Changes, request, async |r| client.operator().unrecall_dataset(r).await).await?;
    if session.for_programs() {
        let now = session.now().wall;
        session
            .print_value(&json!({ "lifted": answer.lifted.as_ref().map(|l| render::lock_value(l, now)) }))?;
    } else {
        print_line(&format!("{name} is no longer recalled"))?;
        note("The jobs that the recall closed stay closed. Policy decides about new jobs again.");
    }
    Ok(Exit::Ok)
}
