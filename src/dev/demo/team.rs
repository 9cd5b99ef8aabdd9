//! The wrappers of one attempt.

use std::{ffi::OsString, time::Duration};

use nix::unistd::Pid;

use super::{
    Stage,
    calls::describe,
    watch::{Checks, Observed, Stopwatch, Wrapped, claims_of, within},
};
use crate::{
    dev::{Role, deployment::TENANT},
    name::{Half, LeaseId},
    proto::v1,
    secret::SecretText,
};

/// The job file of the wrappers, in the folder of the deployment.
pub(super) const SPEC_FILE: &str = "jobs.toml";
/// The name of the checkpoint that a child saves.
pub(super) const CHECKPOINT: &str = "step-100";

/// The wrappers that share an attempt. Each represents a node.
pub(super) struct Team {
    pub job: String,
    /// The scheduler's key of this attempt.
    pub key: &'static str,
    pub mates: Vec<Mate>,
}

/// One wrapper, and its last known reading credential.
pub(super) struct Mate {
    pub instance: String,
    pub wrapped: Wrapped,
    pub token: SecretText,
    pub child: Pid,
}

impl Stage {
    /// Starts one wrapper of an attempt. With `saves`, its child saves a checkpoint on SIGTERM.
    pub(super) fn wrap_member(&self, job: &str, key: &str, instance: &str, saves: bool) -> Observed<Wrapped> {
        // Each wrapper has a separate folder, as on a separate node.
        let name = (1..).map(|n| format!("{key}-{instance}-{n}")).find(|name| {
            let place = self.deployment.path(&format!("run-{name}"));
            !place.exists()
        });
        let mut run: Vec<OsString> = vec!["--spec".into(), self.deployment.path(SPEC_FILE).into()];
        for (flag, value) in [("--job", job), ("--attempt-key", key), ("--instance", instance)] {
            run.extend([flag.into(), value.into()]);
        }
        let what = format!("checkpoint:{TENANT}/tuned/{CHECKPOINT}");
        let child: &[&str] = if saves { &[&what] } else { &[] };
        self.wrap_as(&name.unwrap_or_default(), &run, child)
    }

    /// Returns the last attempt of a job.
    pub(super) async fn last_attempt(&self, job: &str) -> Observed<v1::Attempt> {
        let shown = self.job(job).await?;
        shown.attempts.last().cloned().ok_or_else(|| "no attempt has begun".to_owned())
    }

    pub(super) async fn job(&self, job: &str) -> Observed<v1::Job> {
        let request = v1::GetJobRequest { job: job.to_owned() };
        let shown = self.job_client(Role::Launcher)?.get_job(request).await.map_err(|s| describe(&s))?;
        shown.into_inner().job.ok_or_else(|| "no job was shown".to_owned())
    }

    /// Waits until a member of the last attempt is in this state.
    pub(super) async fn member_is(
        &self,
        job: &str,
        instance: &str,
        state: v1::MemberState,
    ) -> Observed<v1::Member> {
        within(&format!("{instance} to be {}", state.as_str_name()), async {
            loop {
                let attempt = self.last_attempt(job).await?;
                let found = attempt.members.into_iter().find(|m| m.instance == instance);
                if let Some(member) = found.filter(|m| m.state() == state) {
                    return Ok(member);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await?
    }
}

impl Mate {
    /// Waits until a wrapper's child runs and its credential is accepted.
    pub(super) async fn ready(instance: &str, mut wrapped: Wrapped, checks: &Checks<'_>) -> Observed<Self> {
        let token = wrapped.token().await?;
        let child = wrapped.child().await?;
        checks.accepted(&token).await.map_err(|why| format!("{instance}: {why}"))?;
        Ok(Mate { instance: instance.to_owned(), wrapped, token, child })
    }

    /// Returns the lease of the mate's credential.
    pub(super) fn lease(&self) -> Observed<LeaseId> {
        Ok(claims_of(&self.token)?.lh.lease)
    }

    /// Checks that nothing changed for this mate: the lease is the same and still live, and the child is the same.
    pub(super) async fn is_unharmed(&mut self, checks: &Checks<'_>) -> Observed<()> {
        let lease = self.lease()?;
        self.token =
            self.wrapped.held(Half::Reading).ok_or_else(|| format!("{} has no file", self.instance))?;
        if self.lease()? != lease {
            return Err(format!("{} had to get a new lease", self.instance));
        }
        checks.check(&self.token).await.map_err(|refusal| format!("{}: {refusal}", self.instance))?;
        self.has_its_child()
    }

    /// Checks that the mate's first child still runs.
    pub(super) fn has_its_child(&mut self) -> Observed<()> {
        if let Ok(Some(status)) = self.wrapped.process.try_wait() {
            return Err(format!(
                "the wrapper of {} ended with {status}: {}",
                self.instance,
                self.wrapped.said()
            ));
        }
        match nix::sys::signal::kill(self.child, None) {
            Ok(()) => Ok(()),
            Err(_) => Err(format!("the child of {} is gone", self.instance)),
        }
    }

    /// Waits until the mate has a new reading credential that is accepted.
    pub(super) async fn renewed(&mut self, checks: &Checks<'_>) -> Observed<Stopwatch> {
        let instance = self.instance.clone();
        within(&format!("a new credential of {instance}"), async {
            loop {
                self.has_its_child()?;
                if let Some(token) = self.wrapped.held(Half::Reading)
                    && token.expose() != self.token.expose()
                    && checks.check(&token).await.is_ok()
                {
                    self.token = token;
                    return Ok(Stopwatch::now());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await?
    }
}

impl Team {
    pub(super) fn mate(&mut self, instance: &str) -> Observed<&mut Mate> {
        self.mates.iter_mut().find(|m| m.instance == instance).ok_or_else(|| format!("no {instance}"))
    }

    /// Checks that nothing changed for all other mates. Returns their number.
    pub(super) async fn others_unharmed(&mut self, but: &str, checks: &Checks<'_>) -> Observed<usize> {
        let mut count = 0usize;
        for mate in self.mates.iter_mut().filter(|m| m.instance != but) {
            mate.is_unharmed(checks).await?;
            count = count.saturating_add(1);
        }
        Ok(count)
    }
}
