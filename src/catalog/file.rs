//! Reads the file of one tenant.

use std::{collections::BTreeSet, fmt::Display, path::Path, str::FromStr};

use super::{
    Audience, CheckpointFacts, DatasetFacts, Enforcement, Exceptions, HumanPattern, IdentityUse, ModelFacts,
    Presenter, Principal, Resource, ResourceFacts, S3Endpoint, Waiver,
    exception::ObservedTenant,
    principal::HumanSegment,
    value::{LowerWord, address, line_of_text, local_name, location, model_name, moment, parse, pin},
};
use crate::{
    clock::Wall,
    limits::{CATALOG_ENTRIES_MAX, SPEC_LIST_MAX, WAIVERS_MAX},
    name::{Pin, PrincipalKind, ResourceKind, ResourceName, SpiffeId, SpiffePattern, TenantName},
    plain,
    written::{Notes, Placed, Problem, Section, Value, parse_toml},
};

/// The audience of the examples.
const GATEWAY: &str = "\"spiffe://k8s.acme.example/ns/data/sa/gateway\"";

/// The tenant that runs Leasehold.
pub(super) const PLATFORM: &str = "platform";

/// A resource, with the lines of its references.
pub(super) struct ParsedResource {
    pub(super) resource: Resource,
    pub(super) line: usize,
    pub(super) audience_line: usize,
    pub(super) shared: Vec<Placed<TenantName>>,
    pub(super) model_line: usize,
}

/// An audience, with its line and the lines of the tenants that it serves.
pub(super) struct ParsedAudience {
    pub(super) audience: Audience,
    pub(super) line: usize,
    pub(super) serves: Vec<Placed<TenantName>>,
}

/// The entries and the mistakes of one file. An entry with a mistake is left out, but its name is known.
pub(super) struct TenantFile {
    pub(super) file: String,
    pub(super) tenant: TenantName,
    /// The patterns that each tenant may name. Only the platform's file has them.
    pub(super) claims: Vec<(TenantName, SpiffePattern)>,
    /// The temporary exceptions. Only the platform's file has them.
    pub(super) exceptions: Exceptions,
    pub(super) principals: Vec<Placed<Principal>>,
    pub(super) audiences: Vec<ParsedAudience>,
    pub(super) resources: Vec<ParsedResource>,
    /// The names of all entries, with or without mistakes. A reference to one of these names is not a second mistake.
    pub(super) named_audiences: BTreeSet<SpiffeId>,
    pub(super) named_resources: BTreeSet<ResourceName>,
    pub(super) problems: Vec<Problem>,
}

/// Reads the file of a tenant. The file name was checked before.
pub(super) fn read(file: &str, tenant: &TenantName, source: &str) -> TenantFile {
    let mut out = TenantFile {
        file: file.to_owned(),
        tenant: tenant.clone(),
        claims: Vec::new(),
        exceptions: Exceptions::default(),
        principals: Vec::new(),
        audiences: Vec::new(),
        resources: Vec::new(),
        named_audiences: BTreeSet::new(),
        named_resources: BTreeSet::new(),
        problems: Vec::new(),
    };
    let mut notes = Notes::new(Path::new(file));
    notes.read(parse_toml(source), |root, notes| out.read_sections(root, notes));
    out.problems = notes.into_problems();
    out
}

impl TenantFile {
    fn read_sections(&mut self, root: &mut Section<'_>, notes: &mut Notes) {
        self.read_tenant(root, notes);
        for table in root.list_of_sections("claim", CATALOG_ENTRIES_MAX, notes) {
            self.read_claim(table, notes);
        }
        for table in root.list_of_sections("observe", CATALOG_ENTRIES_MAX, notes) {
            self.read_observed(table, notes);
        }
        for table in root.list_of_sections("waiver", WAIVERS_MAX, notes) {
            self.read_waiver(table, notes);
        }
        for table in root.list_of_sections("principal", CATALOG_ENTRIES_MAX, notes) {
            self.read_principal(table, notes);
        }
        for table in root.list_of_sections("audience", CATALOG_ENTRIES_MAX, notes) {
            self.read_audience(table, notes);
        }
        for (key, kind) in [
            ("dataset", ResourceKind::Dataset),
            ("model", ResourceKind::Model),
            ("checkpoint", ResourceKind::Checkpoint),
        ] {
            for table in root.list_of_sections(key, CATALOG_ENTRIES_MAX, notes) {
                self.read_resource(table, kind, notes);
            }
        }
    }

