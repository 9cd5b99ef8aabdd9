//! `leasehold run`: access, then a command. The end of the command ends the access.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use nix::sys::signal::Signal;

use super::{
    access::{
        access_end::AccessEnd,
        credential_dir::CredentialDir,
        folder::Readers,
        index::DrainNote,
        member::handle::{MemberCommand, MemberHandle},
        obtain::{JoinOptions, ObtainedAccess, OnKill, RunContext, RunError, asks_to_finish},
    },
    folders::LocalFolders,
    forward::Forwarder,
    messages::MessageSink,
    process::{
        arrivals::{Arrivals, SentTo},
        child::{Child, ChildEvent, ChildHandle, ChildSpec, SpawnError},
        command,
        environment::{ChildEnvironment, EnvChoice},
        exit::{ChildExit, ChildStatus, FinishRequest, outcome_name},
        front::{FrontHandle, FrontPipes},
        processes::Survivors,
        rlimits::{limit_behind_signal, raise_own_cpu_limit},
        signals::{SignalArrival, SignalNumber, SignalReceiver, Signals},
    },
    spec::{OnRevoke, RunSettings},
    starting::Starting,
};
use crate::{
    clock::{Clock, Wall},
    identity::IdentitySource,
    limits::{DRAIN_GRACE_DEFAULT, SVID_SHORT},
    reason::Reason,
};

/// The command to run, and the access for it.
#[derive(Debug)]
pub struct RunOptions {
    /// The pipes to the process that the shell started, if this process is behind it at a terminal.
    pub front: Option<FrontPipes>,
    /// The job and the attempt to join, and the name of the member.
    pub joining: JoinOptions,
    /// Where to create the directory of credential files. `None` uses memory, if possible.
    pub dir: Option<PathBuf>,
    /// The command and its arguments. Contains at least the command.
    pub command: Vec<OsString>,
}

/// Runs a command with the access of a job, and returns the exit code.
///
/// stdout, stdin and the environment belong to the child. The wrapper prints few messages. It starts the command after all
/// credentials are in their files. When the command has ended, the wrapper wipes the files, reports the end, and ends the
/// processes that the command left behind. This process must not start any other child, see [`Child`].
///
/// # Errors
///
/// Fails if the command could not be started. A job or attempt that was created for it is ended.
pub async fn run(options: RunOptions, context: RunContext) -> Result<u8, RunError> {
    // This comes first, so that no signal is lost. From here on, a signal is passed on, or undoes the start.
    let (front, handle) = options.front.map(FrontPipes::open).transpose().map_err(RunError::Signals)?.unzip();
    let signals = Signals::listen_behind(front).map_err(RunError::Signals)?;
    let ran = run_behind(options, context, signals, handle.clone()).await;
    if let (Some(front), Err(RunError::Interrupted(signal))) = (handle, &ran) {
        front.end_as(ChildStatus::Signalled(*signal as i32));
    }
    ran
}

