//! What policy would decide, and by which rules: for a caller that asks for itself, or that oversees a tenant.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{access::AccessControl, caller::Caller, context::BrokerContext, decide::Decisions, rules::Rules};
use crate::{
    catalog::Principal,
    limits::APPROVERS_SHOWN_MAX,
    name::{Digest, FenceName, Method, PrincipalKind, ResourceName, SpiffeId, TenantName},
    policy::{ApprovalGate, AskedAct, Asker, Bundle, Call, Explain, Phase, Relation, Rpc, Verdict},
    reason::{Reason, Refusal},
};

/// A question to policy.
#[derive(Clone, Debug)]
pub struct PolicyQuestion {
    pub act: AskedAct,
    /// `None` asks for the caller.
    pub identity: Option<SpiffeId>,
    pub purpose: String,
    pub method: Option<Method>,
    /// The tenant of the job; `None` takes that of the identity.
    pub tenant: Option<TenantName>,
    pub ttl: Option<Duration>,
    pub relations: Vec<Relation>,
}

/// What was decided.
#[derive(Clone, Debug)]
pub enum PolicyReply {
    Allow,
    /// People must approve these gates.
    Wait(Vec<GateToApprove>),
    Deny(Refusal),
}

/// A gate, and who may approve it.
#[derive(Clone, Debug)]
pub struct GateToApprove {
    pub gate: ApprovalGate,
    /// Catalog entries of its group that the caller may see, at most [`APPROVERS_SHOWN_MAX`].
    pub approvers: Vec<String>,
}

/// The answer to a [`PolicyQuestion`].
#[derive(Clone, Debug)]
pub struct PolicyEvaluation {
    pub reply: PolicyReply,
    pub identity: SpiffeId,
    pub tenant: TenantName,
    /// The rules that decided, each with its explanation.
    pub rules: Vec<(String, String)>,
    /// The owner of the resource, if the identity may know of it.
    pub owner: Option<String>,
    pub policy: Digest,
    pub catalog: Digest,
}

/// What callers ask about policy. Nothing of it changes anything.
pub struct PolicyUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) decisions: Decisions,
}

impl PolicyUseCases {
    /// Answers a question. Changes nothing, and makes no grant.
    pub fn evaluate(&self, caller: &Caller, q: &PolicyQuestion) -> Result<PolicyEvaluation, Refusal> {
        let rules = self.context.rules();
        let identity = q.identity.as_ref().unwrap_or(caller.id());
        let entry = self.entry_to_ask_about(caller, &rules, identity)?;
        let tenant = q.tenant.as_ref().unwrap_or(&entry.tenant);
        let (reply, by) = match &q.act {
            AskedAct::Call(rpc, on) => self.evaluate_call(&rules, identity, *rpc, on.as_ref(), q),
            AskedAct::Part(action, on) => {
                let parts = [(*action, on.clone())];
                let approved = BTreeSet::new();
                let bundle = Bundle {
                    job: "j-00000000000000000000000000",
                    tenant,
                    attempt: 1,
                    phase: Phase::Running,
                    purpose: &q.purpose,
                    method: q.method,
                    ttl: q.ttl.unwrap_or(self.context.settings.lease_ttl),
                    now: self.context.clock.now().wall,
                    approved: &approved,
                    own_checkpoint: true,
                    parts: &parts,
                };
                match rules.engine.judge(Asker::Identity(identity), &bundle) {
                    Verdict::Allow { parts } => {
                        (PolicyReply::Allow, parts.into_iter().flat_map(|p| p.rules).collect())
                    }
                    Verdict::Wait { gates, parts } => {
                        let gates = gates.into_iter().map(|gate| self.to_approve(caller, &rules, gate));
                        let by = parts.into_iter().flat_map(|p| p.rules).collect();
                        (PolicyReply::Wait(gates.collect()), by)
                    }
                    Verdict::Deny { refusal, rules } => (PolicyReply::Deny(refusal), rules),
                }
            }
        };
        let resource = match &q.act {
            AskedAct::Part(_, name) => rules.catalog().resource(name).filter(|r| r.visible_to(&entry.tenant)),
            AskedAct::Call(..) => None,
        };
        let (reply, by) = match reply {
            PolicyReply::Deny(_) => (reply, by),
            open => {
                match self.access.check_unlocked(names(identity, tenant, resource.map(|r| &r.name)).iter()) {
                    Ok(()) => (open, by),
                    Err(locked) => (PolicyReply::Deny(locked), Vec::new()),
                }
            }
        };
        Ok(PolicyEvaluation {
            rules: rules_shown(caller, &rules, &reply, by),
            reply,
            identity: identity.clone(),
            tenant: tenant.clone(),
            owner: resource.map(|r| r.owner.clone()),
            policy: rules.engine.digest(),
            catalog: rules.catalog().digest(),
        })
    }

