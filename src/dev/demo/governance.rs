//! The story of a tune that people must approve, and of the recall of its dataset.

use std::process::Stdio;

use tokio::process::{Child, Command};

use super::{
    Claim, Stage,
    calls::{describe, reason},
    people::{LINE, MODEL, OTHER_DATASET, Person},
    story::Story,
    watch::{Checks, Observed, Stopwatch, Wrapped, within},
};
use crate::{
    dev::{Role, deployment::TENANT},
    proto::v1,
    secret::SecretText,
};

/// The reason of the recall, which the wrapper must print.
const RECALL_REASON: &str = "consent withdrawn";

pub(super) async fn run(stage: &Stage, report: &mut (dyn FnMut(&Claim) + Send)) -> Observed<bool> {
    stage.write_catalog()?;
    let mut story = Story::new(stage, report);
    let (mut daemon, running) = story.open().await?;
    let holder = stage.trainer()?;
    let checks = Checks::of(&running.verifier, &holder)?;
    let done = story.run_approvals_and_recall(&checks, &mut daemon).await;
    let all_hold = story.close(daemon, running).await?;
    Ok(done.is_some() && all_hold)
}

/// A job that runs under a wrapper, and its reading credential.
struct RunningTune {
    job: String,
    wrapped: Wrapped,
    token: SecretText,
}

