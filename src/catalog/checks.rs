//! The checks of tenant files: mistakes in one file, and conflicts between files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    path::PathBuf,
};

use super::{
    Principal,
    file::{PLATFORM, TenantFile},
    locations::check_locations,
};
use crate::{
    limits::{CATALOG_ENTRIES_MAX, CATALOG_ENTRIES_PER_TENANT_MAX},
    name::{PrincipalKind, ResourceName, SpiffeId, SpiffePattern, TenantName, TrustDomain},
    written::{Placed, Problem},
};

/// The mistakes of each file, and of all of them together.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    /// Conflicts of two files: the file with the reported problem, and the other file.
    pub(super) conflicts: Vec<(PathBuf, PathBuf)>,
}

impl Findings {
    pub(super) fn conflict(&mut self, problem: Problem, other: &TenantFile) {
        self.conflicts.push((problem.file.clone(), PathBuf::from(&other.file)));
        self.problems.push(problem);
    }
}

/// Finds every mistake in the files.
pub(super) fn check(files: &mut [TenantFile]) -> Findings {
    let mut found = Findings::default();
    check_size(files, &mut found.problems);
    check_claims(files, &mut found.problems);
    check_audiences(files, &mut found);
    check_resources(files, &mut found.problems);
    check_locations(files, &mut found);
    check_principals(files, &mut found);
    found.problems.extend(files.iter_mut().flat_map(|f| std::mem::take(&mut f.problems)));
    found
}

/// Finds the mistakes of each file without a comparison with other files. These include names that the platform does
/// not allow in the file. Such a file is left out before files are compared, so that its mistake cannot count against
/// another file.
pub(super) fn check_each(files: &[TenantFile]) -> Findings {
    let mut found = Findings::default();
    // If the platform's file has mistakes, some of its claims may be missing. Other files are not at fault for that.
    if files.iter().all(|f| f.tenant.as_str() != PLATFORM || f.problems.is_empty()) {
        check_claims(files, &mut found.problems);
    }
    found.problems.extend(files.iter().flat_map(|f| f.problems.iter().cloned()));
    found
}

pub(super) fn problem(file: &TenantFile, line: usize, what: String, fix: impl Display) -> Problem {
    Problem { file: PathBuf::from(&file.file), line, what: format!("{what}; {fix}") }
}

fn check_size(files: &[TenantFile], problems: &mut Vec<Problem>) {
    let entries = |f: &TenantFile| f.principals.len() + f.audiences.len() + f.resources.len();
    let fix = "use patterns, or another daemon for other tenants";
    if files.len() > 1 {
        for f in files.iter().filter(|f| entries(f) > CATALOG_ENTRIES_PER_TENANT_MAX) {
            let what = format!(
                "a tenant that is not the only one has at most {CATALOG_ENTRIES_PER_TENANT_MAX} entries"
            );
            problems.push(problem(f, 0, what, fix));
        }
    }
    // The largest file is at fault, so that no tenant can get another tenant's file refused.
    let largest = files.iter().max_by_key(|f| entries(f));
    if let Some(f) = largest.filter(|_| files.iter().map(entries).sum::<usize>() > CATALOG_ENTRIES_MAX) {
        let what = format!("the catalog has more than {CATALOG_ENTRIES_MAX} entries, most of them here");
        problems.push(problem(f, 0, what, fix));
    }
}

/// Checks that the platform lets each tenant name the identities in its file. If there is no platform file, all files
/// belong to one team.
fn check_claims(files: &[TenantFile], problems: &mut Vec<Problem>) {
    let Some(claims) = TenantClaims::of(files) else { return };
    for f in files {
        for (line, id) in named_identities(f).filter(|(_, id)| !claims.cover(&f.tenant, id)) {
            let what = format!(
                "tenant `{}` may not name `{id}`: no [[claim]] in {PLATFORM}.toml allows it",
                f.tenant
            );
            let fix = format!(
                "have the platform write a [[claim]] with tenant = \"{}\" and a match that covers it",
                f.tenant
            );
            problems.push(problem(f, line, what, fix));
        }
    }
}

/// Returns the identities of principals, audiences and verifiers in a file, each with its line.
fn named_identities(f: &TenantFile) -> impl Iterator<Item = (usize, SpiffePattern)> {
    let of_audiences = f.audiences.iter().flat_map(|a| {
        let ids = std::iter::once(&a.audience.name).chain(&a.audience.verifiers);
        ids.filter_map(|id| Some((a.line, id.as_str().parse().ok()?)))
    });
    f.principals.iter().map(|p| (p.line, p.value.pattern.clone())).chain(of_audiences)
}

/// The identities that each tenant may name.
pub(super) struct TenantClaims(Vec<(TenantName, SpiffePattern)>);

