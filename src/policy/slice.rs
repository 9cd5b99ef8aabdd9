//! Slices of the policies: the policies that can apply to one act of one kind of principal.

use std::collections::{BTreeSet, HashMap};

use cedar_policy::{
    ActionConstraint, Effect, Entities, EntityId, EntityTypeName, EntityUid, Policy, PolicyId, PolicySet,
    PrincipalConstraint, ResourceConstraint,
};
use serde_json::{Value as Json, json};

use super::{
    PolicyErrors, Rpc, Rule, context::JobReads, entities::Types, rules::RuleSet, time_reads::TimeReads,
};
use crate::{
    limits,
    name::{Action, PrincipalKind},
};

/// An action on a resource, or a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PolicyAct {
    Part(Action),
    Rpc(Rpc),
}

impl PolicyAct {
    pub(super) fn all() -> impl Iterator<Item = PolicyAct> {
        Action::ALL.iter().map(|a| PolicyAct::Part(*a)).chain(Rpc::ALL.iter().map(|r| PolicyAct::Rpc(*r)))
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            PolicyAct::Part(action) => action.as_str(),
            PolicyAct::Rpc(rpc) => rpc.as_str(),
        }
    }

    pub(super) fn uid(self, types: &Types) -> EntityUid {
        EntityUid::from_type_name_and_id(types.action.clone(), EntityId::new(self.as_str()))
    }
}

/// The policies that can apply to one act of one kind of principal.
pub(super) struct Slice {
    /// Unique among the slices of an engine.
    pub(super) number: u64,
    pub(super) action: EntityUid,
    pub(super) all: PolicySet,
    /// The policies with the forbids joined. The set allows what `all` allows, by the same permits, in less time. If it does not
    /// allow an act, `all` decides, because only `all` has the names of the forbids. `None` if there is nothing to join.
    pub(super) joined: Option<PolicySet>,
    /// All policies except the gates. `None` if there is no gate.
    pub(super) without_gates: Option<PolicySet>,
    pub(super) reads: Reads,
    /// The fields of `JobContext` that these policies read.
    pub(super) job_reads: JobReads,
}

/// The slices, by kind of principal and act. An act that the schema does not know for a kind has no slice.
pub(super) type Slices = HashMap<(PrincipalKind, PolicyAct), Slice>;

/// Groups the policies by the kinds of principal and the acts that the head of each policy (its Cedar scope) can match.
pub(super) fn build_slices(rules: &RuleSet, types: &Types) -> Result<Slices, PolicyErrors> {
    let actions = rules.schema.action_entities().map_err(schema_fault)?;
    let mut out = Slices::new();
    let mut faults = Vec::new();
    for act in PolicyAct::all() {
        let action = act.uid(types);
        let kinds = rules
            .schema
            .principals_for_action(&action)
            .ok_or_else(|| schema_fault(format!("it has no action `{}`", act.as_str())))?;
        for kind in kinds.filter_map(|t| types.kind_of(t)) {
            let Some(type_name) = types.principal(kind) else { continue };
            let speaking: Vec<(&Rule, &Policy)> = rules
                .policies
                .iter()
                .filter(|(_, p)| speaks_of_action(p, &action, &actions) && speaks_of_principal(p, type_name))
                .map(|(rule, policy)| (&**rule, policy))
                .collect();
            for (rule, _) in speaking
                .iter()
                .filter(|(r, _)| r.gate.is_some() && matches!(act, PolicyAct::Rpc(rpc) if !rpc.is_change()))
            {
                let what = "a gate can hold back only actions of jobs and changes of the rules: \
                            name actions of tune_part, or ApplyPolicy, or ReloadCatalog";
                faults.push(rules.fault(rule, what));
            }
            let on: Vec<&EntityTypeName> =
                rules.schema.resources_for_action(&action).into_iter().flatten().collect();
            let only_type = <[_; 1]>::try_from(on).ok().map(|[only]| only);
            let number = out.len() as u64;
            out.insert((kind, act), slice(number, action.clone(), &speaking, only_type)?);
        }
    }
    PolicyErrors::of(faults).map_or(Ok(out), Err)
}

/// Makes the slice of an act. `only_type` is the type of all resources of the act, if they have one type.
fn slice(
    number: u64,
    action: EntityUid,
    speaking: &[(&Rule, &Policy)],
    only_type: Option<&EntityTypeName>,
) -> Result<Slice, PolicyErrors> {
    let prepared: Vec<(bool, Policy)> =
        speaking.iter().map(|(rule, policy)| (rule.gate.is_some(), prepare(policy, only_type))).collect();
    let set = |policies: &mut dyn Iterator<Item = &(bool, Policy)>| {
        PolicySet::from_policies(policies.map(|(_, policy)| policy.clone())).map_err(schema_fault)
    };
    let gated = speaking.iter().any(|(r, _)| r.gate.is_some());
    let mut reads = Reads::default();
    for (_, policy) in speaking {
        reads.add_policy(policy);
    }
    Ok(Slice {
        number,
        action,
        all: set(&mut prepared.iter())?,
        joined: join_forbids(prepared.iter().map(|(_, policy)| policy)),
        without_gates: if gated {
            Some(set(&mut prepared.iter().filter(|(is_gate, _)| !is_gate))?)
        } else {
            None
        },
        job_reads: JobReads::of(&reads),
        reads,
    })
}

