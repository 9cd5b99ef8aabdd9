//! `leasehold slurm`. Never fails a prolog or an epilog: Slurm would requeue the job or drain the node.

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
        Allocation, CallError, Delivery, NotAnAllocation, NotedRun, Reporter, RunEvent, RunReport, Scheduler,
        SlurmRun, Spool, SpoolError,
    },
};

/// Tells the daemon what Slurm does with a job: for the prologs and epilogs of slurm.conf.
///
/// A Slurm job belongs to a Leasehold job by its comment, `--comment=leasehold:JOB`; all others are passed by. The attempt
/// key is made of the cluster, the Slurm job and its restart count, so that all nodes of a run are one attempt and a requeue
/// is the next. Scripts, an sbatch example and what to write into slurm.conf are in deploy/slurm.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  JOB=$(leasehold job create --spec job.toml --wait) && sbatch --comment=leasehold:$JOB train.sbatch
  leasehold slurm resend --spool /var/spool/leasehold        what could not be told yet")]
pub struct SlurmArgs {
    #[command(subcommand)]
    command: SlurmCommand,
}

#[derive(Debug, Subcommand)]
enum SlurmCommand {
    /// PrologSlurmctld: begins the attempt of a run. Always exits with 0.
    #[command(after_help = "\
Examples:
  leasehold slurm prolog --spool /var/spool/leasehold --runs-as 'spiffe://hpc.acme.example/slurm/{account}/{user}'")]
    Prolog {
        #[command(flatten)]
        to: Telling,
        /// The SPIFFE ID that a user's jobs run as, with {user}, {account}, {cluster}: nobody else's job is begun by a comment.
        #[arg(long, value_name = "TEMPLATE")]
        runs_as: String,
    },
    /// EpilogSlurmctld: ends or drains the attempt of a run. Always exits with 0.
    #[command(after_help = "\
Examples:
  leasehold slurm epilog --spool /var/spool/leasehold")]
    Epilog {
        #[command(flatten)]
        to: Telling,
    },
    /// Epilog of a node: ends the members there that could not say so themselves. Always exits with 0.
    #[command(after_help = "\
Examples:
  leasehold slurm node-epilog")]
    NodeEpilog {
        #[command(flatten)]
        to: Telling,
    },
    /// Tells what was kept while the daemon was away. Exits with 1 where something still is.
    #[command(after_help = "\
Examples:
  leasehold slurm resend --spool /var/spool/leasehold
  leasehold slurm resend --spool /var/spool/leasehold --every 5s")]
    Resend {
        /// Where reports are kept.
        #[arg(long, value_name = "DIR")]
        spool: PathBuf,
        /// Go on, and look this often.
        #[arg(long, value_name = "SPAN", value_parser = parse::span)]
        every: Option<Duration>,
    },
    /// Prints the attempt key of the run that this is called in.
    #[command(after_help = "\
Examples:
  leasehold run --job $JOB --attempt-key \"$(leasehold slurm key)\" --instance \"$SLURMD_NODENAME\" -- torchrun …")]
    Key,
}

#[derive(Debug, Args)]
struct Telling {
    /// Where reports are kept until the daemon has them; one directory for all head nodes, one on each node.
    #[arg(long, value_name = "DIR")]
    spool: PathBuf,
    /// Give up after this; what is kept is told later.
    #[arg(long, value_name = "SPAN", value_parser = parse::span, default_value = "2s")]
    timeout: Duration,
}

impl SlurmArgs {
    /// Whether Slurm would drain the node, or requeue the job, if this command failed.
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
                passing_by(prolog(Allocation::read(var), &to, &runs_as, session).await)
            }
            SlurmCommand::Epilog { to } => passing_by(epilog(Allocation::read(var), &to, session).await),
            SlurmCommand::NodeEpilog { to } => {
                passing_by(node_epilog(Allocation::read(var), &to, session).await)
            }
            SlurmCommand::Resend { spool, every } => resend(&spool, every, session).await,
            SlurmCommand::Key => {
                let run = SlurmRun::read(&var).map_err(unreadable)?;
                print_line(&run.key().to_string())?;
                Ok(Exit::Ok)
            }
        }
    }
}

/// A prolog that fails has Slurm requeue the job, an epilog that fails has it drain the node: they say it, and succeed.
fn passing_by(done: Result<(), Failure>) -> Result<Exit, Failure> {
    if let Err(failure) = done {
        note_page(&failure.page());
    }
    Ok(Exit::Ok)
}

fn unreadable(error: NotAnAllocation) -> Failure {
    Failure::usage(error.to_string())
}

type ReadAllocation = Result<Option<Allocation>, NotAnAllocation>;