impl TenantClaims {
    /// Returns the claims. `None` if there is no platform file.
    pub(super) fn of(files: &[TenantFile]) -> Option<Self> {
        files.iter().find(|f| f.tenant.as_str() == PLATFORM).map(|f| TenantClaims(f.claims.clone()))
    }

    pub(super) fn cover(&self, tenant: &TenantName, pattern: &SpiffePattern) -> bool {
        tenant.as_str() == PLATFORM || self.0.iter().any(|(t, claim)| t == tenant && claim.covers(pattern))
    }
}

fn check_audiences(files: &[TenantFile], found: &mut Findings) {
    let mut seen: HashMap<&SpiffeId, (&TenantFile, usize)> = HashMap::new();
    for f in files {
        for a in &f.audiences {
            if let Some((other, line)) = seen.insert(&a.audience.name, (f, a.line)) {
                let what = format!(
                    "audience `{}` is declared twice, first at {}:{line}",
                    a.audience.name, other.file
                );
                let fix = "declare it once; `serves` lists the tenants that may use it";
                found.conflict(problem(f, a.line, what, fix), other);
            }
            for t in &a.serves {
                if !files.iter().any(|f| f.tenant == t.value) {
                    let what = format!("`serves` names tenant `{}`, which has no file", t.value);
                    found.problems.push(problem(
                        f,
                        t.line,
                        what,
                        format!("add {}.toml, or leave it out", t.value),
                    ));
                }
            }
        }
    }
}

fn check_resources(files: &[TenantFile], problems: &mut Vec<Problem>) {
    let audiences: HashMap<&SpiffeId, _> =
        files.iter().flat_map(|f| &f.audiences).map(|a| (&a.audience.name, a)).collect();
    // An entry with a mistake is not in `audiences`, but its name is here. A reference to it is not a second mistake.
    let named_by_entries: BTreeSet<&SpiffeId> = files.iter().flat_map(|f| &f.named_audiences).collect();
    let models: HashMap<&ResourceName, _> =
        files.iter().flat_map(|f| &f.resources).map(|r| (&r.resource.name, &r.resource)).collect();
    for f in files {
        check_twins(f, problems);
        for r in &f.resources {
            let name = &r.resource.name;
            match audiences.get(&r.resource.audience) {
                Some(a) if !a.audience.serves.contains(&f.tenant) => {
                    let what = format!(
                        "audience `{}` of {name} does not serve tenant `{}`",
                        r.resource.audience, f.tenant
                    );
                    let fix = format!("add `{}` to its `serves` at {}", f.tenant, a.audience.declared);
                    problems.push(problem(f, r.audience_line, what, fix));
                }
                Some(_) => {}
                None if named_by_entries.contains(&r.resource.audience) => {}
                None => {
                    let what = format!("audience `{}` of {name} is not declared", r.resource.audience);
                    problems.push(problem(
                        f,
                        r.audience_line,
                        what,
                        "write an [[audience]] with this name, or name one that is declared",
                    ));
                }
            }
            for t in &r.shared {
                if t.value == f.tenant {
                    let what = format!("{name} is shared with its own tenant");
                    problems.push(problem(
                        f,
                        t.line,
                        what,
                        "leave it out: a tenant can always use its own resources",
                    ));
                } else if !files.iter().any(|f| f.tenant == t.value) {
                    let what = format!("{name} is shared with tenant `{}`, which has no file", t.value);
                    problems.push(problem(f, t.line, what, format!("add {}.toml, or leave it out", t.value)));
                }
            }
            if let Some(model) = r.resource.checkpoint().map(|c| &c.model) {
                let known = models.get(model).is_some_and(|m| m.visible_to(&f.tenant));
                let is_named = f.named_resources.contains(model);
                if !known && !is_named {
                    let what = format!(
                        "model `{model}` of {name} is not declared, or not shared with `{}`",
                        f.tenant
                    );
                    problems.push(problem(
                        f,
                        r.model_line,
                        what,
                        "write a [[model]] with this name, or name one that is declared",
                    ));
                }
            }
        }
    }
}

/// Finds names that are declared twice, or differ only in upper and lower case.
fn check_twins(f: &TenantFile, problems: &mut Vec<Problem>) {
    let mut whole: BTreeMap<String, &ResourceName> = BTreeMap::new();
    let mut bare: BTreeMap<String, ResourceName> = BTreeMap::new();
    for r in &f.resources {
        let name = &r.resource.name;
        let other = whole.insert(name.as_str().to_lowercase(), name);
        let stem = name.unversioned();
        let twin = bare.entry(stem.as_str().to_lowercase()).or_insert_with(|| stem.clone()).clone();
        if let Some(other) = other {
            let what = if other == name {
                format!("{name} is declared twice")
            } else {
                format!("{name} differs from {other} in upper and lower case only")
            };
            problems.push(problem(f, r.line, what, "give each entry a different name or version"));
        } else if twin != stem {
            let what = format!("{stem} differs from {twin} in upper and lower case only");
            problems.push(problem(f, r.line, what, "write both versions under one name"));
        }
    }
}

