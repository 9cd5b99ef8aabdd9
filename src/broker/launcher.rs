//! Checks whether the launcher of a job may still launch the job. A job never has more access than its launcher could
//! launch now.

use std::borrow::Cow;

use super::{
    caller::Caller,
    create::check_human,
    decide::{Decisions, WorkQuestion, risk_of, work_of},
    rules::Rules,
};
use crate::{
    job::Job,
    name::{Action, JobId, Object, PrincipalKind, SpiffeId},
    policy::{Asker, Call, JobRisk, Phase, Relation, Rpc, Verdict},
    reason::{Reason, Refusal},
    state::LockName,
};

/// The work that a launcher must be able to do itself: all actions of its job, and the risk of the job for the
/// launcher.
#[derive(Clone)]
pub(super) struct LauncherWork {
    parts: Vec<(Action, Object)>,
    risk: JobRisk,
}

impl LauncherWork {
    pub(super) fn of(rules: &Rules, job: &Job) -> Self {
        let entry = rules.catalog().principal(&job.launcher).map(|p| &**p);
        LauncherWork { parts: work_of(rules, &job.spec), risk: risk_of(rules, job, entry) }
    }
}

impl Decisions {
    /// Refuses if a lock stops the launcher, or if these rules do not let the launcher create the job. The rules decide
    /// with the time at which the job was created.
    pub(super) fn check_launcher(&self, rules: &Rules, job: &Job) -> Result<(), Refusal> {
        self.check_launcher_of(rules, job, None)
    }

    /// Checks the launcher like [`Decisions::check_launcher`]. `known` is the launcher's work, if it was computed
    /// before.
    pub(super) fn check_launcher_of(
        &self,
        rules: &Rules,
        job: &Job,
        known: Option<&LauncherWork>,
    ) -> Result<(), Refusal> {
        self.check_launcher_unlocked(&job.launcher)?;
        let login = self.context.state.login_of(&job.launcher);
        let may = || {
            rules.engine.authorize(&Call {
                caller: &job.launcher,
                rpc: Rpc::CreateJob,
                tenant: Some(&job.spec.tenant),
                relations: &[Relation::Launcher],
                now: self.context.clock.now().wall_at(job.created),
                reason: &job.spec.why,
                amr: login.as_ref().map_or(&[], |login| login.amr.as_slice()),
            })?;
            let Some(principal) = rules.catalog().principal(&job.launcher) else { return Ok(()) };
            check_human(principal, &job.launcher, job.acting_for.as_ref())?;
            self.could_hold(rules, job, principal.kind, known)
        };
        may().map_err(|why| {
            let text =
                format!("{}, which launched this job, may no longer launch it: {}", job.launcher, why.text);
            let refusal = Refusal::new(Reason::PolicyDenied, text);
            let refusal = match why.fact("rule") {
                Some(rule) => refusal.with("rule", rule),
                None => refusal,
            };
            refusal.fix("ask the owner of the tenant's catalog file, or have another launcher launch the job")
        })
    }

    /// Refuses a launcher that has a `launcher:` lock.
    pub(super) fn check_launcher_unlocked(&self, launcher: &SpiffeId) -> Result<(), Refusal> {
        let lock = self.context.state.lock_named(&LockName::Launcher(launcher.clone()));
        lock.map_or(Ok(()), |lock| Err(self.context.locked(&lock)))
    }

    /// Refuses a workload if it launches a job with access that it could not get for itself, even with approvals.
    fn could_hold(
        &self,
        rules: &Rules,
        job: &Job,
        kind: PrincipalKind,
        known: Option<&LauncherWork>,
    ) -> Result<(), Refusal> {
        if kind != PrincipalKind::Workload {
            return Ok(());
        }
        let work = known.map_or_else(|| Cow::Owned(LauncherWork::of(rules, job)), Cow::Borrowed);
        let LauncherWork { parts, risk } = &*work;
        let ttl = self.ttl_of(job);
        let (asker, attempt, phase) = (Asker::Identity(&job.launcher), 0, Phase::Creating);
        let question =
            WorkQuestion { rules, asker, job, attempt, phase, ttl, parts, risk: Some(risk), binding: "" };
        match self.judge(question) {
            Verdict::Deny { refusal, .. } => Err(refusal),
            Verdict::Allow { .. } | Verdict::Wait { .. } => Ok(()),
        }
    }

    /// Refuses a workload that creates or begins a job if it is or was a member of another launcher's open job. The caller
    /// may be the training process of that job, and such a process must not get more access than its job has.
    pub(super) fn may_launch(&self, caller: &Caller) -> Result<(), Refusal> {
        if caller.principal.kind != PrincipalKind::Workload {
            return Ok(());
        }
        self.context
            .state
            .open_launched_by_others(caller.id())
            .map_or(Ok(()), |job| Err(launches_beside(job)))
    }
}

fn launches_beside(job: JobId) -> Refusal {
    let text =
        format!("you are a member of {job}, which another launcher launched, so you may not launch a job");
    Refusal::new(Reason::PolicyDenied, text)
        .with(
            "rule",
            "a workload may not create or begin jobs while it is a member of another launcher's job",
        )
        .fix("have the job created by a launcher, or run it under another identity")
}
