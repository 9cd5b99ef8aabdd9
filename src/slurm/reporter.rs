//! Sends reports to the daemon.

use std::{sync::Arc, time::Duration};

use super::{
    report::{RunEvent, RunReport},
    spool::{Spool, SpoolError, Spooled},
};
use crate::{
    clock::{Clock, Wall},
    limits::{SLURM_BUDGET, SPOOL_BEGIN_KEPT, SPOOL_BEGIN_LATEST, SPOOL_NOTE_AGE_MAX},
    name::{SpiffeId, SpiffePattern},
    proto::{convert::wall, v1},
    reason::{Reason, Refusal},
};

/// What a [`Reporter`] needs: calls to the daemon, made as the cluster's scheduler, and a log. The user of a `Reporter`
/// implements this over a connection to the daemon.
pub trait Scheduler {
    type Error: CallError;
    fn get_job(&self, request: v1::GetJobRequest) -> impl Future<Output = Result<v1::Job, Self::Error>>;
    fn begin_attempt(
        &self,
        request: v1::BeginAttemptRequest,
    ) -> impl Future<Output = Result<v1::BeginAttemptResponse, Self::Error>>;
    fn drain_attempt(
        &self,
        request: v1::DrainAttemptRequest,
    ) -> impl Future<Output = Result<(), Self::Error>>;
    fn end_attempt(&self, request: v1::EndAttemptRequest) -> impl Future<Output = Result<(), Self::Error>>;
    /// Logs the result of a report.
    fn log(&self, report: &RunReport, delivery: &Delivery<Self::Error>);
}

/// Why a call failed.
pub trait CallError {
    /// The daemon's reason, if the daemon gave one.
    fn reason(&self) -> Option<Reason>;
    /// Whether a retry may succeed.
    fn is_passing(&self) -> bool;
    fn text(&self) -> &str;
}

/// Sends reports to the daemon as the cluster's scheduler.
pub struct Reporter<S> {
    scheduler: S,
    clock: Arc<dyn Clock>,
}

/// The result of a report.
#[derive(Debug)]
pub enum Delivery<E> {
    /// The daemon has the report. The text says what the daemon did.
    Done(String),
    /// The report is too old to be useful, so it is dropped.
    Outdated(String),
    /// The Slurm user may not take part in the job, so the report is dropped.
    NotTheirs(Refusal),
    /// The daemon refused the report permanently, so it is dropped.
    Dropped(E),
    /// The report could not be sent, so it stays in the spool.
    Kept(E),
    /// The report was sent, but its run has not begun an attempt yet. It stays in the spool.
    Waits(String),
}

impl<S: Scheduler> Reporter<S> {
    pub fn new(scheduler: S, clock: Arc<dyn Clock>) -> Self {
        Reporter { scheduler, clock }
    }

    /// Sends one report, and logs the result.
    pub async fn send_logged(&self, report: &RunReport) -> Delivery<S::Error> {
        let delivery = self.send(report).await;
        self.scheduler.log(report, &delivery);
        delivery
    }

    /// Sends one report of a run.
    pub async fn send(&self, report: &RunReport) -> Delivery<S::Error> {
        let age = self.now().since(report.at);
        let (kept, useless): (Duration, fn(Reason) -> bool) = match report.event {
            RunEvent::Began { .. } => (SPOOL_BEGIN_KEPT, |_| true),
            RunEvent::Ended { .. } | RunEvent::Released { .. } => (SPOOL_NOTE_AGE_MAX, is_over),
        };
        if age > kept {
            return Delivery::Outdated(format!("{} s old: too late to {}", age.as_secs(), report.verb()));
        }
        let sent = match &report.event {
            RunEvent::Began { runs_as } => match self.begin_attempt(report, runs_as).await {
                Ok(Ok(done)) => Ok(done),
                Ok(Err(refusal)) => return Delivery::NotTheirs(refusal),
                Err(error) => Err(error),
            },
            RunEvent::Ended { .. } => match self.end_attempt(report).await {
                Ok(None) if age <= SPOOL_BEGIN_LATEST => {
                    return Delivery::Waits(format!("this run began no attempt of {} so far", report.job));
                }
                Ok(None) => Ok(format!("this run began no attempt of {}", report.job)),
                Ok(Some(done)) => Ok(done),
                Err(error) => Err(error),
            },
            RunEvent::Released { node, .. } => {
                self.end_members_on(report, node, age > 2 * SLURM_BUDGET).await
            }
        };
        match sent {
            Ok(done) => Delivery::Done(done),
            Err(error) => match error.reason() {
                // Another caller ended the attempt between two of our calls.
                Some(reason)
                    if report.verb() != "begin" && is_over(reason) && reason != Reason::JobNotFound =>
                {
                    Delivery::Done(format!("the attempt or job had already ended: {}", error.text()))
                }
                Some(reason) if !error.is_passing() && useless(reason) => Delivery::Dropped(error),
                _ => Delivery::Kept(error),
            },
        }
    }