async fn run_behind(
    options: RunOptions,
    context: RunContext,
    mut signals: Signals,
    front: Option<FrontHandle>,
) -> Result<u8, RunError> {
    let program = options.command.first().cloned().unwrap_or_default();
    command::resolve(&program, std::env::var_os("PATH").as_deref()).map_err(SpawnError::from)?;
    let dir = CredentialDir::create(options.dir.as_deref(), Readers::default())?;
    let joining = options.joining;
    let access = ObtainedAccess::obtain(&joining, dir, &context, &mut signals, OnKill::EndCommand).await?;

    let set = access.env(joining.svid.as_ref(), &joining.settings.keep_env);
    let choice = EnvChoice { keep: &joining.settings.keep_env, scrub: &joining.settings.scrub };
    let env = ChildEnvironment::of_this_process(choice, set).without(access.cleared(), choice);
    env.notices().for_each(|notice| context.messages.send(&notice));
    let description = access.description();
    let ObtainedAccess { member, state, dir, forwarder, .. } = access;
    let settings = joining.settings;
    let mut starting = Starting {
        member: MemberHandle::start(member),
        arrivals: Arrivals::default(),
        signals: &mut signals,
        context: &context,
    };
    let prepared = match state.job() {
        Some(job) => starting.fill_folders(&settings, forwarder.as_ref(), job).await,
        None => Ok(LocalFolders::none(&context.messages)),
    };
    let started = prepared.and_then(|folders| {
        let spec = ChildSpec {
            grace: settings.grace,
            files: Some(dir.path().to_owned()),
            copies: folders.copies(),
            front: front.clone(),
            ..ChildSpec::new(options.command, env)
        };
        Ok((Child::spawn(&spec)?, folders))
    });
    let (child, folders) = match started {
        Ok(started) => started,
        Err(error) => {
            dir.wipe();
            starting.undo(&state, &error).await;
            return Err(error);
        }
    };
    let member = starting.member;
    context.messages.send(&description);
    let run = RunningCommand {
        handle: child.handle(),
        child,
        signals,
        drain: settings.drain.or(state.drain()).unwrap_or(DRAIN_GRACE_DEFAULT),
        finish_request: FinishRequest::NotAsked,
        settings,
        dir,
        forwarder,
        folders,
        identity: context.identity,
        clock: context.clock,
        messages: context.messages,
        front,
        arrivals: Arrivals::default(),
        end_signals: 0,
    };
    Ok(run.serve(member).await)
}

struct RunningCommand {
    child: Child,
    handle: ChildHandle,
    signals: Signals,
    settings: RunSettings,
    /// The time for checkpoint writes after the command is asked to finish.
    drain: Duration,
    finish_request: FinishRequest,
    dir: Arc<CredentialDir>,
    forwarder: Option<Forwarder>,
    folders: LocalFolders,
    identity: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    messages: MessageSink,
    front: Option<FrontHandle>,
    arrivals: Arrivals,
    /// How many signals asked to end so far.
    end_signals: u32,
}

/// The future that ends every process below the wrapper.
type Termination = BoxFuture<'static, Survivors>;

impl RunningCommand {
    async fn serve(mut self, mut member: MemberHandle) -> u8 {
        let mut termination: Option<Termination> = None;
        let (mut warned, mut access_has_ended, mut is_cut_off) = (None, false, false);
        let exit = loop {
            let (identity, clock) = (self.identity.clone(), self.clock.clone());
            tokio::select! {
                biased;
                arrival = self.signals.next_arrival() => {
                    if arrival == FRONT_IS_GONE {
                        return self.leave();
                    }
                    self.on_signal(arrival);
                }
                event = self.child.next_event() => match event {
                    Ok(ChildEvent::Signal(signal)) => {
                        self.on_signal(SignalArrival { signal, receiver: SignalReceiver::Guard });
                    }
                    Ok(ChildEvent::Ended(exit)) => break Ok(exit),
                    Err(error) => break Err(error),
                },
                () = clock.sleep_until(self.arrivals.due()) => self.pass_on(&member),
                Ok(()) = member.status.changed() => {
                    let now = member.status.borrow_and_update().clone();
                    if let (Some(end), false) = (now.end, access_has_ended) {
                        access_has_ended = true;
                        is_cut_off = self.cuts_off(&end);
                        termination = Some(self.on_access_end(&end));
                    } else if now.is_draining {
                        self.on_drain_from_outside();
                    }
                }
                survivors = terminated(&mut termination) => {
                    termination = None;
                    survivors.report(&self.messages);
                }
                end = svid_end_near(&*identity, &*clock, warned) => {
                    warned = Some(end);
                    let left = end.since(clock.now().wall).as_secs();
                    self.messages.send(&format!(
                        "the SVID of this run ends in {left} s, at {end}: if it is not renewed before, the access of this run ends then"
                    ));
                }
                _ = &mut member.serving => {}
            }
        };
        self.read_signals_of_the_end().await;
        self.dir.wipe();
        drop(termination);
        let mut exit = exit.unwrap_or_else(|error| {
            self.messages.send(&format!("the command can no longer be followed: {error}"));
            ChildExit { status: ChildStatus::Exited(125), asked: None }
        });
        let left = self.upload_the_rest(&mut member, access_has_ended).await;
        self.forwarder = None;
        if left.is_some() && exit.status == ChildStatus::Exited(0) {
            // The command did its work, but its results were not uploaded.
            exit.status = ChildStatus::Exited(125);
        }
        self.finish(&mut member, &exit, left).await;
        self.end_descendants().await.report(&self.messages);
        let exit = if is_cut_off { self.cut_off(exit) } else { exit };
        self.folders.remove_copies().await;
        if let Some(front) = &self.front {
            front.end_as(exit.status);
        }
        exit.exit_code()
    }

