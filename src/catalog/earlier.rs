//! The entries that were in force before a reading of the catalog directory.

use std::collections::{HashMap, HashSet};

use super::{Audience, Resource, accepted::InForce, file};
use crate::name::{ResourceName, SpiffeId, SpiffePattern, TenantName};

/// The entries that were in force. They decide whether an entry that no longer fits is left out, or is a mistake of its
/// author.
pub(super) enum Earlier {
    /// The daemon starts: each entry may have been in force in its previous run.
    Unknown,
    Known(EarlierEntries),
}

#[derive(Default)]
pub(super) struct EarlierEntries {
    principals: HashSet<(TenantName, SpiffePattern)>,
    audiences: HashMap<SpiffeId, Audience>,
    resources: HashMap<ResourceName, Resource>,
}

impl Earlier {
    /// Reads the texts in force. These texts have no mistakes.
    pub(super) fn of(in_force: &InForce) -> Self {
        let mut entries = EarlierEntries::default();
        for (tenant, text) in in_force {
            let f = file::read(&format!("{tenant}.toml"), tenant, text);
            let principals = f.principals.into_iter().map(|p| (tenant.clone(), p.value.pattern));
            entries.principals.extend(principals);
            let audiences = f.audiences.into_iter().map(|a| (a.audience.name.clone(), a.audience));
            entries.audiences.extend(audiences);
            let resources = f.resources.into_iter().map(|r| (r.resource.name.clone(), r.resource));
            entries.resources.extend(resources);
        }
        Earlier::Known(entries)
    }

    fn is_or(&self, had: impl FnOnce(&EarlierEntries) -> bool) -> bool {
        match self {
            Earlier::Unknown => true,
            Earlier::Known(entries) => had(entries),
        }
    }

    /// Whether the tenant had a principal with this pattern.
    pub(super) fn had_principal(&self, tenant: &TenantName, pattern: &SpiffePattern) -> bool {
        self.is_or(|e| e.principals.contains(&(tenant.clone(), pattern.clone())))
    }

    /// Whether the audience's tenant had this audience with all of its verifiers.
    pub(super) fn had_audience(&self, audience: &Audience) -> bool {
        self.is_or(|e| {
            let earlier = e.audiences.get(&audience.name);
            earlier.is_some_and(|a| a.tenant == audience.tenant && audience.verifiers.is_subset(&a.verifiers))
        })
    }

    /// Whether this audience served a tenant.
    pub(super) fn served(&self, audience: &Audience, tenant: &TenantName) -> bool {
        self.is_or(|e| e.audiences.get(&audience.name).is_some_and(|a| a.serves.contains(tenant)))
    }

    /// Whether this resource referred to the same audience and the same model.
    pub(super) fn had_resource(&self, resource: &Resource) -> bool {
        let model = |r: &Resource| r.checkpoint().map(|c| c.model.clone());
        self.is_or(|e| {
            let earlier = e.resources.get(&resource.name);
            earlier.is_some_and(|r| r.audience == resource.audience && model(r) == model(resource))
        })
    }

    /// Whether this resource was shared with a tenant.
    pub(super) fn shared(&self, resource: &Resource, tenant: &TenantName) -> bool {
        self.is_or(|e| e.resources.get(&resource.name).is_some_and(|r| r.shared_with.contains(tenant)))
    }
}
