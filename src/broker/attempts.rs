//! Beginning, draining and ending attempts; closing jobs.

use std::{sync::Arc, time::Duration};

use super::{
    Broker, Caller,
    caller::job_not_found,
    create::state_refusal,
    decide::{decision_record, waiting},
    names,
};
use crate::{
    clock::LeaseTime,
    job::{AttemptState, Begin, Change, Close, End, Illegal, Job},
    ledger::{Actor, Ending, Event},
    limits,
    name::{AttemptNumber, FenceName, InstanceName, JobId, Outcome, PrincipalKind},
    policy::{Phase, Relation, Rpc},
    reason::{Reason, Refusal},
    secret::{Secret, SecretText},
    state::Committed,
};

/// An attempt that runs.
#[derive(Debug)]
pub struct Began {
    pub job: Arc<Job>,
    pub attempt: AttemptNumber,
    /// Given with the call that began it, and again to its key as long as this life of the daemon lasts.
    pub ticket: Option<SecretText>,
}

/// When a draining attempt's halves end.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    pub reading_ends: LeaseTime,
    pub writing_ends: LeaseTime,
}

/// An ending, in force.
#[derive(Debug)]
pub struct Ended {
    pub job: Arc<Job>,
    pub ending: Ending,
    /// The index of its record, where there is one.
    pub index: Option<u64>,
    pub durable: bool,
    /// The report disagreed with an earlier one, which stands.
    pub conflict: bool,
}

impl Broker {
    /// Begins the next attempt: validated, decided within what was approved, recorded; only then is the one before ended.
    pub async fn begin_attempt(
        &self,
        caller: &Caller,
        id: JobId,
        key: &str,
        supersede: bool,
    ) -> Result<Began, Refusal> {
        self.widening()?;
        let named = self.state.job(id).ok_or_else(job_not_found)?;
        let revision = self.fences.revision();
        let rules = self.rules();
        // Who asks is looked up after the revision was read, as everything that is decided by.
        let caller = &self.caller(&caller.peer)?;
        let mut all = names::of_job(&rules, &named);
        all.push(FenceName::identity(caller.id().clone()));
        all.push(FenceName::domain(caller.id().trust_domain()));
        let stand = self.fences.stand(all.iter().cloned());

        let job = self.state.job(id).ok_or_else(job_not_found)?;
        self.authorize_job(caller, Rpc::BeginAttempt, &job, "")?;
        self.unlocked(all.iter())?;
        let ticket = Secret::random().map_err(|_| Refusal::new(Reason::Internal, "no random bytes"))?;
        let now = self.clock.now().lease;
        match job.begin(key, supersede, ticket.digest(), now) {
            Err(illegal) => return Err(move_refusal(illegal)),
            Ok(Begin::Existing(attempt)) => return Ok(self.began_before(job, attempt)),
            Ok(Begin::New(Change::AttemptBegan { attempt, .. })) => {
                self.unlocked([FenceName::attempt(id, attempt)].iter())?;
            }
            Ok(Begin::New(_)) => {}
        }
        let verdict = self.decide_job(&rules, &job, Phase::Running)?;
        if !verdict.gates.is_empty() {
            return Err(waiting(&verdict.gates));
        }
        let decision = decision_record(&rules, "allow", verdict.rules);
        let widened = self
            .state
            .widen(id, caller.actor(), Some(decision), |job| {
                match job.begin(key, supersede, ticket.digest(), now)? {
                    Begin::New(change) => Ok(Some(change)),
                    Begin::Existing(_) => Ok(None),
                }
            })
            .await
            .map_err(|r| state_refusal(r, move_refusal))?;
        self.sweep(&widened.lowered, "superseded by a newer attempt");
        let begun = widened.job.attempts.iter().find(|a| a.key == key).map(|a| (a.number, a.ticket));
        let Some((attempt, digest)) = begun else {
            return Err(Refusal::new(Reason::JobClosed, "the job ended meanwhile"));
        };
        if digest != ticket.digest() {
            return Ok(self.began_before(widened.job, attempt));
        }
        // Look again: what was revoked or changed while the record was written ends what has just begun.
        if let Some((name, _)) = stand.lowered() {
            let detail = format!("{name} was revoked while the attempt was beginning");
            self.end_quietly(id, attempt, Outcome::Revoked, &detail);
            return Err(Refusal::new(Reason::Revoked, detail));
        }
        if self.fences.revision() != revision {
            let rules = self.rules();
            let today = self.caller(&caller.peer).and_then(|caller| {
                self.authorize_job(&caller, Rpc::BeginAttempt, &widened.job, "")?;
                self.unlocked(all.iter())?;
                self.decide_job(&rules, &widened.job, Phase::Running)
            });
            if let Err(refusal) = today {
                let detail = "rules or locks changed while the attempt was beginning";
                self.end_quietly(id, attempt, Outcome::Revoked, detail);
                return Err(refusal);
            }
        }
        let ticket = ticket.to_text();
        self.tickets.insert((id, attempt), ticket.clone());
        metrics::counter!("leasehold_attempts_begun_total").increment(1);
        Ok(Began { job: widened.job, attempt, ticket: Some(ticket) })
    }

