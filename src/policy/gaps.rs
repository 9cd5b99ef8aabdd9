//! Entries of a catalog without effect: roles and groups that no rule mentions, and entries to which no rule permits an
//! act. [`Engine::gaps`] also reports other probable mistakes in the policies.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value as Json;

use super::{
    Bundle, Call, Engine, JobRisk, Phase, Relation, RequestFacts, Rpc,
    context::ContextFields,
    entities::PreparedResource,
    outcome::Outcome,
    slice::{PolicyAct, Slice},
};
use crate::{
    catalog::{Principal, Resource, Waiver},
    clock::Wall,
    limits::POLICY_GAP_QUESTIONS_MAX,
    name::{Action, Method, PrincipalKind, SpiffeId},
    written::nearest,
};

/// The number of questions that may still be asked. Also whether there was a question that no rule permitted and no rule
/// denied.
struct GapSearch {
    left: usize,
    has_silence: bool,
}

impl Engine {
    /// Returns a line for each entry of the catalog that has no effect under these policies, and for each rule that is probably
    /// a mistake. Such an entry or rule can be intended.
    pub fn gaps(&self) -> Vec<String> {
        let mentioned = self.mentioned();
        if self.rules().next().is_none() {
            return vec![
                "there is no policy, so everything is denied: write .cedar files, or begin with `leasehold policy show`"
                    .to_owned(),
            ];
        }
        let mut lines = self.empty_bindings();
        for principal in self.catalog.principals().filter(|p| !p.disabled) {
            lines.extend(unmentioned(principal, &mentioned));
        }
        lines.extend(self.idle(&mentioned));
        lines.extend(self.ungated());
        lines.extend(self.idle_waivers());
        lines
    }

    /// Returns a line for each waiver without effect: its rule does not exist, or cannot be waived.
    fn idle_waivers(&self) -> Vec<String> {
        let asks = |id: &str| {
            let wanted = format!("context.waived.contains(\"{id}\")");
            let text = self.rule_text(id).unwrap_or_default();
            text.split_whitespace().collect::<String>().contains(&wanted)
        };
        let waivers = self.catalog.exceptions().waivers.iter().filter(|waiver| !asks(&waiver.rule));
        let line = |waiver: &Waiver| match self.rule(&waiver.rule) {
            None => format!("{}: no rule has the id `{}`", waiver.declared_at, waiver.rule),
            Some(_) => format!(
                "{}: the rule `{rule}` cannot be waived: write unless {{ context.waived.contains(\"{rule}\") }} into it",
                waiver.declared_at,
                rule = waiver.rule
            ),
        };
        waivers.map(line).collect()
    }

    /// Returns every text that occurs in a rule.
    fn mentioned(&self) -> BTreeSet<String> {
        let mut texts = BTreeSet::new();
        for (rule, policy) in self.policies() {
            texts.extend(rule.gate.iter().map(|gate| gate.approver_group.clone()));
            if let Ok(json) = policy.to_json() {
                collect(&json, &mut texts);
            }
        }
        texts
    }

    /// Returns the entries that may only ask for their own identity. If rules cannot distinguish some entries, only one of them
    /// is judged.
    fn idle(&self, mentioned: &BTreeSet<String>) -> Vec<String> {
        let ids: Vec<SpiffeId> = mentioned.iter().filter_map(|text| text.parse().ok()).collect();
        let mut asked = GapSearch { left: POLICY_GAP_QUESTIONS_MAX, has_silence: false };
        let mut judged: BTreeMap<_, bool> = BTreeMap::new();
        let mut lines = Vec::new();
        for p in self.catalog.principals().filter(|p| !p.disabled) {
            let alike =
                (&p.tenant, p.kind, p.identity.as_str(), &p.roles, &p.groups, p.pattern.trust_domain());
            let is_named =
                ids.iter().any(|id| p.pattern.matches(id)) || mentioned.contains(&p.pattern.to_string());
            let can = is_named || *judged.entry(alike).or_insert_with(|| self.is_of_use(p, &mut asked));
            if !can {
                lines.push(format!(
                    "{}: `{}` is {} to which no rule permits anything: {}",
                    p.declared_at,
                    p.pattern,
                    p.kind.with_article(),
                    wanting(p)
                ));
            }
        }
        lines
    }

