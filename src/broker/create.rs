//! Creates jobs: reads the specification, decides for all who may take part, and records the job.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    access_request::{AccessRequest, Overtaken},
    caller::Caller,
    decide::{WorkQuestion, approval_required, tuned, work_of},
    jobs::JobUseCases,
    names,
    refusals::{key_conflict, no_random, plain_refusal},
    rules::Rules,
};
use crate::{
    catalog::{Catalog, Principal},
    job::{Approval, End, Gate, Input, Job, Lineage, Spec},
    ledger::Actor,
    name::{
        FenceName, HumanName, JobId, Outcome, PrincipalKind, ResourceKind, ResourceName, SpiffeId, TenantName,
    },
    policy::{Asker, Phase, Relation, Rpc, Verdict},
    reason::{Reason, Refusal},
    state::{Created, NewJob, spec_bytes, spec_digest},
    written::nearest,
};

/// The size of a job's record without its specification, in bytes.
const JOB_RECORD_BYTES: usize = 1_024;

/// The decision of policy on one action of one principal that may take part.
#[derive(Clone, Debug)]
pub struct PartDecision {
    pub principal: String,
    pub action: String,
    pub resource: String,
    /// The result: `allow` or `wait`.
    pub result: &'static str,
    pub rules: Vec<String>,
}

/// The answer to creating a job.
#[derive(Clone, Debug)]
pub struct CreatedJob {
    pub job: Arc<Job>,
    pub created: bool,
    pub decisions: Vec<PartDecision>,
}

/// The decision on a whole job.
pub(super) struct JobDecision {
    pub gates: Vec<Gate>,
    pub rules: Vec<String>,
    pub decisions: Vec<PartDecision>,
}

impl JobUseCases {
    /// Creates a job. A repeated call with the same key of the caller returns the same job. A dry run only decides the
    /// job.
    pub async fn create_job(
        &self,
        caller: &Caller,
        spec: Spec,
        idempotency_key: &str,
        dry_run: bool,
    ) -> Result<CreatedJob, Refusal> {
        self.context.refuse_if_held()?;
        let spec = Arc::new(spec);
        let digest = spec_digest(&spec)
            .map_err(|_| Refusal::new(Reason::FieldInvalid, "the specification has no canonical form"))?;
        let request = self.access.access_request(&caller.peer, Rpc::CreateJob)?;
        let id = JobId::random().map_err(|_| no_random())?;
        let lineage = self.context.lineage_of(&spec);
        let resources = spec.resources().cloned().chain(tuned(&request.rules, &spec));
        let launcher = request.caller.id();
        let mut names = names::of_spec(&request.rules, &spec, launcher, resources);
        names.extend(names::of_lineage(&request.rules, &spec, &lineage));
        names.push(FenceName::job(id));
        let standing = request.stand(&names);
        let AccessRequest { rules, caller, .. } = &standing.request;

        // The stand was taken before all reads below, so `look_again` notices a revocation in between.
        self.authorize_create(caller, &spec)?;
        if !dry_run && let Some(existing) = self.context.state.by_key(caller.id(), idempotency_key) {
            if existing.spec_digest == digest {
                return Ok(CreatedJob { job: existing, created: false, decisions: Vec::new() });
            }
            return Err(key_conflict(existing.id));
        }
        let inputs = self.may_create(rules, caller, &spec, &lineage, &names)?;
        let now = self.context.clock.now().lease;
        let key = idempotency_key.to_owned();
        let new = Job::new(id, spec, digest, caller.id().clone(), key, now, inputs);
        let job = Job { lineage: Arc::new(lineage), ..new };
        let decided = self.decide_job(rules, &job, Phase::Creating)?;
        self.tokens.tokens_fit(rules, &job)?;
        let decisions = decided.decisions;
        let job = job.held_by(decided.gates);
        if dry_run {
            return Ok(CreatedJob { job: Arc::new(job), created: false, decisions });
        }
        let result = if job.gates.is_empty() { "allow" } else { "wait" };
        let decision = self.decisions.record(rules, &job, None, result, decided.rules);
        self.context.rates.charge_bytes(caller, JOB_RECORD_BYTES.saturating_add(spec_bytes(&job.spec)))?;
        let created = self.context.state.create(NewJob { job, decision }).await;
        let job = match created.map_err(plain_refusal)? {
            Created::New(job) => job,
            Created::Existing(job) => return Ok(CreatedJob { job, created: false, decisions }),
        };
        // The caller may have become a member of another launcher's job meanwhile, and such a member may not launch.
        let again = standing.look_again("it was being created", None, |changed| match changed {
            None => self.decisions.may_launch(caller),
            Some((rules, caller)) => self.may_still_create(rules, caller, &job),
        });
        if let Err(Overtaken { refusal, detail }) = again {
            self.endings.close_quietly(job.id, Outcome::Revoked, &detail);
            return Err(refusal);
        }
        let job = self.drop_withdrawn_approvals(job);
        metrics::counter!("leasehold_jobs_created_total").increment(1);
        let (tenant, waits) = (&job.spec.tenant, !job.gates.is_empty());
        tracing::info!(job = %job.id, %tenant, launcher = %job.launcher, waits, "job created");
        Ok(CreatedJob { job, created: true, decisions })
    }

