//! The rules of a policy, with their annotations. They are parsed and validated strictly.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use cedar_policy::{Effect, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use miette::Diagnostic;

use super::{
    PolicyErrors,
    fault::PolicyFault,
    nesting,
    source::{self, PolicySource, PolicyText, SCHEMA},
};
use crate::{
    job::Gate,
    limits::{POLICIES_MAX, TEXT_BYTES_MAX},
    name::Digest,
    secret::looks_secret,
    written::Lines,
};

const ANNOTATIONS: [&str; 8] =
    ["id", "explain", "fix", "enforced", "gate", "approver_group", "approvals", "approval_ttl"];

/// One policy and its annotations.
#[derive(Clone, Debug)]
pub struct Rule {
    pub id: String,
    /// The explanation for a person whom the rule refuses.
    pub explain: Option<String>,
    /// The advice on how to pass the rule.
    pub fix: Option<String>,
    /// Set if the rule is a gate: it waits for approval instead of forbidding.
    pub gate: Option<Gate>,
    /// Whether the rule also applies to observed tenants.
    pub always: bool,
    /// Whether the rule is a permit.
    pub permits: bool,
    /// The rule's file and line, for example `leasehold.cedar:24`.
    pub place: String,
}

impl Rule {
    /// Returns the rule as `id: explanation`.
    pub fn said(&self) -> String {
        match &self.explain {
            Some(explain) => format!("{}: {explain}", self.id),
            None => self.id.clone(),
        }
    }
}

/// The validated policies of a source.
pub(super) struct RuleSet {
    pub(super) schema: Schema,
    pub(super) digest: Digest,
    pub(super) policies: Vec<(Arc<Rule>, Policy)>,
    pub(super) texts: Vec<PolicyText>,
    /// The file and line of each policy.
    places: HashMap<String, (String, usize)>,
}

impl RuleSet {
    /// Reads, parses and validates policies.
    ///
    /// # Errors
    /// Every mistake that can be found.
    pub(super) fn load(from: &PolicySource) -> Result<Self, PolicyErrors> {
        let texts = from.read()?;
        let schema = Schema::from_cedarschema_str(SCHEMA)
            .map_err(|e| PolicyErrors::one("leasehold.cedarschema", e.to_string()))?
            .0;
        let mut reading = Reading::default();
        for (number, text) in texts.iter().enumerate() {
            reading.file(number, text);
        }
        if reading.policies.len() > POLICIES_MAX {
            let what = format!("{} policies: write at most {POLICIES_MAX}", reading.policies.len());
            return Err(PolicyErrors::one("the policy set", what));
        }
        reading.validate(&schema, &texts);
        let Reading { faults, policies, places, .. } = reading;
        let places = places
            .into_iter()
            .filter_map(|(id, (number, line))| Some((id, (texts.get(number)?.file.clone(), line))))
            .collect();
        match PolicyErrors::of(faults) {
            Some(errors) => Err(errors),
            None => Ok(RuleSet { schema, digest: source::policy_digest(&texts), policies, texts, places }),
        }
    }
}

impl RuleSet {
    /// Makes the fault for a mistake in one rule.
    pub(super) fn fault(&self, rule: &Rule, what: impl Into<String>) -> PolicyFault {
        let (file, line) = self.places.get(&rule.id).cloned().unwrap_or_default();
        PolicyFault { file, line, policy: Some(rule.id.clone()), what: what.into() }
    }
}

#[derive(Default)]
struct Reading {
    faults: Vec<PolicyFault>,
    policies: Vec<(Arc<Rule>, Policy)>,
    /// For each policy id, the number of the file and the line.
    places: BTreeMap<String, (usize, usize)>,
}

