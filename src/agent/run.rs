//! One run: access, then a command; and their ends in the other order.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, watch};

use super::{
    access::{
        credential_dir::CredentialDir,
        folder::Readers,
        index::DrainNote,
        meaning::AccessEnd,
        member::live::{FinalReport, LiveMember, MemberCommand, MemberStatus},
        obtain::{JoinOptions, ObtainedAccess, OnKill, RunContext, RunError, is_farewell},
    },
    messages::MessageSink,
    process::{
        child::{Child, ChildEvent, ChildSpec, SpawnError},
        command,
        environment::ChildEnvironment,
        exit::{ChildExit, ChildStatus, ToFinish, outcome_name},
        front::{FrontHandle, FrontPipes},
        processes::Survivors,
        rlimits::{is_own_cpu_limit, limit_of_end},
        signals::{Arrivals, SentTo, SignalArrival, SignalNumber, SignalReceiver, Signals},
    },
    spec::{OnRevoke, RunSettings},
};
use crate::{
    clock::{Clock, Wall},
    identity::IdentitySource,
    limits::{DRAIN_GRACE_DEFAULT, REPORT, SVID_SHORT},
    proto::v1,
    reason::{Reason, Refusal},
};

/// What is run, and with whose access.
#[derive(Debug)]
pub struct RunOptions {
    /// The process in front of this one, at a terminal.
    pub behind: Option<FrontPipes>,
    pub joining: JoinOptions,
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
pub async fn run(options: RunOptions, place: RunContext) -> Result<u8, RunError> {
    // First of all, so that no signal is lost: what comes from here on is passed on, or ends the start in order.
    let (front, way) = options.behind.map(FrontPipes::open).transpose().map_err(RunError::Signals)?.unzip();
    let signals = Signals::listen_behind(front).map_err(RunError::Signals)?;
    let ran = run_behind(options, place, signals, way.clone()).await;
    if let (Some(way), Err(RunError::Interrupted(signal))) = (way, &ran) {
        way.end_as(ChildStatus::Signalled(*signal as i32));
    }
    ran
}

async fn run_behind(
    options: RunOptions,
    place: RunContext,
    mut signals: Signals,
    way: Option<FrontHandle>,
) -> Result<u8, RunError> {
    let program = options.command.first().cloned().unwrap_or_default();
    command::resolve(&program, std::env::var_os("PATH").as_deref()).map_err(SpawnError::from)?;
    let dir = CredentialDir::create(options.dir.as_deref(), Readers::default())?;
    let joining = &options.joining;
    let access = ObtainedAccess::obtain(joining, dir, &place, &mut signals, OnKill::EndCommand).await?;

    let set = access.env(joining.svid.as_ref());
    let env = ChildEnvironment::of_this_process(&joining.settings.keep_env, set);
    if let Some(notice) = env.notice() {
        place.voice.say(&notice);
    }
    let spec = ChildSpec {
        grace: joining.settings.grace,
        files: Some(access.dir.path().to_owned()),
        front: way.clone(),
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
    let run = RunningCommand {
        handle: child.handle(),
        child,
        signals,
        drain: joining.settings.drain.or(access.begun.drain()).unwrap_or(DRAIN_GRACE_DEFAULT),
        to_finish: ToFinish::NotAsked,
        settings: joining.settings.clone(),
        window: access.member.window(),
        dir: access.dir,
        identity: place.identity,
        clock: place.clock,
        voice: place.voice,
        way,
        together: Arrivals::default(),
        farewells: 0,
    };
    Ok(run.until_the_end(access.member).await)
}

/// A child that runs, with its access.
struct RunningCommand {
    child: Child,
    handle: super::ChildHandle,
    signals: Signals,
    settings: RunSettings,
    /// The time for checkpoint writes, from the moment on when the command is asked to finish.
    drain: Duration,
    to_finish: ToFinish,
    window: Duration,
    dir: Arc<CredentialDir>,
    identity: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    voice: MessageSink,
    way: Option<FrontHandle>,
    together: Arrivals,
    /// Signals that asked to end, so far.
    farewells: u32,
}

impl RunningCommand {
    async fn until_the_end(mut self, member: LiveMember) -> u8 {
        let (commands, orders) = mpsc::channel(4);
        let (stands, mut standing) = watch::channel(MemberStatus::default());
        let serving = member.serve(orders, stands);
        tokio::pin!(serving);
        let mut terminating: Option<BoxFuture<'static, Survivors>> = None;
        let (mut warned, mut is_over) = (None, false);
        let ended = loop {
            let (identity, clock) = (self.identity.clone(), self.clock.clone());
            tokio::select! {
                biased;
                heard = self.signals.heard() => {
                    if heard == FRONT_IS_GONE {
                        return self.leave();
                    }
                    self.hear(heard);
                }
                news = self.child.next() => match news {
                    Ok(ChildEvent::Heard(signal)) => self.hear(SignalArrival { signal, by: SignalReceiver::Guard }),
                    Ok(ChildEvent::Ended(ended)) => break Ok(ended),
                    Err(error) => break Err(error),
                },
                () = clock.sleep_until(self.together.due()) => self.pass_on(&commands),
                Ok(()) = standing.changed() => {
                    let now = standing.borrow_and_update().clone();
                    if let (Some(over), false) = (now.over, is_over) {
                        is_over = true;
                        terminating = self.access_is_over(&over);
                    } else if now.is_draining {
                        self.drained_from_outside();
                    }
                }
                left = finished(&mut terminating) => {
                    terminating = None;
                    left.say(&self.voice);
                }
                end = svid_ends(&*identity, &*clock, warned) => {
                    warned = Some(end);
                    let left = end.since(clock.now().wall).as_secs();
                    self.voice.say(&format!(
                        "the SVID of this run ends in {left} s, at {end}: its access ends then, unless a new one comes before"
                    ));
                }
                // It ends only when it is told that the child has.
                _ = &mut serving => {}
            }
        };
        self.hear_what_came_with_the_end().await;
        self.dir.wipe();
        drop(terminating);
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                self.voice.say(&format!("the command can no longer be followed: {error}"));
                let end = ChildStatus::Exited(125);
                ChildExit { end, asked: None }
            }
        };
        let outcome = ended.outcome_after(self.to_finish);
        let finish = MemberCommand::Finish { outcome, detail: ended.detail() };
        let _ = commands.try_send(finish);
        let report = tokio::select! {
            report = &mut serving => report,
            () = self.clock.sleep(REPORT.saturating_add(Duration::from_secs(1))) => {
                FinalReport::Failed(Refusal::new(Reason::Unreachable, "no answer"))
            }
        };
        self.say_end(&ended, outcome, &report);
        self.end_rest().await.say(&self.voice);
        if let Some(way) = &self.way {
            way.end_as(ended.end);
        }
        ended.exit_code()
    }

