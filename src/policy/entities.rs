//! The catalog as Cedar sees it: entities that are made once per catalog.

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
};

use cedar_policy::{
    Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression as Value, Schema,
};
use serde_json::Value as Json;

use super::PolicyErrors;
use crate::{
    catalog::{Catalog, Principal, Resource, ResourceFacts},
    name::{Digest, Pin, PrincipalKind, ResourceKind, ResourceName, SpiffePattern, TenantName},
};

/// The tenant entity for requests that concern all tenants.
pub(super) const ALL_TENANTS: &str = "(all)";

/// The names of entity types, parsed once.
#[derive(Clone)]
pub(super) struct Types {
    pub(super) tenant: EntityTypeName,
    pub(super) group: EntityTypeName,
    pub(super) action: EntityTypeName,
    principals: HashMap<PrincipalKind, EntityTypeName>,
    resources: HashMap<ResourceKind, EntityTypeName>,
}

impl Types {
    pub(super) fn new() -> Result<Self, PolicyErrors> {
        let name = |text: &str| {
            EntityTypeName::from_str(&format!("Leasehold::{text}"))
                .map_err(|e| PolicyErrors::one("leasehold.cedarschema", e.to_string()))
        };
        let mut principals = HashMap::new();
        for kind in PrincipalKind::ALL {
            let text = match kind {
                PrincipalKind::Workload => "Workload",
                PrincipalKind::Launcher => "Launcher",
                PrincipalKind::Scheduler => "Scheduler",
                PrincipalKind::Operator => "Operator",
                PrincipalKind::Verifier => "Verifier",
                PrincipalKind::Auditor => "Auditor",
            };
            principals.insert(*kind, name(text)?);
        }
        let resources = HashMap::from([
            (ResourceKind::Dataset, name("Dataset")?),
            (ResourceKind::Model, name("Model")?),
            (ResourceKind::Checkpoint, name("Checkpoint")?),
        ]);
        Ok(Types {
            tenant: name("Tenant")?,
            group: name("Group")?,
            action: name("Action")?,
            principals,
            resources,
        })
    }

    pub(super) fn principal(&self, kind: PrincipalKind) -> Option<&EntityTypeName> {
        self.principals.get(&kind)
    }

    /// Returns the kind of principal of a type.
    pub(super) fn kind_of(&self, name: &EntityTypeName) -> Option<PrincipalKind> {
        self.principals.iter().find(|(_, t)| *t == name).map(|(k, _)| *k)
    }

    /// Returns the kind of resource of a type.
    pub(super) fn resource_kind_of(&self, name: &EntityTypeName) -> Option<ResourceKind> {
        self.resources.iter().find(|(_, t)| *t == name).map(|(k, _)| *k)
    }

    pub(super) fn tenant_uid(&self, tenant: &str) -> EntityUid {
        uid(&self.tenant, tenant)
    }

    pub(super) fn resource_uid(&self, name: &ResourceName) -> Option<EntityUid> {
        self.resources.get(&name.kind()).map(|t| uid(t, name.as_str()))
    }

    pub(super) fn principal_uid(&self, p: &Principal) -> Option<EntityUid> {
        self.principal(p.kind).map(|t| uid(t, &p.pattern.to_string()))
    }
}

/// A resource as requests name it.
pub(super) struct PreparedResource {
    pub(super) uid: EntityUid,
    /// The number of the resource's class. All resources of a class have one kind, equal attributes and equal parents. So rules
    /// that do not look at the name of a resource give one answer for all of them.
    pub(super) class: u64,
}

/// All entities, and the entities that requests name.
pub(super) struct CatalogEntities {
    pub(super) entities: Entities,
    pub(super) principals: HashMap<SpiffePattern, EntityUid>,
    pub(super) resources: HashMap<ResourceName, PreparedResource>,
    tenants: HashMap<TenantName, EntityUid>,
    all_tenants: EntityUid,
}

impl CatalogEntities {
    pub(super) fn new(types: &Types, schema: &Schema, catalog: &Catalog) -> Result<Self, PolicyErrors> {
        let mut all = vec![Entity::new_no_attrs(types.tenant_uid(ALL_TENANTS), HashSet::new())];
        let mut prepared = CatalogEntities {
            entities: Entities::empty(),
            principals: HashMap::new(),
            resources: HashMap::new(),
            tenants: HashMap::new(),
            all_tenants: types.tenant_uid(ALL_TENANTS),
        };
        for tenant in catalog.tenants() {
            let uid = types.tenant_uid(tenant.as_str());
            all.push(Entity::new_no_attrs(uid.clone(), HashSet::new()));
            prepared.tenants.insert(tenant.clone(), uid);
        }
        let groups: HashSet<&String> = catalog.principals().flat_map(|p| &p.groups).collect();
        all.extend(groups.into_iter().map(|g| Entity::new_no_attrs(uid(&types.group, g), HashSet::new())));
        for p in catalog.principals() {
            let entity = principal_entity(types, p)?;
            prepared.principals.insert(p.pattern.clone(), entity.uid());
            all.push(entity);
        }
        let mut classes: HashMap<(ResourceKind, Digest), u64> = HashMap::new();
        for r in catalog.resources() {
            let entity = resource_entity(types, r)?;
            let next = classes.len() as u64;
            let class = *classes.entry((r.name.kind(), facts_without_name(&entity)?)).or_insert(next);
            prepared.resources.insert(r.name.clone(), PreparedResource { uid: entity.uid(), class });
            all.push(entity);
        }
        prepared.entities = Entities::from_entities(all, Some(schema)).map_err(catalog_fault)?;
        Ok(prepared)
    }