    /// Whether rules permit an entry to do anything. If rules forbid an entry everything, this is intended, so the entry counts
    /// as useful too.
    fn is_of_use(&self, p: &Principal, asked: &mut GapSearch) -> bool {
        asked.has_silence = false;
        self.can_do_something(p, asked) || !asked.has_silence
    }

    fn can_do_something(&self, p: &Principal, asked: &mut GapSearch) -> bool {
        if p.kind != PrincipalKind::Workload {
            return Rpc::ALL.iter().any(|rpc| self.may_call(p, *rpc, asked));
        }
        // A workload that creates jobs also needs a resource that its jobs can use.
        let mut visible = self.catalog.resources().filter(|r| r.visible_to(&p.tenant)).peekable();
        visible.peek().is_none() || visible.any(|r| self.may_hold(p, r, asked))
    }

    fn may_call(&self, p: &Principal, rpc: Rpc, asked: &mut GapSearch) -> bool {
        if matches!(
            rpc,
            Rpc::WhoAmI
                | Rpc::LogOut
                | Rpc::GetKeys
                | Rpc::WaitDurable
                | Rpc::ListResources
                | Rpc::EvaluatePolicy
        ) {
            return false;
        }
        let Some(slice) = self.slices.get(&(p.kind, PolicyAct::Rpc(rpc))) else { return false };
        let Some(caller) = some_id(p) else { return true };
        let second_factor = ["mfa".to_owned()];
        [Some(&p.tenant), None].into_iter().any(|tenant| {
            let call = Call {
                caller: &caller,
                rpc,
                tenant,
                relations: relations_of(p.kind),
                now: Wall(0),
                reason: "a reason",
                amr: &second_factor,
            };
            let on = self.prepared.tenant_uid(&self.types, tenant);
            self.answers(slice, p, &on, &ContextFields::of_call(&call), asked)
        })
    }

    fn may_hold(&self, p: &Principal, resource: &Resource, asked: &mut GapSearch) -> bool {
        let Some(PreparedResource { uid: on, .. }) = self.prepared.resources.get(&resource.name) else {
            return true;
        };
        let name = p.pattern.to_string();
        let purposes: Vec<&str> = match resource.dataset() {
            Some(dataset) => dataset.purposes.iter().map(String::as_str).collect(),
            None => vec![""],
        };
        let methods: Vec<Option<Method>> =
            std::iter::once(None).chain(Method::ALL.iter().copied().map(Some)).collect();
        // An entry that never writes a checkpoint has no use for the right to read or delete checkpoints.
        let opens = |action: &Action| !matches!(action, Action::ReadCheckpoint | Action::DeleteCheckpoint);
        let actions = Action::ALL.iter().filter(|a| opens(a) && a.applies_to() == resource.name.kind());
        // A rule that requires a field does not make an entry idle.
        let facts = RequestFacts::assumed(&resource.name);
        let risk = JobRisk::of(&self.catalog, &p.tenant, [&resource.name], [p]);
        let approved = BTreeSet::new();
        actions.into_iter().any(|action| {
            let Some(slice) = self.slices.get(&(p.kind, PolicyAct::Part(*action))) else { return false };
            purposes.iter().any(|purpose| {
                methods.iter().any(|method| {
                    let bundle = Bundle {
                        job: "",
                        tenant: &p.tenant,
                        attempt: 1,
                        phase: Phase::Running,
                        purpose,
                        facts,
                        risk: &risk,
                        method: *method,
                        ttl: Duration::from_secs(60),
                        now: Wall(0),
                        approved: &approved,
                        own_checkpoint: true,
                        binding: "",
                        parts: &[],
                    };
                    self.answers(slice, p, on, &ContextFields::of_job(&name, &bundle, &[]), asked)
                })
            })
        })
    }

    /// Whether an act is allowed or waits for approval. Beyond the bound on questions, every act counts as allowed.
    fn answers(
        &self,
        slice: &Slice,
        p: &Principal,
        on: &cedar_policy::EntityUid,
        facts: &ContextFields<'_>,
        asked: &mut GapSearch,
    ) -> bool {
        let (Some(me), Some(fewer)) = (self.prepared.principals.get(&p.pattern), asked.left.checked_sub(1))
        else {
            return true;
        };
        asked.left = fewer;
        let outcome = self.evaluate(slice, &self.prepared.entities, me, on, facts);
        asked.has_silence |= matches!(outcome, Outcome::Nothing);
        matches!(outcome, Outcome::Allow(_) | Outcome::Wait(..) | Outcome::Error(_))
    }
}

