//! `leasehold run`.

use std::{
    error::Error,
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Exit, Failure, Session, client::identified, contexts::SvidFrom, job};
use crate::{
    agent::{self, OnRevoke, RunError, RunOptions, RunPlace, SvidPaths, Voice},
    identity::IdentitySource,
    name::{InstanceName, JobId, PrincipalKind},
};

/// Runs a command with the access of a job, and ends that access with it.
///
/// Creates the job that the specification describes, begins an attempt, joins it, and hands the credentials over as files of
/// mode 0600 named by environment variables. Renews them while the command runs, passes signals on, and reports completed,
/// failed or interrupted from its end. Revoked from outside, the files are wiped first and the command told after.
///
/// Exits with the command's code (128+n for signal n), with 125 for a failure of its own, 126 and 127 where the command
/// cannot be run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold run --spec job.toml -- python train.py
  leasehold run --spec job.toml --on-revoke kill -- ./tune.sh --epochs 3
  leasehold run --spec job.toml --job j-… --attempt-key $SLURM_JOB_ID-$SLURM_RESTART_COUNT --instance $SLURM_NODEID -- srun …")]
pub struct RunArgs {
    /// What the run needs: job.toml, or the same as JSON.
    #[arg(long, value_name = "FILE")]
    pub spec: PathBuf,
    /// A job that exists already, instead of a new one.
    #[arg(long, value_name = "ID")]
    pub job: Option<JobId>,
    /// The scheduler's key for this run: the same key is the same attempt. One of its own otherwise.
    #[arg(long, value_name = "K", value_parser = key)]
    pub attempt_key: Option<String>,
    /// The name of this member in the attempt: pod, node, rank group [default: the host's name and the process id]
    #[arg(long, value_name = "NAME")]
    pub instance: Option<InstanceName>,
    /// What happens to the command when its access is revoked: term, kill or ignore. The specification's otherwise.
    #[arg(long, value_name = "HOW")]
    pub on_revoke: Option<OnRevoke>,
    /// Where the credential files are made [default: a directory in memory, where there is one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, value_name = "CMD", last = true)]
    pub command: Vec<OsString>,
}

impl RunArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let spec = job::read_spec(&self.spec).map_err(Failure::before_the_command)?;
        let chosen = session.choose(&[PrincipalKind::Workload]).map_err(Failure::before_the_command)?;
        let (connector, source) = session.connector(&chosen).map_err(Failure::before_the_command)?;
        identified(&*source, &*session.clock, session.identity_wait())
            .await
            .map_err(Failure::before_the_command)?;
        let bundle = chosen.context.bundles.get(&chosen.context.server_id.trust_domain());
        // An agent gives the child an SVID of its own, at the socket that its environment names.
        let svid = match (&chosen.svid, bundle) {
            (SvidFrom::Files(files), Some(bundle)) => Some(SvidPaths {
                cert: absolute(&files.cert),
                key: absolute(&files.key),
                bundle: absolute(bundle),
            }),
            _ => None,
        };
        let options = RunOptions {
            spec,
            job: self.job,
            idempotency_key: None,
            attempt_key: self.attempt_key,
            instance: self.instance,
            on_revoke: self.on_revoke,
            dir: self.dir,
            command: self.command,
            svid,
        };
        let place = RunPlace {
            connector,
            identity: source.clone(),
            clock: session.clock.clone(),
            voice: Voice::stderr(),
        };
        match agent::run(options, place).await {
            Ok(code) => Ok(Exit::Child(code)),
            Err(error) => Err(failure(error, &*source)),
        }
    }
}

/// The command may change its directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn failure(error: RunError, source: &dyn IdentitySource) -> Failure {
    let exit = Exit::Child(error.exit_code());
    let failure = match error {
        RunError::Refused(refusal) => {
            let failure = Failure::from(refusal);
            match &source.current().svid {
                Some(svid) if failure.facts.iter().all(|(label, _)| label != "you") => {
                    failure.with("you", svid.spiffe_id().to_string())
                }
                _ => failure,
            }
        }
        other => match other.source() {
            Some(cause) => Failure::new(exit, other.to_string()).with("cause", cause.to_string()),
            None => Failure::new(exit, other.to_string()),
        },
    };
    Failure { exit, ..failure.before_the_command() }
}

fn key(text: &str) -> Result<String, String> {
    use crate::limits::KEY_BYTES_MAX;
    if text.is_empty() || text.len() > KEY_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("write 1 to {KEY_BYTES_MAX} bytes without control characters"));
    }
    Ok(text.to_owned())
}
