//! Shows every way in which the access of a credential ends.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tokio::process::Child;

use super::{
    calls::{self, DemoMember, describe},
    path::introspection,
    story::Story,
    watch::{Checks, Observed, Stopwatch, Wrapped, claims_of, within},
};
use crate::{
    dev::{Role, deployment::TENANT},
    proto::v1,
    secret::SecretText,
};

/// One way in which a job under a wrapper ends.
struct JobEnding {
    name: &'static str,
    claim: &'static str,
    cause: EndCause,
    /// How the wrapper exits, and the outcome that the daemon records. `None` if the wrapper cannot report it.
    expected: Option<(&'static str, v1::Outcome)>,
}

/// The event that ends the job.
enum EndCause {
    /// The child exits with this code.
    Exit(u8),
    SignalWrapper(Signal),
    KillChild,
}

const ENDINGS: [JobEnding; 5] = [
    JobEnding {
        name: "completes",
        claim: "access ends when the job completes",
        cause: EndCause::Exit(0),
        expected: Some(("exit 0", v1::Outcome::Completed)),
    },
    JobEnding {
        name: "fails",
        claim: "access ends when the job fails",
        cause: EndCause::Exit(3),
        expected: Some(("exit 3", v1::Outcome::Failed)),
    },
    JobEnding {
        name: "interrupted",
        claim: "access ends when the job is interrupted (SIGTERM)",
        cause: EndCause::SignalWrapper(Signal::SIGTERM),
        expected: Some(("exit 143", v1::Outcome::Interrupted)),
    },
    JobEnding {
        name: "child-killed",
        claim: "access ends when the job's process is killed (SIGKILL)",
        cause: EndCause::KillChild,
        expected: Some(("exit 137", v1::Outcome::Failed)),
    },
    JobEnding {
        name: "wrapper-killed",
        claim: "access ends when the wrapper is killed (SIGKILL)",
        cause: EndCause::SignalWrapper(Signal::SIGKILL),
        expected: None,
    },
];

impl EndCause {
    async fn apply(&self, w: &Wrapped) -> Observed<()> {
        let (pid, signal) = match self {
            EndCause::Exit(code) => return w.end_child(*code),
            EndCause::SignalWrapper(signal) => (w.pid()?, *signal),
            EndCause::KillChild => (w.child().await?, Signal::SIGKILL),
        };
        kill(pid, signal).map_err(|e| e.to_string())
    }
}

impl Story<'_> {
    /// Ends jobs under a wrapper, each in a different way.
    pub(super) async fn show_endings(&mut self, checks: &Checks<'_>) {
        // All wrappers start together. The measurement of each begins when it has a credential.
        let names = ENDINGS.iter().map(|ending| ending.name).chain(["revoked"]);
        let wrapped: Vec<_> = names.map(|name| self.stage.wrap(name)).collect();
        let mut ready = Vec::new();
        for wrapped in wrapped {
            ready.push(self.await_running(wrapped, checks).await);
        }
        let revoked = ready.pop().unwrap_or_else(|| Err("no wrapper".into()));
        for (ending, ready) in ENDINGS.iter().zip(ready) {
            match ready {
                Err(why) => self.report_ms(ending.claim, 0.0, Err(why)),
                Ok((w, token)) => self.show_ending(ending, checks, w, &token).await,
            }
        }
        let claim = "access ends when an operator revokes the job";
        match revoked {
            Err(why) => self.report_ms(claim, 0.0, Err(why)),
            Ok((mut w, token)) => {
                let start = Stopwatch::now();
                let seen = self.revoke_and_check(checks, &mut w, &token, start).await;
                self.report_measured(claim, start, seen);
            }
        }
    }

    /// Waits until a wrapper's credential is accepted and its child runs.
    async fn await_running(
        &self,
        wrapped: Observed<Wrapped>,
        checks: &Checks<'_>,
    ) -> Observed<(Wrapped, SecretText)> {
        let mut wrapped = wrapped?;
        let token = wrapped.token().await?;
        wrapped.child().await?;
        checks.accepted(&token).await?;
        Ok((wrapped, token))
    }