/// Returns the policy without the parts of its head that every request of its slice meets. Cedar would build an expression of the
/// head at each evaluation. A policy from JSON has no source locations, which Cedar would copy for each expression.
fn prepare(policy: &Policy, only_type: Option<&EntityTypeName>) -> Policy {
    let prepared = || {
        let mut json = policy.to_json().ok()?;
        let head = json.as_object_mut()?;
        head.insert("action".to_owned(), json!({ "op": "All" }));
        if matches!(policy.principal_constraint(), PrincipalConstraint::Is(_)) {
            head.insert("principal".to_owned(), json!({ "op": "All" }));
        }
        if matches!(policy.resource_constraint(), ResourceConstraint::Is(t) if Some(&t) == only_type) {
            head.insert("resource".to_owned(), json!({ "op": "All" }));
        }
        Policy::from_json(Some(policy.id().clone()), json).ok()
    };
    prepared().unwrap_or_else(|| policy.clone())
}

/// Joins the forbids without a head: one forbid with `||` between their conditions. If one of the conditions holds or cannot be
/// evaluated, the joined forbid holds or cannot be evaluated: in both cases it does not allow.
fn join_forbids<'p>(policies: impl Iterator<Item = &'p Policy>) -> Option<PolicySet> {
    let (mut set, mut conditions) = (Vec::new(), Vec::new());
    for policy in policies {
        match forbid_condition(policy) {
            Some(condition) => conditions.push(condition),
            None => set.push(policy.clone()),
        }
    }
    if conditions.len() < 2 {
        return None;
    }
    for (at, some) in conditions.chunks(limits::FORBIDS_JOINED_MAX).enumerate() {
        let any =
            some.iter().cloned().reduce(|left, right| json!({ "||": { "left": left, "right": right } }))?;
        let head = json!({ "op": "All" });
        let json = json!({
            "effect": "forbid", "principal": head, "action": head, "resource": head,
            "conditions": [{ "kind": "when", "body": any }],
        });
        // The id of a rule has no spaces, so no rule has this id.
        set.push(Policy::from_json(Some(PolicyId::new(format!("joined forbids {at}"))), json).ok()?);
    }
    PolicySet::from_policies(set).ok()
}

/// Returns the condition of a forbid without a head, in Cedar's JSON form. `None` for other policies.
fn forbid_condition(policy: &Policy) -> Option<Json> {
    let is_bare = policy.effect() == Effect::Forbid
        && matches!(policy.principal_constraint(), PrincipalConstraint::Any)
        && matches!(policy.action_constraint(), ActionConstraint::Any)
        && matches!(policy.resource_constraint(), ResourceConstraint::Any);
    if !is_bare {
        return None;
    }
    let json = policy.to_json().ok()?;
    let mut all: Option<Json> = None;
    for clause in json.get("conditions")?.as_array()? {
        let body = clause.get("body")?.clone();
        let holds = match clause.get("kind")?.as_str()? {
            "when" => body,
            "unless" => json!({ "!": { "arg": body } }),
            _ => return None,
        };
        all = Some(match all {
            None => holds,
            Some(left) => json!({ "&&": { "left": left, "right": holds } }),
        });
    }
    Some(all.unwrap_or_else(|| json!({ "Value": true })))
}

fn schema_fault(e: impl ToString) -> PolicyErrors {
    PolicyErrors::one("leasehold.cedarschema", e.to_string())
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

/// The fields of the context that the policies of a slice read. No other field can change their answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    fields: BTreeSet<String>,
    /// Set if a policy uses the context in a way that hides which fields it reads.
    everything: bool,
    /// Set if a policy uses more of the resource than its attributes and its type. Such a policy can distinguish resources of one
    /// class.
    resource: bool,
    time: TimeReads,
}

impl Reads {
    /// Whether the policies of the slice can read this field.
    pub(super) fn of(&self, field: &str) -> bool {
        self.everything || self.fields.contains(field)
    }

    /// Returns how the policies of the slice use the time.
    pub(super) fn time(&self) -> &TimeReads {
        &self.time
    }

    /// Whether the policies of the slice can distinguish resources of one class.
    pub(super) fn tells_resources_apart(&self) -> bool {
        self.resource
    }

    #[cfg(test)]
    pub(super) fn everything() -> Self {
        Reads { fields: BTreeSet::new(), everything: true, resource: true, time: TimeReads::any() }
    }

    fn add_policy(&mut self, policy: &Policy) {
        if !matches!(policy.resource_constraint(), ResourceConstraint::Any | ResourceConstraint::Is(_)) {
            self.resource = true;
        }
        match policy.to_json() {
            Ok(json) => self.add_json(&json),
            Err(_) => self.add_everything(),
        }
    }

    fn add_everything(&mut self) {
        self.everything = true;
        self.resource = true;
        self.time.add_other_use();
    }

