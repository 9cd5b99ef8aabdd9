//! Reads the catalog directory when the daemon starts (*at a start*) and when it reloads. Accepts the files without mistakes,
//! and reports what it left out.
//!
//! Each tenant writes its own file, so a mistake of one tenant must not affect the others. A removal in a correct file
//! takes effect regardless of the other files. A file with a mistake stays as it was. At a start it is left out,
//! because no earlier text is known. If an entry depends on something that another file lacks, only this entry is left
//! out, not its whole file. This is so at a start, and at a reload if the entry was in force. A new reference to
//! something that does not exist is a mistake of its file.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    CatalogErrors,
    checks::{Findings, TenantClaims, check, check_each, problem},
    earlier::Earlier,
    file::{PLATFORM, TenantFile},
    index::CatalogIndex,
    load::{Source, indexed, parsed, sources},
};
use crate::{
    name::{ResourceName, SpiffeId, SpiffePattern, TenantName},
    written::Problem,
};

pub(super) type InForce = BTreeMap<TenantName, Arc<str>>;

/// Reads a directory at a start. The platform's file must have no mistake, because it says which identities each tenant
/// may name.
pub(super) fn read_at_start(dir: &Path) -> Result<CatalogIndex, CatalogErrors> {
    CatalogReading { dir, in_force: &InForce::new(), earlier: Earlier::Unknown }.accept()
}

/// Reads a directory again. Fails only if no file can be used.
pub(super) fn reload(dir: &Path, in_force: &InForce) -> Result<CatalogIndex, CatalogErrors> {
    CatalogReading { dir, in_force, earlier: Earlier::of(in_force) }.accept()
}

/// One reading of a directory.
struct CatalogReading<'c> {
    dir: &'c Path,
    /// The texts of the files in force. Empty at a start.
    in_force: &'c InForce,
    /// The entries of these texts.
    earlier: Earlier,
}

