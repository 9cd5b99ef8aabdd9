//! Reads a directory of tenant files, and makes the index of their entries.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use super::{
    Catalog, CatalogErrors, IdentityUse, Principal, accepted,
    checks::{check, entry_of},
    file::{self, TenantFile},
    index::CatalogIndex,
};
use crate::{
    limits::FILE_BYTES_MAX,
    name::{Digest, PrincipalKind, TenantName},
    plain,
    written::{Problem, read_regular_text},
};

impl Catalog {
    /// Reads a directory of `TENANT.toml` files, to check them.
    ///
    /// # Errors
    /// Every mistake in the files.
    pub fn load(dir: &Path) -> Result<Self, CatalogErrors> {
        read(dir).map(Self::of)
    }

    /// Reads the directory for a daemon that starts. A mistake of one tenant does not affect the others:
    /// [`Catalog::not_taken`] lists what was left out.
    ///
    /// # Errors
    /// If the platform's file has a mistake, or if no file can be used.
    pub fn load_at_start(dir: &Path) -> Result<Self, CatalogErrors> {
        accepted::read_at_start(dir).map(Self::of)
    }

    /// Reads the directory again and returns the new catalog. A mistake of one tenant does not affect the others:
    /// [`Catalog::not_taken`] lists what was left out.
    ///
    /// # Errors
    ///
    /// No file can be used: the directory cannot be read, or every file has a mistake and no earlier version of it was
    /// in force.
    pub fn reload(&self, dir: &Path) -> Result<Self, CatalogErrors> {
        accepted::reload(dir, self.sources()).map(Self::of)
    }

    /// Builds the catalog of these files again.
    ///
    /// # Errors
    /// Every mistake in the files. An entry that a reload would leave out is a mistake here.
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

/// The text of one file as it was read.
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
                "make it a UTF-8 file of at most 16 MiB that the daemon may read",
            ),
        }
    }
    Some(out)
}

/// Fills the index with the entries of these files, which have no mistakes, and with the verifiers that have no entry.
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
    index.implied = implied.len();
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
