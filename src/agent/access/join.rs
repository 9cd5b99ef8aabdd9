//! How access begins: a job, an attempt, a member; and how that is taken back where nothing can be started.

use std::{fs, time::Duration};

use super::{
    calls::{Calls, timed},
    credential_dir::CredentialDir,
    member::stream::{Connected, MemberSession, connect},
    obtain::{JoinOptions, JoinTarget, RunContext, RunError},
    session::SavedSession,
};
use crate::{
    agent::messages::MessageSink,
    clock::Wall,
    limits::{NAME_BYTES_MAX, START_PATIENCE, TEXT_BYTES_MAX, UNDO},
    name::{AttemptNumber, InstanceName, JobId},
    proto::v1,
    reason::{APPROVALS_ABSENT, MemberStep, Reason, Refusal},
    secret::{NoRandomness, Secret, SecretText, random_u128},
};

/// What this run has made so far, and so must end where it cannot go on.
pub(crate) struct JoinState {
    calls: Calls,
    job: Option<JobId>,
    is_own_job: bool,
    attempt: Option<AttemptNumber>,
    is_own_attempt: bool,
    joined: Option<(InstanceName, Secret)>,
    ends_at_latest: Option<Wall>,
    /// The time for checkpoint writes that the job was described with.
    drain: Option<Duration>,
}

impl JoinState {
    pub(crate) fn new(place: &RunContext) -> Self {
        JoinState {
            calls: Calls::new(place.connector.clone(), place.clock.clone()).saying(place.voice.clone()),
            job: None,
            is_own_job: false,
            attempt: None,
            is_own_attempt: false,
            joined: None,
            ends_at_latest: None,
            drain: None,
        }
    }

    /// The time for checkpoint writes that the job was described with.
    pub(crate) fn drain(&self) -> Option<Duration> {
        self.drain
    }

    /// Notes the job that this is about.
    fn of_job(&mut self, job: &v1::Job) -> Result<JobId, Refusal> {
        let id: JobId = job.id.parse().map_err(|_| not_understood())?;
        self.job = Some(id);
        let drain = job.spec.as_ref().and_then(|spec| spec.drain);
        self.drain = drain.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero());
        Ok(id)
    }

    /// The job, where this process made it and nobody else will end it.
    pub(crate) fn own_job(&self) -> Option<JobId> {
        self.job.filter(|_| self.is_own_job)
    }

    /// Whether there is anything that may have to be ended.
    pub(crate) fn has_job(&self) -> bool {
        self.job.is_some()
    }

    /// The line that a run begins with.
    pub(crate) fn described(&self, opens: &[String]) -> String {
        let job = self.job.map(|j| j.to_string()).unwrap_or_default();
        let attempt = self.attempt.map(|a| a.to_string()).unwrap_or_default();
        let until = self.ends_at_latest.map(|end| format!("; until {end} at the latest")).unwrap_or_default();
        let opens = if opens.is_empty() { "opens nothing".to_owned() } else { opens.join("; ") };
        format!("{job}, attempt {attempt}: {opens}{until}")
    }

    /// Closes the job, as well as it can be within [`UNDO`].
    pub(crate) async fn close(&self, job: JobId, outcome: v1::Outcome, reason: &str) -> Result<(), Refusal> {
        let (job, reason) = (job.to_string(), one_line(reason));
        let request = v1::CloseJobRequest { job, outcome: outcome.into(), reason };
        let calls = &self.calls;
        let ask = async |span| calls.within(span, calls.jobs().close_job(timed(span, request.clone()))).await;
        calls.persist(UNDO, ask).await.map(drop)
    }

    /// Ends what was made, as well as it can be within [`UNDO`].
    pub(crate) async fn undo(&self, why: &str, voice: &MessageSink) {
        let Some(job) = self.job else { return };
        let reason = one_line(&format!("not started: {why}"));
        let calls = &self.calls;
        let undone = match (self.is_own_job, self.attempt, &self.joined) {
            (true, ..) => self.close(job, v1::Outcome::Cancelled, &reason).await,
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
                calls.persist(UNDO, ask).await.map(drop)
            }
            _ => return,
        };
        if let Err(refusal) = undone {
            voice.say(&format!(
                "{job} could not be ended ({}: {refusal}): nobody holds access to it; close it with `leasehold job close {job}`",
                refusal.reason
            ));
        }
    }
}