    /// Reports the end of the command, and prints the last message.
    async fn finish(&self, member: &mut MemberHandle, exit: &ChildExit, left: Option<String>) {
        let outcome = exit.outcome_after(self.finish_request);
        let detail = exit.detail() + &left.map(|left| format!("; {left}")).unwrap_or_default();
        let command = MemberCommand::Finish { outcome, detail: detail.clone() };
        let report = member.end(command, &*self.clock).await;
        if let (ChildStatus::Signalled(signal), None) = (exit.status, exit.asked)
            && let Some(limit) = limit_behind_signal(signal)
        {
            self.messages.send(&format!("the command was ended by signal {signal}: {limit}"));
        }
        self.messages.send(&format!("{}: {detail}; {}", outcome_name(outcome), member.access_after(&report)));
    }

    /// Ends the processes that the command left behind, and uploads the files that it wrote to synced folders. Returns a text
    /// about the files that are not uploaded.
    ///
    /// The end of access and a second signal end this at once.
    async fn upload_the_rest(&mut self, member: &mut MemberHandle, access_has_ended: bool) -> Option<String> {
        if !self.folders.are_synced() {
            return None;
        }
        if !access_has_ended {
            let survivors = {
                let ending = self.end_descendants();
                tokio::pin!(ending);
                loop {
                    tokio::select! {
                        survivors = &mut ending => break survivors,
                        _ = &mut member.serving => {}
                    }
                }
            };
            survivors.report(&self.messages);
            self.upload_until_asked_to_stop(member).await;
        }
        let until = if member.status.borrow().end.is_some() { ", before access ended" } else { "" };
        let left = self.folders.end_uploads(until).await?;
        self.messages.send(&left);
        Some(left)
    }

    async fn upload_until_asked_to_stop(&mut self, member: &mut MemberHandle) {
        let (clock, began) = (self.clock.clone(), self.clock.now().lease);
        let uploading = self.folders.upload_the_rest();
        tokio::pin!(uploading);
        let mut is_reported = false;
        loop {
            tokio::select! {
                biased;
                () = &mut uploading => return,
                arrival = self.signals.next_arrival() => {
                    let is_new = self.arrivals.add(arrival, clock.now().lease);
                    if arrival == FRONT_IS_GONE {
                        return;
                    }
                    if is_new && asks_to_finish(arrival.signal) {
                        self.end_signals = self.end_signals.saturating_add(1);
                        if self.end_signals > 1 {
                            return;
                        }
                        member.drain(self.drain, format!("{} from outside", arrival.signal));
                        self.messages.send("the command has ended, its files are being uploaded; a second signal ends that");
                    }
                }
                Ok(()) = member.status.changed() => {
                    if let Some(end) = member.status.borrow_and_update().end.clone() {
                        self.messages.send(&format!("access has ended ({}): {}", end.reason, end.message));
                        return;
                    }
                }
                () = clock.sleep_until(began.plus(QUIET_END)), if !is_reported => {
                    is_reported = true;
                    self.messages.send("the command has ended; uploading the rest of its files");
                }
                _ = &mut member.serving => {}
            }
        }
    }

    // ---------- signals ----------

