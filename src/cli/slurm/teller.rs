//! Telling the daemon what happened to a run.

use std::time::Duration;

use super::{
    report::{Event, Report},
    spool::{Spool, Spooled},
};
use crate::{
    cli::{
        Client, Failure, Session,
        client::Manner,
        output::{Page, note_page},
    },
    clock::Wall,
    limits::{SLURM_BUDGET, SPOOL_BEGIN_KEPT, SPOOL_BEGIN_LATEST, SPOOL_KEPT},
    name::{PrincipalKind, SpiffeId, SpiffePattern},
    proto::v1,
    reason::{Reason, Refusal},
};

/// A connection to the daemon as the cluster's scheduler.
pub(super) struct Teller {
    client: Client,
}

/// What became of a report.
#[derive(Debug)]
pub(super) enum Told {
    /// The daemon knows. What it did, for the log.
    Done(String),
    /// It will never be of use. Why.
    Dropped(String),
    /// It stays: why it could not be told.
    Kept(Failure),
    /// It stays though it was told: what it is about may not have come yet.
    Waits(String),
}

impl Teller {
    /// Connects at the first call.
    pub(super) fn new(session: &Session) -> Result<Self, Failure> {
        Ok(Teller { client: session.client(&[PrincipalKind::Scheduler])? })
    }

    /// Tells one report of a run.
    pub(super) async fn tell(&self, report: &Report, session: &Session) -> Told {
        let age = session.now().wall.since(report.at);
        let (kept, useless): (Duration, fn(Reason) -> bool) = match report.event {
            Event::Began { .. } => (SPOOL_BEGIN_KEPT, |_| true),
            Event::Ended { .. } | Event::Released { .. } => (SPOOL_KEPT, is_over),
        };
        if age > kept {
            return Told::Dropped(format!("{} s old: too late to {}", age.as_secs(), report.word()));
        }
        let told = match &report.event {
            Event::Began { runs_as } => self.begin(report, runs_as).await,
            Event::Ended { .. } => match self.end(report).await {
                Ok(None) if age <= SPOOL_BEGIN_LATEST => {
                    return Told::Waits(format!("this run began no attempt of {} so far", report.job));
                }
                Ok(None) => Ok(format!("this run began no attempt of {}", report.job)),
                Ok(Some(done)) => Ok(done),
                Err(failure) => Err(failure),
            },
            Event::Released { node, .. } => self.release(report, node, age > 2 * SLURM_BUDGET).await,
        };
        match told {
            Ok(done) => Told::Done(done),
            Err(failure) => match failure.reason {
                // Somebody else ended it between two of our questions.
                Some(reason)
                    if report.word() != "begin" && is_over(reason) && reason != Reason::JobNotFound =>
                {
                    Told::Done(format!("it was over before: {}", failure.text))
                }
                Some(reason) if !failure.is_passing() && useless(reason) => dropped(&failure),
                _ => Told::Kept(failure),
            },
        }
    }

    /// Begins the attempt. Slurm has released every node of the run before, so what is left of it is ended.
    async fn begin(&self, report: &Report, runs_as: &SpiffeId) -> Result<String, Failure> {
        let job = self.job(report.job.to_string()).await?;
        // Anybody may write anything into a comment.
        if !may_take_part(&job, runs_as) {
            return Err(not_theirs(&job, runs_as));
        }
        let request = v1::BeginAttemptRequest {
            job: job.id,
            key: report.key.clone(),
            supersede: true,
            ..Default::default()
        };
        let client = &self.client;
        let answer =
            client.ask(Manner::Changes, request, async |r| client.jobs().begin_attempt(r).await).await?;
        let number = answer.attempt.map_or(0, |a| a.number);
        Ok(format!("attempt {number} of {} has begun", report.job))
    }

