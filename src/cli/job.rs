//! Implements `leasehold job`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::{
    Client, Exit, Failure, Session,
    client::{CallKind, Retries},
    ids::JobRef,
    job_begin::{BeginArgs, begin},
    job_create::{CreateArgs, check, create},
    job_list::JobListArgs,
    output::{note, print, print_line},
    parse, render, timestamp,
    wait_durable::{Wait, wait_durable},
};
use crate::{
    limits::DRAIN_GRACE_MAX,
    name::{JobId, PrincipalKind},
    proto::{convert::duration, v1},
};

/// Creates, lists, shows and ends tuning jobs.
#[derive(Debug, Args)]
#[command(after_help = "\
A job is described in a file. deploy/slurm/job.toml has more keys than this one:
  name         = \"support-lora\"
  purpose      = \"support-tuning\"          # a purpose that every dataset allows
  max_duration = \"8h\"                      # all access ends after this time at the latest
  [[read]]
  resource = \"dataset:acme/tickets@v3\"
  [[write]]
  resource = \"checkpoint:acme/support-lora\"

Examples:
  leasehold job check job.toml
  JOB=$(leasehold job create --spec job.toml --wait)
  leasehold job show $JOB --watch")]
pub struct JobArgs {
    #[command(subcommand)]
    command: JobCommand,
}

#[derive(Debug, Subcommand)]
enum JobCommand {
    /// Creates a job and prints its id. Exits with 3 if people must approve it first.
    #[command(after_help = "\
Examples:
  leasehold job create --spec job.toml
  JOB=$(leasehold job create --spec job.toml --wait) && sbatch --comment=leasehold:$JOB train.sbatch
  leasehold job create --spec job.toml --idempotency-key \"$CI_PIPELINE_ID\" -o json | jq -r .job.id")]
    Create(CreateArgs),
    /// Says whether a job would be allowed, and who must approve it. Creates nothing.
    #[command(after_help = "\
Examples:
  leasehold job check job.toml
  leasehold job check job.toml -o json | jq .decisions")]
    Check {
        /// The job file, in TOML or JSON
        #[arg(value_name = "SPEC")]
        spec: PathBuf,
        /// For a job with a sweep: the value of a free parameter, instead of the value in the file
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse::assignment)]
        set: Vec<(String, String)>,
    },
    /// Lists jobs, the newest first.
    #[command(after_help = "\
Examples:
  leasehold job list --state running,failed --dataset acme/tickets --since 24h
  leasehold job list --open --watch
  leasehold job list --open --ids | xargs -n1 leasehold job show")]
    List(JobListArgs),
    /// Shows one job with its attempts and members.
    #[command(after_help = "\
Examples:
  leasehold job show j-…
  leasehold job show j-… --watch")]
    Show {
        /// The id of the job, or its beginning, as `job list` shows it
        #[arg(value_name = "ID")]
        job: JobRef,
        /// Print each change until the job is closed; exit with 4 if it did not complete
        #[arg(long, short)]
        watch: bool,
    },
    /// Begins an attempt of a job, for members that run elsewhere.
    #[command(after_help = "\
An attempt is one run of a job. After a requeue, the next attempt begins. The ticket is a secret: a
process can join with it if several jobs share the identity.

Examples:
  leasehold job begin j-… --attempt-key \"$RUN\" --ticket-to ticket
  leasehold job begin j-… --attempt-key \"$RUN\" --member spiffe://k8s.acme.example/ns/ml/job/4be1c0de")]
    Begin(BeginArgs),
    /// Closes a job and ends all of its access.
    #[command(after_help = "\
Examples:
  leasehold job close j-…
  leasehold job close j-… --outcome failed --reason \"node down\"")]
    Close {
        /// The id of the job, or its beginning, as `job list` shows it
        #[arg(value_name = "ID")]
        job: JobRef,
        /// The outcome to record: completed, failed, interrupted or cancelled
        #[arg(
            long,
            value_enum,
            value_name = "OUTCOME",
            default_value = "cancelled",
            hide_possible_values = true
        )]
        outcome: Closing,
        /// Why, for people who read the record later
        #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
        reason: Option<String>,
        /// Do not wait until the record is on disk
        #[arg(long)]
        no_wait: bool,
    },
    /// Lets an attempt save its work and finish: reading ends soon, writing after a grace time.
    #[command(after_help = "\
