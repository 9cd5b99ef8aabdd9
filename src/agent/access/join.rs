//! How a member joins: it creates the job, begins the attempt and joins it. If the start fails, this is undone.

use std::{fs, time::Duration};

use super::{
    calls::{Calls, not_understood, timed},
    credential_dir::CredentialDir,
    member::stream::{AttemptSession, Connected, connect},
    obtain::{JoinOptions, JoinTarget, RunContext, RunError},
    session::SavedSession,
};
use crate::{
    agent::messages::MessageSink,
    clock::Wall,
    limits::{APPROVAL_LOOK, NAME_BYTES_MAX, START_PATIENCE, TEXT_BYTES_MAX, UNDO},
    name::{AttemptNumber, InstanceName, JobId},
    proto::v1,
    reason::{MemberStep, Reason, Refusal},
    secret::{NoRandomness, Secret, SecretText, random_u128},
};

/// The job, attempt and member that this process has created so far. If the start fails, [`undo`](Self::undo) ends all of it.
pub(crate) struct JoinState {
    calls: Calls,
    job: Option<JobId>,
    is_own_job: bool,
    attempt: Option<AttemptNumber>,
    is_own_attempt: bool,
    joined: Option<(InstanceName, Secret)>,
    ends_at_latest: Option<Wall>,
    /// The time for checkpoint writes in the job's specification.
    drain: Option<Duration>,
}

impl JoinState {
    pub(crate) fn new(context: &RunContext) -> Self {
        let calls = Calls::new(context.connector.clone(), context.clock.clone());
        JoinState {
            calls: calls.with_retry_notice(context.messages.clone()),
            job: None,
            is_own_job: false,
            attempt: None,
            is_own_attempt: false,
            joined: None,
            ends_at_latest: None,
            drain: None,
        }
    }

    /// The time for checkpoint writes in the job's specification.
    pub(crate) fn drain(&self) -> Option<Duration> {
        self.drain
    }

    fn set_job(&mut self, job: &v1::Job) -> Result<JobId, Refusal> {
        let id: JobId = job.id.parse().map_err(|_| not_understood())?;
        self.job = Some(id);
        let drain = job.spec.as_ref().and_then(|spec| spec.drain);
        self.drain = drain.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero());
        Ok(id)
    }

    /// The job, if this process created it. No other process will end it.
    pub(crate) fn own_job(&self) -> Option<JobId> {
        self.job.filter(|_| self.is_own_job)
    }

    /// The job that this process takes part in.
    pub(crate) fn job(&self) -> Option<JobId> {
        self.job
    }

    /// Whether this process knows of a job, which it may have to end.
    pub(crate) fn has_job(&self) -> bool {
        self.job.is_some()
    }

    /// The first message of a run: the job, the attempt, and the resources that the run has access to.
    pub(crate) fn description(&self, opens: &[String]) -> String {
        let job = self.job.map(|j| j.to_string()).unwrap_or_default();
        let attempt = self.attempt.map(|a| a.to_string()).unwrap_or_default();
        let until = self.ends_at_latest.map(|end| format!("; until {end} at the latest")).unwrap_or_default();
        let opens = if opens.is_empty() { "opens nothing".to_owned() } else { opens.join("; ") };
        format!("{job}, attempt {attempt}: {opens}{until}")
    }

    /// Closes the job. Retries for at most [`UNDO`].
    pub(crate) async fn close_job(
        &self,
        job: JobId,
        outcome: v1::Outcome,
        reason: &str,
    ) -> Result<(), Refusal> {
        let (job, reason) = (job.to_string(), one_line(reason));
        let request = v1::CloseJobRequest { job, outcome: outcome.into(), reason };
        let calls = &self.calls;
        let ask = async |span| calls.within(span, calls.jobs().close_job(timed(span, request.clone()))).await;
        calls.retry(UNDO, ask).await.map(drop)
    }

    /// Ends what this process created. Retries for at most [`UNDO`].
    pub(crate) async fn undo(&self, why: &str, messages: &MessageSink) {
        let Some(job) = self.job else { return };
        let reason = one_line(&format!("not started: {why}"));
        let calls = &self.calls;
        let undone = match (self.is_own_job, self.attempt, &self.joined) {
            (true, ..) => self.close_job(job, v1::Outcome::Cancelled, &reason).await,
            (false, Some(attempt), joined) if joined.is_some() || self.is_own_attempt => {
                let request = v1::EndAttemptRequest {
                    job: job.to_string(),
                    attempt: attempt.value(),
                    outcome: v1::Outcome::Failed.into(),
                    instance: joined.as_ref().map(|(i, _)| i.to_string()).unwrap_or_default(),
                    detail: reason,
                    session_secret: joined.as_ref().map(|(_, s)| s.expose().to_vec()).unwrap_or_default(),
                };
                let ask = async |span| {
                    calls.within(span, calls.jobs().end_attempt(timed(span, request.clone()))).await
                };
                calls.retry(UNDO, ask).await.map(drop)
            }
            _ => return,
        };
        if let Err(refusal) = undone {
            messages.send(&format!(
                "{job} could not be ended ({}: {refusal}): no process has access through it; close it with `leasehold job close {job}`",
                refusal.reason
            ));
        }
    }
}