impl CatalogReading<'_> {
    fn is_start(&self) -> bool {
        matches!(self.earlier, Earlier::Unknown)
    }

    fn accept(&self) -> Result<CatalogIndex, CatalogErrors> {
        let (mut unread, mut warnings) = (Vec::new(), Vec::new());
        let found = sources(self.dir, &mut unread, &mut warnings);
        let mut problems: BTreeSet<Problem> = unread.into_iter().collect();
        let Some(mut sources) = found else { return Err(CatalogErrors::sorted(problems)) };
        let on_disk = on_disk(&sources, &problems);
        if self.is_start() && self.lacks_the_platforms_file(&sources, &problems) {
            return Err(CatalogErrors::sorted(problems));
        }
        keep_unreadable(&mut sources, &problems, self.in_force);
        loop {
            let mut files = parsed(&sources);
            let left_out = self.prune(&mut files, &on_disk);
            let each = check_each(&files);
            let found = if each.problems.is_empty() { check(&mut files) } else { each };
            let is_unusable = files.is_empty() && !on_disk.is_empty();
            if found.problems.is_empty() && !is_unusable {
                problems.extend(left_out);
                let mut index = indexed(self.dir, &sources, files, warnings);
                // A tenant must not count as the only tenant while the file of another tenant is left out.
                index.tenants.extend(on_disk);
                index.not_taken = problems.into_iter().collect();
                return Ok(index);
            }
            let blamed = self.blamed(&found, &files, &sources);
            problems.extend(found.problems);
            if blamed.is_empty() || !self.fall_back(&mut sources, &blamed) {
                return Err(CatalogErrors::sorted(problems));
            }
        }
    }

    /// Whether the platform's file cannot be read, or is missing and may have a wrong name. Without it, each tenant could
    /// name every identity.
    fn lacks_the_platforms_file(&self, sources: &[Source], unread: &BTreeSet<Problem>) -> bool {
        let is_platforms = |file: &Path| file == Path::new(&format!("{PLATFORM}.toml"));
        let is_read = sources.iter().any(|s| is_platforms(Path::new(&s.file)));
        let is_unread = unread.iter().any(|p| is_platforms(&p.file));
        let is_misnamed = unread.iter().any(|p| tenant_of(&p.file).is_none());
        !is_read && (is_unread || is_misnamed)
    }

    /// Replaces the texts of these files by the earlier texts. Leaves a file out if it has no earlier text. Returns
    /// whether that changed something.
    fn fall_back(&self, sources: &mut Vec<Source>, blamed: &BTreeSet<PathBuf>) -> bool {
        let before = sources.len();
        let mut fell_back = false;
        sources.retain_mut(|s| {
            if !blamed.contains(Path::new(&s.file)) {
                return true;
            }
            match self.in_force.get(&s.tenant).filter(|text| **text != s.text) {
                Some(text) => {
                    s.text = text.clone();
                    fell_back = true;
                    true
                }
                None => false,
            }
        });
        fell_back || sources.len() != before
    }

    /// Returns the files that are at fault. Empty if the platform's file is at fault at a start.
    fn blamed(&self, found: &Findings, files: &[TenantFile], sources: &[Source]) -> BTreeSet<PathBuf> {
        match self.is_start() {
            true => blamed_at_start(found),
            false => blamed_at_reload(found, files, self.in_force, sources),
        }
    }

    /// Removes entries that depend on entries which the other files lack. Returns a line for each removed entry.
    fn prune(&self, files: &mut [TenantFile], on_disk: &BTreeSet<TenantName>) -> Vec<Problem> {
        let tenants: BTreeSet<TenantName> = files.iter().map(|f| f.tenant.clone()).collect();
        let claims = TenantClaims::of(files);
        let mut left_out = Vec::new();
        for f in files.iter_mut() {
            let is_absent = |tenant: &TenantName| !tenants.contains(tenant);
            left_out.extend(self.forget_tenants(f, is_absent, on_disk));
            if let Some(claims) = &claims {
                left_out.extend(self.drop_unclaimed(f, claims));
            }
        }
        let audiences: HashMap<SpiffeId, BTreeSet<TenantName>> = files
            .iter()
            .flat_map(|f| &f.audiences)
            .map(|a| (a.audience.name.clone(), a.audience.serves.clone()))
            .collect();
        for f in files.iter_mut() {
            let tenant = f.tenant.clone();
            left_out.extend(self.drop_resources(f, |r| {
                let is_served = audiences.get(&r.audience).is_some_and(|serves| serves.contains(&tenant));
                (!is_served).then(|| {
                    format!("audience `{}` is not declared, or does not serve `{tenant}`", r.audience)
                })
            }));
        }
        let models: HashMap<ResourceName, BTreeSet<TenantName>> = files
            .iter()
            .flat_map(|f| &f.resources)
            .map(|r| (r.resource.name.clone(), r.resource.shared_with.clone()))
            .collect();
        for f in files.iter_mut() {
            let tenant = f.tenant.clone();
            left_out.extend(self.drop_resources(f, |r| {
                let model = &r.checkpoint()?.model;
                let is_visible = models
                    .get(model)
                    .is_some_and(|shared| model.tenant() == tenant || shared.contains(&tenant));
                (!is_visible)
                    .then(|| format!("model `{model}` is not declared, or not shared with `{tenant}`"))
            }));
        }
        left_out
    }

    /// Removes tenants without a file in force from `serves` and `shared_with`. A tenant is removed if its file is on disk,
    /// because then the mistake is in that file, or if the entry in force named the tenant before. A new name without a file
    /// stays, and the check of the catalog reports it as a mistake.
    fn forget_tenants(
        &self,
        f: &mut TenantFile,
        is_absent: impl Fn(&TenantName) -> bool,
        on_disk: &BTreeSet<TenantName>,
    ) -> Vec<Problem> {
        let mut left_out = Vec::new();
        let mut forgotten = |line, tenant: &TenantName, list: &str, was_named: bool| {
            if !is_absent(tenant) || !(was_named || on_disk.contains(tenant)) {
                return false;
            }
            if self.is_start() && !on_disk.contains(tenant) {
                let what = format!("`{list}` names tenant `{tenant}`, which has no file: it is left out");
                left_out.push((line, what, format!("add {tenant}.toml, or remove the name")));
            }
            true
        };
        for a in &mut f.audiences {
            let was_named = |t: &TenantName| self.earlier.served(&a.audience, t);
            let absent: BTreeSet<TenantName> = a
                .serves
                .iter()
                .filter(|t| forgotten(t.line, &t.value, "serves", was_named(&t.value)))
                .map(|t| t.value.clone())
                .collect();
            a.serves.retain(|t| !absent.contains(&t.value));
            a.audience.serves.retain(|t| !absent.contains(t));
            a.audience.reached_by.retain(|t| !absent.contains(t));
        }
        for r in &mut f.resources {
            let was_named = |t: &TenantName| self.earlier.shared(&r.resource, t);
            let absent: BTreeSet<TenantName> = r
                .shared
                .iter()
                .filter(|t| forgotten(t.line, &t.value, "shared_with", was_named(&t.value)))
                .map(|t| t.value.clone())
                .collect();
            r.shared.retain(|t| !absent.contains(&t.value));
            r.resource.shared_with.retain(|t| !absent.contains(t));
        }
        left_out.into_iter().map(|(line, what, fix)| problem(f, line, what, fix)).collect()
    }

    /// Removes entries with identities that the platform does not let a tenant name. If a removed principal and a later principal
    /// can match the same identity, also removes the later principal, because it must not apply to identities of the earlier
    /// principal.
    fn drop_unclaimed(&self, f: &mut TenantFile, claims: &TenantClaims) -> Vec<Problem> {
        let (mut principals, mut audiences) =
            (std::mem::take(&mut f.principals), std::mem::take(&mut f.audiences));
        let mut left_out = Vec::new();
        let mut leave_out = |line, what: String, why: &str| {
            let what = format!("{what} is left out: {why}");
            left_out.push(problem(f, line, what, "ask the platform for a [[claim]]"));
        };
        let not_claimed = "the platform's file does not let this tenant name it";
        let mut removed: Vec<SpiffePattern> = Vec::new();
        principals.retain(|p| {
            let pattern = &p.value.pattern;
            let why = if removed.iter().any(|earlier| pattern.overlaps(earlier)) {
                "it can match an identity of an earlier entry that is left out"
            } else if claims.cover(&f.tenant, pattern) || !self.earlier.had_principal(&f.tenant, pattern) {
                return true;
            } else {
                not_claimed
            };
            leave_out(p.line, format!("principal `{pattern}`"), why);
            removed.push(pattern.clone());
            false
        });
        let mut forgotten = BTreeSet::new();
        audiences.retain(|a| {
            let mut ids = std::iter::once(&a.audience.name).chain(&a.audience.verifiers);
            let is_claimed = ids.all(|id| id.as_str().parse().is_ok_and(|p| claims.cover(&f.tenant, &p)));
            let keep = is_claimed || !self.earlier.had_audience(&a.audience);
            if !keep {
                leave_out(a.line, format!("audience `{}`", a.audience.name), not_claimed);
                forgotten.insert(a.audience.name.clone());
            }
            keep
        });
        (f.principals, f.audiences) = (principals, audiences);
        f.named_audiences.retain(|name| !forgotten.contains(name));
        left_out
    }

    /// Removes the resources that lack something. A resource that was not in force stays: the check of the catalog then reports
    /// it as a mistake of its file. `lacking` returns what a resource lacks.
    fn drop_resources(
        &self,
        f: &mut TenantFile,
        lacking: impl Fn(&super::Resource) -> Option<String>,
    ) -> Vec<Problem> {
        let mut left_out = Vec::new();
        for r in std::mem::take(&mut f.resources) {
            match lacking(&r.resource).filter(|_| self.earlier.had_resource(&r.resource)) {
                Some(lacks) => {
                    let what = format!("{} is left out: {lacks}", r.resource.name);
                    left_out.push(problem(
                        f,
                        r.line,
                        what,
                        "name another one, or ask the tenant that declares it",
                    ));
                    f.named_resources.remove(&r.resource.name);
                }
                None => f.resources.push(r),
            }
        }
        left_out
    }
}

