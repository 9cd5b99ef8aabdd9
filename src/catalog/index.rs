//! The catalog: queries by name and by identity.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{Audience, Exceptions, Principal, Resource, tree::PatternNode};
use crate::{
    name::{Digest, PrincipalKind, ResourceKind, ResourceName, SpiffeId, SpiffePattern, TenantName},
    written::Problem,
};

/// The checked principals, resources and audiences. A catalog never changes, and a clone is cheap.
#[derive(Clone, Debug)]
pub struct Catalog(Arc<CatalogIndex>);

#[derive(Debug, Default)]
pub(super) struct CatalogIndex {
    pub(super) digest: Option<Digest>,
    pub(super) warnings: Vec<String>,
    /// Mistakes in the files on disk. Such files are not in force.
    pub(super) not_taken: Vec<Problem>,
    /// The texts of the files in force. A reload returns to them if a file has a mistake.
    pub(super) sources: BTreeMap<TenantName, Arc<str>>,
    /// The tenants that have a file, also if the file is not in force.
    pub(super) tenants: BTreeSet<TenantName>,
    /// The principals, in the order of the files and lines. Verifiers without their own entry come last.
    pub(super) principals: Vec<Arc<Principal>>,
    /// The number of principals that are verifiers without their own entry.
    pub(super) implied: usize,
    pub(super) by_segments: PatternNode,
    pub(super) resources: HashMap<ResourceName, Resource>,
    pub(super) audiences: HashMap<SpiffeId, Audience>,
    pub(super) exceptions: Exceptions,
}

/// The number of entries of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub tenants: usize,
    /// The number of `[[principal]]` entries.
    pub principals: usize,
    /// The number of verifiers that only an `[[audience]]` names.
    pub verifiers: usize,
    pub datasets: usize,
    pub models: usize,
    pub checkpoints: usize,
    pub audiences: usize,
}

impl Counts {
    /// Returns the number of datasets, models and checkpoint lines.
    pub fn resources(self) -> usize {
        self.datasets + self.models + self.checkpoints
    }
}

impl Catalog {
    pub(super) fn of(mut index: CatalogIndex) -> Self {
        index.by_segments = PatternNode::of(&index.principals);
        Catalog(Arc::new(index))
    }

    /// Returns the digest of the names and bytes of the files.
    pub fn digest(&self) -> Digest {
        self.0.digest.unwrap_or(Digest::ZERO)
    }

    /// Returns the digest of the part of the catalog that a tenant may see: its own file, and the resources that other
    /// tenants share with it. Other changes do not change this digest.
    pub fn digest_seen_by(&self, tenant: &TenantName) -> Digest {
        let own = self.0.sources.get(tenant).map(ToString::to_string).unwrap_or_default();
        let shared = self.resources().filter(|r| r.tenant != *tenant && r.visible_to(tenant));
        let mut shared: Vec<String> = shared
            .map(|r| {
                let Resource { name, location, audience, pin, owner, enforced, facts, .. } = r;
                format!("{name} {location} {audience} {pin} {owner:?} {enforced:?} {facts:?}")
            })
            .collect();
        shared.sort_unstable();
        let parts = std::iter::once(own).chain(shared).map(|part| format!("{} {part}\n", part.len()));
        Digest::of(format!("leasehold catalog of {tenant} v1\n{}", parts.collect::<String>()).as_bytes())
    }

    /// Returns warnings: an empty directory, a file that is not read.
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    /// Returns the mistakes that were found when the daemon started or reloaded, by file and line. A reload keeps the previous
    /// text of a file with a mistake. When the daemon starts, such a file is left out. Entries that depend on missing entries of
    /// another file are left out.
    pub fn not_taken(&self) -> &[Problem] {
        &self.0.not_taken
    }

    /// Returns the texts of the files by tenant, in the order of the files.
    pub fn texts(&self) -> impl Iterator<Item = (&TenantName, &Arc<str>)> {
        self.0.sources.iter()
    }

    pub(super) fn sources(&self) -> &BTreeMap<TenantName, Arc<str>> {
        &self.0.sources
    }