/// Creates the job and begins the attempt if the options require it, then joins. Records each step in `state`, for undo.
///
/// With `session_dir`, a sidecar that was killed and restarted becomes the same member again, by the session that is saved in
/// this directory.
pub(crate) async fn join_job(
    options: &JoinOptions,
    state: &mut JoinState,
    context: &RunContext,
    session_dir: Option<&CredentialDir>,
) -> Result<(AttemptSession, Connected), RunError> {
    let calls = state.calls.clone();
    let mut left_open = None;
    if let Some(dir) = session_dir
        && let Some(saved) = SavedSession::find(&dir.take_sessions(), options)
    {
        dir.keep_session(SavedSession::to_file_text(&saved.session, saved.is_own_job, options))?;
        match rejoin(saved, state, context).await? {
            Rejoined::SameMember(member) => return Ok(*member),
            Rejoined::JobOnly(job) => left_open = Some(job),
            Rejoined::StartNew => {}
        }
    }
    let job = match (&options.what, left_open) {
        (_, Some(job)) => {
            state.is_own_job = true;
            *job
        }
        (JoinTarget::Job(id) | JoinTarget::Attempt(id), None) => get_job(&calls, *id).await?,
        (JoinTarget::New(spec), None) => {
            let (job, is_created) = create_job(&calls, spec, random_key()?).await?;
            state.is_own_job = is_created;
            job
        }
    };
    let id = state.set_job(&job)?;
    let job = wait_at_gates(job, id, options, state, context).await?;

    let (number, ticket) = match &options.what {
        JoinTarget::Attempt(_) => (running_attempt(&job)?, None),
        JoinTarget::New(_) | JoinTarget::Job(_) => {
            let key = match &options.attempt_key {
                Some(key) => key.clone(),
                None => random_key()?,
            };
            let begun = begin_attempt(&calls, id, key, options).await?;
            let number =
                begun.attempt.and_then(|a| AttemptNumber::new(a.number)).ok_or_else(not_understood)?;
            state.is_own_attempt = options.attempt_key.is_none();
            if !job.gates.is_empty() {
                // The duration of a job with gates begins with its first attempt, so its end is known only now.
                state.set_job(&get_job(&calls, id).await?)?;
            }
            (number, Some(SecretText::new(begun.ticket)))
        }
    };
    state.attempt = Some(number);

    let session = AttemptSession {
        job: id,
        attempt: number,
        instance: options.instance.clone().unwrap_or_else(default_instance),
        secret: Secret::random()?,
        ticket: options.ticket.clone().or(ticket).unwrap_or_else(|| SecretText::new(String::new())),
    };
    if let Some(dir) = session_dir {
        dir.keep_session(SavedSession::to_file_text(&session, state.is_own_job, options))?;
    }
    let connected = join_attempt(&session, state, context).await?;
    Ok((session, connected))
}

/// Returns a job that no longer waits for people. If it waits for them, and the options say to wait, this returns after they have
/// decided. If it still waits then, the refusal names the approvers, and the job stays open for them.
async fn wait_at_gates(
    job: v1::Job,
    id: JobId,
    options: &JoinOptions,
    state: &mut JoinState,
    context: &RunContext,
) -> Result<v1::Job, RunError> {
    let Some(refusal) = approval_refusal(&job) else { return Ok(job) };
    let mut left = Some(refusal);
    let mut job = job;
    if let (Some(refusal), Some(wait)) = (&left, options.approval_wait) {
        context.messages.send(&format!("{refusal}: {}", refusal.fact("fix").unwrap_or_default()));
        job = wait_for_approval(&state.calls, id, wait).await?;
        left = approval_refusal(&job);
    }
    match left {
        None => Ok(job),
        Some(refusal) => {
            state.job = None;
            Err(refusal.into())
        }
    }
}

