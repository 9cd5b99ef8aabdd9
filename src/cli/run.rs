//! `leasehold run`, and what it has in common with `leasehold agent`.

use std::{
    error::Error,
    ffi::OsString,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::{Exit, Failure, Session, client::identified, contexts_file::SvidFrom, job_create};
use crate::{
    agent::{
        self, JoinOptions, JoinTarget, MessageSink, OnRevoke, RunContext, RunError, RunOptions, RunSettings,
        SvidPaths,
    },
    identity::IdentitySource,
    limits::TICKET_BYTES_MAX,
    name::{InstanceName, JobId, PrincipalKind},
    secret::{Secret, SecretText},
};

/// Runs a command with the access of a job, and ends that access with it.
///
/// Creates the job that the specification describes, begins an attempt, joins it, and hands the credentials over as files of
/// mode 0600 named by environment variables. Renews them while the command runs, passes signals on, and reports completed,
/// failed or interrupted from its end; interrupted too if it was asked to finish, by SIGTERM or `leasehold job drain`, and
/// exits with 0. A drain reaches it as SIGTERM, or as drain_signal below `[run]` of the job file. Revoked from outside, the files are wiped first and the command told after. Whatever the
/// command started ends with it, in sessions of its own or not.
///
/// Exits with the command's code (128+n for signal n), with 125 for a failure of its own, 126 and 127 where the command
/// cannot be run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold run --spec job.toml -- python train.py
  leasehold run --spec job.toml --on-revoke kill -- ./tune.sh --epochs 3

Many nodes, one run: the same job and key on each, another instance (Slurm: `srun` starts these):
  leasehold run --job j-… --attempt-key \"$(leasehold slurm key)\" --instance \"$SLURMD_NODENAME\" -- torchrun …

What the command finds in its environment:
  LEASEHOLD_TOKEN_FILE_READING, _WRITING   the file of the token, renewed in place; beside it .header, for curl -H @FILE
  LEASEHOLD_CREDENTIALS                    all of them, as JSON: audience, path, resources, location, expires
  LEASEHOLD_SVID_CERT, _KEY, LEASEHOLD_BUNDLE   for TLS, where the SVID comes from files
  LEASEHOLD_DRAIN_FILE                     a file that appears when the command is to finish: reading_ends, writing_ends, reason
  LEASEHOLD_JOB, LEASEHOLD_ATTEMPT
What it does not inherit: standing credentials (AWS_* keys, HF_TOKEN, VAULT_TOKEN and their like), but for those that keep_env
below [run] of the job file names.")]
pub struct RunArgs {
    #[command(flatten)]
    pub join: JoinArgs,
    /// Where the credential files are made [default: a directory in memory, where there is one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, value_name = "CMD", last = true)]
    pub command: Vec<OsString>,
}

/// Which job, which attempt of it, and as which member.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// What the run needs: job.toml, or the same as JSON. With --job, only its `[run]` is read.
    #[arg(long, value_name = "FILE", required_unless_present = "job")]
    pub spec: Option<PathBuf>,
    /// A job that exists already, instead of a new one.
    #[arg(long, value_name = "ID")]
    pub job: Option<JobId>,
    /// The scheduler's key for this run: the same key is the same attempt. One of its own otherwise.
    #[arg(long, value_name = "K", value_parser = key, env = "LEASEHOLD_ATTEMPT_KEY", hide_env_values = true)]
    pub attempt_key: Option<String>,
    /// End an attempt that is still draining, instead of being refused.
    #[arg(long)]
    pub supersede: bool,
    #[command(flatten)]
    pub member: MemberArgs,
}

/// As which member.
#[derive(Debug, Args)]
pub struct MemberArgs {
    /// The name of this member in the attempt: pod, node, rank group [default: the host's name and the process id]
    #[arg(long, value_name = "NAME")]
    pub instance: Option<InstanceName>,
    /// The ticket of the attempt, where several jobs share this identity. Without --attempt-key, the running attempt is joined
    /// and none is begun.
    #[arg(long, value_name = "FILE")]
    pub ticket_file: Option<PathBuf>,
    /// What happens when access is revoked to what uses it: term, kill or ignore [default: the specification's, or term]
    #[arg(long, value_name = "HOW")]
    pub on_revoke: Option<OnRevoke>,
}

impl JoinArgs {
    pub(super) fn joining(self, connection: &RunConnection) -> Result<JoinOptions, Failure> {
        let spec = self.spec.as_deref().map(job_create::read_spec).transpose()?;
        let (spec, settings) = match spec {
            Some(spec) => (Some(spec.job), spec.run),
            None => (None, RunSettings::default()),
        };
        let what = match (self.job, spec) {
            (Some(id), _) if self.attempt_key.is_none() && self.member.ticket_file.is_some() => {
                JoinTarget::Attempt(id)
            }
            (Some(id), _) => JoinTarget::Job(id),
            (None, Some(spec)) => JoinTarget::New(spec),
            (None, None) => {
                return Err(Failure::usage("nothing says which job this is for")
                    .fix("--spec FILE for a new one, --job ID for one that is there"));
            }
        };
        let joining = self.member.joining(what, settings, connection)?;
        Ok(JoinOptions { attempt_key: self.attempt_key, supersede: self.supersede, ..joining })
    }
}

