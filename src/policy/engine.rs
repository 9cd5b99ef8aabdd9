//! The engine: rules sliced by who asks what, and the catalog's entities, prepared for many decisions.

use std::{collections::HashMap, sync::Arc};

use cedar_policy::{
    ActionConstraint, Authorizer, Context, Decision as Answer, Entities, EntityId, EntityTypeName, EntityUid,
    Policy, PolicySet, PrincipalConstraint, Request, RestrictedExpression as Value,
};

use super::{
    Asker, Bundle, Call, Decided, Decision, Explain, Gate, Grant, GrantParts, PolicyErrors, PolicySource,
    Rpc, Rule, Verdict,
    entities::{ALL_TENANTS, Prepared, Types, text, texts},
    explain::{self, Cause},
    fault::PolicyFault,
    rules::Rules,
};
use crate::{
    catalog::{Catalog, Principal, Resource},
    fence::{Revision, Stand},
    name::{Action, Digest, PrincipalKind, ResourceName, SpiffeId, TenantName},
    reason::{Reason, Refusal},
};

/// Decides by one set of policies over one catalog. Never changes; share it behind an `Arc`.
pub struct Engine {
    rules: Arc<Rules>,
    by_id: Arc<HashMap<String, Arc<Rule>>>,
    types: Types,
    slices: Arc<HashMap<(PrincipalKind, Act), Slice>>,
    catalog: Catalog,
    prepared: Prepared,
    explain: Explain,
    warnings: Vec<String>,
    authorizer: Authorizer,
}

/// What is done: to a resource, or by calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Act {
    Part(Action),
    Rpc(Rpc),
}

impl Act {
    pub(super) fn all() -> impl Iterator<Item = Act> {
        Action::ALL.iter().map(|a| Act::Part(*a)).chain(Rpc::ALL.iter().map(|r| Act::Rpc(*r)))
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Act::Part(action) => action.as_str(),
            Act::Rpc(rpc) => rpc.as_str(),
        }
    }
}

/// The policies that can speak of one act of one kind of principal.
struct Slice {
    action: EntityUid,
    all: PolicySet,
    /// All but the gates; `None` where there are none.
    without_gates: Option<PolicySet>,
}

/// What the rules say of one act.
#[derive(Debug)]
pub(super) enum Outcome {
    Allow(Vec<Arc<Rule>>),
    /// Gates, and what permits it once they are open.
    Wait(Vec<Arc<Rule>>, Vec<Arc<Rule>>),
    Forbid(Vec<Arc<Rule>>),
    /// Nothing permits it.
    Nothing,
    Error(Vec<String>),
}

impl Engine {
    /// Reads and validates policies, and prepares them for a catalog.
    pub fn load(from: &PolicySource, catalog: &Catalog, explain: Explain) -> Result<Self, PolicyErrors> {
        let rules = Arc::new(Rules::load(from)?);
        let types = Types::new()?;
        let slices = Arc::new(slices(&rules, &types)?);
        let by_id = rules.policies.iter().map(|(rule, _)| (rule.id.clone(), rule.clone())).collect();
        Engine::assemble(rules, Arc::new(by_id), types, slices, catalog.clone(), explain)
    }

    /// The same policies over another catalog.
    pub fn with_catalog(&self, catalog: &Catalog) -> Result<Self, PolicyErrors> {
        let (rules, by_id) = (self.rules.clone(), self.by_id.clone());
        Engine::assemble(rules, by_id, self.types.clone(), self.slices.clone(), catalog.clone(), self.explain)
    }

    fn assemble(
        rules: Arc<Rules>,
        by_id: Arc<HashMap<String, Arc<Rule>>>,
        types: Types,
        slices: Arc<HashMap<(PrincipalKind, Act), Slice>>,
        catalog: Catalog,
        explain: Explain,
    ) -> Result<Self, PolicyErrors> {
        let prepared = Prepared::new(&types, &rules.schema, &catalog)?;
        let warnings = check_literals(&rules, &types, &prepared)?;
        let authorizer = Authorizer::new();
        Ok(Engine { rules, by_id, types, slices, catalog, prepared, explain, warnings, authorizer })
    }

    /// Over the schema and the names and texts of the policy files.
    pub fn digest(&self) -> Digest {
        self.rules.digest
    }