async fn join_attempt(
    session: &AttemptSession,
    state: &mut JoinState,
    context: &RunContext,
) -> Result<Connected, Refusal> {
    let calls = state.calls.clone();
    // Recorded before the call: the daemon may add the member even if its response is lost.
    state.joined = Some((session.instance.clone(), session.secret.clone()));
    let join = async |_: Duration| connect(calls.quiet(), session, || context.clock.now()).await;
    let connected = calls.retry(START_PATIENCE, join).await.inspect_err(|refusal| {
        if refusal.reason != Reason::Unreachable {
            state.joined = None;
        }
    })?;
    state.ends_at_latest = connected.ends_at_latest;
    Ok(connected)
}

/// The result of a rejoin.
enum Rejoined {
    /// This process is the same member again.
    SameMember(Box<(AttemptSession, Connected)>),
    /// The membership has ended. The job that the killed sidecar created is still open, and no other process will end it.
    JobOnly(Box<v1::Job>),
    /// Nothing is left to continue: the process starts as a new member.
    StartNew,
}

/// Joins as the member of a sidecar that was killed.
async fn rejoin(
    saved: SavedSession,
    state: &mut JoinState,
    context: &RunContext,
) -> Result<Rejoined, Refusal> {
    let SavedSession { session, is_own_job } = saved;
    let calls = state.calls.clone();
    let job = match get_job(&calls, session.job).await {
        Ok(job) if job.state() != v1::JobState::Closed => job,
        Ok(_) => return Ok(Rejoined::StartNew),
        Err(refusal) if refusal.reason.member_step() == MemberStep::TryLater => return Err(refusal),
        Err(_) => return Ok(Rejoined::StartNew),
    };
    if running_attempt(&job).ok() == Some(session.attempt) {
        state.set_job(&job)?;
        (state.is_own_job, state.attempt) = (is_own_job, Some(session.attempt));
        match join_attempt(&session, state, context).await {
            Ok(connected) => {
                context.messages.send("this agent was killed and restarted: it continues as the same member");
                return Ok(Rejoined::SameMember(Box::new((session, connected))));
            }
            Err(refusal) if refusal.reason.member_step() == MemberStep::TryLater => return Err(refusal),
            Err(refusal) => {
                context.messages.send(&format!(
                    "the membership of the previous agent has ended ({}): {refusal}",
                    refusal.reason
                ));
                *state = JoinState::new(context);
            }
        }
    }
    Ok(if is_own_job { Rejoined::JobOnly(Box::new(job)) } else { Rejoined::StartNew })
}

fn running_attempt(job: &v1::Job) -> Result<AttemptNumber, Refusal> {
    let none = || {
        let refusal = Refusal::new(Reason::AttemptNotFound, format!("no attempt of {} is running", job.id));
        match job.state() {
            v1::JobState::Closed => refusal.fix("it is closed: create another job"),
            _ => refusal.fix(format!(
                "begin one: leasehold agent --job {0}, or leasehold run --job {0} --spec FILE",
                job.id
            )),
        }
    };
    let current = job.attempts.last().filter(|a| a.state() != v1::AttemptState::Ended);
    current.and_then(|a| AttemptNumber::new(a.number)).ok_or_else(none)
}

/// Creates a job. Returns it, and whether this process created it.
async fn create_job(calls: &Calls, spec: &v1::JobSpec, key: String) -> Result<(v1::Job, bool), Refusal> {
    let request = v1::CreateJobRequest { spec: Some(spec.clone()), idempotency_key: key, dry_run: false };
    let mut tries = 0_u32;
    let ask = async |span| {
        tries = tries.saturating_add(1);
        calls.within(span, calls.jobs().create_job(timed(span, request.clone()))).await
    };
    let answer = calls.retry(START_PATIENCE, ask).await?;
    let job = answer.job.ok_or_else(not_understood)?;
    // A retry may find the job that the first try created.
    Ok((job, answer.created || tries > 1))
}

async fn get_job(calls: &Calls, id: JobId) -> Result<v1::Job, Refusal> {
    let request = v1::GetJobRequest { job: id.to_string() };
    let ask = async |span| calls.within(span, calls.jobs().get_job(timed(span, request.clone()))).await;
    calls.retry(START_PATIENCE, ask).await?.job.ok_or_else(not_understood)
}

/// Begins an attempt, or finds the one that the key began. The daemon refuses this if the process could not join the attempt,
/// so that a missing ticket uses up no attempt.
async fn begin_attempt(
    calls: &Calls,
    id: JobId,
    key: String,
    options: &JoinOptions,
) -> Result<v1::BeginAttemptResponse, Refusal> {
    let ticket = options.ticket.as_ref().map(|t| t.expose().to_owned()).unwrap_or_default();
    let (job, supersede) = (id.to_string(), options.supersede);
    let request = v1::BeginAttemptRequest { job, key, supersede, joins: true, ticket, members: Vec::new() };
    let ask = async |span| calls.within(span, calls.jobs().begin_attempt(timed(span, request.clone()))).await;
    calls.retry(START_PATIENCE, ask).await
}

