//! One tenant's file, read whole.

use std::collections::BTreeSet;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Audience, CheckpointFacts, DatasetFacts, Enforcement, Facts, HumanPattern, IdentityUse, ModelFacts,
    Principal, Resource,
    document::{Placed, Shape, Table, may, nearest, need, text, truth},
    fault::{Fault, Faults},
    principal::HumanSegment,
    value::{Word, line_of_text, local_name, location, model_name, moment, pin, words},
};
use crate::{
    name::{Pin, PrincipalKind, ResourceKind, ResourceName, SpiffeId, SpiffePattern, TenantName},
    written::{kind_of, shown},
};

const TENANT: Shape = Shape { noun: "tenant", keys: &[may("contact", r##"contact = "#acme-ml""##)] };

const PRINCIPAL: Shape = Shape {
    noun: "principal",
    keys: &[
        need("match", r#"match = "spiffe://k8s.acme.example/ns/ml/job/*""#),
        need("kind", r#"kind = "workload""#),
        may("identity", r#"identity = "job""#),
        may("roles", r#"roles = ["trainer"]"#),
        may("groups", r#"groups = ["operators"]"#),
        may("may_act_for", r#"may_act_for = ["human:*"]"#),
        may("human", r#"human = "segment:2""#),
        may("disabled", "disabled = true"),
    ],
};

/// Which identities a tenant may name. Only the platform's file holds any.
const CLAIM: Shape = Shape {
    noun: "claim",
    keys: &[
        need("tenant", r#"tenant = "acme""#),
        need("match", r#"match = ["spiffe://k8s.acme.example/**"]"#),
    ],
};

const AUDIENCE: Shape = Shape {
    noun: "audience",
    keys: &[
        need("name", r#"name = "spiffe://k8s.acme.example/ns/data/sa/gateway""#),
        need("verifiers", r#"verifiers = ["spiffe://k8s.acme.example/ns/data/sa/gateway"]"#),
        need("checks", r#"checks = "feed""#),
        need("presenter", r#"presenter = "mtls""#),
        may("serves", r#"serves = ["acme"]"#),
    ],
};

const DATASET: Shape = Shape {
    noun: "dataset",
    keys: &[
        need("name", r#"name = "tickets@v3""#),
        need("location", r#"location = "s3://acme-prod-data/tickets/v3/""#),
        need("audience", r#"audience = "spiffe://k8s.acme.example/ns/data/sa/gateway""#),
        need("pin", r#"pin = { kind = "manifest", sha256 = "…" }, or pin = "none""#),
        need("classification", r#"classification = "internal""#),
        need("data_classes", r#"data_classes = ["pii"], or []"#),
        need("source_trust", r#"source_trust = "curated""#),
        need("purposes", r#"purposes = ["support-tuning"]"#),
        need("owner", r#"owner = "data-tickets@acme.example""#),
        may("retain_until", "retain_until = 2027-06-30"),
        may("enforced", r#"enforced = "advisory""#),
        may("shared_with", r#"shared_with = ["beta"]"#),
    ],
};

const MODEL: Shape = Shape {
    noun: "model",
    keys: &[
        need("name", r#"name = "base-7b@2026.10""#),
        need("location", r#"location = "s3://acme-models/base-7b/2026.10/""#),
        need("audience", r#"audience = "spiffe://k8s.acme.example/ns/data/sa/gateway""#),
        need("pin", r#"pin = { kind = "hf-revision", sha1 = "…" }, or pin = "none""#),
        need("tier", r#"tier = "lab""#),
        need("environment", r#"environment = "development""#),
        need("risk", r#"risk = "low""#),
        need("tool_access", r#"tool_access = "none""#),
        need("owner", r#"owner = "model-owners@acme.example""#),
        may("enforced", r#"enforced = "advisory""#),
        may("shared_with", r#"shared_with = ["beta"]"#),
    ],
};

const CHECKPOINT: Shape = Shape {
    noun: "checkpoint",
    keys: &[
        need("name", r#"name = "support-lora""#),
        need("model", r#"model = "base-7b@2026.10""#),
        need("location", r#"location = "s3://acme-models/out/support-lora/""#),
        need("audience", r#"audience = "spiffe://k8s.acme.example/ns/data/sa/gateway""#),
        need("owner", r#"owner = "model-owners@acme.example""#),
        may("enforced", r#"enforced = "advisory""#),
    ],
};

const SECTIONS: [&str; 7] = ["tenant", "claim", "principal", "audience", "dataset", "model", "checkpoint"];

/// The tenant that runs Leasehold.
pub(super) const PLATFORM: &str = "platform";

/// A resource with the lines of what must be looked up elsewhere.
pub(super) struct ParsedResource {
    pub(super) resource: Resource,
    pub(super) line: usize,
    pub(super) audience_line: usize,
    pub(super) shared: Vec<Placed<TenantName>>,
    pub(super) model_line: usize,
}

/// An audience with its line and those of the tenants that it serves.
pub(super) struct ParsedAudience {
    pub(super) audience: Audience,
    pub(super) line: usize,
    pub(super) serves: Vec<Placed<TenantName>>,
}

/// What one file says, with its mistakes. What is mistaken is left out, but its name is known.
pub(super) struct TenantFile {
    pub(super) file: String,
    pub(super) tenant: TenantName,
    /// Which patterns each tenant may name: of the platform's file only.
    pub(super) claims: Vec<(TenantName, SpiffePattern)>,
    pub(super) principals: Vec<Placed<Principal>>,
    pub(super) audiences: Vec<ParsedAudience>,
    pub(super) resources: Vec<ParsedResource>,
    /// Names that are declared, rightly or not: a reference to one of them is not a second mistake.
    pub(super) named_audiences: BTreeSet<SpiffeId>,
    pub(super) named_resources: BTreeSet<ResourceName>,
    pub(super) faults: Vec<Fault>,
}

/// Reads the file of a tenant. Its name has been checked.
pub(super) fn read(file: &str, tenant: &TenantName, source: &str) -> TenantFile {
    let mut faults = Faults::new(file, source);
    let (document, errors) = DeTable::parse_recoverable(source);
    for e in &errors {
        let at = e.span().map_or(0, |s| s.start);
        faults.add(at, format!("it is not TOML: {}", e.message()), "see https://toml.io");
    }
    let mut out = TenantFile {
        file: file.to_owned(),
        tenant: tenant.clone(),
        claims: Vec::new(),
        principals: Vec::new(),
        audiences: Vec::new(),
        resources: Vec::new(),
        named_audiences: BTreeSet::new(),
        named_resources: BTreeSet::new(),
        faults: Vec::new(),
    };
    // What a broken document still yields would be guesswork: its own mistakes come first.
    if errors.is_empty() {
        out.read_sections(document.get_ref(), &mut faults);
    }
    out.faults = faults.into_found();
    out
}

impl TenantFile {
    fn read_sections(&mut self, document: &DeTable<'_>, faults: &mut Faults<'_>) {
        for key in document.keys() {
            let name: &str = key.get_ref();
            if !SECTIONS.contains(&name) {
                faults.add(
                    key.span().start,
                    format!("unknown section `{}`", shown(name)),
                    nearest(name, SECTIONS.into_iter()),
                );
            }
        }
        self.read_tenant(document, faults);
        for value in entries(document, "claim", faults) {
            self.read_claim(value, faults);
        }
        for value in entries(document, "principal", faults) {
            self.read_principal(value, faults);
        }
        for value in entries(document, "audience", faults) {
            self.read_audience(value, faults);
        }
        for value in entries(document, "dataset", faults) {
            self.read_resource(value, ResourceKind::Dataset, faults);
        }
        for value in entries(document, "model", faults) {
            self.read_resource(value, ResourceKind::Model, faults);
        }
        for value in entries(document, "checkpoint", faults) {
            self.read_resource(value, ResourceKind::Checkpoint, faults);
        }
    }

    fn read_tenant(&self, document: &DeTable<'_>, faults: &mut Faults<'_>) {
        let Some(value) = document.get("tenant") else {
            faults.add(0, "it does not say whose it is", format!("write [tenant.{}]", self.tenant));
            return;
        };
        let DeValue::Table(tenants) = value.get_ref() else {
            faults.add(
                value.span().start,
                format!("`tenant` is {}, not a table", kind_of(value.get_ref())),
                format!("write [tenant.{}]", self.tenant),
            );
            return;
        };
        for (key, value) in tenants.iter() {
            let name: &str = key.get_ref();
            if name != self.tenant.as_str() {
                faults.add(
                    key.span().start,
                    format!("tenant `{}` in the file of another", shown(name)),
                    format!("write [tenant.{}], or move it to a file named like its tenant", self.tenant),
                );
            }
            if let Some(t) = Table::take(value, &TENANT, "name", faults) {
                t.read("contact", faults, |v| line_of_text(text(v)?));
            }
        }
        if tenants.is_empty() {
            faults.add(value.span().start, "it names no tenant", format!("write [tenant.{}]", self.tenant));
        }
    }

    fn read_claim(&mut self, value: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) {
        let Some(t) = Table::take(value, &CLAIM, "tenant", faults) else { return };
        if self.tenant.as_str() != PLATFORM {
            t.wrong(
                "tenant",
                format!("only {PLATFORM}.toml says who may name which identities: leave it out there, or"),
                faults,
            );
            return;
        }
        let tenant = t.parse::<TenantName>("tenant", faults);
        let patterns = t.list::<SpiffePattern>("match", faults);
        if let Some(tenant) = tenant {
            self.claims.extend(patterns.into_iter().map(|p| (tenant.value.clone(), p.value)));
        }
    }

    fn read_principal(&mut self, value: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) {
        let Some(t) = Table::take(value, &PRINCIPAL, "match", faults) else { return };
        let pattern = t.parse::<SpiffePattern>("match", faults);
        let kind = t.parse::<PrincipalKind>("kind", faults);
        let identity = t.parse::<IdentityUse>("identity", faults);
        let roles = words(t.list::<Word>("roles", faults));
        let groups = words(t.list::<Word>("groups", faults));
        let may_act_for = t.list::<HumanPattern>("may_act_for", faults);
        let human = t.parse::<HumanSegment>("human", faults);
        let disabled = t.read("disabled", faults, truth);
        let line = t.line(faults);
        let (Some(pattern), Some(kind)) = (pattern, kind) else { return };
        if identity.is_some() && kind.value != PrincipalKind::Workload {
            t.wrong(
                "identity",
                format!("{} is no workload: leave it out, or", kind.value.with_article()),
                faults,
            );
        }
        if !may_act_for.is_empty() && kind.value != PrincipalKind::Launcher {
            let why = format!(
                "{} is not believed about people, only a launcher is: leave it out, or",
                kind.value.with_article()
            );
            t.wrong("may_act_for", why, faults);
        }
        if let Some(h) = &human {
            let text = pattern.value.to_string();
            let segments = text.splitn(4, '/').nth(3).map_or(0, |path| path.split('/').count());
            if h.value.0 > segments {
                t.wrong("human", format!("`match` has only {segments} segment(s)"), faults);
            }
        }
        self.principals.push(Placed {
            value: Principal {
                tenant: self.tenant.clone(),
                pattern: pattern.value,
                kind: kind.value,
                identity: identity.map_or(IdentityUse::Shared, |i| i.value),
                roles,
                groups,
                may_act_for: may_act_for.into_iter().map(|h| h.value).collect(),
                disabled: disabled.is_some_and(|d| d.value),
                matched: format!("{}:{line}", faults.file()),
                human_segment: human.map(|h| h.value.0),
            },
            line: pattern.line,
        });
    }

    fn read_audience(&mut self, value: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) {
        let Some(t) = Table::take(value, &AUDIENCE, "name", faults) else { return };
        let name = t.parse::<SpiffeId>("name", faults);
        let verifiers: BTreeSet<SpiffeId> =
            t.list("verifiers", faults).into_iter().map(|v| v.value).collect();
        let checks = t.parse("checks", faults);
        let presenter = t.parse("presenter", faults);
        let serves = t.list::<TenantName>("serves", faults);
        let line = t.line(faults);
        let Some(name) = name else { return };
        self.named_audiences.insert(name.value.clone());
        let (Some(checks), Some(presenter)) = (checks, presenter) else { return };
        if verifiers.is_empty() {
            t.wrong("verifiers", "nobody would check for it", faults);
            return;
        }
        let tenants: BTreeSet<TenantName> = serves
            .iter()
            .map(|s| s.value.clone())
            .chain(serves.is_empty().then(|| self.tenant.clone()))
            .collect();
        self.audiences.push(ParsedAudience {
            audience: Audience {
                tenant: self.tenant.clone(),
                name: name.value,
                verifiers,
                checks: checks.value,
                presenter: presenter.value,
                serves: tenants.clone(),
                reached_by: tenants,
                declared: format!("{}:{line}", faults.file()),
            },
            line: name.line,
            serves,
        });
    }

    fn read_resource(&mut self, value: &Spanned<DeValue<'_>>, kind: ResourceKind, faults: &mut Faults<'_>) {
        let shape = match kind {
            ResourceKind::Dataset => &DATASET,
            ResourceKind::Model => &MODEL,
            ResourceKind::Checkpoint => &CHECKPOINT,
        };
        let Some(t) = Table::take(value, shape, "name", faults) else { return };
        let tenant = self.tenant.clone();
        let name = t.read("name", faults, |v| local_name(kind, &tenant, text(v)?));
        let location = t.read("location", faults, |v| location(text(v)?));
        let audience = t.parse::<SpiffeId>("audience", faults);
        let owner = t.read("owner", faults, |v| line_of_text(text(v)?));
        let enforced = t.parse::<Enforcement>("enforced", faults);
        let (pin, shared, model_line, facts) = match kind {
            ResourceKind::Dataset => {
                let facts = self.read_dataset(&t, faults).map(Facts::Dataset);
                (t.read("pin", faults, pin), t.list("shared_with", faults), 0, facts)
            }
            ResourceKind::Model => {
                let facts = self.read_model(&t, faults).map(Facts::Model);
                (t.read("pin", faults, pin), t.list("shared_with", faults), 0, facts)
            }
            ResourceKind::Checkpoint => {
                let model = t.read("model", faults, |v| model_name(&tenant, text(v)?));
                let line = model.as_ref().map_or(0, |m| m.line);
                let facts = model.map(|m| Facts::Checkpoint(CheckpointFacts { model: m.value }));
                (Some(Placed { value: Pin::None, line: 0 }), Vec::new(), line, facts)
            }
        };
        let line = t.line(faults);
        let Some(name) = name else { return };
        self.named_resources.insert(name.value.clone());
        let (Some(location), Some(audience), Some(owner), Some(pin), Some(facts)) =
            (location, audience, owner, pin, facts)
        else {
            return;
        };
        self.resources.push(ParsedResource {
            resource: Resource {
                name: name.value,
                tenant,
                location: location.value,
                audience: audience.value,
                pin: pin.value,
                owner: owner.value,
                enforced: enforced.map_or(Enforcement::Audience, |e| e.value),
                shared_with: shared.iter().map(|s: &Placed<TenantName>| s.value.clone()).collect(),
                facts,
                declared: format!("{}:{line}", faults.file()),
            },
            line: name.line,
            audience_line: audience.line,
            shared,
            model_line,
        });
    }

    fn read_dataset(&self, t: &Table<'_>, faults: &mut Faults<'_>) -> Option<DatasetFacts> {
        let classification = t.parse("classification", faults);
        let data_classes = words(t.list::<Word>("data_classes", faults));
        let source_trust = t.parse("source_trust", faults);
        let purposes = words(t.list::<Word>("purposes", faults));
        let retain_until = t.read("retain_until", faults, moment);
        Some(DatasetFacts {
            classification: classification?.value,
            data_classes,
            source_trust: source_trust?.value,
            purposes,
            retain_until: retain_until.map(|r| r.value),
        })
    }

    fn read_model(&self, t: &Table<'_>, faults: &mut Faults<'_>) -> Option<ModelFacts> {
        let tier = t.parse("tier", faults);
        let environment = t.parse("environment", faults);
        let risk = t.parse("risk", faults);
        let tool_access = t.parse("tool_access", faults);
        Some(ModelFacts {
            tier: tier?.value,
            environment: environment?.value,
            risk: risk?.value,
            tool_access: tool_access?.value,
        })
    }
}

/// The tables of a section.
fn entries<'t>(
    document: &'t DeTable<'t>,
    section: &str,
    faults: &mut Faults<'_>,
) -> &'t [Spanned<DeValue<'t>>] {
    let Some(value) = document.get(section) else { return &[] };
    match value.get_ref() {
        DeValue::Array(items) => items,
        other => {
            faults.add(
                value.span().start,
                format!("`{section}` is {}, not a list of tables", kind_of(other)),
                format!("write [[{section}]]"),
            );
            &[]
        }
    }
}