    /// Takes note of a signal. Whether it is passed on is decided in a moment.
    fn hear(&mut self, heard: SignalArrival) {
        if heard.signal == Signal::SIGXFSZ {
            // The kernel's, about a write of ours, which says the rest.
            self.voice.say("a file of the wrapper would be larger than RLIMIT_FSIZE (ulimit -f) allows");
        } else if heard.signal == Signal::SIGXCPU && heard.by == SignalReceiver::Wrapper && is_own_cpu_limit()
        {
            self.voice.say(
                "the wrapper has used the processor time that RLIMIT_CPU (ulimit -t) allows; it goes on up to the hard limit",
            );
        } else if self.together.heard(heard, self.clock.now().lease) {
            self.handle.note(heard.signal);
            if is_farewell(heard.signal) {
                self.note_farewell(heard.signal);
            }
        }
    }

    /// The files say that the command is to finish before it is asked to.
    fn note_farewell(&mut self, signal: SignalNumber) {
        if std::mem::replace(&mut self.to_finish, ToFinish::Asked) == ToFinish::NotAsked {
            let writing_ends = Some(self.clock.now().wall.plus(self.drain));
            let reason = format!("{signal} from outside");
            // What has no space is written when there is some. The command hears the signal in any case.
            let _ = self.dir.note_drain(DrainNote { reason, reading_ends: None, writing_ends });
        }
    }