/// Makes the refusal for a job that waits for approval. It names the approvers.
fn approval_refusal(job: &v1::Job) -> Option<Refusal> {
    if job.state() != v1::JobState::AwaitingApproval {
        return None;
    }
    let refusal = Refusal::new(Reason::ApprovalRequired, format!("{} waits for approval", job.id));
    let refusal = job.waiting_for.iter().fold(refusal, |refusal, gate| {
        let people = format!("{} of {}", gate.approvals_needed, gate.approver_group);
        refusal.with("asks", format!("{people} ({}: {})", gate.id, gate.explanation))
    });
    Some(refusal.fix(format!("someone of these groups runs: leasehold approve {} --reason TEXT", job.id)))
}

/// Waits until people have decided about a job, for at most `wait`. Returns the job as it is at the end of the wait.
async fn wait_for_approval(calls: &Calls, id: JobId, wait: Duration) -> Result<v1::Job, Refusal> {
    let decided = async {
        loop {
            // The stream may break when the daemon stops or the SVID is renewed. So fetch the job first, and then follow it
            // again.
            let job = get_job(calls, id).await?;
            if job.state() != v1::JobState::AwaitingApproval {
                return Ok(job);
            }
            let request = v1::WatchJobRequest { job: id.to_string() };
            if let Ok(answer) = calls.new_connection().jobs().watch_job(request).await {
                let mut stream = answer.into_inner();
                while let Ok(Some(seen)) = stream.message().await {
                    if seen.job.is_some_and(|job| job.state() != v1::JobState::AwaitingApproval) {
                        break;
                    }
                }
            }
            calls.clock().sleep(APPROVAL_LOOK).await;
        }
    };
    tokio::select! {
        decided = decided => decided,
        () = calls.clock().sleep(wait) => get_job(calls, id).await,
    }
}

fn random_key() -> Result<String, NoRandomness> {
    Ok(format!("run-{:032x}", random_u128()?))
}

/// The default name of a member: the host's name and the process id.
fn default_instance() -> InstanceName {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    instance_name(host.trim(), std::process::id())
}

/// Joins a host's name and a process id. Replaces characters that an instance name may not contain.
fn instance_name(host: &str, pid: u32) -> InstanceName {
    let suffix = format!("-{pid}");
    let room = NAME_BYTES_MAX.saturating_sub(suffix.len());
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' };
    let mut name: String = host.chars().map(plain).take(room).collect();
    while name.contains("..") {
        name = name.replace("..", ".");
    }
    let name = name.trim_start_matches(['-', '.']);
    let name = if name.is_empty() { "host" } else { name };
    #[expect(clippy::expect_used, reason = "consists of allowed characters, within the maximum length")]
    format!("{name}{suffix}").parse().expect("a host and a number are an instance name")
}

/// Cuts text to the maximum length of free text, and replaces control characters by spaces.
fn one_line(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len().saturating_add(c.len_utf8()) > TEXT_BYTES_MAX {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_name_makes_an_instance_name() {
        for (host, name) in [
            ("node-7", "node-7-42"),
            ("Node_7.acme.example", "Node-7.acme.example-42"),
            ("..", "host-42"),
            ("", "host-42"),
            ("-x", "x-42"),
            ("höst", "h-st-42"),
            ("a....b", "a.b-42"),
        ] {
            assert_eq!(instance_name(host, 42).as_str(), name);
        }
        assert_eq!(instance_name(&"a".repeat(500), u32::MAX).as_str().len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_waiting_job_names_its_approvers() {
        let gate = v1::Gate {
            id: "gate-x".into(),
            explanation: "tuning a production model".into(),
            approver_group: "model-owners".into(),
            approvals_needed: 2,
            ..Default::default()
        };
        let mut job = v1::Job { id: "j-1".into(), waiting_for: vec![gate], ..Default::default() };
        job.set_state(v1::JobState::Ready);
        assert_eq!(approval_refusal(&job), None);
        job.set_state(v1::JobState::AwaitingApproval);
        let refusal = approval_refusal(&job).unwrap();
        assert_eq!(refusal.reason, Reason::ApprovalRequired);
        assert_eq!(refusal.fact("asks"), Some("2 of model-owners (gate-x: tuning a production model)"));
        assert!(refusal.fact("fix").unwrap().contains("leasehold approve j-1"), "{refusal:?}");
    }

    #[test]
    fn a_reported_reason_is_one_bounded_line() {
        assert_eq!(one_line("a\nb"), "a b");
        assert!(one_line(&"é".repeat(1_000)).len() <= TEXT_BYTES_MAX);
    }
}