    /// Returns the entity of a tenant, or the entity for all tenants.
    pub(super) fn tenant_uid(&self, types: &Types, tenant: Option<&TenantName>) -> EntityUid {
        let Some(name) = tenant else { return self.all_tenants.clone() };
        // A tenant that is no longer in the catalog may still have jobs that must end.
        self.tenants.get(name).cloned().unwrap_or_else(|| types.tenant_uid(name.as_str()))
    }
}

fn catalog_fault(e: impl std::error::Error) -> PolicyErrors {
    PolicyErrors::one("the catalog", format!("does not fit the schema: {e}"))
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

pub(super) fn text(value: &str) -> Value {
    Value::new_string(value.to_owned())
}

pub(super) fn texts<'t>(values: impl IntoIterator<Item = &'t str>) -> Value {
    Value::new_set(values.into_iter().map(text))
}

pub(super) fn principal_entity(types: &Types, p: &Principal) -> Result<Entity, PolicyErrors> {
    let Some(me) = types.principal_uid(p) else {
        return Err(PolicyErrors::one(
            "the catalog",
            format!("{}: its kind has no entity type", p.declared_at),
        ));
    };
    let tenant = types.tenant_uid(p.tenant.as_str());
    let mut attributes = HashMap::from([
        ("tenant".to_owned(), Value::new_entity_uid(tenant.clone())),
        ("trust_domain".to_owned(), text(p.pattern.trust_domain().as_str())),
        ("roles".to_owned(), texts(p.roles.iter().map(String::as_str))),
        ("disabled".to_owned(), Value::new_bool(p.disabled)),
    ]);
    if p.kind == PrincipalKind::Workload {
        attributes.insert("identity".to_owned(), text(p.identity.as_str()));
    }
    let parents = p.groups.iter().map(|g| uid(&types.group, g)).chain([tenant]).collect();
    Entity::new(me, attributes, parents).map_err(catalog_fault)
}

fn resource_entity(types: &Types, r: &Resource) -> Result<Entity, PolicyErrors> {
    let Some(me) = types.resource_uid(&r.name) else {
        return Err(PolicyErrors::one("the catalog", format!("{}: its kind has no entity type", r.declared)));
    };
    let tenant = types.tenant_uid(r.tenant.as_str());
    let mut parents = HashSet::from([tenant.clone()]);
    let mut attributes = HashMap::from([
        ("tenant".to_owned(), Value::new_entity_uid(tenant)),
        ("owner".to_owned(), text(&r.owner)),
        ("enforced".to_owned(), text(r.enforced.as_str())),
    ]);
    let mut set = |key: &str, value: Value| attributes.insert(key.to_owned(), value);
    if !matches!(r.facts, ResourceFacts::Checkpoint(_)) {
        let shared = r.shared_with.iter().map(|t| Value::new_entity_uid(types.tenant_uid(t.as_str())));
        set("shared_with", Value::new_set(shared));
        set("pinned", Value::new_bool(r.pin != Pin::None));
    }
    match &r.facts {
        ResourceFacts::Dataset(d) => {
            set("classification", text(d.classification.as_str()));
            set("data_classes", texts(d.data_classes.iter().map(String::as_str)));
            set("source_trust", text(d.source_trust.as_str()));
            set("allowed_purposes", texts(d.purposes.iter().map(String::as_str)));
            if let Some(until) = d.retain_until {
                set("retain_until", Value::new_datetime(until.to_string()));
            }
        }
        ResourceFacts::Model(m) => {
            set("tier", text(m.tier.as_str()));
            set("environment", text(m.environment.as_str()));
            set("risk", text(m.risk.as_str()));
            set("tool_access", text(m.tool_access.as_str()));
        }
        ResourceFacts::Checkpoint(c) => {
            if let Some(model) = types.resource_uid(&c.model) {
                set("model", Value::new_entity_uid(model.clone()));
                parents.insert(model);
            }
        }
    }
    Entity::new(me, attributes, parents).map_err(catalog_fault)
}

/// Returns the digest of an entity without its name, in Cedar's JSON form.
fn facts_without_name(entity: &Entity) -> Result<Digest, PolicyErrors> {
    let mut json = entity.to_json_value().map_err(catalog_fault)?;
    if let Some(fields) = json.as_object_mut() {
        fields.remove("uid");
        if let Some(parents) = fields.get_mut("parents").and_then(Json::as_array_mut) {
            parents.sort_by_cached_key(Json::to_string);
        }
    }
    Ok(Digest::of(json.to_string().as_bytes()))
}
