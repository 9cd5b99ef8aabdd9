//! Begins, drains and ends attempts, and closes jobs.

use std::{sync::Arc, time::Duration};

use super::{
    access_request::{AccessRequest, Overtaken},
    caller::Caller,
    create::JobDecision,
    decide::approval_required,
    endings::EndAnswer,
    jobs::JobUseCases,
    joining::TicketFound,
    names,
    refusals::{job_not_found, move_refusal, state_refusal},
    rules::Rules,
};
use crate::{
    job::{AttemptState, Begin, Change, Drain, DrainSpans, Illegal, Job},
    limits,
    name::{AttemptNumber, FenceName, InstanceName, JobId, Outcome, PrincipalKind, SpiffePattern},
    policy::{Phase, Relation, Rpc},
    reason::{Reason, Refusal},
    secret::{Secret, SecretDigest, SecretText},
};

/// The answer to beginning an attempt.
#[derive(Debug)]
pub struct Began {
    pub job: Arc<Job>,
    pub attempt: AttemptNumber,
    /// The ticket of the attempt. A repeated call with the same key gets the ticket too. `None` if the ticket was made
    /// with the key of another ledger, or if only a pattern in `members.start` covers the caller.
    pub ticket: Option<SecretText>,
}

/// The part of an attempt to which a drain or a reported end applies.
#[derive(Clone, Debug)]
pub enum Concerned {
    /// The whole attempt.
    Attempt,
    /// A member. `proof` is the digest of the session secret that the caller sent.
    Member { instance: InstanceName, proof: Option<SecretDigest> },
}

/// A call to begin an attempt.
#[derive(Clone, Debug)]
pub struct BeginRequest<'a> {
    pub job: JobId,
    /// The scheduler's key for this run of the job.
    pub key: &'a str,
    /// If the previous attempt is draining, end it at once.
    pub supersede: bool,
    /// The identities that may join without the ticket, because the launcher or a scheduler vouches for them.
    pub vouched: &'a [SpiffePattern],
    /// The ticket that the caller already has, if the caller joins the attempt itself. It may be empty.
    pub joins_with: Option<&'a str>,
}

impl JobUseCases {
    /// Begins the next attempt. The previous attempt ends only when the record of the new one is on disk.
    pub async fn begin_attempt(&self, caller: &Caller, begin: &BeginRequest<'_>) -> Result<Began, Refusal> {
        let BeginRequest { job: id, key, supersede, vouched, joins_with } = *begin;
        self.context.refuse_if_held()?;
        let named =
            self.context.state.job(id).ok_or_else(|| self.access.absent_job(caller, Rpc::BeginAttempt))?;
        let request = self.access.access_request(&caller.peer, Rpc::BeginAttempt)?;
        let mut names = names::of_job(&request.rules, &named);
        names.extend(names::of_identity(&request.rules, request.caller.id()));
        let standing = request.stand(&names);
        let AccessRequest { rules, caller, .. } = &standing.request;

        // The stand was taken before all reads below, so `look_again` notices a revocation in between.
        let job = self.context.state.job(id).ok_or_else(job_not_found)?;
        self.may_begin(rules, caller, &job, &names)?;
        may_vouch(caller, &job, vouched)?;
        let ticket = self.make_ticket(id, key)?;
        let handed = gets_ticket(caller, &job).then_some(&ticket);
        let now = self.context.clock.now().lease;
        let begin = |job: &Job| job.begin(key, supersede, ticket.digest(), vouched, now);
        match begin(&job).map_err(move_refusal)? {
            Begin::Existing(attempt) => return Ok(began_before(job, attempt, handed)),
            Begin::New(Change::AttemptBegan { attempt, .. }) => {
                self.access.check_unlocked(caller.id(), [FenceName::attempt(id, attempt)].iter())?;
                if let Some(own) = joins_with {
                    let ticket = match handed {
                        Some(_) => TicketFound::Right,
                        None => TicketFound::of(own, ticket.digest()),
                    };
                    self.joining.may_join_new(rules, caller, &job, &names, ticket)?;
                }
            }
            Begin::New(_) => {}
        }
        let decided = self.decide_to_run(rules, &job)?;
        let decision = self.decisions.record(rules, &job, None, "allow", decided.rules);
        self.context
            .rates
            .charge_bytes(caller, key.len().saturating_add(decision.rules.iter().map(String::len).sum()))?;
        let decide = |job: &Job| match begin(job)? {
            Begin::New(change) => Ok(Some(change)),
            Begin::Existing(_) => Ok(None),
        };
        let widened = self.context.state.widen(id, caller.actor(), Some(decision), decide).await;
        let widened = widened.map_err(|r| state_refusal(r, move_refusal))?;
        self.endings.sweep(&widened.lowered, "superseded by a newer attempt");
        let Some(attempt) = widened.job.attempts.iter().find(|a| a.key == key).map(|a| a.number) else {
            return Err(Refusal::new(Reason::JobClosed, "the job ended meanwhile"));
        };
        if !widened.changed {
            return Ok(began_before(widened.job, attempt, handed));
        }
        let again = standing.look_again("the attempt was beginning", None, |changed| match changed {
            None => Ok(()),
            Some((rules, caller)) => self.may_still_begin(rules, caller, &widened.job, attempt),
        });
        if let Err(Overtaken { refusal, detail }) = again {
            self.endings.end_quietly(id, attempt, Outcome::Revoked, &detail);
            return Err(refusal);
        }
        metrics::counter!("leasehold_attempts_begun_total").increment(1);
        Ok(Began { job: widened.job, attempt, ticket: handed.map(Secret::to_text) })
    }

