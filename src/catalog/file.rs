//! One tenant's file, read whole.

use std::{collections::BTreeSet, str::FromStr};

use time::{Date, Month, OffsetDateTime, Time, UtcOffset};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
    value::Datetime,
};

use super::{
    Audience, CheckpointFacts, DatasetFacts, Enforcement, Facts, HumanPattern, IdentityUse, ModelFacts,
    Principal, Resource,
    document::{Placed, Shape, Table, may, nearest, need, sort_of, text, truth},
    fault::{Fault, Faults, shown},
    principal::HumanSegment,
};
use crate::{
    clock::Wall,
    limits::{NAME_BYTES_MAX, TEXT_BYTES_MAX},
    name::{Pin, PrincipalKind, ResourceKind, ResourceName, SpiffeId, SpiffePattern, TenantName},
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

const SECTIONS: [&str; 6] = ["tenant", "principal", "audience", "dataset", "model", "checkpoint"];

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
                format!("`tenant` is {}, not a table", sort_of(value.get_ref())),
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
            t.wrong("identity", format!("a {} is no workload: leave it out, or", kind.value), faults);
        }
        if !may_act_for.is_empty() && kind.value != PrincipalKind::Launcher {
            let why = format!(
                "a {} is not believed about people, only a launcher is: leave it out, or",
                kind.value
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
                format!("`{section}` is {}, not a list of tables", sort_of(other)),
                format!("write [[{section}]]"),
            );
            &[]
        }
    }
}

/// A lower-case word, as of roles, groups, purposes and data classes. No two look alike.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Word(String);

impl FromStr for Word {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            Err("a word has 1 to 128 letters")
        } else if !text.bytes().all(plain) {
            Err("a word is made of a-z, 0-9, `-` and `_`")
        } else {
            Ok(Word(text.to_owned()))
        }
    }
}

fn words(list: Vec<Placed<Word>>) -> BTreeSet<String> {
    list.into_iter().map(|w| w.value.0).collect()
}

