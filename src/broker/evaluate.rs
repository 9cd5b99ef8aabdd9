//! Answers what policy would decide, and by which rules. Callers may ask about themselves, and operators about their
//! tenant.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    access::AccessControl,
    caller::Caller,
    context::BrokerContext,
    decide::{Decisions, risk_of, work_of},
    names,
    rules::Rules,
};
use crate::{
    catalog::{Principal, Resource, Waiver},
    job::{Gate, Job},
    limits::APPROVERS_SHOWN_MAX,
    name::{Action, Digest, FenceName, JobId, Method, Object, PrincipalKind, SpiffeId, TenantName},
    policy::{
        AskedAct, Asker, Bundle, Call, CallVerdict, Explain, JobRisk, Phase, Relation, RequestFacts, Rpc,
        Verdict,
    },
    reason::{Reason, Refusal},
};

/// A question to policy.
#[derive(Clone, Debug)]
pub struct PolicyQuestion {
    pub act: AskedAct,
    /// The identity in question. `None` means the caller.
    pub identity: Option<SpiffeId>,
    pub purpose: String,
    pub method: Option<Method>,
    /// The tenant of the job in question. `None` means the tenant of the call or, for an access, of the identity.
    pub tenant: Option<TenantName>,
    pub ttl: Option<Duration>,
    pub relations: Vec<Relation>,
    /// The job in question. If it is set, policy decides with its specification, its risk and its approvals.
    pub job: Option<JobId>,
}

impl PolicyQuestion {
    /// Returns the tenant of the call in question. `None` if the call is about all tenants, or if the question is not
    /// about a call.
    fn tenant_of_call(&self) -> Option<&TenantName> {
        match &self.act {
            AskedAct::Call(_, on) => on.as_ref().map(|on| self.tenant.as_ref().unwrap_or(on)),
            AskedAct::Access(..) => None,
        }
    }
}

/// The decision.
#[derive(Clone, Debug)]
pub enum PolicyReply {
    Allow,
    /// People must approve these gates.
    Wait(Vec<GateToApprove>),
    Deny(Refusal),
}

/// A gate, and the people who may approve.
#[derive(Clone, Debug)]
pub struct GateToApprove {
    pub gate: Gate,
    /// Catalog entries of the gate's group that the caller may see, at most [`APPROVERS_SHOWN_MAX`].
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
    /// The owner of the resource, if the identity may see the resource.
    pub owner: Option<String>,
    pub policy: Digest,
    pub catalog: Digest,
}

/// The use cases for questions about policy. None of these calls changes anything.
pub struct PolicyUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) decisions: Decisions,
}

