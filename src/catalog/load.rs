//! Reads a directory of tenant files, and checks what needs more than one file.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Catalog, CatalogErrors, IdentityUse, Principal, accepted,
    file::{self, PLATFORM, TenantFile},
    index::CatalogIndex,
    locations::check_locations,
};
use crate::{
    limits::{CATALOG_ENTRIES_MAX, CATALOG_ENTRIES_PER_TENANT_MAX, FILE_BYTES_MAX},
    name::{Digest, PrincipalKind, ResourceName, SpiffeId, SpiffePattern, TenantName, TrustDomain},
    plain,
    written::{Placed, Problem, read_regular_text},
};

impl Catalog {
    /// Reads a directory of `TENANT.toml` files, to check them.
    ///
    /// # Errors
    /// Every mistake in them.
    pub fn load(dir: &Path) -> Result<Self, CatalogErrors> {
        read(dir).map(Self::of)
    }

    /// Reads the directory for a daemon that starts. A mistake of one tenant does not hold the others back:
    /// [`Catalog::not_taken`] lists what was left out.
    ///
    /// # Errors
    /// If the platform's file has a mistake, or if no file can be used.
    pub fn load_at_start(dir: &Path) -> Result<Self, CatalogErrors> {
        accepted::read_at_start(dir).map(Self::of)
    }

    /// Reads the directory again and returns the catalog that replaces this one. A mistake of one tenant does not hold the
    /// others back: [`Catalog::not_taken`] lists what was left out.
    ///
    /// # Errors
    ///
    /// No file can be used: the directory cannot be read, or every file has a mistake and no earlier text.
    pub fn reload(&self, dir: &Path) -> Result<Self, CatalogErrors> {
        accepted::reload(dir, self.sources()).map(Self::of)
    }

    /// Builds the catalog of these files again.
    ///
    /// # Errors
    /// Every mistake in them. What a reload left out of a catalog in force is a mistake here.
    pub fn of_texts(texts: impl IntoIterator<Item = (TenantName, Arc<str>)>) -> Result<Self, CatalogErrors> {
        let source = |(tenant, text)| Source { file: format!("{tenant}.toml"), tenant, text };
        let mut sources: Vec<Source> = texts.into_iter().map(source).collect();
        sources.sort_by(|a, b| a.file.cmp(&b.file));
        let mut files = parsed(&sources);
        match CatalogErrors::of(check(&mut files).problems) {
            Some(errors) => Err(errors),
            None => Ok(Self::of(indexed(Path::new("the kept catalog"), &sources, files, Vec::new()))),
        }
    }

    /// Returns a catalog without entries.
    pub fn empty() -> Self {
        Self::of(empty_index())
    }
}

fn empty_index() -> CatalogIndex {
    CatalogIndex { digest: Some(digest(&[])), ..CatalogIndex::default() }
}

/// Reads all `TENANT.toml` files of a directory.
fn read(dir: &Path) -> Result<CatalogIndex, CatalogErrors> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let sources = sources(dir, &mut problems, &mut warnings).unwrap_or_default();
    let mut files = parsed(&sources);
    problems.extend(check(&mut files).problems);
    match CatalogErrors::of(problems) {
        Some(errors) => Err(errors),
        None => Ok(indexed(dir, &sources, files, warnings)),
    }
}

pub(super) fn parsed(sources: &[Source]) -> Vec<TenantFile> {
    sources.iter().map(|s| file::read(&s.file, &s.tenant, &s.text)).collect()
}

/// Builds the index from files that have no mistakes.
pub(super) fn indexed(
    dir: &Path,
    sources: &[Source],
    files: Vec<TenantFile>,
    mut warnings: Vec<String>,
) -> CatalogIndex {
    if files.is_empty() {
        warnings.push(format!("{}: no TENANT.toml in it, so no one may do anything", plain::path(dir)));
    }
    let mut index = CatalogIndex {
        digest: Some(digest(sources)),
        warnings,
        tenants: files.iter().map(|f| f.tenant.clone()).collect(),
        sources: sources.iter().map(|s| (s.tenant.clone(), s.text.clone())).collect(),
        ..CatalogIndex::default()
    };
    assemble(files, &mut index);
    index
}

/// The mistakes of each file, and of all of them together.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    /// Conflicts of two files: the file that a problem is noted for, and the other one.
    pub(super) conflicts: Vec<(PathBuf, PathBuf)>,
}

impl Findings {
    pub(super) fn conflict(&mut self, problem: Problem, other: &TenantFile) {
        self.conflicts.push((problem.file.clone(), PathBuf::from(&other.file)));
        self.problems.push(problem);
    }
}

/// Finds every mistake.
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

/// Finds what is wrong with a file without regard to the others: mistakes in it, and names that the platform does not let it
/// write. A file with such a fault is put aside before files are compared, so that it cannot put the fault on another one.
pub(super) fn check_each(files: &[TenantFile]) -> Findings {
    let mut found = Findings::default();
    // If the platform's file has mistakes, some of its claims may be missing. No other file is at fault for that.
    if files.iter().all(|f| f.tenant.as_str() != PLATFORM || f.problems.is_empty()) {
        check_claims(files, &mut found.problems);
    }
    found.problems.extend(files.iter().flat_map(|f| f.problems.iter().cloned()));
    found
}