    /// Checks an attempt that has just begun against rules that changed meanwhile.
    fn may_still_begin(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        attempt: AttemptNumber,
    ) -> Result<(), Refusal> {
        let mut names = names::of_job(rules, job);
        names.push(FenceName::attempt(job.id, attempt));
        self.may_begin(rules, caller, job, &names)?;
        self.decide_to_run(rules, job).map(drop)
    }

    /// Decides whether the job may run now. Refuses if a gate is closed.
    fn decide_to_run(&self, rules: &Rules, job: &Job) -> Result<JobDecision, Refusal> {
        let decided = self.decide_job(rules, job, Phase::Running)?;
        if decided.gates.is_empty() { Ok(decided) } else { Err(approval_required(&decided.gates)) }
    }

    /// Checks every rule for the begin of an attempt, except the decision on the job's access.
    fn may_begin(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        names: &[FenceName],
    ) -> Result<(), Refusal> {
        self.access.authorize_job(caller, Rpc::BeginAttempt, job, "")?;
        self.access.check_unlocked(caller.id(), names.iter())?;
        if job.launcher == *caller.id() {
            self.decisions.may_launch(caller)?;
        }
        self.context.check_checkpoints(rules, job)?;
        self.decisions.check_launcher(rules, job)
    }

    fn make_ticket(&self, job: JobId, key: &str) -> Result<Secret, Refusal> {
        self.tickets.of(job, key).ok_or_else(|| Refusal::new(Reason::Internal, "no ticket could be made"))
    }

    /// Drains an attempt or one of its members: reading ends soon, writing ends at the end of the grace.
    pub fn drain_attempt(
        &self,
        caller: &Caller,
        id: JobId,
        attempt: AttemptNumber,
        concerned: &Concerned,
        grace: Option<Duration>,
        reason: &str,
    ) -> Result<Drain, Refusal> {
        let job = self.authorize_about(caller, Rpc::DrainAttempt, id, attempt, concerned, reason)?;
        let grace = grace.or(job.spec.drain).unwrap_or(limits::DRAIN_GRACE_DEFAULT);
        let spans = DrainSpans { reading: self.context.settings.drain_read, grace };
        let now = self.context.clock.now().lease;
        let decide = |j: &Job| match concerned {
            Concerned::Attempt => Ok(j.drain(attempt, spans, reason, now)?.into_iter().collect()),
            Concerned::Member { instance, .. } => j.drain_member(attempt, instance, spans, reason, now),
        };
        let done = self
            .context
            .state
            .narrow(id, &caller.actor(), decide)
            .map_err(|r| state_refusal(r, move_refusal))?;
        if done.record.is_some() {
            self.context.sessions.call_attempt(&done.value, attempt);
        }
        let drain = done.value.attempt(attempt).and_then(|a| match (concerned, a.state) {
            (Concerned::Member { instance, .. }, _) => a.drain_of(instance),
            (Concerned::Attempt, AttemptState::Draining(drain)) => Some(drain),
            (Concerned::Attempt, _) => None,
        });
        drain.ok_or_else(|| Refusal::new(Reason::AttemptEnded, "the attempt ended meanwhile"))
    }

