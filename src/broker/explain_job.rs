//! Repeats the recorded decisions of a job, by the rules in force now or by the rules in force at the time.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;

use super::{
    caller::Caller,
    decide::{check_inputs, job_risk, risk_of},
    evaluate::PolicyUseCases,
    judge_job::{JobAnswer, JobQuestion, judge_job},
    refusals::{job_not_found, lease_not_found},
    rules::Rules,
};
use crate::{
    clock::{LeaseTime, Wall},
    job::Job,
    ledger::DecisionRecord,
    limits::{EXPLAINED_MAX, EXPLAINED_RECORDS_MAX},
    name::{AttemptNumber, Digest, JobId, LeaseId, Scope, SpiffeId},
    policy::{JobRisk, Phase, Rpc},
    reason::{Reason, Refusal},
};

/// The subject of an explanation.
#[derive(Clone, Copy, Debug)]
pub enum Explained {
    Job(JobId),
    /// One lease of a job.
    Lease(LeaseId),
}

/// The rules that repeat a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecideBy {
    /// The policy and the catalog that are in force.
    Now,
    /// The policy and the catalog that were in force at the recorded decision, with the time of that decision.
    Then,
}

/// Recorded decisions with the same content.
#[derive(Clone, Debug)]
pub struct RecordedDecision {
    /// The type of the record, for example `job.created`.
    pub kind: String,
    /// The index of the last of these records.
    pub index: u64,
    pub at: Wall,
    /// The number of these records.
    pub times: u64,
    pub attempt: Option<AttemptNumber>,
    pub lease: Option<LeaseId>,
    pub member: Option<SpiffeId>,
    pub decision: DecisionRecord,
    ttl: Duration,
    /// The scopes of the credential, if the decision was about a credential.
    scopes: Option<Vec<Scope>>,
}

/// A decision that was repeated.
#[derive(Clone, Debug)]
pub enum DecidedAgain {
    Same(AnswerAgain),
    Differs(AnswerAgain),
    /// The decision cannot be repeated, for this reason.
    Not(String),
}

/// The answer of a second decision.
#[derive(Clone, Debug)]
pub struct AnswerAgain {
    /// The result: `allow`, `wait` or `deny`.
    pub result: &'static str,
    pub rules: Vec<String>,
    /// The reason of a denial.
    pub why: String,
    /// Gates that count as approved.
    pub approved: Vec<String>,
    /// The risk of the job by these rules.
    pub risk: JobRisk,
}

/// The decisions of a job, in the order of the ledger.
#[derive(Clone, Debug)]
pub struct JobExplanation {
    pub job: Arc<Job>,
    pub decisions: Vec<RecordedDecision>,
    /// The first record that was read. Unless the record of the job's creation was read, earlier records may have
    /// decisions too.
    pub from: u64,
    pub is_whole: bool,
}

/// The fields of a record with a decision.
#[derive(Deserialize)]
struct DecisionLine {
    index: u64,
    time: String,
    #[serde(rename = "type")]
    kind: String,
    job: JobId,
    attempt: Option<AttemptNumber>,
    lease: Option<LeaseId>,
    member: Option<SpiffeId>,
    scopes: Option<Vec<Scope>>,
    issued: Option<LeaseTime>,
    expires: Option<LeaseTime>,
    decision: Option<DecisionRecord>,
}

impl PolicyUseCases {
    /// Reads the decisions of a job, or of one of its leases, from the last records of the ledger.
    pub async fn recorded_decisions(
        &self,
        caller: &Caller,
        what: Explained,
    ) -> Result<JobExplanation, Refusal> {
        let ledger = &self.context.ledger;
        let (job, lease) = match what {
            Explained::Job(id) => (self.job_to_explain(caller, id)?, None),
            Explained::Lease(id) => {
                let job = self.context.lease_job(id).ok_or_else(lease_not_found)?;
                // The lease of another tenant gets the answer for an absent lease.
                let job = self.job_to_explain(caller, job).map_err(|refusal| match refusal.reason {
                    Reason::JobNotFound => lease_not_found(),
                    _ => refusal,
                });
                (job?, Some(id))
            }
        };
        let from = ledger.head().index.saturating_sub(EXPLAINED_RECORDS_MAX).saturating_add(1);
        let mut found = DecisionsFound::of(&job, lease, self.decisions.ttl_of(&job));
        let mut tail = ledger.tail(from);
        while let Some(line) = tail.next_present().await {
            let line = line.map_err(|error| {
                tracing::warn!(%error, "the ledger could not be read to explain a job");
                Refusal::new(
                    Reason::LedgerUnavailable,
                    "the ledger could not be read: the daemon's log has the cause",
                )
            })?;
            found.take(&line.line);
        }
        let decisions = found.decisions;
        let is_whole = from == 1 || decisions.iter().any(|d| d.kind == "job.created");
        Ok(JobExplanation { job, decisions, from, is_whole })
    }