impl PolicyUseCases {
    /// Answers a question about policy. Changes nothing, and makes no grant.
    pub fn evaluate(&self, caller: &Caller, q: &PolicyQuestion) -> Result<PolicyEvaluation, Refusal> {
        let rules = self.context.rules();
        let identity = q.identity.as_ref().unwrap_or(caller.id());
        let entry = self.entry_to_ask_about(caller, &rules, identity)?;
        let job = q.job.map(|id| self.job_to_explain(caller, id)).transpose()?;
        let of_job = job.as_ref().map(|job| &job.spec.tenant);
        let tenant = of_job.or(q.tenant.as_ref()).unwrap_or(&entry.tenant);
        let (reply, by) = match &q.act {
            AskedAct::Call(rpc, _) => self.evaluate_call(caller, &rules, identity, *rpc, q),
            AskedAct::Access(action, on) => {
                if let Some(job) = &job {
                    check_is_work(&rules, job, *action, on)?;
                }
                let approved = match &job {
                    Some(job) => self.decisions.approved_gates(&rules, job, Some(identity)),
                    None => BTreeSet::new(),
                };
                let risk = match &job {
                    Some(job) => risk_of(&rules, job, Some(&entry)),
                    None => JobRisk::of(rules.catalog(), tenant, [on.resource()], [&*entry]),
                };
                let name = job.as_ref().map(|job| job.id.to_string());
                let bundle = Bundle {
                    job: name.as_deref().unwrap_or("j-00000000000000000000000000"),
                    tenant,
                    attempt: 1,
                    phase: Phase::Running,
                    purpose: job.as_ref().map_or(&q.purpose, |job| &job.spec.purpose),
                    facts: job.as_ref().map_or_else(
                        || RequestFacts::assumed(on.resource()),
                        |job| RequestFacts::of(&job.spec),
                    ),
                    risk: &risk,
                    method: match &job {
                        Some(job) => job.spec.tune.as_ref().map(|tune| tune.method),
                        None => q.method,
                    },
                    ttl: q.ttl.unwrap_or(self.context.settings.lease_ttl),
                    now: self.context.clock.now().wall,
                    approved: &approved,
                    own_checkpoint: true,
                    binding: "",
                    parts: &[(*action, on.clone())],
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
            AskedAct::Access(_, name) => {
                rules.catalog().resource(name.resource()).filter(|r| r.visible_to(&entry.tenant))
            }
            AskedAct::Call(..) => None,
        };
        let (reply, by) = match reply {
            PolicyReply::Deny(_) => (reply, by),
            open => match self.check_asked(caller, &rules, identity, tenant, resource, q) {
                Ok(()) => (open, by),
                Err(refusal) => (PolicyReply::Deny(refusal), Vec::new()),
            },
        };
        Ok(PolicyEvaluation {
            rules: rules_shown(caller, &rules, &reply, by),
            reply,
            identity: identity.clone(),
            tenant: tenant.clone(),
            owner: resource.map(|r| r.owner.clone()),
            policy: rules.engine.digest(),
            catalog: self.catalog_seen_by(caller, &rules),
        })
    }

    /// Returns the digest of the catalog that the caller sees. A caller that may not ask about all tenants gets the
    /// digest of what its tenant may see. Files of other tenants do not change that digest.
    pub fn catalog_seen_by(&self, caller: &Caller, rules: &Rules) -> Digest {
        match self.sees_catalog(caller) {
            true => rules.catalog().digest(),
            false => rules.catalog().digest_seen_by(caller.tenant()),
        }
    }

    /// Whether a caller may know that other tenants changed the catalog.
    pub fn sees_catalog(&self, caller: &Caller) -> bool {
        caller.is_only_tenant() || self.access.authorize(caller, Rpc::EvaluatePolicy, None, &[], "").is_ok()
    }

    /// Lists the temporary exceptions from rules that the caller may see: those for jobs of its tenant, or all.
    pub fn list_waivers(&self, caller: &Caller) -> Result<Vec<Waiver>, Refusal> {
        let everything = self.access.is_for_all_tenants(caller, Rpc::ListWaivers)?;
        let rules = self.context.rules();
        let all = rules.catalog().exceptions().waivers.iter();
        Ok(all.filter(|waiver| everything || waiver.tenant == *caller.tenant()).cloned().collect())
    }

    /// Returns the entry of an identity about which the caller may ask. An entry that the caller may not see counts as
    /// absent.
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
        let entry = rules.catalog().principal(identity).filter(|p| self.may_ask_about(caller, &p.tenant));
        entry.cloned().ok_or_else(|| {
            Refusal::new(Reason::PrincipalUnknown, "no catalog entry that you may see matches this identity")
                .with("asked", identity.to_string())
                .fix("correct the SPIFFE ID, or ask an operator of its tenant")
        })
    }

    fn evaluate_call(
        &self,
        caller: &Caller,
        rules: &Rules,
        identity: &SpiffeId,
        rpc: Rpc,
        q: &PolicyQuestion,
    ) -> (PolicyReply, Vec<String>) {
        let relations = relations_of(rpc, &q.relations);
        let tenant = decided_for(rules, rpc, q.tenant_of_call());
        let now = self.context.clock.now().wall;
        let login = self.context.state.login_of(identity);
        let amr = login.as_ref().map_or(&[][..], |login| login.amr.as_slice());
        let call = Call { caller: identity, rpc, tenant, relations: &relations, now, reason: "asked", amr };
        match rules.engine.judge_change(&call, &[]) {
            CallVerdict::Allow(by) => (PolicyReply::Allow, by),
            CallVerdict::Wait { gates, rules: by } => {
                let gates = gates.into_iter().map(|gate| self.to_approve(caller, rules, gate));
                (PolicyReply::Wait(gates.collect()), by)
            }
            CallVerdict::Deny { refusal, rules: by } => (PolicyReply::Deny(refusal), by),
        }
    }

    /// Refuses an allowed act if a lock prevents it, or if the checkpoints of another job may not be read.
    fn check_asked(
        &self,
        caller: &Caller,
        rules: &Rules,
        identity: &SpiffeId,
        tenant: &TenantName,
        resource: Option<&Resource>,
        q: &PolicyQuestion,
    ) -> Result<(), Refusal> {
        self.check_locks(caller, rules, identity, tenant, resource, q)?;
        match &q.act {
            AskedAct::Access(_, folder) if folder.job().is_some() => {
                let tenant = Some(tenant).filter(|tenant| self.may_ask_about(caller, tenant));
                self.context.check_folder(tenant.unwrap_or(caller.tenant()), folder)
            }
            _ => Ok(()),
        }
    }

    /// Refuses an allowed act if a lock prevents it. If the caller may not ask about a tenant, the tenant's locks do
    /// not count, so the tenant looks like an absent tenant.
    fn check_locks(
        &self,
        caller: &Caller,
        rules: &Rules,
        identity: &SpiffeId,
        tenant: &TenantName,
        resource: Option<&Resource>,
        q: &PolicyQuestion,
    ) -> Result<(), Refusal> {
        let mut behind = names::of_identity(rules, identity);
        let tenant = match &q.act {
            AskedAct::Call(rpc, _) => {
                if is_launching(*rpc, &q.relations) {
                    self.decisions.check_launcher_unlocked(identity)?;
                }
                q.tenant_of_call().filter(|_| gives_access(*rpc))
            }
            AskedAct::Access(..) => Some(tenant),
        };
        let tenant = tenant.filter(|tenant| self.may_ask_about(caller, tenant));
        behind.extend(tenant.cloned().map(FenceName::tenant));
        behind.extend(resource.into_iter().flat_map(|r| names::of_resource(&r.name)));
        self.access.check_unlocked(caller.id(), behind.iter())
    }

    /// Whether a caller may ask about the identities and the jobs of a tenant.
    fn may_ask_about(&self, caller: &Caller, tenant: &TenantName) -> bool {
        tenant == caller.tenant()
            || self.access.authorize(caller, Rpc::EvaluatePolicy, Some(tenant), &[], "").is_ok()
    }

    fn to_approve(&self, caller: &Caller, rules: &Rules, gate: Gate) -> GateToApprove {
        let members = rules.catalog().principals().filter(|p| p.groups.contains(&gate.approver_group));
        let approvers = members
            .filter(|p| !p.disabled && self.may_ask_about(caller, &p.tenant))
            .map(|p| p.pattern.to_string());
        GateToApprove { approvers: approvers.take(APPROVERS_SHOWN_MAX).collect(), gate }
    }
}

/// Refuses a question about an action that is not work of the job.
fn check_is_work(rules: &Rules, job: &Job, action: Action, on: &Object) -> Result<(), Refusal> {
    let work = work_of(rules, &job.spec);
    if work.iter().any(|(does, resource)| *does == action && resource == on) {
        return Ok(());
    }
    let work: Vec<String> = work.iter().map(|(does, resource)| format!("{does} {resource}")).collect();
    Err(Refusal::new(Reason::FieldInvalid, format!("{} does not {action} {on}", job.id))
        .with("it does", work.join(", "))
        .fix("ask about an action of the job, or leave the job out"))
}

/// Returns the relations for a question about a call. A caller that creates a job is its launcher.
pub(super) fn relations_of(rpc: Rpc, asked: &[Relation]) -> Vec<Relation> {
    let launcher = (rpc == Rpc::CreateJob).then_some(Relation::Launcher);
    asked.iter().copied().chain(launcher).collect()
}

/// Returns the tenant for which policy decides a call. If the call affects all tenants, policy decides it for all
/// tenants, even if the caller is an operator of one tenant. If there is only one tenant, policy decides such a call
/// for this tenant.
pub(super) fn decided_for<'t>(
    rules: &Rules,
    rpc: Rpc,
    tenant: Option<&'t TenantName>,
) -> Option<&'t TenantName> {
    let is_for_all = matches!(rpc, Rpc::ReloadCatalog | Rpc::ApplyPolicy | Rpc::ListPolicies);
    let is_only = || rules.catalog().tenants().all(|known| Some(known) == tenant);
    tenant.filter(|_| !is_for_all || is_only())
}

/// Whether a call gives a job access. If so, a lock on the job's tenant refuses the call.
pub(super) fn gives_access(rpc: Rpc) -> bool {
    matches!(
        rpc,
        Rpc::CreateJob
            | Rpc::BeginAttempt
            | Rpc::JoinAttempt
            | Rpc::KeepAlive
            | Rpc::IssueCredential
            | Rpc::RenewLease
    )
}

/// Whether a call gives access to a job that the caller itself launches. If so, a `launcher:` lock on the caller
/// refuses the call.
pub(super) fn is_launching(rpc: Rpc, asked: &[Relation]) -> bool {
    gives_access(rpc) && relations_of(rpc, asked).contains(&Relation::Launcher)
}

/// Returns the rules with their explanations. If only operators may see the rules of a denial, other callers get none.
fn rules_shown(
    caller: &Caller,
    rules: &Rules,
    reply: &PolicyReply,
    by: Vec<String>,
) -> Vec<(String, String)> {
    let oversees = matches!(caller.principal.kind, PrincipalKind::Operator | PrincipalKind::Auditor);
    let is_hidden = match reply {
        // Only operators may see the texts of rules that failed.
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