    /// Returns the number of entries of each kind.
    pub fn counts(&self) -> Counts {
        let of = |kind| self.0.resources.keys().filter(|n| n.kind() == kind).count();
        Counts {
            tenants: self.0.tenants.len(),
            principals: self.0.principals.len().saturating_sub(self.0.implied),
            verifiers: self.0.implied,
            datasets: of(ResourceKind::Dataset),
            models: of(ResourceKind::Model),
            checkpoints: of(ResourceKind::Checkpoint),
            audiences: self.0.audiences.len(),
        }
    }

    /// Returns the tenants that have a file, including files with mistakes.
    pub fn tenants(&self) -> impl Iterator<Item = &TenantName> {
        self.0.tenants.iter()
    }

    /// Returns the entry of an identity: the first match in the only file that matches it.
    pub fn principal(&self, id: &SpiffeId) -> Option<&Arc<Principal>> {
        self.0.by_segments.find(id)
    }

    /// Returns the entries that can match an identity of a pattern.
    pub fn principals_overlapping(&self, pattern: &SpiffePattern) -> impl Iterator<Item = &Arc<Principal>> {
        self.0.principals.iter().filter(move |p| p.pattern.overlaps(pattern))
    }

    /// Returns the principals of all tenants.
    pub fn principals(&self) -> impl Iterator<Item = &Arc<Principal>> {
        self.0.principals.iter()
    }

    /// Returns a line for each entry that does not say which person uses an identity, although many people may match
    /// the entry.
    pub fn nameless_people(&self) -> Vec<String> {
        let is_nameless = |p: &&Arc<Principal>| {
            p.kind == PrincipalKind::Operator && p.human_text().is_none() && p.pattern.exact().is_none()
        };
        let line = |p: &Arc<Principal>| {
            format!(
                "{}: operator `{}` has no `human`: a lock on a person does not reach these identities, each of them counts as another \
                 person for approvals, and people who log in get no access by it: write human = \"segment:N\"",
                p.declared_at, p.pattern
            )
        };
        self.principals().filter(is_nameless).map(line).collect()
    }

    /// Returns a dataset, model or checkpoint line. A name of a dataset or model must have a version.
    pub fn resource(&self, name: &ResourceName) -> Option<&Resource> {
        self.0.resources.get(name)
    }

    /// Returns the resource if it is a dataset.
    pub fn dataset(&self, name: &ResourceName) -> Option<&Resource> {
        self.resource(name).filter(|r| r.name.kind() == ResourceKind::Dataset)
    }

    /// Returns the resource if it is a model.
    pub fn model(&self, name: &ResourceName) -> Option<&Resource> {
        self.resource(name).filter(|r| r.name.kind() == ResourceKind::Model)
    }

    /// Returns the resource if it is a checkpoint line.
    pub fn checkpoint(&self, name: &ResourceName) -> Option<&Resource> {
        self.resource(name).filter(|r| r.name.kind() == ResourceKind::Checkpoint)
    }

    /// Returns the resources of all tenants, in any order.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.0.resources.values()
    }

    /// Returns the resources that have another location or another audience than in an earlier catalog.
    pub fn moved_since<'c>(&'c self, before: &'c Catalog) -> impl Iterator<Item = &'c ResourceName> {
        let is_moved = |b: &Resource, r: &Resource| b.location != r.location || b.audience != r.audience;
        let moved =
            self.resources().filter(move |r| before.resource(&r.name).is_some_and(|b| is_moved(b, r)));
        moved.map(|r| &r.name)
    }

    /// Returns the audience with this ID. Tokens have the ID as `aud`.
    pub fn audience(&self, name: &SpiffeId) -> Option<&Audience> {
        self.0.audiences.get(name)
    }

    /// Returns the audiences of all tenants, in any order.
    pub fn audiences(&self) -> impl Iterator<Item = &Audience> {
        self.0.audiences.values()
    }

    /// Returns the temporary exceptions: observed tenants and waived rules.
    pub fn exceptions(&self) -> &Exceptions {
        &self.0.exceptions
    }

    /// Returns the audiences for which an identity checks tokens.
    pub fn audiences_of_verifier(&self, id: &SpiffeId) -> impl Iterator<Item = &Audience> {
        self.0.audiences.values().filter(move |a| a.verifiers.contains(id))
    }
}
