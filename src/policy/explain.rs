//! The texts of a refusal: what was refused, by which rule, and what would change the answer.

use std::sync::Arc;

use super::{Bundle, Call, Rpc, Rule, outcome::Outcome};
use crate::{
    catalog::{Principal, Resource},
    name::{Action, PrincipalKind, ResourceName},
    reason::{Reason, Refusal},
};

/// The callers to whom a refusal names the rule that refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Explain {
    /// The caller that is refused.
    #[default]
    Requester,
    /// Only operators, in the ledger and the log.
    Operators,
}

/// The requester, and its job.
pub(super) struct Who<'a> {
    pub(super) name: &'a str,
    pub(super) principal: &'a Principal,
    pub(super) bundle: &'a Bundle<'a>,
}

/// The cause of a denial.
#[derive(Debug)]
pub(super) enum DenialCause {
    Forbidden(Vec<Arc<Rule>>),
    /// The rule would permit the act for another purpose. If `role` is set, the requester also lacks this role.
    Purpose {
        rule: Arc<Rule>,
        role: Option<String>,
    },
    /// The rule would permit the act for this role.
    Role {
        rule: Arc<Rule>,
        role: String,
    },
    /// The rule would permit the act for the job's own checkpoints.
    OtherJobsCheckpoint {
        rule: Arc<Rule>,
    },
    /// No rule permits the act, and no change of the purpose, the role or the checkpoint would help.
    Nothing {
        permits: Vec<Arc<Rule>>,
    },
    /// Rules that could not be evaluated. Not shown to the caller.
    Error(Vec<String>),
}

impl DenialCause {
    pub(super) fn of(outcome: &Outcome, permits: impl FnOnce() -> Vec<Arc<Rule>>) -> Self {
        match outcome {
            Outcome::Forbid(rules) | Outcome::Wait(rules, _) => DenialCause::Forbidden(rules.clone()),
            Outcome::Allow(_) | Outcome::Nothing => DenialCause::Nothing { permits: permits() },
            Outcome::Error(failed) => DenialCause::Error(failed.clone()),
        }
    }

    /// Returns the ids of the rules that denied or would have permitted. For errors, returns the texts of Cedar, which
    /// name the policy.
    pub(super) fn rules(&self) -> Vec<String> {
        match self {
            DenialCause::Forbidden(rules) => rules.iter().map(|r| r.id.clone()).collect(),
            DenialCause::Purpose { rule, .. }
            | DenialCause::Role { rule, .. }
            | DenialCause::OtherJobsCheckpoint { rule } => {
                vec![rule.id.clone()]
            }
            DenialCause::Nothing { .. } => Vec::new(),
            DenialCause::Error(failed) => failed.clone(),
        }
    }

    /// Whether a tenant in `[[observe]]` may act despite this denial, which is then only recorded. The tenant may not act if
    /// the rule has the annotation `@enforced("always")`, or if a rule could not be evaluated.
    pub(super) fn can_be_observed(&self) -> bool {
        match self {
            DenialCause::Forbidden(rules) => rules.iter().all(|rule| !rule.always),
            DenialCause::Error(_) => false,
            _ => true,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            DenialCause::Error(_) => Reason::PolicyError,
            _ => Reason::PolicyDenied,
        }
    }
}

/// The most rules, or further refusals, that are shown.
const SHOWN_MAX: usize = 4;

pub(super) fn unknown(name: &str) -> Refusal {
    Refusal::new(Reason::PrincipalUnknown, "no catalog entry matches this identity").with("you", name).fix(
        "add a [[principal]] that matches it to its tenant's catalog file, or ask the owner of that file",
    )
}

pub(super) fn wrong_kind(call: &Call<'_>, principal: &Principal, kinds: &[PrincipalKind]) -> Refusal {
    let kinds: Vec<&str> = kinds.iter().map(|k| k.as_str()).collect();
    Refusal::new(
        Reason::KindNotAllowed,
        format!("{} may not call {}", principal.kind.with_article(), call.rpc),
    )
    .with("you", call_you(call, principal))
    .fix(format!("call it as one of: {}", kinds.join(", ")))
}