    /// Ends the attempt of a run, or drains it where somebody is still at work in it. Nothing where it has begun none.
    async fn end(&self, report: &Report) -> Result<Option<String>, Failure> {
        let Event::Ended { exit, requeued } = report.event else { return Ok(None) };
        let job = self.job(report.job.to_string()).await?;
        let attempt = match job.attempts.iter().find(|a| a.key == report.key) {
            Some(attempt) => attempt,
            None if job.state() == v1::JobState::Closed => {
                return Ok(Some(format!("{} was closed, and this run began no attempt of it", job.id)));
            }
            None => return Ok(None),
        };
        let which = format!("attempt {} of {}", attempt.number, job.id);
        if attempt.state() == v1::AttemptState::Ended {
            return Ok(Some(format!("{which} had ended")));
        }
        let client = &self.client;
        let is_at_work = attempt.members.iter().any(|m| m.state() == v1::MemberState::Joined);
        if exit.is_silent() && is_at_work {
            let request = v1::DrainAttemptRequest {
                job: job.id.clone(),
                attempt: attempt.number,
                reason: match requeued {
                    true => format!("{}: requeued", report.run),
                    false => format!("{}: cancelled, out of time or preempted", report.run),
                },
                ..Default::default()
            };
            client.ask(Manner::Changes, request, async |r| client.jobs().drain_attempt(r).await).await?;
            return Ok(Some(format!("{which} drains")));
        }
        let (outcome, what) = match () {
            () if requeued => (v1::Outcome::Interrupted, "requeued".to_owned()),
            () if exit.is_silent() => {
                (v1::Outcome::Interrupted, "released before it said how it ended".to_owned())
            }
            () if exit.was_asked() => (v1::Outcome::Interrupted, exit.to_string()),
            () => (v1::Outcome::Failed, exit.to_string()),
        };
        let request = v1::EndAttemptRequest {
            job: job.id.clone(),
            attempt: attempt.number,
            outcome: outcome.into(),
            detail: format!("{}: {what}", report.run),
            ..Default::default()
        };
        client.ask(Manner::Changes, request, async |r| client.jobs().end_attempt(r).await).await?;
        Ok(Some(format!("{which} has ended: {what}")))
    }

    /// Ends the members on a node that Slurm has released: none of the run's processes is left there.
    ///
    /// Told late, the next run may be at work on that node by now: a member that is there, or came since, is none of this one's.
    async fn release(&self, report: &Report, node: &str, is_late: bool) -> Result<String, Failure> {
        let Event::Released { exit, .. } = report.event else { return Ok("nothing to release".to_owned()) };
        let job = self.job(report.job.to_string()).await?;
        let prefix = report.key_prefix();
        // The restart count in a node's Epilog may be the next run's, which cannot have begun while this one is released.
        let open = |a: &&v1::Attempt| a.state() != v1::AttemptState::Ended && a.key.starts_with(prefix);
        let Some(attempt) = job.attempts.iter().rev().find(open) else {
            return Ok(format!("nobody was left on {node}"));
        };
        let is_gone = |m: &&v1::Member| {
            is_on(node, m) && (!is_late || (m.state() == v1::MemberState::Away && joined_at(m) <= report.at))
        };
        let outcome = match attempt.state() {
            v1::AttemptState::Draining => v1::Outcome::Interrupted,
            _ if exit.was_asked() => v1::Outcome::Interrupted,
            _ if !exit.is_silent() => v1::Outcome::Failed,
            _ => v1::Outcome::Lost,
        };
        let what = match exit.is_silent() {
            true => format!("{node} is released and nothing runs there"),
            false => format!("{node} is released: {exit}"),
        };
        let mut ended = Vec::new();
        for member in attempt.members.iter().filter(is_gone) {
            let mut request = v1::EndAttemptRequest {
                job: job.id.clone(),
                attempt: attempt.number,
                outcome: outcome.into(),
                detail: format!("{}: {what}", report.run),
                ..Default::default()
            };
            request.instance.clone_from(&member.instance);
            let client = &self.client;
            let asked =
                client.ask(Manner::Changes, request, async |r| client.jobs().end_attempt(r).await).await;
            match asked {
                Ok(_) => ended.push(member.instance.clone()),
                // The member before, or the head node, ended them all.
                Err(failure) if failure.reason.is_some_and(is_over) => break,
                Err(failure) => return Err(failure),
            }
        }
        Ok(match ended.as_slice() {
            [] => format!("nobody was left on {node}"),
            ended => format!("ended on {node}: {}", ended.join(", ")),
        })
    }

    async fn job(&self, job: String) -> Result<v1::Job, Failure> {
        let client = &self.client;
        let answer = client
            .ask(Manner::Reads, v1::GetJobRequest { job }, async |r| client.jobs().get_job(r).await)
            .await?;
        answer.job.ok_or_else(|| Failure::new(crate::cli::Exit::Failure, "the daemon's answer is incomplete"))
    }
}

