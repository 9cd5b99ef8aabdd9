//! How a process obtains access: it joins a job and writes the credential files, or undoes what it has created.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use nix::sys::{prctl, signal::Signal};

use super::{
    credential_dir::{CredentialDir, CredentialError},
    join::{JoinState, join_job},
    member::live::{LiveMember, MemberContext, ObtainError},
};
use crate::{
    agent::{
        folders::FolderError,
        forward::{CLEARED, Callers, Forwarder, LeadingFiles},
        messages::MessageSink,
        process::{
            arrivals::Arrivals,
            child::SpawnError,
            signals::{SignalNumber, Signals},
        },
        spec::RunSettings,
    },
    clock::Clock,
    identity::IdentitySource,
    limits::{START_PATIENCE, UNDO},
    link::Connector,
    name::{InstanceName, JobId},
    proto::v1,
    reason::Refusal,
    secret::{NoRandomness, SecretText},
};

/// The job and attempt to join, and the name of the member.
#[derive(Debug)]
pub struct JoinOptions {
    /// The job, and whether the job and its attempt exist already.
    pub what: JoinTarget,
    /// The scheduler's key for this run. The same key always means the same attempt. `None` uses a random key.
    pub attempt_key: Option<String>,
    /// Whether to end another attempt that is still draining.
    pub supersede: bool,
    /// How long to wait if people must approve the job. `None` does not wait.
    pub approval_wait: Option<Duration>,
    /// `None` uses the host's name and the process id.
    pub instance: Option<InstanceName>,
    /// `None` uses the ticket from `BeginAttempt`.
    pub ticket: Option<SecretText>,
    /// The settings in the `[run]` section of the job file.
    pub settings: RunSettings,
    /// The SVID files for the programs that use the access.
    pub svid: Option<SvidPaths>,
}

/// The job and attempt that exist when the process starts.
#[derive(Debug)]
pub enum JoinTarget {
    /// Nothing exists: create the job, and begin its first attempt.
    New(v1::JobSpec),
    /// The job exists: begin an attempt, or find the attempt with the same key.
    Job(JobId),
    /// The job and a running attempt exist.
    Attempt(JobId),
}

/// The files that `LEASEHOLD_SVID_CERT`, `LEASEHOLD_SVID_KEY` and `LEASEHOLD_BUNDLE` name.
#[derive(Clone, Debug)]
pub struct SvidPaths {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub bundle: PathBuf,
}

/// The parts of the process that a run or a sidecar uses.
pub struct RunContext {
    /// Connects to the daemon.
    pub connector: Connector,
    /// The SVID source of the connector. A new SVID leads to a new connection.
    pub identity: Arc<dyn IdentitySource>,
    /// The clock that times renewals, beats and graces.
    pub clock: Arc<dyn Clock>,
    /// The sink for messages to people.
    pub messages: MessageSink,
}

/// Why nothing was started. No access is left, because everything that was created before the failure was ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Refused(Refusal),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("the wrapper cannot listen for signals")]
    Signals(#[source] std::io::Error),
    /// A resource could not be copied to or from its folder.
    #[error(transparent)]
    Folder(Box<FolderError>),
    #[error("the local S3 endpoint cannot listen on 127.0.0.1")]
    LocalEndpoint(#[source] std::io::Error),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("{0} came before anything was started")]
    Interrupted(Signal),
    /// A sidecar cannot watch the process or file that its options name, or cannot write its ready file.
    #[error("{0}")]
    Watch(String),
}

impl RunError {
    /// The exit status: 126 or 127 if the command cannot be run, 128 + n after signal n, otherwise 125.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Spawn(e) => e.exit_code(),
            RunError::Interrupted(signal) => u8::try_from(128 + *signal as i32).unwrap_or(u8::MAX),
            RunError::Refused(_)
            | RunError::Credentials(_)
            | RunError::Signals(_)
            | RunError::LocalEndpoint(_)
            | RunError::Folder(_)
            | RunError::Watch(_)
            | RunError::NoRandomness(_) => 125,
        }
    }
}

impl From<FolderError> for RunError {
    fn from(error: FolderError) -> Self {
        RunError::Folder(Box::new(error))
    }
}

