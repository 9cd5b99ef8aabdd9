//! Implements `leasehold job create` and `leasehold job check`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde_json::json;

use super::{
    Client, Effect, Exit, Failure, Session,
    client::{CallKind, Retries},
    failure::mistakes,
    job::{READERS, follow, incomplete},
    output::{fields, note, note_page, print, print_line},
    parse, render,
    reviews::{break_glass, say_what_follows},
};
use crate::{
    agent::{RunSettings, RunSpec},
    name::PrincipalKind,
    plain,
    proto::v1,
    secret::random_u128,
};

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The job file, in TOML or JSON
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// For a job with a sweep: the value of a free parameter, instead of the value in the file
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::assignment)]
    set: Vec<(String, String)>,
    /// A later call with this key and the same file gets the same job, for one day [default: a new key]
    #[arg(long, value_name = "K")]
    idempotency_key: Option<String>,
    /// Wait until people have decided: exit 0 if the job is ready, 2 if it was rejected, 4 if it was closed otherwise
    #[arg(long)]
    wait: bool,
    /// With --wait: stop waiting after this time, and exit with 3. The job goes on waiting
    #[arg(long, value_name = "SPAN", value_parser = parse::span, requires = "wait")]
    timeout: Option<Duration>,
    /// Only check the job, like `job check`
    #[arg(long, conflicts_with_all = ["wait", "break_glass"])]
    dry_run: bool,
    /// In an emergency: open the gates of the job without approvals. This raises an alarm, and needs a review
    #[arg(long, requires = "reason", conflicts_with = "wait")]
    break_glass: bool,
    /// With --break-glass: why the job cannot wait for approval
    #[arg(long, value_name = "TEXT", value_parser = parse::reason, requires = "break_glass")]
    reason: Option<String>,
    /// With --break-glass: how long the job may have access, at most 4h [default: 1h]
    #[arg(long, value_name = "SPAN", value_parser = parse::span, requires = "break_glass")]
    lasting: Option<Duration>,
}

const NO_JOB: &str = "No job was created, no access was given.";

/// Reads a job file. Reports all mistakes at once.
pub(super) fn read_spec(path: &Path) -> Result<RunSpec, Failure> {
    RunSpec::load(path).map_err(|errors| {
        let problems = errors.problems();
        if let [only] = problems
            && only.line == 0
        {
            return Failure::of_unreadable(&only.file, &only.what).saying(NO_JOB);
        }
        let what = mistakes(&plain::path(path), problems.len());
        Failure::of_problems(what, problems.iter().map(ToString::to_string))
            .fix("correct them, then run `leasehold job check`")
            .saying(NO_JOB)
    })
}

/// Reads a job file, with other values of free parameters.
fn read_spec_with(path: &Path, set: &[(String, String)]) -> Result<RunSpec, Failure> {
    let mut spec = read_spec(path)?;
    set_values(&mut spec.job, set)?;
    Ok(spec)
}

/// Returns the roles that can create this job, best first. If the job names no members, its launcher does the work and is a
/// workload.
fn creators(spec: &v1::JobSpec) -> [PrincipalKind; 2] {
    match &spec.members {
        Some(members) if !members.join.is_empty() => [PrincipalKind::Launcher, PrincipalKind::Workload],
        _ => [PrincipalKind::Workload, PrincipalKind::Launcher],
    }
}

async fn submit(
    client: &Client,
    spec: v1::JobSpec,
    key: Option<String>,
    dry_run: bool,
) -> Result<(v1::Job, v1::CreateJobResponse), Failure> {
    let idempotency_key = match key {
        Some(key) => key,
        None => {
            let drawn = random_u128().map_err(|e| Failure::new(Exit::Failure, e.to_string()))?;
            format!("cli-{drawn:032x}")
        }
    };
    let request = v1::CreateJobRequest { spec: Some(spec), idempotency_key, dry_run };
    let kind = CallKind::of_dry_run(dry_run);
    let mut answer = client
        .ask(kind, request, async |request| client.jobs().create_job(request).await)
        .await
        .map_err(|f| if f.effect == Effect::Nothing { f.saying(NO_JOB) } else { f })?;
    let job = answer.job.take().ok_or_else(incomplete)?;
    Ok((job, answer))
}

