//! Beginning, draining and ending attempts; closing jobs.

use std::{sync::Arc, time::Duration};

use super::{
    caller::Caller,
    context::Broker,
    decide::{decision_record, waiting},
    names,
    refusals::{job_not_found, move_refusal, state_refusal},
    rules::Rules,
};
use crate::{
    job::{AttemptState, Begin, Change, Close, Drain, DrainSpans, End, Illegal, Job},
    ledger::{Actor, Ending, Event},
    limits,
    name::{AttemptNumber, FenceName, InstanceName, JobId, Outcome, PrincipalKind, SpiffePattern},
    policy::{Phase, Relation, Rpc},
    reason::{Reason, Refusal},
    secret::{Secret, SecretDigest, SecretText},
    state::Committed,
};

/// An attempt that runs.
#[derive(Debug)]
pub struct Began {
    pub job: Arc<Job>,
    pub attempt: AttemptNumber,
    /// Given with the call that began it, and again to its key. None if it was made under another ledger's key, or if only a
    /// pattern of `members.start` covers the caller.
    pub ticket: Option<SecretText>,
}

/// Whom a drain or the report of an end concerns.
#[derive(Clone, Debug)]
pub enum Concerned {
    /// All of the attempt.
    Attempt,
    /// One member alone. `proof` is the digest of the session secret that the caller brought.
    Member { instance: InstanceName, proof: Option<SecretDigest> },
}