    /// The daemon has asked to finish: an operator drains the job. The files say until when.
    fn drained_from_outside(&mut self) {
        if std::mem::replace(&mut self.to_finish, ToFinish::Asked) == ToFinish::Asked {
            return;
        }
        let signal = match (self.settings.drain_signal, self.settings.on_revoke) {
            (Some(signal), _) => signal,
            (None, OnRevoke::Term | OnRevoke::Kill) => Signal::SIGTERM,
            (None, OnRevoke::Ignore) => {
                self.voice.say(
                    "the command is to finish: the file that LEASEHOLD_DRAIN_FILE names says until when",
                );
                return;
            }
        };
        self.voice.say(&format!("the command is asked to finish by {signal}"));
        self.handle.ask_to_finish(signal);
    }

    /// A signal to the whole group ends the command and reaches the wrapper in one moment.
    async fn hear_what_came_with_the_end(&mut self) {
        for _ in 0..2 {
            tokio::task::yield_now().await;
            while let Some(heard) = self.signals.heard().now_or_never() {
                self.hear(heard);
            }
        }
    }

    /// Passes on what was sent to the wrapper. What was sent to all has reached the command.
    fn pass_on(&mut self, commands: &mpsc::Sender<MemberCommand>) {
        for (signal, to) in self.together.decided(self.clock.now().lease) {
            let has_it = match to {
                SentTo::Wrapper => {
                    let instead = self.settings.drain_signal.filter(|_| signal == Signal::SIGTERM);
                    match instead.filter(|_| self.farewells == 0) {
                        Some(instead) => self.handle.ask_to_finish(instead),
                        None => self.handle.forward(signal),
                    }
                    "passed on to the command"
                }
                SentTo::All => {
                    self.handle.wake(signal);
                    "the command has it too"
                }
            };
            if !is_farewell(signal) {
                continue;
            }
            self.farewells = self.farewells.saturating_add(1);
            if self.farewells == 1 {
                let reason = format!("{signal} from outside");
                let _ = commands.try_send(MemberCommand::Drain { grace: Some(self.drain), reason });
            } else {
                let pid = self.handle.pid();
                self.voice.say(&format!(
                    "{signal} again: {has_it}, which has not ended; to end it at once: kill -KILL {pid}"
                ));
            }
        }
    }

    /// The process in front was killed, as the wrapper itself may be: no word is sent, and the guard ends the command.
    fn leave(&self) -> u8 {
        self.dir.wipe();
        self.voice.say("the process that the shell started was killed: the credential files are wiped, the command is ended");
        ChildStatus::Signalled(Signal::SIGKILL as i32).exit_code()
    }

    /// Ends what the command left behind, and says so if that takes its time.
    async fn end_rest(&mut self) -> Survivors {
        let (grace, clock) = (self.settings.grace, self.clock.clone());
        let began = clock.now().lease;
        let asked = {
            let rest = self.child.end_rest(grace, &*clock);
            tokio::pin!(rest);
            let mut has_said = false;
            loop {
                tokio::select! {
                    biased;
                    left = &mut rest => return left,
                    heard = self.signals.heard() => {
                        // The signal that ended the command is still under way to the other processes.
                        let is_new = self.together.heard(heard, clock.now().lease);
                        if is_new && (is_farewell(heard.signal) || heard == FRONT_IS_GONE) {
                            break heard.signal;
                        }
                    }
                    () = clock.sleep_until(began.plus(LEFT_BEHIND)), if !has_said => {
                        has_said = true;
                        self.voice.say(&format!(
                            "the command left processes behind: they had SIGTERM, and get SIGKILL after {} s; Ctrl-C ends them at once",
                            grace.as_secs()
                        ));
                    }
                }
            }
        };
        self.voice.say(&format!("{asked}: what the command left behind is ended by SIGKILL"));
        self.child.end_rest(Duration::ZERO, &*clock).await
    }