Examples:
  leasehold job drain j-…
  leasehold job drain j-… --grace 90s --reason \"maintenance at 6\"")]
    Drain {
        /// The id of the job, or its beginning, as `job list` shows it
        #[arg(value_name = "ID")]
        job: JobRef,
        /// The number of the attempt [default: the last one]
        #[arg(long, value_name = "N")]
        attempt: Option<u64>,
        /// The time for checkpoint writes, at most 2m [default: from the job]
        #[arg(long, value_name = "SPAN", value_parser = parse::span)]
        grace: Option<Duration>,
        /// Why, for people who read the record later
        #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
        reason: Option<String>,
    },
}

/// The outcomes with which a person can close a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Closing {
    Completed,
    Failed,
    Interrupted,
    Cancelled,
}

pub(super) const READERS: [PrincipalKind; 5] = [
    PrincipalKind::Operator,
    PrincipalKind::Launcher,
    PrincipalKind::Scheduler,
    PrincipalKind::Workload,
    PrincipalKind::Auditor,
];
/// The roles that can close a job. An operator can close any job of its tenant. The others can close only jobs that they
/// launched or that name them.
const ENDERS: [PrincipalKind; 4] =
    [PrincipalKind::Operator, PrincipalKind::Launcher, PrincipalKind::Workload, PrincipalKind::Scheduler];

impl JobArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            JobCommand::Create(args) => create(args, session).await,
            JobCommand::Check { spec, set } => check(&spec, &set, session).await,
            JobCommand::List(args) => args.run(session).await,
            JobCommand::Show { job, watch: true } => watch(&job, session).await,
            JobCommand::Show { job, watch: false } => {
                let client = session.client(&READERS)?;
                let job = get(&client, job.resolve(&client).await?).await?;
                let now = session.now().wall;
                if session.for_programs() {
                    session.print_value(&render::job_value(&job, now))?;
                } else {
                    print(&render::job_page(&job, now))?;
                }
                Ok(Exit::Ok)
            }
            JobCommand::Begin(args) => begin(args, session).await,
            JobCommand::Close { job, outcome, reason, no_wait } => {
                let wait = if no_wait { Wait::No } else { Wait::UntilDurable };
                close(&job, outcome, reason, wait, session).await
            }
            JobCommand::Drain { job, attempt, grace, reason } => {
                drain(&job, attempt, grace, reason, session).await
            }
        }
    }
}

pub(super) async fn get(client: &Client, job: JobId) -> Result<v1::Job, Failure> {
    let request = v1::GetJobRequest { job: job.to_string() };
    let answer = client.ask(CallKind::Reads, request, async |r| client.jobs().get_job(r).await).await?;
    answer.job.ok_or_else(incomplete)
}

/// Calls `seen` with each state of a job, until `seen` returns true or the job is closed.
pub(super) async fn follow(
    client: &Client,
    job: &str,
    mut seen: impl FnMut(v1::Job) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let request = v1::WatchJobRequest { job: job.to_owned() };
    let mut stream = client.follow(request, async |r| client.jobs().watch_job(r).await).await?;
    loop {
        let next = stream.message().await.map_err(|status| client.failure(&status, CallKind::Reads))?;
        let Some(answer) = next else { return Ok(()) };
        if seen(answer.job.ok_or_else(incomplete)?)? {
            return Ok(());
        }
    }
}

/// Shows each change of a job until it is closed, over restarts of the daemon.
async fn watch(job: &JobRef, session: &Session) -> Result<Exit, Failure> {
    let mut retries = Retries::new();
    let mut last = v1::Job::default();
    loop {
        let followed = async {
            let client = session.client(&READERS)?;
            let id = job.resolve(&client).await?.to_string();
            let followed = follow(&client, &id, |seen| {
                retries.answered();
                // After a restart, the daemon sends the present state again.
                if seen != last {
                    show_change(&seen, session)?;
                    last = seen;
                }
                Ok(last.state() == v1::JobState::Closed)
            });
            followed.await
        };
        let followed = followed.await;
        match (last.state(), last.outcome()) {
            (v1::JobState::Closed, v1::Outcome::Completed) => return Ok(Exit::Ok),
            (v1::JobState::Closed, _) => return Ok(Exit::Ended),
            _ => retries.wait(followed, session).await?,
        }
    }
}