/// One file as it was read.
pub(super) struct Source {
    pub(super) file: String,
    pub(super) tenant: TenantName,
    pub(super) text: Arc<str>,
}

fn digest(sources: &[Source]) -> Digest {
    let mut bytes = b"leasehold catalog v1\n".to_vec();
    for s in sources {
        for part in [s.file.as_bytes(), s.text.as_bytes()] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
    }
    Digest::of(&bytes)
}

/// Returns the files, in the order of their names. `None` if the directory cannot be read.
pub(super) fn sources(
    dir: &Path,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Option<Vec<Source>> {
    let mut problem = |file: &str, what: String, fix: &str| {
        problems.push(Problem { file: file.into(), line: 0, what: format!("{what}; {fix}") });
    };
    let shown = plain::path(dir);
    let names = match fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(e) => {
            problem(
                &shown,
                format!("the directory cannot be read: {e}"),
                "name a directory of TENANT.toml files",
            );
            return None;
        }
    };
    let mut names: Vec<_> = names.into_iter().map(|e| e.file_name()).collect();
    names.sort();
    let mut out = Vec::new();
    for name in names {
        let Some(file) = name.to_str() else {
            warnings
                .push(format!("{}: not read, its name is not UTF-8", plain::value(&name.to_string_lossy())));
            continue;
        };
        // Editors and mounted volumes keep their own data in hidden files.
        if file.starts_with('.') {
            continue;
        }
        let Some(stem) = file.strip_suffix(".toml") else {
            warnings.push(format!("{file}: not read, a catalog file is named TENANT.toml"));
            continue;
        };
        let Ok(tenant) = stem.parse::<TenantName>() else {
            problem(
                file,
                format!("`{stem}` is not a tenant name"),
                "name it TENANT.toml, of a-z, 0-9 and `-`",
            );
            continue;
        };
        match read_regular_text(&dir.join(file), FILE_BYTES_MAX) {
            Ok(text) => out.push(Source { file: file.to_owned(), tenant, text: text.into() }),
            Err(why) => problem(
                file,
                format!("it {why}"),
                "make it a UTF-8 file that the daemon may read, or split the tenant",
            ),
        }
    }
    Some(out)
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

/// Checks that the platform lets each tenant name the identities in its file. Without a platform's file, all files belong to
/// one team.
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
    /// `None` without a platform's file.
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
    // The entry of such a name may have a mistake. A reference to it is not a second mistake.
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
                    problems.push(problem(f, t.line, what, "leave it out: a tenant always has its own"));
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
            problems.push(problem(f, r.line, what, "give each its own name or version"));
        } else if twin != stem {
            let what = format!("{stem} differs from {twin} in upper and lower case only");
            problems.push(problem(f, r.line, what, "write both versions under one name"));
        }
    }
}

/// A principal entry and its file.
struct Placement<'c> {
    file: &'c TenantFile,
    entry: &'c Placed<Principal>,
}

fn check_principals(files: &[TenantFile], found: &mut Findings) {
    let mut patterns: HashMap<&SpiffePattern, Placement<'_>> = HashMap::new();
    // By trust domain, so that few pairs are compared.
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

fn entry_of<'c>(files: &'c [TenantFile], id: &SpiffeId) -> Option<(&'c TenantFile, &'c Principal)> {
    files
        .iter()
        .find_map(|f| f.principals.iter().find(|p| p.value.pattern.matches(id)).map(|p| (f, &p.value)))
}

/// Fills the index with the good entries of all files.
fn assemble(files: Vec<TenantFile>, index: &mut CatalogIndex) {
    let mut implied = Vec::new();
    for f in &files {
        for a in &f.audiences {
            for id in a.audience.verifiers.iter().filter(|id| entry_of(&files, id).is_none()) {
                if let Ok(pattern) = id.as_str().parse() {
                    implied.push(Principal {
                        tenant: f.tenant.clone(),
                        pattern,
                        kind: PrincipalKind::Verifier,
                        identity: IdentityUse::Shared,
                        roles: BTreeSet::new(),
                        groups: BTreeSet::new(),
                        may_act_for: Vec::new(),
                        disabled: false,
                        declared_at: a.audience.declared.clone(),
                        human_segment: None,
                    });
                }
            }
        }
    }
    implied.sort_by(|a, b| a.pattern.cmp(&b.pattern));
    implied.dedup_by(|a, b| a.pattern == b.pattern);
    for f in files {
        index.exceptions.observed.extend(f.exceptions.observed);
        index.exceptions.waivers.extend(f.exceptions.waivers);
        index.principals.extend(f.principals.into_iter().map(|p| Arc::new(p.value)));
        index.audiences.extend(f.audiences.into_iter().map(|a| (a.audience.name.clone(), a.audience)));
        index.resources.extend(f.resources.into_iter().map(|r| (r.resource.name.clone(), r.resource)));
    }
    index.principals.extend(implied.into_iter().map(Arc::new));
    for r in index.resources.values() {
        if let Some(a) = index.audiences.get_mut(&r.audience) {
            a.reached_by.extend(r.shared_with.iter().cloned());
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
