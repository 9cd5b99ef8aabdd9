//! Asks policy whether a job may do its work. Converts the decision into a Grant, a refusal or a record.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use super::{context::BrokerContext, rules::Rules};
use crate::{
    catalog::Principal,
    fence::{Revision, Stand},
    job::{Gate, Job, Spec},
    ledger, limits,
    name::{Action, Object, ResourceKind, ResourceName, Scope, SpiffeId},
    policy::{Asker, Bundle, Decision, Engine, Grant, JobRisk, Phase, RequestFacts, Verdict},
    reason::{ASK_APPROVERS, Reason, Refusal},
};

/// Returns all actions of a job: reads, writes, and the tuning that follows from them. A job cannot request or leave
/// out `finetune`, so it cannot skip the approval gate.
pub(super) fn work_of(rules: &Rules, spec: &Spec) -> Vec<(Action, Object)> {
    parts_of(rules, spec, spec.scopes())
}

/// Returns the models that a job tunes: the models that it reads, the models of the checkpoint lines that it writes, and the
/// models of the checkpoints that it reads. A job that writes nothing tunes nothing.
pub(super) fn tuned(rules: &Rules, spec: &Spec) -> BTreeSet<ResourceName> {
    if spec.write.is_empty() {
        return BTreeSet::new();
    }
    let read = spec.read.iter().filter(|r| r.kind() == ResourceKind::Model).cloned();
    let written = spec.write.iter().filter_map(|line| model_of(rules, line));
    read.chain(written).chain(models_read(rules, spec)).collect()
}

/// Returns the models of the checkpoints of other jobs that a job reads.
pub(super) fn models_read(rules: &Rules, spec: &Spec) -> BTreeSet<ResourceName> {
    spec.read_checkpoints.iter().filter_map(|folder| model_of(rules, folder.resource())).collect()
}

/// Returns the model of a checkpoint line.
pub(super) fn model_of(rules: &Rules, line: &ResourceName) -> Option<ResourceName> {
    rules.catalog().checkpoint(line)?.checkpoint().map(|c| c.model.clone())
}

/// Returns the actions of a set of scopes, with the tuning of the whole job.
pub(super) fn work_of_scopes(rules: &Rules, job: &Job, scopes: &[Scope]) -> Vec<(Action, Object)> {
    parts_of(rules, &job.spec, scopes.iter().cloned())
}

fn parts_of(rules: &Rules, spec: &Spec, scopes: impl Iterator<Item = Scope>) -> Vec<(Action, Object)> {
    let mut parts = BTreeSet::new();
    for scope in scopes {
        parts.extend(scope.actions.iter().map(|action| (*action, scope.name())));
    }
    parts.extend(tuned(rules, spec).into_iter().map(|model| (Action::Finetune, model.into())));
    parts.into_iter().collect()
}

/// Refuses if an input has changed since the job was created: the catalog now has another pin or, for a job that people
/// had to approve, another location. In both cases the name may now mean other data.
pub(super) fn check_inputs(rules: &Rules, job: &Job, scopes: &[Scope]) -> Result<(), Refusal> {
    for input in job.inputs.iter().filter(|i| scopes.iter().any(|s| s.resource == i.resource)) {
        let Some(now) = rules.catalog().resource(&input.resource) else { continue };
        let is_moved = !job.gates.is_empty() && !input.location.is_empty() && now.location != input.location;
        let (then, now) = match now.pin != input.pin {
            true => (input.pin.to_string(), now.pin.to_string()),
            false if is_moved => (input.location.clone(), now.location.clone()),
            false => continue,
        };
        let text = format!("{} has changed since this job was created", input.resource);
        return Err(Refusal::new(Reason::PinMismatch, text)
            .with("yours", then)
            .with("catalog", now)
            .fix("create a new job, for the data that the catalog has now"));
    }
    Ok(())
}

/// Computes the risk of a job for one holder.
pub(super) fn risk_of(rules: &Rules, job: &Job, holder: Option<&Principal>) -> JobRisk {
    JobRisk::of(rules.catalog(), &job.spec.tenant, opened_by(job), holder)
}

/// Computes the risk of a job for all workloads that may take part.
pub(super) fn job_risk(rules: &Rules, job: &Job) -> JobRisk {
    let catalog = rules.catalog();
    let named = job.spec.members.join.iter().flat_map(|pattern| match pattern.exact() {
        Some(id) => catalog.principal(&id).into_iter().collect::<Vec<_>>(),
        None => catalog.principals_overlapping(pattern).collect(),
    });
    let holders = named.chain(catalog.principal(&job.launcher)).map(|p| &**p);
    JobRisk::of(catalog, &job.spec.tenant, opened_by(job), holders)
}

/// Returns the resources that a job opens, and the resources in its lineage.
fn opened_by(job: &Job) -> impl Iterator<Item = &ResourceName> {
    job.spec.resources().chain(&job.lineage.resources)
}

