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

/// Principals, resources and audiences, all of them checked. Cheap to clone; never changes.
#[derive(Clone, Debug)]
pub struct Catalog(Arc<CatalogIndex>);

#[derive(Debug, Default)]
pub(super) struct CatalogIndex {
    pub(super) digest: Option<Digest>,
    pub(super) warnings: Vec<String>,
    /// Mistakes in the files on disk, which are not in force.
    pub(super) not_taken: Vec<Problem>,
    /// The texts of its files in force, to fall back on.
    pub(super) sources: BTreeMap<TenantName, Arc<str>>,
    /// The tenants that have a file, in force or not.
    pub(super) tenants: BTreeSet<TenantName>,
    /// In the order of the files and of the lines in them. Verifiers without their own entry come last.
    pub(super) principals: Vec<Arc<Principal>>,
    /// How many of them are verifiers without their own entry.
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
    /// Entries `[[principal]]`.
    pub principals: usize,
    /// Verifiers that only an `[[audience]]` names.
    pub verifiers: usize,
    pub datasets: usize,
    pub models: usize,
    pub checkpoints: usize,
    pub audiences: usize,
}

impl Counts {
    /// Datasets, models and checkpoint lines.
    pub fn resources(self) -> usize {
        self.datasets + self.models + self.checkpoints
    }
}

impl Catalog {
    pub(super) fn of(mut index: CatalogIndex) -> Self {
        index.by_segments = PatternNode::of(&index.principals);
        Catalog(Arc::new(index))
    }

    /// The digest of the names and bytes of its files.
    pub fn digest(&self) -> Digest {
        self.0.digest.unwrap_or(Digest::ZERO)
    }

    /// The digest of what a tenant may know of the catalog: its own file, and what other tenants share with it. No change of
    /// anything else changes it.
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

    /// Warnings: an empty directory, a file that is not read.
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    /// Mistakes that a start or a reload found, by file and line. A file with a mistake stays in force as it was, or is left out
    /// if the daemon has started since. Entries that depend on what another file does not have are left out.
    pub fn not_taken(&self) -> &[Problem] {
        &self.0.not_taken
    }

    /// The texts of its files by tenant, in the order of the files.
    pub fn texts(&self) -> impl Iterator<Item = (&TenantName, &Arc<str>)> {
        self.0.sources.iter()
    }

    pub(super) fn sources(&self) -> &BTreeMap<TenantName, Arc<str>> {
        &self.0.sources
    }

    /// How many entries of each kind it has.
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

    /// The tenants that have a file. Tenants whose file has a mistake are among them.
    pub fn tenants(&self) -> impl Iterator<Item = &TenantName> {
        self.0.tenants.iter()
    }

    /// Returns the entry of an identity: the first match in the one file that matches it.
    pub fn principal(&self, id: &SpiffeId) -> Option<&Arc<Principal>> {
        self.0.by_segments.find(id)
    }

    /// Returns the entries that can match an identity which a pattern matches.
    pub fn principals_overlapping(&self, pattern: &SpiffePattern) -> impl Iterator<Item = &Arc<Principal>> {
        self.0.principals.iter().filter(move |p| p.pattern.overlaps(pattern))
    }

    /// The entries of all tenants for identities.
    pub fn principals(&self) -> impl Iterator<Item = &Arc<Principal>> {
        self.0.principals.iter()
    }

    /// Returns a line for each entry that does not name the person behind it, although many people may match it.
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

    /// A dataset, model or checkpoint line; datasets and models by their version.
    pub fn resource(&self, name: &ResourceName) -> Option<&Resource> {
        self.0.resources.get(name)
    }

    /// Returns the resource, if the name is a dataset's.
    pub fn dataset(&self, name: &ResourceName) -> Option<&Resource> {
        self.resource(name).filter(|r| r.name.kind() == ResourceKind::Dataset)
    }

    /// Returns the resource, if the name is a model's.
    pub fn model(&self, name: &ResourceName) -> Option<&Resource> {
        self.resource(name).filter(|r| r.name.kind() == ResourceKind::Model)
    }

    /// Returns the resource, if the name is a checkpoint line's.
    pub fn checkpoint(&self, name: &ResourceName) -> Option<&Resource> {
        self.resource(name).filter(|r| r.name.kind() == ResourceKind::Checkpoint)
    }

    /// The resources of all tenants, in the order of their names.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.0.resources.values()
    }

    /// The resources whose bytes lie elsewhere than in an earlier catalog: at another location, or behind another audience.
    pub fn moved_since<'c>(&'c self, before: &'c Catalog) -> impl Iterator<Item = &'c ResourceName> {
        let is_moved = |b: &Resource, r: &Resource| b.location != r.location || b.audience != r.audience;
        let moved =
            self.resources().filter(move |r| before.resource(&r.name).is_some_and(|b| is_moved(b, r)));
        moved.map(|r| &r.name)
    }

    /// The audience with this ID, which its tokens have as `aud`.
    pub fn audience(&self, name: &SpiffeId) -> Option<&Audience> {
        self.0.audiences.get(name)
    }

    /// The audiences of all tenants, in the order of their names.
    pub fn audiences(&self) -> impl Iterator<Item = &Audience> {
        self.0.audiences.values()
    }

    /// What the platform grants for a time: tenants that are observed, rules that are waived.
    pub fn exceptions(&self) -> &Exceptions {
        &self.0.exceptions
    }

    /// The audiences that an identity checks for.
    pub fn audiences_of_verifier(&self, id: &SpiffeId) -> impl Iterator<Item = &Audience> {
        self.0.audiences.values().filter(move |a| a.verifiers.contains(id))
    }
}