    fn began_before(&self, job: Arc<Job>, attempt: AttemptNumber) -> Began {
        let ticket = self.tickets.get(&(job.id, attempt)).map(|t| t.clone());
        Began { job, attempt, ticket }
    }

    /// Lets an attempt finish: reading ends soon, writing at the end of the grace.
    pub fn drain_attempt(
        &self,
        caller: &Caller,
        id: JobId,
        attempt: AttemptNumber,
        grace: Option<Duration>,
        reason: &str,
    ) -> Result<Drained, Refusal> {
        let job = self.state.job(id).ok_or_else(job_not_found)?;
        let mut relations = caller.relations(&job);
        relations.extend(is_all_of(caller, &job, attempt).then_some(Relation::Itself));
        self.authorize_job_as(caller, Rpc::DrainAttempt, &job, relations, reason)?;
        let grace = grace.or(job.spec.drain).unwrap_or(limits::DRAIN_GRACE_DEFAULT);
        let now = self.clock.now().lease;
        let done = self
            .state
            .narrow(id, &caller.actor(), |j| Ok(j.drain(attempt, grace, reason, now)?.into_iter().collect()))
            .map_err(|r| state_refusal(r, move_refusal))?;
        match done.value.attempt(attempt).map(|a| a.state) {
            Some(AttemptState::Draining { reading_ends, writing_ends }) => {
                Ok(Drained { reading_ends, writing_ends })
            }
            _ => Err(Refusal::new(Reason::AttemptEnded, "the attempt ended meanwhile")),
        }
    }

    /// Takes a report of how an attempt, or one member of it, ended. In force when it returns.
    pub fn end_attempt(
        &self,
        caller: &Caller,
        id: JobId,
        attempt: AttemptNumber,
        outcome: Outcome,
        instance: Option<&InstanceName>,
        detail: &str,
    ) -> Result<Ended, Refusal> {
        let job = self.state.job(id).ok_or_else(job_not_found)?;
        let is_member = instance.is_some_and(|i| {
            let member = job.attempt(attempt).and_then(|a| a.members.get(i));
            member.is_some_and(|m| m.spiffe_id == *caller.id())
        });
        let mut relations = caller.relations(&job);
        relations.extend(is_member.then_some(Relation::Itself));
        self.authorize_job_as(caller, Rpc::EndAttempt, &job, relations, detail)?;
        // A workload speaks for itself alone, and only as the member that it is.
        if caller.principal.kind == PrincipalKind::Workload
            && instance.is_none()
            && job.launcher != *caller.id()
        {
            return Err(Refusal::new(
                Reason::NotAMember,
                "a member ends only itself: say which instance you are",
            ));
        }
        if let Some(instance) = instance
            && !is_member
            && caller.principal.kind == PrincipalKind::Workload
        {
            return Err(move_refusal(Illegal::NotAMember(instance.clone())));
        }
        let now = self.clock.now().lease;
        let decide = |j: &Job| match instance {
            Some(i) => j.end_member(attempt, i, outcome, detail, now),
            None => j.end_attempt(attempt, outcome, detail, now),
        };
        let mut stands = None;
        let done = self
            .state
            .narrow(id, &caller.actor(), |j| {
                Ok(match decide(j)? {
                    End::Now(changes) => changes,
                    End::Already => Vec::new(),
                    End::Conflict(o) => {
                        stands = Some(o);
                        Vec::new()
                    }
                })
            })
            .map_err(|r| state_refusal(r, move_refusal))?;
        if let Some(stands) = stands {
            self.record_conflict(id, Some(attempt), stands, outcome, caller.actor(), detail);
        }
        Ok(self.ended(done, stands.is_some(), outcome))
    }

