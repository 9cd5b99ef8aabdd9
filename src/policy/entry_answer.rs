//! Answers what the callers of one `[[principal]]` entry of the catalog may do. The answers have no reasons, because
//! reasons take longer to find.

use super::{Bundle, Call, CallVerdict, Engine, context::ContextFields, outcome::Outcome};
use crate::{
    catalog::Principal,
    name::{Action, PrincipalKind, ResourceName},
};

/// The answer for an entry that may act, at once or after approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryAnswer {
    /// Ids of the gates that need approval. Empty if there are none.
    pub gates: Vec<String>,
    /// Ids of the rules that permit the act.
    pub rules: Vec<String>,
}

impl Engine {
    /// Returns the answer for one act of a job. `None` if the entry may not do the act. The parts of `bundle` are not
    /// used: the question is only about the act.
    pub fn entry_may_do(
        &self,
        entry: &Principal,
        action: Action,
        on: &ResourceName,
        bundle: &Bundle<'_>,
    ) -> Option<EntryAnswer> {
        if entry.kind != PrincipalKind::Workload || action.applies_to() != on.kind() {
            return None;
        }
        let resource = self.catalog().resource(on).filter(|r| r.visible_to(&entry.tenant))?;
        let name = entry.pattern.to_string();
        let waived = self.catalog().exceptions().waived(bundle.tenant, on, bundle.now);
        let facts = ContextFields::of_job(&name, bundle, &waived);
        answer(&self.part(entry, action, resource, &facts))
    }

    /// Returns the answer for a call. `None` if the entry may not make the call. The call names an identity that the
    /// entry matches.
    pub fn entry_may_call(&self, entry: &Principal, call: &Call<'_>) -> Option<EntryAnswer> {
        let found = self.catalog().principal(call.caller)?;
        // If an earlier entry matches the identity too, the identity belongs to that entry.
        if found.pattern != entry.pattern {
            return None;
        }
        match self.judge_change(call, &[]) {
            CallVerdict::Allow(rules) => Some(EntryAnswer { gates: Vec::new(), rules }),
            CallVerdict::Wait { gates, rules } => {
                let gates: Vec<String> = gates.into_iter().map(|gate| gate.id).collect();
                let rules = rules.into_iter().filter(|rule| !gates.contains(rule)).collect();
                Some(EntryAnswer { gates, rules })
            }
            CallVerdict::Deny { .. } => None,
        }
    }

    /// Whether a rule distinguishes the identities that an entry matches. If so, the answer for the entry can be wrong
    /// for some identities.
    pub fn decides_by_identity(&self) -> bool {
        self.slices.values().any(|slice| slice.reads.of("spiffe_id"))
    }
}

fn answer(outcome: &Outcome) -> Option<EntryAnswer> {
    let ids = |rules: &[std::sync::Arc<super::Rule>]| rules.iter().map(|r| r.id.clone()).collect();
    match outcome {
        Outcome::Allow(rules) => Some(EntryAnswer { gates: Vec::new(), rules: ids(rules) }),
        Outcome::Wait(gates, permits) => Some(EntryAnswer { gates: ids(gates), rules: ids(permits) }),
        Outcome::Forbid(_) | Outcome::Nothing | Outcome::Error(_) => None,
    }
}