    /// The catalog that it decides over.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The policies, in the order of their files.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.policies.iter().map(|(rule, _)| &**rule)
    }

    /// What is no mistake, but should be known: a rule about a resource that the catalog does not have.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether a call may be made at all. Says nothing of what the call will show or do beyond its tenant.
    pub fn authorize(&self, call: &Call<'_>) -> Result<(), Refusal> {
        self.authorize_by(call).map(|_| ()).map_err(|(refusal, _)| refusal)
    }

    /// As [`Engine::authorize`], with the ids of the rules that decided, for the ledger.
    pub fn authorize_by(&self, call: &Call<'_>) -> Result<Vec<String>, (Refusal, Vec<String>)> {
        let Some(principal) = self.catalog.principal(call.caller) else {
            return Err((explain::unknown(call.caller.as_str()), Vec::new()));
        };
        let act = Act::Rpc(call.rpc);
        let Some(slice) = self.slices.get(&(principal.kind, act)) else {
            return Err((explain::wrong_kind(call, principal, &self.kinds(act)), Vec::new()));
        };
        let tenant = self.tenant_uid(call.tenant);
        let outcome = match call_context(call) {
            Ok(context) => self.evaluate(slice, &self.prepared.entities, principal, tenant, context),
            Err(why) => Outcome::Error(vec![why]),
        };
        match outcome {
            Outcome::Allow(rules) => Ok(ids(&rules)),
            outcome => {
                let permits = self.permits(slice);
                let cause = Cause::of(outcome, permits);
                log_errors(&cause, act);
                Err((explain::call_denied(call, principal, &cause, self.explain), cause.rules()))
            }
        }
    }

    /// What policy says of a bundle. Opens nothing: for jobs that are being created, for sweeps, for dry runs.
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
            return deny(Refusal::new(Reason::FieldMissing, "nothing was asked for").fix("name a resource"));
        }
        let who = explain::Who { name: &name, principal, bundle };
        let mut resources = Vec::with_capacity(bundle.parts.len());
        for (action, name) in bundle.parts {
            if action.applies_to() != name.kind() {
                return deny(explain::wrong_resource(*action, name));
            }
            match self.catalog.resource(name).filter(|r| r.visible_to(&principal.tenant)) {
                Some(resource) => resources.push((*action, resource)),
                None => return deny(explain::not_found(&who, name)),
            }
        }
        if principal.kind != PrincipalKind::Workload {
            return deny(explain::holds_nothing(&who));
        }
        self.judge_parts(&who, &resources)
    }

    /// Decides a request that has taken its stand.
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

    /// The entry of this engine's own catalog by the same pattern: one of another catalog has no say here.
    fn entry(&self, entry: &Principal) -> Option<&Arc<Principal>> {
        self.catalog.principals().find(|p| p.pattern == entry.pattern)
    }

    fn judge_parts(&self, who: &explain::Who<'_>, parts: &[(Action, &Resource)]) -> Verdict {
        let context = match self.job_context(who.name, who.bundle) {
            Ok(context) => context,
            Err(why) => return self.deny(who, parts.first(), Cause::Error(vec![why])),
        };
        let mut decided = Vec::with_capacity(parts.len());
        let mut gates: Vec<Gate> = Vec::new();
        let mut denied: Vec<(Action, &Resource, Cause)> = Vec::new();
        for (action, resource) in parts {
            let outcome = self.part(who.principal, *action, &resource.name, context.clone());
            let rules = match outcome {
                Outcome::Allow(rules) => rules,
                Outcome::Wait(waiting, permits) => {
                    gates.extend(waiting.iter().filter_map(|r| r.gate.clone()));
                    waiting.into_iter().chain(permits).collect()
                }
                outcome => {
                    let permits = self
                        .slices
                        .get(&(who.principal.kind, Act::Part(*action)))
                        .map_or_else(Vec::new, |s| self.permits(s));
                    let cause = match outcome {
                        Outcome::Nothing => self.why_nothing(who, *action, resource, permits),
                        outcome => Cause::of(outcome, permits),
                    };
                    denied.push((*action, resource, cause));
                    continue;
                }
            };
            decided.push(Decided { action: *action, resource: resource.name.clone(), rules: ids(&rules) });
        }
        if let Some((action, resource, cause)) = denied.first() {
            log_errors(cause, Act::Part(*action));
            let others = denied.get(1..).unwrap_or_default();
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

    fn deny(&self, who: &explain::Who<'_>, part: Option<&(Action, &Resource)>, cause: Cause) -> Verdict {
        match part {
            Some((action, resource)) => {
                log_errors(&cause, Act::Part(*action));
                let refusal = explain::part_denied(who, *action, resource, &cause, &[], self.explain);
                Verdict::Deny { refusal, rules: cause.rules() }
            }
            None => Verdict::Deny { refusal: explain::unknown(who.name), rules: Vec::new() },
        }
    }

    fn part(
        &self,
        principal: &Principal,
        action: Action,
        resource: &ResourceName,
        context: Context,
    ) -> Outcome {
        let slice = self.slices.get(&(principal.kind, Act::Part(action)));
        match (slice, self.prepared.resources.get(resource)) {
            (Some(slice), Some(uid)) => {
                self.evaluate(slice, &self.prepared.entities, principal, uid.clone(), context)
            }
            _ => Outcome::Nothing,
        }
    }

    /// Which one change would have let it pass: tried out, since policies are the site's own.
    fn why_nothing(
        &self,
        who: &explain::Who<'_>,
        action: Action,
        resource: &Resource,
        permits: Vec<Arc<Rule>>,
    ) -> Cause {
        let purposes: Vec<&String> =
            resource.dataset().map_or_else(Vec::new, |d| d.purposes.iter().collect());
        let purpose_helps = |principal: &Principal, entities: &Entities| {
            purposes.iter().find_map(|p| {
                let bundle = Bundle { purpose: p, ..who.bundle.clone() };
                self.would(who.name, &bundle, principal, entities, action, resource)
            })
        };
        if let Some(rule) = purpose_helps(who.principal, &self.prepared.entities) {
            return Cause::Purpose { rule, role: None };
        }
        if !who.bundle.own_checkpoint {
            let bundle = Bundle { own_checkpoint: true, ..who.bundle.clone() };
            let all = &self.prepared.entities;
            if let Some(rule) = self.would(who.name, &bundle, who.principal, all, action, resource) {
                return Cause::OtherJobsCheckpoint { rule };
            }
        }
        for role in self.roles_of_the_catalog() {
            let mut other = who.principal.clone();
            other.roles.insert(role.clone());
            let Some(entities) = self.few_entities(&other, action, resource) else { continue };
            if let Some(rule) = self.would(who.name, who.bundle, &other, &entities, action, resource) {
                return Cause::Role { rule, role };
            }
            if let Some(rule) = purpose_helps(&other, &entities) {
                return Cause::Purpose { rule, role: Some(role) };
            }
        }
        Cause::Nothing { permits }
    }

    /// The rule that would permit it, were things so.
    fn would(
        &self,
        name: &str,
        bundle: &Bundle<'_>,
        principal: &Principal,
        entities: &Entities,
        action: Action,
        resource: &Resource,
    ) -> Option<Arc<Rule>> {
        let slice = self.slices.get(&(principal.kind, Act::Part(action)))?;
        let uid = self.prepared.resources.get(&resource.name)?.clone();
        let context = self.job_context(name, bundle).ok()?;
        match self.evaluate(slice, entities, principal, uid, context) {
            Outcome::Allow(rules) | Outcome::Wait(_, rules) => rules.into_iter().next(),
            Outcome::Forbid(_) | Outcome::Nothing | Outcome::Error(_) => None,
        }
    }

    /// Roles that principals of the catalog have, and the one that the shipped policies know.
    fn roles_of_the_catalog(&self) -> Vec<String> {
        /// Roles that are tried at most: a refusal must stay cheap.
        const TRIED_MAX: usize = 16;
        let mut roles: Vec<String> =
            self.catalog.principals().flat_map(|p| p.roles.iter().cloned()).collect();
        roles.sort();
        roles.dedup();
        roles.retain(|r| r != "trainer");
        roles.insert(0, "trainer".to_owned());
        roles.truncate(TRIED_MAX);
        roles
    }

    /// Only what one decision looks at, with another principal in the place of its entry.
    fn few_entities(&self, principal: &Principal, action: Action, resource: &Resource) -> Option<Entities> {
        let slice = self.slices.get(&(principal.kind, Act::Part(action)))?;
        let all = &self.prepared.entities;
        let model = resource.checkpoint().and_then(|c| self.prepared.resources.get(&c.model));
        let named = [Some(&slice.action), self.prepared.resources.get(&resource.name), model];
        let mut few: HashMap<EntityUid, cedar_policy::Entity> = HashMap::new();
        for uid in named.into_iter().flatten() {
            few.insert(uid.clone(), all.get(uid)?.clone());
            for above in all.ancestors(uid).into_iter().flatten() {
                if let Some(entity) = all.get(above) {
                    few.insert(above.clone(), entity.clone());
                }
            }
        }
        let me = super::entities::principal_entity(&self.types, principal).ok()?;
        few.insert(me.uid(), me);
        Entities::from_entities(few.into_values(), None).ok()
    }

    fn evaluate(
        &self,
        slice: &Slice,
        entities: &Entities,
        principal: &Principal,
        resource: EntityUid,
        context: Context,
    ) -> Outcome {
        let Some(me) = self.prepared.principals.get(&principal.pattern) else { return Outcome::Nothing };
        // Not checked against the schema again: entities were, and the context is made here alone. A test holds both to it.
        let request = match Request::new(me.clone(), slice.action.clone(), resource, context, None) {
            Ok(request) => request,
            Err(e) => return Outcome::Error(vec![e.to_string()]),
        };
        let (allowed, rules) = match self.ask(&request, &slice.all, entities) {
            Ok(answer) => answer,
            Err(failed) => return Outcome::Error(failed),
        };
        if allowed {
            return Outcome::Allow(rules);
        }
        let (gates, guards): (Vec<_>, Vec<_>) = rules.into_iter().partition(|r| r.gate.is_some());
        match &slice.without_gates {
            _ if !guards.is_empty() => Outcome::Forbid(guards),
            Some(open) if !gates.is_empty() => match self.ask(&request, open, entities) {
                // People are asked only for what could pass once they agree.
                Ok((true, permits)) => Outcome::Wait(gates, permits),
                Ok((false, _)) => Outcome::Nothing,
                Err(failed) => Outcome::Error(failed),
            },
            _ => Outcome::Nothing,
        }
    }

    /// Whether it is allowed, and by which rules. `Err` where any rule could not be evaluated.
    fn ask(
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

    fn permits(&self, slice: &Slice) -> Vec<Arc<Rule>> {
        let ids = slice.all.policies().map(|p| p.id());
        let mut permits: Vec<Arc<Rule>> =
            ids.filter_map(|id| self.by_id.get::<str>(id.as_ref())).filter(|r| r.permits).cloned().collect();
        permits.sort_by(|a, b| a.id.cmp(&b.id));
        permits
    }

    /// The kinds of principal that the schema knows for an act.
    fn kinds(&self, act: Act) -> Vec<PrincipalKind> {
        PrincipalKind::ALL.iter().copied().filter(|k| self.slices.contains_key(&(*k, act))).collect()
    }

    fn tenant_uid(&self, tenant: Option<&TenantName>) -> EntityUid {
        match tenant {
            None => self.prepared.all_tenants.clone(),
            Some(t) => match self.prepared.tenants.get(t) {
                Some(uid) => uid.clone(),
                // A tenant that has left the catalog still has jobs to end.
                None => self.types.tenant_uid(t.as_str()),
            },
        }
    }

    fn job_context(&self, name: &str, b: &Bundle<'_>) -> Result<Context, String> {
        let long = |n: u64| Value::new_long(i64::try_from(n).unwrap_or(i64::MAX));
        // A fraction of a second is a second: a limit is not passed under by rounding.
        let ttl = b.ttl.as_secs().saturating_add(u64::from(b.ttl.subsec_nanos() > 0));
        Context::from_pairs(
            [
                ("spiffe_id", text(name)),
                ("job", text(b.job)),
                ("tenant", Value::new_entity_uid(self.tenant_uid(Some(b.tenant)))),
                ("attempt", long(b.attempt)),
                ("phase", text(b.phase.as_str())),
                ("purpose", text(b.purpose)),
                ("method", text(b.method.map_or("none", |m| m.as_str()))),
                ("ttl_seconds", long(ttl)),
                ("now", Value::new_datetime(b.now.to_string())),
                ("approved", texts(b.approved.iter().map(String::as_str))),
                ("own_checkpoint", Value::new_bool(b.own_checkpoint)),
            ]
            .map(|(k, v)| (k.to_owned(), v)),
        )
        .map_err(|e| e.to_string())
    }
}

fn call_context(call: &Call<'_>) -> Result<Context, String> {
    Context::from_pairs(
        [
            ("spiffe_id", text(call.caller.as_str())),
            ("now", Value::new_datetime(call.now.to_string())),
            ("relation", texts(call.relations.iter().map(|r| r.as_str()))),
            ("reason", text(call.reason)),
        ]
        .map(|(k, v)| (k.to_owned(), v)),
    )
    .map_err(|e| e.to_string())
}

fn ids(rules: &[Arc<Rule>]) -> Vec<String> {
    let mut ids: Vec<String> = rules.iter().map(|r| r.id.clone()).collect();
    ids.sort();
    ids
}

/// A rule that could not be evaluated is a fault of the policy: operators must hear of it, requesters must not.
fn log_errors(cause: &Cause, act: Act) {
    if let Cause::Error(failed) = cause {
        tracing::error!(action = act.as_str(), errors = ?failed, "a policy could not be evaluated, which denies");
    }
}

fn action_uid(types: &Types, act: Act) -> EntityUid {
    EntityUid::from_type_name_and_id(types.action.clone(), EntityId::new(act.as_str()))
}

/// Sorts the policies by the kinds of principal and the acts that their scopes can match.
fn slices(rules: &Rules, types: &Types) -> Result<HashMap<(PrincipalKind, Act), Slice>, PolicyErrors> {
    let bad = |e: String| PolicyErrors::one("leasehold.cedarschema", e);
    let actions = rules.schema.action_entities().map_err(|e| bad(e.to_string()))?;
    let mut out = HashMap::new();
    let mut faults = Vec::new();
    for act in Act::all() {
        let uid = action_uid(types, act);
        let kinds = rules
            .schema
            .principals_for_action(&uid)
            .ok_or_else(|| bad(format!("it has no action `{}`", act.as_str())))?;
        for kind in kinds.filter_map(|t| types.kind_of(t)) {
            let Some(type_name) = types.principal(kind) else { continue };
            let (mut all, mut open, mut gated) = (Vec::new(), Vec::new(), false);
            for (rule, policy) in &rules.policies {
                if !speaks_of_action(policy, &uid, &actions) || !speaks_of_principal(policy, type_name) {
                    continue;
                }
                if rule.gate.is_some() && matches!(act, Act::Rpc(_)) {
                    let what = "a gate holds back what jobs do, not calls; name actions of tune_part";
                    faults.push(fault_of(rules, rule, what.to_owned()));
                }
                all.push(policy.clone());
                match rule.gate {
                    Some(_) => gated = true,
                    None => open.push(policy.clone()),
                }
            }
            let set =
                |policies: Vec<Policy>| PolicySet::from_policies(policies).map_err(|e| bad(e.to_string()));
            let without_gates = if gated { Some(set(open)?) } else { None };
            out.insert((kind, act), Slice { action: uid.clone(), all: set(all)?, without_gates });
        }
    }
    PolicyErrors::of(faults).map_or(Ok(out), Err)
}

fn speaks_of_action(policy: &Policy, action: &EntityUid, actions: &Entities) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(a) => a == *action,
        ActionConstraint::In(list) => list.iter().any(|a| a == action || actions.is_ancestor_of(a, action)),
    }
}

