//! `leasehold job begin`.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    client::CallKind,
    ids::JobRef,
    output::{fields, note, print},
    parse, run,
};
use crate::{name::PrincipalKind, proto::v1};

/// Who begins attempts for others: a workload begins its own with `leasehold run`.
const STARTERS: [PrincipalKind; 2] = [PrincipalKind::Launcher, PrincipalKind::Scheduler];

/// What begins, and who may join it how.
#[derive(Debug, Args)]
pub(super) struct BeginArgs {
    /// The job: its id, or the beginning of it, as `job list` shows it.
    #[arg(value_name = "ID")]
    job: JobRef,
    /// The scheduler's key for this run. The same key is the same attempt.
    #[arg(long, value_name = "K", value_parser = run::key)]
    attempt_key: String,
    /// A SPIFFE ID, or a pattern, whose identities join this attempt without the ticket. Each must be covered by the job's
    /// `members.join` and belong to one job alone. Say it for each pod or node that the run is placed on.
    #[arg(long = "member", value_name = "ID", value_parser = parse::pattern)]
    members: Vec<String>,
    /// Write the ticket into this file, of mode 0600, for members that need it. The file must not exist.
    #[arg(long, value_name = "FILE")]
    ticket_to: Option<PathBuf>,
    /// End an attempt that is still draining, instead of being refused.
    #[arg(long)]
    supersede: bool,
}

pub(super) async fn begin(args: BeginArgs, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&STARTERS)?;
    let BeginArgs { job, attempt_key: key, members, ticket_to, supersede } = args;
    let job = job.whole(&client).await?;
    let request = v1::BeginAttemptRequest { job: job.to_string(), key, supersede, members };
    let answer =
        client.ask(CallKind::Changes, request, async |r| client.jobs().begin_attempt(r).await).await?;
    if let Some(path) = &ticket_to {
        if answer.ticket.is_empty() {
            return Err(Failure::new(
                Exit::Denied,
                "no ticket was given: it is for the launcher, and for those whom members.start names one by one",
            ));
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|mut f| writeln!(f, "{}", answer.ticket)).map_err(|e| {
            Failure::new(Exit::Failure, format!("the ticket cannot be written: {e}"))
                .with("file", path.display().to_string())
                .fix("the attempt has begun: say another --ticket-to with the same key")
        })?;
    }
    let number = answer.attempt.map(|a| a.number).unwrap_or_default();
    if session.for_programs() {
        session
            .print_value(&json!({ "job": job.to_string(), "attempt": number, "ticket_file": ticket_to }))?;
    } else {
        print(&fields([("job", job.to_string()), ("attempt", number.to_string())]))?;
        if let Some(path) = ticket_to {
            note(&format!(
                "The ticket is in {}: a process that has it, and an SVID that the job covers, may join.",
                path.display()
            ));
        }
    }
    Ok(Exit::Ok)
}