    /// Begins the attempt, and ends the previous attempt, because Slurm has released all of its nodes.
    async fn begin_attempt(
        &self,
        report: &RunReport,
        runs_as: &SpiffeId,
    ) -> Result<Result<String, Refusal>, S::Error> {
        let job = self.job(report.job.to_string()).await?;
        // Any Slurm user can write any job into a comment.
        if !may_take_part(&job, runs_as) {
            return Ok(Err(not_theirs(&job, runs_as)));
        }
        let request = v1::BeginAttemptRequest {
            job: job.id,
            key: report.key.clone(),
            supersede: true,
            ..Default::default()
        };
        let answer = self.scheduler.begin_attempt(request).await?;
        let number = answer.attempt.map_or(0, |a| a.number);
        Ok(Ok(format!("attempt {number} of {} has begun", report.job)))
    }

    /// Ends the attempt of a run, or drains it if a member still works. Returns `None` if the run began no attempt.
    async fn end_attempt(&self, report: &RunReport) -> Result<Option<String>, S::Error> {
        let RunEvent::Ended { exit, requeued } = report.event else { return Ok(None) };
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
        let is_at_work = attempt.members.iter().any(|m| m.state() == v1::MemberState::Joined);
        if exit.is_inconclusive() && is_at_work {
            let request = v1::DrainAttemptRequest {
                job: job.id.clone(),
                attempt: attempt.number,
                reason: match requeued {
                    true => format!("{}: requeued", report.run),
                    false => format!("{}: cancelled, out of time or preempted", report.run),
                },
                ..Default::default()
            };
            self.scheduler.drain_attempt(request).await?;
            return Ok(Some(format!("{which} drains")));
        }
        let (outcome, what) = match () {
            () if requeued => (v1::Outcome::Interrupted, "requeued".to_owned()),
            () if exit.is_inconclusive() => (
                v1::Outcome::Interrupted,
                "Slurm reported exit 0:0, which does not show how the run ended".to_owned(),
            ),
            () if exit.was_asked_to_end() => (v1::Outcome::Interrupted, exit.to_string()),
            () => (v1::Outcome::Failed, exit.to_string()),
        };
        let request = v1::EndAttemptRequest {
            job: job.id.clone(),
            attempt: attempt.number,
            outcome: outcome.into(),
            detail: format!("{}: {what}", report.run),
            ..Default::default()
        };
        self.scheduler.end_attempt(request).await?;
        Ok(Some(format!("{which} has ended: {what}")))
    }