/// A question to policy about the work of a job.
pub(super) struct WorkQuestion<'a> {
    pub rules: &'a Rules,
    pub asker: Asker<'a>,
    pub job: &'a Job,
    pub attempt: u64,
    pub phase: Phase,
    pub ttl: Duration,
    pub parts: &'a [(Action, Object)],
    /// The risk of the job for the caller in question, if it was computed before.
    pub risk: Option<&'a JobRisk>,
    /// What the credential is bound to. Empty if the question is not about one credential.
    pub binding: &'a str,
}

/// Asks policy about the work of jobs.
#[derive(Clone)]
pub(super) struct Decisions {
    pub(super) context: Arc<BrokerContext>,
}

impl Decisions {
    /// Returns the answer of policy without a Grant.
    pub(super) fn judge(&self, q: WorkQuestion<'_>) -> Verdict {
        self.with_bundle(q, Engine::judge)
    }

    /// Asks policy for a Grant. The Grant carries the stand.
    pub(super) fn request_grant(
        &self,
        holder: &SpiffeId,
        q: WorkQuestion<'_>,
        stand: Stand,
        revision: Revision,
    ) -> Result<Grant, Refusal> {
        match self.with_bundle(q, |engine, _, bundle| engine.decide(holder, bundle, stand, revision)) {
            Decision::Grant(grant) => Ok(grant),
            Decision::Denied { refusal, .. } => Err(refusal),
            Decision::Waiting { gates, .. } => Err(approval_required(&gates)),
        }
    }

    /// Returns a decision as the ledger keeps it. `holder` is the identity that asks for access. It is `None` if the
    /// decision is for all that may take part.
    pub(super) fn record(
        &self,
        rules: &Rules,
        job: &Job,
        holder: Option<&SpiffeId>,
        result: &str,
        by: Vec<String>,
    ) -> ledger::DecisionRecord {
        let risk = match holder {
            Some(id) => risk_of(rules, job, rules.catalog().principal(id).map(|p| &**p)),
            None => job_risk(rules, job),
        };
        self.record_with_risk(rules, job, holder, &risk, result, by)
    }

    /// Returns the record of a decision. The risk was computed before.
    pub(super) fn record_with_risk(
        &self,
        rules: &Rules,
        job: &Job,
        holder: Option<&SpiffeId>,
        risk: &JobRisk,
        result: &str,
        by: Vec<String>,
    ) -> ledger::DecisionRecord {
        ledger::DecisionRecord {
            result: result.to_owned(),
            rules: by,
            policy: rules.engine.digest(),
            catalog: rules.catalog().digest(),
            approved: self.approved_gates(rules, job, holder).into_iter().collect(),
            risk: ledger::RiskRecord {
                score: risk.score(),
                reasons: risk.reasons().into_iter().map(str::to_owned).collect(),
            },
        }
    }

    /// Returns the lifetime of a job's lease if the request sets no TTL.
    pub(super) fn ttl_of(&self, job: &Job) -> Duration {
        job.spec.credential_ttl.unwrap_or(self.context.settings.lease_ttl).min(limits::LEASE_TTL_MAX)
    }

    fn with_bundle<R>(&self, q: WorkQuestion<'_>, f: impl FnOnce(&Engine, Asker<'_>, &Bundle<'_>) -> R) -> R {
        let (holder, entry) = match q.asker {
            Asker::Identity(id) => (Some(id), q.rules.catalog().principal(id).map(|p| &**p)),
            Asker::Entry(entry) => (None, Some(entry)),
        };
        let risk = q.risk.map_or_else(|| Cow::Owned(risk_of(q.rules, q.job, entry)), Cow::Borrowed);
        let approved = self.approved_gates(q.rules, q.job, holder);
        let job = q.job.id.to_string();
        let bundle = Bundle {
            job: &job,
            tenant: &q.job.spec.tenant,
            attempt: q.attempt,
            phase: q.phase,
            purpose: &q.job.spec.purpose,
            facts: RequestFacts::of(&q.job.spec),
            risk: &risk,
            method: q.job.spec.tune.as_ref().map(|t| t.method),
            ttl: q.ttl,
            now: self.context.clock.now().wall,
            approved: &approved,
            own_checkpoint: true,
            binding: q.binding,
            parts: q.parts,
        };
        f(&q.rules.engine, q.asker, &bundle)
    }
}

/// Returns the refusal that names the gates which people must approve first.
pub(super) fn approval_required(gates: &[Gate]) -> Refusal {
    let names: Vec<&str> = gates.iter().map(|g| g.id.as_str()).collect();
    let mut refusal =
        Refusal::new(Reason::ApprovalRequired, format!("approval is needed first: {}", names.join(", ")));
    for g in gates {
        refusal = refusal.with(
            "rule",
            format!("{}: {}; {} of group {}", g.id, g.explanation, g.approvals_needed, g.approver_group),
        );
    }
    refusal.fix(ASK_APPROVERS)
}

/// Returns each granted action with the rules that allowed it, as text for records.
pub(super) fn granted_by(grant: &Grant) -> Vec<String> {
    grant.granted().iter().map(ToString::to_string).collect()
}
