//! Decides about a job by any rules and for any time, without a grant. It is used to explain decisions, and to show the
//! effect of other rules.

use std::{collections::BTreeSet, time::Duration};

use super::{
    create::joiners,
    decide::{risk_of, work_of, work_of_scopes},
    rules::Rules,
};
use crate::{
    catalog::Principal,
    clock::Wall,
    job::Job,
    name::{Scope, SpiffeId},
    policy::{Asker, Bundle, Phase, RequestFacts, Verdict},
};

/// The question about a job.
pub(super) struct JobQuestion<'a> {
    pub job: &'a Job,
    pub phase: Phase,
    pub attempt: u64,
    /// The member that holds a credential. `None` decides for all that may join.
    pub member: Option<&'a SpiffeId>,
    /// The scopes of a credential. `None` decides all work of the job.
    pub scopes: Option<&'a [Scope]>,
    pub ttl: Duration,
    pub at: Wall,
    /// Ids of gates that count as approved.
    pub approved: &'a BTreeSet<String>,
}

/// The answer of the rules about a job.
#[derive(Clone, Debug)]
pub(super) struct JobAnswer {
    /// The result: `allow`, `wait` or `deny`.
    pub result: &'static str,
    /// The rules that decided, sorted, as text for records.
    pub rules: Vec<String>,
    /// The reason of a denial.
    pub why: String,
    /// Ids of the gates that lack approval.
    pub gates: BTreeSet<String>,
}

/// Decides a job. One denial denies the whole job.
pub(super) fn judge_job(rules: &Rules, q: &JobQuestion<'_>) -> JobAnswer {
    let job = q.job;
    let parts = match q.scopes {
        Some(scopes) => work_of_scopes(rules, job, scopes),
        None => work_of(rules, &job.spec),
    };
    let name = job.id.to_string();
    let judge = |asker: Asker<'_>| {
        let entry = match asker {
            Asker::Identity(id) => rules.catalog().principal(id).map(|p| &**p),
            Asker::Entry(entry) => Some(entry),
        };
        let risk = risk_of(rules, job, entry);
        let bundle = Bundle {
            job: &name,
            tenant: &job.spec.tenant,
            attempt: q.attempt,
            phase: q.phase,
            purpose: &job.spec.purpose,
            facts: RequestFacts::of(&job.spec),
            risk: &risk,
            method: job.spec.tune.as_ref().map(|t| t.method),
            ttl: q.ttl,
            now: q.at,
            approved: q.approved,
            own_checkpoint: true,
            binding: "",
            parts: &parts,
        };
        rules.engine.judge(asker, &bundle)
    };
    let verdicts = match q.member {
        Some(member) => vec![judge(Asker::Identity(member))],
        None => {
            let is_foreign = |asker: Asker<'_>, p: &Principal| {
                p.tenant != job.spec.tenant && matches!(judge(asker), Verdict::Deny { .. })
            };
            match joiners(rules, job, is_foreign) {
                Ok(found) => found
                    .iter()
                    .map(|(id, p)| judge(id.as_ref().map_or(Asker::Entry(p), Asker::Identity)))
                    .collect(),
                Err(refusal) => vec![Verdict::Deny { refusal, rules: Vec::new() }],
            }
        }
    };
    join(verdicts)
}

fn join(verdicts: Vec<Verdict>) -> JobAnswer {
    let (mut result, mut by, mut gates) = ("allow", BTreeSet::new(), BTreeSet::new());
    for verdict in verdicts {
        match verdict {
            Verdict::Deny { refusal, rules } => {
                let why = refusal.fact("rule").map_or_else(|| refusal.text.to_string(), str::to_owned);
                return JobAnswer { result: "deny", rules, why, gates: BTreeSet::new() };
            }
            Verdict::Allow { parts } => by.extend(parts.iter().map(ToString::to_string)),
            Verdict::Wait { gates: held, parts } => {
                result = "wait";
                gates.extend(held.into_iter().map(|gate| gate.id));
                by.extend(parts.iter().map(ToString::to_string));
            }
        }
    }
    JobAnswer { result, rules: by.into_iter().collect(), why: String::new(), gates }
}
