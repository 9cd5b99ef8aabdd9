//! Reloads the catalog directory: accepts the files that are valid and keeps the earlier text of the others.
//!
//! Each tenant writes its own file, so the mistake of one must not hold the others back: a removal in a good file takes
//! effect whatever is in the next one. A file with a mistake stays as it was. An entry that depends on what another
//! tenant removed is left out, since keeping it would undo the removal.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    CatalogErrors,
    file::TenantFile,
    index::CatalogIndex,
    load::{Findings, Source, TenantClaims, check, check_each, indexed, parsed, problem, sources},
};
use crate::{
    name::{ResourceName, SpiffeId, TenantName},
    written::Problem,
};

type InForce = BTreeMap<TenantName, Arc<str>>;

/// Reads a directory again. Fails only if no file can be used.
pub(super) fn reload(dir: &Path, in_force: &InForce) -> Result<CatalogIndex, CatalogErrors> {
    let (mut unread, mut warnings) = (Vec::new(), Vec::new());
    let found = sources(dir, &mut unread, &mut warnings);
    let mut problems: BTreeSet<Problem> = unread.into_iter().collect();
    let Some(mut sources) = found else { return Err(CatalogErrors::sorted(problems)) };
    keep_unreadable(&mut sources, &problems, in_force);
    loop {
        let mut files = parsed(&sources);
        let pruned = prune(&mut files, in_force, &sources);
        let each = check_each(&files);
        let found = if each.problems.is_empty() { check(&mut files) } else { each };
        if found.problems.is_empty() {
            problems.extend(pruned);
            let mut index = indexed(dir, &sources, files, warnings);
            index.not_taken = problems.into_iter().collect();
            return Ok(index);
        }
        let blamed = blamed(&found, &files, in_force, &sources);
        problems.extend(found.problems);
        let before = sources.len();
        let mut fell_back = false;
        sources.retain_mut(|s| {
            if !blamed.contains(Path::new(&s.file)) {
                return true;
            }
            match in_force.get(&s.tenant).filter(|text| **text != s.text) {
                Some(text) => {
                    s.text = text.clone();
                    fell_back = true;
                    true
                }
                // It does not fit the others any more, and there is no earlier text to fall back on.
                None => false,
            }
        });
        if !fell_back && sources.len() == before {
            return Err(CatalogErrors::sorted(problems));
        }
    }
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

/// Whether this text of a file is in force.
fn is_in_force(in_force: &InForce, source: &Source) -> bool {
    in_force.get(&source.tenant) == Some(&source.text)
}

/// Returns the files to blame: of two that conflict, the one that changed.
fn blamed(
    found: &Findings,
    files: &[TenantFile],
    in_force: &InForce,
    sources: &[Source],
) -> BTreeSet<PathBuf> {
    let changed =
        |file: &Path| sources.iter().any(|s| Path::new(&s.file) == file && !is_in_force(in_force, s));
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

/// Removes entries of unchanged files that depend on entries that other files dropped.
fn prune(files: &mut [TenantFile], in_force: &InForce, sources: &[Source]) -> Vec<Problem> {
    let tenants: BTreeSet<TenantName> = files.iter().map(|f| f.tenant.clone()).collect();
    let claims = TenantClaims::of(files);
    let mut left_out = Vec::new();
    for (f, _) in files.iter_mut().zip(sources).filter(|(_, s)| is_in_force(in_force, s)) {
        forget_tenants(f, &tenants);
        if let Some(claims) = &claims {
            left_out.extend(drop_unclaimed(f, claims));
        }
    }
    let audiences: HashMap<SpiffeId, BTreeSet<TenantName>> = files
        .iter()
        .flat_map(|f| &f.audiences)
        .map(|a| (a.audience.name.clone(), a.audience.serves.clone()))
        .collect();
    for (f, _) in files.iter_mut().zip(sources).filter(|(_, s)| is_in_force(in_force, s)) {
        let is_served = |audience: &SpiffeId, tenant: &TenantName| {
            audiences.get(audience).is_some_and(|serves| serves.contains(tenant))
        };
        left_out.extend(drop_resources(f, "the audience that serves it", |r, tenant| {
            is_served(&r.audience, tenant)
        }));
    }
    let models: HashMap<ResourceName, BTreeSet<TenantName>> = files
        .iter()
        .flat_map(|f| &f.resources)
        .map(|r| (r.resource.name.clone(), r.resource.shared_with.clone()))
        .collect();
    for (f, _) in files.iter_mut().zip(sources).filter(|(_, s)| is_in_force(in_force, s)) {
        left_out.extend(drop_resources(f, "the model that it changes", |r, tenant| {
            let model = r.checkpoint().map(|c| &c.model);
            model.is_none_or(|m| {
                models.get(m).is_some_and(|shared| m.tenant() == *tenant || shared.contains(tenant))
            })
        }));
    }
    left_out
}

/// Removes tenants without a file from `serves` and `shared_with`.
fn forget_tenants(f: &mut TenantFile, tenants: &BTreeSet<TenantName>) {
    for a in &mut f.audiences {
        a.serves.retain(|t| tenants.contains(&t.value));
        a.audience.serves.retain(|t| tenants.contains(t));
        a.audience.reached_by.retain(|t| tenants.contains(t));
    }
    for r in &mut f.resources {
        r.shared.retain(|t| tenants.contains(&t.value));
        r.resource.shared_with.retain(|t| tenants.contains(t));
    }
}

/// Removes entries with identities that the platform no longer lets a tenant name.
fn drop_unclaimed(f: &mut TenantFile, claims: &TenantClaims) -> Vec<Problem> {
    let (mut principals, mut audiences) =
        (std::mem::take(&mut f.principals), std::mem::take(&mut f.audiences));
    let mut left_out = Vec::new();
    let mut leave_out = |line, what: String| {
        let what =
            format!("{what} is left out: the platform's file does not let this tenant name it any more");
        left_out.push(problem(f, line, what, "ask the platform for a [[claim]]"));
    };
    principals.retain(|p| {
        let keep = claims.cover(&f.tenant, &p.value.pattern);
        if !keep {
            leave_out(p.line, format!("principal `{}`", p.value.pattern));
        }
        keep
    });
    audiences.retain(|a| {
        let mut ids = std::iter::once(&a.audience.name).chain(&a.audience.verifiers);
        let keep = ids.all(|id| id.as_str().parse().is_ok_and(|p| claims.cover(&f.tenant, &p)));
        if !keep {
            leave_out(a.line, format!("audience `{}`", a.audience.name));
        }
        keep
    });
    (f.principals, f.audiences) = (principals, audiences);
    left_out
}

/// Removes resources whose audience or model is gone.
fn drop_resources(
    f: &mut TenantFile,
    lacks: &str,
    is_present: impl Fn(&super::Resource, &TenantName) -> bool,
) -> Vec<Problem> {
    let resources = std::mem::take(&mut f.resources);
    let (kept, dropped): (Vec<_>, Vec<_>) =
        resources.into_iter().partition(|r| is_present(&r.resource, &f.tenant));
    f.resources = kept;
    let left_out = |r: super::file::ParsedResource| {
        let what = format!("{} is left out: {lacks} is no longer there for this tenant", r.resource.name);
        problem(f, r.line, what, "name another one, or ask the tenant that declared it")
    };
    dropped.into_iter().map(left_out).collect()
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
