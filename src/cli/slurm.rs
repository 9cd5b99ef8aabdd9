//! Implements `leasehold slurm`. A prolog or an epilog never fails, because Slurm would then requeue the job or drain the node.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};

use super::{
    Client, Exit, Failure, Session,
    client::CallKind,
    job::incomplete,
    output::{Page, note, note_page, print_line},
    parse,
};
use crate::{
    limits::SLURM_BUDGET,
    name::PrincipalKind,
    proto::v1,
    reason::Reason,
    slurm::{
        Allocation, CallError, Delivery, NotedRun, Reporter, RunEvent, RunReport, Scheduler, SlurmEnvError,
        SlurmRun, Spool, SpoolError,
    },
};

/// Reports to the daemon what Slurm does with a job. Use it in the prologs and epilogs of slurm.conf.
#[derive(Debug, Args)]
#[command(after_help = "\
The comment of a Slurm job names its Leasehold job: `--comment=leasehold:JOB`. Slurm jobs without
one are ignored. All nodes of a run are one attempt, and a requeue is the next attempt.
deploy/slurm has the scripts and the lines for slurm.conf.

Examples:
  JOB=$(leasehold job create --spec job.toml --wait) && sbatch --comment=leasehold:$JOB train.sbatch
  leasehold slurm resend --spool /var/spool/leasehold")]
pub struct SlurmArgs {
    #[command(subcommand)]
    command: SlurmCommand,
}

#[derive(Debug, Subcommand)]
enum SlurmCommand {
    /// For PrologSlurmctld: begins the attempt of a run. Always exits with 0.
    #[command(after_help = "\
Examples:
  leasehold slurm prolog --spool /var/spool/leasehold --runs-as 'spiffe://hpc.example/slurm/{account}/{user}'")]
    Prolog {
        #[command(flatten)]
        to: SpoolArgs,
        /// The SPIFFE ID of a user's jobs, with {user}, {account}, {cluster}: a comment can name only that user's jobs
        #[arg(long, value_name = "TEMPLATE")]
        runs_as: String,
    },
    /// For EpilogSlurmctld: ends or drains the attempt of a run. Always exits with 0.
    #[command(after_help = "\
Examples:
  leasehold slurm epilog --spool /var/spool/leasehold")]
    Epilog {
        #[command(flatten)]
        to: SpoolArgs,
    },
    /// For the Epilog of a node: ends the members that are left on the node. Always exits with 0.
    #[command(after_help = "\
Examples:
  leasehold slurm node-epilog --spool /var/spool/leasehold")]
    NodeEpilog {
        #[command(flatten)]
        to: SpoolArgs,
    },
    /// Sends the reports that could not be sent before. Exits with 1 if any are left.
    #[command(after_help = "\
Examples:
  leasehold slurm resend --spool /var/spool/leasehold
  leasehold slurm resend --spool /var/spool/leasehold --every 5s")]
    Resend {
        /// The directory that keeps reports
        #[arg(long, value_name = "DIR")]
        spool: PathBuf,
        /// Do not exit; look for reports this often
        #[arg(long, value_name = "SPAN", value_parser = parse::span)]
        every: Option<Duration>,
    },
    /// Inside a Slurm job: prints the attempt key of the run.
    #[command(after_help = "\
Examples:
  leasehold run --job $JOB --attempt-key \"$(leasehold slurm key)\" --instance \"$SLURMD_NODENAME\" -- torchrun …")]
    Key,
}

#[derive(Debug, Args)]
struct SpoolArgs {
    /// The directory that keeps reports until the daemon has them: one for all head nodes, one on each node
    #[arg(long, value_name = "DIR")]
    spool: PathBuf,
    /// Give up after this time; the report is sent later
    #[arg(long, value_name = "SPAN", value_parser = parse::span, default_value = "2s")]
    timeout: Duration,
}