/// A principal entry, and the file that has it.
struct Placement<'c> {
    file: &'c TenantFile,
    entry: &'c Placed<Principal>,
}

fn check_principals(files: &[TenantFile], found: &mut Findings) {
    let mut patterns: HashMap<&SpiffePattern, Placement<'_>> = HashMap::new();
    // The entries are grouped by trust domain, so that few pairs are compared.
    let mut wild: HashMap<&TrustDomain, Vec<Placement<'_>>> = HashMap::new();
    let mut exact: HashMap<&TrustDomain, Vec<Placement<'_>>> = HashMap::new();
    for file in files {
        for entry in &file.principals {
            let pattern = &entry.value.pattern;
            if let Some(before) = patterns.insert(pattern, Placement { file, entry }) {
                if before.file.tenant == file.tenant {
                    let what =
                        format!("`{pattern}` is matched twice, first at {}", before.entry.value.declared_at);
                    let fix = "write one entry for it: the first match wins";
                    found.problems.push(problem(file, entry.line, what, fix));
                } else {
                    found.conflict(overlap(file, entry, &before), before.file);
                }
                continue;
            }
            let by_kind = if pattern.exact().is_some() { &mut exact } else { &mut wild };
            by_kind.entry(pattern.trust_domain()).or_default().push(Placement { file, entry });
        }
    }
    for (domain, wild) in &wild {
        for (i, a) in wild.iter().enumerate() {
            let others = wild.iter().skip(i + 1).chain(exact.get(domain).into_iter().flatten());
            for b in others {
                let other_tenant = a.file.tenant != b.file.tenant;
                if other_tenant && a.entry.value.pattern.overlaps(&b.entry.value.pattern) {
                    let (first, second) = if a.file.file < b.file.file { (a, b) } else { (b, a) };
                    found.conflict(overlap(second.file, second.entry, first), first.file);
                }
            }
        }
    }
    check_verifiers(files, found);
}

fn overlap(file: &TenantFile, entry: &Placed<Principal>, other: &Placement<'_>) -> Problem {
    let what = format!(
        "`{}` can match an identity that `{}` of tenant `{}` matches too, at {}",
        entry.value.pattern, other.entry.value.pattern, other.file.tenant, other.entry.value.declared_at
    );
    problem(file, entry.line, what, "narrow one of them: an identity belongs to one tenant")
}

/// Checks that each verifier of an audience belongs to one tenant, and that its own entry, if any, has the kind `verifier`.
fn check_verifiers(files: &[TenantFile], found: &mut Findings) {
    let mut seen: HashMap<&SpiffeId, &TenantFile> = HashMap::new();
    for f in files {
        for a in &f.audiences {
            for id in &a.audience.verifiers {
                let before = *seen.entry(id).or_insert(f);
                if before.tenant != f.tenant {
                    let what =
                        format!("`{id}` is already a verifier for an audience of tenant `{}`", before.tenant);
                    let fix = "declare one audience and list both tenants in its `serves`";
                    found.conflict(problem(f, a.line, what, fix), before);
                }
                if let Some((owner, entry)) = entry_of(files, id) {
                    if entry.kind != PrincipalKind::Verifier {
                        let what = format!(
                            "verifier `{id}` is declared as {} at {}",
                            entry.kind.with_article(),
                            entry.declared_at
                        );
                        let fix = "give that entry kind = \"verifier\", or narrow its match";
                        found.conflict(problem(f, a.line, what, fix), owner);
                    } else if owner.tenant != f.tenant {
                        let what = format!(
                            "verifier `{id}` belongs to tenant `{}`, as declared at {}",
                            owner.tenant, entry.declared_at
                        );
                        let fix = "declare the audience in the file of that tenant and list this one in its `serves`";
                        found.conflict(problem(f, a.line, what, fix), owner);
                    }
                }
            }
        }
    }
}

/// Returns the entry of an identity, and the file that has it.
pub(super) fn entry_of<'c>(
    files: &'c [TenantFile],
    id: &SpiffeId,
) -> Option<(&'c TenantFile, &'c Principal)> {
    files
        .iter()
        .find_map(|f| f.principals.iter().find(|p| p.value.pattern.matches(id)).map(|p| (f, &p.value)))
}
