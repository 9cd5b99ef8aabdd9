//! Access, from nothing to files: what `run` and `agent` have in common. What happens beside it, a command or a process that
//! was there before, is theirs.

use std::{ffi::OsString, path::PathBuf, sync::Arc};

use nix::sys::{prctl, signal::Signal};

use super::{
    credential_dir::{CredentialDir, CredentialError},
    join::{JoinState, begin},
    member::live::{LiveMember, MemberContext, ObtainError},
};
use crate::{
    agent::{
        messages::MessageSink,
        process::{
            child::SpawnError,
            signals::{Arrivals, SignalNumber, Signals},
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

/// What is joined, and as which member.
#[derive(Debug)]
pub struct JoinOptions {
    pub what: JoinTarget,
    /// The scheduler's key for this run: the same key is the same attempt. Else one of its own.
    pub attempt_key: Option<String>,
    /// Whether an attempt that is still draining is ended for this one.
    pub supersede: bool,
    /// Else the host's name and the process id.
    pub instance: Option<InstanceName>,
    /// Else the one that the beginning of the attempt answers.
    pub ticket: Option<SecretText>,
    pub settings: RunSettings,
    /// What the programs beside it may use to show who they are.
    pub svid: Option<SvidPaths>,
}

/// What there is before.
#[derive(Debug)]
pub enum JoinTarget {
    /// Nothing: the job is created, and its first attempt begun.
    New(v1::JobSpec),
    /// A job: an attempt is begun, or found by its key.
    Job(JobId),
    /// An attempt that somebody else has begun.
    Attempt(JobId),
}

/// Files that the environment names: `LEASEHOLD_SVID_CERT`, `LEASEHOLD_SVID_KEY`, `LEASEHOLD_BUNDLE`.
#[derive(Clone, Debug)]
pub struct SvidPaths {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub bundle: PathBuf,
}

/// What the world is reached by.
pub struct RunContext {
    pub connector: Connector,
    /// The connector's own source: a new SVID means a new connection.
    pub identity: Arc<dyn IdentitySource>,
    pub clock: Arc<dyn Clock>,
    pub voice: MessageSink,
}

/// Why nothing was started. No access is left: what was made on the way was ended.
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
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("{0} came before anything was started")]
    Interrupted(Signal),
    /// What an agent was to look at, or to write, cannot be used.
    #[error("{0}")]
    Watch(String),
}

impl RunError {
    /// 126 and 127 where the command cannot be run, 128 + n after signal n, 125 for all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Spawn(e) => e.exit_code(),
            RunError::Interrupted(signal) => u8::try_from(128 + *signal as i32).unwrap_or(u8::MAX),
            RunError::Refused(_)
            | RunError::Credentials(_)
            | RunError::Signals(_)
            | RunError::Watch(_)
            | RunError::NoRandomness(_) => 125,
        }
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

/// What becomes of the work beside a wrapper or an agent that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnKill {
    /// The guard ends the command, so there is nothing to come back to.
    EndCommand,
    /// The work goes on, and the next agent takes up the same place.
    Rejoin,
}

/// A member with all of its credentials in files.
pub(crate) struct ObtainedAccess {
    pub(crate) member: LiveMember,
    pub(crate) begun: JoinState,
    pub(crate) dir: Arc<CredentialDir>,
}

impl ObtainedAccess {
    /// Joins, obtains, and writes the files. What was made on the way is ended where that fails, or where a signal asks to
    /// end: then nothing has begun.
    pub(crate) async fn obtain(
        joining: &JoinOptions,
        dir: CredentialDir,
        place: &RunContext,
        signals: &mut Signals,
        after_a_kill: OnKill,
    ) -> Result<Self, RunError> {
        // Neither a core file nor a debugger of the same user shows the session's secret or a token.
        if let Err(error) = prctl::set_dumpable(false) {
            tracing::debug!(%error, "this process may be dumped");
        }
        let dir = Arc::new(dir);
        let mut begun = JoinState::new(place);
        let mut together = Arrivals::default();
        let obtained = tokio::select! {
            obtained = obtain(joining, place, &dir, &mut begun, after_a_kill) => obtained,
            signal = ending(signals, &mut together, &*place.clock) => Err(RunError::Interrupted(signal)),
        };
        match obtained {
            Ok(member) => {
                if let Some(warning) = dir.warning() {
                    place.voice.say(warning);
                }
                Ok(ObtainedAccess { member, begun, dir })
            }
            Err(error) => {
                dir.wipe();
                let why = error.to_string();
                if let RunError::Interrupted(signal) = &error
                    && begun.has_job()
                {
                    let span = UNDO.as_secs();
                    place.voice.say(&format!(
                        "{signal}: nothing is started; what was begun is ended, within {span} s; once more leaves at once"
                    ));
                }
                tokio::select! {
                    () = begun.undo(&why, &place.voice) => {}
                    signal = ending(signals, &mut together, &*place.clock) => {
                        place.voice.say(&format!("{signal}: left at once; what was begun ends when nobody takes part in it"));
                    }
                }
                Err(error)
            }
        }
    }