async fn prolog(read: ReadAllocation, to: &Telling, runs_as: &str, session: &Session) -> Result<(), Failure> {
    let Some(allocation) = read.map_err(unreadable)? else { return Ok(()) };
    let id = allocation.runs_as(runs_as).map_err(unreadable)?;
    let report = RunReport::began(&allocation, id, session.now().wall);
    let spool = open(to);
    if let Some(spool) = &spool {
        complain(spool.note(allocation.run.slurm_job, &NotedRun::of(&allocation)));
    }
    deliver(spool.as_ref(), report, to.timeout, session).await
}

async fn epilog(read: ReadAllocation, to: &Telling, session: &Session) -> Result<(), Failure> {
    let Some(allocation) = read.map_err(unreadable)? else { return Ok(()) };
    let spool = open(to);
    let noted = spool.as_ref().and_then(|s| s.noted(allocation.run.slurm_job));
    let Some(report) = RunReport::ended(&allocation, noted.as_ref(), session.now().wall) else {
        return Err(Failure::new(
            Exit::Failure,
            format!("{}: its prolog left no note of which run this was, so none is ended", allocation.run),
        )
        .fix("have PrologSlurmctld use the same --spool; access ends with its members meanwhile"));
    };
    deliver(spool.as_ref(), report, to.timeout, session).await
}

async fn node_epilog(read: ReadAllocation, to: &Telling, session: &Session) -> Result<(), Failure> {
    let Some(allocation) = read.map_err(unreadable)? else { return Ok(()) };
    let node =
        allocation.node.clone().ok_or_else(|| unreadable(NotAnAllocation::Absent("SLURMD_NODENAME")))?;
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
                return Err(Failure::new(Exit::Failure, format!("{left} reports are still to be told"))
                    .saying("They stay in the spool."));
            }
            (None, Err(failure)) => return Err(failure),
            (Some(_), Err(failure)) => note_page(&failure.page()),
            (Some(_), Ok(_)) => {}
        }
        session.clock.sleep(every.unwrap_or(SLURM_BUDGET)).await;
    }
}

/// Puts a report on disk first, then sends it with what else the spool has.
async fn deliver(
    spool: Option<&Spool>,
    report: RunReport,
    timeout: Duration,
    session: &Session,
) -> Result<(), Failure> {
    let kept = spool.and_then(|spool| complain(spool.keep(report.clone())).map(|spooled| (spool, spooled)));
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

/// A call that takes too long may still have an effect. The report is sent again, which changes nothing more.
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
        .saying("What the spool keeps is told later.")),
    }
}

fn open(to: &Telling) -> Option<Spool> {
    complain(Spool::open(&to.spool, note))
}

/// Notes an error of the spool. The report is sent without it.
fn complain<T, E: fmt::Display>(done: Result<T, E>) -> Option<T> {
    done.map_err(|e| note(&format!("leasehold: {e}"))).ok()
}

fn unusable(error: SpoolError) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}

async fn send_all(spool: &Spool, own: Option<&RunReport>, session: &Session) -> Result<bool, Failure> {
    reporter(session)?.send_all(spool, own).await.map_err(unusable)
}

/// Connects at the first call.
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

/// What syslog gets: one line if all went well.
fn log_page(report: &RunReport, delivery: &Delivery<Failure>) -> Page {
    let run = &report.run;
    let what = match &report.event {
        RunEvent::Began { .. } => "its beginning".to_owned(),
        RunEvent::Ended { .. } => "its end".to_owned(),
        RunEvent::Released { node, .. } => format!("its end on {node}"),
    };
    let lines = |is: &str, failure: &Failure| {
        let why = failure.render();
        let why = why.trim_start_matches("leasehold: ");
        Page::lines(format!("leasehold: {run}: {what} {is}: {why}").lines())
    };
    match delivery {
        Delivery::Done(done) => Page::line(&format!("leasehold: {run}: {done}")),
        Delivery::Outdated(why) => Page::line(&format!("leasehold: {run}: {what} is not told: {why}")),
        Delivery::Dropped(failure) => lines("is not told", failure),
        Delivery::NotTheirs(refusal) => lines(
            "is not told",
            &Failure::from(refusal.clone())
                .saying("No attempt was begun; the Slurm job runs without access."),
        ),
        Delivery::Waits(so_far) => Page::line(&format!(
            "leasehold: {run}: {so_far}; {what} is told again, in case its beginning is under way"
        )),
        Delivery::Kept(failure) => lines(
            "could not be told",
            &failure.clone().saying("It is kept: `leasehold slurm resend` tells it again."),
        ),
    }
}

#[cfg(test)]
#[path = "slurm_tests.rs"]
mod tests;
