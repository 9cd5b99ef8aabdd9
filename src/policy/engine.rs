//! The policy engine. The engine groups the rules by kind of principal and action, and prepares the catalog's entities
//! only once. So each decision is fast.

use std::{collections::HashMap, sync::Arc};

use cedar_policy::{Authorizer, Decision as Answer, Entities, EntityUid, Policy, PolicySet, Request};

use super::{
    Asker, Bundle, Call, CallVerdict, Decided, Decision, Explain, Grant, GrantParts, PolicyErrors,
    PolicySource, PolicyText, Rule, Verdict,
    context::{ContextFields, JobReads},
    context_cache::ContextCache,
    decision_cache::{DecisionCache, DecisionKey},
    entities::{CatalogEntities, PreparedResource, Types},
    entity_references,
    explain::{self, DenialCause, Who},
    outcome::Outcome,
    rules::RuleSet,
    slice::{self, PolicyAct, Slice, Slices},
};
use crate::{
    catalog::{Catalog, Principal, Resource},
    clock::Wall,
    fence::{Revision, Stand},
    job::Gate,
    limits,
    name::{Action, Digest, Object, PrincipalKind, ResourceName, SpiffeId},
    reason::{Reason, Refusal},
};

/// Decides by one set of policies over one catalog. It never changes, so share it behind an `Arc`.
pub struct Engine {
    rules: RuleSet,
    by_id: HashMap<String, Arc<Rule>>,
    pub(super) types: Types,
    pub(super) slices: Slices,
    pub(super) catalog: Catalog,
    pub(super) prepared: CatalogEntities,
    contexts: ContextCache,
    explain: Explain,
    warnings: Vec<String>,
    authorizer: Authorizer,
    memo: DecisionCache<Outcome>,
    /// The cached answers to [`Bundle`]s that policy allowed: the decided parts of each bundle.
    allowed: DecisionCache<Vec<Decided>>,
}

/// One action of a bundle, with its resource in the catalog.
struct KnownPart<'a> {
    action: Action,
    /// The resource, or the folder of another job.
    object: &'a Object,
    resource: &'a Resource,
}

/// The resource or the tenant of an act.
struct ActTarget<'a> {
    uid: &'a EntityUid,
    /// The class of a resource. `None` for a tenant.
    class: Option<u64>,
    /// The time until which a resource may be kept. `None` if there is no such time.
    retain_until: Option<Wall>,
}

impl Engine {
    /// Reads and validates policies, and prepares them for a catalog.
    ///
    /// # Errors
    ///
    /// Every mistake in the policies, or an entity of the catalog that the schema does not know.
    pub fn load(from: &PolicySource, catalog: &Catalog, explain: Explain) -> Result<Self, PolicyErrors> {
        let rules = RuleSet::load(from)?;
        let types = Types::new()?;
        let slices = slice::build_slices(&rules, &types)?;
        let by_id = rules.policies.iter().map(|(rule, _)| (rule.id.clone(), rule.clone())).collect();
        let catalog = catalog.clone();
        let prepared = CatalogEntities::new(&types, &rules.schema, &catalog)?;
        let contexts = ContextCache::new(&slices, &catalog);
        let warnings = entity_references::check(&rules, &types, &prepared)?;
        Ok(Engine {
            rules,
            by_id,
            types,
            slices,
            catalog,
            prepared,
            contexts,
            explain,
            warnings,
            authorizer: Authorizer::new(),
            memo: DecisionCache::with_room(limits::DECISIONS_KEPT_MAX),
            allowed: DecisionCache::with_room(limits::BUNDLES_KEPT_MAX),
        })
    }

    /// Reads and validates policies without a catalog: reports only the mistakes in the policies.
    ///
    /// # Errors
    ///
    /// Every mistake in the policies.
    pub fn check(from: &PolicySource) -> Result<(), PolicyErrors> {
        RuleSet::load(from).map(drop)
    }

    /// Returns the digest of the schema, and of the names and texts of the policy files.
    pub fn digest(&self) -> Digest {
        self.rules.digest
    }

