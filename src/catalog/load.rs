//! Reads a directory of tenant files, and checks what one file alone cannot show.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use super::{
    Catalog, CatalogErrors, IdentityUse, Principal,
    document::Placed,
    fault::Fault,
    file::{self, TenantFile},
    index::Index,
};
use crate::{
    limits::{CATALOG_ENTRIES_MAX, FILE_BYTES_MAX},
    name::{Digest, PrincipalKind, ResourceName, SpiffeId, SpiffePattern, TenantName, TrustDomain},
};

impl Catalog {
    /// Reads a directory of `TENANT.toml` files. Answers every mistake, or a catalog without one.
    pub fn load(dir: &Path) -> Result<Self, CatalogErrors> {
        read(dir).map(Self::of)
    }

    /// Knows nobody and nothing.
    pub fn empty() -> Self {
        Self::of(nothing())
    }
}

fn nothing() -> Index {
    Index { digest: Some(digest(&[])), ..Index::default() }
}

/// Reads all `TENANT.toml` files of a directory.
fn read(dir: &Path) -> Result<Index, CatalogErrors> {
    let mut faults = Vec::new();
    let mut warnings = Vec::new();
    let sources = sources(dir, &mut faults, &mut warnings);
    let files: Vec<TenantFile> = sources.iter().map(|s| file::read(&s.file, &s.tenant, &s.text)).collect();
    let mut index = nothing();
    index.digest = Some(digest(&sources));
    index.tenants = files.iter().map(|f| f.tenant.clone()).collect();
    check_size(&files, &mut faults);
    check_audiences(&files, &mut faults);
    check_resources(&files, &mut faults);
    check_principals(&files, &mut faults);
    let mut files = files;
    faults.extend(files.iter_mut().flat_map(|f| std::mem::take(&mut f.faults)));
    if let Some(errors) = CatalogErrors::of(faults) {
        return Err(errors);
    }
    if files.is_empty() {
        warnings.push(format!("{}: no TENANT.toml in it, so nobody may do anything", dir.display()));
    }
    index.warnings = warnings;
    assemble(files, &mut index);
    Ok(index)
}