fn speaks_of_principal(policy: &Policy, kind: &EntityTypeName) -> bool {
    match policy.principal_constraint() {
        PrincipalConstraint::Any | PrincipalConstraint::In(_) => true,
        PrincipalConstraint::Eq(uid) => uid.type_name() == kind,
        PrincipalConstraint::Is(t) | PrincipalConstraint::IsIn(t, _) => t == *kind,
    }
}

fn fault_of(rules: &Rules, rule: &Rule, what: String) -> PolicyFault {
    let (file, line) = rules.places.get(&rule.id).cloned().unwrap_or_default();
    PolicyFault { file, line, policy: Some(rule.id.clone()), what }
}

/// A rule about something that no request can name would be a rule that is not there.
fn check_literals(rules: &Rules, types: &Types, prepared: &Prepared) -> Result<Vec<String>, PolicyErrors> {
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    for (rule, policy) in &rules.policies {
        for uid in policy.entity_literals() {
            let id = uid.id().unescaped();
            if types.kind_of(uid.type_name()).is_some() {
                if !prepared.principals.values().any(|known| *known == uid) {
                    faults.push(fault_of(rules, rule, format!(
                        "no entry of the catalog is {uid}; name one by its `match` and kind, or write context.spiffe_id == \"spiffe://…\""
                    )));
                }
            } else if let Some(kind) = types.resource_kind_of(uid.type_name()) {
                match id.parse::<ResourceName>() {
                    Ok(name) if name.kind() == kind => {
                        if !prepared.resources.contains_key(&name) {
                            warnings.push(format!("{}: policy `{}` is about {name}, which the catalog does not have", rule.place, rule.id));
                        }
                    }
                    _ => faults.push(fault_of(rules, rule, format!("{uid} is not a name of its kind; write it in full, as in Leasehold::Dataset::\"dataset:acme/tickets@v3\""))),
                }
            } else if *uid.type_name() == types.tenant
                && id != ALL_TENANTS
                && id.parse::<TenantName>().is_err()
            {
                faults.push(fault_of(
                    rules,
                    rule,
                    format!("{uid} is not a tenant; name one, or \"{ALL_TENANTS}\""),
                ));
            }
        }
    }
    PolicyErrors::of(faults).map_or(Ok(warnings), Err)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
