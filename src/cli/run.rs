//! Implements `leasehold run`, and the parts that `leasehold agent` shares with it.

use std::{
    error::Error,
    ffi::OsString,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::{
    Exit, Failure, Session, client::wait_for_identity, contexts_file::SvidFrom, ids::JobRef, job_create,
    svid::mint_command,
};
use crate::{
    agent::{
        self, JoinOptions, JoinTarget, MessageSink, OnRevoke, RunContext, RunError, RunOptions, RunSettings,
        SvidPaths,
    },
    identity::IdentitySource,
    limits::{APPROVAL_WAIT_MAX, TICKET_BYTES_MAX},
    name::{InstanceName, PrincipalKind},
    plain,
    reason::Reason,
    secret::{Secret, SecretText},
};

/// Runs a command with the access of a job, and ends the access with the command.
#[derive(Debug, Args)]
#[command(after_help = "\
Variables with other credentials are removed. The command gets LEASEHOLD_JOB, _ATTEMPT and:
  LEASEHOLD_TOKEN_FILE_READING, _WRITING        the token files, renewed in place
  LEASEHOLD_CREDENTIALS                         a JSON file with all credentials and resources
  LEASEHOLD_SVID_CERT, _KEY, LEASEHOLD_BUNDLE   the certificate for TLS, if it comes from files
  LEASEHOLD_DRAIN_FILE                          appears when it is time to save and end
On revocation, the files are removed, the command gets a signal, and its exit code 0 becomes 4.

Examples:
  leasehold run --spec job.toml -- python train.py
  leasehold run --job j-… --spec job.toml --on-revoke kill -- ./tune.sh --epochs 3
  leasehold run --job j-… --spec job.toml --attempt-key \"$(leasehold slurm key)\" -- torchrun …")]
pub struct RunArgs {
    #[command(flatten)]
    pub join: JoinArgs,
    /// Join an attempt that already runs (see `job begin --member`)
    #[arg(long, requires = "job", conflicts_with = "supersede")]
    pub running: bool,
    /// Where to put the credential files [default: in memory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Wait until people have decided on the job, at most 7 days
    #[arg(long)]
    pub wait_approval: bool,
    /// Pass this variable on, although it contains a credential. Repeatable
    #[arg(long, value_name = "NAME", value_parser = agent::variable_name)]
    pub keep_env: Vec<String>,
    /// Do not pass this variable on. Repeatable
    #[arg(long, value_name = "NAME", value_parser = agent::variable_name)]
    pub scrub: Vec<String>,
    /// The command and its arguments. The exit codes 125 to 127 mean that `run` failed
    #[arg(required = true, value_name = "CMD", last = true)]
    pub command: Vec<OsString>,
}

/// The options that say which job and attempt to join.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The job file. With --job, only its stage, sync and `run` are used
    #[arg(long, value_name = "FILE", required_unless_present = "job")]
    pub spec: Option<PathBuf>,
    /// Join this job instead of creating one
    #[arg(long, value_name = "ID")]
    pub job: Option<JobRef>,
    /// A name for this run: the same key means the same attempt
    #[arg(long, value_name = "K", value_parser = key, env = "LEASEHOLD_ATTEMPT_KEY", hide_env = true)]
    pub attempt_key: Option<String>,
    /// If an attempt is still draining, end it, and do not fail
    #[arg(long)]
    pub supersede: bool,
    #[command(flatten)]
    pub member: MemberArgs,
}

/// The attempt of a job to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhichAttempt {
    /// A new attempt, or the attempt with this key.
    OfKey,
    /// The attempt that already runs.
    Running,
}

/// The options of the member that joins.
#[derive(Debug, Args)]
pub struct MemberArgs {
    /// The name of this member [default: host name and process id]
    #[arg(long, value_name = "NAME")]
    pub instance: Option<InstanceName>,
    /// The ticket to join with, if several jobs share your identity
    #[arg(long, value_name = "FILE")]
    pub ticket_file: Option<PathBuf>,
    /// If access is revoked: term, kill or ignore the work [default: term]
    #[arg(long, value_name = "HOW")]
    pub on_revoke: Option<OnRevoke>,
}

