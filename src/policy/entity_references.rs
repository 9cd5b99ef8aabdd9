//! Checks the entities that rules name: a rule about an entity that cannot occur in a request has no effect.

use std::collections::HashSet;

use cedar_policy::EntityUid;

use super::{
    PolicyErrors,
    entities::{ALL_TENANTS, CatalogEntities, Types},
    rules::RuleSet,
};
use crate::{
    name::{ResourceName, TenantName},
    written::nearest,
};

/// Returns a warning for each rule about a principal or resource that is not in the catalog. Such a rule has no effect,
/// but it is not an error: a tenant that removes an entry must not prevent the load of the policy. Fails if a rule
/// names a malformed tenant or resource.
pub(super) fn check(
    rules: &RuleSet,
    types: &Types,
    prepared: &CatalogEntities,
) -> Result<Vec<String>, PolicyErrors> {
    let principals: HashSet<&EntityUid> = prepared.principals.values().collect();
    let patterns: Vec<String> = prepared.principals.keys().map(ToString::to_string).collect();
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    for (rule, policy) in &rules.policies {
        for uid in policy.entity_literals() {
            let (id, kind) = (uid.id().unescaped(), uid.type_name());
            if types.kind_of(kind).is_some() && !principals.contains(&uid) {
                let near = nearest(id, patterns.iter().map(String::as_str).filter(|known| *known != id));
                let near = near.map(|near| format!("did you mean {near}? else ")).unwrap_or_default();
                warnings.push(format!(
                    "{}: policy `{}` names {uid}, so that part of it has no effect: the catalog has no such entry; {near}{PRINCIPAL}",
                    rule.place, rule.id
                ));
            }
            if *kind == types.tenant && id != ALL_TENANTS && id.parse::<TenantName>().is_err() {
                faults.push(
                    rules.fault(rule, format!("{uid} is not a tenant; name one, or \"{ALL_TENANTS}\"")),
                );
            }
            let Some(kind) = types.resource_kind_of(kind) else { continue };
            match id.parse::<ResourceName>() {
                Ok(name) if name.kind() != kind => {
                    faults.push(rules.fault(rule, format!("the id in {uid} is of another kind; {RESOURCE}")));
                }
                Err(_) => faults.push(rules.fault(rule, format!("{uid} is not a name; {RESOURCE}"))),
                Ok(name) if !prepared.resources.contains_key(&name) => warnings.push(format!(
                    "{}: policy `{}` is about {name}, which the catalog does not have",
                    rule.place, rule.id
                )),
                Ok(_) => {}
            }
        }
    }
    PolicyErrors::of(faults).map_or(Ok(warnings), Err)
}

const PRINCIPAL: &str =
    "name one by its `match` and kind, or write context.spiffe_id == \"spiffe://…\" in a condition";
const RESOURCE: &str = "write it in full, for example Leasehold::Dataset::\"dataset:acme/tickets@v3\"";