impl SlurmArgs {
    /// Whether Slurm would drain the node or requeue the job if this command failed.
    pub(super) fn never_fails(&self) -> bool {
        match self.command {
            SlurmCommand::Prolog { .. } | SlurmCommand::Epilog { .. } | SlurmCommand::NodeEpilog { .. } => {
                true
            }
            SlurmCommand::Resend { .. } | SlurmCommand::Key => false,
        }
    }

    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let var = |name: &str| std::env::var(name).ok();
        match self.command {
            SlurmCommand::Prolog { to, runs_as } => {
                print_and_succeed(prolog(Allocation::read(var), &to, &runs_as, session).await)
            }
            SlurmCommand::Epilog { to } => {
                print_and_succeed(epilog(Allocation::read(var), &to, session).await)
            }
            SlurmCommand::NodeEpilog { to } => {
                print_and_succeed(node_epilog(Allocation::read(var), &to, session).await)
            }
            SlurmCommand::Resend { spool, every } => resend(&spool, every, session).await,
            SlurmCommand::Key => {
                let run = SlurmRun::read(&var).map_err(wrong_environment)?;
                print_line(&run.key())?;
                Ok(Exit::Ok)
            }
        }
    }
}

/// Prints a failure and succeeds, because Slurm requeues the job if a prolog fails, and drains the node if an epilog fails.
fn print_and_succeed(done: Result<(), Failure>) -> Result<Exit, Failure> {
    if let Err(failure) = done {
        note_page(&failure.page());
    }
    Ok(Exit::Ok)
}

fn wrong_environment(error: SlurmEnvError) -> Failure {
    Failure::usage(error.to_string())
}

type ReadAllocation = Result<Option<Allocation>, SlurmEnvError>;

async fn prolog(
    read: ReadAllocation,
    to: &SpoolArgs,
    runs_as: &str,
    session: &Session,
) -> Result<(), Failure> {
    let Some(allocation) = read.map_err(wrong_environment)? else { return Ok(()) };
    let id = allocation.runs_as(runs_as).map_err(wrong_environment)?;
    let report = RunReport::began(&allocation, id, session.now().wall);
    let spool = open(to);
    if let Some(spool) = &spool {
        note_error(spool.note(allocation.run.slurm_job, &NotedRun::of(&allocation)));
    }
    deliver(spool.as_ref(), report, to.timeout, session).await
}

async fn epilog(read: ReadAllocation, to: &SpoolArgs, session: &Session) -> Result<(), Failure> {
    let Some(allocation) = read.map_err(wrong_environment)? else { return Ok(()) };
    let spool = open(to);
    let noted = spool.as_ref().and_then(|s| s.noted(allocation.run.slurm_job));
    let Some(report) = RunReport::ended(&allocation, noted.as_ref(), session.now().wall) else {
        return Err(Failure::new(
            Exit::Failure,
            format!(
                "{}: its prolog left no note in the spool, so it is not known which run to end",
                allocation.run
            ),
        )
        .fix(
            "use the same --spool in PrologSlurmctld; until then access ends when the members of the run end",
        ));
    };
    deliver(spool.as_ref(), report, to.timeout, session).await
}

async fn node_epilog(read: ReadAllocation, to: &SpoolArgs, session: &Session) -> Result<(), Failure> {
    let Some(allocation) = read.map_err(wrong_environment)? else { return Ok(()) };
    let node =
        allocation.node.clone().ok_or_else(|| wrong_environment(SlurmEnvError::Absent("SLURMD_NODENAME")))?;
    let report = RunReport::released(&allocation, &node, session.now().wall);
    deliver(open(to).as_ref(), report, to.timeout, session).await
}

async fn resend(dir: &Path, every: Option<Duration>, session: &Session) -> Result<Exit, Failure> {
    loop {
        let spool = Spool::open(dir, note).map_err(unusable)?;
        let sent = send_all(&spool, None, session).await;
        match (every, sent) {
            (None, Ok(true)) => return Ok(Exit::Ok),
            (None, Ok(false)) => {
                let left = spool.pending().map_or(0, |p| p.len());
                return Err(Failure::new(Exit::Failure, format!("{left} reports could not be sent"))
                    .saying("The reports stay in the spool."));
            }
            (None, Err(failure)) => return Err(failure),
            (Some(_), Err(failure)) => note_page(&failure.page()),
            (Some(_), Ok(_)) => {}
        }
        session.clock.sleep(every.unwrap_or(SLURM_BUDGET)).await;
    }
}

/// Writes a report to disk first, and then sends it with the other reports in the spool.
async fn deliver(
    spool: Option<&Spool>,
    report: RunReport,
    timeout: Duration,
    session: &Session,
) -> Result<(), Failure> {
    let kept = spool.and_then(|spool| note_error(spool.keep(report.clone())).map(|spooled| (spool, spooled)));
    match kept {
        Some((spool, own)) => {
            within(timeout, session, send_all(spool, Some(&own.report), session)).await??;
        }
        None => {
            let reporter = reporter(session)?;
            within(timeout, session, reporter.send_logged(&report)).await?;
        }
    }
    Ok(())
}