    /// Says why, and tells the child as the settings want it.
    fn access_is_over(&mut self, over: &AccessEnd) -> Option<BoxFuture<'static, Survivors>> {
        let grace = self.settings.grace;
        if self.settings.on_revoke != OnRevoke::Ignore {
            self.to_finish = ToFinish::Asked;
        }
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

    fn say_end(&self, ended: &ChildExit, outcome: v1::Outcome, report: &FinalReport) {
        if let (ChildStatus::Signalled(signal), None) = (ended.end, ended.asked)
            && let Some(limit) = limit_of_end(signal)
        {
            self.voice.say(&format!("the command was ended by signal {signal}: {limit}"));
        }
        let outcome = outcome_name(outcome);
        let detail = ended.detail();
        self.voice.say(&match report {
            FinalReport::Delivered => format!("{outcome}: {detail}; all access has ended"),
            FinalReport::NotNeeded => format!("{outcome}: {detail}; access had ended before"),
            FinalReport::Failed(refusal) => format!(
                "{outcome}: {detail}; this could not be reported ({}: {refusal}): access ends by itself within {} s",
                refusal.reason,
                self.window.as_secs()
            ),
        });
    }
}

const FRONT_IS_GONE: SignalArrival =
    SignalArrival { signal: SignalNumber(Signal::SIGKILL as i32), by: SignalReceiver::Front };
/// How long the rest of a command may take to end before it is spoken of.
const LEFT_BEHIND: Duration = Duration::from_secs(1);

/// Waits until the present SVID is about to end though it should have been renewed: once for each.
async fn svid_ends(identity: &dyn IdentitySource, clock: &dyn Clock, warned: Option<Wall>) -> Wall {
    let mut trust = identity.watch();
    loop {
        let late = trust.borrow_and_update().svid.as_ref().map(|svid| {
            let (begin, end) = (svid.leaf().not_before, svid.not_after());
            (end, SVID_SHORT.min(end.since(begin) / 3))
        });
        let wait = match late.filter(|(end, _)| Some(*end) != warned) {
            Some((end, short)) => match end.since(clock.now().wall).checked_sub(short) {
                // Looked at again within a minute: the wall clock may be set.
                Some(wait) if !wait.is_zero() => wait.min(Duration::from_secs(60)),
                _ => return end,
            },
            None => Duration::from_secs(3600),
        };
        tokio::select! {
            changed = trust.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
            () = clock.sleep(wait) => {}
        }
    }
}

async fn finished(terminating: &mut Option<BoxFuture<'static, Survivors>>) -> Survivors {
    match terminating {
        Some(terminating) => terminating.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::manual::ManualClock,
        identity::{
            StaticSource,
            testing::{NOW, TestCa, bundles},
        },
    };

    #[tokio::test]
    async fn an_svid_that_is_about_to_end_is_told_once() {
        let ca = TestCa::new("a.example");
        let source = StaticSource::new(Some(Arc::new(ca.svid("/w").svid())), bundles(&[&ca]));
        let (clock, soon) = (ManualClock::new(NOW), Duration::from_millis(50));
        let end = source.current().svid.as_ref().unwrap().not_after();
        let early = tokio::time::timeout(soon, svid_ends(&source, &clock, None)).await;
        assert!(early.is_err(), "half of its life is left");
        clock.set_wall(Wall(end.0 - 30_000));
        assert_eq!(svid_ends(&source, &clock, None).await, end);
        let again = tokio::time::timeout(soon, svid_ends(&source, &clock, Some(end))).await;
        assert!(again.is_err(), "once is enough");
    }
}
