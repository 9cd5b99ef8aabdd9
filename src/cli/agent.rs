//! `leasehold agent`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use nix::unistd::{Gid, Group, Pid};

use super::{
    Exit, Failure, Session,
    run::{JoinArgs, MemberArgs, RunConnection, failure},
};
use crate::{
    agent::{
        self, JoinOptions, JoinTarget, OnRevoke, Readers, RunSettings, SidecarEnd, SidecarOptions,
        StopConditions,
    },
    name::JobId,
};

/// Keeps the access of a job for a process that it did not start: a pod's sidecar, a notebook, a step of a scheduler.
///
/// Joins as `run` does, keeps the credential files good, and prints the variables that name them, in the form that a shell
/// reads. The first SIGTERM (or Ctrl-C) lets it finish: reading ends soon, checkpoint writes after `drain` of the job file (20 s
/// by default, so that Kubernetes does not kill it first), then it exits; the second one ends it at once. How the work ended it
/// has not seen, unless a file says so (--until-file): the outcome is what the launcher or the scheduler reports.
///
/// Killed and started again in the same way, with the same --dir, it is the same member again.
///
/// Exits with 0 where it ended as it was asked to, or with the process that it watched, and with 4 where access was ended
/// from outside.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  leasehold agent --spec notebook.toml --on-revoke ignore
  leasehold agent --job j-… --attempt-key $POD_UID --dir /run/leasehold --ready-file /run/leasehold.ready
  leasehold agent attach j-… --watch-pid $TRAINER

In a pod, without a shared process namespace: the trainer says by a file how it ended (in its own container:
`python train.py; code=$?; echo $code > /run/leasehold/ended; exit $code`), or holds a lock while it runs
(`flock /run/leasehold/lock python train.py`):
  leasehold agent --job j-… --attempt-key $POD_UID --dir /run/leasehold/creds --until-file /run/leasehold/ended
  leasehold agent --job j-… --attempt-key $POD_UID --dir /run/leasehold/creds --while-locked /run/leasehold/lock

Beside it, in a shell:
  until [ -e /run/leasehold.ready ]; do sleep 0.1; done; . /run/leasehold.ready

Beside it, in a notebook; the tokens are renewed in their files, so read them for each request:
  import json, os, pathlib
  env = dict(l.removeprefix('export ').split('=', 1) for l in open('/run/leasehold.ready'))
  os.environ.update({k: v.strip().strip(\"'\") for k, v in env.items()})
  token = pathlib.Path(os.environ['LEASEHOLD_TOKEN_FILE_READING']).read_text()"
)]
pub struct AgentArgs {
    #[command(subcommand)]
    attach: Option<Attach>,
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    beside: BesideArgs,
}

#[derive(Debug, Subcommand)]
enum Attach {
    /// Takes part in the attempt that runs, as one more member, and begins none.
    ///
    /// Where several jobs share this identity it needs the ticket that BeginAttempt answered; who knows the run's key takes part by
    /// `leasehold agent --job ID --attempt-key K`, which brings the ticket by itself.
    #[command(after_help = "\
Examples:
  leasehold agent attach j-… --watch-pid $TRAINER
  leasehold agent attach j-… --instance notebook --dir /run/leasehold --ready-file /run/leasehold.ready")]
    Attach(AttachArgs),
}

#[derive(Debug, Args)]
struct AttachArgs {
    /// The job.
    #[arg(value_name = "JOB")]
    job: JobId,
    #[command(flatten)]
    member: MemberArgs,
    #[command(flatten)]
    beside: BesideArgs,
}

/// Beside what, and where the files are.
#[derive(Debug, Args)]
struct BesideArgs {
    /// The directory of the credential files, which is made, or empty and your own: names in it do not change [default: a
    /// private one in memory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A group that may read the credential files, by name or number.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    group: Option<Gid>,
    /// The mode of the credential files: 0600, or 0640 for a group [default: 0600; 0640 with --group]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// A file that is written once all credentials are there, and is gone when one of them is. A shell reads it.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// End with this process; --on-revoke is for it.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    watch_pid: Option<i32>,
    /// End once this file is there. It may say how the work ended: an exit code, or completed, failed or interrupted.
    #[arg(long, value_name = "FILE")]
    until_file: Option<PathBuf>,
    /// End once the lock (flock) on this file is released, after another process had it.
    #[arg(long, value_name = "FILE")]
    while_locked: Option<PathBuf>,
}

fn group(text: &str) -> Result<Gid, String> {
    if let Ok(number) = text.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err("there is no such group on this machine: write its number".to_owned()),
        Err(error) => Err(format!("the groups of this machine cannot be read ({error}): write its number")),
    }
}

impl AgentArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let connection = RunConnection::of(session).await?;
        let (joining, beside) = match self.attach {
            Some(Attach::Attach(attach)) => {
                let what = JoinTarget::Attempt(attach.job);
                (attach.member.joining(what, RunSettings::default(), &connection)?, attach.beside)
            }
            None => (self.join.joining(&connection)?, self.beside),
        };
        beside.keep(joining, connection).await
    }
}

impl BesideArgs {
    async fn keep(self, joining: JoinOptions, connection: RunConnection) -> Result<Exit, Failure> {
        if self.watch_pid.is_none() && joining.settings.on_revoke == OnRevoke::Kill {
            return Err(Failure::usage("--on-revoke kill has nothing that it could end")
                .fix("say which process by --watch-pid PID, or leave it out"));
        }
        let readers = Readers::new(self.group, self.mode.as_deref())
            .map_err(|what| Failure::usage("--mode cannot be used").fix(what))?;
        let until = StopConditions {
            process: self.watch_pid.map(Pid::from_raw),
            file: self.until_file,
            lock: self.while_locked,
        };
        let options = SidecarOptions { joining, dir: self.dir, readers, ready_file: self.ready_file, until };
        let source = connection.source();
        let RunConnection { place, .. } = connection;
        match agent::run_sidecar(options, place).await {
            Ok(SidecarEnd::AsAsked) => Ok(Exit::Ok),
            Ok(SidecarEnd::AccessEnded) => Ok(Exit::Ended),
            Err(error) => Err(failure(error, &*source).saying("Nothing was started, no access was given.")),
        }
    }
}
