//! Runs the test cases of a policy over a catalog.

use std::{collections::BTreeSet, fmt};

use super::{
    AskedAct, Asker, Bundle, Call, CallVerdict, Engine, JobRisk, PolicyCase, Verdict, cases::CaseAnswer,
};
use crate::{
    name::TenantName,
    reason::{Reason, Refusal},
    written::nearest,
};

/// The answer of the engine to a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseOutcome {
    pub answer: CaseAnswer,
    /// The ids of the rules that decided. If people must approve first, these are gates.
    pub rules: BTreeSet<String>,
    /// The text of the refusal, if the answer is a refusal.
    pub why: String,
}

/// A case with another answer than the expected one.
#[derive(Clone, Debug)]
pub struct FailedCase<'a> {
    pub case: &'a PolicyCase,
    pub got: CaseOutcome,
    /// A possible mistake in the case itself.
    pub hint: Option<String>,
}

/// `tests.toml:4: trainers read: expected deny by guard-ttl, got allow by trainer-reads-own-or-shared-data`.
impl fmt::Display for FailedCase<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |rules: &BTreeSet<String>| match rules.is_empty() {
            true => "no rule".to_owned(),
            false => rules.iter().cloned().collect::<Vec<_>>().join(", "),
        };
        let FailedCase { case, got, hint } = self;
        write!(f, "{}: ", case.place)?;
        if !case.name.is_empty() {
            write!(f, "{}: ", case.name)?;
        }
        write!(
            f,
            "expected {} by {}, got {} by {}",
            case.expected,
            by(&case.rules),
            got.answer,
            by(&got.rules)
        )?;
        hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

/// The results of a run of all cases.
#[derive(Clone, Debug)]
pub struct CaseReport<'a> {
    pub failed: Vec<FailedCase<'a>>,
    /// Rules without a test case, in the order of their files: a permit that allows no case, a guard that denies no
    /// case, a gate that stops no case.
    pub untried: Vec<String>,
}

impl CaseReport<'_> {
    /// Names all rules without a test case. `None` if there is none.
    pub fn untried_text(&self) -> Option<String> {
        match self.untried.as_slice() {
            [] => None,
            [rule] => Some(format!("no test case tests the rule `{rule}`: write a case")),
            rules => Some(format!(
                "no test case tests these {} rules: `{}`: write cases",
                rules.len(),
                rules.join("`, `")
            )),
        }
    }
}

impl Engine {
    /// Answers every case, and compares each answer with the expected one.
    pub fn run_cases<'a>(&self, cases: &'a [PolicyCase]) -> CaseReport<'a> {
        let failed = cases.iter().filter_map(|case| {
            let got = self.run_case(case);
            let holds = got.answer == case.expected && got.rules == case.rules;
            (!holds).then(|| FailedCase { case, hint: self.hint(case), got })
        });
        let decided: BTreeSet<(&str, bool)> = cases
            .iter()
            .flat_map(|case| case.rules.iter().map(|r| (r.as_str(), case.expected == CaseAnswer::Allow)))
            .collect();
        let untried = self.rules().filter(|rule| !decided.contains(&(rule.id.as_str(), rule.permits)));
        CaseReport { failed: failed.collect(), untried: untried.map(|rule| rule.id.clone()).collect() }
    }

    /// Answers one case.
    pub fn run_case(&self, case: &PolicyCase) -> CaseOutcome {
        match &case.act {
            AskedAct::Call(rpc, tenant) => {
                let call = Call {
                    caller: &case.caller,
                    rpc: *rpc,
                    tenant: tenant.as_ref(),
                    relations: &case.relations,
                    now: case.now,
                    reason: &case.reason,
                    amr: &case.amr,
                };
                let approved: Vec<String> = case.approved.iter().cloned().collect();
                match self.judge_change(&call, &approved) {
                    CallVerdict::Allow(rules) => allowed(CaseAnswer::Allow, rules),
                    CallVerdict::Wait { gates, .. } => {
                        allowed(CaseAnswer::Wait, gates.into_iter().map(|gate| gate.id))
                    }
                    CallVerdict::Deny { refusal, rules } => refused(&refusal, rules),
                }
            }
            AskedAct::Access(action, resource) => {
                let parts = [(*action, resource.clone())];
                let Some(tenant) = self.tenant_of(case) else {
                    return CaseOutcome {
                        answer: CaseAnswer::Unknown,
                        rules: BTreeSet::new(),
                        why: format!("no catalog entry matches {}", case.caller),
                    };
                };
                let holder = self.catalog().principal(&case.caller).map(|p| &**p);
                let risk = JobRisk::of(
                    self.catalog(),
                    tenant,
                    case.also.iter().chain([resource.resource()]),
                    holder,
                );
                let bundle = Bundle {
                    job: "j-00000000000000000000000000",
                    tenant,
                    attempt: 1,
                    phase: case.phase,
                    purpose: &case.purpose,
                    facts: case.facts(),
                    risk: &risk,
                    method: case.method,
                    ttl: case.ttl,
                    now: case.now,
                    approved: &case.approved,
                    own_checkpoint: case.own_checkpoint,
                    binding: &case.binding,
                    parts: &parts,
                };
                match self.judge(Asker::Identity(&case.caller), &bundle) {
                    Verdict::Allow { parts } => {
                        allowed(CaseAnswer::Allow, parts.into_iter().flat_map(|p| p.rules))
                    }
                    Verdict::Wait { gates, .. } => {
                        allowed(CaseAnswer::Wait, gates.into_iter().map(|gate| gate.id))
                    }
                    Verdict::Deny { refusal, rules } => refused(&refusal, rules),
                }
            }
        }
    }

    /// Returns the tenant of a case's job: the tenant that the case names, or else the tenant of the case's caller.
    fn tenant_of<'a>(&'a self, case: &'a PolicyCase) -> Option<&'a TenantName> {
        case.tenant.as_ref().or_else(|| self.catalog().principal(&case.caller).map(|p| &p.tenant))
    }

    /// Returns a hint if the case names a rule that the policies do not have. Without the hint, a mistyped id would
    /// look like a wrong decision.
    fn hint(&self, case: &PolicyCase) -> Option<String> {
        let missing = case.rules.iter().find(|id| self.rules().all(|rule| rule.id != **id))?;
        Some(match nearest(missing, self.rules().map(|rule| rule.id.as_str())) {
            Some(near) => format!("no rule has the id `{missing}`: write `{near}`?"),
            None => format!("no rule has the id `{missing}`"),
        })
    }
}

fn allowed(answer: CaseAnswer, rules: impl IntoIterator<Item = String>) -> CaseOutcome {
    CaseOutcome { answer, rules: rules.into_iter().collect(), why: String::new() }
}

fn refused(refusal: &Refusal, rules: Vec<String>) -> CaseOutcome {
    let answer = match refusal.reason {
        Reason::PolicyDenied => CaseAnswer::Deny,
        Reason::ResourceNotFound => CaseAnswer::Absent,
        Reason::KindNotAllowed => CaseAnswer::Kind,
        Reason::PrincipalUnknown => CaseAnswer::Unknown,
        _ => CaseAnswer::Error,
    };
    CaseOutcome { answer, rules: rules.into_iter().collect(), why: refusal.text.to_string() }
}