impl JoinArgs {
    pub(super) async fn joining(
        self,
        which: WhichAttempt,
        connection: &RunConnection,
        session: &Session,
    ) -> Result<JoinOptions, Failure> {
        let spec = self.spec.as_deref().map(job_create::read_spec).transpose()?;
        let (spec, settings) = match spec {
            Some(spec) => (Some(spec.job), spec.run),
            None => (None, RunSettings::default()),
        };
        let job = match &self.job {
            Some(job) => Some(job.find(session).await?),
            None => None,
        };
        let what = match (job, spec) {
            (Some(id), _) if which == WhichAttempt::Running => JoinTarget::Attempt(id),
            (Some(id), _) if self.attempt_key.is_none() && self.member.ticket_file.is_some() => {
                JoinTarget::Attempt(id)
            }
            (Some(id), _) => JoinTarget::Job(id),
            (None, Some(spec)) => JoinTarget::New(spec),
            (None, None) => {
                return Err(Failure::usage("no job is named")
                    .fix("add --spec FILE for a new job, or --job ID --spec FILE to join an existing one"));
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
            approval_wait: None,
            instance: self.instance,
            ticket: self.ticket_file.as_deref().map(read_ticket).transpose()?,
            settings: RunSettings { on_revoke, ..settings },
            svid: connection.svid.clone(),
        })
    }
}

/// Reads a ticket. The ticket is a secret, so it is never shown.
fn read_ticket(path: &Path) -> Result<SecretText, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|f| f.take(TICKET_BYTES_MAX).read_to_string(&mut text));
    let failure = |what: String| {
        Failure::usage(what).with("file", plain::path(path)).fix(
            "give the file that `leasehold job begin --ticket-to` wrote: one line of 43 characters; with --attempt-key you need no ticket",
        )
    };
    read.map_err(|e| failure(format!("the ticket cannot be read: {e}")))?;
    let ticket = SecretText::new(text.trim().to_owned());
    match Secret::from_text(ticket.expose()) {
        Some(_) => Ok(ticket),
        None => Err(failure("this file has no ticket".to_owned())),
    }
}

/// The connection to the daemon, and our identity.
pub(super) struct RunConnection {
    pub(super) place: RunContext,
    pub(super) svid: Option<SvidPaths>,
    source: Arc<dyn IdentitySource>,
}

impl RunConnection {
    /// Chooses the context, and waits for a first identity.
    pub(super) async fn of(session: &Session) -> Result<Self, Failure> {
        let chosen = session.choose(&[PrincipalKind::Workload])?;
        let (connector, source) = session.connector(&chosen)?;
        wait_for_identity(&*source, &*session.clock, session.identity_wait()).await?;
        let bundle = chosen.context.bundles.get(&chosen.context.server_id.trust_domain());
        // If the SVID comes from a SPIFFE agent, the child has its own SVID, from the socket that its environment names.
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
        if let Some(name) = self.keep_env.iter().find(|name| self.scrub.contains(name)) {
            return Err(Failure::usage(format!("--keep-env and --scrub both name {name}"))
                .fix("remove one of the two")
                .before_the_command());
        }
        let which = if self.running { WhichAttempt::Running } else { WhichAttempt::OfKey };
        let joining = self.join.joining(which, &connection, session).await;
        let mut joining = joining.map_err(Failure::before_the_command)?;
        joining.settings = joining.settings.with_variables(&self.keep_env, &self.scrub);
        joining.approval_wait = self.wait_approval.then_some(APPROVAL_WAIT_MAX);
        let options = RunOptions { front: session.behind, joining, dir: self.dir, command: self.command };
        let source = connection.source();
        let RunConnection { place, svid, .. } = connection;
        match agent::run(options, place).await {
            Ok(code) => Ok(Exit::Child(code)),
            Err(error) => {
                let exit = Exit::Child(error.exit_code());
                Err(Failure { exit, ..failure(error, svid.as_ref(), &*source).before_the_command() })
            }
        }
    }
}

/// Makes a path absolute, because the command may change its directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Explains an error of the wrapper. The exit code is for `leasehold agent`: `run` replaces it.
pub(super) fn failure(error: RunError, svid: Option<&SvidPaths>, source: &dyn IdentitySource) -> Failure {
    match error {
        RunError::Refused(refusal) => {
            let mut failure = Failure::from(agent::explain_refusal(refusal));
            if failure.reason == Some(Reason::SvidExpired)
                && let (Some(paths), Some(own)) = (svid, &source.current().svid)
                && let Some(mint) = mint_command(&paths.cert, own.spiffe_id())
            {
                failure = failure.fix_instead(mint);
            }
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

/// Parses an attempt key.
pub(super) fn key(text: &str) -> Result<String, String> {
    use crate::limits::KEY_BYTES_MAX;
    if text.is_empty() || text.len() > KEY_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("write 1 to {KEY_BYTES_MAX} bytes without control characters"));
    }
    Ok(text.to_owned())
}