pub(super) async fn create(args: CreateArgs, session: &Session) -> Result<Exit, Failure> {
    if args.dry_run {
        return check(&args.spec, &args.set, session).await;
    }
    let spec = read_spec_with(&args.spec, &args.set)?;
    let client = session.client(&creators(&spec.job))?;
    let (mut job, answer) = submit(&client, spec.job, args.idempotency_key, false).await?;
    let awaiting = |job: &v1::Job| job.state() == v1::JobState::AwaitingApproval;
    if !session.for_programs() {
        print_line(&job.id)?;
        if !answer.created {
            note("This job existed already: it has the same key and job file.");
        }
        warn_of(&job);
        if awaiting(&job) {
            note_page(&render::gate_table(&job.waiting_for));
        }
    }
    note_keys_of_file(&spec.run);
    if let Some(reason) = args.reason.filter(|_| awaiting(&job)) {
        job = break_glass(&client, &job, reason, args.lasting).await?;
        if !session.for_programs() {
            say_what_follows(&job, session);
        }
    }
    if args.wait && awaiting(&job) {
        note(&waits_for_approval(&job.id));
        let waited = wait_for_approval(&job.id, session);
        let end = async {
            match args.timeout {
                Some(timeout) => session.clock.sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            decided = waited => job = decided?,
            () = end => {}
        }
    }
    if session.for_programs() {
        session.print_value(&json!({
            "job": render::job_value(&job, session.now().wall), "created": answer.created,
            "decisions": answer.decisions.iter().map(render::decision_value).collect::<Vec<_>>(),
        }))?;
    }
    match (job.state(), job.outcome()) {
        (v1::JobState::AwaitingApproval, _) => {
            if !session.for_programs() {
                note(&waits_for_approval(&job.id));
            }
            Ok(Exit::AwaitingApproval)
        }
        (v1::JobState::Closed, v1::Outcome::Rejected) => {
            Err(Failure::new(Exit::Denied, format!("job {} was rejected", job.id))
                .with("why", job.detail)
                .saying("No access was given."))
        }
        (v1::JobState::Closed, _) => Err(Failure::new(
            Exit::Ended,
            format!("job {} is closed: {}", job.id, render::job_state_or_outcome(&job)),
        )
        .with("why", job.detail)
        .saying("No access was given.")),
        _ => Ok(Exit::Ok),
    }
}

/// Warns about everything that would keep a run of this job from getting access.
fn warn_of(job: &v1::Job) {
    job.notes.iter().for_each(|line| note(&format!("leasehold: warning: {line}")));
}

/// Names the keys of the job file that the daemon does not get. Without the file, a run of the job would not have them.
fn note_keys_of_file(settings: &RunSettings) {
    let keys = settings.keys_of_file();
    let Some((last, others)) = keys.split_last() else { return };
    let all = match others {
        [] => (*last).to_owned(),
        others => format!("{} and {last}", others.join(", ")),
    };
    note(&format!(
        "Of the job file, the daemon does not get {all}: give --spec FILE to run too (leasehold run --job ID --spec FILE)."
    ));
}

/// Replaces values of free parameters in the job.
fn set_values(spec: &mut v1::JobSpec, set: &[(String, String)]) -> Result<(), Failure> {
    let Some(sweep) = &mut spec.sweep else {
        return match set.first() {
            None => Ok(()),
            Some(_) => Err(Failure::usage("--set is for a job with [sweep], which this file does not have")
                .fix("add [sweep] with jobs = N to the job file, or leave --set out")),
        };
    };
    for (name, value) in set {
        let is_of = |text: &String| text.split_once('=').is_some_and(|(known, _)| known == name);
        sweep.values.retain(|text| !is_of(text));
        sweep.values.push(format!("{name}={value}"));
    }
    Ok(())
}

/// Returns the note about a job that waits for approval.
fn waits_for_approval(id: &str) -> String {
    format!(
        "Job {id} waits for approval and has no access until then. To approve it: leasehold approve {id} --reason TEXT"
    )
}

/// Waits until people have decided about the job, also if the daemon restarts or our SVID is renewed.
async fn wait_for_approval(id: &str, session: &Session) -> Result<v1::Job, Failure> {
    let mut retries = Retries::new();
    // The daemon has answered: it has just created the job.
    retries.answered();
    loop {
        let mut decided = None;
        let followed = async {
            // Each connection uses the present SVID.
            let client = session.client(&READERS)?;
            let followed = follow(&client, id, |seen| {
                retries.answered();
                let done = seen.state() != v1::JobState::AwaitingApproval;
                decided = done.then_some(seen);
                Ok(done)
            });
            followed.await
        };
        let followed = followed.await;
        if let Some(job) = decided {
            return Ok(job);
        }
        retries.wait(followed, session).await.map_err(|f| f.saying(waits_for_approval(id)))?;
    }
}

pub(super) async fn check(path: &Path, set: &[(String, String)], session: &Session) -> Result<Exit, Failure> {
    let spec = read_spec_with(path, set)?;
    let client = session.client(&creators(&spec.job))?;
    let (job, answer) = submit(&client, spec.job, None, true).await?;
    if session.for_programs() {
        session.print_value(&json!({
            "job": render::job_value(&job, session.now().wall),
            "decisions": answer.decisions.iter().map(render::decision_value).collect::<Vec<_>>(),
        }))?;
    } else {
        let risk = fields([("risk", render::risk_text(job.risk.as_ref()))]);
        let decisions = render::decision_table(&answer.decisions).below(&risk);
        print(&match job.waiting_for.as_slice() {
            [] => decisions,
            gates => decisions.below(&render::gate_table(gates)),
        })?;
        warn_of(&job);
    }
    if job.state() == v1::JobState::AwaitingApproval {
        note("These people must approve the job first. No job was created.");
        return Ok(Exit::AwaitingApproval);
    }
    note("The job would be allowed. No job was created.");
    Ok(Exit::Ok)
}

#[cfg(test)]
#[path = "job_create_tests.rs"]
mod tests;