impl Story<'_> {
    /// Shows the claims in order. Stops if a claim is not observed and later claims need it.
    async fn run_approvals_and_recall(&mut self, checks: &Checks<'_>, daemon: &mut Child) -> Option<()> {
        let start = Stopwatch::now();
        let seen = self.ask_to_tune().await;
        let job = self.require("a tune of a production model waits for people", start, seen)?;

        let start = Stopwatch::now();
        let seen = self.refuse_wrong_approver(&job).await;
        self.require("a person of another group cannot approve it", start, seen)?;
        let start = Stopwatch::now();
        let seen = self.approve_once(&job).await;
        self.require("one approval of two is not enough, and its giver counts once", start, seen)?;
        let start = Stopwatch::now();
        let seen = self.approve(&job, &[Person::Grace]).await;
        self.require("the second owner of models lets it pass", start, seen)?;

        let start = Stopwatch::now();
        let seen = self.change_dataset(&job).await;
        let changed =
            self.require("with another dataset it is another request, and waits again", start, seen)?;
        let start = Stopwatch::now();
        let seen = self.approve(&changed, &[Person::Ada, Person::Grace]).await;
        self.require("two owners look at the changed request, and approve it", start, seen)?;

        let start = Stopwatch::now();
        let seen = self.start_tune(&changed, checks).await;
        let tune = self.require("it runs, with credentials for what was approved", start, seen)?;

        let start = Stopwatch::now();
        let seen = self.recall(tune, checks).await;
        self.report_measured("its dataset is recalled, and all that it held is gone", start, seen.clone());
        seen.ok()?;
        let start = Stopwatch::now();
        let seen = self.kill_daemon_after_recall(daemon).await;
        self.require("the daemon is killed and comes back, and the recall still stands", start, seen)?;
        let start = Stopwatch::now();
        let seen = self.verify_clean().await;
        self.require("verify-clean finds nothing behind the dataset", start, seen)
    }

    async fn ask_to_tune(&mut self) -> Observed<(String, v1::Job)> {
        let job = self.create_tune(&[]).await.map_err(|s| describe(&s))?;
        if job.state() != v1::JobState::AwaitingApproval {
            return Err(format!("it is {:?}", job.state()));
        }
        let gates = job.waiting_for.iter().map(|g| format!("{} of {}", g.approvals_needed, g.approver_group));
        let gates = gates.collect::<Vec<_>>().join(", ");
        match self.stage.join(&job.id, "too-early").await {
            Err(status) if reason(&status) == "APPROVAL_REQUIRED" => {
                Ok((format!("{} waits for {gates}; to begin it is refused", job.id), job))
            }
            Err(status) => Err(describe(&status)),
            Ok(_) => Err("it began without approval".to_owned()),
        }
    }

    /// Creates a tune of the production model as the launcher, with the sample dataset and the resources in `more`.
    async fn create_tune(&self, more: &[&str]) -> Result<v1::Job, tonic::Status> {
        let trainer = self.stage.deployment.id(Role::Trainer);
        let trainer = trainer.map_err(|e| tonic::Status::internal(e.to_string()))?.to_string();
        let mut spec = self.stage.spec(2);
        spec.read = vec![format!("dataset:{TENANT}/data@v1"), format!("model:{TENANT}/{MODEL}")];
        spec.read.extend(more.iter().map(|name| format!("dataset:{TENANT}/{name}")));
        spec.write = vec![format!("checkpoint:{TENANT}/{LINE}")];
        // The shipped policy asks for these four texts in a change of a production model.
        spec.why = "the demo".into();
        spec.ticket = "CHG-1412".into();
        spec.rollback_to = format!("model:{TENANT}/{MODEL}");
        spec.prompt_alternative = "a longer prompt was too slow".into();
        spec.members = Some(v1::Members {
            start: vec![trainer.clone()],
            join: vec![trainer],
            attempts: 2,
            ..Default::default()
        });
        self.stage.create_job_as(Role::Launcher, spec).await
    }

    async fn refuse_wrong_approver(&mut self, job: &v1::Job) -> Observed<(String, ())> {
        match self.stage.approve_as(Person::Dana, &job.id, &job.request_digest).await {
            Err(status) if reason(&status) == "NOT_AN_APPROVER" => {
                Ok((format!("{}: {}", Person::Dana.name(), describe(&status)), ()))
            }
            Err(status) => Err(describe(&status)),
            Ok(_) => Err("it was approved".to_owned()),
        }
    }

    /// Approves twice as the same person, who counts once.
    async fn approve_once(&mut self, job: &v1::Job) -> Observed<(String, ())> {
        for _ in 0..2 {
            let now = self.stage.approve_as(Person::Ada, &job.id, &job.request_digest).await;
            let now = now.map_err(|s| describe(&s))?;
            if now.state() != v1::JobState::AwaitingApproval {
                return Err(format!("it is {:?}", now.state()));
            }
        }
        match self.stage.join(&job.id, "half-approved").await {
            Err(status) if reason(&status) == "APPROVAL_REQUIRED" => Ok((describe(&status), ())),
            Err(status) => Err(describe(&status)),
            Ok(_) => Err("it began with one approval".to_owned()),
        }
    }

    async fn approve(&mut self, job: &v1::Job, people: &[Person]) -> Observed<(String, ())> {
        let mut state = job.state();
        for person in people {
            let now = self.stage.approve_as(*person, &job.id, &job.request_digest).await;
            state = now.map_err(|s| describe(&s))?.state();
        }
        if state != v1::JobState::Ready {
            return Err(format!("it is {state:?}"));
        }
        let names: Vec<&str> = people.iter().map(|p| p.name()).collect();
        Ok((format!("{} approved; {} is ready", names.join(" and "), job.id), ()))
    }

    async fn change_dataset(&mut self, approved: &v1::Job) -> Observed<(String, v1::Job)> {
        let changed = self.create_tune(&[OTHER_DATASET]).await.map_err(|s| describe(&s))?;
        if changed.state() != v1::JobState::AwaitingApproval {
            return Err(format!("it is {:?}", changed.state()));
        }
        match self.stage.approve_as(Person::Ada, &changed.id, &approved.request_digest).await {
            Err(status) if reason(&status) == "REQUEST_MISMATCH" => {
                let observed = format!("{} waits; the earlier approval: {}", changed.id, describe(&status));
                Ok((observed, changed))
            }
            Err(status) => Err(describe(&status)),
            Ok(_) => Err("an approval of the earlier request was taken".to_owned()),
        }
    }

    async fn start_tune(&mut self, job: &v1::Job, checks: &Checks<'_>) -> Observed<(String, RunningTune)> {
        let mut wrapped = self.stage.wrap_as("tune", &["--job".into(), job.id.clone().into()], &[])?;
        let token = wrapped.token().await?;
        wrapped.child().await?;
        checks.accepted(&token).await?;
        let shown = self.stage.job(&job.id).await?;
        Ok((
            format!("its process runs, with {} leases", shown.live_leases),
            RunningTune { job: job.id.clone(), wrapped, token },
        ))
    }

    /// Recalls the dataset. Measures the time from the call to the first refusal.
    async fn recall(&mut self, mut tune: RunningTune, checks: &Checks<'_>) -> Observed<(String, f64)> {
        let child = tune.wrapped.child().await?;
        let mut operator = self.stage.operator_of(Person::You)?;
        let start = Stopwatch::now();
        let request = v1::RecallDatasetRequest {
            name: format!("dataset:{TENANT}/data@v1"),
            reason: RECALL_REASON.into(),
            ..Default::default()
        };
        let recalled = operator.recall_dataset(request).await.map_err(|s| describe(&s))?.into_inner();
        let refusal = checks.refused(&tune.token).await?;
        let ms = start.ms();
        let ended = tune.wrapped.ended().await?;
        let said = tune.wrapped.said();
        if !said.contains(RECALL_REASON) {
            return Err(format!("the wrapper ended with {ended} and did not say why: {said}"));
        }
        if tune.wrapped.files_left() {
            return Err("the wrapper left credential files behind".to_owned());
        }
        if nix::sys::signal::kill(child, None).is_ok() {
            return Err("the process of the job still runs".to_owned());
        }
        let shown = self.stage.job(&tune.job).await?;
        if (shown.state(), shown.live_leases) != (v1::JobState::Closed, 0) {
            return Err(format!("the job is {:?} with {} leases", shown.state(), shown.live_leases));
        }
        let wait = v1::WaitDurableRequest { receipt: recalled.ending.clone().unwrap_or_default().receipt };
        operator.wait_durable(wait).await.map_err(|s| describe(&s))?;
        let behind = recalled.ending.unwrap_or_default().behind;
        Ok((
            format!(
                "{}; {behind} leases ended, {} jobs closed; wrapper: {ended}; its files and process are gone",
                refusal.text, recalled.jobs_closed_total
            ),
            ms,
        ))
    }

    async fn kill_daemon_after_recall(&mut self, daemon: &mut Child) -> Observed<(String, ())> {
        daemon.kill().await.map_err(|e| e.to_string())?;
        *daemon = self.stage.start_daemon().await?;
        match self.create_tune(&[]).await {
            Err(status) if reason(&status) == "LOCKED" => {
                Ok((format!("a new job is refused: {}", describe(&status)), ()))
            }
            Err(status) => Err(describe(&status)),
            Ok(job) => Err(format!("{} was created on a recalled dataset", job.id)),
        }
    }

    /// Runs the command `verify-clean` as an operator would.
    async fn verify_clean(&mut self) -> Observed<(String, ())> {
        let name = format!("dataset:{TENANT}/data@v1");
        let done = Command::new(&self.stage.program)
            .env("LEASEHOLD_CONTEXTS", &self.stage.contexts)
            .args(["verify-clean", &name, "-o", "json"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let done = within("verify-clean", done).await?.map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&done.stdout);
        let shown: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        let text = |key: &str| shown.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        if !done.status.success() || shown.get("clean") != Some(&true.into()) {
            return Err(format!("{}: {said}{}", done.status, String::from_utf8_lossy(&done.stderr)));
        }
        Ok((format!("exit 0, nothing is left of {}; kept out by {}", text("name"), text("locked_by")), ()))
    }
}
