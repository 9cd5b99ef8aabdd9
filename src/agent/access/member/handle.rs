//! A running member, as the run or sidecar sees it: the commands that it takes and the state that it reports.

use std::time::Duration;

use futures_util::{FutureExt, future::LocalBoxFuture};
use tokio::sync::{mpsc, watch};

use super::live::LiveMember;
use crate::{
    agent::access::access_end::AccessEnd,
    clock::Clock,
    limits::REPORT,
    proto::v1,
    reason::{Reason, Refusal},
};

/// A command to a member.
#[derive(Debug)]
pub(crate) enum MemberCommand {
    /// The platform has asked the work to end: checkpoints may still be written during the grace.
    Drain { grace: Option<Duration>, reason: String },
    /// The work has ended.
    Finish { outcome: v1::Outcome, detail: String },
    /// The work has ended, and this process did not see how. Access ends, and someone else may report the outcome.
    Leave,
}

/// The state of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberStatus {
    /// Why access has ended, if it has ended. The files were wiped before.
    pub(crate) end: Option<AccessEnd>,
    /// The daemon has asked the work to finish. The files say until when.
    pub(crate) is_draining: bool,
    /// All wanted credentials are in their files.
    pub(crate) is_complete: bool,
}

/// The result of the report about the end of the work.
#[derive(Debug)]
pub(crate) enum FinalReport {
    Delivered,
    /// The attempt had ended before.
    NotNeeded,
    Failed(Refusal),
}

/// A running member. It acts only while [`serving`](Self::serving) is polled.
pub(crate) struct MemberHandle {
    commands: mpsc::Sender<MemberCommand>,
    pub(crate) status: watch::Receiver<MemberStatus>,
    /// Resolves only after a command to finish or leave.
    pub(crate) serving: LocalBoxFuture<'static, FinalReport>,
    window: Duration,
}

impl MemberHandle {
    pub(crate) fn start(member: LiveMember) -> Self {
        let (commands, orders) = mpsc::channel(4);
        let (publish, status) = watch::channel(MemberStatus::default());
        let window = member.window();
        MemberHandle { commands, status, serving: member.serve(orders, publish).boxed_local(), window }
    }

    /// Asks the daemon for time to finish the work.
    pub(crate) fn drain(&self, grace: Duration, reason: String) {
        let _ = self.commands.try_send(MemberCommand::Drain { grace: Some(grace), reason });
    }

    /// Ends the member, and waits until the report is delivered or has failed.
    pub(crate) async fn end(&mut self, command: MemberCommand, clock: &dyn Clock) -> FinalReport {
        let _ = self.commands.try_send(command);
        tokio::select! {
            report = &mut self.serving => report,
            () = clock.sleep(REPORT.saturating_add(Duration::from_secs(1))) => {
                FinalReport::Failed(Refusal::new(Reason::Unreachable, "no answer"))
            }
        }
    }

    /// Says what happened to the access, for the last message.
    pub(crate) fn access_after(&self, report: &FinalReport) -> String {
        match report {
            FinalReport::Delivered => "all access has ended".to_owned(),
            FinalReport::NotNeeded => "access had ended before".to_owned(),
            FinalReport::Failed(refusal) => format!(
                "this could not be reported ({}: {refusal}): access ends by itself within {} s",
                refusal.reason,
                self.window.as_secs()
            ),
        }
    }
}