    pub(super) fn job_to_explain(&self, caller: &Caller, id: JobId) -> Result<Arc<Job>, Refusal> {
        let job = self.context.state.job(id).ok_or_else(job_not_found)?;
        self.access.authorize_job(caller, Rpc::ExplainJob, &job, "")?;
        Ok(job)
    }

    /// Repeats recorded decisions. Blocks while kept rules are read.
    pub fn decide_again(&self, explanation: &JobExplanation, by: DecideBy) -> Vec<DecidedAgain> {
        let now = self.context.rules();
        let mut kept: HashMap<(Digest, Digest), Result<Arc<Rules>, String>> = HashMap::new();
        let again = |d: &RecordedDecision| {
            let (rules, at) = match by {
                DecideBy::Now => (Ok(now.clone()), self.context.clock.now().wall),
                DecideBy::Then => {
                    let key = (d.decision.policy, d.decision.catalog);
                    (kept.entry(key).or_insert_with(|| self.kept_rules(key.0, key.1)).clone(), d.at)
                }
            };
            match rules {
                Ok(rules) => {
                    let approved = self.approved_then_or_now(&rules, &explanation.job, d, by);
                    judged_again(&rules, &explanation.job, d, at, by, approved)
                }
                Err(why) => DecidedAgain::Not(why),
            }
        };
        explanation.decisions.iter().map(again).collect()
    }

    /// Returns the gates that count as approved: those in the record, or those that the job's approvals open now. A job
    /// has no approvals when it is created.
    fn approved_then_or_now(
        &self,
        rules: &Rules,
        job: &Job,
        d: &RecordedDecision,
        by: DecideBy,
    ) -> BTreeSet<String> {
        match by {
            DecideBy::Then => d.decision.approved.iter().cloned().collect(),
            DecideBy::Now if d.kind == "job.created" => BTreeSet::new(),
            DecideBy::Now => self.decisions.approved_gates(rules, job, d.member.as_ref()),
        }
    }

    /// Returns the rules with these digests.
    fn kept_rules(&self, policy: Digest, catalog: Digest) -> Result<Arc<Rules>, String> {
        let now = self.context.rules();
        if (now.engine.digest(), now.catalog().digest()) == (policy, catalog) {
            return Ok(now);
        }
        let kept = self.context.kept.get().ok_or("this daemon keeps no rules")?;
        let engine = kept.engine(policy, catalog, now.engine.explain()).map_err(|e| e.to_string())?;
        Ok(Arc::new(Rules { engine, signed: None }))
    }
}

/// Decisions of one job, gathered from lines of the ledger.
struct DecisionsFound<'a> {
    job: &'a Job,
    lease: Option<LeaseId>,
    ttl: Duration,
    /// The text by which lines about the job are found.
    needle: String,
    decisions: Vec<RecordedDecision>,
    /// The holder and the scopes of each lease, because the record of a renewal does not repeat them.
    leases: HashMap<LeaseId, (SpiffeId, Vec<Scope>)>,
}

impl<'a> DecisionsFound<'a> {
    fn of(job: &'a Job, lease: Option<LeaseId>, ttl: Duration) -> Self {
        let needle = job.id.to_string();
        DecisionsFound { job, lease, ttl, needle, decisions: Vec::new(), leases: HashMap::new() }
    }

