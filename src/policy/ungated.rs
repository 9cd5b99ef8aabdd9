//! Models that can be tuned without their gates: by reading their weights, or by another method. A gate on only one way
//! of tuning protects nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Bundle, Engine, JobRisk, Phase, RequestFacts, context::ContextFields, outcome::Outcome, slice::PolicyAct,
};
use crate::{
    catalog::{Principal, Resource},
    clock::Wall,
    limits::POLICY_GAP_QUESTIONS_MAX,
    name::{Action, Method, PrincipalKind},
};

impl Engine {
    /// Returns a line for each model that has a gate on one way of tuning, if an entry of the catalog may tune the
    /// model in another way without this gate.
    pub fn ungated(&self) -> Vec<String> {
        if self.rules().all(|rule| rule.gate.is_none()) {
            return Vec::new();
        }
        let mut left = POLICY_GAP_QUESTIONS_MAX;
        let mut holders: BTreeMap<_, &Arc<Principal>> = BTreeMap::new();
        for p in self.catalog.principals().filter(|p| p.kind == PrincipalKind::Workload && !p.disabled) {
            let alike = (&p.tenant, p.identity.as_str(), &p.roles, &p.groups, p.pattern.trust_domain());
            holders.entry(alike).or_insert(p);
        }
        let mut lines = Vec::new();
        for model in self.catalog.resources().filter(|r| r.model().is_some()) {
            let found = holders.values().filter(|p| model.visible_to(&p.tenant));
            lines.extend(found.filter_map(|p| self.way_past_gates(p, model, &mut left)).take(1));
        }
        lines
    }

    fn way_past_gates(&self, p: &Principal, model: &Resource, left: &mut usize) -> Option<String> {
        let methods = std::iter::once(None).chain(Method::ALL.iter().copied().map(Some));
        let (mut gates, mut open) = (BTreeSet::new(), Vec::new());
        for method in methods {
            match self.gates_before(p, model, Action::Finetune, method, left)? {
                GatesMet::Closed => {}
                GatesMet::Open => open.push(format!(
                    "tune it by the method `{}`",
                    method.map_or("none", |method| method.as_str())
                )),
                GatesMet::Held(ids) => gates.extend(ids),
            }
        }
        if gates.is_empty() {
            return None;
        }
        let reading = self.gates_before(p, model, Action::ReadModel, None, left)?;
        if matches!(reading, GatesMet::Open) {
            open.push("read it, which is enough to tune a copy".to_owned());
        }
        let way = open.first()?;
        let gates = gates.into_iter().collect::<Vec<_>>().join(", ");
        Some(format!(
            "{}: `{}` may {way}, without the gate of {}: {gates}. To close this way, name finetune and read_model in the gate, and no method",
            p.declared_at, p.pattern, model.name
        ))
    }

    /// Returns the gates of one act. `None` if the bound on questions is reached, or if the entry is not in this
    /// catalog.
    fn gates_before(
        &self,
        p: &Principal,
        model: &Resource,
        action: Action,
        method: Option<Method>,
        left: &mut usize,
    ) -> Option<GatesMet> {
        *left = left.checked_sub(1)?;
        let Some(slice) = self.slices.get(&(p.kind, PolicyAct::Part(action))) else {
            return Some(GatesMet::Closed);
        };
        let me = self.prepared.principals.get(&p.pattern)?;
        let on = &self.prepared.resources.get(&model.name)?.uid;
        let (name, approved) = (p.pattern.to_string(), BTreeSet::new());
        let facts = RequestFacts::assumed(&model.name);
        let risk = JobRisk::of(&self.catalog, &p.tenant, [&model.name], [p]);
        let bundle = Bundle {
            job: "",
            tenant: &p.tenant,
            attempt: 1,
            phase: Phase::Running,
            purpose: "",
            facts,
            risk: &risk,
            method,
            ttl: Duration::from_secs(60),
            now: Wall(0),
            approved: &approved,
            own_checkpoint: true,
            binding: "",
            parts: &[],
        };
        let context = ContextFields::of_job(&name, &bundle, &[]);
        Some(match self.evaluate(slice, &self.prepared.entities, me, on, &context) {
            Outcome::Allow(_) => GatesMet::Open,
            Outcome::Wait(gates, _) => GatesMet::Held(gates.iter().map(|rule| rule.id.clone()).collect()),
            Outcome::Forbid(_) | Outcome::Nothing | Outcome::Error(_) => GatesMet::Closed,
        })
    }
}

/// The gates of an act.
enum GatesMet {
    /// The act is allowed at once.
    Open,
    /// The act needs approval at these gates.
    Held(Vec<String>),
    /// The act is denied.
    Closed,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        catalog::Catalog,
        policy::{Explain, PolicySource},
    };

    fn config(part: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(part)
    }

    /// The lines for the shipped policies with one text replaced.
    fn lines(from: &str, to: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let shipped = std::fs::read_to_string(config("policy/leasehold.cedar")).unwrap();
        assert!(shipped.contains(from), "{from}");
        std::fs::write(dir.path().join("site.cedar"), shipped.replace(from, to)).unwrap();
        let catalog = Catalog::load(&config("catalog.d")).unwrap();
        let source = PolicySource::Dir(dir.path().to_owned());
        Engine::load(&source, &catalog, Explain::Requester).unwrap().ungated()
    }

    /// Control 19: no set of actions that is enough to tune goes past the gate.
    #[test]
    fn every_way_to_tune_a_shipped_model_meets_its_gate() {
        assert_eq!(lines("finetune", "finetune"), Vec::<String>::new());
    }

    #[test]
    fn a_gate_that_reading_or_a_method_goes_past_is_named() {
        let both =
            "action in [Leasehold::Action::\"finetune\", Leasehold::Action::\"read_model\"],\n  resource is";
        let found = lines(both, "action == Leasehold::Action::\"finetune\",\n  resource is");
        assert_eq!(found.len(), 2, "{found:#?}");
        let of_base = found.iter().find(|line| line.contains("base-7b")).unwrap();
        assert!(of_base.contains("read it") && of_base.contains("gate-production-finetune"), "{of_base}");
        let found = lines(
            "when { resource.tier == \"production\" }\nunless",
            "when { resource.tier == \"production\" && context.method != \"lora\" }\nunless",
        );
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains("by the method `lora`"), "{found:?}");
    }
}