struct Source {
    file: String,
    tenant: TenantName,
    text: String,
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

/// The files, in the order of their names.
fn sources(dir: &Path, faults: &mut Vec<Fault>, warnings: &mut Vec<String>) -> Vec<Source> {
    let mut fault = |file: &str, what: String, instead: &str| {
        faults.push(Fault { file: file.to_owned(), line: 0, what, instead: instead.to_owned() });
    };
    let shown = dir.display().to_string();
    let names = match fs::read_dir(dir).and_then(|d| d.collect::<Result<Vec<_>, _>>()) {
        Ok(entries) => entries,
        Err(e) => {
            fault(
                &shown,
                format!("the directory cannot be read: {e}"),
                "name a directory of TENANT.toml files",
            );
            return Vec::new();
        }
    };
    let mut names: Vec<_> = names.into_iter().map(|e| e.file_name()).collect();
    names.sort();
    let mut out = Vec::new();
    for name in names {
        let Some(file) = name.to_str() else {
            warnings.push(format!("{}: not read, its name is not UTF-8", name.display()));
            continue;
        };
        // Hidden files are how editors and mounted volumes keep their own.
        if file.starts_with('.') {
            continue;
        }
        let Some(stem) = file.strip_suffix(".toml") else {
            warnings.push(format!("{file}: not read, a catalog file is named TENANT.toml"));
            continue;
        };
        let Ok(tenant) = stem.parse::<TenantName>() else {
            fault(file, format!("`{stem}` is not a tenant name"), "name it TENANT.toml, of a-z, 0-9 and `-`");
            continue;
        };
        let path = dir.join(file);
        match fs::metadata(&path) {
            Ok(m) if m.len() > FILE_BYTES_MAX => {
                fault(
                    file,
                    format!("it has more than {FILE_BYTES_MAX} bytes"),
                    "split the tenant, or drop what is not used",
                );
                continue;
            }
            _ => {}
        }
        match fs::read_to_string(&path) {
            Ok(text) => out.push(Source { file: file.to_owned(), tenant, text }),
            Err(e) => fault(
                file,
                format!("it cannot be read: {e}"),
                "make it a UTF-8 file that the daemon may read",
            ),
        }
    }
    out
}

fn fault(file: &TenantFile, line: usize, what: String, instead: impl Into<String>) -> Fault {
    Fault { file: file.file.clone(), line, what, instead: instead.into() }
}

fn check_size(files: &[TenantFile], faults: &mut Vec<Fault>) {
    let entries = |f: &TenantFile| f.principals.len() + f.audiences.len() + f.resources.len();
    let mut sum = 0usize;
    for f in files {
        sum += entries(f);
        if sum > CATALOG_ENTRIES_MAX {
            let what = format!("with this file the catalog has more than {CATALOG_ENTRIES_MAX} entries");
            faults.push(fault(f, 0, what, "use patterns, or another daemon for other tenants"));
            return;
        }
    }
}

fn check_audiences(files: &[TenantFile], faults: &mut Vec<Fault>) {
    let mut seen: HashMap<&SpiffeId, String> = HashMap::new();
    for f in files {
        for a in &f.audiences {
            if let Some(before) = seen.insert(&a.audience.name, format!("{}:{}", f.file, a.line)) {
                let what = format!("audience `{}` is declared twice, before at {before}", a.audience.name);
                faults.push(fault(
                    f,
                    a.line,
                    what,
                    "declare it once; `serves` lists the tenants that may use it",
                ));
            }
            for t in &a.serves {
                if !files.iter().any(|f| f.tenant == t.value) {
                    let what = format!("`serves` names tenant `{}`, which has no file", t.value);
                    faults.push(fault(f, t.line, what, format!("add {}.toml, or leave it out", t.value)));
                }
            }
        }
    }
}

fn check_resources(files: &[TenantFile], faults: &mut Vec<Fault>) {
    let audiences: HashMap<&SpiffeId, _> =
        files.iter().flat_map(|f| &f.audiences).map(|a| (&a.audience.name, a)).collect();
    let half_named: BTreeSet<&SpiffeId> = files.iter().flat_map(|f| &f.named_audiences).collect();
    let models: HashMap<&ResourceName, _> =
        files.iter().flat_map(|f| &f.resources).map(|r| (&r.resource.name, &r.resource)).collect();
    for f in files {
        check_twins(f, faults);
        for r in &f.resources {
            let name = &r.resource.name;
            match audiences.get(&r.resource.audience) {
                Some(a) if !a.audience.serves.contains(&f.tenant) => {
                    let what = format!(
                        "audience `{}` of {name} does not serve tenant `{}`",
                        r.resource.audience, f.tenant
                    );
                    let instead = format!("add `{}` to its `serves` at {}", f.tenant, a.audience.declared);
                    faults.push(fault(f, r.audience_line, what, instead));
                }
                Some(_) => {}
                None if half_named.contains(&r.resource.audience) => {}
                None => {
                    let what = format!("audience `{}` of {name} is not declared", r.resource.audience);
                    faults.push(fault(
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
                    faults.push(fault(f, t.line, what, "leave it out: a tenant always has its own"));
                } else if !files.iter().any(|f| f.tenant == t.value) {
                    let what = format!("{name} is shared with tenant `{}`, which has no file", t.value);
                    faults.push(fault(f, t.line, what, format!("add {}.toml, or leave it out", t.value)));
                }
            }
            if let Some(model) = r.resource.checkpoint().map(|c| &c.model) {
                let known = models.get(model).is_some_and(|m| m.visible_to(&f.tenant));
                let half_named = f.named_resources.contains(model);
                if !known && !half_named {
                    let what = format!(
                        "model `{model}` of {name} is not declared, or not shared with `{}`",
                        f.tenant
                    );
                    faults.push(fault(
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

/// Names that are there twice, or differ in nothing but upper and lower case.
fn check_twins(f: &TenantFile, faults: &mut Vec<Fault>) {
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
                format!("{name} differs from {other} in upper and lower case alone")
            };
            faults.push(fault(f, r.line, what, "give each its own name or version"));
        } else if twin != stem {
            let what = format!("{stem} differs from {twin} in upper and lower case alone");
            faults.push(fault(f, r.line, what, "write both versions under one name"));
        }
    }
}

/// Principals of one trust domain, for pairwise looks that stay small.
struct Placement<'c> {
    file: &'c TenantFile,
    entry: &'c Placed<Principal>,
}

fn check_principals(files: &[TenantFile], faults: &mut Vec<Fault>) {
    let mut patterns: HashMap<&SpiffePattern, Placement<'_>> = HashMap::new();
    let mut wild: HashMap<&TrustDomain, Vec<Placement<'_>>> = HashMap::new();
    let mut exact: HashMap<&TrustDomain, Vec<Placement<'_>>> = HashMap::new();
    for file in files {
        for entry in &file.principals {
            let pattern = &entry.value.pattern;
            if let Some(before) = patterns.insert(pattern, Placement { file, entry }) {
                if before.file.tenant == file.tenant {
                    let what =
                        format!("`{pattern}` is matched twice, before at {}", before.entry.value.matched);
                    faults.push(fault(
                        file,
                        entry.line,
                        what,
                        "write one entry for it: the first match wins",
                    ));
                } else {
                    faults.push(overlap(file, entry, &before));
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
                    faults.push(overlap(second.file, second.entry, first));
                }
            }
        }
    }
    check_verifiers(files, faults);
}

fn overlap(file: &TenantFile, entry: &Placed<Principal>, other: &Placement<'_>) -> Fault {
    let what = format!(
        "`{}` can match an identity that `{}` of tenant `{}` matches too, at {}",
        entry.value.pattern, other.entry.value.pattern, other.file.tenant, other.entry.value.matched
    );
    fault(file, entry.line, what, "narrow one of them: an identity belongs to one tenant")
}

/// An identity that checks for an audience is a verifier of one tenant, by an entry of its own or without one.
fn check_verifiers(files: &[TenantFile], faults: &mut Vec<Fault>) {
    let mut seen: HashMap<&SpiffeId, &TenantName> = HashMap::new();
    for f in files {
        for a in &f.audiences {
            for id in &a.audience.verifiers {
                let before = seen.entry(id).or_insert(&f.tenant);
                if **before != f.tenant {
                    let what = format!("`{id}` verifies for an audience of tenant `{before}` already");
                    faults.push(fault(
                        f,
                        a.line,
                        what,
                        "declare one audience and list both tenants in its `serves`",
                    ));
                }
                if let Some((owner, entry)) = entry_of(files, id) {
                    if entry.kind != PrincipalKind::Verifier {
                        let what = format!("verifier `{id}` is a {} by {}", entry.kind, entry.matched);
                        faults.push(fault(
                            f,
                            a.line,
                            what,
                            "give that entry kind = \"verifier\", or narrow its match",
                        ));
                    } else if owner.tenant != f.tenant {
                        let what = format!(
                            "verifier `{id}` belongs to tenant `{}` by {}",
                            owner.tenant, entry.matched
                        );
                        faults.push(fault(f, a.line, what, "declare the audience in the file of that tenant and list this one in its `serves`"));
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

/// Puts what was found good together.
fn assemble(files: Vec<TenantFile>, index: &mut Index) {
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
                        matched: a.audience.declared.clone(),
                        human_segment: None,
                    });
                }
            }
        }
    }
    implied.sort_by(|a, b| a.pattern.cmp(&b.pattern));
    implied.dedup_by(|a, b| a.pattern == b.pattern);
    for f in files {
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