impl From<Refusal> for RunError {
    fn from(refusal: Refusal) -> Self {
        RunError::Refused(refusal)
    }
}

impl From<ObtainError> for RunError {
    fn from(error: ObtainError) -> Self {
        match error {
            ObtainError::Refused(refusal) => RunError::Refused(refusal),
            ObtainError::Files(error) => RunError::Credentials(error),
        }
    }
}

/// What happens to the work if the wrapper or the sidecar is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnKill {
    /// A helper process, the guard, ends the command. The wrapper that starts next has nothing to continue.
    EndCommand,
    /// The work goes on, and the next sidecar becomes the same member again.
    Rejoin,
}

/// A member with all its credentials in files.
pub(crate) struct ObtainedAccess {
    pub(crate) member: LiveMember,
    pub(crate) state: JoinState,
    pub(crate) dir: Arc<CredentialDir>,
    /// The local S3 endpoint, if the job uses an S3 gateway.
    pub(crate) forwarder: Option<Forwarder>,
    leading: Option<LeadingFiles>,
}

impl ObtainedAccess {
    /// Joins, requests the credentials, and writes their files. Undoes all of this if a step fails, or if a signal asks to end.
    pub(crate) async fn obtain(
        options: &JoinOptions,
        dir: CredentialDir,
        context: &RunContext,
        signals: &mut Signals,
        on_kill: OnKill,
    ) -> Result<Self, RunError> {
        // This keeps the session secret and the tokens out of core files, and away from debuggers of the same user.
        if let Err(error) = prctl::set_dumpable(false) {
            tracing::debug!(%error, "this process may be dumped");
        }
        let dir = Arc::new(dir);
        let mut state = JoinState::new(context);
        let mut arrivals = Arrivals::default();
        let callers = dir.callers();
        let obtained = tokio::select! {
            obtained = async {
                let member = obtain_member(options, context, &dir, &mut state, on_kill).await?;
                let (forwarder, leading) = start_forwarder(&member, callers, options, context, &dir).await?.unzip();
                Ok((member, forwarder, leading))
            } => obtained,
            signal = next_end_signal(signals, &mut arrivals, &*context.clock) => {
                Err(RunError::Interrupted(signal))
            }
        };
        let messages = &context.messages;
        match obtained {
            Ok((member, forwarder, leading)) => {
                if let Some(warning) = dir.warning() {
                    messages.send(warning);
                }
                Ok(ObtainedAccess { member, state, dir, forwarder, leading })
            }
            Err(error) => {
                dir.wipe();
                undo_start(&state, &error, messages, (signals, &mut arrivals), &*context.clock).await;
                Err(error)
            }
        }
    }

    /// Ends everything that was created, because the work could not be started.
    pub(crate) async fn undo(self, why: &str, messages: &MessageSink) {
        self.dir.wipe();
        self.state.undo(why, messages).await;
    }

    /// The environment variables for the programs that use the access. Leaves out those variables of the S3 endpoint that
    /// `keep` names, because the user keeps other values for them.
    pub(crate) fn env(&self, svid: Option<&SvidPaths>, keep: &[String]) -> Vec<(OsString, OsString)> {
        let mut set = self.dir.env();
        if let Some(svid) = svid {
            set.extend([
                ("LEASEHOLD_SVID_CERT".into(), svid.cert.clone().into()),
                ("LEASEHOLD_SVID_KEY".into(), svid.key.clone().into()),
                ("LEASEHOLD_BUNDLE".into(), svid.bundle.clone().into()),
            ]);
        }
        if let Some(leading) = &self.leading {
            set.extend(leading.variables(keep, |name| std::env::var_os(name)));
        }
        set
    }

    /// The variables to remove, because they would lead programs away from the local S3 endpoint.
    pub(crate) fn cleared(&self) -> &'static [&'static str] {
        if self.leading.is_some() { CLEARED } else { &[] }
    }

    /// The first message of a run: the job, the attempt and what it opens.
    pub(crate) fn description(&self) -> String {
        self.state.description(&self.member.opens())
    }
}