    /// Notes a signal. The wrapper decides a moment later whether to pass it on.
    fn on_signal(&mut self, arrival: SignalArrival) {
        let signal = arrival.signal;
        if signal == Signal::SIGXFSZ {
            // The kernel sent the signal about a write of the wrapper. The failed write is reported separately.
            self.messages.send("a file of the wrapper would be larger than RLIMIT_FSIZE (ulimit -f) allows");
        } else if signal == Signal::SIGXCPU
            && arrival.receiver == SignalReceiver::Wrapper
            && raise_own_cpu_limit()
        {
            self.messages.send(
                "the wrapper has used the processor time that RLIMIT_CPU (ulimit -t) allows; it goes on up to the hard limit",
            );
        } else if self.arrivals.add(arrival, self.clock.now().lease) {
            self.handle.note_request(signal);
            if asks_to_finish(signal) {
                self.write_drain_note(signal);
            }
        }
    }

    /// Notes in the credential files that the command must finish. Does this before the command gets the signal.
    fn write_drain_note(&mut self, signal: SignalNumber) {
        if self.finish_request.mark_asked() {
            let writing_ends = Some(self.clock.now().wall.plus(self.drain));
            let reason = format!("{signal} from outside");
            // If this fails, the note is written later. The command gets the signal in any case.
            let _ = self.dir.note_drain(DrainNote { reason, reading_ends: None, writing_ends });
        }
    }

    /// Asks the command to finish, because an operator drains the job. The files say until when.
    fn on_drain_from_outside(&mut self) {
        if !self.finish_request.mark_asked() {
            return;
        }
        match self.settings.signal_to_finish() {
            Some(signal) => {
                self.messages.send(&format!("the command is asked to finish by {signal}"));
                self.handle.ask_to_finish(signal);
            }
            None => self
                .messages
                .send("the command is to finish: the file that LEASEHOLD_DRAIN_FILE names says until when"),
        }
    }

    /// Reads the signals that arrived at the end. A signal to the whole group ends the command and reaches the wrapper at the
    /// same time.
    async fn read_signals_of_the_end(&mut self) {
        for _ in 0..2 {
            tokio::task::yield_now().await;
            while let Some(arrival) = self.signals.next_arrival().now_or_never() {
                self.on_signal(arrival);
            }
        }
    }