impl MemberArgs {
    pub(super) fn joining(
        self,
        what: JoinTarget,
        settings: RunSettings,
        connection: &RunConnection,
    ) -> Result<JoinOptions, Failure> {
        let on_revoke = self.on_revoke.unwrap_or(settings.on_revoke);
        Ok(JoinOptions {
            what,
            attempt_key: None,
            supersede: false,
            instance: self.instance,
            ticket: self.ticket_file.as_deref().map(ticket).transpose()?,
            settings: RunSettings { on_revoke, ..settings },
            svid: connection.svid.clone(),
        })
    }
}

/// A ticket is a secret: its file is read, and never shown.
fn ticket(path: &Path) -> Result<SecretText, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|f| f.take(TICKET_BYTES_MAX).read_to_string(&mut text));
    let failure = |what: String| {
        Failure::usage(what).with("file", path.display().to_string()).fix(
            "it holds the ticket that BeginAttempt answered: one line, 43 letters; who has the run's --attempt-key needs none",
        )
    };
    read.map_err(|e| failure(format!("the ticket cannot be read: {e}")))?;
    let ticket = SecretText::new(text.trim().to_owned());
    match Secret::from_text(ticket.expose()) {
        Some(_) => Ok(ticket),
        None => Err(failure("this file does not hold a ticket".to_owned())),
    }
}

/// The way to the daemon, and what shows who we are.
pub(super) struct RunConnection {
    pub(super) place: RunContext,
    pub(super) svid: Option<SvidPaths>,
    source: Arc<dyn IdentitySource>,
}

impl RunConnection {
    /// Waits for a first identity.
    pub(super) async fn of(session: &Session) -> Result<Self, Failure> {
        let chosen = session.choose(&[PrincipalKind::Workload])?;
        let (connector, source) = session.connector(&chosen)?;
        identified(&*source, &*session.clock, session.identity_wait()).await?;
        let bundle = chosen.context.bundles.get(&chosen.context.server_id.trust_domain());
        // A SPIFFE agent gives the child an SVID of its own, at the socket that its environment names.
        let svid = match (&chosen.svid, bundle) {
            (SvidFrom::Files(files), Some(bundle)) => Some(SvidPaths {
                cert: absolute(&files.cert),
                key: absolute(&files.key),
                bundle: absolute(bundle),
            }),
            _ => None,
        };
        let place = RunContext {
            connector,
            identity: source.clone(),
            clock: session.clock.clone(),
            messages: MessageSink::stderr(),
        };
        Ok(RunConnection { place, svid, source })
    }

    pub(super) fn source(&self) -> Arc<dyn IdentitySource> {
        self.source.clone()
    }
}

impl RunArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let connection = RunConnection::of(session).await.map_err(Failure::before_the_command)?;
        let joining = self.join.joining(&connection).map_err(Failure::before_the_command)?;
        let options = RunOptions { front: session.behind, joining, dir: self.dir, command: self.command };
        let source = connection.source();
        let RunConnection { place, .. } = connection;
        match agent::run(options, place).await {
            Ok(code) => Ok(Exit::Child(code)),
            Err(error) => {
                let exit = Exit::Child(error.exit_code());
                Err(Failure { exit, ..failure(error, &*source).before_the_command() })
            }
        }
    }
}

/// The command may change its directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// In the words of its user, with the exit code that commands other than `run` have for it.
pub(super) fn failure(error: RunError, source: &dyn IdentitySource) -> Failure {
    match error {
        RunError::Refused(refusal) => {
            let failure = Failure::from(agent::explain_refusal(refusal));
            match &source.current().svid {
                Some(svid) if failure.facts.iter().all(|(label, _)| label != "you") => {
                    failure.with("you", svid.spiffe_id().to_string())
                }
                _ => failure,
            }
        }
        other => match other.source() {
            Some(cause) => Failure::new(Exit::Failure, other.to_string()).with("cause", cause.to_string()),
            None => Failure::new(Exit::Failure, other.to_string()),
        },
    }
}

pub(super) fn key(text: &str) -> Result<String, String> {
    use crate::limits::KEY_BYTES_MAX;
    if text.is_empty() || text.len() > KEY_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("write 1 to {KEY_BYTES_MAX} bytes without control characters"));
    }
    Ok(text.to_owned())
}