    fn read_tenant(&self, root: &mut Section<'_>, notes: &mut Notes) {
        let line = root.line_of("tenant");
        let Some(tenants) = root.section_if_there("tenant", notes) else {
            notes.problem(line, format!("it does not say whose it is; write [tenant.{}]", self.tenant));
            return;
        };
        let named = tenants.named_sections(notes);
        if named.is_empty() && !tenants.is_not_a_table() {
            notes.problem(line, format!("it names no tenant; write [tenant.{}]", self.tenant));
        }
        for (name, mut table) in named {
            if name != self.tenant.as_str() {
                let what = format!(
                    "tenant `{}` in the file of another; write [tenant.{}], or move it to a file named like its tenant",
                    plain::value(name),
                    self.tenant
                );
                notes.problem(table.line(), what);
            }
            table.text("contact", notes, line_of_text);
            table.finish(notes);
        }
    }

    fn read_claim(&mut self, mut table: Section<'_>, notes: &mut Notes) {
        table.name_by("tenant");
        if self.tenant.as_str() != PLATFORM {
            let why = format!("only {PLATFORM}.toml says who may name which identities; leave it out");
            table.wrong("tenant", why, notes);
            return;
        }
        let tenant = table.need("tenant", "\"acme\"", notes, parse::<TenantName>);
        let patterns: Vec<Placed<SpiffePattern>> =
            need_list(&mut table, "match", "[\"spiffe://k8s.acme.example/**\"]", notes);
        table.finish(notes);
        if let Some(tenant) = tenant {
            self.claims.extend(patterns.into_iter().map(|p| (tenant.clone(), p.value)));
        }
    }

    /// Refuses an entry that only the platform's file may have.
    fn is_of_platform(&self, table: &mut Section<'_>, notes: &mut Notes) -> bool {
        let is_platform = self.tenant.as_str() == PLATFORM;
        if !is_platform {
            let why = format!("only {PLATFORM}.toml makes exceptions from the rules; leave it out");
            table.wrong("tenant", why, notes);
        }
        is_platform
    }

    fn read_observed(&mut self, mut table: Section<'_>, notes: &mut Notes) {
        table.name_by("tenant");
        if !self.is_of_platform(&mut table, notes) {
            return;
        }
        let tenant = table.need("tenant", "\"acme\"", notes, parse::<TenantName>);
        let until = need_moment(&mut table, notes);
        let owner = table.need("owner", "\"platform@acme.example\"", notes, line_of_text);
        table.finish(notes);
        if let (Some(tenant), Some(until), Some(owner)) = (tenant, until, owner) {
            self.exceptions.observed.push(ObservedTenant { tenant, until, owner });
        }
    }

    fn read_waiver(&mut self, mut table: Section<'_>, notes: &mut Notes) {
        table.name_by("rule");
        if !self.is_of_platform(&mut table, notes) {
            return;
        }
        let declared_at = format!("{}:{}", self.file, table.line());
        let rule = table.need("rule", "\"guard-ttl\"", notes, line_of_text);
        let tenant = table.need("tenant", "\"acme\"", notes, parse::<TenantName>);
        let resource = table.text("resource", notes, parse::<ResourceName>);
        let owner = table.need("owner", "\"security@acme.example\"", notes, line_of_text);
        let reason = table.need("reason", "\"RISK-12: the old trainer cannot renew\"", notes, line_of_text);
        let until = need_moment(&mut table, notes);
        table.finish(notes);
        if let (Some(rule), Some(tenant), Some(owner), Some(reason), Some(until)) =
            (rule, tenant, owner, reason, until)
        {
            let waiver = Waiver { rule, tenant, resource, owner, reason, until, declared_at };
            self.exceptions.waivers.push(waiver);
        }
    }

