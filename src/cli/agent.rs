//! Implements `leasehold agent`.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use nix::unistd::{Gid, Group, Pid};

use super::{
    Exit, Failure, Session,
    ids::JobRef,
    run::{JoinArgs, MemberArgs, RunConnection, WhichAttempt, failure},
};
use crate::{
    agent::{
        self, JoinOptions, JoinTarget, OnRevoke, Readers, RunSettings, SidecarEnd, SidecarOptions,
        StopConditions,
    },
    plain,
};

/// Gets and renews credentials for a process that already runs, such as a notebook.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "\
docs/agent.md shows it in a pod. It exits with 0 at its normal end, and with 4 if access is revoked.

Examples:
  leasehold agent --spec notebook.toml --on-revoke ignore
  leasehold agent --job j-… --attempt-key $POD_UID --ready-file /run/leasehold.ready
  leasehold agent attach j-… --watch-pid $TRAINER"
)]
pub struct AgentArgs {
    #[command(subcommand)]
    attach: Option<Attach>,
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    sidecar: SidecarArgs,
}

#[derive(Debug, Subcommand)]
enum Attach {
    /// Joins an attempt that already runs, as another member.
    #[command(after_help = "\
If several jobs share your identity, attach needs the ticket that `leasehold job begin --ticket-to`
wrote. If you know the attempt key, use `leasehold agent --job ID --attempt-key K` instead, which
gets the ticket itself.

A member that `leasehold job begin --member` names needs no ticket.

Examples:
  leasehold agent attach j-… --watch-pid $TRAINER
  leasehold agent attach j-… --instance notebook --dir /run/lh --ready-file /run/lh.ready")]
    Attach(AttachArgs),
    /// Prints the local S3 key, for `credential_process` of an AWS profile.
    #[command(after_help = "\
Use it for programs that run beside an agent and do not get its variables. In ~/.aws/config, write:

  [profile leasehold]
  credential_process = leasehold agent credential-process --dir /run/leasehold/creds
  endpoint_url = http://127.0.0.1:PORT                  LEASEHOLD_S3_ENDPOINT in the ready file
  s3 =
      signature_version = s3v4

The key stays the same for the whole attempt. It gives no access from another machine, and none
after the end of access.")]
    CredentialProcess(CredentialProcessArgs),
}

#[derive(Debug, Args)]
struct CredentialProcessArgs {
    /// The folder of the agent's credential files [default: from LEASEHOLD_CREDENTIALS]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl CredentialProcessArgs {
    /// Prints the key. The answer has no expiry, so programs ask for it only once. That is right, because the key does not
    /// change.
    fn run(self) -> Result<Exit, Failure> {
        let index = || std::env::var_os("LEASEHOLD_CREDENTIALS").map(PathBuf::from);
        let folder = self.dir.or_else(|| index()?.parent().map(Path::to_owned)).ok_or_else(|| {
            Failure::usage("there is no credential folder: LEASEHOLD_CREDENTIALS is not set")
                .fix("name the folder of the agent with --dir")
        })?;
        let (id, secret) = agent::read_local_key(&folder).map_err(|error| {
            Failure::new(Exit::Ended, format!("{} has no local S3 key: {error}", plain::path(&folder)))
                .fix("its access may have ended, or its job uses no S3 gateway")
        })?;
        let text = serde_json::json!({ "Version": 1, "AccessKeyId": id, "SecretAccessKey": secret.expose() });
        // The purpose of this command is to print the secret.
        writeln!(io::stdout().lock(), "{text}")
            .map_err(|error| Failure::new(Exit::Failure, format!("stdout cannot be written: {error}")))?;
        Ok(Exit::Ok)
    }
}

#[derive(Debug, Args)]
struct AttachArgs {
    /// The id of the job.
    #[arg(value_name = "JOB")]
    job: JobRef,
    #[command(flatten)]
    member: MemberArgs,
    #[command(flatten)]
    sidecar: SidecarArgs,
}

/// The options for the credential files, and for the end of the agent.
#[derive(Debug, Args)]
struct SidecarArgs {
    /// Where to put the credential files [default: in memory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Let this group read the credential files
    #[arg(long, value_name = "GROUP", value_parser = group)]
    group: Option<Gid>,
    /// The mode of the credential files [default: 0600; 0640 with --group]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// Write this file, in shell syntax, when all credentials exist
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// End when this process ends. --on-revoke kills or signals this process
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    watch_pid: Option<i32>,
    /// End when this file exists. The file may contain the work's exit code
    #[arg(long, value_name = "FILE")]
    until_file: Option<PathBuf>,
    /// End when another process releases its lock (flock) on this file
    #[arg(long, value_name = "FILE")]
    while_locked: Option<PathBuf>,
}

fn group(text: &str) -> Result<Gid, String> {
    if let Ok(number) = text.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err("this machine has no group of this name: write the number of a group".to_owned()),
        Err(error) => {
            Err(format!("the groups of this machine cannot be read ({error}): write the number of the group"))
        }
    }
}

impl AgentArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let attach = match self.attach {
            Some(Attach::CredentialProcess(process)) => return process.run(),
            Some(Attach::Attach(attach)) => Some(attach),
            None => None,
        };
        let connection = RunConnection::of(session).await?;
        let (joining, sidecar) = match attach {
            Some(attach) => {
                let what = JoinTarget::Attempt(attach.job.find(session).await?);
                (attach.member.joining(what, RunSettings::default(), &connection)?, attach.sidecar)
            }
            None => (self.join.joining(WhichAttempt::OfKey, &connection, session).await?, self.sidecar),
        };
        sidecar.run_sidecar(joining, connection).await
    }
}

impl SidecarArgs {
    async fn run_sidecar(self, joining: JoinOptions, connection: RunConnection) -> Result<Exit, Failure> {
        if self.watch_pid.is_none() && joining.settings.on_revoke == OnRevoke::Kill {
            return Err(Failure::usage("--on-revoke kill needs a process to kill")
                .fix("add --watch-pid PID, or leave --on-revoke out"));
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
        let RunConnection { place, svid, .. } = connection;
        match agent::run_sidecar(options, place).await {
            Ok(SidecarEnd::AsAsked) => Ok(Exit::Ok),
            Ok(SidecarEnd::AccessEnded) => Ok(Exit::Ended),
            Err(error) => {
                Err(failure(error, svid.as_ref(), &*source)
                    .saying("Nothing was started, no access was given."))
            }
        }
    }
}