    /// Returns the catalog of the engine.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Returns the rules, in the order of their files.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.policies.iter().map(|(rule, _)| &**rule)
    }

    /// Returns the names and texts of the policy files, in their order.
    pub fn texts(&self) -> &[PolicyText] {
        &self.rules.texts
    }

    /// Returns the rule with this id.
    pub fn rule(&self, id: &str) -> Option<&Rule> {
        self.by_id.get(id).map(|rule| &**rule)
    }

    /// Returns who may see the rule that refused.
    pub fn explain(&self) -> Explain {
        self.explain
    }

    /// Returns the rules, each with its Cedar policy.
    pub(super) fn policies(&self) -> impl Iterator<Item = &(Arc<Rule>, Policy)> {
        self.rules.policies.iter()
    }

    /// Returns the gate with this id.
    pub fn gate(&self, id: &str) -> Option<&Gate> {
        self.by_id.get(id)?.gate.as_ref()
    }

    /// Returns the text of a rule, with its annotations.
    pub fn rule_text(&self, id: &str) -> Option<String> {
        self.rules.policies.iter().find(|(rule, _)| rule.id == id).map(|(_, policy)| policy.to_string())
    }

    /// Returns a warning for each rule about a principal or resource that is not in the catalog.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Decides only whether this caller may make this call for this tenant. The code that makes the answer decides what the answer
    /// may contain.
    ///
    /// # Errors
    ///
    /// The refusal for the caller.
    pub fn authorize(&self, call: &Call<'_>) -> Result<(), Refusal> {
        self.authorize_by(call).map(|_| ()).map_err(|(refusal, _)| refusal)
    }

    /// Authorizes a call like [`Engine::authorize`], and returns the ids of the rules that decided, for the ledger.
    ///
    /// # Errors
    ///
    /// The refusal for the caller, and the ids of the rules that denied.
    pub fn authorize_by(&self, call: &Call<'_>) -> Result<Vec<String>, (Refusal, Vec<String>)> {
        match self.judge_change(call, &[]) {
            CallVerdict::Allow(rules) => Ok(rules),
            CallVerdict::Wait { gates, rules } => {
                let names: Vec<&str> = gates.iter().map(|gate| gate.id.as_str()).collect();
                let text = format!("people must approve it first: {}", names.join(", "));
                Err((Refusal::new(Reason::ApprovalRequired, text), rules))
            }
            CallVerdict::Deny { refusal, rules } => Err((refusal, rules)),
        }
    }

    /// Judges a call that may change the rules. The gates in `approved` have enough approvals.
    pub fn judge_change(&self, call: &Call<'_>, approved: &[String]) -> CallVerdict {
        let deny = |refusal| CallVerdict::Deny { refusal, rules: Vec::new() };
        let Some(principal) = self.catalog.principal(call.caller) else {
            return deny(explain::unknown(call.caller.as_str()));
        };
        let act = PolicyAct::Rpc(call.rpc);
        let Some(slice) = self.slices.get(&(principal.kind, act)) else {
            return deny(explain::wrong_kind(call, principal, &self.kinds(act)));
        };
        let tenant = self.prepared.tenant_uid(&self.types, call.tenant);
        let facts = ContextFields::of_change(call, approved);
        let target = ActTarget { uid: &tenant, class: None, retain_until: None };
        match &*self.outcome(slice, principal, &target, &facts) {
            Outcome::Allow(rules) => CallVerdict::Allow(ids(rules)),
            Outcome::Wait(gates, permits) => CallVerdict::Wait {
                gates: gates.iter().filter_map(|rule| rule.gate.clone()).collect(),
                rules: ids(gates.iter().chain(permits)),
            },
            outcome => {
                let cause = DenialCause::of(outcome, || self.permits(slice));
                log_errors(&cause, act);
                let refusal = explain::call_denied(call, principal, &cause, self.explain);
                CallVerdict::Deny { refusal, rules: cause.rules() }
            }
        }
    }

    /// Judges a bundle without a grant: for jobs that are being created, for sweeps, and for dry runs.
    pub fn judge(&self, asker: Asker<'_>, bundle: &Bundle<'_>) -> Verdict {
        let (name, principal) = match asker {
            Asker::Identity(id) => (id.to_string(), self.catalog.principal(id)),
            Asker::Entry(entry) => (entry.pattern.to_string(), self.entry(entry)),
        };
        let Some(principal) = principal else {
            return Verdict::Deny { refusal: explain::unknown(&name), rules: Vec::new() };
        };
        let deny = |refusal| Verdict::Deny { refusal, rules: Vec::new() };
        if bundle.parts.is_empty() {
            return deny(
                Refusal::new(Reason::FieldMissing, "the request names nothing").fix("name a resource"),
            );
        }
        let who = Who { name: &name, principal, bundle };
        let mut resources = Vec::with_capacity(bundle.parts.len());
        for (action, object) in bundle.parts {
            let (action, name) = (*action, object.resource());
            // The folder of another job can only be read.
            if action.applies_to() != name.kind()
                || object.job().is_some() && action != Action::ReadCheckpoint
            {
                return deny(explain::wrong_resource(action, name));
            }
            match self.catalog.resource(name).filter(|r| r.visible_to(&principal.tenant)) {
                Some(resource) => resources.push(KnownPart { action, object, resource }),
                None => return deny(explain::not_found(&who, name)),
            }
        }
        if principal.kind != PrincipalKind::Workload {
            return deny(explain::holds_nothing(&who));
        }
        self.judge_known(&who, &resources)
    }

    /// Decides a request. `stand` has the request's fences as they were read before, so that a later revocation is
    /// noticed.
    pub fn decide(
        &self,
        holder: &SpiffeId,
        bundle: &Bundle<'_>,
        stand: Stand,
        revision: Revision,
    ) -> Decision {
        match self.judge(Asker::Identity(holder), bundle) {
            Verdict::Allow { parts } => Decision::Grant(Grant::new(GrantParts {
                holder: holder.clone(),
                tenant: bundle.tenant.clone(),
                job: bundle.job.to_owned(),
                attempt: bundle.attempt,
                granted: parts,
                policy: self.digest(),
                catalog: self.catalog.digest(),
                stand,
                revision,
            })),
            Verdict::Wait { gates, parts } => Decision::Waiting { gates, parts, stand },
            Verdict::Deny { refusal, rules } => Decision::Denied { refusal, rules, stand },
        }
    }

    /// Returns the entry of the engine's own catalog with this pattern. An entry of another catalog does not count.
    fn entry(&self, entry: &Principal) -> Option<&Arc<Principal>> {
        self.catalog.principals().find(|p| p.pattern == entry.pattern)
    }

    /// Judges the parts of a bundle. If an equal question was allowed before, returns the cached verdict. If the catalog has
    /// exceptions, the cache is not used, because exceptions depend on the time. It is not used for a bundle of one part either,
    /// because the outcome of each part is cached already.
    fn judge_known(&self, who: &Who<'_>, parts: &[KnownPart<'_>]) -> Verdict {
        let plain = ContextFields::of_job(who.name, who.bundle, &[]);
        let me = self.prepared.principals.get(&who.principal.pattern);
        let Some(me) = me.filter(|_| parts.len() > 1 && self.catalog.exceptions().is_empty()) else {
            return self.judge_parts(who, parts, &plain);
        };
        let mut question = DecisionKey::new(512);
        question.add(me.id().unescaped());
        question.add_number(parts.len() as u64);
        let mut reads = JobReads::default();
        for KnownPart { action, object, resource } in parts {
            question.add(action.as_str());
            question.add(resource.name.as_str());
            question.add(&object.job().map(|job| job.to_string()).unwrap_or_default());
            let Some(slice) = self.slices.get(&(who.principal.kind, PolicyAct::Part(*action))) else {
                return self.judge_parts(who, parts, &plain);
            };
            reads = reads.and(slice.job_reads);
            slice.reads.time().add_to_key(who.bundle.now, retain_until(resource), &mut question);
        }
        plain.add_read_fields(reads, &mut question);
        let question = question.digest();
        if let Some(parts) = self.allowed.find(&question) {
            return Verdict::Allow { parts: Vec::clone(&parts) };
        }
        let verdict = self.judge_parts(who, parts, &plain);
        if let Verdict::Allow { parts } = &verdict {
            let bytes = parts.iter().map(Decided::bytes).fold(0, usize::saturating_add);
            self.allowed.keep(question, Arc::new(parts.clone()), bytes);
        }
        verdict
    }

    /// Judges each part. `plain` is the context of a part without waivers.
    fn judge_parts(&self, who: &Who<'_>, parts: &[KnownPart<'_>], plain: &ContextFields<'_>) -> Verdict {
        let (tenant, now) = (who.bundle.tenant, who.bundle.now);
        let exceptions = self.catalog.exceptions();
        let of_others = Bundle { own_checkpoint: false, ..who.bundle.clone() };
        let of_others = Who { bundle: &of_others, ..*who };
        let mut decided = Vec::with_capacity(parts.len());
        let mut gates: Vec<Gate> = Vec::new();
        let mut denied: Vec<(Action, &Resource, DenialCause)> = Vec::new();
        for KnownPart { action, object, resource } in parts {
            let waived = exceptions.waived(tenant, &resource.name, now);
            let who = if object.job().is_some() { &of_others } else { who };
            let outcome = match waived.as_slice() {
                [] if object.job().is_none() => self.part(who.principal, *action, resource, plain),
                waived => {
                    let facts = ContextFields::of_job(who.name, who.bundle, waived);
                    self.part(who.principal, *action, resource, &facts)
                }
            };
            let mut observed = None;
            let rules = match &*outcome {
                Outcome::Allow(rules) => ids(rules),
                Outcome::Wait(waiting, permits) => {
                    observed = Some("wait");
                    gates.extend(waiting.iter().filter_map(|r| r.gate.clone()));
                    ids(waiting.iter().chain(permits))
                }
                Outcome::Nothing => {
                    denied.push((*action, resource, self.why_nothing(who, *action, resource)));
                    continue;
                }
                outcome => {
                    denied.push((*action, resource, DenialCause::of(outcome, Vec::new)));
                    continue;
                }
            };
            let waived = self.asked_waivers(who.principal, *action, &waived);
            decided.push(Decided {
                action: *action,
                resource: Object::clone(object),
                rules,
                observed,
                waived,
            });
        }
        // A resource that another tenant shares does not belong to the observed tenant, so policy applies to it.
        let is_own = |on: &ResourceName| on.tenant() == *tenant;
        let can_be_observed = exceptions.observes(tenant, now)
            && decided.iter().all(|part| part.observed.is_none() || is_own(part.resource.resource()))
            && denied.iter().all(|(_, on, cause)| is_own(&on.name) && cause.can_be_observed());
        if can_be_observed {
            return observed_verdict(who, decided, &denied);
        }
        decided.iter_mut().for_each(|part| part.observed = None);
        if let Some(((action, resource, cause), others)) = denied.split_first() {
            log_errors(cause, PolicyAct::Part(*action));
            let mut rules: Vec<String> = denied.iter().flat_map(|(_, _, c)| c.rules()).collect();
            rules.sort();
            rules.dedup();
            let refusal = explain::part_denied(who, *action, resource, cause, others, self.explain);
            return Verdict::Deny { refusal, rules };
        }
        gates.sort();
        gates.dedup();
        if gates.is_empty() {
            Verdict::Allow { parts: decided }
        } else {
            Verdict::Wait { gates, parts: decided }
        }
    }

    /// Returns the waived rules that can apply to an act.
    fn asked_waivers(&self, principal: &Principal, action: Action, waived: &[&str]) -> Vec<String> {
        let Some(slice) = self.slices.get(&(principal.kind, PolicyAct::Part(action))) else {
            return Vec::new();
        };
        let speaks =
            |id: &&&str| slice.all.policies().any(|policy| AsRef::<str>::as_ref(policy.id()) == **id);
        waived.iter().filter(speaks).map(|id| (*id).to_owned()).collect()
    }

    pub(super) fn part(
        &self,
        principal: &Principal,
        action: Action,
        on: &Resource,
        facts: &ContextFields<'_>,
    ) -> Arc<Outcome> {
        let slice = self.slices.get(&(principal.kind, PolicyAct::Part(action)));
        match (slice, self.prepared.resources.get(&on.name)) {
            (Some(slice), Some(PreparedResource { uid, class })) => {
                let target = ActTarget { uid, class: Some(*class), retain_until: retain_until(on) };
                self.outcome(slice, principal, &target, facts)
            }
            _ => Arc::new(Outcome::Nothing),
        }
    }

    /// Returns the outcome for one act, cached or evaluated.
    fn outcome(
        &self,
        slice: &Slice,
        principal: &Principal,
        target: &ActTarget<'_>,
        facts: &ContextFields<'_>,
    ) -> Arc<Outcome> {
        let Some(me) = self.prepared.principals.get(&principal.pattern) else {
            return Arc::new(Outcome::Nothing);
        };
        let mut question = DecisionKey::new(256);
        question.add(slice.action.id().unescaped());
        question.add(me.id().unescaped());
        match target.class {
            Some(class) if !slice.reads.tells_resources_apart() => question.add_number(class),
            _ => question.add(target.uid.id().unescaped()),
        }
        facts.add_to_key(&slice.reads, target.retain_until, &mut question);
        let evaluate = || self.evaluate(slice, &self.prepared.entities, me, target.uid, facts);
        self.memo.answer(question.digest(), evaluate)
    }

    /// Evaluates one act.
    pub(super) fn evaluate(
        &self,
        slice: &Slice,
        entities: &Entities,
        principal: &EntityUid,
        on: &EntityUid,
        facts: &ContextFields<'_>,
    ) -> Outcome {
        let request = match self.request(slice, principal, on, facts) {
            Ok(request) => request,
            Err(e) => return Outcome::Error(vec![e]),
        };
        if let Some(joined) = &slice.joined
            && let Ok((true, permits)) = self.evaluate_policies(&request, joined, entities)
        {
            return Outcome::Allow(permits);
        }
        let (allowed, rules) = match self.evaluate_policies(&request, &slice.all, entities) {
            Ok(answer) => answer,
            Err(failed) => return Outcome::Error(failed),
        };
        if allowed {
            return Outcome::Allow(rules);
        }
        let (gates, guards): (Vec<_>, Vec<_>) = rules.into_iter().partition(|r| r.gate.is_some());
        match &slice.without_gates {
            _ if !guards.is_empty() => Outcome::Forbid(guards),
            Some(open) if !gates.is_empty() => match self.evaluate_policies(&request, open, entities) {
                // The gates count only if the request would be allowed after approval.
                Ok((true, permits)) => Outcome::Wait(gates, permits),
                Ok((false, _)) => Outcome::Nothing,
                Err(failed) => Outcome::Error(failed),
            },
            _ => Outcome::Nothing,
        }
    }

    fn request(
        &self,
        slice: &Slice,
        principal: &EntityUid,
        on: &EntityUid,
        facts: &ContextFields<'_>,
    ) -> Result<Request, String> {
        // The request is not validated against the schema here: the entities were validated at load, and a test validates the
        // context.
        let context = facts.cached_context(slice, &self.types, &self.prepared, &self.contexts)?;
        Request::new(principal.clone(), slice.action.clone(), on.clone(), context, None)
            .map_err(|e| e.to_string())
    }

    /// Returns whether the act is allowed, and the rules that decided it. `Err` if a rule could not be evaluated.
    fn evaluate_policies(
        &self,
        request: &Request,
        policies: &PolicySet,
        entities: &Entities,
    ) -> Result<(bool, Vec<Arc<Rule>>), Vec<String>> {
        let response = self.authorizer.is_authorized(request, policies, entities);
        let mut failed: Vec<String> = response.diagnostics().errors().map(ToString::to_string).collect();
        if !failed.is_empty() {
            failed.sort();
            return Err(failed);
        }
        let reasons = response.diagnostics().reason();
        let mut rules: Vec<Arc<Rule>> =
            reasons.filter_map(|id| self.by_id.get::<str>(id.as_ref()).cloned()).collect();
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((response.decision() == Answer::Allow, rules))
    }

    /// Returns the rules of a slice that permit, sorted.
    pub(super) fn permits(&self, slice: &Slice) -> Vec<Arc<Rule>> {
        let ids = slice.all.policies().map(Policy::id);
        let mut permits: Vec<Arc<Rule>> =
            ids.filter_map(|id| self.by_id.get::<str>(id.as_ref())).filter(|r| r.permits).cloned().collect();
        permits.sort_by(|a, b| a.id.cmp(&b.id));
        permits
    }

    /// Returns the kinds of principal that the schema knows for an act.
    fn kinds(&self, act: PolicyAct) -> Vec<PrincipalKind> {
        PrincipalKind::ALL.iter().copied().filter(|k| self.slices.contains_key(&(*k, act))).collect()
    }
}