    /// Removes approvals from a new job of a parameter sweep, if they were withdrawn while the job was recorded.
    fn drop_withdrawn_approvals(&self, job: Arc<Job>) -> Arc<Job> {
        if job.sweep_place.is_none() || job.approvals.is_empty() {
            return job;
        }
        let others = self.context.state.open_in_sweep(&job);
        let stands = |approval: &Approval| {
            others.iter().flat_map(|other| &other.approvals).any(|other| {
                (&other.gate, &other.by, other.at) == (&approval.gate, &approval.by, approval.at)
            })
        };
        let now = self.context.clock.now().lease;
        let detail = "it was taken back from the sweep while this job was created";
        for approval in job.approvals.iter().filter(|approval| !stands(approval)) {
            let by = Actor::Daemon(detail.to_owned());
            let withdraw = |job: &Job| {
                job.withdraw_approval(&approval.by, Some(&approval.gate), detail, now).map(End::Now)
            };
            // If the job is closed meanwhile, there is nothing to take back.
            let _ = self.endings.end_work(job.id, &by, "an approval was withdrawn", withdraw);
        }
        self.context.state.job(job.id).unwrap_or(job)
    }

    fn authorize_create(&self, caller: &Caller, spec: &Spec) -> Result<(), Refusal> {
        let relations = [Relation::Launcher];
        self.access.authorize(caller, Rpc::CreateJob, Some(&spec.tenant), &relations, &spec.why)
    }

    /// Makes all checks before a job is decided: the caller, the person for whom the job acts, the resources, the
    /// locks. Returns the job's inputs.
    fn may_create(
        &self,
        rules: &Rules,
        caller: &Caller,
        spec: &Spec,
        lineage: &Lineage,
        names: &[FenceName],
    ) -> Result<Vec<Input>, Refusal> {
        self.authorize_create(caller, spec)?;
        self.decisions.check_launcher_unlocked(caller.id())?;
        self.decisions.may_launch(caller)?;
        check_human(&caller.principal, caller.id(), spec.acting_for.as_ref())?;
        // This comes before the locks: a caller that may not see a resource must not learn that it is locked.
        let inputs = inputs_of(rules.catalog(), spec)?;
        self.context.check_new_checkpoints(rules, spec, lineage)?;
        self.access.check_unlocked(caller.id(), names.iter())?;
        Ok(inputs)
    }