async fn obtain_member(
    options: &JoinOptions,
    context: &RunContext,
    dir: &Arc<CredentialDir>,
    state: &mut JoinState,
    on_kill: OnKill,
) -> Result<LiveMember, RunError> {
    let sessions = match on_kill {
        OnKill::Rejoin => Some(&**dir),
        OnKill::EndCommand => None,
    };
    let (session, connected) = join_job(options, state, context, sessions).await?;
    let context = MemberContext {
        dir: dir.clone(),
        clock: context.clock.clone(),
        identity: context.identity.clone(),
        messages: context.messages.clone(),
        rejoin_window: options.settings.rejoin,
    };
    let mut member = LiveMember::new(session, connected, context)?;
    member.obtain(START_PATIENCE).await?;
    Ok(member)
}

/// Ends what was created, because the work could not be started. A second signal ends the process at once.
pub(crate) async fn undo_start(
    state: &JoinState,
    error: &RunError,
    messages: &MessageSink,
    (signals, arrivals): (&mut Signals, &mut Arrivals),
    clock: &dyn Clock,
) {
    if let RunError::Interrupted(signal) = error
        && state.has_job()
    {
        let span = UNDO.as_secs();
        messages.send(&format!(
            "{signal}: nothing was started; the job or attempt that was created is ended within {span} s; send a second signal to leave at once"
        ));
    }
    let why = error.to_string();
    tokio::select! {
        () = state.undo(&why, messages) => {}
        signal = next_end_signal(signals, arrivals, clock) => {
            messages.send(&format!("{signal}: leaving at once; what was created ends when no process takes part in it"));
        }
    }
}

/// Starts the local S3 endpoint, if the member uses a gateway, and writes the files that lead programs to it.
async fn start_forwarder(
    member: &LiveMember,
    callers: Callers,
    options: &JoinOptions,
    context: &RunContext,
    dir: &CredentialDir,
) -> Result<Option<(Forwarder, LeadingFiles)>, RunError> {
    let (present, session, hold_max) = (member.present(), member.session_secret(), options.settings.hold_max);
    let started = Forwarder::start(present, session, callers, hold_max, context).await;
    let Some(forwarder) = started.map_err(RunError::LocalEndpoint)? else { return Ok(None) };
    let leading = forwarder.write_files(dir)?;
    Ok(Some((forwarder, leading)))
}

/// Waits for a signal that asks to end. Ignores other signals, because there is no command yet to which they could be passed
/// on.
pub(crate) async fn next_end_signal(
    signals: &mut Signals,
    arrivals: &mut Arrivals,
    clock: &dyn Clock,
) -> Signal {
    loop {
        let arrival = signals.next_arrival().await;
        let is_new = arrivals.add(arrival, clock.now().lease);
        // The front process passes signals on to the wrapper. If the front process has ended, `Signals` reports SIGKILL.
        let ends = |s: &Signal| asks_to_finish(*s) || matches!(s, Signal::SIGQUIT | Signal::SIGKILL);
        if let Some(signal) = arrival.signal.named().filter(ends).filter(|_| is_new) {
            return signal;
        }
    }
}

/// Whether platforms use this signal to ask a job to finish.
pub(crate) fn asks_to_finish(signal: impl Into<SignalNumber>) -> bool {
    matches!(signal.into().named(), Some(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;

    #[test]
    fn each_failure_before_the_start_has_its_exit_code() {
        let refused = RunError::from(Refusal::new(Reason::PolicyDenied, "no"));
        assert_eq!(refused.exit_code(), 125);
        let gone = crate::agent::process::command::CommandError::NotFound { command: "x".into() };
        assert_eq!(RunError::from(SpawnError::from(gone)).exit_code(), 127);
        assert_eq!(RunError::Interrupted(Signal::SIGTERM).exit_code(), 143);
        assert_eq!(RunError::Interrupted(Signal::SIGINT).exit_code(), 130);
    }

    #[test]
    fn platforms_end_a_job_by_three_signals() {
        assert!([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().all(asks_to_finish));
        assert!(
            ![Signal::SIGUSR1, Signal::SIGQUIT, Signal::SIGCONT, Signal::SIGWINCH]
                .into_iter()
                .any(asks_to_finish)
        );
    }
}