    /// Measures the time from the cause of an ending to the first refusal. Checks the wrapper and the record of the daemon.
    async fn show_ending(
        &mut self,
        ending: &JobEnding,
        checks: &Checks<'_>,
        mut w: Wrapped,
        token: &SecretText,
    ) {
        let cause = ending.cause.apply(&w).await;
        let start = Stopwatch::now();
        let seen = async {
            cause?;
            let refusal = checks.refused(token).await?;
            let ms = start.ms();
            let ended = w.ended().await?;
            if let Some((exit, outcome)) = ending.expected {
                if ended != exit {
                    return Err(format!("the wrapper ended with {ended}, not {exit}: {}", w.said()));
                }
                if w.files_left() {
                    return Err("the wrapper left credential files behind".to_owned());
                }
                let closed = self.outcome_of(token).await?;
                if closed != outcome {
                    return Err(format!("the job is recorded as {closed:?}"));
                }
            }
            Ok((format!("{}; wrapper: {ended}", refusal.text), ms))
        }
        .await;
        self.report_measured(ending.claim, start, seen);
    }

    async fn revoke_and_check(
        &self,
        checks: &Checks<'_>,
        w: &mut Wrapped,
        token: &SecretText,
        start: Stopwatch,
    ) -> Observed<(String, f64)> {
        let job = job_of(token)?;
        let done = self.revoke(&format!("job:{job}"), "a demonstration").await?;
        let refusal = checks.refused(token).await?;
        let ms = start.ms();
        let ended = w.ended().await?;
        let said = w.said();
        if !said.contains("a demonstration") {
            return Err(format!("the wrapper did not say why: {said}"));
        }
        if w.files_left() {
            return Err("the wrapper left credential files behind".to_owned());
        }
        let behind = done.ending.unwrap_or_default().behind;
        Ok((format!("{}; {behind} leases ended; wrapper: {ended}, and says why", refusal.text), ms))
    }