    /// Checks a new job by rules that changed meanwhile. Refuses the job if the rules deny it, or if they require an
    /// approval that is not among the job's gates.
    fn may_still_create(&self, rules: &Rules, caller: &Caller, job: &Job) -> Result<(), Refusal> {
        let names = names::of_job(rules, job);
        let inputs = self.may_create(rules, caller, &job.spec, &job.lineage, &names)?;
        if inputs.as_slice() != &*job.inputs {
            let text = "the inputs of the job changed in the catalog while it was being created";
            return Err(Refusal::new(Reason::PinMismatch, text).fix("create it again"));
        }
        let gates = self.decide_job(rules, job, Phase::Creating)?.gates;
        self.tokens.tokens_fit(rules, job)?;
        if gates.iter().all(|g| job.gates.contains(g)) { Ok(()) } else { Err(approval_required(&gates)) }
    }

    /// Decides a job for every catalog entry that `members.join` can match.
    pub(super) fn decide_job(&self, rules: &Rules, job: &Job, phase: Phase) -> Result<JobDecision, Refusal> {
        let parts = work_of(rules, &job.spec);
        let ttl = self.decisions.ttl_of(job);
        let mut decided = JobDecision { gates: Vec::new(), rules: Vec::new(), decisions: Vec::new() };
        let mut gates = BTreeSet::new();
        let mut by = BTreeSet::new();
        let judge = |asker: Asker<'_>, parts: &[_]| {
            let attempt = job.attempts.len() as u64;
            self.decisions.judge(WorkQuestion {
                rules,
                asker,
                job,
                attempt,
                phase,
                ttl,
                parts,
                risk: None,
                binding: "",
            })
        };
        // If policy denies a workload of another tenant, the answer is as if the catalog had no such entry.
        let is_foreign = |asker: Asker<'_>, p: &Principal| {
            p.tenant != job.spec.tenant && matches!(judge(asker, &parts), Verdict::Deny { .. })
        };
        for (asker, principal) in joiners(rules, job, is_foreign)? {
            let asker = asker.as_ref().map_or(Asker::Entry(&principal), Asker::Identity);
            let (result, parts) = match judge(asker, &parts) {
                Verdict::Deny { refusal, .. } => return Err(refusal),
                Verdict::Allow { parts } => ("allow", parts),
                Verdict::Wait { gates: wanted, parts } => {
                    for g in wanted {
                        if gates.insert(g.id.clone()) {
                            decided.gates.push(g);
                        }
                    }
                    ("wait", parts)
                }
            };
            by.extend(parts.iter().map(ToString::to_string));
            decided.decisions.extend(parts.into_iter().map(|d| PartDecision {
                principal: principal.pattern.to_string(),
                action: d.action.to_string(),
                resource: d.resource.to_string(),
                result,
                rules: d.rules,
            }));
        }
        decided.rules = by.into_iter().collect();
        Ok(decided)
    }
}

/// A catalog entry that may join, with the identity if the job names exactly one identity.
pub(super) type Joiner = (Option<SpiffeId>, Arc<Principal>);

