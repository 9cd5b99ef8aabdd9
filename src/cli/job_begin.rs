//! Implements `leasehold job begin`.

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

/// The roles that begin attempts for other processes. A workload uses `leasehold run` to begin its attempt.
const STARTERS: [PrincipalKind; 2] = [PrincipalKind::Launcher, PrincipalKind::Scheduler];

/// The options that say which attempt begins, and who may join it.
#[derive(Debug, Args)]
pub(super) struct BeginArgs {
    /// The id of the job, or its beginning, as `job list` shows it
    #[arg(value_name = "ID")]
    job: JobRef,
    /// Your name for this run. The same key means the same attempt
    #[arg(long, value_name = "K", value_parser = run::key)]
    attempt_key: String,
    /// Let this SPIFFE ID or pattern join without the ticket, if members.join covers it. Repeatable. Such a member joins with
    /// `leasehold run --job ID --running` or `leasehold agent attach ID`
    #[arg(long = "member", value_name = "ID", value_parser = parse::pattern)]
    members: Vec<String>,
    /// Write the ticket to this new file (mode 0600), for members that need it
    #[arg(long, value_name = "FILE")]
    ticket_to: Option<PathBuf>,
    /// If an attempt is still draining, end it, and do not fail
    #[arg(long)]
    supersede: bool,
}

pub(super) async fn begin(args: BeginArgs, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&STARTERS)?;
    let BeginArgs { job, attempt_key: key, members, ticket_to, supersede } = args;
    let job = job.resolve(&client).await?;
    let request =
        v1::BeginAttemptRequest { job: job.to_string(), key, supersede, members, ..Default::default() };
    let answer =
        client.ask(CallKind::Changes, request, async |r| client.jobs().begin_attempt(r).await).await?;
    if let Some(path) = &ticket_to {
        if answer.ticket.is_empty() {
            return Err(Failure::new(
                Exit::Denied,
                "no ticket was given: only the launcher, and each identity that members.start of the job names in full, gets a ticket",
            ));
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|mut f| writeln!(f, "{}", answer.ticket)).map_err(|e| {
            Failure::new(Exit::Failure, format!("the ticket cannot be written: {e}"))
                .with("file", path.display().to_string())
                .fix("the attempt has begun: repeat the command with the same key and another --ticket-to")
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
                "The ticket is in {}. A process may join with it if members.join of the job covers its identity.",
                path.display()
            ));
        }
    }
    Ok(Exit::Ok)
}