    /// Ends a job and all of its access.
    pub fn close_job(
        &self,
        caller: &Caller,
        id: JobId,
        outcome: Outcome,
        reason: &str,
    ) -> Result<Ended, Refusal> {
        let job = self.state.job(id).ok_or_else(job_not_found)?;
        self.authorize_job(caller, Rpc::CloseJob, &job, reason)?;
        let now = self.clock.now().lease;
        let mut stands = None;
        let done = self
            .state
            .narrow(id, &caller.actor(), |j| {
                Ok::<_, std::convert::Infallible>(match j.close(outcome, reason, now) {
                    Close::Now(change) => vec![change],
                    Close::Already => Vec::new(),
                    Close::Conflict(o) => {
                        stands = Some(o);
                        Vec::new()
                    }
                })
            })
            .map_err(|r| state_refusal(r, |never| match never {}))?;
        if let Some(stands) = stands {
            self.record_conflict(id, None, stands, outcome, caller.actor(), reason);
        }
        Ok(self.ended(done, stands.is_some(), outcome))
    }

    fn ended(&self, done: Committed<Arc<Job>>, conflict: bool, outcome: Outcome) -> Ended {
        self.sweep(&done.lowered, outcome.as_str());
        self.tickets.retain(|(job, attempt), _| {
            *job != done.value.id || done.value.attempt(*attempt).is_some_and(|a| !a.is_ended())
        });
        let (index, durable) = self.durability(done.record.as_ref().map(|r| r.index));
        Ended { job: done.value, ending: done.ending, index: Some(index), durable, conflict }
    }

    pub(super) fn end_quietly(&self, id: JobId, attempt: AttemptNumber, outcome: Outcome, detail: &str) {
        let now = self.clock.now().lease;
        let by = Actor::Daemon(detail.to_owned());
        let done = self.state.narrow(id, &by, |j| {
            Ok::<_, Illegal>(match j.end_attempt(attempt, outcome, detail, now)? {
                End::Now(changes) => changes,
                End::Already | End::Conflict(_) => Vec::new(),
            })
        });
        if let Ok(done) = done {
            self.sweep(&done.lowered, outcome.as_str());
        }
    }

    fn record_conflict(
        &self,
        job: JobId,
        attempt: Option<AttemptNumber>,
        stands: Outcome,
        reported: Outcome,
        by: Actor,
        detail: &str,
    ) {
        // One for each reporter and outcome in a minute: who repeats it fills no ledger.
        if self.is_first_conflict(job, reported, &by) {
            let detail = detail.to_owned();
            self.ledger.defer(&Event::JobConflict { job, attempt, stands, reported, by, detail });
        }
    }
}

/// Whether an attempt is one of a single member, and the caller is it: what drains the attempt drains nobody else.
fn is_all_of(caller: &Caller, job: &Job, attempt: AttemptNumber) -> bool {
    let Some(a) = job.attempt(attempt) else { return false };
    let mut members = a.members.values();
    job.spec.members.max == 1
        && members.next().is_some_and(|m| m.spiffe_id == *caller.id())
        && members.next().is_none()
}

/// Why a move is not legal, in the words of a refusal.
pub(super) fn move_refusal(illegal: Illegal) -> Refusal {
    let refusal = Refusal::new(illegal.reason(), illegal.to_string());
    match illegal {
        Illegal::Stale(..) => {
            refusal.fix("this run was replaced by a newer one: stop, it has no access any more")
        }
        Illegal::KeyUsed(_) => {
            refusal.fix("a new run needs a new key: use the scheduler's restart count in it")
        }
        Illegal::AttemptsExhausted(_) => {
            refusal.fix("create another job, or allow more with members.attempts")
        }
        Illegal::AwaitingApproval => refusal.fix("see whom it waits for: leasehold job show"),
        _ => refusal,
    }
}