/// Tells what is kept: first of all of `own`'s job, then, where nobody else does so, the rest. False where something stays.
pub(super) async fn tell_all(
    spool: &Spool,
    own: Option<&Report>,
    session: &Session,
) -> Result<bool, Failure> {
    let teller = Teller::new(session)?;
    let pending = spool.pending().map_err(|e| Failure::new(crate::cli::Exit::Failure, e.to_string()))?;
    let (first, mut rest): (Vec<_>, Vec<_>) =
        pending.into_iter().partition(|s| own.is_some_and(|own| own.job == s.report.job));
    if own.is_some() {
        // What is younger than that is being told by its own script.
        let now = session.now().wall;
        rest.retain(|s| now.since(s.report.at) > 2 * SLURM_BUDGET);
    }
    let all_told = tell_each(&teller, &first, session).await;
    if !all_told {
        return Ok(false);
    }
    let Some(_turn) = spool.turn() else { return Ok(rest.is_empty()) };
    spool.forget_old_runs(session.now().wall);
    Ok(tell_each(&teller, &rest, session).await)
}

pub(super) async fn tell_each(teller: &Teller, spooled: &[Spooled], session: &Session) -> bool {
    let mut all_told = true;
    for one in spooled {
        // Its end has taken its place: it is not to begin any more.
        if !one.is_there() {
            continue;
        }
        let told = teller.tell(&one.report, session).await;
        say(&one.report, &told);
        match told {
            Told::Done(_) | Told::Dropped(_) => one.forget(),
            Told::Waits(_) => all_told = false,
            Told::Kept(failure) => {
                all_told = false;
                if failure.reason.is_none() || failure.is_passing() {
                    return false;
                }
            }
        }
    }
    all_told
}

fn dropped(failure: &Failure) -> Told {
    Told::Dropped(failure.render().trim_start_matches("leasehold: ").to_owned())
}

/// Says it for syslog: one line where it went well.
pub(super) fn say(report: &Report, told: &Told) {
    note_page(&said(report, told));
}

fn said(report: &Report, told: &Told) -> Page {
    let run = &report.run;
    let what = match &report.event {
        Event::Began { .. } => "its beginning".to_owned(),
        Event::Ended { .. } => "its end".to_owned(),
        Event::Released { node, .. } => format!("its end on {node}"),
    };
    match told {
        Told::Done(done) => Page::line(&format!("leasehold: {run}: {done}")),
        // Lines that `Failure::render` has made.
        Told::Dropped(why) => Page::lines(format!("leasehold: {run}: {what} is not told: {why}").lines()),
        Told::Waits(so_far) => Page::line(&format!(
            "leasehold: {run}: {so_far}; {what} is told again, in case its beginning is under way"
        )),
        Told::Kept(failure) => {
            let failure = failure.clone().saying("It is kept: `leasehold slurm resend` tells it again.");
            let why = failure.render();
            let why = why.trim_start_matches("leasehold: ");
            Page::lines(format!("leasehold: {run}: {what} could not be told: {why}").lines())
        }
    }
}

fn not_theirs(job: &v1::Job, runs_as: &SpiffeId) -> Failure {
    let text = format!("the Slurm job's comment names {}, which is no job of {runs_as}", job.id);
    Failure::from(Refusal::new(Reason::NotAMember, text))
        .with("launcher", job.launcher.clone())
        .fix("submit as who launched that job, or have members.join of its job file name this identity")
        .saying("No attempt was begun; the Slurm job runs without access.")
}

/// Whether this identity launched a job, or may join it.
fn may_take_part(job: &v1::Job, id: &SpiffeId) -> bool {
    let join = job.spec.as_ref().and_then(|s| s.members.as_ref()).map(|m| m.join.as_slice());
    let mut patterns = join.unwrap_or_default().iter().filter_map(|p| p.parse::<SpiffePattern>().ok());
    job.launcher == id.to_string() || patterns.any(|p| p.matches(id))
}

/// A member that has not said how it ended, and whose instance is the node's name, or begins with it and a dot.
fn is_on(node: &str, member: &v1::Member) -> bool {
    let there = member.instance == node
        || member.instance.strip_prefix(node).is_some_and(|rest| rest.starts_with('.'));
    there && matches!(member.state(), v1::MemberState::Joined | v1::MemberState::Away)
}