/// Returns the relations that an entry of a kind can have to the object of a call.
fn relations_of(kind: PrincipalKind) -> &'static [Relation] {
    match kind {
        PrincipalKind::Operator | PrincipalKind::Auditor => &[],
        PrincipalKind::Verifier => &[Relation::Verifier],
        PrincipalKind::Workload | PrincipalKind::Launcher | PrincipalKind::Scheduler => Relation::ALL,
    }
}

/// Returns the field that an entry without permissions most often lacks.
fn wanting(p: &Principal) -> &'static str {
    match p.kind {
        PrincipalKind::Operator if p.groups.is_empty() => {
            "it has no `groups`; write groups = [\"operators\"], or as your policies say"
        }
        PrincipalKind::Workload if p.roles.is_empty() => {
            "it has no `roles`; write roles = [\"trainer\"], or as your policies say"
        }
        _ => "see which roles and groups your policies ask for, or write disabled = true",
    }
}

fn unmentioned(p: &Principal, mentioned: &BTreeSet<String>) -> Vec<String> {
    let words = p.roles.iter().map(|w| ("role", w)).chain(p.groups.iter().map(|w| ("group", w)));
    let lines = words.filter(|(_, word)| !mentioned.contains(*word)).map(|(what, word)| {
        let fix = match nearest(word, mentioned.iter().map(String::as_str)) {
            Some(near) => format!("write `{near}`?"),
            None => "correct it, or write the rule".to_owned(),
        };
        format!("{}: no rule mentions the {what} `{word}`: {fix}", p.declared_at)
    });
    lines.collect()
}

/// Returns an identity that an entry matches.
fn some_id(p: &Principal) -> Option<SpiffeId> {
    p.pattern.to_string().replace("**", "x").replace('*', "x").parse().ok()
}

/// Collects every text of a policy in Cedar's JSON form, without its annotations.
fn collect(json: &Json, texts: &mut BTreeSet<String>) {
    match json {
        Json::String(text) => drop(texts.insert(text.clone())),
        Json::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Json::Object(map) => {
            map.iter().filter(|(key, _)| *key != "annotations").for_each(|(_, value)| collect(value, texts));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::Catalog,
        policy::{Explain, PolicySource},
    };

    fn gaps(catalog: &str, policy: &PolicySource) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("acme.toml"), format!("[tenant.acme]\n{catalog}")).unwrap();
        let catalog = Catalog::load(dir.path()).unwrap();
        Engine::load(policy, &catalog, Explain::Requester).unwrap().gaps()
    }

    const DATA: &str = r#"
[[audience]]
name = "spiffe://td/gateway"
verifiers = ["spiffe://td/gateway"]
checks = "feed"
presenter = "mtls"
[[dataset]]
name = "a@v1"
location = "file:///a/"
audience = "spiffe://td/gateway"
pin = "none"
classification = "internal"
data_classes = []
source_trust = "curated"
purposes = ["one"]
owner = "o@x"
"#;

    #[test]
    fn entries_without_effect_are_named() {
        let principals = r#"
[[principal]]
match = "spiffe://td/good/*"
kind = "workload"
roles = ["trainer"]
[[principal]]
match = "spiffe://td/typo/*"
kind = "workload"
roles = ["trainr"]
[[principal]]
match = "spiffe://td/ops/*"
kind = "operator"
[[principal]]
match = "spiffe://td/oops/*"
kind = "operator"
groups = ["operators", "colour"]
[[principal]]
match = "spiffe://td/off/*"
kind = "operator"
disabled = true
"#;
        let lines = gaps(&format!("{principals}{DATA}"), &PolicySource::Default);
        insta::assert_snapshot!(lines.join("\n"), @r#"
        acme.toml:7: no rule mentions the role `trainr`: write `trainer`?
        acme.toml:14: no rule mentions the group `colour`: correct it, or write the rule
        acme.toml:7: `spiffe://td/typo/*` is a workload to which no rule permits anything: see which roles and groups your policies ask for, or write disabled = true
        acme.toml:11: `spiffe://td/ops/*` is an operator to which no rule permits anything: it has no `groups`; write groups = ["operators"], or as your policies say
        "#);
    }

    #[test]
    fn an_empty_policy_directory_is_warned_of() {
        let empty = tempfile::tempdir().unwrap();
        let lines = gaps(DATA, &PolicySource::Dir(empty.path().to_owned()));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("there is no policy, so everything is denied"), "{lines:?}");
    }
}