/// Returns the catalog entries that may join. Entries of other tenants count only if they may take part. A launcher
/// that is a workload is added, so that it cannot launch a job with access that it could not get for itself.
pub(super) fn joiners(
    rules: &Rules,
    job: &Job,
    is_foreign: impl Fn(Asker<'_>, &Principal) -> bool,
) -> Result<Vec<Joiner>, Refusal> {
    let mut found: Vec<Joiner> = Vec::new();
    for pattern in &job.spec.members.join {
        let mut any = false;
        // An identity has one entry: the first that matches. A pattern can match several entries.
        let entries: Vec<Arc<Principal>> = match pattern.exact() {
            Some(id) => rules.catalog().principal(&id).cloned().into_iter().collect(),
            None => rules.catalog().principals_overlapping(pattern).cloned().collect(),
        };
        let exact = pattern.exact();
        for p in entries {
            if is_foreign(exact.as_ref().map_or(Asker::Entry(&p), Asker::Identity), &p) {
                continue;
            }
            any = true;
            if p.disabled || p.kind != PrincipalKind::Workload {
                continue;
            }
            if !found.iter().any(|(_, q)| Arc::ptr_eq(q, &p)) {
                found.push((exact.clone(), p));
            }
        }
        if !any {
            return Err(Refusal::new(
                Reason::PrincipalUnknown,
                format!("no catalog entry matches the member {pattern}"),
            )
            .fix("have a [[principal]] of kind workload added, or correct members.join in the job file"));
        }
    }
    if found.is_empty() {
        return Err(Refusal::new(
            Reason::NotAMember,
            "no identity that the job names in members.join is a workload",
        )
        .fix("name the identity that the training process will have in members.join"));
    }
    let launcher = rules.catalog().principal(&job.launcher).filter(|p| p.kind == PrincipalKind::Workload);
    if let Some(p) = launcher
        && !found.iter().any(|(_, q)| Arc::ptr_eq(q, p))
    {
        found.push((Some(job.launcher.clone()), p.clone()));
    }
    Ok(found)
}

/// Refuses to let a principal act for a human if its catalog entry does not allow that. A person may name themself.
pub(super) fn check_human(
    principal: &Principal,
    id: &SpiffeId,
    human: Option<&HumanName>,
) -> Result<(), Refusal> {
    let Some(human) = human else { return Ok(()) };
    if principal.may_act_for(human) || principal.human(id).as_ref() == Some(human) {
        return Ok(());
    }
    Err(Refusal::new(Reason::PolicyDenied, format!("you may not act for {human}"))
        .with("rule", format!("{} has no may_act_for that covers human:{human}", principal.declared_at))
        .fix("leave acting_for out, or have may_act_for added to your catalog entry"))
}

/// Returns the refusal for a name that a tenant's jobs may not use. It suggests the nearest name that they may use.
fn no_such_resource(catalog: &Catalog, tenant: &TenantName, name: &ResourceName) -> Refusal {
    let text = format!("there is no {name}, or none that this tenant may see");
    let refusal = Refusal::new(Reason::ResourceNotFound, text);
    let same_kind = catalog.resources().filter(|r| r.name.kind() == name.kind() && r.visible_to(tenant));
    let refusal = match nearest(name.as_str(), same_kind.map(|r| r.name.as_str())) {
        Some(near) => refusal.with("nearest", near),
        None => refusal,
    };
    refusal.fix(
        "check the name and its version: leasehold catalog list; its owner can share it with your tenant",
    )
}

/// Returns the inputs as the catalog has them. An absent resource and an invisible one get the same answer.
fn inputs_of(catalog: &Catalog, spec: &Spec) -> Result<Vec<Input>, Refusal> {
    let mut inputs = Vec::new();
    for name in spec.resources() {
        let found = catalog.resource(name).filter(|r| r.visible_to(&spec.tenant));
        let found = found.ok_or_else(|| no_such_resource(catalog, &spec.tenant, name))?;
        if let Some(wanted) = spec.pins.get(name)
            && *wanted != found.pin
        {
            return Err(Refusal::new(
                Reason::PinMismatch,
                format!("the catalog's pin of {name} is not the one in your job"),
            )
            .with("yours", wanted.to_string())
            .with("catalog", found.pin.to_string())
            .fix(format!("before you train on it, ask {} why it changed", found.owner)));
        }
        if name.kind() != ResourceKind::Checkpoint {
            inputs.push(Input {
                resource: name.clone(),
                pin: found.pin.clone(),
                location: found.location.clone(),
                classification: found.dataset().map(|d| d.classification.to_string()),
                data_classes: found
                    .dataset()
                    .map(|d| d.data_classes.iter().cloned().collect())
                    .unwrap_or_default(),
                tier: found.model().map(|m| m.tier.to_string()),
            });
        }
    }
    if let Some(name) = &spec.rollback_to {
        let found = catalog.resource(name).filter(|r| r.visible_to(&spec.tenant));
        found.ok_or_else(|| no_such_resource(catalog, &spec.tenant, name).with("field", "rollback_to"))?;
    }
    for name in spec.pins.keys() {
        if !spec.read.contains(name) {
            return Err(Refusal::new(Reason::FieldInvalid, format!("{name} is pinned but not read"))
                .fix("pin only what [[read]] names"));
        }
    }
    Ok(inputs)
}