/// An ending, in force.
#[derive(Debug)]
pub struct EndAnswer {
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
    ///
    /// `vouched` are those who join it without the ticket, by the word of the launcher or of a scheduler.
    pub async fn begin_attempt(
        &self,
        caller: &Caller,
        id: JobId,
        key: &str,
        supersede: bool,
        vouched: &[SpiffePattern],
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
        self.may_begin(&rules, caller, &job, &all)?;
        if !vouched.is_empty()
            && caller.principal.kind == PrincipalKind::Workload
            && job.launcher != *caller.id()
        {
            return Err(Refusal::new(Reason::NotAMember, "a member does not say who else may join")
                .fix("leave `members` out: the launcher or a scheduler vouches for members"));
        }
        let ticket = self.ticket(id, key)?;
        let handed = takes_ticket(caller, &job).then_some(&ticket);
        let now = self.clock.now().lease;
        match job.begin(key, supersede, ticket.digest(), vouched, now) {
            Err(illegal) => return Err(move_refusal(illegal)),
            Ok(Begin::Existing(attempt)) => return Ok(began_before(job, attempt, handed)),
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
        self.charge_bytes(caller, key.len().saturating_add(decision.rules.iter().map(String::len).sum()))?;
        let widened = self
            .state
            .widen(id, caller.actor(), Some(decision), |job| {
                match job.begin(key, supersede, ticket.digest(), vouched, now)? {
                    Begin::New(change) => Ok(Some(change)),
                    Begin::Existing(_) => Ok(None),
                }
            })
            .await
            .map_err(|r| state_refusal(r, move_refusal))?;
        self.sweep(&widened.lowered, "superseded by a newer attempt");
        let Some(attempt) = widened.job.attempts.iter().find(|a| a.key == key).map(|a| a.number) else {
            return Err(Refusal::new(Reason::JobClosed, "the job ended meanwhile"));
        };
        if !widened.changed {
            return Ok(began_before(widened.job, attempt, handed));
        }
        // Look again: what was revoked or changed while the record was written ends what has just begun.
        if let Some((name, _)) = stand.lowered() {
            let detail = format!("{name} was revoked while the attempt was beginning");
            self.end_quietly(id, attempt, Outcome::Revoked, &detail);
            return Err(Refusal::new(Reason::Revoked, detail));
        }
        if self.fences.revision() != revision {
            let (rules, job) = (self.rules(), &widened.job);
            let today = self.admit(&caller.peer, Rpc::BeginAttempt).and_then(|caller| {
                let mut names = names::of_job(&rules, job);
                names.push(FenceName::attempt(id, attempt));
                self.may_begin(&rules, &caller, job, &names)?;
                let gates = self.decide_job(&rules, job, Phase::Running)?.gates;
                if gates.is_empty() { Ok(()) } else { Err(waiting(&gates)) }
            });
            if let Err(refusal) = today {
                let detail = "rules or locks changed while the attempt was beginning";
                self.end_quietly(id, attempt, Outcome::Revoked, detail);
                return Err(refusal);
            }
        }
        metrics::counter!("leasehold_attempts_begun_total").increment(1);
        Ok(Began { job: widened.job, attempt, ticket: handed.map(Secret::to_text) })
    }

    /// What a beginning asks of the rules, beside the decision on what the job does.
    fn may_begin(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        names: &[FenceName],
    ) -> Result<(), Refusal> {
        self.authorize_job(caller, Rpc::BeginAttempt, job, "")?;
        self.unlocked(names.iter())?;
        if job.launcher == *caller.id() {
            self.may_launch(caller)?;
        }
        self.launcher_stands(rules, job)
    }

    fn ticket(&self, job: JobId, key: &str) -> Result<Secret, Refusal> {
        self.tickets.of(job, key).ok_or_else(|| Refusal::new(Reason::Internal, "no ticket could be made"))
    }

    /// Lets an attempt, or one member of it, finish: reading ends soon, writing at the end of the grace.
    pub fn drain_attempt(
        &self,
        caller: &Caller,
        id: JobId,
        attempt: AttemptNumber,
        concerned: &Concerned,
        grace: Option<Duration>,
        reason: &str,
    ) -> Result<Drain, Refusal> {
        let job = self.about(caller, Rpc::DrainAttempt, id, attempt, concerned, reason)?;
        let grace = grace.or(job.spec.drain).unwrap_or(limits::DRAIN_GRACE_DEFAULT);
        let spans = DrainSpans { reading: self.settings.drain_read, grace };
        let now = self.clock.now().lease;
        let decide = |j: &Job| match concerned {
            Concerned::Attempt => Ok(j.drain(attempt, spans, reason, now)?.into_iter().collect()),
            Concerned::Member { instance, .. } => j.drain_member(attempt, instance, spans, reason, now),
        };
        let done =
            self.state.narrow(id, &caller.actor(), decide).map_err(|r| state_refusal(r, move_refusal))?;
        if done.record.is_some() {
            self.call_attempt(&done.value, attempt);
        }
        let drain = done.value.attempt(attempt).and_then(|a| match (concerned, a.state) {
            (Concerned::Member { instance, .. }, _) => a.drain_of(instance),
            (Concerned::Attempt, AttemptState::Draining(drain)) => Some(drain),
            (Concerned::Attempt, _) => None,
        });
        drain.ok_or_else(|| Refusal::new(Reason::AttemptEnded, "the attempt ended meanwhile"))
    }

    /// Takes a report of how an attempt, or one member of it, ended. In force when it returns.
    pub fn end_attempt(
        &self,
        caller: &Caller,
        id: JobId,
        attempt: AttemptNumber,
        concerned: &Concerned,
        outcome: Outcome,
        detail: &str,
    ) -> Result<EndAnswer, Refusal> {
        self.about(caller, Rpc::EndAttempt, id, attempt, concerned, detail)?;
        let now = self.clock.now().lease;
        let decide = |j: &Job| match concerned {
            Concerned::Attempt => j.end_attempt(attempt, outcome, detail, now),
            Concerned::Member { instance, .. } => j.end_member(attempt, instance, outcome, detail, now),
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

    /// Whether the caller may make a call about an attempt, or a member of it.
    ///
    /// A workload speaks for itself alone, as the member that it is, and proves that it is by its session: several processes
    /// may carry its SVID. Only the one that launched the job speaks for the whole attempt.
    fn about(
        &self,
        caller: &Caller,
        rpc: Rpc,
        id: JobId,
        attempt: AttemptNumber,
        concerned: &Concerned,
        reason: &str,
    ) -> Result<Arc<Job>, Refusal> {
        let job = self.state.job(id).ok_or_else(job_not_found)?;
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
                    .fix("send the secret that it joined with as session_secret"));
                }
            }
        }
        let is_itself = relations.contains(&Relation::Itself);
        self.authorize_job_as(caller, rpc, &job, relations, reason)?;
        match concerned {
            Concerned::Attempt if is_workload && job.launcher != *caller.id() => Err(Refusal::new(
                Reason::NotAMember,
                "a member speaks only for itself: say which instance you are",
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

    fn ended(&self, done: Committed<Arc<Job>>, conflict: bool, outcome: Outcome) -> EndAnswer {
        self.sweep(&done.lowered, outcome.as_str());
        let (index, durable) = self.durability(done.record.as_ref().map(|r| r.index));
        EndAnswer { job: done.value, ending: done.ending, index: Some(index), durable, conflict }
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

/// The answer to a key that began an attempt before, in this life of the daemon or in an earlier one.
fn began_before(job: Arc<Job>, attempt: AttemptNumber, ticket: Option<&Secret>) -> Began {
    let ticket = ticket.filter(|t| job.attempt(attempt).is_some_and(|a| a.ticket == t.digest()));
    let ticket = ticket.map(Secret::to_text);
    Began { job, attempt, ticket }
}

/// Whether the ticket is for the caller: it launched the job, or the job names exactly this identity as one that starts it. A node or a pod
/// that only a pattern names begins an attempt without it.
fn takes_ticket(caller: &Caller, job: &Job) -> bool {
    job.launcher == *caller.id() || job.spec.members.names_to_start(caller.id())
}