/// Creates the job, begins the attempt, joins it, as far as each is asked for. What is made is noted before the next step.
///
/// With `sessions` it comes back as the member that an agent of the same purpose was before it was killed, and keeps there what
/// the next one needs for that.
pub(crate) async fn begin(
    joining: &JoinOptions,
    begun: &mut JoinState,
    place: &RunContext,
    sessions: Option<&CredentialDir>,
) -> Result<(MemberSession, Connected), RunError> {
    let calls = begun.calls.clone();
    let mut left_open = None;
    if let Some(dir) = sessions
        && let Some(saved) = SavedSession::find(&dir.take_sessions(), joining)
    {
        dir.keep_session(SavedSession::text(&saved.who, saved.is_own_job, joining))?;
        match come_back(saved, begun, place).await? {
            CameBack::AsBefore(member) => return Ok(*member),
            CameBack::ToItsJob(job) => left_open = Some(job),
            CameBack::Not => {}
        }
    }
    let job = match (&joining.what, left_open) {
        (_, Some(job)) => {
            begun.is_own_job = true;
            *job
        }
        (JoinTarget::Job(id) | JoinTarget::Attempt(id), None) => found(&calls, *id).await?,
        (JoinTarget::New(spec), None) => {
            let (job, created) = created(&calls, spec, own_key()?).await?;
            begun.is_own_job = created;
            job
        }
    };
    let id = begun.of_job(&job)?;
    if let Some(waiting) = waiting(&job) {
        // It stays, for those who approve it.
        begun.job = None;
        return Err(waiting.into());
    }

    let (number, given) = match &joining.what {
        JoinTarget::Attempt(_) => (running(&job)?, None),
        JoinTarget::New(_) | JoinTarget::Job(_) => {
            let key = match &joining.attempt_key {
                Some(key) => key.clone(),
                None => own_key()?,
            };
            let began = attempt(&calls, id, key, joining.supersede).await?;
            let number =
                began.attempt.and_then(|a| AttemptNumber::new(a.number)).ok_or_else(not_understood)?;
            begun.is_own_attempt = joining.attempt_key.is_none();
            (number, Some(SecretText::new(began.ticket)))
        }
    };
    begun.attempt = Some(number);

    let instance = match &joining.instance {
        Some(instance) => instance.clone(),
        None => own_instance(),
    };
    let who = MemberSession {
        job: id,
        attempt: number,
        instance,
        secret: Secret::random()?,
        ticket: joining.ticket.clone().or(given).unwrap_or_else(|| SecretText::new(String::new())),
    };
    if let Some(dir) = sessions {
        dir.keep_session(SavedSession::text(&who, begun.is_own_job, joining))?;
    }
    let connected = join(&who, begun, place).await?;
    Ok((who, connected))
}

async fn join(who: &MemberSession, begun: &mut JoinState, place: &RunContext) -> Result<Connected, Refusal> {
    let calls = begun.calls.clone();
    // Noted before it is asked for: the answer may be lost when it was done.
    begun.joined = Some((who.instance.clone(), who.secret.clone()));
    let join = async |_: Duration| connect(calls.quiet(), who, || place.clock.now()).await;
    let connected = calls.persist(START_PATIENCE, join).await.inspect_err(|refusal| {
        if refusal.reason != Reason::Unreachable {
            begun.joined = None;
        }
    })?;
    begun.ends_at_latest = connected.ends_at_latest;
    Ok(connected)
}

/// What came of coming back.
enum CameBack {
    AsBefore(Box<(MemberSession, Connected)>),
    /// Its place is gone. Its job is open, and no other process will end it.
    ToItsJob(Box<v1::Job>),
    Not,
}

/// Takes up the membership of an agent that was killed.
async fn come_back(
    saved: SavedSession,
    begun: &mut JoinState,
    place: &RunContext,
) -> Result<CameBack, Refusal> {
    let SavedSession { who, is_own_job } = saved;
    let calls = begun.calls.clone();
    let job = match found(&calls, who.job).await {
        Ok(job) if job.state() != v1::JobState::Closed => job,
        Ok(_) => return Ok(CameBack::Not),
        Err(refusal) if refusal.reason.member_step() == MemberStep::TryLater => return Err(refusal),
        Err(_) => return Ok(CameBack::Not),
    };
    if running(&job).ok() == Some(who.attempt) {
        begun.of_job(&job)?;
        (begun.is_own_job, begun.attempt) = (is_own_job, Some(who.attempt));
        match join(&who, begun, place).await {
            Ok(connected) => {
                place.voice.say("this agent was killed before: it takes up the place that it had");
                return Ok(CameBack::AsBefore(Box::new((who, connected))));
            }
            Err(refusal) if refusal.reason.member_step() == MemberStep::TryLater => return Err(refusal),
            Err(refusal) => {
                place
                    .voice
                    .say(&format!("the place of the agent before is gone ({}): {refusal}", refusal.reason));
                *begun = JoinState::new(place);
            }
        }
    }
    Ok(if is_own_job { CameBack::ToItsJob(Box::new(job)) } else { CameBack::Not })
}

/// The attempt that runs.
fn running(job: &v1::Job) -> Result<AttemptNumber, Refusal> {
    let none = || {
        let refusal = Refusal::new(Reason::AttemptNotFound, format!("no attempt of {} is running", job.id));
        match job.state() {
            v1::JobState::Closed => refusal.fix("it is closed: create another job"),
            _ => refusal
                .fix(format!("begin one: leasehold agent --job {0}, or leasehold run --job {0}", job.id)),
        }
    };
    let current = job.attempts.last().filter(|a| a.state() != v1::AttemptState::Ended);
    current.and_then(|a| AttemptNumber::new(a.number)).ok_or_else(none)
}