/// Limits the time of a call. A call that took too long may still have an effect. The report is then sent again later, and
/// changes nothing more.
async fn within<T>(
    timeout: Duration,
    session: &Session,
    call: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        answer = call => Ok(answer),
        () = session.clock.sleep(timeout) => Err(Failure::new(
            Exit::Failure,
            format!("the daemon did not answer within {} s", timeout.as_secs()),
        )
        .saying("Reports in the spool are sent later.")),
    }
}

fn open(to: &SpoolArgs) -> Option<Spool> {
    note_error(Spool::open(&to.spool, note))
}

/// Prints an error of the spool. The report is still sent.
fn note_error<T, E: fmt::Display>(done: Result<T, E>) -> Option<T> {
    done.map_err(|e| note(&format!("leasehold: {e}"))).ok()
}

fn unusable(error: SpoolError) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}

async fn send_all(spool: &Spool, own: Option<&RunReport>, session: &Session) -> Result<bool, Failure> {
    reporter(session)?.send_all(spool, own).await.map_err(unusable)
}

/// Makes a reporter. It connects at its first call.
fn reporter(session: &Session) -> Result<Reporter<Client>, Failure> {
    Ok(Reporter::new(session.client(&[PrincipalKind::Scheduler])?, session.clock.clone()))
}

impl Scheduler for Client {
    type Error = Failure;

    async fn get_job(&self, request: v1::GetJobRequest) -> Result<v1::Job, Failure> {
        let answer = self.ask(CallKind::Reads, request, async |r| self.jobs().get_job(r).await).await?;
        answer.job.ok_or_else(incomplete)
    }

    async fn begin_attempt(
        &self,
        request: v1::BeginAttemptRequest,
    ) -> Result<v1::BeginAttemptResponse, Failure> {
        self.ask(CallKind::Changes, request, async |r| self.jobs().begin_attempt(r).await).await
    }

    async fn drain_attempt(&self, request: v1::DrainAttemptRequest) -> Result<(), Failure> {
        self.ask(CallKind::Changes, request, async |r| self.jobs().drain_attempt(r).await).await.map(drop)
    }

    async fn end_attempt(&self, request: v1::EndAttemptRequest) -> Result<(), Failure> {
        self.ask(CallKind::Changes, request, async |r| self.jobs().end_attempt(r).await).await.map(drop)
    }

    fn log(&self, report: &RunReport, delivery: &Delivery<Failure>) {
        note_page(&log_page(report, delivery));
    }
}

impl CallError for Failure {
    fn reason(&self) -> Option<Reason> {
        self.reason
    }

    fn is_passing(&self) -> bool {
        Failure::is_passing(self)
    }

    fn text(&self) -> &str {
        &self.text
    }
}

/// Renders the text for syslog. A success is one line.
fn log_page(report: &RunReport, delivery: &Delivery<Failure>) -> Page {
    let run = &report.run;
    let what = match &report.event {
        RunEvent::Began { .. } => "its start".to_owned(),
        RunEvent::Ended { .. } => "its end".to_owned(),
        RunEvent::Released { node, .. } => format!("its end on {node}"),
    };
    let lines = |is: &str, failure: &Failure| {
        let why = failure.render();
        let why = why.trim_start_matches("leasehold: ");
        Page::messages(format!("leasehold: {run}: {what} {is}: {why}").lines())
    };
    match delivery {
        Delivery::Done(done) => Page::message(&format!("leasehold: {run}: {done}")),
        Delivery::Outdated(why) => Page::message(&format!("leasehold: {run}: {what} is not reported: {why}")),
        Delivery::Dropped(failure) => lines("is not reported", failure),
        Delivery::NotTheirs(refusal) => lines(
            "is not reported",
            &Failure::from(refusal.clone())
                .saying("No attempt was begun. The Slurm job runs without access."),
        ),
        Delivery::Waits(so_far) => Page::message(&format!(
            "leasehold: {run}: {so_far}; {what} is reported again later, because the report of its start may still come"
        )),
        Delivery::Kept(failure) => lines(
            "could not be reported",
            &failure
                .clone()
                .saying("The report stays in the spool: `leasehold slurm resend` sends it again."),
        ),
    }
}

#[cfg(test)]
#[path = "slurm_tests.rs"]
mod tests;