    fn take(&mut self, line: &str) {
        if !line.contains(&self.needle) || !line.contains("\"decision\"") {
            return;
        }
        // A record without these fields is not about a decision of this job.
        let Ok(line) = serde_json::from_str::<DecisionLine>(line) else { return };
        let Some(decision) = line.decision.filter(|_| line.job == self.job.id) else { return };
        let Some(at) = Wall::parse(&line.time) else { return };
        let is_wanted = self.lease.is_none_or(|wanted| line.lease == Some(wanted));
        let (mut member, mut scopes) = (line.member, line.scopes);
        match (line.lease, &member, &scopes) {
            (Some(lease), Some(member), Some(scopes)) if self.leases.len() < EXPLAINED_MAX => {
                self.leases.insert(lease, (member.clone(), scopes.clone()));
            }
            (Some(lease), None, _) => {
                if let Some((of_member, of_scopes)) = self.leases.get(&lease) {
                    (member, scopes) = (Some(of_member.clone()), Some(of_scopes.clone()));
                }
            }
            _ => {}
        }
        if !is_wanted {
            return;
        }
        let ttl = match (line.issued, line.expires) {
            (Some(issued), Some(expires)) => expires.since(issued),
            _ => self.ttl,
        };
        let found = RecordedDecision {
            kind: line.kind,
            index: line.index,
            at,
            times: 1,
            attempt: line.attempt,
            lease: line.lease,
            member,
            decision,
            ttl,
            scopes,
        };
        let alike = |d: &RecordedDecision| {
            (&d.kind, d.attempt, &d.member, &d.scopes, &d.decision)
                == (&found.kind, found.attempt, &found.member, &found.scopes, &found.decision)
        };
        match self.decisions.iter().position(alike) {
            Some(at) => {
                if let Some(before) = self.decisions.get_mut(at) {
                    *before = RecordedDecision { times: before.times.saturating_add(1), ..found };
                }
            }
            None if self.decisions.len() < EXPLAINED_MAX => self.decisions.push(found),
            None => {}
        }
    }
}

fn judged_again(
    rules: &Rules,
    job: &Job,
    d: &RecordedDecision,
    at: Wall,
    by: DecideBy,
    mut approved: BTreeSet<String>,
) -> DecidedAgain {
    if d.lease.is_some() && d.scopes.is_none() {
        return DecidedAgain::Not(
            "the record that issued this lease is not among the records that were read".to_owned(),
        );
    }
    let judge = |approved: &BTreeSet<String>| {
        judge_job(
            rules,
            &JobQuestion {
                job,
                phase: if d.kind == "job.created" { Phase::Creating } else { Phase::Running },
                // When policy decided about the begin of an attempt, the last attempt of the job was the previous one.
                attempt: d
                    .attempt
                    .map_or(0, AttemptNumber::value)
                    .saturating_sub(u64::from(d.kind == "attempt.began")),
                member: d.member.as_ref(),
                scopes: d.scopes.as_deref(),
                ttl: d.ttl,
                at,
                approved,
            },
        )
    };
    let mut answer = judge(&approved);
    // The record of an older daemon does not name the approved gates. If the decision was "allow", all gates were
    // approved.
    let is_old = d.decision.approved.is_empty() && by == DecideBy::Then;
    if is_old && answer.result == "wait" && d.decision.result == "allow" {
        approved = std::mem::take(&mut answer.gates);
        answer = judge(&approved);
    }
    let scopes = match &d.scopes {
        Some(scopes) => scopes.clone(),
        None => job.spec.scopes().collect(),
    };
    if by == DecideBy::Now
        && let Err(changed) = check_inputs(rules, job, &scopes)
    {
        let why = changed.text.into_owned();
        answer = JobAnswer { result: "deny", rules: Vec::new(), why, gates: BTreeSet::new() };
    }
    // The record of a credential has its rules in the order of the scopes, so sort them before the comparison.
    let mut recorded = d.decision.rules.clone();
    recorded.sort();
    let is_same = answer.result == d.decision.result && answer.rules == recorded;
    let answer = AnswerAgain {
        result: answer.result,
        rules: answer.rules,
        why: answer.why,
        risk: match &d.member {
            Some(member) => risk_of(rules, job, rules.catalog().principal(member).map(|p| &**p)),
            None => job_risk(rules, job),
        },
        approved: approved.into_iter().collect(),
    };
    if is_same { DecidedAgain::Same(answer) } else { DecidedAgain::Differs(answer) }
}