/// Returns the refusal for a principal that is not a workload and would take part in a job as a member. A workload that launched
/// the job itself may be its member.
pub(super) fn holds_nothing(who: &Who<'_>) -> Refusal {
    let text = format!("{} may not take part in a job", who.principal.kind.with_article());
    Refusal::new(Reason::KindNotAllowed, text)
        .with("you", you(who))
        .fix("name the workloads that do the work in members.join")
}

pub(super) fn wrong_resource(action: Action, name: &ResourceName) -> Refusal {
    let text = format!("{action} does not apply to {name}");
    Refusal::new(Reason::FieldInvalid, text).fix(format!("name a {} for it", action.applies_to().as_str()))
}

/// Returns the refusal for a resource that does not exist or that belongs to another tenant. The caller cannot
/// distinguish the two.
pub(super) fn not_found(who: &Who<'_>, name: &ResourceName) -> Refusal {
    let text = format!("there is no {name} that this job may know of");
    Refusal::new(Reason::ResourceNotFound, text)
        .with("you", you(who))
        .fix("check its name and version; if it is another tenant's, ask its owner to share it")
}

pub(super) fn part_denied(
    who: &Who<'_>,
    action: Action,
    resource: &Resource,
    cause: &DenialCause,
    others: &[(Action, &Resource, DenialCause)],
    explain: Explain,
) -> Refusal {
    let mut refusal = Refusal::new(cause.reason(), may_not(action, resource)).with("you", you(who));
    if explain == Explain::Requester
        && let Some(rule) = part_rule(who, resource, cause)
    {
        refusal = refusal.with("rule", rule);
    }
    refusal = refusal.fix(part_fix(who, resource, cause, explain));
    for (action, resource, cause) in others.iter().take(SHOWN_MAX) {
        let rule = part_rule(who, resource, cause).filter(|_| explain == Explain::Requester);
        let rule = rule.map(|r| format!(" ({r})")).unwrap_or_default();
        refusal = refusal.with("also", format!("{}{rule}", may_not(*action, resource)));
    }
    match others.len().checked_sub(SHOWN_MAX) {
        Some(more) if more > 0 => refusal.with("also", format!("{more} more")),
        _ => refusal,
    }
}

pub(super) fn call_denied(
    call: &Call<'_>,
    principal: &Principal,
    cause: &DenialCause,
    explain: Explain,
) -> Refusal {
    let place = call.tenant.map_or_else(|| "across tenants".to_owned(), |t| format!("in tenant {t}"));
    let text = format!("this {} may not call {} {place}", principal.kind, call.rpc);
    let mut refusal = Refusal::new(cause.reason(), text).with("you", call_you(call, principal));
    if explain == Explain::Requester
        && let Some(rule) = rule_lines(cause)
    {
        refusal = refusal.with("rule", rule);
    }
    let ask = match (principal.kind, call.tenant) {
        (PrincipalKind::Operator, None) => "ask an operator of the platform".to_owned(),
        (PrincipalKind::Workload, _) if call.rpc == Rpc::CreateJob => {
            "have a launcher create the job (`leasehold job create`), then run with --job ID --spec FILE".to_owned()
        }
        (PrincipalKind::Workload, _) if call.rpc == Rpc::BeginAttempt => {
            "leave --attempt-key out to join the attempt that a launcher began, or have members.start name you".to_owned()
        }
        (PrincipalKind::Operator, Some(tenant)) => {
            format!("ask someone who may make this call: `leasehold who-can {} {tenant}` shows the entries", call.rpc)
        }
        _ => format!("ask an operator of tenant {}", principal.tenant),
    };
    let said = match cause {
        DenialCause::Forbidden(rules) => rules.first().and_then(|r| r.fix.clone()),
        _ => None,
    };
    let fix = match cause {
        DenialCause::Error(_) => {
            "tell an operator: a policy could not be evaluated, and the log names it".to_owned()
        }
        _ => said.filter(|_| explain == Explain::Requester).unwrap_or(ask),
    };
    refusal.fix(fix)
}

fn may_not(action: Action, resource: &Resource) -> String {
    let verb = match action {
        Action::ReadDataset | Action::ReadModel => "read",
        Action::Finetune => "tune",
        Action::WriteCheckpoint => "write",
        Action::ReadCheckpoint => "read checkpoints of",
        Action::DeleteCheckpoint => "delete from",
    };
    format!("this job may not {verb} {}", resource.name)
}