    fn read_principal(&mut self, mut table: Section<'_>, notes: &mut Notes) {
        table.name_by("match");
        let example = "\"spiffe://k8s.acme.example/ns/ml/job/*\"";
        let pattern = table.need("match", example, notes, parse::<SpiffePattern>);
        let kind = table.need("kind", "\"workload\"", notes, parse::<PrincipalKind>);
        let identity = table.text("identity", notes, parse::<IdentityUse>);
        let roles = words(list(&mut table, "roles", notes));
        let groups = words(list(&mut table, "groups", notes));
        let may_act_for = list::<HumanPattern>(&mut table, "may_act_for", notes);
        let human = table.text("human", notes, parse::<HumanSegment>);
        let disabled = table.value("disabled", notes, Value::truth);
        table.finish(notes);
        let (Some(pattern), Some(kind)) = (pattern, kind) else { return };
        if identity.is_some() && kind != PrincipalKind::Workload {
            let why = format!("{} is not a workload; leave it out", kind.with_article());
            table.wrong("identity", why, notes);
        }
        if !may_act_for.is_empty() && kind != PrincipalKind::Launcher {
            let why =
                format!("{} may not act for people, only a launcher may; leave it out", kind.with_article());
            table.wrong("may_act_for", why, notes);
        }
        if let Some(h) = &human {
            let text = pattern.to_string();
            let segments = text.splitn(4, '/').nth(3).map_or(0, |path| path.split('/').count());
            if h.0 > segments {
                let why = format!("`match` has only {segments} segment(s); write one of them, from 1");
                table.wrong("human", why, notes);
            }
        }
        let line = table.line_of("match");
        self.principals.push(Placed {
            value: Principal {
                tenant: self.tenant.clone(),
                pattern,
                kind,
                identity: identity.unwrap_or(IdentityUse::Shared),
                roles,
                groups,
                may_act_for: may_act_for.into_iter().map(|h| h.value).collect(),
                disabled: disabled.unwrap_or(false),
                declared_at: format!("{}:{}", self.file, table.line()),
                human_segment: human.map(|h| h.0),
            },
            line,
        });
    }

    fn read_audience(&mut self, mut table: Section<'_>, notes: &mut Notes) {
        table.name_by("name");
        let name = table.need("name", GATEWAY, notes, parse::<SpiffeId>);
        let verifiers = need_list::<SpiffeId>(&mut table, "verifiers", &format!("[{GATEWAY}]"), notes);
        let verifiers: BTreeSet<SpiffeId> = verifiers.into_iter().map(|v| v.value).collect();
        let checks = table.need("checks", "\"feed\"", notes, parse);
        let presenter = table.need("presenter", "\"mtls\"", notes, parse);
        let serves = list::<TenantName>(&mut table, "serves", notes);
        let s3_address = table.text("s3_endpoint", notes, address);
        let s3_server_id = table.text("s3_server_id", notes, parse::<SpiffeId>);
        table.finish(notes);
        let Some(name) = name else { return };
        self.named_audiences.insert(name.clone());
        let (Some(checks), Some(presenter)) = (checks, presenter) else { return };
        if verifiers.is_empty() {
            let why = format!("it names no server that checks its tokens; write verifiers = [{GATEWAY}]");
            table.wrong("verifiers", why, notes);
            return;
        }
        let s3 = s3_address
            .map(|address| S3Endpoint { address, server_id: s3_server_id.unwrap_or_else(|| name.clone()) });
        if let Some(S3Endpoint { server_id, .. }) = &s3
            && !verifiers.contains(server_id)
        {
            let why =
                format!("its server checks tokens; add {server_id} to verifiers, or write its s3_server_id");
            table.wrong("s3_endpoint", why, notes);
        }
        if s3.is_some() && presenter != Presenter::Mtls {
            table.wrong(
                "s3_endpoint",
                "an S3 gateway sees who presents a token; write presenter = \"mtls\"",
                notes,
            );
        }
        let tenants: BTreeSet<TenantName> = serves
            .iter()
            .map(|s| s.value.clone())
            .chain(serves.is_empty().then(|| self.tenant.clone()))
            .collect();
        self.audiences.push(ParsedAudience {
            audience: Audience {
                tenant: self.tenant.clone(),
                name,
                verifiers,
                checks,
                presenter,
                s3,
                serves: tenants.clone(),
                reached_by: tenants,
                declared: format!("{}:{}", self.file, table.line()),
            },
            line: table.line_of("name"),
            serves,
        });
    }

