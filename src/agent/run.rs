//! One run: a job, an attempt, a member, a child, in this order; and their ends in the other.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use super::{
    Child, ChildEnvironment, ChildSpec, CredentialDir, CredentialError, Ended, Left, OnRevoke, RunSettings,
    RunSpec, Signals, SpawnError, Voice,
    begin::{Begun, Request, begin},
    command,
    meaning::Over,
    member::{Command, Member, ObtainError, Place, Report},
};
use crate::{
    clock::Clock,
    identity::IdentitySource,
    limits::{REPORT, START_PATIENCE},
    link::Connector,
    name::{InstanceName, JobId},
    proto::v1,
    reason::{Reason, Refusal},
    secret::NoRandomness,
};

/// What is run, as whom, and with whose access.
#[derive(Debug)]
pub struct RunOptions {
    pub spec: RunSpec,
    /// A job that is there already; else the specification's is created.
    pub job: Option<JobId>,
    /// The same key creates the same job; else one of its own.
    pub idempotency_key: Option<String>,
    /// The scheduler's key for this run: the same key is the same attempt. Else one of its own.
    pub attempt_key: Option<String>,
    /// Else the host's name and the process id.
    pub instance: Option<InstanceName>,
    /// Else what the specification says.
    pub on_revoke: Option<OnRevoke>,
    /// Where the credential files are made; else in memory, where there is some.
    pub dir: Option<PathBuf>,
    /// The command and its arguments, at least the command.
    pub command: Vec<OsString>,
    /// What the child may use to show who it is.
    pub svid: Option<SvidPaths>,
}

/// Files that the child's environment names: `LEASEHOLD_SVID_CERT`, `LEASEHOLD_SVID_KEY`, `LEASEHOLD_BUNDLE`.
#[derive(Clone, Debug)]
pub struct SvidPaths {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub bundle: PathBuf,
}

/// What a run reaches the world by.
pub struct RunPlace {
    pub connector: Connector,
    /// The connector's own source: a new SVID means a new connection.
    pub identity: Arc<dyn IdentitySource>,
    pub clock: Arc<dyn Clock>,
    pub voice: Voice,
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

/// Runs a command under a job's access, and answers what to exit with.
///
/// stdout, stdin and the environment are the child's; the wrapper says little, by the voice. Nothing is started before all
/// credentials are there. The child's end is followed by: the files wiped, the end reported, what it left behind ended.
/// Needs a process that starts nothing else meanwhile, see [`Child`].
pub async fn run(options: RunOptions, place: RunPlace) -> Result<u8, RunError> {
    // First of all, so that no signal is lost: what comes from here on is passed on, or ends the start in order.
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let program = options.command.first().cloned().unwrap_or_default();
    command::resolve(&program, std::env::var_os("PATH").as_deref()).map_err(SpawnError::from)?;
    let dir = Arc::new(CredentialDir::create(options.dir.as_deref())?);

    let mut begun = Begun::new(&place);
    let prepared = tokio::select! {
        prepared = prepare(&options, &place, &dir, &mut begun) => prepared,
        signal = ending(&mut signals) => Err(RunError::Interrupted(signal)),
    };
    let started = prepared.and_then(|(member, env)| {
        let spec = ChildSpec {
            grace: options.spec.run.grace,
            files: Some(dir.path().to_owned()),
            ..ChildSpec::new(options.command.clone(), env)
        };
        Ok((member, Child::spawn(&spec)?))
    });
    let (member, child) = match started {
        Ok(started) => started,
        Err(error) => {
            dir.wipe();
            begun.undo(&error.to_string(), &place.voice).await;
            return Err(error);
        }
    };
    if let Some(warning) = dir.warning() {
        place.voice.say(warning);
    }
    place.voice.say(&begun.described(&member.opens()));
    let run = Run {
        handle: child.handle(),
        child,
        signals,
        settings: options.spec.run.clone(),
        on_revoke: options.on_revoke.unwrap_or(options.spec.run.on_revoke),
        drains: begun.is_alone(),
        window: member.window(),
        dir,
        clock: place.clock,
        voice: place.voice,
    };
    Ok(run.until_the_end(member).await)
}

/// The member with all of its credentials, and the environment that names them.
async fn prepare(
    options: &RunOptions,
    place: &RunPlace,
    dir: &Arc<CredentialDir>,
    begun: &mut Begun,
) -> Result<(Member, ChildEnvironment), RunError> {
    let request = Request {
        job: options.job,
        spec: &options.spec.job,
        idempotency_key: options.idempotency_key.clone(),
        attempt_key: options.attempt_key.clone(),
        instance: options.instance.clone(),
    };
    let (who, connected) = begin(request, begun, place).await?;
    let surroundings = Place {
        dir: dir.clone(),
        clock: place.clock.clone(),
        identity: place.identity.clone(),
        voice: place.voice.clone(),
        rejoin: options.spec.run.rejoin,
    };
    let mut member = Member::new(who, connected, surroundings)?;
    member.obtain(START_PATIENCE).await?;
    let mut set = dir.env();
    if let Some(svid) = &options.svid {
        set.extend([
            ("LEASEHOLD_SVID_CERT".into(), svid.cert.clone().into()),
            ("LEASEHOLD_SVID_KEY".into(), svid.key.clone().into()),
            ("LEASEHOLD_BUNDLE".into(), svid.bundle.clone().into()),
        ]);
    }
    let env = ChildEnvironment::of_this_process(&options.spec.run.keep_env, set);
    if let Some(notice) = env.notice() {
        place.voice.say(&notice);
    }
    Ok((member, env))
}

/// The next signal that asks to end. Before there is a child, the others mean nothing.
async fn ending(signals: &mut Signals) -> Signal {
    loop {
        let signal = signals.next().await;
        if is_farewell(signal) || signal == Signal::SIGQUIT {
            return signal;
        }
    }
}

/// How a platform says that a job is to finish.
fn is_farewell(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP)
}