    /// Returns the outcome of a token's job.
    async fn outcome_of(&self, token: &SecretText) -> Observed<v1::Outcome> {
        let job = job_of(token)?;
        let mut jobs = self.stage.job_client(Role::Trainer)?;
        within("the job to be closed", async {
            loop {
                let shown =
                    jobs.get_job(v1::GetJobRequest { job: job.clone() }).await.map_err(|s| describe(&s))?;
                let shown = shown.into_inner().job.unwrap_or_default();
                if shown.state() == v1::JobState::Closed {
                    return Ok(shown.outcome());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await?
    }

    pub(super) async fn show_second_attempt(&mut self, checks: &Checks<'_>) {
        let claim = "a second attempt ends the access of the first";
        let begun = async {
            let job = self.stage.create_job(self.stage.spec(2)).await.map_err(|s| describe(&s))?;
            let (member, token) = self.join_with_credential(&job.id, "attempt-1", None, checks).await?;
            Ok::<_, String>((job, member, token))
        }
        .await;
        let (job, _member, token) = match begun {
            Ok(begun) => begun,
            Err(why) => return self.report_ms(claim, 0.0, Err(why)),
        };
        let start = Stopwatch::now();
        let seen = async {
            let second = self.stage.join(&job.id, "attempt-2").await.map_err(|s| describe(&s))?;
            let refusal = checks.refused(&token).await?;
            Ok(format!("attempt {} began; {}", second.session.attempt, refusal.text))
        }
        .await;
        self.report(claim, start, seen);
    }

    pub(super) async fn show_expiry(&mut self, checks: &Checks<'_>) {
        let claim = "a lease of two seconds ends by itself";
        let begun = async {
            let job = self.stage.create_job(self.stage.spec(1)).await.map_err(|s| describe(&s))?;
            self.join_with_credential(&job.id, "expiry", Some(Duration::from_secs(2)), checks).await
        }
        .await;
        let start = Stopwatch::now();
        let (_member, token) = match begun {
            Ok(begun) => begun,
            Err(why) => return self.report_ms(claim, 0.0, Err(why)),
        };
        let seen = checks.refused(&token).await.map(|r| r.text.into_owned());
        self.report(claim, start, seen);
    }

    /// Shows that a lock ends access and refuses new access. Returns the token that was issued before the lock.
    pub(super) async fn show_lock(&mut self, checks: &Checks<'_>) -> Option<SecretText> {
        let claim = "a lock ends access, and refuses new access";
        let begun = async {
            let job = self.stage.create_job(self.stage.spec(1)).await.map_err(|s| describe(&s))?;
            self.join_with_credential(&job.id, "lock", None, checks).await
        }
        .await;
        let (mut member, token) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                self.report_ms(claim, 0.0, Err(why));
                return None;
            }
        };
        let start = Stopwatch::now();
        let seen = async {
            let mut client = self.stage.operator_client(Role::Operator)?;
            let request = v1::LockRequest {
                name: format!("dataset:{TENANT}/data"),
                reason: "a recall".into(),
                ttl: None,
                ..Default::default()
            };
            let locked = client.lock(request).await.map_err(|s| describe(&s))?.into_inner();
            let refusal = checks.refused(&token).await?;
            let ms = start.ms();
            match member.issue(None).await {
                Err(status) if calls::reason(&status) == "LOCKED" => {}
                Err(status) => return Err(describe(&status)),
                Ok(_) => return Err("a new credential was issued".to_owned()),
            }
            let ending = locked.ending.unwrap_or_default();
            let wait = v1::WaitDurableRequest { receipt: ending.receipt };
            client.wait_durable(wait).await.map_err(|s| describe(&s))?;
            Ok((format!("{}; a new request gets LOCKED; the record is on disk", refusal.text), ms))
        }
        .await;
        self.report_measured(claim, start, seen);
        Some(token)
    }

    pub(super) async fn show_restart(
        &mut self,
        checks: &Checks<'_>,
        daemon: &mut Child,
        before_lock: Option<SecretText>,
    ) {
        // This credential is for a resource without a lock, so that only the restart can end it.
        let claim = "a killed daemon comes back, and grants nothing new";
        let start = Stopwatch::now();
        let seen = async {
            let mut spec = self.stage.spec(1);
            spec.read.retain(|r| r.starts_with("model:"));
            let job = self.stage.create_job(spec).await.map_err(|s| describe(&s))?;
            let mut member = self.stage.join(&job.id, "restart").await.map_err(|s| describe(&s))?;
            let (lease, token) = member.issue(None).await.map_err(|s| describe(&s))?;
            let was = self.introspect(&token, checks).await?;
            if !was.active {
                return Err(format!("the credential was not valid before: {}", was.reason));
            }
            daemon.kill().await.map_err(|e| e.to_string())?;
            let start = Stopwatch::now();
            *daemon = self.stage.start_daemon().await?;
            let back = start.ms();
            let now = self.introspect(&token, checks).await?;
            if now.active {
                return Err("a credential from before the restart is still valid".to_owned());
            }
            let locks = self.locks().await?;
            if !locks.iter().any(|l| l.name == format!("dataset:{TENANT}/data")) {
                return Err("the lock is gone".to_owned());
            }
            if let Some(token) = before_lock {
                within("the verifier to follow the new daemon", checks.verifier.ready()).await?;
                let refusal = checks.refused(&token).await?;
                if checks.verifier.state().is_err() {
                    return Err(format!("the verifier does not follow the new daemon: {}", refusal.text));
                }
            }
            let mut jobs = self.stage.job_client(Role::Trainer)?;
            let shown = jobs.get_job(v1::GetJobRequest { job: job.id }).await.map_err(|s| describe(&s))?;
            let state = shown.into_inner().job.unwrap_or_default().attempts;
            let suspended = state.iter().any(|a| a.state() == v1::AttemptState::Suspended);
            if !suspended {
                return Err("the running attempt did not come back suspended".to_owned());
            }
            Ok((
                format!("{} is {}; the lock is still there; its job is suspended", lease.id, now.reason),
                back,
            ))
        }
        .await;
        self.report_measured(claim, start, seen);
    }

    async fn introspect(&self, token: &SecretText, checks: &Checks<'_>) -> Observed<v1::IntrospectResponse> {
        let request = introspection(token, checks);
        Ok(self.stage.verifier_client()?.introspect(request).await.map_err(|s| describe(&s))?.into_inner())
    }

    async fn locks(&self) -> Observed<Vec<v1::Lock>> {
        let mut client = self.stage.operator_client(Role::Operator)?;
        Ok(client
            .list_locks(v1::ListLocksRequest::default())
            .await
            .map_err(|s| describe(&s))?
            .into_inner()
            .locks)
    }

    /// Joins a member, and issues a credential that the verifier accepts.
    async fn join_with_credential(
        &self,
        job: &str,
        key: &str,
        ttl: Option<Duration>,
        checks: &Checks<'_>,
    ) -> Observed<(DemoMember, SecretText)> {
        let mut member = self.stage.join(job, key).await.map_err(|s| describe(&s))?;
        let (_, token) = member.issue(ttl).await.map_err(|s| describe(&s))?;
        checks.accepted(&token).await?;
        Ok((member, token))
    }
}

fn job_of(token: &SecretText) -> Observed<String> {
    Ok(claims_of(token)?.lh.job.to_string())
}
