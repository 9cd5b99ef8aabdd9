//! Finds out why no rule permitted an act. Each site has other policies, so the probe cannot know them. It changes the
//! request in a few ways and asks the policies again, until a change helps.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use cedar_policy::{Entities, Entity, EntityUid};

use super::{
    Bundle, Engine, Rule,
    context::ContextFields,
    entities::principal_entity,
    explain::{DenialCause, Who},
    outcome::Outcome,
    slice::PolicyAct,
};
use crate::{
    catalog::{Principal, Resource},
    name::Action,
};

/// The highest number of roles that are tried, so that a refusal stays cheap.
const ROLES_TRIED_MAX: usize = 16;

/// The question for the policies: may this principal do this action on this resource? The principal and the entities
/// may differ from those of the request.
struct Trial<'a> {
    name: &'a str,
    principal: &'a Principal,
    entities: &'a Entities,
    action: Action,
    resource: &'a Resource,
}

impl Engine {
    /// Returns the first change that helps. It tries, in this order: another purpose, the checkpoint as one of the
    /// job's own, an additional role, and an additional role with another purpose.
    pub(super) fn why_nothing(&self, who: &Who<'_>, action: Action, resource: &Resource) -> DenialCause {
        let (name, entities) = (who.name, &self.prepared.entities);
        let now = Trial { name, principal: who.principal, entities, action, resource };
        if let Some(rule) = self.with_a_purpose(who.bundle, &now) {
            return DenialCause::Purpose { rule, role: None };
        }
        let own = Bundle { own_checkpoint: true, ..who.bundle.clone() };
        if let Some(rule) = self.would(&own, &now) {
            return DenialCause::OtherJobsCheckpoint { rule };
        }
        for role in self.roles() {
            let mut principal = who.principal.clone();
            principal.roles.insert(role.clone());
            let Some(entities) = self.few_entities(&principal, action, resource) else { continue };
            let trial = Trial { name, principal: &principal, entities: &entities, action, resource };
            if let Some(rule) = self.would(who.bundle, &trial) {
                return DenialCause::Role { rule, role };
            }
            if let Some(rule) = self.with_a_purpose(who.bundle, &trial) {
                return DenialCause::Purpose { rule, role: Some(role) };
            }
        }
        let slice = self.slices.get(&(who.principal.kind, PolicyAct::Part(action)));
        DenialCause::Nothing { permits: slice.map_or_else(Vec::new, |s| self.permits(s)) }
    }

    /// Returns the rule that would permit the act for another purpose that the dataset allows.
    fn with_a_purpose(&self, bundle: &Bundle<'_>, trial: &Trial<'_>) -> Option<Arc<Rule>> {
        let mut purposes = trial.resource.dataset()?.purposes.iter();
        purposes.find_map(|purpose| self.would(&Bundle { purpose, ..bundle.clone() }, trial))
    }

    /// Returns the rule that would permit the act with this bundle and this trial.
    fn would(&self, bundle: &Bundle<'_>, trial: &Trial<'_>) -> Option<Arc<Rule>> {
        let slice = self.slices.get(&(trial.principal.kind, PolicyAct::Part(trial.action)))?;
        let me = self.prepared.principals.get(&trial.principal.pattern)?;
        let on = &self.prepared.resources.get(&trial.resource.name)?.uid;
        let exceptions = self.catalog.exceptions();
        let waived = exceptions.waived(bundle.tenant, &trial.resource.name, bundle.now);
        let facts = ContextFields::of_job(trial.name, bundle, &waived);
        match self.evaluate(slice, trial.entities, me, on, &facts) {
            Outcome::Allow(rules) | Outcome::Wait(_, rules) => rules.into_iter().next(),
            Outcome::Forbid(_) | Outcome::Nothing | Outcome::Error(_) => None,
        }
    }

    /// Returns `trainer`, the role that the shipped policies ask for, and then the roles of the principals in the catalog.
    fn roles(&self) -> Vec<String> {
        let known: BTreeSet<&String> = self.catalog.principals().flat_map(|p| &p.roles).collect();
        let others = known.into_iter().filter(|r| *r != "trainer").cloned();
        std::iter::once("trainer".to_owned()).chain(others).take(ROLES_TRIED_MAX).collect()
    }

    /// Returns only the entities that one decision reads. The given principal replaces the catalog's entity of the same
    /// name.
    fn few_entities(&self, principal: &Principal, action: Action, resource: &Resource) -> Option<Entities> {
        let slice = self.slices.get(&(principal.kind, PolicyAct::Part(action)))?;
        let all = &self.prepared.entities;
        let uid_of = |name| self.prepared.resources.get(name).map(|resource| &resource.uid);
        let model = resource.checkpoint().and_then(|c| uid_of(&c.model));
        let named = [Some(&slice.action), uid_of(&resource.name), model];
        let mut few: HashMap<EntityUid, Entity> = HashMap::new();
        for uid in named.into_iter().flatten() {
            few.insert(uid.clone(), all.get(uid)?.clone());
            for above in all.ancestors(uid).into_iter().flatten() {
                if let Some(entity) = all.get(above) {
                    few.insert(above.clone(), entity.clone());
                }
            }
        }
        let me = principal_entity(&self.types, principal).ok()?;
        few.insert(me.uid(), me);
        Entities::from_entities(few.into_values(), None).ok()
    }
}