fn you(who: &Who<'_>) -> String {
    format!("{}; purpose asked: {:?}", who.name, who.bundle.purpose)
}

fn call_you(call: &Call<'_>, p: &Principal) -> String {
    let mut out = format!("{}: {} of tenant {}", call.caller, p.kind, p.tenant);
    for (what, words) in [("roles", &p.roles), ("groups", &p.groups)] {
        if !words.is_empty() {
            out = format!("{out}; {what}: {}", words.iter().cloned().collect::<Vec<_>>().join(", "));
        }
    }
    out
}

fn rule_lines(cause: &DenialCause) -> Option<String> {
    let lines =
        |rules: &[Arc<Rule>]| rules.iter().take(SHOWN_MAX).map(|r| r.said()).collect::<Vec<_>>().join("; ");
    match cause {
        DenialCause::Forbidden(rules) => Some(lines(rules)),
        DenialCause::Purpose { rule, .. }
        | DenialCause::Role { rule, .. }
        | DenialCause::OtherJobsCheckpoint { rule } => Some(rule.said()),
        DenialCause::Nothing { permits } if permits.is_empty() => {
            Some("no rule permits it to this kind of principal".to_owned())
        }
        DenialCause::Nothing { permits } => Some(format!("none of these permits it: {}", lines(permits))),
        DenialCause::Error(_) => None,
    }
}

fn part_rule(who: &Who<'_>, resource: &Resource, cause: &DenialCause) -> Option<String> {
    let roles = || match who.principal.roles.len() {
        0 => "none".to_owned(),
        _ => who.principal.roles.iter().cloned().collect::<Vec<_>>().join(", "),
    };
    match cause {
        DenialCause::Purpose { rule, role } => {
            let purposes = resource
                .dataset()
                .map_or_else(String::new, |d| d.purposes.iter().cloned().collect::<Vec<_>>().join(", "));
            let kind = resource.name.kind().as_str();
            let role = role.as_ref().map(|r| format!(", by the role {r}; your roles: {}", roles()));
            Some(format!("{}: this {kind} may be used for: {purposes}{}", rule.id, role.unwrap_or_default()))
        }
        DenialCause::Role { rule, role } => {
            Some(format!("{}: it requires the role {role}; your roles: {}", rule.id, roles()))
        }
        _ => rule_lines(cause),
    }
}

fn part_fix(who: &Who<'_>, resource: &Resource, cause: &DenialCause, explain: Explain) -> String {
    let ask = format!("ask its owner, {}", resource.owner);
    if let DenialCause::Error(_) = cause {
        return format!("tell an operator: a policy could not be evaluated, and the log names it; or {ask}");
    }
    if explain == Explain::Operators {
        return format!("{ask}, or an operator, who can see the rule");
    }
    let role_fix = |role: &str| {
        let entry = &who.principal.declared_at;
        format!("if {role} is the right role for this workload, have it added to the catalog entry {entry}")
    };
    match cause {
        DenialCause::Purpose { role, .. } => {
            let purposes = resource.dataset().map(|d| &d.purposes);
            let purpose = purposes.map(|p| match p.iter().next() {
                Some(only) if p.len() == 1 => {
                    format!("set purpose = \"{only}\" in the job file if that is true")
                }
                _ => "set purpose in the job file to one of these if it is true".to_owned(),
            });
            let parts = [role.as_deref().map(role_fix), purpose];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            format!("{}, or {ask}", parts.join(" and "))
        }
        DenialCause::Role { role, .. } => format!("{}, or {ask}", role_fix(role)),
        DenialCause::OtherJobsCheckpoint { .. } => {
            format!(
                "name a checkpoint line that this job writes; or add a rule that lets this job read the checkpoints of other jobs; or {ask}"
            )
        }
        DenialCause::Forbidden(rules) => match rules.first().and_then(|r| r.fix.as_ref()) {
            Some(fix) => format!("{fix}, or {ask}"),
            None => ask,
        },
        DenialCause::Nothing { .. } | DenialCause::Error(_) => ask,
    }
}
