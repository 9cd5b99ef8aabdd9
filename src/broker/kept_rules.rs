//! The policies and catalogs that were in force, kept by digest. So a decision can be repeated by the same rules, and
//! an earlier policy can be put in force again.

use std::{
    cmp::Reverse,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::rules::Rules;
use crate::{
    catalog::Catalog,
    clock::Wall,
    limits::{FILE_BYTES_MAX, KEPT_FILE_BYTES_MAX, KEPT_RULES_BYTES_MAX, KEPT_RULES_MAX},
    name::{Digest, TenantName},
    policy::{Engine, Explain, PolicySource, PolicyText, SignedBundle, policy_digest, schema_digest},
    written::read_regular_text,
};

/// A folder of kept policies and catalogs, one file each, named by digest.
pub struct KeptRules {
    dir: PathBuf,
    /// Allows one writer at a time.
    writing: Mutex<()>,
}

/// Why kept rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    #[error(
        "{what} {digest} is not kept: it was in force before the daemon kept rules, or it was removed because of the bound on kept rules"
    )]
    Absent { what: &'static str, digest: Digest },
    #[error("the file of {what} {digest} cannot be used: {why}")]
    Damaged { what: &'static str, digest: Digest, why: String },
    #[error("{what} {digest} is kept, but this version of the daemon reads it differently: {why}")]
    OtherVersion { what: &'static str, digest: Digest, why: String },
}

/// A kept policy, as the history shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPolicy {
    pub digest: Digest,
    /// The time at which the policy last came into force.
    pub since: Wall,
    /// The caller that put the policy in force, and the reason.
    pub by: String,
    pub reason: String,
    pub files: Vec<String>,
}

/// What put rules in force.
#[derive(Clone, Debug)]
pub struct BroughtBy {
    pub since: Wall,
    pub by: String,
    pub reason: String,
}

/// The text of one file on disk.
#[derive(Serialize, Deserialize)]
struct KeptFile {
    v: u32,
    digest: Digest,
    /// The time at which the rules last came into force, in Unix seconds.
    since: u64,
    by: String,
    reason: String,
    /// The schema of the policy.
    schema: Digest,
    texts: Vec<PolicyText>,
    /// The signatures of a policy. Absent if it has none, and in files of older daemons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signed: Option<SignedBundle>,
}

/// The policy that was applied last, and the previous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedPolicy {
    pub digest: Digest,
    pub before: Option<Digest>,
}

const VERSION: u32 = 1;
const APPLIED: &str = "applied.json";
const POLICY: &str = "policy";
const CATALOG: &str = "catalog";

impl KeptRules {
    /// Returns the kept rules of a daemon with this state folder. The first write creates the folder.
    pub fn at(state: &Path) -> Self {
        KeptRules { dir: state.join("policies"), writing: Mutex::new(()) }
    }