impl Reading {
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "Cedar does not export the type of a location"
    )]
    fn file(&mut self, number: usize, text: &PolicyText) {
        if let Err((at, what)) = nesting::check(&text.text) {
            self.fault(text, Lines::of(&text.text).at(at), None, what);
            return;
        }
        let set = match PolicySet::from_str(&text.text) {
            Ok(set) => set,
            Err(errors) => {
                for e in errors.iter() {
                    let line = offset(e).map_or(0, |at| Lines::of(&text.text).at(at));
                    self.fault(text, line, None, said(e));
                }
                return;
            }
        };
        for t in set.templates() {
            let at = t.as_ref().loc().map_or(0, |at| at.start());
            let line = Lines::of(&text.text).at(at);
            self.fault(
                text,
                line,
                None,
                "a policy template has no effect here; write a policy without ?principal and ?resource"
                    .to_owned(),
            );
        }
        let mut policies: Vec<(usize, &Policy)> =
            set.policies().map(|p| (p.as_ref().loc().map_or(0, |at| at.start()), p)).collect();
        policies.sort_by_key(|(at, _)| *at);
        for (at, policy) in policies {
            self.policy(number, text, Lines::of(&text.text).at(at), policy);
        }
    }

    fn policy(&mut self, number: usize, text: &PolicyText, line: usize, policy: &Policy) {
        let place = format!("{}:{line}", text.file);
        let id = match policy.annotation("id").filter(|id| is_id(id)) {
            Some(id) => id.to_owned(),
            None => {
                let what = "it has no valid @id; write @id(\"…\") above it, of a-z, 0-9 and `-`".to_owned();
                self.fault(text, line, None, what);
                place.clone()
            }
        };
        if let Some((_, before)) = self.places.get(&id) {
            let what = format!("line {before} has this @id already; give each policy its own");
            self.fault(text, line, Some(&id), what);
            return;
        }
        for (key, value) in policy.annotations() {
            if !ANNOTATIONS.contains(&key) {
                let what = format!("unknown annotation @{key}; known: {}", ANNOTATIONS.join(", "));
                self.fault(text, line, Some(&id), what);
            }
            if value.is_empty() || value.len() > TEXT_BYTES_MAX || value.chars().any(char::is_control) {
                let what = format!("@{key} is empty, too long or contains a control character");
                self.fault(text, line, Some(&id), what);
            }
        }
        if let Some(other) = policy.annotation("enforced").filter(|value| *value != "always") {
            let what = format!("@enforced(\"{other}\") is not known; write @enforced(\"always\")");
            self.fault(text, line, Some(&id), what);
        }
        let gate = match gate(&id, policy) {
            Ok(gate) => gate,
            Err(what) => {
                self.fault(text, line, Some(&id), what);
                None
            }
        };
        let rule = Rule {
            id: id.clone(),
            explain: policy.annotation("explain").map(str::to_owned),
            fix: policy.annotation("fix").map(str::to_owned),
            gate,
            always: policy.annotation("enforced") == Some("always"),
            permits: policy.effect() == Effect::Permit,
            place,
        };
        self.places.insert(id.clone(), (number, line));
        self.policies.push((Arc::new(rule), policy.new_id(PolicyId::new(&id))));
    }

    fn validate(&mut self, schema: &Schema, texts: &[PolicyText]) {
        let set = match PolicySet::from_policies(self.policies.iter().map(|(_, p)| p.clone())) {
            Ok(set) => set,
            Err(e) => {
                let file = "the policy set".to_owned();
                self.faults.push(PolicyFault { file, line: 0, policy: None, what: e.to_string() });
                return;
            }
        };
        let found = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
        // Cedar warns of a rule that can never apply, or of letters that look like other letters. Both are mistakes
        // here.
        let errors = found.validation_errors().map(|e| (e.policy_id().to_string(), offset(e), said(e)));
        let warnings = found.validation_warnings().map(|w| (w.policy_id().to_string(), offset(w), said(w)));
        let all: Vec<_> = errors.chain(warnings).collect();
        for (id, at, what) in all {
            let Some((number, line)) = self.places.get(&id).copied() else { continue };
            let Some(text) = texts.get(number) else { continue };
            let line = at.map_or(line, |at| Lines::of(&text.text).at(at));
            // Cedar begins with the policy's id, which the message has already.
            let prefix = format!("for policy `{id}`, ");
            let what = what.strip_prefix(&prefix).unwrap_or(&what).to_owned();
            self.fault(text, line, Some(&id), what);
        }
    }

    fn fault(&mut self, text: &PolicyText, line: usize, id: Option<&str>, what: String) {
        self.faults.push(PolicyFault { file: text.file.clone(), line, policy: id.map(str::to_owned), what });
    }
}

fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 128
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Reads the annotations of a gate. A gate forbids, checks `context.approved` for its own id, and names its approvers.
fn gate(id: &str, policy: &Policy) -> Result<Option<Gate>, String> {
    let Some(kind) = policy.annotation("gate") else {
        let only = ["approver_group", "approvals", "approval_ttl"];
        return match only.iter().find(|k| policy.annotation(k).is_some()) {
            Some(k) => Err(format!("@{k} is for gates; add @gate(\"approval\"), or leave it out")),
            None => Ok(None),
        };
    };
    if kind != "approval" {
        return Err(format!("@gate(\"{kind}\") is not known; write @gate(\"approval\")"));
    }
    if policy.effect() == Effect::Permit {
        return Err(
            "a gate must be a forbid, because a permit cannot wait for approval; write a forbid … unless"
                .to_owned(),
        );
    }
    let need = |key: &str| {
        policy.annotation(key).map(str::to_owned).ok_or_else(|| format!("a gate has no @{key}; add it"))
    };
    let (explanation, approver_group) = (need("explain")?, need("approver_group")?);
    let approvals_needed = need("approvals")?
        .parse()
        .ok()
        .filter(|n| (1..=100).contains(n))
        .ok_or("@approvals is not a number from 1 to 100")?;
    let approval_ttl = humantime::parse_duration(&need("approval_ttl")?)
        .ok()
        .filter(|d| (Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600)).contains(d))
        .ok_or("@approval_ttl is not a time from 1s to 30d, as in \"4h\"")?;
    let text: String = policy.to_cedar().unwrap_or_default().split_whitespace().collect();
    if !text.contains(&format!("context.approved.contains(\"{id}\")")) {
        return Err(format!(
            "approvals would not open this gate; add unless {{ context.approved.contains(\"{id}\") }}"
        ));
    }
    Ok(Some(Gate { id: id.to_owned(), explanation, approver_group, approvals_needed, approval_ttl }))
}

/// Returns the byte offset that a diagnostic points at.
fn offset(e: &dyn Diagnostic) -> Option<usize> {
    e.labels()?.map(|l| l.offset()).next()
}

/// Returns a diagnostic and its help in one line.
fn said(e: &dyn Diagnostic) -> String {
    let help = e.help().map(|h| format!("; {h}")).unwrap_or_default();
    let labels = e.labels().into_iter().flatten().filter_map(|l| l.label().map(|l| format!(": {l}")));
    let label = labels.take(1).collect::<String>();
    let said = format!("{e}{label}{help}").replace('\n', " ");
    if looks_secret(&said) { "it is not Cedar, and looks like a key or a token".to_owned() } else { said }
}
