//! The sidecar: a member that gives access to processes that it did not start.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nix::sys::signal::Signal;

use super::{
    access::{
        access_end::AccessEnd,
        credential_dir::CredentialDir,
        folder::Readers,
        index::DrainNote,
        join::JoinState,
        member::{
            handle::{FinalReport, MemberCommand, MemberHandle},
            live::LiveMember,
        },
        obtain::{JoinOptions, ObtainedAccess, OnKill, RunContext, RunError, asks_to_finish},
    },
    folders::FolderError,
    forward::Forwarder,
    messages::{MessageSink, print_stdout},
    process::{
        exit::{FinishRequest, outcome_name},
        processes::{Process, send},
        signals::{SignalNumber, Signals},
        work_watch::{ReportedEnd, StopConditions, WorkEnd, WorkWatch},
    },
    ready_file::{ReadySignal, export_lines},
    spec::{OnRevoke, RunSettings},
};
use crate::{
    clock::{Clock, LeaseTime},
    limits::{AGENT_FINISH, REPORT},
    proto::v1,
    reason::Reason,
};

/// The work that a sidecar serves, and the access for it.
#[derive(Debug)]
pub struct SidecarOptions {
    pub joining: JoinOptions,
    /// The directory of the credential files, in which the file names do not change. `None` uses a private directory in memory.
    pub dir: Option<PathBuf>,
    /// Who may read the credential files.
    pub readers: Readers,
    /// A file that exists while all credentials exist. A shell can read it.
    pub ready_file: Option<PathBuf>,
    /// The conditions that end the sidecar, besides signals.
    pub until: StopConditions,
}

/// How a sidecar ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SidecarEnd {
    /// The sidecar was asked to end, or the work that it watched has ended.
    AsAsked,
    /// Access was ended from outside.
    AccessEnded,
}

/// Keeps access for processes that this process did not start. Ends on a signal, at the end of the watched work, or when access
/// ends.
///
/// Prints the content of the ready file on stdout. If no file says how the work ended, the recorded outcome is unknown. Someone
/// who saw the end may still report the outcome.
pub async fn run_sidecar(options: SidecarOptions, context: RunContext) -> Result<SidecarEnd, RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let work = WorkWatch::start(&options.until).map_err(RunError::Watch)?;
    let dir = match &options.dir {
        Some(dir) => CredentialDir::at(dir, options.readers)?,
        None => CredentialDir::create(None, options.readers)?,
    };
    if let Some(path) = &options.ready_file {
        ReadySignal::remove_stale(path);
    }
    let joining = options.joining;
    if let Some(folder) = joining.settings.stage.iter().chain(&joining.settings.sync).next() {
        return Err(FolderError::NoCommand(folder.resource.clone()).into());
    }
    let access = ObtainedAccess::obtain(&joining, dir, &context, &mut signals, OnKill::Rejoin).await?;
    let variables = export_lines(&access.env(joining.svid.as_ref(), &joining.settings.keep_env));
    let mut ready = ReadySignal::new(options.ready_file, variables.clone(), access.dir.clone());
    if let Err(error) = ready.set(true) {
        access.undo(&error, &context.messages).await;
        return Err(RunError::Watch(error));
    }
    context.messages.send(&access.description());
    print_stdout(&variables);
    let settings = joining.settings;
    let sidecar = Sidecar {
        signals,
        work,
        drain: settings.drain.or(access.state.drain()).unwrap_or(AGENT_FINISH),
        finish_request: FinishRequest::NotAsked,
        settings,
        state: access.state,
        dir: access.dir,
        forwarder: access.forwarder,
        ready,
        clock: context.clock,
        messages: context.messages,
    };
    Ok(sidecar.serve(access.member).await)
}

struct Sidecar {
    signals: Signals,
    work: WorkWatch,
    /// How long a drain lasts, from the first signal that asks to finish until the end of access.
    drain: Duration,
    finish_request: FinishRequest,
    settings: RunSettings,
    state: JoinState,
    dir: Arc<CredentialDir>,
    forwarder: Option<Forwarder>,
    ready: ReadySignal,
    clock: Arc<dyn Clock>,
    messages: MessageSink,
}

impl Sidecar {
    async fn serve(mut self, member: LiveMember) -> SidecarEnd {
        let mut member = MemberHandle::start(member);
        let mut ends_at = LeaseTime(u64::MAX);
        let end = loop {
            tokio::select! {
                biased;
                signal = self.signals.next() => match (asks_to_finish(signal), ends_at.0) {
                    (true, u64::MAX) => ends_at = self.begin_to_finish(signal, &member),
                    (true, _) => break WorkEnd { what: "it was asked to end", reported: None },
                    (false, _) => {}
                },
                end = self.work.ended(&*self.clock) => break end,
                Ok(()) = member.status.changed() => {
                    let now = member.status.borrow_and_update().clone();
                    if let Some(end) = now.end {
                        self.ready.remove();
                        if ends_at.0 == u64::MAX || !may_end_a_drain(end.reason) {
                            return self.on_access_end(&end).await;
                        }
                        self.messages.send(&end.message);
                        break WorkEnd { what: "its drain is over", reported: None };
                    }
                    self.update_ready_file(now.is_complete);
                    if now.is_draining {
                        self.on_drain_from_outside();
                    }
                }
                // Usually the daemon ends access before. This line is for the case that the daemon is down.
                () = self.clock.sleep_until(ends_at) => {
                    break WorkEnd { what: "its drain is over", reported: None };
                }
                _ = &mut member.serving => {}
            }
        };
        self.ready.remove();
        self.dir.wipe();
        self.forwarder = None;
        self.finish(&mut member, &end).await;
        SidecarEnd::AsAsked
    }