/// Returns the tenant of a file, if the file name has the right form.
fn tenant_of(file: &Path) -> Option<TenantName> {
    file.to_str()?.strip_suffix(".toml")?.parse().ok()
}

/// Returns the tenants that have a file, with or without mistakes.
fn on_disk(sources: &[Source], unread: &BTreeSet<Problem>) -> BTreeSet<TenantName> {
    let unread = unread.iter().filter_map(|p| tenant_of(&p.file));
    sources.iter().map(|s| s.tenant.clone()).chain(unread).collect()
}

/// Keeps the earlier text of a file that exists but cannot be read. A file that does not exist was removed.
fn keep_unreadable(sources: &mut Vec<Source>, unread: &BTreeSet<Problem>, in_force: &InForce) {
    for (tenant, text) in in_force {
        let file = format!("{tenant}.toml");
        if unread.iter().any(|f| f.file == Path::new(&file)) && !sources.iter().any(|s| s.tenant == *tenant) {
            sources.push(Source { file, tenant: tenant.clone(), text: text.clone() });
        }
    }
    sources.sort_by(|a, b| a.file.cmp(&b.file));
}

/// Returns the files that are at fault at a start. If two tenants are in conflict, both files are at fault. It is not
/// known which entry came first, and the identity or audience must not go to the wrong tenant. In a conflict with the
/// platform's file, the tenant's file is at fault. Empty if the platform's file has a mistake itself.
fn blamed_at_start(found: &Findings) -> BTreeSet<PathBuf> {
    let platform = PathBuf::from(format!("{PLATFORM}.toml"));
    let with_others = found.conflicts.iter().filter(|(file, other)| *file == platform && *other != platform);
    let platforms = found.problems.iter().filter(|p| p.file == platform);
    if platforms.count() > with_others.count() {
        return BTreeSet::new();
    }
    let files = found.problems.iter().map(|p| &p.file).chain(found.conflicts.iter().map(|(_, other)| other));
    files.filter(|file| **file != platform).cloned().collect()
}

