//! One run: access, then a command; and their ends in the other order.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::mpsc;

use super::{
    Child, ChildEnvironment, ChildSpec, CredentialDir, Ended, Joining, Left, OnRevoke, RunError, RunPlace,
    RunSettings, Signals, SpawnError, Voice,
    access::{Access, is_farewell},
    command,
    meaning::Over,
    member::{Command, Member, Report},
};
use crate::{
    clock::Clock,
    limits::REPORT,
    proto::v1,
    reason::{Reason, Refusal},
};

/// What is run, and with whose access.
#[derive(Debug)]
pub struct RunOptions {
    pub joining: Joining,
    /// Where the credential files are made; else in memory, where there is some.
    pub dir: Option<PathBuf>,
    /// The command and its arguments, at least the command.
    pub command: Vec<OsString>,
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
    let dir = CredentialDir::create(options.dir.as_deref())?;
    let joining = &options.joining;
    let access = Access::obtain(joining, dir, &place, &mut signals).await?;

    let set = access.env(joining.svid.as_ref());
    let env = ChildEnvironment::of_this_process(&joining.settings.keep_env, set);
    if let Some(notice) = env.notice() {
        place.voice.say(&notice);
    }
    let spec = ChildSpec {
        grace: joining.settings.grace,
        files: Some(access.dir.path().to_owned()),
        ..ChildSpec::new(options.command.clone(), env)
    };
    let child = match Child::spawn(&spec) {
        Ok(child) => child,
        Err(error) => {
            access.undo(&error.to_string(), &place.voice).await;
            return Err(error.into());
        }
    };
    place.voice.say(&access.described());
    let run = Run {
        handle: child.handle(),
        child,
        signals,
        settings: joining.settings.clone(),
        window: access.member.window(),
        dir: access.dir,
        clock: place.clock,
        voice: place.voice,
    };
    Ok(run.until_the_end(access.member).await)
}

/// A child that runs, with its access.
struct Run {
    child: Child,
    handle: super::ChildHandle,
    signals: Signals,
    settings: RunSettings,
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
                    if is_farewell(signal) && !std::mem::replace(&mut has_farewell, true) {
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
        let grace = self.settings.grace;
        let then = match self.settings.on_revoke {
            OnRevoke::Term => {
                format!("the command is ended by SIGTERM, and by SIGKILL after {} s", grace.as_secs())
            }
            OnRevoke::Kill => "the command is ended by SIGKILL".to_owned(),
            OnRevoke::Ignore => "the command goes on without access".to_owned(),
        };
        over.said(&self.voice);
        self.voice.say(&format!("the credential files are wiped; {then}"));
        let (handle, how, clock) = (self.handle.clone(), self.settings.on_revoke, self.clock.clone());
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