    /// Returns the entry of an identity that the caller may ask about. One that it may not see is as absent.
    fn entry_to_ask_about(
        &self,
        caller: &Caller,
        rules: &Rules,
        identity: &SpiffeId,
    ) -> Result<Arc<Principal>, Refusal> {
        if identity == caller.id() {
            self.access.authorize(
                caller,
                Rpc::EvaluatePolicy,
                Some(caller.tenant()),
                &[Relation::Itself],
                "",
            )?;
            return Ok(caller.principal.clone());
        }
        self.access.authorize(caller, Rpc::EvaluatePolicy, Some(caller.tenant()), &[], "")?;
        let may_see = |p: &Principal| {
            p.tenant == *caller.tenant()
                || self.access.authorize(caller, Rpc::EvaluatePolicy, Some(&p.tenant), &[], "").is_ok()
        };
        rules.catalog().principal(identity).filter(|p| may_see(p)).cloned().ok_or_else(|| {
            Refusal::new(Reason::PrincipalUnknown, "no catalog entry that you may see matches this identity")
                .with("asked", identity.to_string())
                .fix("correct the SPIFFE ID, or ask an operator of its tenant")
        })
    }

    fn evaluate_call(
        &self,
        rules: &Rules,
        identity: &SpiffeId,
        rpc: Rpc,
        on: Option<&TenantName>,
        q: &PolicyQuestion,
    ) -> (PolicyReply, Vec<String>) {
        let mut relations = q.relations.clone();
        // As when a job is created: the caller launches it.
        if rpc == Rpc::CreateJob {
            relations.push(Relation::Launcher);
        }
        let now = self.context.clock.now().wall;
        let call = Call { caller: identity, rpc, tenant: on, relations: &relations, now, reason: "asked" };
        match rules.engine.authorize_by(&call) {
            Ok(by) => (PolicyReply::Allow, by),
            Err((refusal, by)) => (PolicyReply::Deny(refusal), by),
        }
    }

    fn to_approve(&self, caller: &Caller, rules: &Rules, gate: ApprovalGate) -> GateToApprove {
        let may_see = |p: &Principal| {
            p.tenant == *caller.tenant()
                || self.access.authorize(caller, Rpc::EvaluatePolicy, Some(&p.tenant), &[], "").is_ok()
        };
        let members = rules.catalog().principals().filter(|p| p.groups.contains(&gate.approver_group));
        let approvers = members.filter(|p| !p.disabled && may_see(p)).map(|p| p.pattern.to_string());
        GateToApprove { approvers: approvers.take(APPROVERS_SHOWN_MAX).collect(), gate }
    }
}

/// The names whose lock would refuse it.
fn names(identity: &SpiffeId, tenant: &TenantName, resource: Option<&ResourceName>) -> Vec<FenceName> {
    let mut names = vec![
        FenceName::identity(identity.clone()),
        FenceName::domain(identity.trust_domain()),
        FenceName::tenant(tenant.clone()),
    ];
    if let Some(name) = resource {
        names.push(FenceName::tenant(name.tenant()));
        names.push(FenceName::resource(name.unversioned()));
        names.push(FenceName::resource(name.clone()));
    }
    names
}

/// Returns the rules with their explanations. If only operators see what refused, others see none of a denial.
fn rules_shown(
    caller: &Caller,
    rules: &Rules,
    reply: &PolicyReply,
    by: Vec<String>,
) -> Vec<(String, String)> {
    let oversees = matches!(caller.principal.kind, PrincipalKind::Operator | PrincipalKind::Auditor);
    let is_hidden = match reply {
        // The texts of rules that failed are for operators in any case.
        PolicyReply::Deny(refusal) => {
            rules.engine.explain() == Explain::Operators || refusal.reason == Reason::PolicyError
        }
        PolicyReply::Allow | PolicyReply::Wait(_) => false,
    };
    if is_hidden && !oversees {
        return Vec::new();
    }
    let by: BTreeSet<String> = by.into_iter().collect();
    let explained = |id: String| {
        let explain = rules.engine.rule(&id).and_then(|rule| rule.explain.clone());
        (id, explain.unwrap_or_default())
    };
    by.into_iter().map(explained).collect()
}