    /// Walks Cedar's JSON form, in which `context.x` is `{".": {"left": {"Var": "context"}, "attr": "x"}}` and
    /// `context has x` is written under `has` in the same form.
    fn add_json(&mut self, json: &Json) {
        match json {
            Json::Object(map) => {
                let is_var = |v: &Json, name: &str| v.get("Var").and_then(Json::as_str) == Some(name);
                for (key, value) in map {
                    let attribute = value.get("attr").and_then(Json::as_str);
                    match (key.as_str(), value.get("left"), attribute) {
                        ("." | "has", Some(left), Some(field)) if is_var(left, "context") => {
                            self.fields.insert(field.to_owned());
                            if field == "now" {
                                self.time.add_other_use();
                            }
                        }
                        ("." | "has", Some(left), Some(_)) if is_var(left, "resource") => {}
                        ("is", Some(left), _) if is_var(left, "resource") && value.get("in").is_none() => {}
                        ("Var", _, _) if value.as_str() == Some("resource") => self.resource = true,
                        ("Var", _, _) if value.as_str() == Some("context") => self.add_everything(),
                        (operator, ..) if self.time.add_comparison(operator, value) => {
                            self.fields.insert("now".to_owned());
                        }
                        _ => self.add_json(value),
                    }
                }
            }
            Json::Array(items) => items.iter().for_each(|i| self.add_json(i)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(condition: &str) -> Reads {
        let text = format!("permit (principal, action, resource) when {{ {condition} }};");
        let mut reads = Reads::default();
        reads.add_policy(&Policy::parse(None, text).unwrap());
        reads
    }

    #[test]
    fn the_context_fields_of_a_policy_are_found_or_all_assumed() {
        let some = reads("context.a == 1 && (context has b || principal.c.contains(context[\"d\"].e))");
        assert!(!some.everything, "{some:?}");
        assert_eq!(some.fields.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "d"]);
        assert!(!some.of("now") && some.of("d"));
        assert!(!some.time.needs_seconds());
        assert_eq!(reads("principal.context == \"context\""), Reads::default());
        for whole in
            ["context == resource.x", "[context].contains(context)", "(if true then context else context).a"]
        {
            let reads = reads(whole);
            assert!(reads.of("now") && reads.time.needs_seconds(), "{whole}");
        }
    }

    // Only a rule that looks at the resource itself can tell apart two resources with equal attributes.
    #[test]
    fn a_rule_tells_resources_apart_only_by_the_resource() {
        let by = |condition: &str| reads(condition).tells_resources_apart();
        let of_class = "resource.a.b == \"resource\" && resource has c && resource is Leasehold::Dataset";
        assert!(!by(of_class), "{of_class}");
        for one in [
            "resource == principal.x",
            "principal.x.contains(resource)",
            "resource in principal.x",
            "resource is Leasehold::Dataset in principal.x",
            "resource.hasTag(\"a\")",
            "(if true then resource else resource).a == 1",
            "{ a: resource }.a == principal.x",
        ] {
            assert!(by(one), "{one}");
        }
        let mut head = Reads::default();
        let text = "permit (principal, action, resource in Leasehold::Tenant::\"acme\");";
        head.add_policy(&Policy::parse(None, text).unwrap());
        assert!(head.tells_resources_apart());
    }

    // A comparison with fixed moments changes only when one of them passes. Any other use may change each second.
    #[test]
    fn the_time_counts_as_moments_only_in_comparisons() {
        let key = |reads: &Reads, now: &str, until: Option<&str>| {
            let at = |text| crate::clock::Wall::parse(text).unwrap();
            let mut key = crate::policy::decision_cache::DecisionKey::new(0);
            reads.time.add_to_key(at(now), until.map(at), &mut key);
            key
        };
        let (before, day, after) = ("2027-01-30T23:59:59Z", "2027-01-31T00:00:00Z", "2027-01-31T00:00:01.5Z");
        let much_later = "2027-02-01T00:00:00Z";
        for fixed in [
            "context.now >= datetime(\"2027-01-31\")",
            "datetime(\"2027-01-31T00:00:00.000Z\") == context.now",
            "resource has retain_until && context.now < resource.retain_until",
        ] {
            let reads = reads(fixed);
            assert!(reads.of("now") && !reads.time.needs_seconds(), "{fixed}");
            let keys = [before, day, after].map(|now| key(&reads, now, Some(day)));
            assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2], "{fixed}");
            assert!(key(&reads, much_later, Some(day)) == keys[2], "{fixed}");
        }
        for other in [
            "context.now.offset(duration(\"1h\")) > datetime(\"2027-01-31\")",
            "context.now > principal.hired",
            "context.now.toDate() == datetime(\"2027-01-31\")",
            "context.now > datetime(\"2027-01-31\").offset(duration(\"1h\"))",
            "[context.now].contains(datetime(\"2027-01-31\"))",
            "context.now > context.now",
            "context.now > datetime(\"2027-01-31T00:00:00+0100\")",
        ] {
            let reads = reads(other);
            assert!(reads.of("now") && reads.time.needs_seconds(), "{other}");
            assert!(key(&reads, after, None) != key(&reads, much_later, None), "{other}");
        }
    }
}