    /// Keeps rules that are in force, unless they are kept already. Removes the oldest files past the bounds.
    pub fn keep(&self, rules: &Rules, how: &BroughtBy) -> io::Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let catalog = rules.catalog();
        let texts = catalog.texts().map(|(tenant, text)| PolicyText {
            file: format!("{tenant}.toml"),
            text: text.as_ref().to_owned(),
        });
        if !self.path(CATALOG, catalog.digest()).exists() {
            self.write(CATALOG, catalog.digest(), how, texts.collect(), None)?;
        }
        if !self.path(POLICY, rules.engine.digest()).exists() {
            self.write_policy(rules, how)?;
        }
        self.make_room([rules.engine.digest(), catalog.digest()])
    }

    /// Keeps a policy that comes into force, with the cause.
    pub fn keep_policy(&self, rules: &Rules, how: &BroughtBy) -> io::Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_policy(rules, how)
    }

    fn write_policy(&self, rules: &Rules, how: &BroughtBy) -> io::Result<()> {
        let (engine, signed) = (&rules.engine, rules.signed.clone());
        self.write(POLICY, engine.digest(), how, engine.texts().to_vec(), signed)
    }

    /// Returns the texts of a kept policy, and its signatures.
    pub fn policy(&self, digest: Digest) -> Result<(Vec<PolicyText>, Option<SignedBundle>), NotKept> {
        let kept = self.read(POLICY, digest)?;
        Ok((kept.texts, kept.signed))
    }

    /// Makes an engine that decides by a kept policy and a kept catalog.
    pub fn engine(&self, policy: Digest, catalog: Digest, explain: Explain) -> Result<Engine, NotKept> {
        let texts = self.read(CATALOG, catalog)?.texts;
        let other = |what, digest, why: String| NotKept::OtherVersion { what, digest, why };
        let of_tenant = |t: PolicyText| {
            let tenant = t.file.strip_suffix(".toml").and_then(|name| TenantName::from_str(name).ok())?;
            Some((tenant, Arc::from(t.text)))
        };
        let built = Catalog::of_texts(texts.into_iter().filter_map(of_tenant))
            .map_err(|errors| other("the catalog", catalog, errors.to_string()))?;
        if built.digest() != catalog {
            return Err(other("the catalog", catalog, format!("its digest is now {}", built.digest())));
        }
        let source = PolicySource::Texts(self.policy(policy)?.0);
        let engine = Engine::load(&source, &built, explain)
            .map_err(|errors| other("the policy", policy, errors.to_string()))?;
        if engine.digest() != policy {
            return Err(other("the policy", policy, "its schema has changed since".to_owned()));
        }
        Ok(engine)
    }

    /// Returns the policy that was applied last. `None` if no policy was applied.
    pub fn applied(&self) -> Result<Option<AppliedPolicy>, String> {
        let path = self.dir.join(APPLIED);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_regular_text(&path, FILE_BYTES_MAX)
            .map_err(|why| format!("{}: it {why}", path.display()))?;
        serde_json::from_str(&text).map(Some).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Marks a kept policy as the one that the daemon reads when it starts next.
    pub fn set_applied(&self, digest: Digest, before: Digest) -> io::Result<()> {
        let applied = AppliedPolicy { digest, before: Some(before) };
        let bytes = serde_json::to_vec(&applied).map_err(io::Error::other)?;
        self.replace(&self.dir.join(APPLIED), &bytes)
    }

    /// Lists the kept policies. The policy that came into force last is the first.
    pub fn policies(&self) -> Vec<KeptPolicy> {
        let mut found: Vec<KeptPolicy> = self
            .files()
            .into_iter()
            .filter(|file| file.kind == POLICY)
            .filter_map(|file| self.read(POLICY, file.digest).ok())
            .map(|kept| KeptPolicy {
                digest: kept.digest,
                since: Wall::from_seconds(kept.since),
                by: kept.by,
                reason: kept.reason,
                files: kept.texts.into_iter().map(|t| t.file).collect(),
            })
            .collect();
        found.sort_by_key(|kept| Reverse((kept.since, kept.digest)));
        found
    }

    fn path(&self, kind: &str, digest: Digest) -> PathBuf {
        self.dir.join(format!("{kind}-{}.json", digest.to_string().trim_start_matches("sha256:")))
    }

    fn read(&self, kind: &'static str, digest: Digest) -> Result<KeptFile, NotKept> {
        let what = if kind == POLICY { "the policy" } else { "the catalog" };
        let path = self.path(kind, digest);
        if !path.exists() {
            return Err(NotKept::Absent { what, digest });
        }
        let damaged = |why: String| NotKept::Damaged { what, digest, why };
        let text =
            read_regular_text(&path, KEPT_FILE_BYTES_MAX).map_err(|why| damaged(format!("it {why}")))?;
        let kept: KeptFile = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if kept.v != VERSION || kept.digest != digest {
            return Err(damaged("it is of another policy, or of another version".to_owned()));
        }
        let is_of_this_schema = kind == POLICY && kept.schema == schema_digest();
        if is_of_this_schema && policy_digest(&kept.texts) != digest {
            return Err(damaged("its texts were changed".to_owned()));
        }
        Ok(kept)
    }

    fn write(
        &self,
        kind: &str,
        digest: Digest,
        how: &BroughtBy,
        texts: Vec<PolicyText>,
        signed: Option<SignedBundle>,
    ) -> io::Result<()> {
        let kept = KeptFile {
            v: VERSION,
            digest,
            since: how.since.seconds(),
            by: how.by.clone(),
            reason: how.reason.clone(),
            schema: schema_digest(),
            texts,
            signed,
        };
        let bytes = serde_json::to_vec(&kept).map_err(io::Error::other)?;
        if bytes.len() as u64 > KEPT_FILE_BYTES_MAX {
            return Err(io::Error::other(format!(
                "{} bytes are more than one kept file may have",
                bytes.len()
            )));
        }
        self.replace(&self.path(kind, digest), &bytes)
    }

    /// Replaces a file of the folder, durably.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let mut draft = path.to_owned().into_os_string();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes the oldest files past the bounds, but never the files of `in_force`.
    fn make_room(&self, in_force: [Digest; 2]) -> io::Result<()> {
        let mut files = self.files();
        files.sort_by_key(|file| Reverse(file.modified));
        let (mut bytes, mut policies, mut catalogs) = (0u64, 0usize, 0usize);
        for file in files {
            let count = if file.kind == POLICY { &mut policies } else { &mut catalogs };
            *count = count.saturating_add(1);
            bytes = bytes.saturating_add(file.bytes);
            let is_past = *count > KEPT_RULES_MAX || bytes > KEPT_RULES_BYTES_MAX;
            if is_past && !in_force.contains(&file.digest) {
                fs::remove_file(self.path(file.kind, file.digest))?;
                bytes = bytes.saturating_sub(file.bytes);
                *count = count.saturating_sub(1);
            }
        }
        Ok(())
    }

    fn files(&self) -> Vec<KeptName> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        entries.filter_map(|entry| KeptName::of(&entry.ok()?)).collect()
    }
}

/// A file of the folder, by its name.
struct KeptName {
    kind: &'static str,
    digest: Digest,
    bytes: u64,
    modified: std::time::SystemTime,
}

impl KeptName {
    fn of(entry: &fs::DirEntry) -> Option<Self> {
        let name = entry.file_name().into_string().ok()?;
        let (kind, digest) = name.strip_suffix(".json")?.split_once('-')?;
        let kind = [POLICY, CATALOG].into_iter().find(|k| *k == kind)?;
        let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        let digest = format!("sha256:{digest}").parse().ok()?;
        Some(KeptName { kind, digest, bytes: meta.len(), modified: meta.modified().ok()? })
    }
}

#[cfg(test)]
#[path = "kept_rules_tests.rs"]
mod tests;