/// Returns the files that are at fault at a reload. Of two files in conflict, the changed file is at fault.
fn blamed_at_reload(
    found: &Findings,
    files: &[TenantFile],
    in_force: &InForce,
    sources: &[Source],
) -> BTreeSet<PathBuf> {
    let is_in_force = |source: &Source| in_force.get(&source.tenant) == Some(&source.text);
    let changed = |file: &Path| sources.iter().any(|s| Path::new(&s.file) == file && !is_in_force(s));
    let largest_changed = || {
        let entries = |f: &TenantFile| f.principals.len() + f.audiences.len() + f.resources.len();
        files
            .iter()
            .filter(|f| changed(Path::new(&f.file)))
            .max_by_key(|f| entries(f))
            .map(|f| PathBuf::from(&f.file))
    };
    let of_problem = |problem: &Problem| {
        if changed(&problem.file) {
            return problem.file.clone();
        }
        let others = found.conflicts.iter().filter(|(file, _)| *file == problem.file).map(|(_, other)| other);
        let other = others.into_iter().find(|other| changed(other)).cloned();
        other.or_else(largest_changed).unwrap_or_else(|| problem.file.clone())
    };
    found.problems.iter().map(of_problem).collect()
}

#[cfg(test)]
#[path = "accepted_tests.rs"]
mod tests;