    /// Takes it all back: what it was for could not be started.
    pub(crate) async fn undo(self, why: &str, voice: &MessageSink) {
        self.dir.wipe();
        self.begun.undo(why, voice).await;
    }

    /// What stands in the environment of who uses it.
    pub(crate) fn env(&self, svid: Option<&SvidPaths>) -> Vec<(OsString, OsString)> {
        let mut set = self.dir.env();
        if let Some(svid) = svid {
            set.extend([
                ("LEASEHOLD_SVID_CERT".into(), svid.cert.clone().into()),
                ("LEASEHOLD_SVID_KEY".into(), svid.key.clone().into()),
                ("LEASEHOLD_BUNDLE".into(), svid.bundle.clone().into()),
            ]);
        }
        set
    }

    /// The line that it begins with.
    pub(crate) fn described(&self) -> String {
        self.begun.described(&self.member.opens())
    }
}

async fn obtain(
    joining: &JoinOptions,
    place: &RunContext,
    dir: &Arc<CredentialDir>,
    begun: &mut JoinState,
    after_a_kill: OnKill,
) -> Result<LiveMember, RunError> {
    let sessions = match after_a_kill {
        OnKill::Rejoin => Some(&**dir),
        OnKill::EndCommand => None,
    };
    let (who, connected) = begin(joining, begun, place, sessions).await?;
    let surroundings = MemberContext {
        dir: dir.clone(),
        clock: place.clock.clone(),
        identity: place.identity.clone(),
        voice: place.voice.clone(),
        rejoin: joining.settings.rejoin,
    };
    let mut member = LiveMember::new(who, connected, surroundings)?;
    member.obtain(START_PATIENCE).await?;
    Ok(member)
}

/// The next signal that asks to end. Before there is anything to pass it on to, the others mean nothing.
async fn ending(signals: &mut Signals, together: &mut Arrivals, clock: &dyn Clock) -> Signal {
    loop {
        let heard = signals.heard().await;
        let is_new = together.heard(heard, clock.now().lease);
        // SIGKILL says that the process in front is gone.
        let ends = |s: &Signal| is_farewell(*s) || matches!(s, Signal::SIGQUIT | Signal::SIGKILL);
        if let Some(signal) = heard.signal.named().filter(ends).filter(|_| is_new) {
            return signal;
        }
    }
}

/// How a platform says that a job is to finish.
pub(crate) fn is_farewell(signal: impl Into<SignalNumber>) -> bool {
    matches!(signal.into().named(), Some(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;

    #[test]
    fn what_goes_wrong_before_the_child_is_told_apart_by_its_code() {
        let refused = RunError::from(Refusal::new(Reason::PolicyDenied, "no"));
        assert_eq!(refused.exit_code(), 125);
        let gone = crate::agent::CommandError::NotFound { command: "x".into() };
        assert_eq!(RunError::from(SpawnError::from(gone)).exit_code(), 127);
        assert_eq!(RunError::Interrupted(Signal::SIGTERM).exit_code(), 143);
        assert_eq!(RunError::Interrupted(Signal::SIGINT).exit_code(), 130);
    }

    #[test]
    fn a_farewell_is_what_platforms_say() {
        assert!([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().all(is_farewell));
        assert!(
            ![Signal::SIGUSR1, Signal::SIGQUIT, Signal::SIGCONT, Signal::SIGWINCH]
                .into_iter()
                .any(is_farewell)
        );
    }
}
