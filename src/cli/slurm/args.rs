//! What can be written after `leasehold slurm`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{
    allocation::{Allocation, NotAnAllocation, Run},
    report::{NotedRun, Report},
    spool::Spool,
    teller::{Teller, say, tell_all},
};
use crate::{
    cli::{
        Exit, Failure, Session,
        output::{note, note_page, print_line},
        words,
    },
    limits::SLURM_BUDGET,
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
        #[arg(long, value_name = "SPAN", value_parser = words::span)]
        every: Option<Duration>,
    },
    /// Prints the attempt key of the run that this is called in.
    #[command(after_help = "\
Examples:
  leasehold run --job $JOB --attempt-key \"$(leasehold slurm key)\" --instance \"$SLURMD_NODENAME\" -- torchrun …")]
    Key,
}

#[derive(Debug, Args)]
pub(super) struct Telling {
    /// Where reports are kept until the daemon has them; one directory for all head nodes, one on each node.
    #[arg(long, value_name = "DIR")]
    pub(super) spool: PathBuf,
    /// Give up after this; what is kept is told later.
    #[arg(long, value_name = "SPAN", value_parser = words::span, default_value = "2s")]
    pub(super) timeout: Duration,
}

impl SlurmArgs {
    /// Whether Slurm would drain the node, or requeue the job, if this command failed.
    pub(in crate::cli) fn never_fails(&self) -> bool {
        match self.command {
            SlurmCommand::Prolog { .. } | SlurmCommand::Epilog { .. } | SlurmCommand::NodeEpilog { .. } => {
                true
            }
            SlurmCommand::Resend { .. } | SlurmCommand::Key => false,
        }
    }

    pub(in crate::cli) async fn run(self, session: &Session) -> Result<Exit, Failure> {
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
                let run = Run::read(&var).map_err(unreadable)?;
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

pub(super) type Read = Result<Option<Allocation>, NotAnAllocation>;

pub(super) async fn prolog(
    read: Read,
    to: &Telling,
    runs_as: &str,
    session: &Session,
) -> Result<(), Failure> {
    let Some(allocation) = read.map_err(unreadable)? else { return Ok(()) };
    let id = allocation.runs_as(runs_as).map_err(unreadable)?;
    let report = Report::began(&allocation, id, session.now().wall);
    let spool = open(to);
    if let Some(spool) = &spool {
        complain(spool.note(allocation.run.slurm_job, &NotedRun::of(&allocation)));
    }
    deliver(spool.as_ref(), report, to.timeout, session).await
}

pub(super) async fn epilog(read: Read, to: &Telling, session: &Session) -> Result<(), Failure> {
    let Some(allocation) = read.map_err(unreadable)? else { return Ok(()) };
    let spool = open(to);
    let noted = spool.as_ref().and_then(|s| s.noted(allocation.run.slurm_job));
    let Some(report) = Report::ended(&allocation, noted.as_ref(), session.now().wall) else {
        return Err(Failure::new(
            Exit::Failure,
            format!("{}: its prolog left no note of which run this was, so none is ended", allocation.run),
        )
        .fix("have PrologSlurmctld use the same --spool; access ends with its members meanwhile"));
    };
    deliver(spool.as_ref(), report, to.timeout, session).await
}

pub(super) async fn node_epilog(read: Read, to: &Telling, session: &Session) -> Result<(), Failure> {
    let Some(allocation) = read.map_err(unreadable)? else { return Ok(()) };
    let node =
        allocation.node.clone().ok_or_else(|| unreadable(NotAnAllocation::Absent("SLURMD_NODENAME")))?;
    let report = Report::released(&allocation, &node, session.now().wall);
    deliver(open(to).as_ref(), report, to.timeout, session).await
}

async fn resend(
    spool: &std::path::Path,
    every: Option<Duration>,
    session: &Session,
) -> Result<Exit, Failure> {
    loop {
        let spool = Spool::open(spool).map_err(|e| Failure::new(Exit::Failure, e.to_string()))?;
        let told = tell_all(&spool, None, session).await;
        match (every, told) {
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

/// Puts a report on disk first, then tells it with what else there is.
async fn deliver(
    spool: Option<&Spool>,
    report: Report,
    timeout: Duration,
    session: &Session,
) -> Result<(), Failure> {
    let kept = spool.and_then(|spool| complain(spool.keep(report.clone())).map(|spooled| (spool, spooled)));
    match kept {
        Some((spool, own)) => {
            within(timeout, session, tell_all(spool, Some(&own.report), session)).await??;
        }
        None => {
            let teller = Teller::new(session)?;
            let told = within(timeout, session, teller.tell(&report, session)).await?;
            say(&report, &told);
        }
    }
    Ok(())
}

/// What is asked after its time may be done all the same: it is told again, which changes nothing.
async fn within<T>(
    timeout: Duration,
    session: &Session,
    asked: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        answer = asked => Ok(answer),
        () = session.clock.sleep(timeout) => Err(Failure::new(
            Exit::Failure,
            format!("the daemon did not answer within {} s", timeout.as_secs()),
        )
        .saying("What the spool keeps is told later.")),
    }
}

fn open(to: &Telling) -> Option<Spool> {
    complain(Spool::open(&to.spool))
}

/// Without a spool the daemon is told all the same.
fn complain<T, E: std::fmt::Display>(done: Result<T, E>) -> Option<T> {
    done.map_err(|e| note(&format!("leasehold: {e}"))).ok()
}