    /// Ends an attempt or one of its members with the reported outcome. The end is in force when this returns.
    pub fn end_attempt(
        &self,
        caller: &Caller,
        id: JobId,
        attempt: AttemptNumber,
        concerned: &Concerned,
        outcome: Outcome,
        detail: &str,
    ) -> Result<EndAnswer, Refusal> {
        self.authorize_about(caller, Rpc::EndAttempt, id, attempt, concerned, detail)?;
        let now = self.context.clock.now().lease;
        let decide = |j: &Job| match concerned {
            Concerned::Attempt => j.end_attempt(attempt, outcome, detail, now),
            Concerned::Member { instance, .. } => j.end_member(attempt, instance, outcome, detail, now),
        };
        let ended = self.endings.end_work(id, &caller.actor(), outcome.as_str(), decide);
        let ended = ended.map_err(|r| state_refusal(r, move_refusal))?;
        if let Some(stands) = ended.conflict {
            self.endings.record_conflict(id, Some(attempt), stands, outcome, caller.actor(), detail);
        }
        Ok(self.endings.end_answer(ended))
    }

    /// Refuses a caller that may not drain or end this attempt or this member. A workload may do this only to itself,
    /// and its session secret proves which member it is. A workload that launched the job may also do it to the whole
    /// attempt.
    fn authorize_about(
        &self,
        caller: &Caller,
        rpc: Rpc,
        id: JobId,
        attempt: AttemptNumber,
        concerned: &Concerned,
        reason: &str,
    ) -> Result<Arc<Job>, Refusal> {
        let job = self.context.state.job(id).ok_or_else(|| self.access.absent_job(caller, rpc))?;
        let mut relations = caller.relations(&job);
        let is_workload = caller.principal.kind == PrincipalKind::Workload;
        if let Concerned::Member { instance, proof } = concerned {
            let member = job.attempt(attempt).and_then(|a| a.members.get(instance));
            if let Some(member) = member.filter(|m| m.spiffe_id == *caller.id()) {
                if *proof == Some(member.session) {
                    relations.push(Relation::Itself);
                } else if is_workload && !relations.is_empty() {
                    return Err(Refusal::new(
                        Reason::SessionMismatch,
                        format!("the session of {instance} is not proven"),
                    )
                    .fix("send as session_secret the secret with which it joined"));
                }
            }
        }
        let is_itself = relations.contains(&Relation::Itself);
        self.access.authorize_job_as(caller, rpc, &job, relations, reason)?;
        match concerned {
            Concerned::Attempt if is_workload && job.launcher != *caller.id() => Err(Refusal::new(
                Reason::NotAMember,
                "a member may report only about itself: name your instance",
            )),
            Concerned::Member { instance, .. } if is_workload && !is_itself => {
                Err(move_refusal(Illegal::NotAMember(instance.clone())))
            }
            Concerned::Attempt | Concerned::Member { .. } => Ok(job),
        }
    }

    /// Ends a job and all of its access.
    pub fn close_job(
        &self,
        caller: &Caller,
        id: JobId,
        outcome: Outcome,
        reason: &str,
    ) -> Result<EndAnswer, Refusal> {
        let job = self.context.state.job(id).ok_or_else(|| self.access.absent_job(caller, Rpc::CloseJob))?;
        self.access.authorize_job(caller, Rpc::CloseJob, &job, reason)?;
        let closed = self.endings.close(id, &caller.actor(), outcome, reason, outcome.as_str())?;
        if let Some(stands) = closed.conflict {
            self.endings.record_conflict(id, None, stands, outcome, caller.actor(), reason);
        }
        Ok(self.endings.end_answer(closed))
    }
}

/// Refuses a member that vouches for other identities.
fn may_vouch(caller: &Caller, job: &Job, vouched: &[SpiffePattern]) -> Result<(), Refusal> {
    let is_member = caller.principal.kind == PrincipalKind::Workload && job.launcher != *caller.id();
    if vouched.is_empty() || !is_member {
        return Ok(());
    }
    Err(Refusal::new(Reason::NotAMember, "a member may not vouch for other members")
        .fix("leave `members` out: the launcher or a scheduler vouches for members"))
}

/// Returns the answer for a key that already began an attempt, in this run of the daemon or in an earlier run.
fn began_before(job: Arc<Job>, attempt: AttemptNumber, ticket: Option<&Secret>) -> Began {
    let ticket = ticket.filter(|t| job.attempt(attempt).is_some_and(|a| a.ticket == t.digest()));
    let ticket = ticket.map(Secret::to_text);
    Began { job, attempt, ticket }
}

/// Whether the caller gets the ticket: the caller launched the job, or `members.start` names exactly its identity.
fn gets_ticket(caller: &Caller, job: &Job) -> bool {
    job.launcher == *caller.id() || job.spec.members.names_to_start(caller.id())
}