fn show_change(job: &v1::Job, session: &Session) -> Result<(), Failure> {
    let now = session.now().wall;
    if session.for_programs() {
        return session.print_item(&render::job_value(job, now));
    }
    let attempt = job.attempts.last().map_or(0, |a| a.number);
    let (word, leases) = (render::job_state_or_outcome(job), job.live_leases);
    let row = format!("{now}  {word:<18}attempt {attempt}  {leases} live leases  {}", job.detail);
    print_line(row.trim_end())
}

async fn close(
    job: &JobRef,
    outcome: Closing,
    reason: Option<String>,
    wait: Wait,
    session: &Session,
) -> Result<Exit, Failure> {
    let client = session.client(&ENDERS)?;
    let job = job.resolve(&client).await?;
    let outcome = match outcome {
        Closing::Completed => v1::Outcome::Completed,
        Closing::Failed => v1::Outcome::Failed,
        Closing::Interrupted => v1::Outcome::Interrupted,
        Closing::Cancelled => v1::Outcome::Cancelled,
    };
    let request = v1::CloseJobRequest {
        job: job.to_string(),
        outcome: outcome.into(),
        reason: reason.unwrap_or_default(),
    };
    let answer = client.ask(CallKind::Changes, request, async |r| client.jobs().close_job(r).await).await?;
    let job = answer.job.ok_or_else(incomplete)?;
    let mut ending = answer.ending.unwrap_or_default();
    let recorded = wait_durable(&client, &mut ending, wait).await;
    if session.for_programs() {
        session.print_value(&json!({
            "job": render::job_value(&job, session.now().wall), "ending": render::ending_value(&ending),
        }))?;
    } else {
        let word = render::job_state_or_outcome(&job);
        print_line(&format!("{} {word}: {} live leases ended, seq {}", job.id, ending.behind, ending.seq))?;
        if job.outcome() != outcome {
            note("The job was closed before, and keeps its first outcome.");
        }
    }
    recorded.map(|()| Exit::Ok)
}

async fn drain(
    job: &JobRef,
    attempt: Option<u64>,
    grace: Option<Duration>,
    reason: Option<String>,
    session: &Session,
) -> Result<Exit, Failure> {
    if grace.is_some_and(|g| g > DRAIN_GRACE_MAX) {
        return Err(Failure::usage("a grace time is at most 2m").fix("write --grace 2m, or less"));
    }
    let client = session.client(&ENDERS)?;
    let job = job.resolve(&client).await?;
    let attempt = match attempt {
        Some(n) => n,
        None => get(&client, job).await?.attempts.last().map(|a| a.number).ok_or_else(|| {
            Failure::new(Exit::Failure, format!("job {job} has no attempt to drain"))
                .fix(format!("to end the job: leasehold job close {job}"))
        })?,
    };
    let request = v1::DrainAttemptRequest {
        job: job.to_string(),
        attempt,
        grace: grace.map(duration),
        reason: reason.unwrap_or_default(),
        ..Default::default()
    };
    let answer =
        client.ask(CallKind::Changes, request, async |r| client.jobs().drain_attempt(r).await).await?;
    let now = session.now().wall;
    let (reading, writing) = (answer.reading_ends.as_ref(), answer.writing_ends.as_ref());
    if session.for_programs() {
        session.print_value(&json!({
            "job": job.to_string(), "attempt": attempt, "reading_ends": timestamp::value(reading, now),
            "writing_ends": timestamp::value(writing, now),
        }))?;
    } else {
        let (reading, writing) = (timestamp::short(reading, now), timestamp::short(writing, now));
        print_line(&format!("{job} attempt {attempt} drains: reading ends {reading}, writing {writing}"))?;
    }
    Ok(Exit::Ok)
}

/// Makes a failure for an answer that lacks a part that every answer has.
pub(super) fn incomplete() -> Failure {
    Failure::new(Exit::Failure, "the answer of the daemon is incomplete")
        .fix("use the leasehold that came with the daemon; `leasehold whoami` shows its version")
}