    /// Ends the members on a node that Slurm has released, because no process of the run is left on the node.
    ///
    /// If the report is late, the next run may already use that node. So a member that is joined, or that joined after the
    /// report was written, does not belong to this run.
    async fn end_members_on(
        &self,
        report: &RunReport,
        node: &str,
        is_late: bool,
    ) -> Result<String, S::Error> {
        let RunEvent::Released { exit, .. } = report.event else {
            return Ok("nothing to release".to_owned());
        };
        let job = self.job(report.job.to_string()).await?;
        let prefix = report.key_prefix();
        // The Epilog script of a node may already see the restart count of the next run. So compare only the part of
        // the key before the restart count. This finds the right attempt, because the next run cannot begin before this
        // run is released.
        let open = |a: &&v1::Attempt| a.state() != v1::AttemptState::Ended && a.key.starts_with(prefix);
        let Some(attempt) = job.attempts.iter().rev().find(open) else {
            return Ok(format!("no member was left on {node}"));
        };
        let is_gone = |m: &&v1::Member| {
            is_on(node, m) && (!is_late || (m.state() == v1::MemberState::Away && joined_at(m) <= report.at))
        };
        let outcome = match attempt.state() {
            v1::AttemptState::Draining => v1::Outcome::Interrupted,
            _ if exit.was_asked_to_end() => v1::Outcome::Interrupted,
            _ if !exit.is_inconclusive() => v1::Outcome::Failed,
            _ => v1::Outcome::Lost,
        };
        let what = match exit.is_inconclusive() {
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
            match self.scheduler.end_attempt(request).await {
                Ok(()) => ended.push(member.instance.clone()),
                // All members have ended already: the end of another member, or a report of the head node, ended them.
                Err(error) if error.reason().is_some_and(is_over) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(match ended.as_slice() {
            [] => format!("no member was left on {node}"),
            ended => format!("ended on {node}: {}", ended.join(", ")),
        })
    }

    async fn job(&self, job: String) -> Result<v1::Job, S::Error> {
        self.scheduler.get_job(v1::GetJobRequest { job }).await
    }

    fn now(&self) -> Wall {
        self.clock.now().wall
    }

    /// Sends the reports in the spool. First come the reports about the job of `own`. Then come the others, unless
    /// another Slurm script is sending them. Returns `true` if none of these reports is still in the spool.
    pub async fn send_all(&self, spool: &Spool, own: Option<&RunReport>) -> Result<bool, SpoolError> {
        let (first, mut rest): (Vec<_>, Vec<_>) =
            spool.pending()?.into_iter().partition(|s| own.is_some_and(|own| own.job == s.report.job));
        if own.is_some() {
            // Leave out recent reports, because the scripts that wrote them are still sending them.
            let now = self.now();
            rest.retain(|s| now.since(s.report.at) > 2 * SLURM_BUDGET);
        }
        if !self.send_each(&first).await {
            return Ok(false);
        }
        let Some(_lock) = spool.lock() else { return Ok(rest.is_empty()) };
        spool.forget_old_runs(self.now());
        Ok(self.send_each(&rest).await)
    }

    /// Sends reports in their order. Stops if the daemon cannot be reached. Returns `true` if each report was sent,
    /// dropped or replaced, so that none waits in the spool.
    pub async fn send_each(&self, spooled: &[Spooled]) -> bool {
        let mut all_sent = true;
        for one in spooled {
            // Another script has sent this report, or the report of the run's end has replaced it.
            if !one.is_pending() {
                continue;
            }
            match self.send_logged(&one.report).await {
                Delivery::Done(_) | Delivery::Outdated(_) | Delivery::NotTheirs(_) | Delivery::Dropped(_) => {
                    one.remove();
                }
                Delivery::Waits(_) => all_sent = false,
                Delivery::Kept(error) => {
                    all_sent = false;
                    if error.reason().is_none() || error.is_passing() {
                        return false;
                    }
                }
            }
        }
        all_sent
    }
}

/// Makes the refusal for a Slurm user who may not take part in the job that the comment names.
pub fn not_theirs(job: &v1::Job, runs_as: &SpiffeId) -> Refusal {
    let text = format!("the Slurm job's comment names {}, which is not a job of {runs_as}", job.id);
    Refusal::new(Reason::NotAMember, text)
        .with("launcher", job.launcher.clone())
        .fix("submit as the user who launched that job, or add this identity to members.join of its job file")
}

/// Whether this identity launched a job, or may join it.
fn may_take_part(job: &v1::Job, id: &SpiffeId) -> bool {
    let join = job.spec.as_ref().and_then(|s| s.members.as_ref()).map(|m| m.join.as_slice());
    let mut patterns = join.unwrap_or_default().iter().filter_map(|p| p.parse::<SpiffePattern>().ok());
    job.launcher == id.to_string() || patterns.any(|p| p.matches(id))
}

/// Whether a member is on a node and has not ended. Its instance is the node's name, or begins with that name and a dot.
fn is_on(node: &str, member: &v1::Member) -> bool {
    let there = member.instance == node
        || member.instance.strip_prefix(node).is_some_and(|rest| rest.starts_with('.'));
    there && matches!(member.state(), v1::MemberState::Joined | v1::MemberState::Away)
}

/// Returns when a member joined or came back. If that is not known, returns the largest time.
fn joined_at(member: &v1::Member) -> Wall {
    member.joined.as_ref().and_then(wall).unwrap_or(Wall(u64::MAX))
}

/// Whether a refusal with this reason means that there is nothing left to end.
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
    fn a_comment_moves_only_the_jobs_of_its_own_user() {
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