/// Allows a request that policy would not allow, because the tenant is observed and the denial is one that is only recorded. Each
/// part has the verdict of policy.
fn observed_verdict(
    who: &Who<'_>,
    mut decided: Vec<Decided>,
    denied: &[(Action, &Resource, DenialCause)],
) -> Verdict {
    decided.extend(denied.iter().map(|(action, resource, cause)| Decided {
        action: *action,
        resource: resource.name.clone().into(),
        rules: cause.rules(),
        observed: Some("deny"),
        waived: Vec::new(),
    }));
    for part in decided.iter().filter(|part| part.observed.is_some()) {
        metrics::counter!("leasehold_observed_total").increment(1);
        tracing::debug!(job = who.bundle.job, tenant = %who.bundle.tenant, %part, "policy would have refused this, but the tenant is observed");
    }
    Verdict::Allow { parts: decided }
}

fn retain_until(resource: &Resource) -> Option<Wall> {
    resource.dataset()?.retain_until
}

fn ids<'r>(rules: impl IntoIterator<Item = &'r Arc<Rule>>) -> Vec<String> {
    let mut ids: Vec<String> = rules.into_iter().map(|r| r.id.clone()).collect();
    ids.sort();
    ids
}

/// Logs rules that could not be evaluated. Operators must see these faults of the policy, but requesters must not.
fn log_errors(cause: &DenialCause, act: PolicyAct) {
    if let DenialCause::Error(failed) = cause {
        tracing::error!(
            action = act.as_str(),
            errors = failed.join("; "),
            "a policy could not be evaluated, so the request was denied"
        );
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