/// A line for people.
fn line_of_text(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("it is empty".to_owned())
    } else if text.len() > TEXT_BYTES_MAX {
        Err(format!("it has more than {TEXT_BYTES_MAX} bytes"))
    } else if text.chars().any(char::is_control) {
        Err("it holds a control character".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// A name as the tenant's own file writes it: without kind and tenant.
fn local_name(kind: ResourceKind, tenant: &TenantName, text: &str) -> Result<ResourceName, String> {
    if let Ok(full) = text.parse::<ResourceName>() {
        return Err(if full.tenant() == *tenant {
            format!("`{}` says kind and tenant, which this file says already", shown(text))
        } else {
            format!(
                "`{}` is of tenant `{}`: it belongs into the file of that tenant",
                shown(text),
                full.tenant()
            )
        });
    }
    if text.contains('/') || text.contains(':') {
        return Err(format!("`{}` has a tenant or a kind in it", shown(text)));
    }
    let name: ResourceName = format!("{}:{tenant}/{text}", kind.as_str())
        .parse()
        .map_err(|e: crate::name::NameError| e.to_string())?;
    match (kind, name.version()) {
        (ResourceKind::Dataset | ResourceKind::Model, None) => {
            Err(format!("`{}` has no version, as in NAME@VERSION", shown(text)))
        }
        _ => Ok(name),
    }
}

/// The model of a checkpoint line: a name of this file, or the full name of another tenant's.
fn model_name(tenant: &TenantName, text: &str) -> Result<ResourceName, String> {
    match text.parse::<ResourceName>() {
        Ok(full) if full.kind() == ResourceKind::Model && full.version().is_some() => Ok(full),
        Ok(_) => Err(format!("`{}` is not a model with its version", shown(text))),
        Err(_) => local_name(ResourceKind::Model, tenant, text),
    }
}

/// A folder, as a URL that ends in a slash.
fn location(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").ok_or("it is no URL: it has no `://`")?;
    let plain = !scheme.is_empty()
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'+');
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let why = if !plain {
        "its scheme is not in lower-case letters"
    } else if text.len() > TEXT_BYTES_MAX {
        "it is longer than 512 bytes"
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        "it holds a space, a control character or one beyond ASCII"
    } else if authority.contains('@') {
        "it holds a user or a secret before `@`"
    } else if scheme != "file" && authority.is_empty() {
        "it names no bucket or host"
    } else if text.contains(['?', '#', '%', '\\']) {
        "it holds a query, a fragment or an escape"
    } else if path.split('/').any(|s| s == "." || s == "..") {
        "it holds a segment `.` or `..`"
    } else if path.split('/').rev().skip(1).any(str::is_empty) && !path.is_empty() {
        "it holds an empty segment"
    } else if !text.ends_with('/') {
        "a location is a folder and ends in `/`"
    } else {
        return Ok(text.to_owned());
    };
    Err(format!("`{}`: {why}", shown(text)))
}

/// `"none"`, or a table of a kind and its value.
fn pin(value: &DeValue<'_>) -> Result<Pin, String> {
    let table = match value {
        DeValue::String(text) if text == "none" => return Ok(Pin::None),
        DeValue::String(text) => {
            return Err(format!("`{}` is no pin: it is a table, or \"none\"", shown(text)));
        }
        DeValue::Table(table) => table,
        other => return Err(format!("it is {}, not a table or \"none\"", sort_of(other))),
    };
    let kind = match table.get("kind").map(|k| text(k.get_ref())) {
        Some(kind) => kind?,
        None => return Err("it has no `kind`".to_owned()),
    };
    let key = match kind {
        "manifest" | "s3-versions" => "sha256",
        "hf-revision" => "sha1",
        "lakefs-commit" | "iceberg-snapshot" => "id",
        _ => {
            return Err(format!(
                "its kind `{}` is none of manifest, hf-revision, lakefs-commit, iceberg-snapshot, s3-versions",
                shown(kind)
            ));
        }
    };
    if let Some(other) = table.keys().find(|k| *k.get_ref() != "kind" && *k.get_ref() != key) {
        return Err(format!("a {kind} has `kind` and `{key}`, not `{}`", shown(other.get_ref())));
    }
    let Some(found) = table.get(key) else { return Err(format!("a {kind} has no `{key}`")) };
    format!("{kind}:{}", text(found.get_ref())?).parse().map_err(|e: crate::name::NameError| e.to_string())
}

/// A date, which is its beginning in UTC, or a moment with its offset.
fn moment(value: &DeValue<'_>) -> Result<Wall, String> {
    let DeValue::Datetime(at) = value else {
        return Err(format!("it is {}, not a date without quotes", sort_of(value)));
    };
    wall(at).ok_or_else(|| match (at.time, at.offset) {
        (Some(_), None) => "it says a time but not in which zone: end it with Z".to_owned(),
        _ => "it is not a moment after 1970".to_owned(),
    })
}

fn wall(at: &Datetime) -> Option<Wall> {
    let date = at.date?;
    let month = Month::try_from(date.month).ok()?;
    let date = Date::from_calendar_date(i32::from(date.year), month, date.day).ok()?;
    let moment = match (at.time, at.offset) {
        (None, None) => date.midnight().assume_utc(),
        (Some(t), Some(offset)) => {
            let nanos = t.nanosecond.unwrap_or(0);
            let time = Time::from_hms_nano(t.hour, t.minute, t.second.unwrap_or(0), nanos).ok()?;
            let minutes = match offset {
                toml::value::Offset::Z => 0,
                toml::value::Offset::Custom { minutes } => minutes,
            };
            let offset = UtcOffset::from_whole_seconds(i32::from(minutes) * 60).ok()?;
            OffsetDateTime::new_in_offset(date, time, offset)
        }
        _ => return None,
    };
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok().map(Wall)
}