async fn created(calls: &Calls, spec: &v1::JobSpec, key: String) -> Result<(v1::Job, bool), Refusal> {
    let request =
        v1::CreateJobRequest { spec: Some(spec.clone()), idempotency_key: key.clone(), dry_run: false };
    let mut tries = 0_u32;
    let ask = async |span| {
        tries = tries.saturating_add(1);
        calls.within(span, calls.jobs().create_job(timed(span, request.clone()))).await
    };
    let answer = calls.persist(START_PATIENCE, ask).await?;
    let job = answer.job.ok_or_else(not_understood)?;
    // A second try may find what the first one made.
    Ok((job, answer.created || tries > 1))
}

async fn found(calls: &Calls, id: JobId) -> Result<v1::Job, Refusal> {
    let request = v1::GetJobRequest { job: id.to_string() };
    let ask = async |span| calls.within(span, calls.jobs().get_job(timed(span, request.clone()))).await;
    calls.persist(START_PATIENCE, ask).await?.job.ok_or_else(not_understood)
}

async fn attempt(
    calls: &Calls,
    id: JobId,
    key: String,
    supersede: bool,
) -> Result<v1::BeginAttemptResponse, Refusal> {
    let request = v1::BeginAttemptRequest { job: id.to_string(), key, supersede, ..Default::default() };
    let ask = async |span| calls.within(span, calls.jobs().begin_attempt(timed(span, request.clone()))).await;
    calls.persist(START_PATIENCE, ask).await
}

/// Whom the job waits for, where it does.
fn waiting(job: &v1::Job) -> Option<Refusal> {
    if job.state() != v1::JobState::AwaitingApproval {
        return None;
    }
    let refusal = Refusal::new(Reason::ApprovalRequired, format!("{} waits for approval", job.id));
    let refusal = job.waiting_for.iter().fold(refusal, |refusal, gate| {
        let people = format!("{} of {}", gate.approvals_needed, gate.approver_group);
        refusal.with("asks", format!("{people} ({}: {})", gate.id, gate.explanation))
    });
    Some(refusal.fix(APPROVALS_ABSENT))
}

fn not_understood() -> Refusal {
    Refusal::new(Reason::NotSupported, "the daemon's answer is not understood")
        .fix("update leasehold, or use the one that came with the daemon")
}

fn own_key() -> Result<String, NoRandomness> {
    Ok(format!("run-{:032x}", random_u128()?))
}

fn own_instance() -> InstanceName {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    instance_of(host.trim(), std::process::id())
}

/// The host's name, with what no name may hold replaced, and the process id.
fn instance_of(host: &str, pid: u32) -> InstanceName {
    let suffix = format!("-{pid}");
    let room = NAME_BYTES_MAX.saturating_sub(suffix.len());
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' };
    let mut name: String = host.chars().map(plain).take(room).collect();
    while name.contains("..") {
        name = name.replace("..", ".");
    }
    let name = name.trim_start_matches(['-', '.']);
    let name = if name.is_empty() { "host" } else { name };
    #[expect(clippy::expect_used, reason = "made of the letters of the grammar, within its length")]
    format!("{name}{suffix}").parse().expect("a host and a number are an instance name")
}

/// Within the bound of free text, on one line.
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
    fn every_host_makes_an_instance_name() {
        for (host, name) in [
            ("node-7", "node-7-42"),
            ("Node_7.acme.example", "Node-7.acme.example-42"),
            ("..", "host-42"),
            ("", "host-42"),
            ("-x", "x-42"),
            ("höst", "h-st-42"),
            ("a....b", "a.b-42"),
        ] {
            assert_eq!(instance_of(host, 42).as_str(), name);
        }
        assert_eq!(instance_of(&"a".repeat(500), u32::MAX).as_str().len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_job_that_waits_says_whom_for() {
        let gate = v1::Gate {
            id: "gate-x".into(),
            explanation: "tuning a production model".into(),
            approver_group: "model-owners".into(),
            approvals_needed: 2,
        };
        let mut job = v1::Job { id: "j-1".into(), waiting_for: vec![gate], ..Default::default() };
        job.set_state(v1::JobState::Ready);
        assert_eq!(waiting(&job), None);
        job.set_state(v1::JobState::AwaitingApproval);
        let refusal = waiting(&job).unwrap();
        assert_eq!(refusal.reason, Reason::ApprovalRequired);
        assert_eq!(refusal.fact("asks"), Some("2 of model-owners (gate-x: tuning a production model)"));
        assert!(format!("{refusal:?}").contains("no command to approve"), "{refusal:?}");
    }

    #[test]
    fn what_is_reported_is_one_line_within_its_bound() {
        assert_eq!(one_line("a\nb"), "a b");
        assert!(one_line(&"é".repeat(1_000)).len() <= TEXT_BYTES_MAX);
    }
}