    /// Passes on signals that only the wrapper got. The command already has the other signals.
    fn pass_on(&mut self, member: &MemberHandle) {
        for (signal, to) in self.arrivals.take_decided(self.clock.now().lease) {
            let has_it = match to {
                SentTo::Wrapper => {
                    let instead = self.settings.drain_signal.filter(|_| signal == Signal::SIGTERM);
                    match instead.filter(|_| self.end_signals == 0) {
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
            if !asks_to_finish(signal) {
                continue;
            }
            self.end_signals = self.end_signals.saturating_add(1);
            if self.end_signals == 1 {
                member.drain(self.drain, format!("{signal} from outside"));
            } else {
                let pid = self.handle.pid();
                self.messages.send(&format!(
                    "{signal} again: {has_it}, but it has not ended; to end it at once: kill -KILL {pid}"
                ));
            }
        }
    }

    // ---------- ends ----------

    /// Leaves, because the process in front was killed. Acts as if the wrapper was killed: reports nothing, and lets the guard
    /// end the command.
    fn leave(&self) -> u8 {
        self.dir.wipe();
        self.messages.send("the process that the shell started was killed: the credential files are wiped, the command is ended");
        ChildStatus::Signalled(Signal::SIGKILL as i32).exit_code()
    }

    /// Ends the processes that the command left behind. Prints a message if that takes long.
    async fn end_descendants(&mut self) -> Survivors {
        let (grace, clock) = (self.settings.grace, self.clock.clone());
        let began = clock.now().lease;
        let asked = {
            let end = self.child.end_descendants(grace, &*clock);
            tokio::pin!(end);
            let mut is_reported = false;
            loop {
                tokio::select! {
                    biased;
                    survivors = &mut end => return survivors,
                    arrival = self.signals.next_arrival() => {
                        // A late arrival of the signal that ended the command is not a second request to end.
                        let is_new = self.arrivals.add(arrival, clock.now().lease);
                        if is_new && (asks_to_finish(arrival.signal) || arrival == FRONT_IS_GONE) {
                            break arrival.signal;
                        }
                    }
                    () = clock.sleep_until(began.plus(QUIET_END)), if !is_reported => {
                        is_reported = true;
                        self.messages.send(&format!(
                            "the command left processes behind: they got SIGTERM, and get SIGKILL after {} s; Ctrl-C ends them at once",
                            grace.as_secs()
                        ));
                    }
                }
            }
        };
        self.messages.send(&format!("{asked}: what the command left behind is ended by SIGKILL"));
        self.child.end_descendants(Duration::ZERO, &*clock).await
    }

    /// Returns the end that the caller sees, and prints a message if it differs from the command's end.
    fn cut_off(&self, exit: ChildExit) -> ChildExit {
        let before = exit.status;
        let seen = exit.after_access_end();
        if seen.status != before {
            let code = seen.exit_code();
            self.messages.send(&format!(
                "the command exited with 0 after its access was ended: `run` exits with {code}"
            ));
        }
        seen
    }

    /// Whether the end of access cuts the command off. If so, its exit code 0 does not mean that the work is done. After a
    /// drain, the command was not cut off, because it had time to save. With `on_revoke = "ignore"`, it goes on as its user
    /// wants.
    fn cuts_off(&self, end: &AccessEnd) -> bool {
        end.reason != Reason::AttemptDraining && self.settings.on_revoke != OnRevoke::Ignore
    }

    /// Reports the end of access, and begins to end the command as the settings say.
    fn on_access_end(&mut self, end: &AccessEnd) -> Termination {
        let grace = self.settings.grace;
        self.folders.on_access_end();
        if self.settings.on_revoke != OnRevoke::Ignore {
            self.finish_request = FinishRequest::Asked;
        }
        let then = match self.settings.on_revoke {
            OnRevoke::Term => {
                format!("the command is ended by SIGTERM, and by SIGKILL after {} s", grace.as_secs())
            }
            OnRevoke::Kill => "the command is ended by SIGKILL".to_owned(),
            OnRevoke::Ignore => "the command goes on without access".to_owned(),
        };
        end.report(&self.messages, &then);
        let (handle, how, clock) = (self.handle.clone(), self.settings.on_revoke, self.clock.clone());
        async move { handle.terminate(how, grace, &*clock).await }.boxed()
    }
}

const FRONT_IS_GONE: SignalArrival =
    SignalArrival { signal: SignalNumber(Signal::SIGKILL as i32), receiver: SignalReceiver::Front };
/// How long the remaining processes may take to end before a message is printed.
const QUIET_END: Duration = Duration::from_secs(1);

/// Waits until the present SVID is about to end, because it was not renewed in time. Returns its end. Ignores an SVID whose end is
/// `warned`, because the message about it was printed.
async fn svid_end_near(identity: &dyn IdentitySource, clock: &dyn Clock, warned: Option<Wall>) -> Wall {
    let mut trust = identity.watch();
    loop {
        let late = trust.borrow_and_update().svid.as_ref().map(|svid| {
            let (begin, end) = (svid.leaf().not_before, svid.not_after());
            (end, SVID_SHORT.min(end.since(begin) / 3))
        });
        let wait = match late.filter(|(end, _)| Some(*end) != warned) {
            Some((end, short)) => match end.since(clock.now().wall).checked_sub(short) {
                // Check again within a minute, because the wall clock may be set.
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

async fn terminated(termination: &mut Option<Termination>) -> Survivors {
    match termination {
        Some(termination) => termination.await,
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
    async fn an_svid_that_is_about_to_end_is_reported_once() {
        let ca = TestCa::new("a.example");
        let source = StaticSource::new(Some(Arc::new(ca.svid("/w").svid())), bundles(&[&ca]));
        let (clock, soon) = (ManualClock::new(NOW), Duration::from_millis(50));
        let end = source.current().svid.as_ref().unwrap().not_after();
        let early = tokio::time::timeout(soon, svid_end_near(&source, &clock, None)).await;
        assert!(early.is_err(), "half of its life is left");
        clock.set_wall(Wall(end.0 - 30_000));
        assert_eq!(svid_end_near(&source, &clock, None).await, end);
        let again = tokio::time::timeout(soon, svid_end_near(&source, &clock, Some(end))).await;
        assert!(again.is_err(), "once is enough");
    }
}