/// A child that runs, with its access.
struct Run {
    child: Child,
    handle: super::ChildHandle,
    signals: Signals,
    settings: RunSettings,
    on_revoke: OnRevoke,
    /// We are the attempt's only member: our farewell is the attempt's.
    drains: bool,
    window: Duration,
    dir: Arc<CredentialDir>,
    clock: Arc<dyn Clock>,
    voice: Voice,
}

impl Run {
    async fn until_the_end(mut self, member: Member) -> u8 {
        let (commands, orders) = mpsc::channel(4);
        let (tell, mut told) = mpsc::channel(1);
        let serving = member.serve(orders, tell);
        tokio::pin!(serving);
        let mut terminating: Option<BoxFuture<'static, Left>> = None;
        let mut has_farewell = false;
        let ended = loop {
            tokio::select! {
                biased;
                ended = self.child.wait() => break ended,
                signal = self.signals.next() => {
                    self.handle.forward(signal);
                    if is_farewell(signal) && !std::mem::replace(&mut has_farewell, true) && self.drains {
                        let reason = format!("{signal} from outside");
                        let _ = commands.try_send(Command::Drain { grace: self.settings.drain, reason });
                    }
                }
                Some(over) = told.recv() => terminating = self.access_is_over(&over),
                left = finished(&mut terminating) => {
                    terminating = None;
                    self.say_left(&left);
                }
                // It ends only when it is told that the child has.
                _ = &mut serving => {}
            }
        };
        self.dir.wipe();
        drop(terminating);
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                self.voice.say(&format!("the command can no longer be followed: {error}"));
                let end = super::ChildEnd::Exited(125);
                Ended { end, asked: None }
            }
        };
        let finish = Command::Finish { outcome: ended.outcome(), detail: ended.detail() };
        let _ = commands.try_send(finish);
        let report = tokio::select! {
            report = &mut serving => report,
            () = self.clock.sleep(REPORT.saturating_add(Duration::from_secs(1))) => {
                Report::Failed(Refusal::new(Reason::Unreachable, "no answer"))
            }
        };
        self.say_end(&ended, &report);
        let left = self.child.end_rest(self.settings.grace, &*self.clock).await;
        self.say_left(&left);
        ended.exit_code()
    }

    /// Says why, and tells the child as the settings want it.
    fn access_is_over(&self, over: &Over) -> Option<BoxFuture<'static, Left>> {
        let what = match over.reason {
            Reason::AttemptStale => "this attempt was superseded",
            _ => "access has ended",
        };
        let grace = self.settings.grace;
        let then = match self.on_revoke {
            OnRevoke::Term => {
                format!("the command is ended by SIGTERM, and by SIGKILL after {} s", grace.as_secs())
            }
            OnRevoke::Kill => "the command is ended by SIGKILL".to_owned(),
            OnRevoke::Ignore => "the command goes on without access".to_owned(),
        };
        self.voice.say(&format!("{what} ({}): {}", over.reason, over.message));
        self.voice.say(&format!("the credential files are wiped; {then}"));
        let (handle, how, clock) = (self.handle.clone(), self.on_revoke, self.clock.clone());
        Some(async move { handle.terminate(how, grace, &*clock).await }.boxed())
    }

    fn say_end(&self, ended: &Ended, report: &Report) {
        let outcome = match ended.outcome() {
            v1::Outcome::Completed => "completed",
            v1::Outcome::Interrupted => "interrupted",
            _ => "failed",
        };
        let detail = ended.detail();
        self.voice.say(&match report {
            Report::Delivered => format!("{outcome}: {detail}; all access has ended"),
            Report::NotNeeded => format!("{outcome}: {detail}; access had ended before"),
            Report::Failed(refusal) => format!(
                "{outcome}: {detail}; this could not be reported ({}: {refusal}): access ends by itself within {} s",
                refusal.reason,
                self.window.as_secs()
            ),
        });
    }

    fn say_left(&self, left: &Left) {
        if !left.pids.is_empty() {
            let pids: Vec<String> = left.pids.iter().map(ToString::to_string).collect();
            self.voice
                .say(&format!("processes that could not be ended, without access: {}", pids.join(", ")));
        }
    }
}

async fn finished(terminating: &mut Option<BoxFuture<'static, Left>>) -> Left {
    match terminating {
        Some(terminating) => terminating.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_before_the_child_is_told_apart_by_its_code() {
        let refused = RunError::from(Refusal::new(Reason::PolicyDenied, "no"));
        assert_eq!(refused.exit_code(), 125);
        let gone = super::super::CommandError::NotFound { command: "x".into() };
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