/// When a member joined, or came back. Never where that is not known.
fn joined_at(member: &v1::Member) -> Wall {
    let ms = |t: &prost_types::Timestamp| {
        let seconds = u64::try_from(t.seconds).ok()?.checked_mul(1_000)?;
        seconds.checked_add(u64::try_from(t.nanos).ok()? / 1_000_000)
    };
    Wall(member.joined.as_ref().and_then(ms).unwrap_or(u64::MAX))
}

/// There is nothing left that could be ended.
fn is_over(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::JobNotFound
            | Reason::JobClosed
            | Reason::AttemptNotFound
            | Reason::AttemptStale
            | Reason::AttemptEnded
            | Reason::NotAMember
            | Reason::NotJoined
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_on_the_node_that_its_instance_names() {
        let member = |instance: &str, state: v1::MemberState| v1::Member {
            instance: instance.into(),
            state: state.into(),
            ..Default::default()
        };
        use v1::MemberState::{Away, Joined, Left, Lost};
        for (instance, state, on) in [
            ("n1", Joined, true),
            ("n1", Away, true),
            ("n1.0", Joined, true),
            ("n1", Left, false),
            ("n1", Lost, false),
            ("n10", Joined, false),
            ("n1-0", Joined, false),
            ("n2", Joined, false),
        ] {
            assert_eq!(is_on("n1", &member(instance, state)), on, "{instance} {state:?}");
        }
    }

    #[test]
    fn what_became_of_a_report_reads_so_in_syslog() {
        use crate::cli::slurm::report::tests::allocation;
        let id: SpiffeId = "spiffe://hpc.acme.example/slurm/ml-support/mallory".parse().unwrap();
        let began = Report::began(&allocation(4, 0, "0:0"), id.clone(), crate::clock::Wall(0));
        let ended = Report::ended(&allocation(4, 0, "3:0"), None, crate::clock::Wall(0)).unwrap();
        let job = v1::Job {
            id: crate::name::JobId(7).to_string(),
            launcher: "spiffe://hpc.acme.example/slurm/ml-support/ada".into(),
            ..Default::default()
        };
        let away = Refusal::new(Reason::Unreachable, "cannot reach `leasehold.acme.example:8443`")
            .fix("check that the daemon runs, and the way to it");
        let lines = [
            said(&began, &Told::Done("attempt 1 of j-7 has begun".into())),
            said(&began, &dropped(&not_theirs(&job, &id))),
            said(&ended, &Told::Kept(away.into())),
        ];
        insta::assert_snapshot!(lines.map(|page| page.to_string()).concat(), @r"
        leasehold: Slurm job 4 on hpc: attempt 1 of j-7 has begun
        leasehold: Slurm job 4 on hpc: its beginning is not told: denied: the Slurm job's comment names j-00000000000000000000000007, which is no job of spiffe://hpc.acme.example/slurm/ml-support/mallory
          launcher  spiffe://hpc.acme.example/slurm/ml-support/ada
          fix       submit as who launched that job, or have members.join of its job file name this identity
        No attempt was begun; the Slurm job runs without access.
        leasehold: Slurm job 4 on hpc: its end could not be told: error: cannot reach `leasehold.acme.example:8443`
          fix    check that the daemon runs, and the way to it
        It is kept: `leasehold slurm resend` tells it again.
        ");
    }

    #[test]
    fn a_comment_moves_only_jobs_of_its_own_user() {
        let id = |text: &str| text.parse::<SpiffeId>().unwrap();
        let members =
            v1::Members { join: vec!["spiffe://td.example/slurm/ada".into()], ..Default::default() };
        let spec = v1::JobSpec { members: Some(members), ..Default::default() };
        let job =
            v1::Job { launcher: "spiffe://td.example/ci".into(), spec: Some(spec), ..Default::default() };
        assert!(may_take_part(&job, &id("spiffe://td.example/slurm/ada")));
        assert!(may_take_part(&job, &id("spiffe://td.example/ci")));
        assert!(!may_take_part(&job, &id("spiffe://td.example/slurm/bob")));
        assert!(!may_take_part(&v1::Job::default(), &id("spiffe://td.example/slurm/bob")));
    }
}
