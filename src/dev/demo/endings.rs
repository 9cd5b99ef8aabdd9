//! Every way in which access ends.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tokio::process::Child;

use super::{
    calls::{self, DemoMember, say},
    path::introspection,
    story::Story,
    watch::{Checks, Observed, Stopwatch, Wrapped, claims_of, within},
};
use crate::{
    dev::{Role, deployment::TENANT},
    proto::v1,
    secret::SecretText,
};

impl Story<'_> {
    /// The endings of a job that runs under the wrapper, each by another cause.
    pub(super) async fn endings(&mut self, checks: &Checks<'_>) {
        // The wrappers start together: what is measured begins when each has its credential.
        let names = ["completes", "fails", "interrupted", "child-killed", "wrapper-killed", "revoked"];
        let mut wrapped = Vec::new();
        for name in names {
            wrapped.push(self.stage.wrap(name));
        }
        let mut ready = Vec::new();
        for w in wrapped {
            ready.push(match w {
                Ok(mut w) => match self.running(&mut w, checks).await {
                    Ok(token) => Ok((w, token)),
                    Err(why) => Err(why),
                },
                Err(why) => Err(why),
            });
        }
        let mut ready = ready.into_iter();
        let mut next = || ready.next().unwrap_or_else(|| Err("no wrapper".into()));

        let claim = "completion ends all access";
        match next() {
            Err(why) => self.say_ms(claim, 0.0, Err(why)),
            Ok((w, token)) => {
                let cause = w.end_child(0);
                self.ended(claim, checks, w, &token, cause, Some("exit 0"), v1::Outcome::Completed).await;
            }
        }
        let claim = "failure ends all access";
        match next() {
            Err(why) => self.say_ms(claim, 0.0, Err(why)),
            Ok((w, token)) => {
                let cause = w.end_child(3);
                self.ended(claim, checks, w, &token, cause, Some("exit 3"), v1::Outcome::Failed).await;
            }
        }
        let claim = "interruption (SIGTERM) ends all access";
        match next() {
            Err(why) => self.say_ms(claim, 0.0, Err(why)),
            Ok((w, token)) => {
                let cause = w.pid().and_then(|p| kill(p, Signal::SIGTERM).map_err(|e| e.to_string()));
                self.ended(claim, checks, w, &token, cause, Some("exit 143"), v1::Outcome::Interrupted).await;
            }
        }
        let claim = "SIGKILL of the child ends all access";
        match next() {
            Err(why) => self.say_ms(claim, 0.0, Err(why)),
            Ok((w, token)) => {
                let cause = match w.child().await {
                    Ok(pid) => kill(pid, Signal::SIGKILL).map_err(|e| e.to_string()),
                    Err(why) => Err(why),
                };
                self.ended(claim, checks, w, &token, cause, Some("exit 137"), v1::Outcome::Failed).await;
            }
        }
        let claim = "SIGKILL of the wrapper ends all access";
        match next() {
            Err(why) => self.say_ms(claim, 0.0, Err(why)),
            Ok((w, token)) => {
                let cause = w.pid().and_then(|p| kill(p, Signal::SIGKILL).map_err(|e| e.to_string()));
                self.ended(claim, checks, w, &token, cause, None, v1::Outcome::Unspecified).await;
            }
        }
        let claim = "an operator's revocation ends all access";
        match next() {
            Err(why) => self.say_ms(claim, 0.0, Err(why)),
            Ok((mut w, token)) => {
                let start = Stopwatch::now();
                let seen = self.revoked(checks, &mut w, &token, start).await;
                match seen {
                    Ok((observed, ms)) => self.say_ms(claim, ms, Ok(observed)),
                    Err(why) => self.say(claim, start, Err(why)),
                }
            }
        }
    }

    /// Waits until the wrapper's credential is there and good, and its child runs.
    async fn running(&self, w: &mut Wrapped, checks: &Checks<'_>) -> Observed<SecretText> {
        let token = w.token().await?;
        w.child().await?;
        checks.accepted(&token).await?;
        Ok(token)
    }

    /// From a cause to the first refusal, and what the wrapper and the daemon say of it.
    #[expect(clippy::too_many_arguments, reason = "what is expected of one ending")]
    async fn ended(
        &mut self,
        claim: &'static str,
        checks: &Checks<'_>,
        mut w: Wrapped,
        token: &SecretText,
        cause: Observed<()>,
        exit: Option<&str>,
        outcome: v1::Outcome,
    ) {
        let start = Stopwatch::now();
        let seen = async {
            cause?;
            let refusal = checks.refused(token).await?;
            let ms = start.ms();
            let ended = w.ended().await?;
            if let Some(exit) = exit {
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
        match seen {
            Ok((observed, ms)) => self.say_ms(claim, ms, Ok(observed)),
            Err(why) => self.say(claim, start, Err(why)),
        }
    }

    async fn revoked(
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
        Ok((format!("{}; {behind} leases behind it; wrapper: {ended}, and says why", refusal.text), ms))
    }

    /// How the job of a token was closed.
    async fn outcome_of(&self, token: &SecretText) -> Observed<v1::Outcome> {
        let job = job_of(token)?;
        let mut jobs = self.stage.jobs(Role::Trainer)?;
        within("the job to be closed", async {
            loop {
                let shown =
                    jobs.get_job(v1::GetJobRequest { job: job.clone() }).await.map_err(|s| say(&s))?;
                let shown = shown.into_inner().job.unwrap_or_default();
                if shown.state() == v1::JobState::Closed {
                    return Ok(shown.outcome());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await?
    }

    pub(super) async fn second_attempt(&mut self, checks: &Checks<'_>) {
        let claim = "a second attempt ends the first one's access";
        let begun = async {
            let job = self.stage.create(self.stage.spec(2)).await.map_err(|s| say(&s))?;
            let (member, token) = self.member(&job.id, "attempt-1", None, checks).await?;
            Ok::<_, String>((job, member, token))
        }
        .await;
        let (job, _member, token) = match begun {
            Ok(begun) => begun,
            Err(why) => return self.say_ms(claim, 0.0, Err(why)),
        };
        let start = Stopwatch::now();
        let seen = async {
            let second = self.stage.enter(&job.id, "attempt-2").await.map_err(|s| say(&s))?;
            let refusal = checks.refused(&token).await?;
            Ok(format!("attempt {} began; {}", second.session.attempt, refusal.text))
        }
        .await;
        self.say(claim, start, seen);
    }

    pub(super) async fn expiry(&mut self, checks: &Checks<'_>) {
        let claim = "a lease of two seconds ends by itself";
        let begun = async {
            let job = self.stage.create(self.stage.spec(1)).await.map_err(|s| say(&s))?;
            self.member(&job.id, "expiry", Some(Duration::from_secs(2)), checks).await
        }
        .await;
        let start = Stopwatch::now();
        let (_member, token) = match begun {
            Ok(begun) => begun,
            Err(why) => return self.say_ms(claim, 0.0, Err(why)),
        };
        let seen = checks.refused(&token).await.map(|r| r.text.into_owned());
        self.say(claim, start, seen);
    }

    /// Answers the token of before the lock.
    pub(super) async fn lock(&mut self, checks: &Checks<'_>) -> Option<SecretText> {
        let claim = "a lock ends what is there and keeps out what comes";
        let begun = async {
            let job = self.stage.create(self.stage.spec(1)).await.map_err(|s| say(&s))?;
            self.member(&job.id, "lock", None, checks).await
        }
        .await;
        let (mut member, token) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                self.say_ms(claim, 0.0, Err(why));
                return None;
            }
        };
        let start = Stopwatch::now();
        let seen = async {
            let mut client = self.stage.operators(Role::Operator)?;
            let request = v1::LockRequest {
                name: format!("dataset:{TENANT}/data"),
                reason: "a recall".into(),
                ttl: None,
                ..Default::default()
            };
            let locked = client.lock(request).await.map_err(|s| say(&s))?.into_inner();
            let refusal = checks.refused(&token).await?;
            let ms = start.ms();
            match member.issue(None).await {
                Err(status) if calls::reason(&status) == "LOCKED" => {}
                Err(status) => return Err(say(&status)),
                Ok(_) => return Err("a new credential was issued".to_owned()),
            }
            let ending = locked.ending.unwrap_or_default();
            let wait = v1::WaitDurableRequest { receipt: ending.receipt };
            client.wait_durable(wait).await.map_err(|s| say(&s))?;
            Ok((format!("{}; a new request: LOCKED; durable", refusal.text), ms))
        }
        .await;
        match seen {
            Ok((observed, ms)) => self.say_ms(claim, ms, Ok(observed)),
            Err(why) => self.say(claim, start, Err(why)),
        }
        Some(token)
    }

    pub(super) async fn restart(
        &mut self,
        checks: &Checks<'_>,
        daemon: &mut Child,
        before_lock: Option<SecretText>,
    ) {
        // A credential on something that is not locked, so that its end has one cause.
        let claim = "a killed daemon comes back, and widens nothing";
        let start = Stopwatch::now();
        let seen = async {
            let mut spec = self.stage.spec(1);
            spec.read.retain(|r| r.starts_with("model:"));
            let job = self.stage.create(spec).await.map_err(|s| say(&s))?;
            let mut member = self.stage.enter(&job.id, "restart").await.map_err(|s| say(&s))?;
            let (lease, token) = member.issue(None).await.map_err(|s| say(&s))?;
            let was = self.introspected(&token, checks).await?;
            if !was.active {
                return Err(format!("the credential was not good before: {}", was.reason));
            }
            daemon.kill().await.map_err(|e| e.to_string())?;
            let start = Stopwatch::now();
            *daemon = self.stage.daemon().await?;
            let back = start.ms();
            let now = self.introspected(&token, checks).await?;
            if now.active {
                return Err("a credential of the life before is still good".to_owned());
            }
            let locks = self.locks().await?;
            if !locks.iter().any(|l| l.name == format!("dataset:{TENANT}/data")) {
                return Err("the lock is gone".to_owned());
            }
            if let Some(token) = before_lock {
                within("the verifier to follow the new life", checks.verifier.ready()).await?;
                let refusal = checks.refused(&token).await?;
                if checks.verifier.state().is_err() {
                    return Err(format!("the verifier does not follow: {}", refusal.text));
                }
            }
            let mut jobs = self.stage.jobs(Role::Trainer)?;
            let shown = jobs.get_job(v1::GetJobRequest { job: job.id }).await.map_err(|s| say(&s))?;
            let state = shown.into_inner().job.unwrap_or_default().attempts;
            let suspended = state.iter().any(|a| a.state() == v1::AttemptState::Suspended);
            if !suspended {
                return Err("the running attempt did not come back suspended".to_owned());
            }
            Ok((format!("{} is {}; the lock stands; its job is suspended", lease.id, now.reason), back))
        }
        .await;
        match seen {
            Ok((observed, ms)) => self.say_ms(claim, ms, Ok(observed)),
            Err(why) => self.say(claim, start, Err(why)),
        }
    }

    async fn introspected(
        &self,
        token: &SecretText,
        checks: &Checks<'_>,
    ) -> Observed<v1::IntrospectResponse> {
        let request = introspection(token, checks);
        Ok(self.stage.verifiers()?.introspect(request).await.map_err(|s| say(&s))?.into_inner())
    }

    async fn locks(&self) -> Observed<Vec<v1::Lock>> {
        let mut client = self.stage.operators(Role::Operator)?;
        Ok(client.list_locks(v1::ListLocksRequest::default()).await.map_err(|s| say(&s))?.into_inner().locks)
    }

    /// A member with a credential that the verifier accepts.
    async fn member(
        &self,
        job: &str,
        key: &str,
        ttl: Option<Duration>,
        checks: &Checks<'_>,
    ) -> Observed<(DemoMember, SecretText)> {
        let mut member = self.stage.enter(job, key).await.map_err(|s| say(&s))?;
        let (_, token) = member.issue(ttl).await.map_err(|s| say(&s))?;
        checks.accepted(&token).await?;
        Ok((member, token))
    }
}

fn job_of(token: &SecretText) -> Observed<String> {
    Ok(claims_of(token)?.lh.job.to_string())
}
