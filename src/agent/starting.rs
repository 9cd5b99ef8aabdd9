//! The time between the first access and the start of the command. The wrapper fills folders in this time, which may take long.

use super::{
    access::{
        join::JoinState,
        member::handle::MemberHandle,
        obtain::{RunContext, RunError, next_end_signal, undo_start},
    },
    folders::{FolderContext, LocalFolders},
    forward::Forwarder,
    process::{arrivals::Arrivals, signals::Signals},
    spec::RunSettings,
};
use crate::{
    name::JobId,
    reason::{Reason, Refusal},
};

/// A member whose command is not started yet.
pub(super) struct Starting<'a> {
    pub(super) member: MemberHandle,
    pub(super) arrivals: Arrivals,
    pub(super) signals: &'a mut Signals,
    pub(super) context: &'a RunContext,
}

impl Starting<'_> {
    /// Fills the folders that the job file names. The member keeps its access meanwhile. If the access ends, this stops copying
    /// and fails.
    pub(super) async fn fill_folders(
        &mut self,
        settings: &RunSettings,
        forwarder: Option<&Forwarder>,
        job: JobId,
    ) -> Result<LocalFolders, RunError> {
        let RunContext { clock, messages, .. } = self.context;
        let filling = LocalFolders::prepare(settings, FolderContext { forwarder, job, clock, messages });
        tokio::pin!(filling);
        let stopped = |reason, message: &str| Err(Refusal::new(reason, message.to_owned()).into());
        loop {
            tokio::select! {
                biased;
                filled = &mut filling => return Ok(filled?),
                signal = next_end_signal(self.signals, &mut self.arrivals, &**clock) => {
                    return Err(RunError::Interrupted(signal));
                }
                Ok(()) = self.member.status.changed() => {
                    let now = self.member.status.borrow_and_update().clone();
                    if let Some(end) = now.end {
                        return stopped(end.reason, &end.message);
                    }
                    if now.is_draining {
                        return stopped(Reason::AttemptDraining, "the job was asked to finish before its command was started");
                    }
                }
                _ = &mut self.member.serving => {}
            }
        }
    }

    /// Ends the job and attempt that were created.
    pub(super) async fn undo(&mut self, state: &JoinState, error: &RunError) {
        let RunContext { clock, messages, .. } = self.context;
        undo_start(state, error, messages, (self.signals, &mut self.arrivals), &**clock).await;
    }
}