    /// Reports the end of the work, closes the job if this process created it, and prints the last message.
    async fn finish(&self, member: &mut MemberHandle, end: &WorkEnd) {
        let said = end.reported.as_ref().and_then(|reported| reported.outcome(self.finish_request));
        if let Some(ReportedEnd::Other(text)) = &end.reported {
            self.messages.send(&format!(
                "the file says `{text}`, which is not an exit code, and not completed, failed or interrupted"
            ));
        }
        let command = match &said {
            Some((outcome, detail)) => MemberCommand::Finish { outcome: *outcome, detail: detail.clone() },
            None => MemberCommand::Leave,
        };
        let report = member.end(command, &*self.clock).await;
        self.close_own_job(end, said.as_ref(), &report).await;
        let outcome = match (&report, said) {
            (FinalReport::Delivered, Some((outcome, detail))) => {
                format!("; {}: {detail}", outcome_name(outcome))
            }
            (FinalReport::Delivered, None) => {
                "; outcome unknown: no process here saw how the work ended".to_owned()
            }
            (FinalReport::NotNeeded | FinalReport::Failed(_), _) => String::new(),
        };
        self.messages.send(&format!("{}{outcome}; {}", end.what, member.access_after(&report)));
    }

    /// Lets the work finish until the drain ends. Returns the latest end.
    fn begin_to_finish(&mut self, signal: SignalNumber, member: &MemberHandle) -> LeaseTime {
        self.finish_request = FinishRequest::Asked;
        let now = self.clock.now();
        let reason = format!("{signal} from outside");
        let writing_ends = Some(now.wall.plus(self.drain));
        let _ = self.dir.note_drain(DrainNote { reason: reason.clone(), reading_ends: None, writing_ends });
        member.drain(self.drain, reason);
        self.messages.send(&format!("{signal}: finishing; a second signal ends it now"));
        now.lease.plus(self.drain.saturating_add(REPORT))
    }

    /// Asks the watched process to finish, if there is one, because an operator drains the job.
    fn on_drain_from_outside(&mut self) {
        if !self.finish_request.mark_asked() {
            return;
        }
        if let (Some(signal), Some(process)) = (self.settings.signal_to_finish(), self.work.process) {
            self.messages.send(&format!("process {} is asked to finish by {signal}", process.pid));
            send_and_continue(process, signal);
        }
    }

    fn update_ready_file(&mut self, is_complete: bool) {
        if let Err(error) = self.ready.set(is_complete) {
            self.messages.send(&error);
        }
    }

    /// Closes the job if this process created it, because no other process would close it.
    async fn close_own_job(&self, end: &WorkEnd, said: Option<&(v1::Outcome, String)>, report: &FinalReport) {
        let is_closed = matches!(report, FinalReport::NotNeeded);
        let Some(job) = self.state.own_job().filter(|_| !is_closed) else { return };
        let (outcome, reason) = match said {
            Some((outcome, detail)) => (*outcome, detail.clone()),
            None => (v1::Outcome::Unknown, format!("{}, and no one saw how the work ended", end.what)),
        };
        if let Err(refusal) = self.state.close_job(job, outcome, &reason).await {
            self.messages.send(&format!("{job} could not be closed ({}: {refusal})", refusal.reason));
        }
    }

    /// Acts on the end of access from outside. The files have already been wiped.
    async fn on_access_end(mut self, end: &AccessEnd) -> SidecarEnd {
        let (watched, on_revoke, grace) = (self.work.process, self.settings.on_revoke, self.settings.grace);
        let then = match (watched, on_revoke) {
            (None, _) | (_, OnRevoke::Ignore) => "the programs beside it go on without access".to_owned(),
            (Some(p), OnRevoke::Term) => {
                format!("process {} is ended by SIGTERM, and by SIGKILL after {} s", p.pid, grace.as_secs())
            }
            (Some(p), OnRevoke::Kill) => format!("process {} is ended by SIGKILL", p.pid),
        };
        end.report(&self.messages, &then);
        if let (Some(process), OnRevoke::Term) = (watched, on_revoke) {
            send_and_continue(process, Signal::SIGTERM);
            tokio::select! {
                _ = self.work.ended(&*self.clock) => return SidecarEnd::AccessEnded,
                () = self.clock.sleep(grace) => {}
            }
        }
        if let (Some(process), OnRevoke::Term | OnRevoke::Kill) = (watched, on_revoke) {
            send(process, Signal::SIGKILL);
        }
        SidecarEnd::AccessEnded
    }
}

/// Sends a signal to a process, and then SIGCONT, because a stopped process acts only after SIGCONT.
fn send_and_continue(process: Process, signal: Signal) {
    send(process, signal);
    send(process, Signal::SIGCONT);
}

/// Whether the end of access for this reason is expected after a request to finish.
fn may_end_a_drain(reason: Reason) -> bool {
    use Reason::{AttemptDraining, AttemptEnded, AttemptStale, JobClosed, NotJoined};
    matches!(reason, AttemptDraining | AttemptEnded | AttemptStale | JobClosed | NotJoined)
}