    fn read_resource(&mut self, mut table: Section<'_>, kind: ResourceKind, notes: &mut Notes) {
        table.name_by("name");
        let tenant = self.tenant.clone();
        let (name, folder) = match kind {
            ResourceKind::Dataset => ("\"tickets@v3\"", "\"s3://acme-prod-data/tickets/v3/\""),
            ResourceKind::Model => ("\"base-7b@2026.10\"", "\"s3://acme-models/base-7b/2026.10/\""),
            ResourceKind::Checkpoint => ("\"support-lora\"", "\"s3://acme-models/out/support-lora/\""),
        };
        let name = table.need("name", name, notes, |t| local_name(kind, &tenant, t));
        let location = table.need("location", folder, notes, location);
        let audience = table.need("audience", GATEWAY, notes, parse::<SpiffeId>);
        let owner = table.need("owner", "\"data-tickets@acme.example\"", notes, line_of_text);
        let enforced = table.text("enforced", notes, parse::<Enforcement>);
        let (pin, shared, facts) = match kind {
            ResourceKind::Dataset => {
                let pinned = "{ kind = \"manifest\", sha256 = \"…\" }, or pin = \"none\"";
                let facts = read_dataset(&mut table, notes).map(ResourceFacts::Dataset);
                (table.need_value("pin", pinned, notes, pin), list(&mut table, "shared_with", notes), facts)
            }
            ResourceKind::Model => {
                let pinned = "{ kind = \"hf-revision\", sha1 = \"…\" }, or pin = \"none\"";
                let facts = read_model(&mut table, notes).map(ResourceFacts::Model);
                (table.need_value("pin", pinned, notes, pin), list(&mut table, "shared_with", notes), facts)
            }
            ResourceKind::Checkpoint => {
                let model = table.need("model", "\"base-7b@2026.10\"", notes, |t| model_name(&tenant, t));
                let facts = model.map(|model| ResourceFacts::Checkpoint(CheckpointFacts { model }));
                (Some(Pin::None), Vec::new(), facts)
            }
        };
        table.finish(notes);
        let Some(name) = name else { return };
        self.named_resources.insert(name.clone());
        let (Some(location), Some(audience), Some(owner), Some(pin), Some(facts)) =
            (location, audience, owner, pin, facts)
        else {
            return;
        };
        self.resources.push(ParsedResource {
            resource: Resource {
                name,
                tenant,
                location,
                audience,
                pin,
                owner,
                enforced: enforced.unwrap_or(Enforcement::Audience),
                shared_with: shared.iter().map(|s: &Placed<TenantName>| s.value.clone()).collect(),
                facts,
                declared: format!("{}:{}", self.file, table.line()),
            },
            line: table.line_of("name"),
            audience_line: table.line_of("audience"),
            shared,
            model_line: table.line_of("model"),
        });
    }
}

fn read_dataset(table: &mut Section<'_>, notes: &mut Notes) -> Option<DatasetFacts> {
    let classification = table.need("classification", "\"internal\"", notes, parse);
    let data_classes = words(need_list(table, "data_classes", "[\"pii\"], or []", notes));
    let source_trust = table.need("source_trust", "\"curated\"", notes, parse);
    let purposes = words(need_list(table, "purposes", "[\"support-tuning\"]", notes));
    let retain_until = table.value("retain_until", notes, moment);
    Some(DatasetFacts {
        classification: classification?,
        data_classes,
        source_trust: source_trust?,
        purposes,
        retain_until,
    })
}

fn read_model(table: &mut Section<'_>, notes: &mut Notes) -> Option<ModelFacts> {
    let tier = table.need("tier", "\"lab\"", notes, parse);
    let environment = table.need("environment", "\"development\"", notes, parse);
    let risk = table.need("risk", "\"low\"", notes, parse);
    let tool_access = table.need("tool_access", "\"none\"", notes, parse);
    Some(ModelFacts { tier: tier?, environment: environment?, risk: risk?, tool_access: tool_access? })
}

fn words(list: Vec<Placed<LowerWord>>) -> BTreeSet<String> {
    list.into_iter().map(|word| word.value.0).collect()
}

/// Reads a list that may be absent. A repetition is a mistake.
fn list<T: FromStr<Err: Display>>(
    table: &mut Section<'_>,
    key: &'static str,
    notes: &mut Notes,
) -> Vec<Placed<T>> {
    table.list(key, SPEC_LIST_MAX, notes, once())
}

fn need_list<T: FromStr<Err: Display>>(
    table: &mut Section<'_>,
    key: &'static str,
    example: &str,
    notes: &mut Notes,
) -> Vec<Placed<T>> {
    table.need_list(key, example, SPEC_LIST_MAX, notes, once())
}

/// Returns a parser that refuses a text that it has read before.
fn once<T: FromStr<Err: Display>>() -> impl FnMut(&str) -> Result<T, String> {
    let mut seen = BTreeSet::new();
    move |text| {
        let value = parse(text)?;
        if seen.insert(text.to_owned()) {
            Ok(value)
        } else {
            Err(format!("`{}` is in it twice; remove one", plain::value(text)))
        }
    }
}

/// Reads the required end of an exception.
fn need_moment(table: &mut Section<'_>, notes: &mut Notes) -> Option<Wall> {
    if !table.has("until") {
        let what =
            "until is missing: write the date from which the rules hold again, as in until = 2027-01-31";
        notes.problem(table.line(), what);
    }
    table.value("until", notes, moment)
}
